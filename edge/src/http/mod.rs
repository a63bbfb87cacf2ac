//! The page, the metrics and the state of health, served by hyper from a thread of its own.
//!
//! Nothing here can slow the classifier: it only ever takes the lock of the [`Board`] for a moment. What a browser can hold on to is bounded:
//! connections, streams of events, the time to send a request and the time to take an answer.

mod access;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Waker, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, LOCATION, REFERRER_POLICY, SET_COOKIE,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_io_timeout::TimeoutStream;

pub use access::{Access, check_token};

use crate::board::Board;
use crate::jpeg::encode;

/// Connections at a time; more wait in the system's queue.
const CONNECTIONS: usize = 64;
/// Streams of events at a time.
const STREAMS: usize = 16;
/// Time to send the head of a request.
const READ_TIME: Duration = Duration::from_secs(10);
/// Time in which a part of an answer must be taken.
const WRITE_TIME: Duration = Duration::from_secs(20);
/// Least time between two states.
const PACE: Duration = Duration::from_millis(100);
/// Most time between two states, which also tells a dead connection.
const PULSE: Duration = Duration::from_secs(2);
/// Widest picture, and its quality.
const WIDEST: usize = 640;
const QUALITY: u8 = 80;

/// No outside assets, no frames, no inline code.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

type Answer = Response<Either<Full<Bytes>, Events>>;

/// The server; dropping it closes the port.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    address: SocketAddr,
}

impl Server {
    /// Listens at the address.
    ///
    /// # Errors
    /// If the address cannot be had.
    pub fn start(access: Access, board: Arc<Board>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .context("cannot start the web server")?;
        let wanted = access.address();
        // tokio sets SO_REUSEADDR, so a port that a run before has just left is taken at once.
        let listener =
            runtime.block_on(TcpListener::bind(wanted)).with_context(|| format!("--http {wanted}: cannot listen"))?;
        let address = listener.local_addr().context("cannot start the web server")?;
        let (stop, stopped) = oneshot::channel();
        let shared = Shared::new(access, board);
        let thread = std::thread::Builder::new().name("http".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, shared) => {}
                    _ = stopped => {}
                }
            });
            // A picture may be in the making; it is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread), address })
    }

    /// Where it listens, with the port that port 0 became.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Shared {
    access: Access,
    board: Arc<Board>,
    streams: Arc<Semaphore>,
    /// The picture that was encoded last, with its number.
    jpeg: Mutex<Option<(u64, Bytes)>>,
}

impl Shared {
    fn new(access: Access, board: Arc<Board>) -> Arc<Self> {
        Arc::new(Self { access, board, streams: Arc::new(Semaphore::new(STREAMS)), jpeg: Mutex::new(None) })
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
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
            // Out of descriptors, or a connection that broke before it was taken: others may still work.
            Err(_) => tokio::time::sleep(PACE).await,
        }
    }
}

/// Answers one client, without a server: the stream need not be a socket.
pub async fn serve_one(stream: impl AsyncRead + AsyncWrite, access: Access, board: Arc<Board>) {
    connection(stream, Shared::new(access, board)).await;
}

async fn connection(stream: impl AsyncRead + AsyncWrite, shared: Arc<Shared>) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIME));
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(&request, &shared).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(READ_TIME).max_buf_size(16 << 10).max_headers(64);
    // Whatever a client does wrong ends its connection, and is its own matter.
    let _ = http.serve_connection(TokioIo::new(Box::pin(stream)), service).await;
}

async fn answer(request: &Request<Incoming>, shared: &Arc<Shared>) -> Answer {
    let mut answer = match shared.access.check(request) {
        access::Verdict::Allowed => route(request, shared).await,
        access::Verdict::Refused(status, words) => text(status, words),
        access::Verdict::SetCookie(cookie) => {
            let mut answer = text(StatusCode::SEE_OTHER, "");
            if let Ok(cookie) = HeaderValue::from_str(&cookie) {
                answer.headers_mut().insert(SET_COOKIE, cookie);
            }
            answer.headers_mut().insert(LOCATION, HeaderValue::from_static("/"));
            answer
        }
    };
    let headers = answer.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    answer
}

async fn route(request: &Request<Incoming>, shared: &Arc<Shared>) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
    }
    let board = &shared.board;
    match request.uri().path() {
        "/" => full("text/html; charset=utf-8", include_str!("page.html")),
        "/page.css" => full("text/css; charset=utf-8", include_str!("page.css")),
        "/page.js" => full("text/javascript; charset=utf-8", include_str!("page.js")),
        "/favicon.ico" => text(StatusCode::NO_CONTENT, ""),
        "/metrics" => full("text/plain; version=0.0.4; charset=utf-8", board.metrics()),
        "/healthz" => match board.health() {
            Ok(words) => text(StatusCode::OK, format!("{words}\n")),
            Err(words) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{words}\n")),
        },
        "/frame.jpg" => picture(shared).await,
        "/events" if request.method() == Method::HEAD => full("text/event-stream", ""),
        "/events" => match shared.streams.clone().try_acquire_owned() {
            Ok(permit) => events(board.clone(), permit),
            Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n"),
        },
        _ => text(StatusCode::NOT_FOUND, "there are /, /events, /frame.jpg, /metrics and /healthz\n"),
    }
}

fn full(kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(body.into())));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn text(status: StatusCode, words: impl Into<Bytes>) -> Answer {
    let mut answer = full("text/plain; charset=utf-8", words);
    *answer.status_mut() = status;
    answer
}

/// The newest picture; encoded once, however many look at it, and never two at a time.
async fn picture(shared: &Shared) -> Answer {
    let mut last = shared.jpeg.lock().await;
    let Some((number, picture)) = shared.board.picture() else {
        return text(StatusCode::NOT_FOUND, "no picture yet\n");
    };
    if let Some((made, bytes)) = &*last
        && *made == number
    {
        return full("image/jpeg", bytes.clone());
    }
    match tokio::task::spawn_blocking(move || encode(&picture, WIDEST, QUALITY)).await {
        Ok(Ok(bytes)) => {
            let bytes = Bytes::from(bytes);
            *last = Some((number, bytes.clone()));
            full("image/jpeg", bytes)
        }
        _ => text(StatusCode::INTERNAL_SERVER_ERROR, "this picture cannot be shown\n"),
    }
}

/// A body of server-sent events (HTML Living Standard, 9.2).
struct Events(mpsc::Receiver<Bytes>);

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, waker: &mut Waker<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(waker).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

fn events(board: Arc<Board>, permit: OwnedSemaphorePermit) -> Answer {
    // One message waits; a slow browser gets the newest state when it takes the next, not all that it missed.
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let _permit = permit;
        let mut changed = board.watch();
        let mut told = 0;
        let (mut message, mut hello) = ("retry: 1000\n".to_owned(), String::new());
        loop {
            let greeting = board.hello();
            if greeting != hello {
                message += &format!("event: hello\ndata: {greeting}\n\n");
                hello = greeting;
            }
            for (id, entry) in board.entries(told) {
                message += &format!("event: log\ndata: {entry}\n\n");
                told = id;
            }
            message += &format!("event: state\ndata: {}\n\n", board.now());
            if sender.send(std::mem::take(&mut message).into()).await.is_err() {
                return;
            }
            tokio::time::sleep(PACE).await;
            if let Ok(Err(_)) = tokio::time::timeout(PULSE, changed.changed()).await {
                return;
            }
        }
    });
    let mut answer = Response::new(Either::Right(Events(receiver)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer
}
