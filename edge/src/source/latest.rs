//! The exchange between a live source and the classifier.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use vgg_edge_cli::terminal::CancelToken;

use super::{Lost, Next, Report, SourceState, TimedFrame};
use crate::frame::Frame;

/// Buffers that are kept for reuse; one is filled while one waits and one is classified.
const SPARE: usize = 3;

/// Most reports that wait, of which a flood keeps the newest; and most messages about data that is
/// not a frame, of which it keeps the oldest.
pub(super) const REPORTS: usize = 64;

#[derive(Default)]
struct Inner {
    newest: Option<TimedFrame>,
    spare: Vec<Vec<u8>>,
    reports: VecDeque<Report>,
    unreadable: VecDeque<String>,
    lost: Lost,
    /// The first and the last of the consecutive frames that could not be decoded.
    undecoded: Option<(Instant, Instant)>,
    closed: Option<Result<()>>,
}

/// Holds the newest frame of a live source until the classifier takes it.
#[derive(Default)]
pub struct LatestFrame {
    inner: Mutex<Inner>,
    changed: Condvar,
    stop: CancelToken,
    /// Whether each frame waits until the one before has been taken.
    every_frame: bool,
}

impl LatestFrame {
    pub(super) fn new(every_frame: bool) -> Self {
        Self { every_frame, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A thread that panicked left counts and frames as they are, which is good enough.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the source shall end.
    pub fn stopped(&self) -> bool {
        self.stop.is_canceled()
    }

    /// Returns an empty buffer.
    pub fn buffer(&self) -> Vec<u8> {
        let mut buffer = self.lock().spare.pop().unwrap_or_default();
        buffer.clear();
        buffer
    }

    /// Stores a frame that arrives now, in place of one that was not taken.
    pub fn put(&self, name: Arc<str>, frame: Frame) {
        self.put_captured(name, frame, Instant::now());
    }

    /// As [`LatestFrame::put`], for a frame that was captured `at` a time.
    pub fn put_captured(&self, name: Arc<str>, frame: Frame, at: Instant) {
        let timed = TimedFrame { name, frame, at: Some(at) };
        let mut inner = self.lock();
        while self.every_frame && inner.newest.is_some() && !self.stopped() {
            inner = self.wait(inner, Duration::from_millis(200));
        }
        if let Some(old) = inner.newest.replace(timed) {
            inner.lost.dropped += 1;
            inner.recycle(old.frame);
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Counts frames that never arrived here.
    pub fn count_lost(&self, dropped: u64, corrupt: u64) {
        let mut inner = self.lock();
        inner.lost.dropped += dropped;
        inner.lost.corrupt += corrupt;
    }

    /// Reports a change of state.
    pub fn report(&self, state: SourceState, detail: impl Into<String>) {
        let mut inner = self.lock();
        if inner.reports.len() == REPORTS {
            inner.reports.pop_front();
        }
        inner.reports.push_back(Report { state, detail: detail.into() });
        drop(inner);
        self.changed.notify_all();
    }

    /// Reports data that is not a frame, or counts it if too many messages wait.
    pub fn unreadable(&self, message: String) {
        let mut inner = self.lock();
        if inner.unreadable.len() < REPORTS {
            inner.unreadable.push_back(message);
        } else {
            inner.lost.corrupt += 1;
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// The time from the first to the last of the consecutive frames, up to now, that could not be
    /// decoded.
    pub fn undecoded(&self) -> Duration {
        self.lock().undecoded.map_or(Duration::ZERO, |(first, last)| last.duration_since(first))
    }

    /// Forgets frames that could not be decoded.
    pub fn reset_undecoded(&self) {
        self.lock().undecoded = None;
    }

    /// Waits, but no longer once [`LatestFrame::stopped`].
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

    /// Closes the exchange with the outcome of the source; frames and reports that wait are still
    /// taken.
    pub(super) fn close(&self, outcome: Result<()>) {
        self.lock().closed = Some(outcome);
        self.changed.notify_all();
    }

    /// Stops the source, and wakes it if it waits here.
    pub(super) fn stop(&self) {
        self.stop.cancel();
        // A thread that has seen the flag unset and does not wait yet holds the lock; only after
        // that does it receive the notification.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Takes the next report or frame; waits at most `timeout`.
    pub(super) fn take(&self, timeout: Duration) -> Result<Next> {
        let until = Instant::now() + timeout;
        let mut inner = self.lock();
        loop {
            if let Some(report) = inner.reports.pop_front() {
                return Ok(Next::Report(report));
            }
            if let Some(message) = inner.unreadable.pop_front() {
                return Ok(Next::Unreadable(message));
            }
            if let Some(timed) = inner.newest.take() {
                drop(inner);
                self.changed.notify_all();
                return Ok(Next::Frame(timed));
            }
            if let Some(outcome) = inner.closed.take() {
                return outcome.map(|()| Next::End);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Next::Idle);
            }
            inner = self.wait(inner, left);
        }
    }

    pub(super) fn recycle(&self, frame: Frame) {
        self.lock().recycle(frame);
    }

    /// Records whether the frame that was taken could be decoded.
    pub(super) fn judge(&self, decoded: bool) {
        let (mut inner, now) = (self.lock(), Instant::now());
        inner.undecoded =
            (!decoded).then(|| (inner.undecoded.map_or(now, |(first, _)| first), now));
    }

    /// The frames lost so far.
    pub(super) fn lost(&self) -> Lost {
        self.lock().lost
    }

    /// The frames lost so far, with those that wait and will not be taken any more.
    pub(super) fn lost_with_waiting(&self) -> Lost {
        let inner = self.lock();
        Lost {
            dropped: inner.lost.dropped + u64::from(inner.newest.is_some()),
            corrupt: inner.lost.corrupt + inner.unreadable.len() as u64,
        }
    }

    /// Continues the counts of an earlier source.
    pub(super) fn set_lost(&self, lost: Lost) {
        self.lock().lost = lost;
    }
}

impl Inner {
    fn recycle(&mut self, frame: Frame) {
        if let Some(buffer) = frame.into_buffer()
            && self.spare.len() < SPARE
        {
            self.spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undecodable_frames_are_timed_from_the_first_to_the_last() {
        let latest = LatestFrame::default();
        latest.judge(false);
        assert_eq!(latest.undecoded(), Duration::ZERO, "one proves nothing");
        std::thread::sleep(Duration::from_millis(2));
        latest.judge(false);
        assert!(latest.undecoded() >= Duration::from_millis(2));
        latest.judge(true);
        assert_eq!(latest.undecoded(), Duration::ZERO);
    }
}
