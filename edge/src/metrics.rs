//! The metrics of a run in the text format of Prometheus (version 0.0.4).

use std::fmt::Write;
use std::time::Duration;

use crate::model::manager::Origin;
use crate::source::SourceState;
use crate::status::{RunInfo, Snapshot};

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 9] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];

/// The latencies of classified frames.
#[derive(Clone, Debug, Default)]
pub struct LatencyHistogram {
    /// Frames up to each bound.
    counts: [u64; BUCKETS.len()],
    /// Seconds in total.
    sum: f64,
}

impl LatencyHistogram {
    /// Adds a latency in seconds.
    pub fn observe(&mut self, seconds: f64) {
        for (count, &bound) in self.counts.iter_mut().zip(&BUCKETS) {
            *count += u64::from(seconds <= bound);
        }
        self.sum += seconds;
    }
}

/// The state that metrics are made from.
pub struct Readings<'a> {
    /// The running model.
    pub info: &'a RunInfo,
    /// Labels of the metric about the sandbox, in braces.
    pub sandbox: &'a str,
    /// The state as of the last frame.
    pub now: &'a Snapshot,
    /// Latencies so far.
    pub latencies: &'a LatencyHistogram,
    /// Time since the start.
    pub uptime: Duration,
}

/// Renders all metrics.
pub fn render(readings: &Readings<'_>) -> String {
    let mut text = MetricsText(String::new());
    text.model(readings);
    text.frames(readings);
    text.source(readings.now);
    text.latency(readings);
    text.scores(readings.now);
    text.system(readings);
    text.0
}

struct MetricsText(String);

impl MetricsText {
    /// Writes a metric with one sample per line: labels or suffix, and value.
    fn metric(&mut self, name: &str, kind: &str, help: &str, samples: &[(String, f64)]) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP vgg_edge_{name} {help}\n# TYPE vgg_edge_{name} {kind}");
        for (suffix, value) in samples {
            let _ = writeln!(self.0, "vgg_edge_{name}{suffix} {value}");
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.metric(name, "counter", help, &[(String::new(), value as f64)]);
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.metric(name, "gauge", help, &[(String::new(), value)]);
    }

    /// Writes a counter with a label `outcome`.
    fn outcomes(&mut self, name: &str, help: &str, counts: &[(&str, u64)]) {
        let samples: Vec<_> = counts
            .iter()
            .map(|(outcome, count)| (format!("{{outcome=\"{outcome}\"}}"), *count as f64))
            .collect();
        self.metric(name, "counter", help, &samples);
    }

    fn model(&mut self, Readings { info, sandbox, now, .. }: &Readings<'_>) {
        let labels = format!(
            "{{version=\"{}\",kernel=\"{}\",base=\"{}\",head=\"{}\"}}",
            info.edge, info.kernel, info.base, info.head
        );
        let help = "Version of edge, kernel, and SHA-256 of the running base and head.";
        self.metric("info", "gauge", help, &[(labels, 1.0)]);
        if let Some(version) = info.head_version {
            let help = "Version of the head from its verified signature.";
            self.gauge("head_version", help, version as f64);
        }
        let model = &now.model;
        let help = "New heads and bases by outcome.";
        self.outcomes("swaps_total", help, &[("done", model.swaps), ("refused", model.refused)]);
        let help = "1 if a kept model runs instead of the one in place.";
        self.gauge("last_good", help, f64::from(model.origin != Origin::InPlace));
        self.metric("sandbox", "gauge", "Sandbox state.", &[((*sandbox).to_owned(), 1.0)]);
    }

    fn frames(&mut self, Readings { now, .. }: &Readings<'_>) {
        let counts = [
            ("classified", now.classified),
            ("dropped", now.dropped),
            ("corrupt", now.corrupt),
            ("skipped", now.skipped),
        ];
        self.outcomes("frames_total", "Frames by outcome.", &counts);
        self.counter("collected_total", "Frames collected for labeling.", now.collected);
        let help = "Frames not collected: directory full, or disk too slow or failing.";
        self.counter("collect_missed_total", help, now.collect_missed);
        let help = "1 if the directory of collected frames is full.";
        self.gauge("collect_full", help, f64::from(now.collect_full));
    }

    fn source(&mut self, now: &Snapshot) {
        let up = f64::from(now.source.state == SourceState::Streaming);
        self.gauge("source_up", "1 if the source delivers frames.", up);
        let help = "Times the source was lost, stalled or frozen.";
        self.counter("source_lost_total", help, now.source.lost);
    }

    fn latency(&mut self, Readings { now, latencies, .. }: &Readings<'_>) {
        let classified = now.classified as f64;
        let mut histogram: Vec<(String, f64)> = BUCKETS
            .iter()
            .zip(&latencies.counts)
            .map(|(bound, &count)| (format!("_bucket{{le=\"{bound}\"}}"), count as f64))
            .collect();
        histogram.push(("_bucket{le=\"+Inf\"}".into(), classified));
        histogram.push(("_sum".into(), latencies.sum));
        histogram.push(("_count".into(), classified));
        let help = "Time from a decoded frame to its result.";
        self.metric("latency_seconds", "histogram", help, &histogram);
        if let Some(age) = now.age_ms {
            let help = "Time from the capture of the last frame (its arrival, if the source does \
                        not report the capture) to its result.";
            self.gauge("age_seconds", help, age / 1e3);
        }
    }

    fn scores(&mut self, now: &Snapshot) {
        let scores = now.scores.iter().flatten();
        let samples: Vec<(String, f64)> = scores
            .map(|(label, score)| {
                (format!("{{label=\"{}\"}}", escape(label)), score.as_f64().unwrap_or_default())
            })
            .collect();
        self.metric("score", "gauge", "Scores of the last frame by label.", &samples);
    }

    fn system(&mut self, Readings { now, uptime, .. }: &Readings<'_>) {
        if let Some(memory) = now.memory_bytes {
            self.gauge("resident_memory_bytes", "Resident memory.", memory as f64);
        }
        if let Some(temperature) = now.temperature_c {
            self.gauge("temperature_celsius", "Processor temperature.", temperature);
        }
        let uptime = [(String::new(), uptime.as_secs_f64())];
        self.metric("uptime_seconds", "counter", "Time since the start.", &uptime);
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use crate::status::Status;

    #[test]
    fn metrics_are_prometheus_text() {
        let status = Status::new();
        for latency in [5.0, 15.0, 7000.0] {
            status.classified(latency, |now| {
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
}
