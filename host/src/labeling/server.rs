//! The page, served by hyper on a loopback address.
//!
//! Who may ask: a browser on this machine that shows this very page. A request must name a loopback
//! host, so that a web site cannot come in under a name of its own that it points here (DNS
//! rebinding); it must not come from another site, as the browser tells by `Sec-Fetch-Site` and
//! `Origin`; and what moves files must bring the token that stands in the page.

use std::convert::Infallible;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderName, HeaderValue, ORIGIN,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use jpeg_encoder::{ColorType, Encoder};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use vgg_edge::Fingerprint;

use super::session::{Choice, LabelSession, UserError};

/// Connections at a time; more wait in the system's queue.
const CONNECTIONS: usize = 32;
/// Time to send the head of a request, and then its body.
const READ_TIME: Duration = Duration::from_secs(10);
/// Time in which a part of an answer must be taken.
const WRITE_TIME: Duration = Duration::from_secs(20);
/// How often Ctrl-C is looked for.
const PULSE: Duration = Duration::from_millis(100);
/// Most bytes of what a page sends.
const MOST_BODY: usize = 4096;
/// Most bytes of a picture that is shown.
const MOST_PICTURE: u64 = 64 << 20;
/// Quality of pictures that are encoded for the page, of formats that browsers do not know.
const QUALITY: u8 = 90;

const TOKEN: &str = "x-vgg-edge-token";

/// No outside assets, no frames, no inline code.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

type Answer = Response<Full<Bytes>>;

struct Shared {
    desk: Mutex<LabelSession>,
    page: String,
    /// Its hash: equal times for all guesses.
    token: Fingerprint,
}

impl Shared {
    fn new(desk: LabelSession, token: &str) -> Self {
        Self {
            desk: Mutex::new(desk),
            page: include_str!("page.html").replace("{{token}}", token),
            token: Fingerprint::of(token.as_bytes()),
        }
    }

    fn desk(&self) -> MutexGuard<'_, LabelSession> {
        // What a step has not done, it has not done: files are the truth, and they are whole.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves the page until Ctrl-C; `ready` is called with the address, which has the port that port 0
/// became. Gives the summary.
///
/// # Errors
/// If the address cannot be had, or what `ready` says.
pub fn serve(
    desk: LabelSession,
    address: SocketAddr,
    ready: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .context("the server")?;
    let listener = runtime
        .block_on(TcpListener::bind(address))
        .with_context(|| format!("--http {address}: cannot listen"))?;
    let shared = Arc::new(Shared::new(desk, &token().context("/dev/urandom")?));
    ready(listener.local_addr()?)?;
    runtime.block_on(async {
        tokio::select! {
            () = accept(listener, shared.clone()) => {}
            () = interrupted() => {}
        }
    });
    runtime.shutdown_background();
    // A move that is on its way holds the lock.
    Ok(shared.desk().summary())
}

async fn interrupted() {
    while !vgg_edge_cli::terminal::interrupted() {
        tokio::time::sleep(PULSE).await;
    }
}

/// 32 random hexadecimal digits.
fn token() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    connection(stream, shared).await;
                    drop(permit);
                });
            }
            // Out of descriptors, or a connection that broke before it was taken: others may still
            // work.
            Err(_) => tokio::time::sleep(PULSE).await,
        }
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite, shared: Arc<Shared>) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIME));
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(request, shared).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(READ_TIME)
        .max_buf_size(16 << 10)
        .max_headers(64);
    // Whatever a client does wrong ends its connection, and is its own matter.
    let _ = http.serve_connection(TokioIo::new(Box::pin(stream)), service).await;
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Answer {
    let mut answer = match check(&request, &shared) {
        Ok(()) => route(request, shared).await,
        Err((status, words)) => text(status, words),
    };
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// Whether a request may be answered.
fn check(request: &Request<Incoming>, shared: &Shared) -> Result<(), (StatusCode, &'static str)> {
    let header =
        |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = header(HOST.as_str()).unwrap_or_default();
    let refused = |words| Err((StatusCode::FORBIDDEN, words));
    if !is_local(host) {
        return refused("this page is for localhost only\n");
    }
    // `none`: typed or opened from a bookmark.
    let from_elsewhere = match header("sec-fetch-site") {
        Some("none") => request.method() != Method::GET,
        site => site.is_some_and(|site| site != "same-origin"),
    };
    // A link on another site may lead to the page itself, which does nothing by being opened.
    let opened = request.uri().path() == "/" && header("sec-fetch-mode") == Some("navigate");
    if from_elsewhere && !(opened && request.method() == Method::GET) {
        return refused("another site asks, which is not answered\n");
    }
    if header(ORIGIN.as_str()).is_some_and(|origin| origin != format!("http://{host}")) {
        return refused("another site asks, which is not answered\n");
    }
    match *request.method() {
        Method::GET => Ok(()),
        Method::POST
            if header(TOKEN)
                .is_none_or(|token| Fingerprint::of(token.as_bytes()) != shared.token) =>
        {
            refused("this page is from an earlier run; load it again\n")
        }
        Method::POST if header(CONTENT_TYPE.as_str()) != Some("application/json") => {
            Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "JSON is wanted\n"))
        }
        Method::POST => Ok(()),
        _ => Err((StatusCode::METHOD_NOT_ALLOWED, "only GET and POST are answered\n")),
    }
}

fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// What the page asks for.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Order {
    /// Into a class.
    Sort {
        id: usize,
        class: String,
    },
    /// Into a class that is new.
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

impl Order {
    fn carry_out(self, desk: &mut LabelSession) -> Result<(), UserError> {
        match self {
            Self::Sort { id, class } => desk.decide(id, Choice::Class(class)),
            Self::New { id, class } => {
                desk.add_class(&class)?;
                id.map_or(Ok(()), |id| desk.decide(id, Choice::Class(class)))
            }
            Self::Reject { id } => desk.decide(id, Choice::Reject),
            Self::Skip { id } => desk.decide(id, Choice::Skip),
            Self::Undo {} => desk.undo(),
            Self::Again {} => {
                desk.unskip();
                Ok(())
            }
        }
    }
}

async fn route(request: Request<Incoming>, shared: Arc<Shared>) -> Answer {
    let is_get = request.method() == Method::GET;
    match (is_get, request.uri().path()) {
        (true, "/") => full("text/html; charset=utf-8", shared.page.clone()),
        (true, "/page.css") => full("text/css; charset=utf-8", include_str!("page.css")),
        (true, "/page.js") => full("text/javascript; charset=utf-8", include_str!("page.js")),
        (true, "/favicon.ico") => text(StatusCode::NO_CONTENT, ""),
        (true, "/state") => blocking(move || state(&shared, Ok(()))).await,
        (true, path) => match path.strip_prefix("/picture/").map(str::parse) {
            Some(Ok(id)) => blocking(move || picture(&shared, id)).await,
            _ => text(StatusCode::NOT_FOUND, "there are /, /state and /picture/NUMBER\n"),
        },
        (false, "/do") => {
            let body = Limited::new(request.into_body(), MOST_BODY).collect();
            let Ok(Ok(body)) = tokio::time::timeout(READ_TIME, body).await else {
                return text(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "this is too long, or came too slowly\n",
                );
            };
            match serde_json::from_slice::<Order>(&body.to_bytes()) {
                Ok(order) => {
                    blocking(move || {
                        let outcome = order.carry_out(&mut shared.desk());
                        state(&shared, outcome)
                    })
                    .await
                }
                Err(_) => text(StatusCode::BAD_REQUEST, "this is not understood\n"),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "there is /do\n"),
    }
}

/// Does what waits for the disk elsewhere, so that other requests go on.
async fn blocking(work: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    let failed = |_| text(StatusCode::INTERNAL_SERVER_ERROR, "this went wrong\n");
    tokio::task::spawn_blocking(work).await.unwrap_or_else(failed)
}

/// What the page is to show, with what went wrong.
fn state(shared: &Shared, outcome: Result<(), UserError>) -> Answer {
    let (state, vanished) = shared.desk().state();
    let trouble = outcome.err().or(vanished).map(|error| error.to_string());
    full("application/json", json!({ "state": state, "trouble": trouble }).to_string())
}

/// A picture as it is, if browsers know its format; otherwise as a JPEG.
fn picture(shared: &Shared, id: usize) -> Answer {
    let Some((file, path)) = shared.desk().picture(id) else {
        return text(StatusCode::NOT_FOUND, "there is no such picture here any more\n");
    };
    let words = |wrong: &dyn std::fmt::Display| format!("{}: {wrong}\n", path.display());
    let mut bytes = Vec::new();
    let read = file.and_then(|file| file.take(MOST_PICTURE + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => return text(StatusCode::NOT_FOUND, words(&error)),
        Ok(_) if bytes.len() as u64 > MOST_PICTURE => {
            return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, words(&"it is too large to be shown"));
        }
        Ok(_) => {}
    }
    match bytes[..] {
        [0xff, 0xd8, 0xff, ..] => full("image/jpeg", bytes),
        [0x89, b'P', b'N', b'G', ..] => full("image/png", bytes),
        _ => match reencode(&bytes) {
            Ok(jpeg) => full("image/jpeg", jpeg),
            Err(wrong) => text(StatusCode::UNSUPPORTED_MEDIA_TYPE, words(&wrong)),
        },
    }
}

fn reencode(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let frame = vgg_edge::image::decode::decode(bytes).map_err(|e| e.to_string())?;
    let (Ok(width), Ok(height)) = (u16::try_from(frame.width()), u16::try_from(frame.height()))
    else {
        return Err("it is too large to be shown".into());
    };
    let mut jpeg = Vec::new();
    let encoder = Encoder::new(&mut jpeg, QUALITY);
    encoder.encode(frame.rgb(), width, height, ColorType::Rgb).map_err(|e| e.to_string())?;
    Ok(jpeg)
}

fn full(kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn text(status: StatusCode, words: impl Into<Bytes>) -> Answer {
    let mut answer = full("text/plain; charset=utf-8", words);
    *answer.status_mut() = status;
    answer
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::labeling::session::tests::tree;

    #[test]
    fn hosts() {
        for host in ["localhost", "localhost:8080", "127.0.0.1:80", "[::1]:8080", "127.8.8.8"] {
            assert!(is_local(host), "{host}");
        }
        for host in
            ["", "example.com", "localhost.example.com", "192.168.1.4:80", "127.0.0.1.example.com"]
        {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn orders() {
        let read = |text: &str| serde_json::from_str::<Order>(text);
        assert!(
            matches!(read(r#"{"sort":{"id":3,"class":"a"}}"#), Ok(Order::Sort { id: 3, class }) if class == "a")
        );
        assert!(matches!(read(r#"{"undo":{}}"#), Ok(Order::Undo {})));
        for bad in [
            r#"{"sort":{"id":-1,"class":"a"}}"#,
            r#"{"sort":{"class":"a"}}"#,
            "[]",
            "",
            r#"{"move":{}}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let (a, b) = (token().unwrap(), token().unwrap());
        assert!(a != b && a.len() == 32);
    }

    /// Pictures move within the two folders or not at all, and only for whoever shows the token
    /// from a page of this host.
    #[test]
    fn requests_of_others() {
        const SECRET: &str = "0123456789abcdef";
        let request = |line: &str, headers: &str, body: &str| {
            let length = body.len();
            format!(
                "{line} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
            )
        };
        let order = |body: &str| {
            let headers = format!(
                "{TOKEN}: {SECRET}\r\nOrigin: http://localhost\r\nContent-Type: application/json\r\n"
            );
            request("POST /do", &headers, body)
        };
        let good = [
            request("GET /", "", ""),
            request("GET /state", "Sec-Fetch-Site: same-origin\r\n", ""),
            request("GET /picture/1", "", ""),
            order(r#"{"sort":{"id":0,"class":"a"}}"#),
            order(r#"{"new":{"id":1,"class":"c"}}"#),
            order(r#"{"reject":{"id":2}}"#),
            order(r#"{"skip":{"id":0}}"#) + &order(r#"{"again":{}}"#),
            order(r#"{"sort":{"id":1,"class":"a"}}"#) + &order(r#"{"undo":{}}"#),
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
            let desk =
                LabelSession::open(&inbox, Some(&data), Some(&["a".into(), "b".into()])).unwrap();
            let shared = Arc::new(Shared::new(desk, SECRET));
            edge::fuzzing::converse(bytes, |client| connection(client, shared)).unwrap();
            let shows_token = bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
            let left = (0..3).filter(|id| inbox.join(format!("{id}.png")).exists()).count();
            assert!(left == 3 || shows_token, "moved without the token");
            moved.set(moved.get() + u32::from(left < 3));
            // Whatever was asked, each picture is in one place within these folders, as it was.
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
