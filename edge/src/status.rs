//! What is known of a run: for the page, the metrics, the state of health.
//!
//! The classifier writes, the web server reads. Writing is a lock that nobody holds for long and
//! never waits for a reader.

use std::collections::VecDeque;
use std::fmt::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;
use vgg_edge_cli::record::time;

use crate::cli::options::memory;
use crate::frame::Frame;
use crate::model::manager::Origin;
use crate::sandbox::Sandbox;
use crate::source::{Lost, SourceState};

/// Log entries that a new page is told.
const LOG: usize = 50;

/// Upper ends of the latency histogram, in seconds.
const BUCKETS: [f64; 9] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];

/// For so long after a picture was asked for, new ones are kept ready.
const WANTED: Duration = Duration::from_secs(5);

/// A classified frame is recent enough for health within this, if the source gives frames at all.
const HEALTHY: Duration = Duration::from_secs(30);

/// Least time between two looks at memory and temperature.
const SAMPLE: Duration = Duration::from_secs(1);

/// What does not change while a head runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RunInfo {
    /// Told apart from an earlier run.
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
    /// Fingerprint of the head's file.
    pub head: String,
    /// Its version, once its signature is verified.
    pub head_version: Option<u64>,
    /// The number of the key that signed it.
    pub head_key: Option<String>,
    /// Day of its training.
    pub head_date: String,
    /// Accuracy on its validation pictures, 0 to 1.
    pub val_accuracy: Option<f64>,
}

/// The source.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SourceStatus {
    /// Its name.
    pub name: String,
    /// What it does.
    pub state: SourceState,
    /// In words.
    pub detail: String,
    /// How often it was lost, stalled or frozen.
    pub lost: u64,
}

/// Head and base against what was put in place.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ModelStatus {
    /// Why that pair runs.
    pub origin: Origin,
    /// What is wrong with what was put in place.
    pub note: Option<String>,
    /// How often another pair was taken while it ran.
    pub swaps: u64,
    /// How often one was refused.
    pub refused: u64,
}

/// What changes with each frame.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Snapshot {
    /// Counts changes.
    pub seq: u64,
    /// When, RFC 3339.
    pub time: String,
    /// The label that is said.
    pub label: Option<String>,
    /// Its score.
    pub score: Option<f32>,
    /// The threshold in force.
    pub threshold: f32,
    /// All scores, as an object from label to score.
    pub scores: Option<serde_json::Map<String, serde_json::Value>>,
    /// Whether the scene is still, so that the label is an earlier one.
    pub still: bool,
    /// Frames classified a second, averaged.
    pub fps: f64,
    /// From the frame to the answer.
    pub latency_ms: Option<f64>,
    /// From the capture to the answer; from the arrival, if the source does not tell when it
    /// captured.
    pub age_ms: Option<f64>,
    /// Frames that came to be looked at.
    pub frames: u64,
    /// Frames classified.
    pub classified: u64,
    /// Frames replaced by newer ones, or dropped by the driver.
    pub dropped: u64,
    /// Frames that were faulty.
    pub corrupt: u64,
    /// Frames skipped because nothing moved.
    pub skipped: u64,
    /// Frames collected.
    pub collected: u64,
    /// Frames that were to be collected and could not be.
    pub collect_missed: u64,
    /// Whether the folder for them is full.
    pub collect_full: bool,
    /// The source.
    pub source: SourceStatus,
    /// Head and base.
    pub model: ModelStatus,
    /// Of the processor.
    pub temperature_c: Option<f64>,
    /// Resident memory.
    pub memory_bytes: Option<u64>,
    /// Since the start.
    pub uptime_s: u64,
    /// Number of the newest picture, if there is one.
    pub picture: Option<u64>,
}

/// Something worth a line in the page's timeline.
#[derive(Clone, Debug, Serialize)]
pub struct LogEntry {
    /// Counts from 1.
    pub id: u64,
    /// When, RFC 3339.
    pub time: String,
    /// `label`, `source`, `model`, `reload`, `collect` or `page`.
    pub kind: &'static str,
    /// In words.
    pub text: String,
    /// For labels.
    pub score: Option<f32>,
}

/// A picture that is put up.
#[derive(Clone)]
pub struct Shown {
    /// Counts from 1.
    pub number: u64,
    /// The picture.
    pub picture: Arc<Frame>,
    /// When it was put up.
    pub at: Instant,
}

