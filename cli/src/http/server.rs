//! The accept loop and the limits of a server.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

use super::connection::{Connection, ConnectionSlot, ConnectionTable};
use super::response::Response;

/// Time to send the head of a request; services grant its body as much.
pub const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Time in which a part of a response must be taken.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// Largest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Most headers of a request.
const MAX_HEADERS: usize = 64;

/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The treatment of a new connection when all places are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits in the system's queue until another one closes.
    Wait,
    /// The connection that was idle for longest is closed for it, one without an allowed request
    /// first: a client that opens many connections and uses none locks nobody out. Streams of
    /// events are never closed, so a service must allow fewer of them than connections.
    CloseIdle,
}

/// Buffers of the system for a connection, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketBuffers {
    /// For what a client does not take (Linux doubles it for its own use).
    pub send: u32,
    /// For what a client sends.
    pub receive: u32,
}

/// Limits of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// What happens to further ones.
    pub when_full: WhenFull,
    /// Buffers of the system; `None` leaves its defaults.
    pub buffers: Option<SocketBuffers>,
    /// Connections that the system accepts ahead of the server.
    pub backlog: u32,
}

impl Limits {
    /// Opens a port. It must be called within a tokio runtime.
    ///
    /// # Errors
    /// The system's error if the address is not available.
    pub fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A port that an earlier run has just closed is available at once.
        socket.set_reuseaddr(true)?;
        // Connections inherit these.
        if let Some(buffers) = self.buffers {
            socket.set_send_buffer_size(buffers.send)?;
            socket.set_recv_buffer_size(buffers.receive)?;
        }
        socket.bind(address)?;
        socket.listen(self.backlog)
    }
}

/// Turns requests into responses.
pub trait Service: Send + Sync + 'static {
    /// Answers a request of a connection.
    fn respond(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: Connection,
    ) -> impl Future<Output = Response> + Send;
}

/// Accepts connections and answers their requests, until the future is dropped.
pub async fn serve<S: Service>(listener: TcpListener, service: Arc<S>, limits: Limits) {
    let table = Arc::<ConnectionTable>::default();
    let places = Arc::new(Semaphore::new(limits.connections));
    loop {
        let reserved = match limits.when_full {
            WhenFull::Wait => match places.clone().acquire_owned().await {
                Ok(permit) => Some(permit),
                Err(_) => return,
            },
            WhenFull::CloseIdle => None,
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let permit = match reserved {
                    Some(permit) => permit,
                    None => {
                        if places.available_permits() == 0 {
                            table.make_room();
                        }
                        let Ok(permit) = places.clone().acquire_owned().await else { return };
                        permit
                    }
                };
                let slot = ConnectionSlot::new(&table, Some(permit));
                let connection = slot.connection.clone();
                // It does not run before this task waits.
                let task = tokio::spawn(serve_slot(stream, slot, service.clone()));
                connection.set_task(task.abort_handle());
            }
            // Out of descriptors, or a connection that broke before it was accepted: others may
            // still work.
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Answers one client without a listener: the stream need not be a socket.
pub async fn serve_stream<S: Service>(stream: impl AsyncRead + AsyncWrite, service: Arc<S>) {
    let slot = ConnectionSlot::new(&Arc::default(), None);
    serve_slot(stream, slot, service).await;
}

async fn serve_slot<S: Service>(
    stream: impl AsyncRead + AsyncWrite,
    slot: ConnectionSlot,
    service: Arc<S>,
) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let answer = service_fn(|request| {
        let response = service.clone().respond(request, slot.connection.clone());
        async move { Ok::<_, Infallible>(response.await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS);
    // Whatever a client does wrong ends its connection and affects nobody else.
    let _ = http.serve_connection(TokioIo::new(Box::pin(stream)), answer).await;
}
