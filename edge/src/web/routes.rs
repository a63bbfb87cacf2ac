//! The paths of the server and their responses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::{Bytes, Incoming};
use hyper::header::{AGE, HeaderValue, LOCATION, SET_COOKIE};
use hyper::{Method, Request, StatusCode};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use vgg_edge_cli::http::events::{EVENT_STREAM, event_stream, push_event};
use vgg_edge_cli::http::{Connection, Response, Service, content, insert_security_headers, text};

use super::access::{Access, Verdict};
use crate::jpeg::encode;
use crate::status::{Shown, Status};

/// Streams of events at a time; fewer than connections, since streams are never closed for others.
const STREAMS: usize = 16;
/// Least time between two states.
const MIN_EVENT_INTERVAL: Duration = Duration::from_millis(100);
/// Most time between two states; a send that fails also reveals a dead connection.
const MAX_EVENT_INTERVAL: Duration = Duration::from_secs(2);
/// Most age of an image that is returned at once.
const FRESH: Duration = Duration::from_secs(5);
/// Time in which a newer image may arrive.
const IMAGE_TIMEOUT: Duration = Duration::from_secs(3);
/// Time between two checks for a newer image.
const IMAGE_POLL: Duration = Duration::from_millis(50);
/// Largest width of an image, in pixels.
const MAX_WIDTH: usize = 640;
/// JPEG quality of an image.
const QUALITY: u8 = 80;

/// No outside assets, no frames, no inline code.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
                      img-src 'self' blob: data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Answers requests from the status of the run.
pub struct Routes {
    access: Access,
    status: Arc<Status>,
    streams: Arc<Semaphore>,
    /// The image that was encoded last, with its number.
    encoded: Mutex<Option<(u64, Bytes)>>,
}

impl Routes {
    /// Answers those whom `access` lets in.
    pub fn new(access: Access, status: Arc<Status>) -> Self {
        Self {
            access,
            status,
            streams: Arc::new(Semaphore::new(STREAMS)),
            encoded: Mutex::new(None),
        }
    }

    async fn route(&self, request: &Request<Incoming>, connection: Connection) -> Response {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are supported\n");
        }
        match request.uri().path() {
            "/" => content("text/html; charset=utf-8", include_str!("page.html")),
            "/page.css" => content("text/css; charset=utf-8", include_str!("page.css")),
            "/page.js" => content("text/javascript; charset=utf-8", include_str!("page.js")),
            "/favicon.ico" => text(StatusCode::NO_CONTENT, ""),
            "/metrics" => {
                content("text/plain; version=0.0.4; charset=utf-8", self.status.metrics())
            }
            "/healthz" => match self.status.health() {
                Ok(message) => text(StatusCode::OK, format!("{message}\n")),
                Err(message) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{message}\n")),
            },
            "/frame.jpg" => self.image().await,
            "/events" if request.method() == Method::HEAD => content(EVENT_STREAM, ""),
            "/events" => match self.streams.clone().try_acquire_owned() {
                Ok(permit) => self.events(connection, permit),
                Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n"),
            },
            _ => text(
                StatusCode::NOT_FOUND,
                "not found; there are /, /events, /frame.jpg, /metrics and /healthz\n",
            ),
        }
    }

    /// Returns the newest image. It is encoded once for all clients, never two at a time. If the
    /// newest is one that an earlier client asked for, the response waits a moment for a newer
    /// one; failing that, it has the old image and its age.
    async fn image(&self) -> Response {
        let asked = Instant::now();
        let shown = loop {
            let shown = self.status.picture();
            let is_fresh = shown.as_ref().is_some_and(|shown| shown.at.elapsed() < FRESH);
            if is_fresh || asked.elapsed() >= IMAGE_TIMEOUT {
                break shown;
            }
            tokio::time::sleep(IMAGE_POLL).await;
        };
        let Some(Shown { number, picture: frame, at }) = shown else {
            return text(StatusCode::NOT_FOUND, "no image yet\n");
        };
        let mut encoded = self.encoded.lock().await;
        if let Some((of, bytes)) = &*encoded
            && *of == number
        {
            return jpeg(bytes.clone(), at);
        }
        match tokio::task::spawn_blocking(move || encode(&frame, MAX_WIDTH, QUALITY)).await {
            Ok(Ok(bytes)) => {
                let bytes = Bytes::from(bytes);
                *encoded = Some((number, bytes.clone()));
                jpeg(bytes, at)
            }
            _ => text(StatusCode::INTERNAL_SERVER_ERROR, "cannot encode this image\n"),
        }
    }

    fn events(&self, connection: Connection, permit: OwnedSemaphorePermit) -> Response {
        let (sender, response) = event_stream();
        let guard = connection.start_stream();
        let status = self.status.clone();
        tokio::spawn(async move {
            let _held = (guard, permit);
            let mut changed = status.watch();
            let mut last_entry = 0;
            let (mut message, mut hello) = ("retry: 1000\n".to_owned(), String::new());
            loop {
                let current = status.run_info_json();
                if current != hello {
                    push_event(&mut message, "hello", &current);
                    hello = current;
                }
                for (id, entry) in status.entries(last_entry) {
                    push_event(&mut message, "log", entry);
                    last_entry = id;
                }
                push_event(&mut message, "state", status.snapshot_json());
                if !sender.send(std::mem::take(&mut message)).await {
                    return;
                }
                tokio::time::sleep(MIN_EVENT_INTERVAL).await;
                let change = tokio::time::timeout(MAX_EVENT_INTERVAL, changed.changed()).await;
                if let Ok(Err(_)) = change {
                    return;
                }
            }
        });
        response
    }
}