struct Inner {
    hello: RunInfo,
    /// Labels of the metric.
    sandbox: String,
    now: Snapshot,
    log: VecDeque<LogEntry>,
    entries: u64,
    picture: Option<Shown>,
    pictures: u64,
    wanted: Option<Instant>,
    started: Instant,
    answered: Option<Instant>,
    /// As `answered`, or found still.
    looked_at: Option<Instant>,
    sampled: Option<Instant>,
    latencies: [u64; BUCKETS.len()],
    latency_sum: f64,
}

/// The shared state.
pub struct Status {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

impl Status {
    /// A status for a run that begins now.
    pub fn new() -> Self {
        let started = Instant::now();
        Self {
            inner: Mutex::new(Inner {
                hello: RunInfo::default(),
                sandbox: String::new(),
                now: Snapshot::default(),
                log: VecDeque::new(),
                entries: 0,
                picture: None,
                pictures: 0,
                wanted: None,
                started,
                answered: None,
                looked_at: None,
                sampled: None,
                latencies: [0; BUCKETS.len()],
                latency_sum: 0.0,
            }),
            changed: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known, and wakes readers.
    pub fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut inner = self.lock();
        change(&mut inner.now);
        inner.touch();
        let seq = inner.now.seq;
        drop(inner);
        self.changed.send_replace(seq);
    }

    /// Puts down an answer: its latency goes into the histogram and the rate.
    pub fn answered(&self, latency_ms: f64, change: impl FnOnce(&mut Snapshot)) {
        let mut inner = self.lock();
        let seconds = latency_ms / 1e3;
        for (count, &end) in inner.latencies.iter_mut().zip(&BUCKETS) {
            *count += u64::from(seconds <= end);
        }
        inner.latency_sum += seconds;
        inner.now.classified += 1;
        let now = Instant::now();
        inner.looked_at = Some(now);
        if let Some(last) = inner.answered.replace(now) {
            let rate = 1.0 / now.duration_since(last).as_secs_f64().max(1e-6);
            // About the last ten frames.
            inner.now.fps =
                if inner.now.fps == 0.0 { rate } else { 0.9 * inner.now.fps + 0.1 * rate };
        }
        inner.now.latency_ms = Some(latency_ms);
        drop(inner);
        self.update(change);
    }

    /// Puts down a frame in which nothing moved.
    pub fn still(&self, change: impl FnOnce(&mut Snapshot)) {
        self.lock().looked_at = Some(Instant::now());
        self.update(change);
    }

    /// Sets what does not change with each frame.
    pub fn set_hello(&self, hello: RunInfo) {
        self.lock().hello = hello;
    }

    /// Sets what holds from the start to the end.
    pub fn set_sandbox(&self, sandbox: &Sandbox) {
        let Sandbox { state, landlock, seccomp, .. } = sandbox;
        self.lock().sandbox =
            format!("{{state=\"{}\",landlock=\"{landlock}\",seccomp=\"{seccomp}\"}}", state.name());
    }

    /// Counts of the source.
    pub fn set_lost(&self, lost: Lost, unreadable: u64) {
        let mut inner = self.lock();
        inner.now.dropped = lost.dropped;
        inner.now.corrupt = lost.corrupt + unreadable;
    }

    /// Adds to the timeline.
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

    /// Whether somebody looks at pictures.
    pub fn wants_picture(&self) -> bool {
        self.changed.receiver_count() > 0
            || self.lock().wanted.is_some_and(|at| at.elapsed() < WANTED)
    }

    /// Puts up a picture, and gives the one before.
    pub fn show(&self, picture: Arc<Frame>) -> Option<Arc<Frame>> {
        let mut inner = self.lock();
        inner.pictures += 1;
        let number = inner.pictures;
        inner.now.picture = Some(number);
        inner.picture.replace(Shown { number, picture, at: Instant::now() }).map(|old| old.picture)
    }

    /// The newest picture, for somebody who looks at it. While nobody did, none was put up: it may
    /// be old.
    pub fn picture(&self) -> Option<Shown> {
        let mut inner = self.lock();
        inner.wanted = Some(Instant::now());
        inner.picture.clone()
    }

    /// A reader's way to wait for changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What does not change with each frame, as JSON.
    pub fn hello(&self) -> String {
        serde_json::to_string(&self.lock().hello).unwrap_or_default()
    }

    /// Looks at the machine, but not under the lock, for which the classifier would wait.
    fn sample(&self) {
        let mut inner = self.lock();
        if inner.sampled.is_some_and(|at| at.elapsed() < SAMPLE) {
            return;
        }
        inner.sampled = Some(Instant::now());
        drop(inner);
        let found = (temperature(THERMAL), memory("VmRSS"));
        let now = &mut self.lock().now;
        (now.temperature_c, now.memory_bytes) = found;
    }

    /// What does, as JSON; samples the machine at most once a second.
    pub fn now(&self) -> String {
        self.sample();
        let mut inner = self.lock();
        inner.now.uptime_s = inner.started.elapsed().as_secs();
        serde_json::to_string(&inner.now).unwrap_or_default()
    }

    /// Timeline entries after that one, each as JSON with its number.
    pub fn entries(&self, after: u64) -> Vec<(u64, String)> {
        let inner = self.lock();
        let new = inner.log.iter().filter(|entry| entry.id > after);
        new.map(|entry| (entry.id, serde_json::to_string(entry).unwrap_or_default())).collect()
    }

    /// `Ok` if answers come, or the source has ended as it should; else what is wrong.
    pub fn health(&self) -> Result<&'static str, String> {
        self.health_at(Instant::now())
    }

