//! The state of a run, shared between the classifier, which writes it, and the web server, which
//! reads it for the page, the metrics and the health check.
//!
//! The lock is never held for long, so that the classifier does not wait for a reader.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;
use vgg_edge_cli::record::time;

use crate::frame::Frame;
use crate::health::health;
use crate::metrics::{self, LatencyHistogram, Readings};
use crate::model::manager::Origin;
use crate::sandbox::Sandbox;
use crate::source::{Lost, SourceState};
use crate::system;

/// Log entries that are kept for a new page.
const LOG: usize = 50;

/// Time after a request for an image during which new ones are provided.
const WANTED: Duration = Duration::from_secs(5);

/// Least time between two readings of memory and temperature.
const SAMPLE: Duration = Duration::from_secs(1);

/// Facts that do not change while a model runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RunInfo {
    /// Identifier of the run.
    pub run: String,
    /// Version of the program.
    pub edge: &'static str,
    /// Kernel of the convolutions.
    pub kernel: &'static str,
    /// Threads of the convolutions.
    pub threads: u16,
    /// Input size in pixels.
    pub size: u32,
    /// Labels in the order of the scores.
    pub labels: Vec<String>,
    /// Fingerprint of the base.
    pub base: String,
    /// Fingerprint of the head file.
    pub head: String,
    /// Version of the head, if its signature was verified.
    pub head_version: Option<u64>,
    /// Identifier of the key that signed the head, if its signature was verified.
    pub head_key: Option<String>,
    /// Date of the training.
    pub head_date: String,
    /// Accuracy on the validation set, 0 to 1.
    pub val_accuracy: Option<f64>,
}

/// State of the source.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SourceStatus {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: SourceState,
    /// The format of the frames, or the reason for the state.
    pub detail: String,
    /// Number of times it was lost, stalled or frozen.
    pub lost: u64,
}

/// The running model, compared with the one in place.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ModelStatus {
    /// Why that model runs.
    pub origin: Origin,
    /// Why the model in place does not run.
    pub note: Option<String>,
    /// Number of models taken while running.
    pub swaps: u64,
    /// Number of models refused.
    pub refused: u64,
}

/// Facts that change with each frame.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Snapshot {
    /// Number of changes so far.
    pub seq: u64,
    /// Time of the last change, RFC 3339.
    pub time: String,
    /// The reported label.
    pub label: Option<String>,
    /// Its score.
    pub score: Option<f32>,
    /// The threshold that applies.
    pub threshold: f32,
    /// All scores, as an object from label to score.
    pub scores: Option<serde_json::Map<String, serde_json::Value>>,
    /// Whether nothing moves, so that the result is that of an earlier frame.
    pub still: bool,
    /// Frames classified per second, averaged over about ten.
    pub fps: f64,
    /// Time from the decoded frame to the result.
    pub latency_ms: Option<f64>,
    /// Time from the capture (the arrival, if the source does not report the capture) to the
    /// result.
    pub age_ms: Option<f64>,
    /// Frames received.
    pub frames: u64,
    /// Frames classified.
    pub classified: u64,
    /// Frames replaced by newer ones, or dropped by the driver.
    pub dropped: u64,
    /// Frames that could not be read.
    pub corrupt: u64,
    /// Frames skipped because nothing moved.
    pub skipped: u64,
    /// Frames collected.
    pub collected: u64,
    /// Frames that should have been collected and could not be.
    pub collect_missed: u64,
    /// Whether the directory of collected frames is full.
    pub collect_full: bool,
    /// The source.
    pub source: SourceStatus,
    /// The model.
    pub model: ModelStatus,
    /// Processor temperature in degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Resident memory.
    pub memory_bytes: Option<u64>,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Number of the newest image, if there is one.
    pub picture: Option<u64>,
}

