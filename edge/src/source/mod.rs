//! Where frames come from, and how the newest of them reaches the classifier.
//!
//! ModelLoader are read one after the other. What is live (a camera, a pipe, files at a given rate)
//! runs in a thread of its own and puts frames into a [`LatestFrame`] that holds one: the newest
//! replaces the one before, which is counted as dropped. There is no queue that could grow, and
//! buffers go round, so nothing is allocated for a frame after the first few.

pub mod camera;
pub mod files;
pub mod pipe;

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::picture::Picture;

/// Buffers that wait for frames; one is filled while one waits and one is looked at.
const SPARE: usize = 3;

/// Reports that wait to be told, of which a flood keeps the newest; and words of what is no frame,
/// of which it keeps the oldest.
const REPORTS: usize = 64;

/// What a source is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
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
    pub state: SourceState,
    /// What is known of it.
    pub detail: String,
}

/// A frame with its origin.
pub struct TimedFrame {
    /// Where it came from.
    pub name: Arc<str>,
    /// The picture.
    pub picture: Picture,
    /// When it was captured, or came if the source does not tell; `None` for files, which have no
    /// age.
    pub at: Option<Instant>,
}

/// What [`FrameSource::next`] gives.
pub enum Next {
    /// A frame.
    Frame(TimedFrame),
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
    /// Flagged as faulty by the driver, too short, or unreadable and not told of one by one.
    pub corrupt: u64,
}

#[derive(Default)]
struct Inner {
    newest: Option<TimedFrame>,
    spare: Vec<Vec<u8>>,
    reports: VecDeque<Report>,
    unreadable: VecDeque<String>,
    lost: Lost,
    /// The first and the last of the frames in a row that could not be decoded.
    undecoded: Option<(Instant, Instant)>,
    closed: Option<Result<()>>,
}

/// The place for one frame between a live source and the classifier.
#[derive(Default)]
pub struct LatestFrame {
    inner: Mutex<Inner>,
    changed: Condvar,
    stop: AtomicBool,
    /// Whether each frame waits until the one before has been taken.
    every_frame: bool,
}

impl LatestFrame {
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

    /// Puts a frame that comes just now in, in place of one that was not taken.
    pub fn put(&self, name: Arc<str>, picture: Picture) {
        self.put_captured(name, picture, Instant::now());
    }

