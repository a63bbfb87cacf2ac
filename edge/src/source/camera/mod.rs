//! V4L2 cameras: opened, negotiated with, streamed from, lost and found again.
//!
//! A session lasts from opening the node to the first error; then everything is closed and, after a
//! pause that grows, the camera is searched again, also under another node. Some properties of the
//! `v4l` crate shape the code:
//!
//! - Its wait is infinite unless it has a timeout, and after a timeout its `next` queues a buffer
//!   twice and fails from then on. So the wait is a separate `poll`, and `next` is called only when
//!   a frame is there.
//! - `next` returns the whole mapping: the frame is its first `bytesused` bytes.
//! - Dropping a stream panics if the driver fails to stop it, and so does getting one if the driver
//!   provides too few buffers and does not take them back. Panics are caught; the session is over
//!   anyway.
//! - `query_caps` panics on names that are not UTF-8, so [`Identity::of`] makes the request itself.

mod freeze;
mod identity;
mod negotiate;
mod session;
mod timestamp;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use vgg_edge::pixel::Color;

pub use identity::{Identity, nodes};
pub use negotiate::{is_jpeg_name, is_supported, parse_format, text};

use super::{LatestFrame, SourceState};
use freeze::Freeze;
use session::{Camera, Session, SessionError};

/// How long a wait lasts before the next check whether to stop.
const TICK: Duration = Duration::from_millis(200);

/// First pause between two attempts; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(4);
/// How long only the same camera is accepted; after that another one at its node is as good: a
/// camera that broke, or was put into another port, does not come back.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(600);

/// The camera to open, and the settings requested of it.
#[derive(Clone, Debug, PartialEq)]
pub struct CameraOptions {
    /// The node, such as `/dev/video0` or a link in `/dev/v4l/by-id`.
    pub device: PathBuf,
    /// The fourcc; `None` for the first that is supported.
    pub format: Option<[u8; 4]>,
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// Frames per second; `None` leaves the driver's choice.
    pub fps: Option<u32>,
    /// The camera is reopened after this time without a frame.
    pub stall: Duration,
    /// It is reopened after this time with the same image, byte for byte; zero for never.
    pub frozen: Duration,
    /// The color encoding of samples, in place of the one that the driver reports.
    pub color: Option<Color>,
}

/// Passes on the frames of a camera until it is stopped.
///
/// # Errors
/// None: every error is reported and followed by another attempt.
pub fn run(options: &CameraOptions, latest: &LatestFrame) -> Result<()> {
    let name: Arc<str> = options.device.to_string_lossy().into();
    let mut camera = Camera { identity: None, freeze: Freeze::new(options.frozen) };
    let mut pause = FIRST_PAUSE;
    let mut reported = None;
    let mut last_seen = Instant::now();
    latest.report(SourceState::Opening, &*name);
    loop {
        if camera.identity.is_some() && last_seen.elapsed() >= IDENTITY_TIMEOUT {
            camera.identity = None;
            let minutes = IDENTITY_TIMEOUT.as_secs() / 60;
            latest.report(
                SourceState::Lost,
                &*format!(
                    "lost for {minutes} minutes; any camera at {name} is accepted from now on"
                ),
            );
            reported = None;
        }
        latest.reset_undecoded();
        let mut session =
            Session { options, latest, name: &name, camera: &mut camera, streamed: false };
        let ended = session.run();
        if session.streamed {
            (pause, reported, last_seen) = (FIRST_PAUSE, None, Instant::now());
        }
        let (state, detail) = match ended {
            _ if latest.stopped() => return Ok(()),
            Ok(()) => return Ok(()),
            Err(SessionError::Stalled(what)) => {
                (SourceState::Stalled, format!("{what} for {} s", options.stall.as_secs_f32()))
            }
            Err(SessionError::Frozen(time)) => (
                SourceState::Frozen,
                format!("the same image, byte for byte, for {} s", time.as_secs()),
            ),
            Err(SessionError::Failed(e)) => (SourceState::Lost, format!("{e:#}")),
        };
        // A camera that stays away is reported once, not every four seconds.
        if reported.as_ref() != Some(&(state, detail.clone())) {
            latest.report(state, &*detail);
            reported = Some((state, detail));
        }
        latest.sleep(pause);
        pause = (2 * pause).min(MAX_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{FrameSource, Next, SourceThread};

    #[test]
    fn a_missing_camera_is_reported_once_and_retried() {
        let options = CameraOptions {
            device: "/dev/no-such-camera".into(),
            format: None,
            size: (640, 480),
            fps: None,
            stall: Duration::from_secs(5),
            frozen: Duration::ZERO,
            color: None,
        };
        let mut source =
            FrameSource::Live(SourceThread::new("camera", false, false, move |latest| {
                run(&options, latest)
            }));
        source.start();
        let mut reports = Vec::new();
        // Long enough for three attempts.
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            if let Next::Report(report) = source.next(TICK).unwrap() {
                reports.push(report);
            }
        }
        assert_eq!(reports.len(), 2, "{reports:?}");
        assert_eq!((reports[0].state, reports[1].state), (SourceState::Opening, SourceState::Lost));
        assert!(reports[1].detail.contains("/dev/no-such-camera: cannot open"), "{reports:?}");
    }
}