/// A line of the timeline on the page.
#[derive(Clone, Debug, Serialize)]
pub struct LogEntry {
    /// Number of the entry, from 1.
    pub id: u64,
    /// Time, RFC 3339.
    pub time: String,
    /// `label`, `source`, `model`, `reload`, `collect` or `page`.
    pub kind: &'static str,
    /// The message.
    pub text: String,
    /// The score of a new label.
    pub score: Option<f32>,
}

/// An image for the page.
#[derive(Clone)]
pub struct Shown {
    /// Number of the image, from 1.
    pub number: u64,
    /// The image.
    pub picture: Arc<Frame>,
    /// Time at which it was set.
    pub at: Instant,
}

struct Inner {
    info: RunInfo,
    /// Labels of the metric, in braces.
    sandbox: String,
    now: Snapshot,
    log: VecDeque<LogEntry>,
    entries: u64,
    picture: Option<Shown>,
    pictures: u64,
    wanted: Option<Instant>,
    started: Instant,
    last_classified: Option<Instant>,
    /// The last frame that was classified or found to be still.
    last_result: Option<Instant>,
    sampled: Option<Instant>,
    latencies: LatencyHistogram,
}

/// The state of a run.
pub struct Status {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

impl Status {
    /// Creates the state of a run that starts now.
    pub fn new() -> Self {
        let started = Instant::now();
        Self {
            inner: Mutex::new(Inner {
                info: RunInfo::default(),
                sandbox: String::new(),
                now: Snapshot::default(),
                log: VecDeque::new(),
                entries: 0,
                picture: None,
                pictures: 0,
                wanted: None,
                started,
                last_classified: None,
                last_result: None,
                sampled: None,
                latencies: LatencyHistogram::default(),
            }),
            changed: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the snapshot and wakes readers.
    pub fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut inner = self.lock();
        change(&mut inner.now);
        inner.touch();
        let seq = inner.now.seq;
        drop(inner);
        self.changed.send_replace(seq);
    }

    /// Records a classified frame: its latency goes into the histogram and the rate.
    pub fn classified(&self, latency_ms: f64, change: impl FnOnce(&mut Snapshot)) {
        let mut inner = self.lock();
        inner.latencies.observe(latency_ms / 1e3);
        inner.now.classified += 1;
        let now = Instant::now();
        inner.last_result = Some(now);
        if let Some(last) = inner.last_classified.replace(now) {
            let rate = 1.0 / now.duration_since(last).as_secs_f64().max(1e-6);
            // About the last ten frames.
            inner.now.fps =
                if inner.now.fps == 0.0 { rate } else { 0.9 * inner.now.fps + 0.1 * rate };
        }
        inner.now.latency_ms = Some(latency_ms);
        drop(inner);
        self.update(change);
    }

    /// Records a frame in which nothing moved.
    pub fn still(&self, change: impl FnOnce(&mut Snapshot)) {
        self.lock().last_result = Some(Instant::now());
        self.update(change);
    }

    /// Sets the facts about the running model.
    pub fn set_run_info(&self, info: RunInfo) {
        self.lock().info = info;
    }

    /// Sets the state of the sandbox.
    pub fn set_sandbox(&self, sandbox: &Sandbox) {
        let Sandbox { state, landlock, seccomp, .. } = sandbox;
        self.lock().sandbox =
            format!("{{state=\"{}\",landlock=\"{landlock}\",seccomp=\"{seccomp}\"}}", state.name());
    }

    /// Sets the counts of frames that the source lost and of those that were unreadable.
    pub fn set_lost(&self, lost: Lost, unreadable: u64) {
        let mut inner = self.lock();
        inner.now.dropped = lost.dropped;
        inner.now.corrupt = lost.corrupt + unreadable;
    }

    /// Adds an entry to the timeline.
    pub fn log(&self, kind: &'static str, text: String, score: Option<f32>) {
        let mut inner = self.lock();
        inner.entries += 1;
        let entry = LogEntry { id: inner.entries, time: time(), kind, text, score };
        if inner.log.len() == LOG {
            inner.log.pop_front();
        }
        inner.log.push_back(entry);
        inner.touch();
        let seq = inner.now.seq;
        drop(inner);
        self.changed.send_replace(seq);
    }

    /// Whether images are requested.
    pub fn wants_picture(&self) -> bool {
        self.changed.receiver_count() > 0
            || self.lock().wanted.is_some_and(|at| at.elapsed() < WANTED)
    }

    /// Sets the newest image and returns the one before.
    pub fn show(&self, picture: Arc<Frame>) -> Option<Arc<Frame>> {
        let mut inner = self.lock();
        inner.pictures += 1;
        let number = inner.pictures;
        inner.now.picture = Some(number);
        inner.picture.replace(Shown { number, picture, at: Instant::now() }).map(|old| old.picture)
    }

    /// Returns the newest image and requests newer ones. It may be old: without requests none are
    /// set.
    pub fn picture(&self) -> Option<Shown> {
        let mut inner = self.lock();
        inner.wanted = Some(Instant::now());
        inner.picture.clone()
    }

    /// Returns a receiver that waits for changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Returns the [`RunInfo`] as JSON.
    pub fn run_info_json(&self) -> String {
        serde_json::to_string(&self.lock().info).unwrap_or_default()
    }

    /// Reads memory and temperature, without the lock, for which the classifier would wait.
    fn sample(&self) {
        let mut inner = self.lock();
        if inner.sampled.is_some_and(|at| at.elapsed() < SAMPLE) {
            return;
        }
        inner.sampled = Some(Instant::now());
        drop(inner);
        let readings = (system::cpu_temperature(), system::memory("VmRSS"));
        let now = &mut self.lock().now;
        (now.temperature_c, now.memory_bytes) = readings;
    }

    /// Returns the [`Snapshot`] as JSON; memory and temperature are read at most once per second.
    pub fn snapshot_json(&self) -> String {
        self.sample();
        let mut inner = self.lock();
        inner.now.uptime_s = inner.started.elapsed().as_secs();
        serde_json::to_string(&inner.now).unwrap_or_default()
    }

    /// Returns the timeline entries after one, each with its number and as JSON.
    pub fn entries(&self, after: u64) -> Vec<(u64, String)> {
        let inner = self.lock();
        let new = inner.log.iter().filter(|entry| entry.id > after);
        new.map(|entry| (entry.id, serde_json::to_string(entry).unwrap_or_default())).collect()
    }

    /// Returns the health, as [`crate::health::health`].
    ///
    /// # Errors
    /// The reason why the run is not healthy.
    pub fn health(&self) -> Result<&'static str, String> {
        self.health_at(Instant::now())
    }

