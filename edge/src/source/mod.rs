//! Frame sources, and the way of the newest frame to the classifier.
//!
//! Files are read one after the other. A live source (a camera, a pipe, files at a given rate) runs
//! in a [`SourceThread`] and puts frames into a [`LatestFrame`] that holds one: the newest replaces
//! the one before, which is counted as dropped. There is no queue that could grow, and buffers are
//! reused, so nothing is allocated for a frame after the first few.

pub mod camera;
pub mod files;
mod latest;
pub mod stream;
mod thread;
mod video;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

pub use latest::LatestFrame;
pub use thread::SourceThread;
use thread::panic_message;

use crate::frame::Frame;

/// The state of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// It is being opened.
    #[default]
    Opening,
    /// Frames arrive.
    Streaming,
    /// It is present, but delivers no frames.
    Stalled,
    /// It delivers the same image again and again; it is reopened.
    Frozen,
    /// It is gone or fails; it is retried.
    Lost,
    /// It has no more frames.
    Ended,
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The new state.
    pub state: SourceState,
    /// A description.
    pub detail: String,
}

/// A frame with its origin.
pub struct TimedFrame {
    /// The name of the source or file.
    pub name: Arc<str>,
    /// The frame.
    pub frame: Frame,
    /// When it was captured, or arrived if the source does not report that; `None` for files, which
    /// have no age.
    pub at: Option<Instant>,
}

/// A result of [`FrameSource::next`].
pub enum Next {
    /// A frame.
    Frame(TimedFrame),
    /// Data that is not a frame, with a message.
    Unreadable(String),
    /// A change of state.
    Report(Report),
    /// Nothing yet.
    Idle,
    /// The end of the source.
    End,
}

/// Counts of frames that were not classified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Replaced by newer ones, or dropped by the driver.
    pub dropped: u64,
    /// Flagged as faulty by the driver, too short, or unreadable and not reported one by one.
    pub corrupt: u64,
}

/// A source of frames.
pub enum FrameSource {
    /// Files, one after the other; and the frames that an earlier source lost.
    Files(files::Source, Lost),
    /// A thread.
    Live(SourceThread),
}

impl FrameSource {
    /// Starts a live source; files are open already.
    pub fn start(&mut self) {
        if let Self::Live(live) = self {
            live.start();
        }
    }

    /// Stops this source, then starts another in its place, which continues its counts. One after
    /// the other, since a camera can be opened only once.
    pub fn replace(&mut self, new: Self) {
        let before = match self {
            Self::Files(_, lost) => *lost,
            Self::Live(live) => live.stop(),
        };
        *self = new;
        match self {
            Self::Files(_, lost) => *lost = before,
            Self::Live(live) => live.latest.set_lost(before),
        }
        self.start();
    }

    /// Returns the next frame or report; waits at most `timeout`. A report comes before the frames
    /// that arrived ahead of it.
    ///
    /// # Errors
    /// Errors that end a source, other than its end.
    pub fn next(&mut self, timeout: Duration) -> Result<Next> {
        match self {
            Self::Files(source, _) => source.next(),
            Self::Live(live) => live.latest.take(timeout),
        }
    }

