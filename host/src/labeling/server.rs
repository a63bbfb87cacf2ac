//! The page, served on a loopback address.
//!
//! Only a browser on this machine that shows this very page has access. A request must name a
//! loopback host and must not come from another site (see [`vgg_edge_cli::http::origin`]); one that
//! moves files must have the token that stands in the page.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use jpeg_encoder::{ColorType, Encoder};
use serde::Deserialize;
use serde_json::{Value, json};
use vgg_edge_cli::http::origin::{header, is_cross_origin, names_loopback};
use vgg_edge_cli::http::token::{AccessToken, random_token};
use vgg_edge_cli::http::{
    self, Connection, Limits, READ_TIMEOUT, Response, Service, WhenFull, content,
    insert_security_headers, text,
};

use super::session::{Choice, LabelSession, UserError};

const LIMITS: Limits =
    Limits { connections: 32, when_full: WhenFull::Wait, buffers: None, backlog: 1024 };
/// Time between two checks for a cancellation.
const CANCEL_POLL: Duration = Duration::from_millis(100);
/// Largest body of a request, in bytes.
const MAX_BODY_BYTES: usize = 4096;
/// Largest file that is shown, in bytes.
const MAX_IMAGE_BYTES: u64 = 64 << 20;
/// The error of images that are not shown.
const TOO_LARGE: &str = "too large to show";
/// Quality of images that are encoded for the page, of formats that browsers do not support.
const QUALITY: u8 = 90;

const TOKEN_HEADER: &str = "x-vgg-edge-token";

/// No outside assets, no frames, no inline code.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
                      img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

struct LabelService {
    session: Mutex<LabelSession>,
    page: String,
    token: AccessToken,
}

impl LabelService {
    fn new(session: LabelSession, token: &str) -> Self {
        Self {
            session: Mutex::new(session),
            page: include_str!("page.html").replace("{{token}}", token),
            token: AccessToken::new(token),
        }
    }

    fn session(&self) -> MutexGuard<'_, LabelSession> {
        // A step that panicked has left no half-done work: the files are the truth, and they are
        // whole.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves the page until `canceled` returns true; `ready` is called with the address, which has the
/// port that port 0 became. Returns the summary.
///
/// # Errors
/// If the address is not available, and the errors of `ready`.
pub fn serve(
    session: LabelSession,
    address: SocketAddr,
    canceled: impl Fn() -> bool,
    ready: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .context("cannot start the web server")?;
    let listener = runtime
        .block_on(async { LIMITS.listen(address) })
        .with_context(|| format!("--http {address}: cannot listen"))?;
    let token = random_token().context("/dev/urandom: cannot read")?;
    let service = Arc::new(LabelService::new(session, &token));
    ready(listener.local_addr()?)?;
    let cancellation = async {
        while !canceled() {
            tokio::time::sleep(CANCEL_POLL).await;
        }
    };
    runtime.block_on(async {
        tokio::select! {
            () = http::serve(listener, service.clone(), LIMITS) => {}
            () = cancellation => {}
        }
    });
    runtime.shutdown_background();
    // A move in progress holds the lock.
    Ok(service.session().summary())
}

impl Service for LabelService {
    async fn respond(self: Arc<Self>, request: Request<Incoming>, _: Connection) -> Response {
        let mut response = match check(&request, &self.token) {
            Ok(()) => route(request, self).await,
            Err((status, message)) => text(status, message),
        };
        let headers = response.headers_mut();
        insert_security_headers(headers, POLICY);
        for name in ["cross-origin-resource-policy", "cross-origin-opener-policy"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("same-origin"));
        }
        response
    }
}

/// Whether a request may be answered.
fn check<B>(request: &Request<B>, token: &AccessToken) -> Result<(), (StatusCode, &'static str)> {
    if !names_loopback(request) {
        return Err((StatusCode::FORBIDDEN, "this page is for localhost only\n"));
    }
    if is_cross_origin(request) {
        return Err((StatusCode::FORBIDDEN, "cross-origin request refused\n"));
    }
    match *request.method() {
        Method::GET => Ok(()),
        Method::POST if !token.matches(header(request, TOKEN_HEADER)) => {
            Err((StatusCode::FORBIDDEN, "this page is from an earlier run; reload it\n"))
        }
        Method::POST if header(request, CONTENT_TYPE.as_str()) != "application/json" => {
            Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be JSON\n"))
        }
        Method::POST => Ok(()),
        _ => Err((StatusCode::METHOD_NOT_ALLOWED, "only GET and POST are supported\n")),
    }
}

