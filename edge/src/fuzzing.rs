//! What reads bytes that others choose, as functions of bytes: for fuzzing and the tests of hostile
//! input (`tests/fuzz-targets`).
//!
//! Each returns whatever comes of the bytes, errors as words; only a panic, too much memory or too
//! much time is a fault.

use std::io::{self, Cursor, Read};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use clap::Parser;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::picture::Picture;
use crate::source::files::Source;
use crate::source::{Next, pipe};
use crate::status::Status;
use crate::web::{Access, serve_one};
use crate::{Cli, config};

/// How long a connection is followed.
const PATIENCE: Duration = Duration::from_millis(20);

/// Most answers of the page that are kept, in bytes.
const MOST_ANSWERS: usize = 1 << 20;

/// The settings of `edge.toml`, held against the flags as on the command line.
///
/// # Errors
/// What is said of them.
pub fn config(text: &str) -> Result<(), String> {
    let flags =
        config::to_flags::<Cli>(Path::new("edge.toml"), text).map_err(|e| format!("{e:#}"))?;
    let arguments = ["edge", "run"].map(str::to_owned).into_iter().chain(flags);
    Cli::try_parse_from(arguments).map(drop).map_err(|e| e.to_string())
}

/// A stream on standard input that says itself what it is: YUV4MPEG2, or a picture. `look` sees
/// each frame.
///
/// # Errors
/// What is said of the stream or of a frame.
pub fn stream(
    bytes: Vec<u8>,
    look: &mut dyn FnMut(&dyn vgg_edge::pixel::Pixels),
) -> Result<(), String> {
    let words = |e: anyhow::Error| format!("{e:#}");
    let mut source =
        Source::from_reader("stdin", None, Box::new(Cursor::new(bytes)), false).map_err(words)?;
    loop {
        match source.next().map_err(words)? {
            Next::Frame(frame) => {
                frame.picture.with_pixels(&mut *look).map_err(|e| e.to_string())?
            }
            Next::Unreadable(words) => return Err(words),
            _ => return Ok(()),
        }
    }
}

/// Sees the bytes of a file and what became of it.
pub type Look<'a> = dyn FnMut(&[u8], vgg_edge::Result<&dyn vgg_edge::pixel::Pixels>) + 'a;

/// A stream of JPEG files, read `step` bytes at a time; `look` sees the bytes of each file and what
/// became of it.
///
/// # Errors
/// What is said of the stream.
pub fn jpegs(bytes: &[u8], step: usize, look: &mut Look) -> Result<(), String> {
    let (mut splitter, mut input) =
        (pipe::Splitter::default(), Drip { rest: bytes, step: step.max(1) });
    let mut file = Vec::new();
    while splitter.next(&mut input, &mut file).map_err(|e| format!("{e:#}"))? {
        match Picture::Jpeg(file.clone()).decoded().as_ref() {
            Ok(Picture::Rgb(frame)) => look(&file, Ok(frame)),
            Ok(_) => {}
            Err(e) => look(&file, Err(vgg_edge::Error::Image(e.to_string()))),
        }
        file.clear();
    }
    Ok(())
}

/// Gives a few bytes at a time, as pipes do.
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

/// What the page answers to a client that sends these bytes and then closes its side, with or
/// without a token.
///
/// # Errors
/// If no runtime can be had.
pub fn http(bytes: &[u8], token: Option<&str>) -> Result<Vec<u8>, String> {
    let access = Access::new(([127, 0, 0, 1], 80).into(), token)?;
    converse(bytes, |client| serve_one(client, access, Arc::new(Status::new())))
        .map_err(|e| e.to_string())
}

/// What a server of one connection answers to a client that sends these bytes and then closes its
/// side. What the server does in other threads is done when this returns.
///
/// # Errors
/// If no runtime can be had.
pub fn converse<F: Future>(bytes: &[u8], serve: impl FnOnce(Client) -> F) -> io::Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let answers = Arc::new(Mutex::new(Vec::new()));
    let client = Client { requests: bytes.to_vec(), sent: 0, waits: 16, answers: answers.clone() };
    // A stream of events goes on until the client is found to be gone, which takes seconds.
    let _ = runtime.block_on(async { tokio::time::timeout(PATIENCE, serve(client)).await });
    drop(runtime);
    let answers = std::mem::take(&mut *answers.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(answers)
}

/// The other end of a connection.
pub struct Client {
    requests: Vec<u8>,
    sent: usize,
    /// How often it is asked in vain before it closes: a connection that is closed at once is not
    /// answered.
    waits: u32,
    answers: Arc<Mutex<Vec<u8>>>,
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
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() > MOST_ANSWERS {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        answers.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