    /// Whether frames arrive at their own pace, so that old ones are dropped.
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Live(_))
    }

    /// Returns the memory of a frame for reuse.
    pub fn recycle(&self, frame: Frame) {
        if let Self::Live(live) = self {
            live.latest.recycle(frame);
        }
    }

    /// Reports to the source whether the frame that was just taken could be decoded.
    pub fn judge(&self, decoded: bool) {
        if let Self::Live(live) = self {
            live.latest.judge(decoded);
        }
    }

    /// Frames lost so far, including those of sources that were replaced.
    pub fn lost(&self) -> Lost {
        match self {
            Self::Files(_, lost) => *lost,
            Self::Live(live) => live.latest.lost(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use vgg_edge::Image;

    use super::latest::REPORTS;
    use super::*;

    fn frame(value: u8) -> Frame {
        Frame::Rgb(Image::new(1, 1, vec![value; 3]).unwrap())
    }

    fn value(next: Next) -> u8 {
        match next {
            Next::Frame(TimedFrame { frame: Frame::Rgb(image), .. }) => image.rgb()[0],
            _ => panic!("a frame was expected"),
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    fn start(
        every_frame: bool,
        run: impl FnOnce(&LatestFrame) -> Result<()> + Send + 'static,
    ) -> FrameSource {
        let mut source = FrameSource::Live(SourceThread::new("test", every_frame, false, run));
        source.start();
        source
    }

    #[test]
    fn the_newest_frame_is_taken_and_the_rest_is_counted() {
        let mut source = start(false, |latest| {
            (1..=5).for_each(|v| latest.put("t".into(), frame(v)));
            latest.report(SourceState::Streaming, "all there");
            while !latest.stopped() {
                latest.sleep(Duration::from_millis(5));
            }
            Ok(())
        });
        loop {
            // Frames may be taken before all are put in.
            match source.next(LONG).unwrap() {
                Next::Report(report) => break assert_eq!(report.detail, "all there"),
                Next::Frame(timed) => source.recycle(timed.frame),
                _ => panic!("nothing ends here"),
            }
        }
        let lost = source.lost().dropped;
        assert!(lost <= 4);
        assert!(matches!(source.next(Duration::ZERO).unwrap(), Next::Frame(_) | Next::Idle));
    }

    #[test]
    fn every_frame_waits_for_its_turn() {
        let mut source = start(true, |latest| {
            (1..=50).for_each(|v| latest.put("t".into(), frame(v)));
            Ok(())
        });
        let seen: Vec<u8> = (1..=50).map(|_| value(source.next(LONG).unwrap())).collect();
        assert_eq!(seen, (1..=50).collect::<Vec<u8>>());
        assert!(matches!(source.next(LONG).unwrap(), Next::End));
        assert_eq!(source.lost(), Lost::default());
    }

    #[test]
    fn a_stopped_source_ends_even_while_it_waits() {
        let source = start(true, |latest| {
            while !latest.stopped() {
                latest.put("t".into(), frame(1));
            }
            latest.sleep(LONG);
            Ok(())
        });
        drop(source);
    }

    /// The request to stop may come at any moment, also between the check of the flag and the wait.
    #[test]
    fn no_request_to_stop_is_missed() {
        for round in 0..4000 {
            let missed = Arc::new(AtomicBool::new(false));
            let theirs = missed.clone();
            let ready = Arc::new(AtomicBool::new(false));
            let started = ready.clone();
            let source = start(false, move |latest| {
                started.store(true, Ordering::Release);
                let until = Instant::now() + LONG;
                latest.sleep(LONG);
                theirs.store(Instant::now() >= until, Ordering::Release);
                Ok(())
            });
            while !ready.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            (0..round % 200).for_each(|_| std::hint::spin_loop());
            drop(source);
            assert!(!missed.load(Ordering::Acquire), "round {round}");
        }
    }

    #[test]
    fn a_source_that_panics_ends_with_an_error() {
        let mut source = start(false, |latest| {
            latest.put("t".into(), frame(1));
            panic!("nonsense of a {}", "driver");
        });
        assert_eq!(value(source.next(LONG).unwrap()), 1);
        let error = source.next(LONG).err().unwrap().to_string();
        assert_eq!(error, "test: panicked: nonsense of a driver");
    }

    #[test]
    fn a_source_in_place_of_another_starts_after_it_and_counts_on() {
        let camera = Arc::new(Mutex::new(()));
        let (first, second) = (camera.clone(), camera);
        let mut source = start(false, move |latest| {
            let _held = first.try_lock().unwrap();
            latest.count_lost(3, 2);
            latest.put("t".into(), frame(1));
            latest.report(SourceState::Streaming, "");
            latest.sleep(LONG);
            Ok(())
        });
        while !matches!(source.next(LONG).unwrap(), Next::Report(_)) {}
        let FrameSource::Live(live) = &source else { panic!("it is live") };
        let waits = live.latest.lost_with_waiting().dropped - source.lost().dropped;
        source.replace(FrameSource::Live(SourceThread::new("test", false, false, move |latest| {
            let _held = second.try_lock().unwrap();
            latest.count_lost(1, 0);
            Ok(())
        })));
        assert!(matches!(source.next(LONG).unwrap(), Next::End));
        assert_eq!(source.lost(), Lost { dropped: 4 + waits, corrupt: 2 });
    }

    #[test]
    fn a_flood_of_unreadable_data_is_counted() {
        let mut source = start(false, |latest| {
            (0..100).for_each(|number| latest.unreadable(number.to_string()));
            latest.report(SourceState::Streaming, "");
            latest.sleep(LONG);
            Ok(())
        });
        let mut reported = 0;
        loop {
            match source.next(LONG).unwrap() {
                Next::Unreadable(_) => reported += 1,
                Next::Report(_) => break,
                _ => panic!("there is nothing else"),
            }
        }
        while matches!(source.next(Duration::ZERO).unwrap(), Next::Unreadable(_)) {
            reported += 1;
        }
        assert!(reported >= REPORTS as u64);
        assert_eq!(reported + source.lost().corrupt, 100);
    }
}