    /// As [`LatestFrame::put`], for a frame that was captured `at` a time.
    pub fn put_captured(&self, name: Arc<str>, picture: Picture, at: Instant) {
        let stamped = TimedFrame { name, picture, at: Some(at) };
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
    pub fn report(&self, state: SourceState, detail: impl Into<String>) {
        let mut inner = self.lock();
        if inner.reports.len() == REPORTS {
            inner.reports.pop_front();
        }
        inner.reports.push_back(Report { state, detail: detail.into() });
        drop(inner);
        self.changed.notify_all();
    }

    /// Tells of something that is no frame, or counts it if too much waits to be told.
    pub fn unreadable(&self, words: String) {
        let mut inner = self.lock();
        if inner.unreadable.len() < REPORTS {
            inner.unreadable.push_back(words);
        } else {
            inner.lost.corrupt += 1;
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// For how long no frame that was looked at could be decoded, from the first to the last of
    /// them.
    pub fn undecoded(&self) -> Duration {
        self.lock().undecoded.map_or(Duration::ZERO, |(first, last)| last.duration_since(first))
    }

    /// Forgets what was found of earlier frames.
    pub fn forgive(&self) {
        self.lock().undecoded = None;
    }

    /// Waits, but not after [`LatestFrame::stopped`].
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
pub enum FrameSource {
    /// ModelLoader, one after the other; and what a source before them has lost.
    ModelLoader(files::Source, Lost),
    /// A thread.
    Live(SourceThread),
}

/// A source in a thread of its own; dropping it stops the thread.
pub struct SourceThread {
    slot: Arc<LatestFrame>,
    name: &'static str,
    /// What the thread does, until it is started.
    run: Option<Run>,
    thread: Option<JoinHandle<()>>,
    /// Whether the thread may sit in a read that nothing interrupts.
    may_block: bool,
}

type Run = Box<dyn FnOnce(&LatestFrame) -> Result<()> + Send>;

impl SourceThread {
    /// A source that puts frames into the slot until it is stopped or has nothing more, once it is
    /// started.
    pub fn new(
        name: &'static str,
        every_frame: bool,
        may_block: bool,
        run: impl FnOnce(&LatestFrame) -> Result<()> + Send + 'static,
    ) -> Self {
        let slot = Arc::new(LatestFrame { every_frame, ..LatestFrame::default() });
        Self { slot, name, run: Some(Box::new(run)), thread: None, may_block }
    }

    /// Starts the thread. Whatever ends it, be it a panic, closes the slot: nobody waits for a
    /// thread that is gone.
    fn start(&mut self) {
        let Some(run) = self.run.take() else { return };
        let (slot, name) = (self.slot.clone(), self.name);
        let body = move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| run(&slot)));
            slot.close(outcome.unwrap_or_else(|panic| {
                Err(anyhow!("{name}: panicked: {}", panic_words(&*panic)))
            }));
        };
        match std::thread::Builder::new().name(name.into()).spawn(body) {
            Ok(thread) => self.thread = Some(thread),
            Err(e) => self.slot.close(Err(
                anyhow::Error::from(e).context(format!("{name}: cannot start a thread"))
            )),
        }
    }

    /// Ends the thread and gives what was lost, with what waited and is not looked at any more.
    fn stop(&mut self) -> Lost {
        self.slot.stop.store(true, Ordering::Relaxed);
        // A thread that has seen the flag unset and does not wait yet holds the lock: only after
        // that it hears.
        drop(self.slot.lock());
        self.slot.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && !self.may_block
        {
            // Panics are caught within.
            let _ = thread.join();
        }
        let inner = self.slot.lock();
        Lost {
            dropped: inner.lost.dropped + u64::from(inner.newest.is_some()),
            corrupt: inner.lost.corrupt + inner.unreadable.len() as u64,
        }
    }
}

impl Drop for SourceThread {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What was said at a panic.
pub fn panic_words(panic: &(dyn Any + Send)) -> &str {
    let words = panic.downcast_ref::<&str>().copied();
    words.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}

impl FrameSource {
    /// Starts what is live; files are open already.
    pub fn start(&mut self) {
        if let Self::Live(live) = self {
            live.start();
        }
    }

    /// Ends this source, then starts another in its place, which counts on from here. One after the
    /// other, since a camera is for one only.
    pub fn replace(&mut self, new: Self) {
        let before = match self {
            Self::ModelLoader(_, lost) => *lost,
            Self::Live(live) => live.stop(),
        };
        *self = new;
        match self {
            Self::ModelLoader(_, lost) => *lost = before,
            Self::Live(live) => live.slot.lock().lost = before,
        }
        self.start();
    }

