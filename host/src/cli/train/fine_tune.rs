//! `host train --fine-tune`: the last layers of the base, trained with the head after the head has
//! converged.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use quant::float::Map;
use quant::tail::{Tail, replace, tail};
use vgg_edge::preprocess::Preprocess;
use vgg_edge::{Backbone, Fingerprint, Head};
use vgg_edge_cli::terminal::{Interrupted, UsageError, interrupted, note};

use super::Job;
use super::progress::Stage;
use crate::PROGRAM;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::cli::options::ExtractOptions;
use crate::features::extraction::{Features, Rows, extract};
use crate::metrics;
use crate::progress::Meter;
use crate::report::ReportSettings;
use crate::trainer::{
    self, Dataset, DenseWeights, FineTuneState, FineTuned, Model, Moment, Optimizer, TrainConfig,
    TrainedHead,
};

/// Ending of the checkpoint of fine-tuning.
pub(super) const CHECKPOINT: &str = "fine-tune.checkpoint";

/// Training pictures that the new layers are calibrated with.
const CALIBRATION: usize = 500;

/// Flags of fine-tuning.
#[derive(clap::Args)]
pub struct FineTuneOptions {
    /// When the head has converged, trains the last layers of the base too, from this block or
    /// layer on (block5, block5_conv3), and writes them as a new int8 base with the head that
    /// belongs to it
    #[arg(long = "fine-tune", value_name = "LAYER", conflicts_with = "folds")]
    pub first: Option<String>,

    /// Where the new base goes [default: HEAD with the ending .onnx]
    #[arg(long, value_name = "FILE", requires = "first")]
    pub tuned_base: Option<PathBuf>,

    /// Learning rate of fine-tuning (RMSprop)
    #[arg(
        long,
        value_name = "RATE",
        requires = "first",
        default_value_t = 1e-5,
        allow_negative_numbers = true
    )]
    pub fine_tune_lr: f64,

    /// Most passes over the pictures
    #[arg(long, value_name = "N", requires = "first", default_value_t = 20)]
    pub fine_tune_epochs: u32,

    /// Stops after so many epochs without a better one; 0 runs all
    #[arg(long, value_name = "EPOCHS", requires = "first", default_value_t = 5)]
    pub fine_tune_patience: u32,
}

impl FineTuneOptions {
    /// Where the base goes that belongs to the head at `head`.
    pub fn path(&self, head: &Path) -> PathBuf {
        self.tuned_base.clone().unwrap_or_else(|| head.with_extension("onnx"))
    }

    /// What the head's configuration becomes.
    pub fn config(&self, head: &TrainConfig) -> TrainConfig {
        TrainConfig {
            optimizer: Optimizer::rms_prop(self.fine_tune_lr),
            epochs: self.fine_tune_epochs as usize,
            patience: (self.fine_tune_patience > 0).then_some(self.fine_tune_patience as usize),
            batch_size: head.batch_size.min(32),
            ..head.clone()
        }
    }

    /// What is wrong with the flags, before anything is done.
    pub fn check(&self, head: &Path, base: &Backbone) -> Result<()> {
        let Some(first) = &self.first else { return Ok(()) };
        tail(&bytes_of(base)?, first).map_err(|e| UsageError(format!("--fine-tune: {e}")))?;
        let path = self.path(head);
        if path == head || path == base.path() {
            bail!(UsageError(format!(
                "--tuned-base: {} is taken; name another file",
                path.display()
            )));
        }
        Ok(vgg_edge::durable_fs::check_writable(&path)?)
    }
}

/// The file of a base, which must still be the one that was loaded.
fn bytes_of(base: &Backbone) -> Result<Vec<u8>> {
    let bytes = std::fs::read(base.path())
        .with_context(|| format!("{}: cannot read", base.path().display()))?;
    if Fingerprint::of(&bytes) != base.fingerprint() {
        bail!("{}: it has changed since it was loaded; start again", base.path().display());
    }
    Ok(bytes)
}

