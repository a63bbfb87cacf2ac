//! The page, the metrics and the state of health, served by hyper from a thread of its own.
//!
//! Nothing here can slow the classifier: it only ever takes the lock of the [`Status`] for a
//! moment. What a browser can hold on to is bounded: connections, streams of events, the time to
//! send a request and the time to take an answer. When all connections are taken, one that has
//! asked for nothing, or not for longest, makes room: whoever opens many and uses none keeps nobody
//! out.

mod access;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::task::{Context as Waker, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{
    AGE, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, LOCATION,
    REFERRER_POLICY, SET_COOKIE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio_io_timeout::TimeoutStream;

pub use access::{Access, check_token};

use crate::jpeg::encode;
use crate::status::{Shown, Status};

/// Connections at a time. Streams are never closed to make room, so there must be fewer of them.
const CONNECTIONS: usize = 64;
/// Streams of events at a time.
const STREAMS: usize = 16;
/// Time to send the head of a request.
const READ_TIME: Duration = Duration::from_secs(10);
/// Time in which a part of an answer must be taken.
const WRITE_TIME: Duration = Duration::from_secs(20);
/// Time in which a page must take an event; one that does not leaves its place to others.
const EVENT_TIME: Duration = Duration::from_secs(5);
/// Bytes that the system keeps for a client which does not take them (Linux doubles it for its own
/// use), and of one that sends too much.
const SEND_BUFFER: u32 = 64 << 10;
const RECEIVE_BUFFER: u32 = 16 << 10;
/// Connections that the system takes before we do.
const BACKLOG: u32 = 256;
/// Least time between two states.
const PACE: Duration = Duration::from_millis(100);
/// Most time between two states, which also tells a dead connection.
const PULSE: Duration = Duration::from_secs(2);
/// Most age of a picture that is given at once, time in which a newer one may come, and between two
/// looks for it.
const FRESH: Duration = Duration::from_secs(5);
const PICTURE_TIME: Duration = Duration::from_secs(3);
const PICTURE_STEP: Duration = Duration::from_millis(50);
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
    access: Access,
}

impl Server {
    /// Listens at the address.
    ///
    /// # Errors
    /// If the address cannot be had.
    pub fn start(access: Access, status: Arc<Status>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .context("cannot start the web server")?;
        let wanted = access.address();
        let listener = runtime
            .block_on(async { listen(wanted) })
            .with_context(|| format!("--http {wanted}: cannot listen"))?;
        let address = listener.local_addr().context("cannot start the web server")?;
        let (stop, stopped) = oneshot::channel();
        let kept = access.clone();
        let shared = Shared::new(access, status);
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
        Ok(Self { stop: Some(stop), thread: Some(thread), address, access: kept })
    }

    /// Where it listens, with the port that port 0 became.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it asks of those who look.
    pub fn access(&self) -> &Access {
        &self.access
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
    status: Arc<Status>,
    streams: Arc<Semaphore>,
    /// The picture that was encoded last, with its number.
    jpeg: Mutex<Option<(u64, Bytes)>>,
    open: std::sync::Mutex<Open>,
}

/// The connections that are open, by numbers that are given once.
#[derive(Default)]
struct Open {
    next: u64,
    connections: BTreeMap<u64, Connection>,
}

struct Connection {
    /// Whether it has asked for something that it may see.
    known: bool,
    /// When it did last, or was opened.
    heard: Instant,
    /// Whether it takes events.
    streams: bool,
    task: Option<AbortHandle>,
}

/// A place among the connections, free again when this is dropped.
struct ConnectionSlot {
    shared: Arc<Shared>,
    id: u64,
    _permit: OwnedSemaphorePermit,
}

impl ConnectionSlot {
    fn new(shared: &Arc<Shared>, permit: OwnedSemaphorePermit) -> Self {
        let mut open = shared.open();
        let id = open.next;
        open.next += 1;
        open.connections.insert(
            id,
            Connection { known: false, heard: Instant::now(), streams: false, task: None },
        );
        Self { shared: shared.clone(), id, _permit: permit }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.shared.open().connections.remove(&self.id);
    }
}

impl Shared {
    fn new(access: Access, status: Arc<Status>) -> Arc<Self> {
        let streams = Arc::new(Semaphore::new(STREAMS));
        Arc::new(Self {
            access,
            status,
            streams,
            jpeg: Mutex::new(None),
            open: std::sync::Mutex::default(),
        })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes a connection that takes no events: one that has never asked for what it may see, else
    /// the one that has not for longest.
    fn make_room(&self) {
        let open = self.open();
        let quiet = open.connections.values().filter(|connection| !connection.streams);
        let task = quiet
            .min_by_key(|connection| (connection.known, connection.heard))
            .and_then(|c| c.task.clone());
        drop(open);
        if let Some(task) = task {
            task.abort();
        }
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut Connection)) {
        if let Some(connection) = self.open().connections.get_mut(&id) {
            change(connection);
        }
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A port that a run before has just left is taken at once.
    socket.set_reuseaddr(true)?;
    // Connections inherit these.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if places.available_permits() == 0 {
                    shared.make_room();
                }
                let Ok(permit) = places.clone().acquire_owned().await else { return };
                let place = ConnectionSlot::new(&shared, permit);
                let id = place.id;
                // It does not run before this task waits.
                let task = tokio::spawn(connection(stream, place)).abort_handle();
                shared.change(id, |connection| connection.task = Some(task));
            }
            // Out of descriptors, or a connection that broke before it was taken: others may still
            // work.
            Err(_) => tokio::time::sleep(PACE).await,
        }
    }
}