    fn health_at(&self, now: Instant) -> Result<&'static str, String> {
        let inner = self.lock();
        let source = &inner.now.source;
        match source.state {
            SourceState::Ended => Ok("ended"),
            SourceState::Streaming
                if now.saturating_duration_since(inner.looked_at.unwrap_or(inner.started))
                    < HEALTHY =>
            {
                Ok("ok")
            }
            SourceState::Streaming => Err(format!("no answer for {} s", HEALTHY.as_secs())),
            state => Err(format!("{state:?}: {}", source.detail).to_lowercase()),
        }
    }

    /// The state in the text format of Prometheus (version 0.0.4).
    pub fn metrics(&self) -> String {
        self.sample();
        let inner = self.lock();
        let now = &inner.now;
        let mut out = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, lines: &[(String, f64)]| {
            // Writing to a string does not fail.
            let _ = writeln!(out, "# HELP vgg_edge_{name} {help}\n# TYPE vgg_edge_{name} {kind}");
            for (suffix, value) in lines {
                let _ = writeln!(out, "vgg_edge_{name}{suffix} {value}");
            }
        };
        let plain = |value: f64| vec![(String::new(), value)];
        let escape =
            |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels = format!(
            "{{version=\"{}\",kernel=\"{}\",base=\"{}\",head=\"{}\"}}",
            inner.hello.edge, inner.hello.kernel, inner.hello.base, inner.hello.head
        );
        metric("info", "gauge", "What runs.", &[(labels, 1.0)]);
        if let Some(version) = inner.hello.head_version {
            metric(
                "head_version",
                "gauge",
                "Version of the head, by its verified signature.",
                &plain(version as f64),
            );
        }
        let model = &now.model;
        let swaps = [("done", model.swaps), ("refused", model.refused)];
        let swaps = swaps.map(|(name, count)| (format!("{{outcome=\"{name}\"}}"), count as f64));
        metric(
            "swaps_total",
            "counter",
            "Heads and bases that were put in place, by what became of them.",
            &swaps,
        );
        let kept = f64::from(model.origin != Origin::InPlace);
        metric(
            "last_good",
            "gauge",
            "Whether a kept pair runs instead of what is in place.",
            &plain(kept),
        );
        metric(
            "sandbox",
            "gauge",
            "How edge is shut off from the system.",
            &[(inner.sandbox.clone(), 1.0)],
        );
        let counts = [
            ("classified", now.classified),
            ("dropped", now.dropped),
            ("corrupt", now.corrupt),
            ("skipped", now.skipped),
        ];
        let counts = counts.map(|(name, count)| (format!("{{outcome=\"{name}\"}}"), count as f64));
        metric("frames_total", "counter", "Frames by what became of them.", &counts);
        metric(
            "collected_total",
            "counter",
            "Frames kept for relabeling.",
            &plain(now.collected as f64),
        );
        metric(
            "collect_missed_total",
            "counter",
            "Frames to be kept that were not: the folder is full, the disk too slow or failing.",
            &plain(now.collect_missed as f64),
        );
        metric(
            "collect_full",
            "gauge",
            "Whether the folder of kept frames is full.",
            &plain(f64::from(now.collect_full)),
        );
        metric(
            "source_up",
            "gauge",
            "Whether frames come.",
            &plain(f64::from(now.source.state == SourceState::Streaming)),
        );
        metric(
            "source_lost_total",
            "counter",
            "How often the source was lost, stalled or frozen.",
            &plain(now.source.lost as f64),
        );
        let mut histogram: Vec<(String, f64)> = BUCKETS
            .iter()
            .zip(&inner.latencies)
            .map(|(end, &count)| (format!("_bucket{{le=\"{end}\"}}"), count as f64))
            .collect();
        histogram.push(("_bucket{le=\"+Inf\"}".into(), now.classified as f64));
        histogram.push(("_sum".into(), inner.latency_sum));
        histogram.push(("_count".into(), now.classified as f64));
        metric("latency_seconds", "histogram", "From a frame to its answer.", &histogram);
        if let Some(age) = now.age_ms {
            let help = "From the capture of the last frame (its arrival, if the source does not tell) to its answer.";
            metric("age_seconds", "gauge", help, &plain(age / 1e3));
        }
        let scores: Vec<(String, f64)> = now
            .scores
            .iter()
            .flatten()
            .map(|(label, score)| {
                (format!("{{label=\"{}\"}}", escape(label)), score.as_f64().unwrap_or_default())
            })
            .collect();
        metric("score", "gauge", "Scores of the last frame.", &scores);
        if let Some(memory) = now.memory_bytes {
            metric("resident_memory_bytes", "gauge", "Resident memory.", &plain(memory as f64));
        }
        if let Some(temperature) = now.temperature_c {
            metric("temperature_celsius", "gauge", "Of the processor.", &plain(temperature));
        }
        metric(
            "uptime_seconds",
            "counter",
            "Since the start.",
            &plain(inner.started.elapsed().as_secs_f64()),
        );
        out
    }
}