/// A request of the page.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Action {
    /// Into a class.
    Sort {
        id: usize,
        class: String,
    },
    /// Into a new class.
    New {
        id: Option<usize>,
        class: String,
    },
    Reject {
        id: usize,
    },
    Skip {
        id: usize,
    },
    Undo {},
    Again {},
}

impl Action {
    fn run(self, session: &mut LabelSession) -> Result<(), UserError> {
        match self {
            Self::Sort { id, class } => session.decide(id, Choice::Class(class)),
            Self::New { id, class } => {
                session.add_class(&class)?;
                id.map_or(Ok(()), |id| session.decide(id, Choice::Class(class)))
            }
            Self::Reject { id } => session.decide(id, Choice::Reject),
            Self::Skip { id } => session.decide(id, Choice::Skip),
            Self::Undo {} => session.undo(),
            Self::Again {} => {
                session.unskip();
                Ok(())
            }
        }
    }
}

async fn route(request: Request<Incoming>, service: Arc<LabelService>) -> Response {
    let is_get = request.method() == Method::GET;
    match (is_get, request.uri().path()) {
        (true, "/") => content("text/html; charset=utf-8", service.page.clone()),
        (true, "/page.css") => content("text/css; charset=utf-8", include_str!("page.css")),
        (true, "/page.js") => content("text/javascript; charset=utf-8", include_str!("page.js")),
        (true, "/favicon.ico") => text(StatusCode::NO_CONTENT, ""),
        (true, "/state") => blocking(move || state(&service, Ok(()))).await,
        (true, path) => match path.strip_prefix("/picture/").map(str::parse) {
            Some(Ok(id)) => blocking(move || image(&service, id)).await,
            _ => {
                text(StatusCode::NOT_FOUND, "not found; there are /, /state and /picture/NUMBER\n")
            }
        },
        (false, "/do") => {
            let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect();
            let Ok(Ok(body)) = tokio::time::timeout(READ_TIMEOUT, body).await else {
                return text(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "the request is too large or took too long\n",
                );
            };
            match serde_json::from_slice::<Action>(&body.to_bytes()) {
                Ok(action) => {
                    blocking(move || {
                        let outcome = action.run(&mut service.session());
                        state(&service, outcome)
                    })
                    .await
                }
                Err(_) => text(StatusCode::BAD_REQUEST, "the request is not valid\n"),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "not found; POST goes to /do\n"),
    }
}

/// Runs work that waits for the disk in another thread, so that other requests continue.
async fn blocking(work: impl FnOnce() -> Response + Send + 'static) -> Response {
    let failed = |_| text(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n");
    tokio::task::spawn_blocking(work).await.unwrap_or_else(failed)
}

/// Returns the state that the page is to show, with the error of the last action.
fn state(service: &LabelService, outcome: Result<(), UserError>) -> Response {
    let (state, vanished) = service.session().state();
    let error = outcome.err().or(vanished).map(|error| error.to_string());
    content("application/json", json!({ "state": state, "trouble": error }).to_string())
}

/// Returns an image as it is if browsers support its format, otherwise as a JPEG.
fn image(service: &LabelService, id: usize) -> Response {
    let Some((file, path)) = service.session().picture(id) else {
        return text(StatusCode::NOT_FOUND, "this image no longer exists\n");
    };
    let message = |error: &dyn std::fmt::Display| format!("{}: {error}\n", path.display());
    let mut bytes = Vec::new();
    let read = file.and_then(|file| file.take(MAX_IMAGE_BYTES + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => return text(StatusCode::NOT_FOUND, message(&error)),
        Ok(_) if bytes.len() as u64 > MAX_IMAGE_BYTES => {
            return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, message(&TOO_LARGE));
        }
        Ok(_) => {}
    }
    match bytes[..] {
        [0xff, 0xd8, 0xff, ..] => content("image/jpeg", bytes),
        [0x89, b'P', b'N', b'G', ..] => content("image/png", bytes),
        _ => match reencode(&bytes) {
            Ok(jpeg) => content("image/jpeg", jpeg),
            Err(error) => text(StatusCode::UNSUPPORTED_MEDIA_TYPE, message(&error)),
        },
    }
}

fn reencode(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let image = vgg_edge::image::decode::decode(bytes).map_err(|e| e.to_string())?;
    let (Ok(width), Ok(height)) = (u16::try_from(image.width()), u16::try_from(image.height()))
    else {
        return Err(TOO_LARGE.into());
    };
    let mut jpeg = Vec::new();
    let encoder = Encoder::new(&mut jpeg, QUALITY);
    encoder.encode(image.rgb(), width, height, ColorType::Rgb).map_err(|e| e.to_string())?;
    Ok(jpeg)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::labeling::session::tests::tree;

    #[test]
    fn actions() {
        let read = |text: &str| serde_json::from_str::<Action>(text);
        assert!(matches!(
            read(r#"{"sort":{"id":3,"class":"a"}}"#),
            Ok(Action::Sort { id: 3, class }) if class == "a"
        ));
        assert!(matches!(read(r#"{"undo":{}}"#), Ok(Action::Undo {})));
        for bad in [
            r#"{"sort":{"id":-1,"class":"a"}}"#,
            r#"{"sort":{"class":"a"}}"#,
            "[]",
            "",
            r#"{"move":{}}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    /// Images move within the two directories or not at all, and only for a client that has the
    /// token of the page.
    #[test]
    fn requests_of_others_move_nothing_without_the_token() {
        const SECRET: &str = "0123456789abcdef";
        let request = |line: &str, headers: &str, body: &str| {
            let length = body.len();
            format!(
                "{line} HTTP/1.1\r\nHost: localhost\r\n{headers}\
                 Content-Length: {length}\r\n\r\n{body}"
            )
        };
        let action = |body: &str| {
            let headers = format!(
                "{TOKEN_HEADER}: {SECRET}\r\nOrigin: http://localhost\r\n\
                 Content-Type: application/json\r\n"
            );
            request("POST /do", &headers, body)
        };
        let good = [
            request("GET /", "", ""),
            request("GET /state", "Sec-Fetch-Site: same-origin\r\n", ""),
            request("GET /picture/1", "", ""),
            action(r#"{"sort":{"id":0,"class":"a"}}"#),
            action(r#"{"new":{"id":1,"class":"c"}}"#),
            action(r#"{"reject":{"id":2}}"#),
            action(r#"{"skip":{"id":0}}"#) + &action(r#"{"again":{}}"#),
            action(r#"{"sort":{"id":1,"class":"a"}}"#) + &action(r#"{"undo":{}}"#),
        ];
        let good =
            good.map(|text| (text.lines().next().unwrap_or_default().into(), text.into_bytes()));
        let moved = Cell::new(0);
        fuzz_targets::attack("label", &good, 300, |bytes| {
            let root = tempfile::tempdir().unwrap();
            let (inbox, data) = (root.path().join("in"), root.path().join("data"));
            std::fs::create_dir(&inbox).unwrap();
            for id in 0..3 {
                std::fs::write(inbox.join(format!("{id}.png")), [id]).unwrap();
            }
            let session =
                LabelSession::open(&inbox, Some(&data), Some(&["a".into(), "b".into()])).unwrap();
            let service = Arc::new(LabelService::new(session, SECRET));
            edge::fuzzing::converse(bytes, |client| http::serve_stream(client, service)).unwrap();
            let has_token = bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
            let left = (0..3).filter(|id| inbox.join(format!("{id}.png")).exists()).count();
            assert!(left == 3 || has_token, "moved without the token");
            moved.set(moved.get() + u32::from(left < 3));
            // Whatever was requested, each image is in one of these directories, unchanged.
            let tree = tree(root.path());
            assert!(
                tree.keys().all(|name| name.starts_with("in/") || name.starts_with("data/")),
                "{tree:?}"
            );
            let mut found: Vec<_> = tree.into_values().collect();
            found.sort();
            assert_eq!(found, [[0], [1], [2]]);
        });
        assert!(moved.get() > 9, "{moved:?}");
    }
}
