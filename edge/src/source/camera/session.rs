//! A session with a camera, from opening its node to the first error.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use v4l::Device;
use v4l::buffer::{Flags, Metadata, Type};
use v4l::io::mmap::Stream;
use v4l::io::traits::{CaptureStream, Stream as _};
use vgg_edge::image::decode::decode;
use vgg_edge::pixel::RawFrame;

use super::freeze::Freeze;
use super::identity::{Identity, find};
use super::negotiate::{FrameKind, negotiate};
use super::timestamp::{captured, monotonic};
use super::{CameraOptions, TICK};
use crate::frame::Frame;
use crate::source::{LatestFrame, SourceState, panic_message};

/// Buffers that the driver fills.
const BUFFERS: u32 = 4;

/// `POLLIN` of poll(2).
const POLLIN: i16 = 1;

/// Why a session ended before it was stopped.
pub(super) enum SessionError {
    /// No frames, or no usable ones; described by the message.
    Stalled(&'static str),
    /// The same image for this long.
    Frozen(Duration),
    /// An error.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for SessionError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// What outlives a session.
pub(super) struct Camera {
    /// The identity of the camera, once it was opened.
    pub(super) identity: Option<Identity>,
    /// The image seen last.
    pub(super) freeze: Freeze,
}

/// A session.
pub(super) struct Session<'a> {
    pub(super) options: &'a CameraOptions,
    pub(super) latest: &'a LatestFrame,
    /// The name of the source.
    pub(super) name: &'a Arc<str>,
    pub(super) camera: &'a mut Camera,
    /// Whether a frame arrived.
    pub(super) streamed: bool,
}

impl Session<'_> {
    /// Streams until it is stopped. A panic is an error of the session.
    pub(super) fn run(&mut self) -> Result<(), SessionError> {
        guarded(|| self.open_and_stream())
    }

    fn open_and_stream(&mut self) -> Result<(), SessionError> {
        let options = self.options;
        let (device, path) = find(&options.device, self.camera.identity.as_ref())?;
        let (kind, detail) = negotiate(&device, options)?;
        let detail = if path == options.device {
            detail
        } else {
            format!("{detail}, now at {}", path.display())
        };
        self.camera.identity = Identity::of(&device).ok();
        let mut stream = open_stream(&device)?;
        let ended = self.stream(&mut stream, kind, &detail);
        // Drop panics if the driver fails to stop, see the module.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(stream)));
        ended
    }

    fn stream(
        &mut self,
        stream: &mut Stream,
        kind: FrameKind,
        detail: &str,
    ) -> Result<(), SessionError> {
        for index in 0..BUFFERS as usize {
            // A driver may provide fewer buffers than requested.
            if CaptureStream::queue(stream, index).is_err() && index == 0 {
                return Err(anyhow!("the driver accepts no buffer").into());
            }
        }
        stream.start().context("cannot start streaming")?;
        let handle = stream.handle();
        let (latest, stall) = (self.latest, self.options.stall);
        let mut last = Instant::now();
        let (mut primed, mut sequence) = (false, None);
        loop {
            if latest.stopped() {
                return Ok(());
            }
            match handle.poll(POLLIN, TICK.as_millis() as i32) {
                Ok(0) if last.elapsed() >= stall => {
                    return Err(SessionError::Stalled("no frame"));
                }
                Ok(0) => continue,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(anyhow::Error::from(e).context("waiting for a frame").into()),
            }
            if !primed {
                // The first frame may be one from before the format was set, and taking it alone
                // gives `next` a buffer to queue.
                CaptureStream::dequeue(stream).map_err(|e| capture_error(&e))?;
                primed = true;
                latest.count_lost(1, 0);
                continue;
            }
            let (bytes, meta) = CaptureStream::next(stream).map_err(|e| capture_error(&e))?;
            if let Some(before) = sequence {
                latest.count_lost(dropped_between(before, meta.sequence), 0);
            }
            sequence = Some(meta.sequence);
            let used = (meta.bytesused as usize).min(bytes.len());
            let frame = &bytes[..used];
            if meta.flags.contains(Flags::ERROR) || !self.is_whole(kind, frame) {
                latest.count_lost(0, 1);
                // A stream of nothing but faulty frames is as good as none.
                if last.elapsed() >= stall {
                    return Err(SessionError::Stalled("only faulty frames"));
                }
                continue;
            }
            last = Instant::now();
            self.accept(kind, frame, meta, last, detail)?;
        }
    }

