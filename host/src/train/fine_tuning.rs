//! Fine-tuning: the last layers of the backbone, trained with the head after the head has
//! converged.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, bail};
use quant::float::Map;
use quant::tail::{Tail, replace, tail};
use vgg_edge::preprocess::Preprocess;
use vgg_edge::{Backbone, Fingerprint, Head};
use vgg_edge_cli::terminal::Interrupted;

use super::job::{Job, SplitRows};
use super::progress::Stage;
use super::record;
use super::settings::FineTuneSettings;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::features::extraction::{ExtractSettings, Features, Rows, extract};
use crate::metrics;
use crate::progress::Progress;
use crate::report::ReportSettings;
use crate::trainer::{
    self, Dataset, DenseWeights, FineTuneState, FineTuned, Model, ProgressEvent, TrainConfig,
    TrainedHead,
};

/// Extension of the checkpoint of fine-tuning.
pub(super) const CHECKPOINT: &str = "fine-tune.checkpoint";

/// Number of training images that the new layers are calibrated with.
const CALIBRATION: usize = 500;

/// Reads the file of a backbone, which must still be the one that was loaded.
pub(super) fn model_bytes(base: &Backbone) -> Result<Vec<u8>> {
    let bytes = std::fs::read(base.path())
        .with_context(|| format!("{}: cannot read", base.path().display()))?;
    if Fingerprint::of(&bytes) != base.fingerprint() {
        bail!("{}: changed since it was loaded; start again", base.path().display());
    }
    Ok(bytes)
}

/// Starting point of fine-tuning.
pub(super) enum Start<'a> {
    /// Layers of the head that was just trained on the frozen backbone.
    Head(&'a [DenseWeights]),
    /// HeadState of an interrupted run.
    HeadState(Box<FineTuneState>),
}

/// Inputs of fine-tuning: the file of the backbone, its last layers, and the feature maps
/// that go into them.
struct Frozen<'a> {
    settings: &'a FineTuneSettings,
    model: Vec<u8>,
    tail: Tail,
    preprocess: Preprocess,
    maps: Features,
    rows: SplitRows<'a>,
}

impl Frozen<'_> {
    /// Returns height and width of the feature maps.
    fn side(&self) -> usize {
        (self.preprocess.size / self.preprocess.base.stride) as usize
    }

    /// Returns the number of channels of the feature maps.
    fn channels(&self) -> usize {
        self.preprocess.base.channels as usize
    }
}

