//! Where frames come from, and how the newest of them reaches the classifier.
//!
//! Files are read one after the other. What is live (a camera, a pipe, files at a given rate) runs in a thread of its own and puts frames
//! into a [`Slot`] that holds one: the newest replaces the one before, which is counted as dropped. There is no queue that could grow, and
//! buffers go round, so nothing is allocated for a frame after the first few.

pub mod camera;
pub mod files;
pub mod pipe;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::picture::Picture;

/// Buffers that wait for frames; one is filled while one waits and one is looked at.
const SPARE: usize = 3;

/// Reports that wait to be told; a flood of them keeps the newest.
const REPORTS: usize = 64;

/// What a source is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is being opened.
    #[default]
    Opening,
    /// Frames come.
    Streaming,
    /// It is there, but gives no frames.
    Stalled,
    /// It gives the same picture again and again; it is opened anew.
    Frozen,
    /// It is gone or fails; it is tried again.
    Lost,
    /// There is nothing more.
    Ended,
}

/// A change of state, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The new state.
    pub state: State,
    /// What is known of it.
    pub detail: String,
}

/// A frame with its origin.
pub struct Stamped {
    /// Where it came from.
    pub name: Arc<str>,
    /// The picture.
    pub picture: Picture,
    /// When it was taken over from the device; `None` for files, which have no age.
    pub at: Option<Instant>,
}

/// What [`Feed::next`] gives.
pub enum Next {
    /// A frame.
    Frame(Stamped),
    /// Something that is no frame, told in words.
    Unreadable(String),
    /// The state has changed.
    Report(Report),
    /// Nothing yet.
    Idle,
    /// Nothing more.
    End,
}

/// Counts of frames that were not classified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Replaced by newer ones, or dropped by the driver.
    pub dropped: u64,
    /// Flagged as faulty by the driver, or too short.
    pub corrupt: u64,
}

#[derive(Default)]
struct Inner {
    newest: Option<Stamped>,
    spare: Vec<Vec<u8>>,
    reports: VecDeque<Report>,
    unreadable: VecDeque<String>,
    lost: Lost,
    closed: Option<Result<()>>,
}

/// The place for one frame between a live source and the classifier.
#[derive(Default)]
pub struct Slot {
    inner: Mutex<Inner>,
    changed: Condvar,
    stop: AtomicBool,
    /// Whether each frame waits until the one before has been taken.
    every_frame: bool,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A thread that panicked has left counts and frames as they are, which is good enough.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the source shall end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// An empty buffer.
    pub fn buffer(&self) -> Vec<u8> {
        let mut buffer = self.lock().spare.pop().unwrap_or_default();
        buffer.clear();
        buffer
    }

    /// Puts a frame in, in place of one that was not taken.
    pub fn put(&self, name: Arc<str>, picture: Picture) {
        let stamped = Stamped { name, picture, at: Some(Instant::now()) };
        let mut inner = self.lock();
        while self.every_frame && inner.newest.is_some() && !self.stopped() {
            inner = self.wait(inner, Duration::from_millis(200));
        }
        if let Some(old) = inner.newest.replace(stamped) {
            inner.lost.dropped += 1;
            inner.recycle(old.picture);
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Counts frames that never came here.
    pub fn lose(&self, dropped: u64, corrupt: u64) {
        let mut inner = self.lock();
        inner.lost.dropped += dropped;
        inner.lost.corrupt += corrupt;
    }

    /// Tells a change of state.
    pub fn report(&self, state: State, detail: impl Into<String>) {
        let mut inner = self.lock();
        if inner.reports.len() == REPORTS {
            inner.reports.pop_front();
        }
        inner.reports.push_back(Report { state, detail: detail.into() });
        drop(inner);
        self.changed.notify_all();
    }

    /// Tells of something that is no frame.
    pub fn unreadable(&self, words: String) {
        let mut inner = self.lock();
        if inner.unreadable.len() < REPORTS {
            inner.unreadable.push_back(words);
        }
    }

    /// Waits, but not after [`Slot::stopped`].
    pub fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut inner = self.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stopped() {
                return;
            }
            inner = self.wait(inner, left);
        }
    }

    fn wait<'a>(&'a self, inner: MutexGuard<'a, Inner>, time: Duration) -> MutexGuard<'a, Inner> {
        self.changed.wait_timeout(inner, time).unwrap_or_else(PoisonError::into_inner).0
    }

    fn close(&self, outcome: Result<()>) {
        self.lock().closed = Some(outcome);
        self.changed.notify_all();
    }
}

impl Inner {
    fn recycle(&mut self, picture: Picture) {
        if let Some(buffer) = picture.into_buffer()
            && self.spare.len() < SPARE
        {
            self.spare.push(buffer);
        }
    }
}