impl Inner {
    fn touch(&mut self) {
        self.now.seq += 1;
        self.now.time = time();
    }
}

/// Where Linux tells the temperature of the first thermal zone, which is the processor's on a
/// Raspberry Pi.
const THERMAL: &str = "/sys/class/thermal/thermal_zone0/temp";

/// The temperature in such a file of thousandths, in degrees Celsius.
fn temperature(path: impl AsRef<Path>) -> Option<f64> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().parse::<f64>().ok()? / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_prometheus_text() {
        let status = Status::new();
        for latency in [5.0, 15.0, 7000.0] {
            status.answered(latency, |now| {
                let scores = [("a \"b\"".to_owned(), serde_json::json!(0.25))];
                now.scores = Some(scores.into_iter().collect());
            });
        }
        let text = status.metrics();
        for line in [
            "vgg_edge_frames_total{outcome=\"classified\"} 3",
            "vgg_edge_latency_seconds_bucket{le=\"0.01\"} 1",
            "vgg_edge_latency_seconds_bucket{le=\"0.02\"} 2",
            "vgg_edge_latency_seconds_bucket{le=\"+Inf\"} 3",
            "vgg_edge_latency_seconds_sum 7.02",
            "vgg_edge_score{label=\"a \\\"b\\\"\"} 0.25",
            "# TYPE vgg_edge_latency_seconds histogram",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn health_follows_the_source() {
        let status = Status::new();
        assert!(status.health().is_err());
        let set = |state, detail: &str| {
            status.update(|now| (now.source.state, now.source.detail) = (state, detail.into()))
        };
        set(SourceState::Streaming, "YUYV");
        assert_eq!(status.health(), Ok("ok"));
        set(SourceState::Lost, "the camera was unplugged");
        assert_eq!(status.health(), Err("lost: the camera was unplugged".into()));
    }

    #[test]
    fn a_still_scene_is_healthy_only_while_it_is_looked_at() {
        let status = Status::new();
        status.update(|now| now.source.state = SourceState::Streaming);
        status.still(|now| now.still = true);
        let soon = Instant::now() + Duration::from_secs(20);
        assert_eq!(status.health_at(soon), Ok("ok"));
        assert!(status.health_at(soon + HEALTHY).unwrap_err().contains("no answer"));
    }

    #[test]
    fn temperatures() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("temp");
        assert_eq!(temperature(&path), None, "a machine without a sensor");
        for (text, wanted) in
            [("48250\n", Some(48.25)), ("-1000\n", Some(-1.0)), ("hot\n", None), ("", None)]
        {
            std::fs::write(&path, text).unwrap();
            assert_eq!(temperature(&path), wanted, "{text:?}");
        }
    }

    #[test]
    fn the_timeline_is_bounded() {
        let status = Status::new();
        (0..80).for_each(|i| status.log("label", i.to_string(), None));
        assert_eq!(status.entries(0).len(), LOG);
        assert_eq!(status.entries(78).iter().map(|(id, _)| *id).collect::<Vec<_>>(), [79, 80]);
    }
}
