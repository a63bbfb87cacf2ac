//! The parsers of untrusted bytes, as functions of bytes: for fuzzing and the tests of hostile
//! input (`tests/fuzz-targets`).
//!
//! Each returns the result for the bytes, errors as text; only a panic, too much memory or too much
//! time is a fault.

use std::io::{self, Cursor, Read};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use clap::Parser;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::frame::Frame;
use crate::source::Next;
use crate::source::files::Source;
use crate::source::stream::Splitter;
use crate::status::Status;
use crate::web::{Access, serve_one};
use crate::{Cli, config};

/// How long a connection is served.
const PATIENCE: Duration = Duration::from_millis(20);

/// Largest responses of the page that are kept, in bytes.
const MAX_RESPONSE_BYTES: usize = 1 << 20;

/// Checks the settings of `edge.toml` against the flags of the command line.
///
/// # Errors
/// The message about a setting that is not valid.
pub fn config(text: &str) -> Result<(), String> {
    let flags =
        config::to_flags::<Cli>(Path::new("edge.toml"), text).map_err(|e| format!("{e:#}"))?;
    let arguments = ["edge", "run"].map(str::to_owned).into_iter().chain(flags);
    Cli::try_parse_from(arguments).map(drop).map_err(|e| e.to_string())
}

/// Reads a stream on standard input whose format is detected: YUV4MPEG2, or an image. `look`
/// receives each frame.
///
/// # Errors
/// The message about the stream or a frame.
pub fn stream(
    bytes: Vec<u8>,
    look: &mut dyn FnMut(&dyn vgg_edge::pixel::Pixels),
) -> Result<(), String> {
    let message = |e: anyhow::Error| format!("{e:#}");
    let mut source =
        Source::from_reader("stdin", None, Box::new(Cursor::new(bytes)), false).map_err(message)?;
    loop {
        match source.next().map_err(message)? {
            Next::Frame(timed) => timed.frame.with_pixels(&mut *look).map_err(|e| e.to_string())?,
            Next::Unreadable(message) => return Err(message),
            _ => return Ok(()),
        }
    }
}

/// Receives the bytes of a file and its pixels or error.
pub type Look<'a> = dyn FnMut(&[u8], vgg_edge::Result<&dyn vgg_edge::pixel::Pixels>) + 'a;

/// Reads a stream of JPEG files, `step` bytes at a time; `look` receives the bytes of each file and
/// its pixels or error.
///
/// # Errors
/// The message about the stream.
pub fn jpegs(bytes: &[u8], step: usize, look: &mut Look) -> Result<(), String> {
    let (mut splitter, mut input) = (Splitter::default(), Drip { rest: bytes, step: step.max(1) });
    let mut file = Vec::new();
    while splitter.next(&mut input, &mut file).map_err(|e| format!("{e:#}"))? {
        match Frame::Jpeg(file.clone()).decoded().as_ref() {
            Ok(Frame::Rgb(image)) => look(&file, Ok(image)),
            Ok(_) => {}
            Err(e) => look(&file, Err(vgg_edge::Error::Picture(e.to_string()))),
        }
        file.clear();
    }
    Ok(())
}

/// Returns a few bytes at a time, as pipes do.
struct Drip<'a> {
    rest: &'a [u8],
    step: usize,
}

impl Read for Drip<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let now = self.step.min(self.rest.len());
        let read = (&self.rest[..now]).read(buffer)?;
        self.rest = &self.rest[read..];
        Ok(read)
    }
}

/// Returns the page's responses to a client that sends these bytes and then closes its side, with
/// or without a token.
///
/// # Errors
/// If the runtime cannot be started.
pub fn http(bytes: &[u8], token: Option<&str>) -> Result<Vec<u8>, String> {
    let access = Access::new(([127, 0, 0, 1], 80).into(), token).map_err(|e| e.to_string())?;
    converse(bytes, |client| serve_one(client, access, Arc::new(Status::new())))
        .map_err(|e| e.to_string())
}

/// Returns the responses of a server of one connection to a client that sends these bytes and then
/// closes its side. Work of the server in other threads is finished when this returns.
///
/// # Errors
/// If the runtime cannot be started.
pub fn converse<F: Future>(bytes: &[u8], serve: impl FnOnce(Client) -> F) -> io::Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let responses = Arc::new(Mutex::new(Vec::new()));
    let client =
        Client { requests: bytes.to_vec(), sent: 0, waits: 16, responses: responses.clone() };
    // A stream of events continues until the client is found to be gone, which takes seconds.
    let _ = runtime.block_on(async { tokio::time::timeout(PATIENCE, serve(client)).await });
    drop(runtime);
    let responses = std::mem::take(&mut *responses.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(responses)
}

/// The other end of a connection.
pub struct Client {
    requests: Vec<u8>,
    sent: usize,
    /// Reads that stay pending before it closes: a connection that is closed at once gets no
    /// response.
    waits: u32,
    responses: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.sent == self.requests.len() && self.waits > 0 {
            self.waits -= 1;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let end = self.requests.len().min(self.sent + buffer.remaining());
        buffer.put_slice(&self.requests[self.sent..end]);
        self.sent = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner);
        if responses.len() > MAX_RESPONSE_BYTES {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        responses.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
