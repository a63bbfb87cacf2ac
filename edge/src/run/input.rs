//! Opens the source of a run.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::run::settings::{Input, SourceSettings};
use crate::source::files::Source;
use crate::source::{
    FrameSource, LatestFrame, Lost, Next, SourceState, SourceThread, camera, stream,
};

/// Opens the source without starting it ([`FrameSource::start`]).
///
/// # Errors
/// Files that cannot be opened. Cameras and stdin report their errors later.
pub fn open(settings: &SourceSettings) -> Result<FrameSource> {
    let every_frame = settings.every_frame;
    let thread = match settings.input.clone() {
        Input::Camera(options) => {
            let run = move |slot: &LatestFrame| camera::run(&options, slot);
            SourceThread::new("camera", every_frame, false, run)
        }
        Input::RawStdin(kind) => {
            let run = move |slot: &LatestFrame| stream::run(std::io::stdin(), kind, slot);
            SourceThread::new("pipe", every_frame, true, run)
        }
        // In a thread, since a signal must end the program while it waits for bytes. Each frame
        // counts, as in a file.
        Input::Stdin { color } => SourceThread::new("stdin", true, true, move |slot| {
            play(Source::open("-".as_ref(), false)?.colored(color), None, slot)
        }),
        Input::Files { path, color, looped, fps } => {
            let source = Source::open(&path, looped)?.colored(color);
            let Some(fps) = fps else {
                return Ok(FrameSource::Files(source, Lost::default()));
            };
            let interval = Duration::from_secs(1) / fps;
            let run = move |slot: &LatestFrame| play(source, Some(interval), slot);
            SourceThread::new("player", every_frame, false, run)
        }
    };
    Ok(FrameSource::Live(thread))
}

/// Plays files at a frame rate, as a camera would, or as fast as frames are taken.
fn play(mut source: Source, interval: Option<Duration>, slot: &LatestFrame) -> Result<()> {
    let mut due = Instant::now();
    let mut first = true;
    while !slot.stopped() {
        match source.next()? {
            Next::Frame(frame) => {
                if std::mem::take(&mut first) && interval.is_some() {
                    slot.report(SourceState::Streaming, "a file, played");
                }
                if let Some(interval) = interval {
                    slot.sleep(due.saturating_duration_since(Instant::now()));
                    due = (due + interval).max(Instant::now());
                }
                slot.put(frame.name, frame.frame);
            }
            Next::Unreadable(text) => slot.unreadable(text),
            _ => return Ok(()),
        }
    }
    Ok(())
}