impl Job<'_> {
    /// Returns the checkpoint of fine-tuning; `config` is that of the head, which fine-tuning
    /// starts from.
    fn tuning_checkpoint(
        &self,
        settings: &FineTuneSettings,
        config: &TrainConfig,
        rows: SplitRows<'_>,
    ) -> Checkpoint {
        let tuning = settings.config(config);
        let text = format!("{:?}, {config:?}, {tuning:?}", Some(&settings.first));
        self.checkpoint(CHECKPOINT, &text, &[rows.train, rows.val])
    }

    /// Returns the state of an interrupted fine-tuning, if it is to be resumed.
    ///
    /// # Errors
    /// An unusable checkpoint of fine-tuning, if there is none of the head either.
    pub fn resumed_tuning(
        &self,
        config: &TrainConfig,
        rows: SplitRows<'_>,
    ) -> Result<Option<FineTuneState>> {
        let Some(settings) = &self.settings.fine_tune else { return Ok(None) };
        let checkpoint = self.tuning_checkpoint(settings, config, rows);
        if !self.settings.checkpoint.resume || !checkpoint.path().exists() {
            return Ok(None);
        }
        match checkpoint.load::<FineTuneState>() {
            Ok(state) => {
                log::info!("resuming fine-tuning after epoch {}", state.epochs());
                Ok(Some(state))
            }
            Err(CheckpointError::Content { path, what })
                if self.head_checkpoint(config, rows).path().exists() =>
            {
                log::warn!("{}: {what}; fine-tuning starts again", path.display());
                Ok(None)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Trains the last layers with the head, then writes the new backbone and its head.
    ///
    /// The head of the frozen backbone was written before; it stays if the result is not better.
    /// There is a checkpoint to resume from at any time: that of fine-tuning, or before its first
    /// state that of the head.
    pub fn fine_tune(
        &self,
        config: &TrainConfig,
        start: Start<'_>,
        rows: SplitRows<'_>,
    ) -> Result<()> {
        let Some(settings) = &self.settings.fine_tune else { return Ok(()) };
        let mut checkpoint = self.tuning_checkpoint(settings, config, rows);
        let written = self
            .tune(settings, &settings.config(config), start, rows, &mut checkpoint)
            .map_err(|e| self.after_head(e, "while fine-tuning"))?;
        if !written && settings.base.exists() {
            log::warn!(
                "{} is of an earlier training: {} does not belong to it",
                settings.base.display(),
                self.settings.output.head.display()
            );
        }
        checkpoint.remove()?;
        Ok(self.head_checkpoint(config, rows).remove()?)
    }

    /// Returns whether a new backbone and its head were written.
    fn tune(
        &self,
        settings: &FineTuneSettings,
        config: &TrainConfig,
        start: Start<'_>,
        rows: SplitRows<'_>,
        checkpoint: &mut Checkpoint,
    ) -> Result<bool> {
        let first = &settings.first;
        let model = model_bytes(self.base)?;
        let tail = tail(&model, first)?;
        let part = self.base.prefix(tail.frozen);
        let preprocess =
            Preprocess { base: part.contract().clone(), ..self.head.preprocess.clone() };
        let layer = part.layers().last().map_or("", |layer| layer.name.as_str());
        log::info!("fine-tuning from {first} on; extracting the outputs of {layer}:");
        let maps = self.features_of(&part, &preprocess, &self.settings.data.extract)?;
        let frozen = Frozen { settings, model, tail, preprocess, maps, rows };

        let tuned = self.train_tail(config, &frozen, start, checkpoint)?;
        if tuned.best_epoch == 0 {
            log::info!(
                "fine-tuning found no improvement: the frozen backbone and its head are kept"
            );
            return Ok(false);
        }
        let bytes = self.quantize(&frozen, &tuned)?;
        self.write_tuned(settings, &bytes, &tuned, rows)
    }

    /// Extracts the features of the same images with another backbone.
    ///
    /// # Errors
    /// Images that changed; the errors of [`extract`].
    fn features_of(
        &self,
        base: &Backbone,
        preprocess: &Preprocess,
        settings: &ExtractSettings,
    ) -> Result<Features> {
        let features = extract(base, preprocess, self.items, settings, self.cancel)?;
        if features.hashes != self.features.hashes {
            bail!(
                "{}: images changed since they were first read; start again",
                self.settings.data.source.path().display()
            );
        }
        Ok(features)
    }

    fn train_tail(
        &self,
        config: &TrainConfig,
        frozen: &Frozen<'_>,
        start: Start<'_>,
        checkpoint: &mut Checkpoint,
    ) -> Result<FineTuned> {
        let (head, from) = match start {
            Start::Head(layers) => (layers, None),
            Start::HeadState(state) => (Default::default(), Some(*state)),
        };
        let rows = frozen.rows;
        let pool = vgg_edge::head::Pool::Flatten;
        let source = |rows| Rows { features: &frozen.maps, rows, pool };
        let (train_source, val_source) = (source(rows.train), source(rows.val));
        let (train_classes, val_classes) = (self.classes_of(rows.train), self.classes_of(rows.val));
        let train = Dataset { features: &train_source, labels: &train_classes };
        let val = (!rows.val.is_empty())
            .then_some(Dataset { features: &val_source, labels: &val_classes });
        let model = Model {
            tail: &frozen.tail.layers,
            head,
            shape: [frozen.side(), frozen.side(), frozen.channels()],
            pool: self.head.pool,
        };
        let mut stopped = false;
        let done = from.as_ref().map_or(0, FineTuneState::epochs);
        let epochs = [config.epochs, done];
        let report = self.progress(config, rows.train.len(), epochs, Stage::FineTune);
        let tuned =
            trainer::fine_tune(config, model, &train, val.as_ref(), from, &mut |progress| {
                stopped = self.cancel.is_canceled();
                report.report(progress.at);
                // The steps before the first and after the last epoch take long too.
                let due = matches!(
                    progress.at,
                    ProgressEvent::Epoch { stats, last } if last || stats.epoch == 0
                );
                if let Err(e) = checkpoint.save(|| progress.state(), stopped || due) {
                    report.warn(format_args!("cannot write the checkpoint: {e:#}"));
                }
                if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        let tuned = tuned?;
        if stopped { Err(Interrupted.into()) } else { Ok(tuned) }
    }

    /// Returns the file of the new backbone, quantized with training images.
    fn quantize(&self, frozen: &Frozen<'_>, tuned: &FineTuned) -> Result<Vec<u8>> {
        let train_rows = frozen.rows.train;
        let step = train_rows.len().div_ceil(CALIBRATION).max(1);
        let inputs: Vec<Map<u8>> = train_rows
            .iter()
            .step_by(step)
            .map(|&row| {
                let data = frozen.maps.row(row)?.into_owned();
                let (side, channels) = (frozen.side(), frozen.channels());
                Ok(Map { height: side, width: side, channels, data })
            })
            .collect::<Result<_>>()?;
        let how =
            format!("fine-tuned from {} on, {} px", frozen.settings.first, frozen.preprocess.size);
        let tail = Tail { layers: tuned.tail.clone(), ..frozen.tail.clone() };
        let layers = tail.layers.len();
        log::info!("quantizing {layers} layers with {} training images", inputs.len());
        let options = quant::quantize::Options::default();
        let bar = Progress::new(layers as u64, "layers");
        let progress = |layer: &str| {
            bar.next(layer);
            self.cancel.check().map_err(|_| quant::Error::Interrupted)
        };
        let kernel = self.base.kernel();
        match replace(&frozen.model, &tail, inputs, &options, kernel, &how, progress) {
            Err(quant::Error::Interrupted) => Err(Interrupted.into()),
            other => Ok(other?),
        }
    }

    /// Returns validation accuracy and loss of the head that was written for the frozen backbone,
    /// in the arithmetic of the device; `None` if it is not there any more.
    fn frozen_metrics(&self) -> Option<(f64, f64)> {
        let head = Head::open(&self.settings.output.head)
            .ok()
            .filter(|head| head.base == self.base.fingerprint())?;
        head.training.metrics.val_accuracy.zip(head.training.metrics.val_loss)
    }

    /// Measures the head on the new backbone, and writes both if they are better than the frozen
    /// ones; returns whether it did.
    fn write_tuned(
        &self,
        settings: &FineTuneSettings,
        bytes: &[u8],
        tuned: &FineTuned,
        rows: SplitRows<'_>,
    ) -> Result<bool> {
        let path: &Path = &settings.base;
        let base = &Backbone::from_bytes(path, bytes, self.base.kernel())?;
        let preprocess =
            Preprocess { base: base.contract().clone(), ..self.head.preprocess.clone() };
        // Features of this backbone are used once, so they are not worth caching.
        let extract = ExtractSettings { cache: None, ..self.settings.data.extract.clone() };
        let features = self.features_of(base, &preprocess, &extract)?;
        // The f32 weights that the report compares with are those of the frozen backbone.
        let order = self
            .order
            .map(|order| ReportSettings { directory: order.directory.clone(), float: None });
        let job = Job {
            augmentation: None,
            config: self.config.clone(),
            base,
            features: &features,
            head: Head {
                base: base.fingerprint(),
                preprocess,
                feature_scales: base.feature_scales().to_vec(),
                ..self.head.clone()
            },
            order: order.as_ref(),
            record: record::fine_tuning(settings, tuned),
            ..*self
        };
        let mut head = job.head_of(tuned.head.clone());
        if !rows.val.is_empty() {
            let truth = job.classes_of(rows.val);
            if self.settings.head.calibrate {
                let logits = metrics::logits(&head, &features, rows.val)?;
                head.decision.temperature = metrics::temperature(&logits, &truth);
            }
            let after = metrics::evaluate(&head, &features, rows.val, &truth)?;
            if !self.is_better(tuned, (after.accuracy, after.loss)) {
                return Ok(false);
            }
        }
        // The backbone first: the existing head belongs to the old one until it is replaced.
        vgg_edge::durable_fs::write_bytes(path, bytes)?;
        let trained = TrainedHead {
            layers: tuned.head.clone(),
            best_epoch: tuned.best_epoch,
            history: tuned.history.clone(),
        };
        job.finish(head, &trained, rows, None, false)?;
        log::info!("wrote {}; pass it to edge and host with --base", path.display());
        Ok(true)
    }

    /// Whether accuracy and loss on the validation set, in int8, improve on the frozen backbone;
    /// logs both.
    fn is_better(&self, tuned: &FineTuned, (accuracy, loss): (f64, f64)) -> bool {
        let best = tuned.history.iter().find(|stats| stats.epoch == tuned.best_epoch);
        let float = best.and_then(|stats| stats.val_accuracy).unwrap_or_default();
        let now = format!("{float:.4} fine-tuned in f32, {accuracy:.4} in int8");
        let Some((frozen_accuracy, frozen_loss)) = self.frozen_metrics() else {
            log::warn!("validation accuracy {now}; the head of the frozen backbone is gone");
            return true;
        };
        log::info!("validation accuracy {frozen_accuracy:.4} frozen, {now}");
        if (accuracy, -loss) <= (frozen_accuracy, -frozen_loss) {
            log::info!("no improvement in int8: the frozen backbone and its head are kept");
            return false;
        }
        true
    }
}