/// A source at work.
pub enum Feed {
    /// Files, one after the other.
    Files(files::Source),
    /// A thread.
    Live(Live),
}

/// A source in a thread of its own; dropping it stops the thread.
pub struct Live {
    slot: Arc<Slot>,
    thread: Option<JoinHandle<()>>,
    /// Whether the thread may sit in a read that nothing interrupts.
    may_block: bool,
}

impl Live {
    /// Starts `run`, which puts frames into the slot until it is stopped or has nothing more.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start(
        name: &str,
        every_frame: bool,
        may_block: bool,
        run: impl FnOnce(&Slot) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let slot = Arc::new(Slot { every_frame, ..Slot::default() });
        let theirs = slot.clone();
        let body = move || {
            let outcome = run(&theirs);
            theirs.close(outcome);
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body)?;
        Ok(Self { slot, thread: Some(thread), may_block })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.slot.stop.store(true, Ordering::Relaxed);
        self.slot.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && !self.may_block
        {
            // It has told its own panic on stderr.
            let _ = thread.join();
        }
    }
}

impl Feed {
    /// The next frame or report; waits at most `patience`. Frames that come before a report are told after it.
    ///
    /// # Errors
    /// What ends a source, other than its end.
    pub fn next(&mut self, patience: Duration) -> Result<Next> {
        let slot = match self {
            Self::Files(source) => return source.next(),
            Self::Live(live) => &live.slot,
        };
        let until = Instant::now() + patience;
        let mut inner = slot.lock();
        loop {
            if let Some(report) = inner.reports.pop_front() {
                return Ok(Next::Report(report));
            }
            if let Some(words) = inner.unreadable.pop_front() {
                return Ok(Next::Unreadable(words));
            }
            if let Some(stamped) = inner.newest.take() {
                drop(inner);
                slot.changed.notify_all();
                return Ok(Next::Frame(stamped));
            }
            if let Some(outcome) = inner.closed.take() {
                return outcome.map(|()| Next::End);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Next::Idle);
            }
            inner = slot.wait(inner, left);
        }
    }

    /// Whether frames come at their own pace, so that old ones are dropped.
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Live(_))
    }

    /// Gives the memory of a picture back.
    pub fn recycle(&self, picture: Picture) {
        if let Self::Live(live) = self {
            live.slot.lock().recycle(picture);
        }
    }

    /// Frames that were lost so far.
    pub fn lost(&self) -> Lost {
        match self {
            Self::Files(_) => Lost::default(),
            Self::Live(live) => live.slot.lock().lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::Frame;

    fn frame(value: u8) -> Picture {
        Picture::Rgb(Frame::new(1, 1, vec![value; 3]).unwrap())
    }

    fn value(next: Next) -> u8 {
        match next {
            Next::Frame(Stamped { picture: Picture::Rgb(frame), .. }) => frame.rgb()[0],
            _ => panic!("a frame was expected"),
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn the_newest_is_taken_and_the_rest_is_counted() {
        let live = Live::start("test", false, false, |slot| {
            (1..=5).for_each(|v| slot.put("t".into(), frame(v)));
            slot.report(State::Streaming, "all there");
            while !slot.stopped() {
                slot.sleep(Duration::from_millis(5));
            }
            Ok(())
        })
        .unwrap();
        let mut feed = Feed::Live(live);
        loop {
            // Frames may be taken before all are put in.
            match feed.next(LONG).unwrap() {
                Next::Report(report) => break assert_eq!(report.detail, "all there"),
                Next::Frame(stamped) => feed.recycle(stamped.picture),
                _ => panic!("nothing ends here"),
            }
        }
        let lost = feed.lost().dropped;
        assert!(lost <= 4);
        assert!(matches!(feed.next(Duration::ZERO).unwrap(), Next::Frame(_) | Next::Idle));
    }

    #[test]
    fn every_frame_waits_for_its_turn() {
        let live = Live::start("test", true, false, |slot| {
            (1..=50).for_each(|v| slot.put("t".into(), frame(v)));
            Ok(())
        })
        .unwrap();
        let mut feed = Feed::Live(live);
        let seen: Vec<u8> = (1..=50).map(|_| value(feed.next(LONG).unwrap())).collect();
        assert_eq!(seen, (1..=50).collect::<Vec<u8>>());
        assert!(matches!(feed.next(LONG).unwrap(), Next::End));
        assert_eq!(feed.lost(), Lost::default());
    }

    #[test]
    fn a_stopped_source_ends_even_while_it_waits() {
        let live = Live::start("test", true, false, |slot| {
            while !slot.stopped() {
                slot.put("t".into(), frame(1));
            }
            slot.sleep(LONG);
            Ok(())
        })
        .unwrap();
        drop(live);
    }
}