    /// The next frame or report; waits at most `patience`. Frames that come before a report are
    /// told after it.
    ///
    /// # Errors
    /// What ends a source, other than its end.
    pub fn next(&mut self, patience: Duration) -> Result<Next> {
        let slot = match self {
            Self::ModelLoader(source, _) => return source.next(),
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

    /// Tells the source whether the frame that was just looked at could be decoded.
    pub fn judge(&self, decoded: bool) {
        if let Self::Live(live) = self {
            let (mut inner, now) = (live.slot.lock(), Instant::now());
            inner.undecoded =
                (!decoded).then(|| (inner.undecoded.map_or(now, |(first, _)| first), now));
        }
    }

    /// Frames that were lost so far, by sources that were replaced too.
    pub fn lost(&self) -> Lost {
        match self {
            Self::ModelLoader(_, lost) => *lost,
            Self::Live(live) => live.slot.lock().lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vgg_edge::Image;

    fn frame(value: u8) -> Picture {
        Picture::Rgb(Image::new(1, 1, vec![value; 3]).unwrap())
    }

    fn value(next: Next) -> u8 {
        match next {
            Next::Frame(TimedFrame { picture: Picture::Rgb(frame), .. }) => frame.rgb()[0],
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
    fn the_newest_is_taken_and_the_rest_is_counted() {
        let mut source = start(false, |slot| {
            (1..=5).for_each(|v| slot.put("t".into(), frame(v)));
            slot.report(SourceState::Streaming, "all there");
            while !slot.stopped() {
                slot.sleep(Duration::from_millis(5));
            }
            Ok(())
        });
        loop {
            // Frames may be taken before all are put in.
            match source.next(LONG).unwrap() {
                Next::Report(report) => break assert_eq!(report.detail, "all there"),
                Next::Frame(stamped) => source.recycle(stamped.picture),
                _ => panic!("nothing ends here"),
            }
        }
        let lost = source.lost().dropped;
        assert!(lost <= 4);
        assert!(matches!(source.next(Duration::ZERO).unwrap(), Next::Frame(_) | Next::Idle));
    }

    #[test]
    fn every_frame_waits_for_its_turn() {
        let mut source = start(true, |slot| {
            (1..=50).for_each(|v| slot.put("t".into(), frame(v)));
            Ok(())
        });
        let seen: Vec<u8> = (1..=50).map(|_| value(source.next(LONG).unwrap())).collect();
        assert_eq!(seen, (1..=50).collect::<Vec<u8>>());
        assert!(matches!(source.next(LONG).unwrap(), Next::End));
        assert_eq!(source.lost(), Lost::default());
    }

    #[test]
    fn a_stopped_source_ends_even_while_it_waits() {
        let source = start(true, |slot| {
            while !slot.stopped() {
                slot.put("t".into(), frame(1));
            }
            slot.sleep(LONG);
            Ok(())
        });
        drop(source);
    }

    /// The order to stop may come at any moment, also between the look at the flag and the wait.
    #[test]
    fn no_order_to_stop_is_missed() {
        for round in 0..4000 {
            let missed = Arc::new(AtomicBool::new(false));
            let theirs = missed.clone();
            let ready = Arc::new(AtomicBool::new(false));
            let started = ready.clone();
            let source = start(false, move |slot| {
                started.store(true, Ordering::Release);
                let until = Instant::now() + LONG;
                slot.sleep(LONG);
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
        let mut source = start(false, |slot| {
            slot.put("t".into(), frame(1));
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
        let mut source = start(false, move |slot| {
            let _held = first.try_lock().unwrap();
            slot.lose(3, 2);
            slot.put("t".into(), frame(1));
            slot.report(SourceState::Streaming, "");
            slot.sleep(LONG);
            Ok(())
        });
        while !matches!(source.next(LONG).unwrap(), Next::Report(_)) {}
        let waits = u64::from(
            matches!(&source, FrameSource::Live(live) if live.slot.lock().newest.is_some()),
        );
        source.replace(FrameSource::Live(SourceThread::new("test", false, false, move |slot| {
            let _held = second.try_lock().unwrap();
            slot.lose(1, 0);
            Ok(())
        })));
        assert!(matches!(source.next(LONG).unwrap(), Next::End));
        assert_eq!(source.lost(), Lost { dropped: 4 + waits, corrupt: 2 });
    }

    #[test]
    fn a_flood_of_what_is_no_frame_is_counted() {
        let mut source = start(false, |slot| {
            (0..100).for_each(|number| slot.unreadable(number.to_string()));
            slot.report(SourceState::Streaming, "");
            slot.sleep(LONG);
            Ok(())
        });
        let mut told = 0;
        loop {
            match source.next(LONG).unwrap() {
                Next::Unreadable(_) => told += 1,
                Next::Report(_) => break,
                _ => panic!("there is nothing else"),
            }
        }
        while matches!(source.next(Duration::ZERO).unwrap(), Next::Unreadable(_)) {
            told += 1;
        }
        assert!(told >= REPORTS as u64);
        assert_eq!(told + source.lost().corrupt, 100);
    }

    #[test]
    fn frames_that_cannot_be_decoded_are_told_to_the_source() {
        let source = FrameSource::Live(SourceThread::new("test", false, false, |_| Ok(())));
        let FrameSource::Live(live) = &source else { panic!() };
        let undecoded = || live.slot.undecoded();
        source.judge(false);
        assert_eq!(undecoded(), Duration::ZERO, "one proves nothing");
        std::thread::sleep(Duration::from_millis(2));
        source.judge(false);
        assert!(undecoded() >= Duration::from_millis(2));
        source.judge(true);
        assert_eq!(undecoded(), Duration::ZERO);
    }
}