    fn health_at(&self, now: Instant) -> Result<&'static str, String> {
        let inner = self.lock();
        let last = inner.last_result.unwrap_or(inner.started);
        health(&inner.now.source, now.saturating_duration_since(last))
    }

    /// Returns the metrics in the text format of Prometheus.
    pub fn metrics(&self) -> String {
        self.sample();
        let inner = self.lock();
        metrics::render(&Readings {
            info: &inner.info,
            sandbox: &inner.sandbox,
            now: &inner.now,
            latencies: &inner.latencies,
            uptime: inner.started.elapsed(),
        })
    }
}

impl Inner {
    fn touch(&mut self) {
        self.now.seq += 1;
        self.now.time = time();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_of_a_still_scene_needs_frames() {
        let status = Status::new();
        status.update(|now| now.source.state = SourceState::Streaming);
        status.still(|now| now.still = true);
        let soon = Instant::now() + Duration::from_secs(20);
        assert_eq!(status.health_at(soon), Ok("ok"));
        assert!(status.health_at(soon + Duration::from_secs(30)).is_err());
    }

    #[test]
    fn timeline_is_bounded() {
        let status = Status::new();
        (0..80).for_each(|i| status.log("label", i.to_string(), None));
        assert_eq!(status.entries(0).len(), LOG);
        assert_eq!(status.entries(78).iter().map(|(id, _)| *id).collect::<Vec<_>>(), [79, 80]);
    }
}