/// Answers one client, without a server: the stream need not be a socket.
pub async fn serve_one(stream: impl AsyncRead + AsyncWrite, access: Access, status: Arc<Status>) {
    let shared = Shared::new(access, status);
    if let Ok(permit) = Arc::new(Semaphore::new(1)).acquire_owned().await {
        connection(stream, ConnectionSlot::new(&shared, permit)).await;
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite, place: ConnectionSlot) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIME));
    let service = service_fn(|request| {
        let (shared, id) = (place.shared.clone(), place.id);
        async move { Ok::<_, Infallible>(answer(&request, &shared, id).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(READ_TIME)
        .max_buf_size(16 << 10)
        .max_headers(64);
    // Whatever a client does wrong ends its connection, and is its own matter.
    let _ = http.serve_connection(TokioIo::new(Box::pin(stream)), service).await;
}

async fn answer(request: &Request<Incoming>, shared: &Arc<Shared>, id: u64) -> Answer {
    let mut answer = match shared.access.check(request) {
        access::Verdict::Allowed => {
            shared.change(id, |connection| {
                (connection.known, connection.heard) = (true, Instant::now())
            });
            route(request, shared, id).await
        }
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

async fn route(request: &Request<Incoming>, shared: &Arc<Shared>, id: u64) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
    }
    let status = &shared.status;
    match request.uri().path() {
        "/" => full("text/html; charset=utf-8", include_str!("page.html")),
        "/page.css" => full("text/css; charset=utf-8", include_str!("page.css")),
        "/page.js" => full("text/javascript; charset=utf-8", include_str!("page.js")),
        "/favicon.ico" => text(StatusCode::NO_CONTENT, ""),
        "/metrics" => full("text/plain; version=0.0.4; charset=utf-8", status.metrics()),
        "/healthz" => match status.health() {
            Ok(words) => text(StatusCode::OK, format!("{words}\n")),
            Err(words) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{words}\n")),
        },
        "/frame.jpg" => picture(shared).await,
        "/events" if request.method() == Method::HEAD => full("text/event-stream", ""),
        "/events" => match shared.streams.clone().try_acquire_owned() {
            Ok(permit) => events(shared, id, permit),
            Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n"),
        },
        _ => {
            text(StatusCode::NOT_FOUND, "there are /, /events, /frame.jpg, /metrics and /healthz\n")
        }
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

/// The newest picture; encoded once, however many look at it, and never two at a time. One that was
/// put up when somebody looked before is waited out for a moment; if no newer one comes, it is
/// given with its age.
async fn picture(shared: &Shared) -> Answer {
    let asked = Instant::now();
    let shown = loop {
        let shown = shared.status.picture();
        let is_fresh = shown.as_ref().is_some_and(|shown| shown.at.elapsed() < FRESH);
        if is_fresh || asked.elapsed() >= PICTURE_TIME {
            break shown;
        }
        tokio::time::sleep(PICTURE_STEP).await;
    };
    let Some(Shown { number, picture, at }) = shown else {
        return text(StatusCode::NOT_FOUND, "no picture yet\n");
    };
    let mut last = shared.jpeg.lock().await;
    if let Some((made, bytes)) = &*last
        && *made == number
    {
        return jpeg(bytes.clone(), at);
    }
    match tokio::task::spawn_blocking(move || encode(&picture, WIDEST, QUALITY)).await {
        Ok(Ok(bytes)) => {
            let bytes = Bytes::from(bytes);
            *last = Some((number, bytes.clone()));
            jpeg(bytes, at)
        }
        _ => text(StatusCode::INTERNAL_SERVER_ERROR, "this picture cannot be shown\n"),
    }
}

fn jpeg(bytes: Bytes, at: Instant) -> Answer {
    let mut answer = full("image/jpeg", bytes);
    answer.headers_mut().insert(AGE, at.elapsed().as_secs().into());
    answer
}

/// A body of server-sent events (HTML Living Standard, 9.2).
struct Events(mpsc::Receiver<Bytes>);

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        waker: &mut Waker<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(waker).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Marks a connection as one that takes events, until it is dropped.
struct Streaming {
    shared: Arc<Shared>,
    id: u64,
    _permit: OwnedSemaphorePermit,
}

impl Streaming {
    fn new(shared: &Arc<Shared>, id: u64, permit: OwnedSemaphorePermit) -> Self {
        shared.change(id, |connection| connection.streams = true);
        Self { shared: shared.clone(), id, _permit: permit }
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.shared.change(self.id, |connection| connection.streams = false);
    }
}

fn events(shared: &Arc<Shared>, id: u64, permit: OwnedSemaphorePermit) -> Answer {
    // One message waits; a slow browser gets the newest state when it takes the next, not all that
    // it missed.
    let (sender, receiver) = mpsc::channel(1);
    let streaming = Streaming::new(shared, id, permit);
    tokio::spawn(async move {
        let status = &streaming.shared.status;
        let mut changed = status.watch();
        let mut told = 0;
        let (mut message, mut hello) = ("retry: 1000\n".to_owned(), String::new());
        loop {
            let greeting = status.run_info_json();
            if greeting != hello {
                message += &format!("event: hello\ndata: {greeting}\n\n");
                hello = greeting;
            }
            for (id, entry) in status.entries(told) {
                message += &format!("event: log\ndata: {entry}\n\n");
                told = id;
            }
            message += &format!("event: state\ndata: {}\n\n", status.snapshot_json());
            let sent = sender.send(std::mem::take(&mut message).into());
            if !matches!(tokio::time::timeout(EVENT_TIME, sent).await, Ok(Ok(()))) {
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