/// What fine-tuning begins with.
pub(super) enum Start<'a> {
    /// The layers of the head that has just been trained on the frozen base.
    Head(&'a [DenseWeights]),
    /// What an interrupted run has left.
    State(Box<FineTuneState>),
}

impl Job<'_> {
    /// The checkpoint of fine-tuning; `config` is the head's, which decides what tuning begins
    /// with.
    fn tuning_checkpoint(&self, config: &TrainConfig, rows: [&[usize]; 2]) -> Checkpoint {
        let options = &self.args.fine_tune;
        let settings = format!("{:?}, {config:?}, {:?}", options.first, options.config(config));
        self.checkpoint(CHECKPOINT, &settings, &rows)
    }

    /// What an interrupted run has left to go on fine-tuning with, if that is asked for.
    ///
    /// # Errors
    /// A checkpoint of fine-tuning that is no use, if there is none of the head either.
    pub(super) fn resumed_tuning(
        &self,
        config: &TrainConfig,
        rows: [&[usize]; 2],
    ) -> Result<Option<FineTuneState>> {
        let checkpoint = self.tuning_checkpoint(config, rows);
        if !self.args.shape.resume
            || self.args.fine_tune.first.is_none()
            || !checkpoint.path().exists()
        {
            return Ok(None);
        }
        match checkpoint.load::<FineTuneState>() {
            Ok(state) => {
                note(
                    PROGRAM,
                    format_args!("going on with fine-tuning after epoch {}", state.epochs()),
                );
                Ok(Some(state))
            }
            Err(CheckpointError::Content { path, what })
                if self.head_checkpoint(config, rows).path().exists() =>
            {
                note(PROGRAM, format_args!("{}: {what}; fine-tuning begins anew", path.display()));
                Ok(None)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Trains the last layers with the head, then writes the new base and its head. The head of the
    /// frozen base has been written; it stays if nothing better comes of it. Whenever this is
    /// interrupted, a checkpoint is there to go on from: that of fine-tuning, or before its first
    /// state that of the head.
    pub(super) fn fine_tuned(
        &self,
        config: &TrainConfig,
        start: Start,
        rows: [&[usize]; 2],
    ) -> Result<()> {
        let Some(first) = &self.args.fine_tune.first else { return Ok(()) };
        let mut checkpoint = self.tuning_checkpoint(config, rows);
        let tuned =
            self.tune(first, &self.args.fine_tune.config(config), start, rows, &mut checkpoint);
        let path = self.args.fine_tune.path(&self.args.output);
        if !tuned.map_err(|e| self.after_head(e, "while fine-tuning"))? && path.exists() {
            let head = self.args.output.display();
            note(
                PROGRAM,
                format_args!(
                    "{} is of an earlier training: {head} does not belong to it",
                    path.display()
                ),
            );
        }
        checkpoint.remove()?;
        Ok(self.head_checkpoint(config, rows).remove()?)
    }

    /// Whether a new base and its head came of it.
    fn tune(
        &self,
        first: &str,
        config: &TrainConfig,
        start: Start,
        rows: [&[usize]; 2],
        checkpoint: &mut Checkpoint,
    ) -> Result<bool> {
        let model = bytes_of(self.base)?;
        let old = tail(&model, first)?;
        let part = self.base.truncated(old.frozen);
        let preprocess =
            Preprocess { base: part.contract().clone(), ..self.head.preprocess.clone() };
        let layer = part.layers().last().map_or("", |layer| layer.name.as_str());
        note(
            PROGRAM,
            format_args!("fine-tuning from {first} on; outputs of the frozen part, up to {layer}:"),
        );
        let maps = self.features_of(&part, &preprocess, &self.args.extract)?;

        let tuned = self.train_tail(config, &old, start, &maps, &preprocess, rows, checkpoint)?;
        if tuned.best_epoch == 0 {
            note(
                PROGRAM,
                "fine-tuning found nothing better: the frozen base and its head stay as they are",
            );
            return Ok(false);
        }
        let tail = Tail { layers: tuned.tail.clone(), ..old };
        let bytes = self.quantized(&model, &tail, &maps, &preprocess, rows[0], first)?;
        self.write_tuned(&bytes, &tuned, rows)
    }

    /// Features by another base; of the same pictures as before, or none.
    fn features_of(
        &self,
        base: &Backbone,
        preprocess: &Preprocess,
        options: &ExtractOptions,
    ) -> Result<Features> {
        let features = extract(base, preprocess, self.items, options)?;
        if features.hashes != self.features.hashes {
            bail!(
                "{}: pictures have changed since they were first read; start again",
                self.args.about().display()
            );
        }
        Ok(features)
    }

    #[allow(clippy::too_many_arguments, reason = "what training takes, one step further down")]
    fn train_tail(
        &self,
        config: &TrainConfig,
        old: &Tail,
        start: Start,
        maps: &Features,
        preprocess: &Preprocess,
        [train_rows, val_rows]: [&[usize]; 2],
        checkpoint: &mut Checkpoint,
    ) -> Result<FineTuned> {
        let (head, from) = match start {
            Start::Head(layers) => (layers, None),
            Start::State(state) => (Default::default(), Some(*state)),
        };
        let source = |rows| Rows { features: maps, rows, pool: vgg_edge::head::Pool::Flatten };
        let (train_source, val_source) = (source(train_rows), source(val_rows));
        let (train_classes, val_classes) = (self.of(train_rows), self.of(val_rows));
        let train = Dataset { features: &train_source, labels: &train_classes };
        let val = (!val_rows.is_empty())
            .then_some(Dataset { features: &val_source, labels: &val_classes });
        let side = (preprocess.size / preprocess.base.stride) as usize;
        let model = Model {
            tail: &old.layers,
            head,
            shape: [side, side, preprocess.base.channels as usize],
            pool: self.head.pool,
        };
        let mut stopped = false;
        let done = from.as_ref().map_or(0, FineTuneState::epochs);
        let teller = self.teller(config, train_rows.len(), config.epochs, done, Stage::FineTune);
        let tuned = trainer::fine_tune(
            config,
            model,
            &train,
            val.as_ref(),
            from,
            &mut |progress| {
                stopped = interrupted();
                teller.tell(progress.at);
                // What comes before the first and after the last epoch takes long too.
                let due = matches!(progress.at, Moment::Epoch { stats, last } if last || stats.epoch == 0);
                if let Err(e) = checkpoint.save(|| progress.state(), stopped || due) {
                    teller.note(format_args!("no checkpoint was written: {e:#}"));
                }
                if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        );
        let tuned = tuned?;
        if stopped { Err(Interrupted.into()) } else { Ok(tuned) }
    }

    /// The file of the new base, quantized with training pictures.
    fn quantized(
        &self,
        model: &[u8],
        tail: &Tail,
        maps: &Features,
        preprocess: &Preprocess,
        train_rows: &[usize],
        first: &str,
    ) -> Result<Vec<u8>> {
        let side = (preprocess.size / preprocess.base.stride) as usize;
        let step = train_rows.len().div_ceil(CALIBRATION).max(1);
        let inputs: Vec<Map<u8>> = train_rows
            .iter()
            .step_by(step)
            .map(|&row| {
                let data = maps.row(row)?.into_owned();
                Ok(Map {
                    height: side,
                    width: side,
                    channels: preprocess.base.channels as usize,
                    data,
                })
            })
            .collect::<Result<_>>()?;
        let how = format!("fine-tuned from {first} on, {} px", preprocess.size);
        note(
            PROGRAM,
            format_args!(
                "quantizing {} layers with {} training pictures",
                tail.layers.len(),
                inputs.len()
            ),
        );
        let options = quant::quantize::Options::default();
        let bar = Meter::new(tail.layers.len() as u64, "layers");
        let progress = |layer: &str| {
            bar.next(layer);
            if interrupted() { Err(quant::Error::Interrupted) } else { Ok(()) }
        };
        match replace(model, tail, inputs, &options, self.base.kernel(), &how, progress) {
            Err(quant::Error::Interrupted) => Err(Interrupted.into()),
            other => Ok(other?),
        }
    }

    /// Validation accuracy and loss of the head that was written for the frozen base, in the
    /// arithmetic of the device; `None` if it is not there any more.
    fn frozen(&self) -> Option<(f64, f64)> {
        let head = Head::load(&self.args.output)
            .ok()
            .filter(|head| head.base == self.base.fingerprint())?;
        head.training.metrics.val_accuracy.zip(head.training.metrics.val_loss)
    }

    /// Measures the head on the new base, and writes both if they are better than what is there;
    /// whether it did.
    fn write_tuned(&self, bytes: &[u8], tuned: &FineTuned, rows: [&[usize]; 2]) -> Result<bool> {
        let path = self.args.fine_tune.path(&self.args.output);
        let base = &Backbone::from_bytes(&path, bytes, self.base.kernel())?;
        let preprocess =
            Preprocess { base: base.contract().clone(), ..self.head.preprocess.clone() };
        // Features of this base are used once, so they are not worth a place in the cache.
        let options = ExtractOptions { cache: None, ..self.args.extract.clone() };
        let features = self.features_of(base, &preprocess, &options)?;
        let words = format!(
            ", then fine-tuned from {} on with rmsprop at {}, best of {} epochs",
            self.args.fine_tune.first.as_deref().unwrap_or_default(),
            self.args.fine_tune.fine_tune_lr,
            tuned.history.len() - 1
        );
        let head = Head {
            base: base.fingerprint(),
            preprocess,
            feature_scales: base.feature_scales().to_vec(),
            ..self.head.clone()
        };
        // The f32 weights that the report compares with are those of the frozen base.
        let order = self
            .order
            .map(|order| ReportSettings { directory: order.directory.clone(), float: None });
        let job = Job {
            args: self.args,
            printer: self.printer,
            augmentation: None,
            config: self.config.clone(),
            base,
            items: self.items,
            features: &features,
            classes: self.classes,
            head,
            order: order.as_ref(),
            cancel: self.cancel,
            words,
        };
        let mut head = job.head_of(tuned.head.clone());
        let [_, val_rows] = rows;
        if !val_rows.is_empty() {
            let truth = job.of(val_rows);
            if !self.args.no_calibration {
                let logits = metrics::logits(&head, &features, val_rows)?;
                head.decision.temperature = metrics::temperature(&logits, &truth);
            }
            let best = tuned.history.iter().find(|stats| stats.epoch == tuned.best_epoch);
            let float = best.and_then(|stats| stats.val_accuracy).unwrap_or_default();
            let after = metrics::evaluate(&head, &features, val_rows, &truth)?;
            let now = format!("{float:.4} fine-tuned in f32, {:.4} in int8", after.accuracy);
            match self.frozen() {
                Some((accuracy, loss)) => {
                    note(PROGRAM, format_args!("validation accuracy {accuracy:.4} frozen, {now}"));
                    if (after.accuracy, -after.loss) <= (accuracy, -loss) {
                        note(
                            PROGRAM,
                            "nothing is gained in int8: the frozen base and its head stay as they are",
                        );
                        return Ok(false);
                    }
                }
                None => note(
                    PROGRAM,
                    format_args!("validation accuracy {now}; the head of the frozen base has gone"),
                ),
            }
        }
        // The base first: the head that is there belongs to the old one, and goes on doing so until
        // it is replaced.
        vgg_edge::durable_fs::write_bytes(&path, bytes)?;
        let trained = TrainedHead {
            layers: tuned.head.clone(),
            best_epoch: tuned.best_epoch,
            history: tuned.history.clone(),
        };
        job.finish(head, &trained, rows, None, false)?;
        note(
            PROGRAM,
            format_args!("wrote {}: give it to edge and host with --base", path.display()),
        );
        Ok(true)
    }
}