    /// Whether a frame is complete.
    fn is_whole(&self, kind: FrameKind, frame: &[u8]) -> bool {
        match kind {
            FrameKind::Raw(layout) => RawFrame::new(layout, frame).is_ok(),
            // The first one is decoded here: a camera that delivers only damaged frames never
            // counts as streaming.
            FrameKind::Jpeg => {
                frame.starts_with(&[0xff, 0xd8]) && (self.streamed || decode(frame).is_ok())
            }
        }
    }

    /// Passes on a frame that arrived just `now`, unless frames like it end the session.
    fn accept(
        &mut self,
        kind: FrameKind,
        frame: &[u8],
        meta: &Metadata,
        now: Instant,
        detail: &str,
    ) -> Result<(), SessionError> {
        let captured = captured(meta, now, monotonic());
        if self.latest.undecoded() >= self.options.stall {
            return Err(SessionError::Stalled("no decodable frame"));
        }
        if let Some(time) = self.camera.freeze.check(frame, now) {
            return Err(SessionError::Frozen(time));
        }
        if !self.streamed {
            self.streamed = true;
            self.latest.report(SourceState::Streaming, detail);
        }
        // One copy, and the buffer is the driver's again: its memory may be uncached, where reading
        // pixels one by one is slow.
        let mut buffer = self.latest.buffer();
        buffer.extend_from_slice(frame);
        let frame = match kind {
            FrameKind::Raw(layout) => Frame::Raw(layout, buffer),
            FrameKind::Jpeg => Frame::Jpeg(buffer),
        };
        self.latest.put_captured(self.name.clone(), frame, captured);
        Ok(())
    }
}

fn open_stream(device: &Device) -> Result<Stream<'_>> {
    let mut stream = Stream::with_buffers(device, Type::VideoCapture, BUFFERS)
        .context("the driver provides no buffers")?;
    // `next` takes no longer than this once a frame is there; it is set only so that it can never
    // hang.
    stream.set_timeout(TICK);
    Ok(stream)
}

/// Frames that the driver dropped leave a gap in the sequence; a restart of the count is not one.
fn dropped_between(before: u32, sequence: u32) -> u64 {
    let gap = sequence.wrapping_sub(before).wrapping_sub(1);
    if gap < 1000 { gap.into() } else { 0 }
}

/// Turns a panic in a session into an error of it.
fn guarded(session: impl FnOnce() -> Result<(), SessionError>) -> Result<(), SessionError> {
    catch_unwind(AssertUnwindSafe(session)).unwrap_or_else(|panic| {
        Err(anyhow!("internal error of the camera library: {}", panic_message(&*panic)).into())
    })
}

/// Describes an error of the driver.
fn capture_error(error: &io::Error) -> anyhow::Error {
    match error.raw_os_error() {
        Some(19) => anyhow!("the camera was unplugged"),
        Some(5) => anyhow!("the driver failed (EIO)"),
        _ => anyhow!("cannot capture a frame: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_a_session_only() {
        let Err(SessionError::Failed(error)) = guarded(|| panic!("as v4l does")) else {
            panic!("it has failed")
        };
        assert!(error.to_string().contains("as v4l does"), "{error}");
    }

    #[test]
    fn gaps_of_the_sequence_are_dropped_frames() {
        assert_eq!(dropped_between(7, 8), 0);
        assert_eq!(dropped_between(7, 10), 2);
        assert_eq!(dropped_between(u32::MAX, 1), 1);
        assert_eq!(dropped_between(700, 0), 0, "the count restarted");
    }
}
