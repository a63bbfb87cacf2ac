//! Classification of one frame: the model, the label filter and the motion gate.

use std::time::Instant;

use anyhow::Result;
use vgg_edge::classifier::{Classification, Classifier};

use crate::frame::Frame;
use crate::model::loader::{Model, smoke_test};
use crate::motion::MotionGate;
use crate::run::settings::RunSettings;
use crate::smoothing::{Decision, LabelFilter, Smoothing};
use crate::status::RunInfo;

/// Everything that a new model replaces.
pub struct Engine {
    /// The model.
    pub classifier: Classifier,
    filter: LabelFilter,
    gate: Option<MotionGate>,
    /// The last result, for frames without motion.
    last: Option<(Classification, Decision)>,
    /// The label reported last, perhaps by the engine before.
    pub reported: Option<String>,
}

/// The outcome for a frame.
pub enum Outcome {
    /// A result.
    Classified {
        /// The result for this frame alone.
        result: Classification,
        /// The label over the frames so far.
        decision: Decision,
        /// Whether nothing moved, so that the result is that of an earlier frame.
        still: bool,
    },
    /// The reason why the frame cannot be read.
    Unreadable(String),
}

impl Engine {
    /// Builds and tests the engine of a model. Also returns what the page shows of it.
    ///
    /// # Errors
    /// If threads cannot be started or the model fails its test.
    pub fn new(settings: &RunSettings, model: &Model, run: &str) -> Result<(Self, RunInfo)> {
        let decision = &settings.decision;
        let mut classifier = model.classifier(settings.model.threads.pool()?)?;
        classifier.set_view(decision.crop, decision.fit);
        classifier.set_digest(settings.output.digest);
        if let Some(threshold) = decision.threshold {
            classifier.set_threshold(threshold);
        }
        smoke_test(&mut classifier)?;
        let head = classifier.head();
        let info = RunInfo {
            run: run.to_owned(),
            edge: env!("CARGO_PKG_VERSION"),
            kernel: model.base.kernel().name(),
            threads: settings.model.threads.threads,
            size: head.preprocess.size,
            labels: head.labels.clone(),
            base: model.id.base.to_string(),
            head: model.id.head.to_string(),
            head_version: model.head_signed.map(|signed| signed.version),
            head_key: model.head_signed.map(|signed| signed.key.to_string()),
            head_date: head.training.date.clone(),
            val_accuracy: head.training.metrics.val_accuracy,
        };
        let smoothing = Smoothing {
            past: decision.smooth,
            min_frames: decision.min_frames,
            threshold: classifier.threshold(),
        };
        let engine = Self {
            classifier,
            filter: LabelFilter::new(smoothing),
            gate: decision.on_motion.map(MotionGate::new),
            last: None,
            reported: None,
        };
        Ok((engine, info))
    }

    /// Takes the place of another engine: its label holds until this one reports another, and a
    /// difference between the two is a change.
    pub fn inherit(&mut self, before: Self) {
        if before.classifier.head().labels == self.classifier.head().labels {
            self.filter.inherit(before.filter);
        }
        self.reported = before.reported;
    }

    /// The scores that the decision is made from, averaged over frames with `--smooth`.
    pub fn scores(&self) -> &[f32] {
        self.filter.scores()
    }

    /// Classifies a frame, unless nothing moved.
    ///
    /// # Errors
    /// If the model fails.
    pub fn classify(&mut self, frame: &Frame) -> Result<Outcome> {
        let start = Instant::now();
        let input = match frame.with_pixels(|pixels| self.classifier.quantize(pixels)) {
            Ok(Ok(input)) => input,
            Ok(Err(e)) | Err(e) => return Ok(Outcome::Unreadable(e.to_string())),
        };
        let size = self.classifier.head().preprocess.size as usize;
        let moves = self.gate.as_mut().is_none_or(|gate| gate.moves(&input, size));
        if let (false, Some((result, decision))) = (moves, &mut self.last) {
            // The scores count as those of a new frame: the label may follow them only later.
            *decision = self.filter.update(&result.scores);
            let (result, decision) = (result.clone(), decision.clone());
            return Ok(Outcome::Classified { result, decision, still: true });
        }
        let mut result = self.classifier.classify_input(&input)?;
        let decision = self.filter.update(&result.scores);
        result.latency_ms = start.elapsed().as_secs_f64() * 1e3;
        self.last = Some((result.clone(), decision.clone()));
        Ok(Outcome::Classified { result, decision, still: false })
    }
}