impl Service for Routes {
    async fn respond(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: Connection,
    ) -> Response {
        let mut response = match self.access.check(&request) {
            Verdict::Allowed => {
                connection.mark_allowed();
                self.route(&request, connection).await
            }
            Verdict::Refused(status, message) => text(status, message),
            Verdict::SetCookie(cookie) => {
                let mut response = text(StatusCode::SEE_OTHER, "");
                if let Ok(cookie) = HeaderValue::from_str(&cookie) {
                    response.headers_mut().insert(SET_COOKIE, cookie);
                }
                response.headers_mut().insert(LOCATION, HeaderValue::from_static("/"));
                response
            }
        };
        insert_security_headers(response.headers_mut(), POLICY);
        response
    }
}

fn jpeg(bytes: Bytes, at: Instant) -> Response {
    let mut response = content("image/jpeg", bytes);
    response.headers_mut().insert(AGE, at.elapsed().as_secs().into());
    response
}

#[cfg(test)]
mod tests {
    use crate::fuzzing::http;

    const TOKEN: &str = "0123456789abcdef";

    /// The response to one request, in lower case.
    fn response(line: &str, headers: &str, token: Option<&str>) -> String {
        let request = format!("{line} HTTP/1.1\r\n{headers}\r\n");
        String::from_utf8_lossy(&http(request.as_bytes(), token).unwrap()).to_lowercase()
    }

    #[test]
    fn routes_have_their_statuses_and_security_headers() {
        let local = "Host: localhost\r\n";
        let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
        let page = format!("GET /?token={TOKEN}");
        for (line, headers, token, status) in [
            ("GET /", local, None, 200),
            ("HEAD /page.css", local, None, 200),
            ("GET /page.js", local, None, 200),
            ("GET /favicon.ico", local, None, 204),
            ("GET /metrics", local, None, 200),
            ("HEAD /events", local, None, 200),
            ("GET /nothing", local, None, 404),
            ("POST /", local, None, 405),
            ("GET /", "Host: example.com\r\n", None, 403),
            ("GET /", "Host: example.com\r\n", Some(TOKEN), 401),
            ("GET /", &bearer, Some(TOKEN), 200),
            (&page, "", Some(TOKEN), 303),
        ] {
            let found = response(line, headers, token);
            assert!(found.starts_with(&format!("http/1.1 {status} ")), "{line}: {found}");
            assert!(found.contains("content-security-policy: default-src 'none'"), "{found}");
            assert!(found.contains("x-frame-options: deny"), "{found}");
            assert_eq!(found.contains("set-cookie: "), status == 303, "{found}");
        }
    }

    #[test]
    fn events_start_with_hello_and_state() {
        let found = response("GET /events", "Host: localhost\r\n", None);
        assert!(found.contains("content-type: text/event-stream"), "{found}");
        let (hello, state) = (found.find("event: hello\ndata: {"), found.find("event: state\n"));
        assert!(hello.is_some() && hello < state, "{found}");
    }
}
