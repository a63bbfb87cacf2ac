//! The page, the metrics and the state of health, served from a thread of its own.
//!
//! Nothing here can slow the classifier: it only ever takes the lock of the [`Status`] for a
//! moment. What a browser can hold on to is bounded, see [`http`]; when all connections are taken,
//! one that is idle makes room.

mod access;
mod routes;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use vgg_edge_cli::http::{self, Limits, SocketBuffers, WhenFull};

pub use access::Access;
pub use vgg_edge_cli::http::token::check_token;

use crate::status::Status;
use routes::Routes;

/// The device has little memory to lend to clients that do not take what they asked for, or send
/// too much.
const LIMITS: Limits = Limits {
    connections: 64,
    when_full: WhenFull::CloseIdle,
    buffers: Some(SocketBuffers { send: 64 << 10, receive: 16 << 10 }),
    backlog: 256,
};

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
    /// If the address is not available.
    pub fn start(access: Access, status: Arc<Status>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .context("cannot start the web server")?;
        let wanted = access.address();
        let listener = runtime
            .block_on(async { LIMITS.listen(wanted) })
            .with_context(|| format!("--http {wanted}: cannot listen"))?;
        let address = listener.local_addr().context("cannot start the web server")?;
        let (stop, stopped) = oneshot::channel();
        let routes = Arc::new(Routes::new(access.clone(), status));
        let thread = std::thread::Builder::new().name("http".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = http::serve(listener, routes, LIMITS) => {}
                    _ = stopped => {}
                }
            });
            // An image may still be encoded; the program does not wait for it.
            runtime.shutdown_background();
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread), address, access })
    }

    /// The address it listens at, with the port that port 0 became.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The access rules it was started with.
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

/// Answers one client without a server: the stream need not be a socket.
pub async fn serve_one(stream: impl AsyncRead + AsyncWrite, access: Access, status: Arc<Status>) {
    http::serve_stream(stream, Arc::new(Routes::new(access, status))).await;
}
