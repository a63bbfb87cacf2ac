//! Training of a head with a validation set, and the state shared by all trainings of a run.

use std::ops::ControlFlow;

use anyhow::{Result, anyhow, bail};
use vgg_edge::head::{Activation, Dense, Head};
use vgg_edge::{Backbone, Fingerprint};
use vgg_edge_cli::terminal::{CancelToken, Interrupted, Printer};

use super::fine_tuning::Start;
use super::progress::{Extent, Stage, TrainProgress};
use super::settings::TrainSettings;
use crate::augment::{AugmentSettings, Variants};
use crate::checkpoint::{Checkpoint, Key};
use crate::dataset::Item;
use crate::features::extraction::{Features, Rows};
use crate::features::workers::FeatureWorkers;
use crate::metrics;
use crate::report::ReportSettings;
use crate::trainer::{
    self, Dataset, DenseWeights, FeatureSource, HeadState, Progress, ProgressEvent, TrainConfig,
    TrainError, TrainedHead,
};

/// Extension of the checkpoint of a head.
const CHECKPOINT: &str = "checkpoint";

/// Returns the extensions of the checkpoints that a run resumes from, that of the latest step
/// first.
pub(super) fn checkpoint_extensions(settings: &TrainSettings) -> &'static [&'static str] {
    match (settings.data.folds, &settings.fine_tune) {
        (Some(_), _) => &[super::cross_validation::CHECKPOINT],
        (None, Some(_)) => &[super::fine_tuning::CHECKPOINT, CHECKPOINT],
        (None, None) => &[CHECKPOINT],
    }
}

/// Rows of the features to train and to validate on.
#[derive(Clone, Copy)]
pub(super) struct SplitRows<'a> {
    pub train: &'a [usize],
    /// Empty without a validation set.
    pub val: &'a [usize],
}

/// HeadState shared by all trainings of a run.
pub(super) struct Job<'a> {
    pub settings: &'a TrainSettings,
    pub cancel: &'a CancelToken,
    pub printer: &'a Printer,
    pub augmentation: Option<&'a AugmentSettings>,
    /// Configuration of the trainer, without the weights of the classes.
    pub config: TrainConfig,
    pub base: &'a Backbone,
    pub items: &'a [Item],
    pub features: &'a Features,
    /// Class of each row.
    pub classes: &'a [usize],
    /// The head without layers, temperature and training record.
    pub head: Head,
    /// The report, if any.
    pub order: Option<&'a ReportSettings>,
    /// Text that is added to the settings in the training record.
    pub record: String,
}

impl Job<'_> {
    /// Returns the classes of some rows.
    pub fn classes_of(&self, rows: &[usize]) -> Vec<usize> {
        rows.iter().map(|&row| self.classes[row]).collect()
    }

    /// Returns the number of images of each class.
    pub fn counts(&self, rows: &[usize]) -> Vec<u32> {
        let mut counts = vec![0; self.head.labels.len()];
        rows.iter().for_each(|&row| counts[self.classes[row]] += 1);
        counts
    }

    /// Returns the configuration with the weights of the classes.
    pub fn weighted_config(&self, train_rows: &[usize]) -> Result<TrainConfig> {
        let weights = &self.settings.head.class_weights;
        let class_weights = weights.resolve(&self.head.labels, &self.counts(train_rows))?;
        Ok(TrainConfig { class_weights, ..self.config.clone() })
    }

    /// Trains on some rows.
    pub fn train(
        &self,
        config: &TrainConfig,
        rows: SplitRows<'_>,
        from: Option<HeadState>,
        on_event: &mut dyn FnMut(&Progress<HeadState>) -> ControlFlow<()>,
    ) -> Result<TrainedHead, TrainError> {
        let source = |rows| Rows { features: self.features, rows, pool: self.head.pool };
        let (train_source, val_source) = (source(rows.train), source(rows.val));
        let (train_classes, val_classes) = (self.classes_of(rows.train), self.classes_of(rows.val));
        let variants;
        let train_source: &dyn FeatureSource = match self.augmentation {
            None => &train_source,
            Some(augmentation) => {
                let threads = self.settings.data.extract.threads;
                variants = Variants::new(
                    augmentation.clone(),
                    config.seed,
                    FeatureWorkers::new(self.base, &self.head.preprocess, threads),
                    self.items,
                    train_source,
                    self.cancel,
                );
                &variants
            }
        };
        let train = Dataset { features: train_source, labels: &train_classes };
        let val = (!rows.val.is_empty())
            .then_some(Dataset { features: &val_source, labels: &val_classes });
        trainer::train(config, &train, val.as_ref(), from, on_event)
    }

    /// Returns the head with these layers.
    pub fn head_of(&self, layers: Vec<DenseWeights>) -> Head {
        let count = layers.len();
        let layers = layers.into_iter().enumerate().map(|(index, layer)| Dense {
            inputs: layer.inputs as u32,
            outputs: layer.outputs as u32,
            activation: if index + 1 < count { Activation::Relu } else { Activation::Linear },
            kernel: layer.kernel,
            bias: layer.bias,
        });
        Head { layers: layers.collect(), ..self.head.clone() }
    }

    /// Returns the checkpoint of a training with these settings on these rows. The text of the
    /// settings is compared with that of the file.
    pub fn checkpoint(&self, extension: &str, settings: &str, rows: &[&[usize]]) -> Checkpoint {
        let (pool, preprocess) = (self.head.pool, &self.head.preprocess);
        let variants = super::record::augmentation(self.settings);
        let key = Key {
            base: self.head.base,
            settings: format!("{settings}, {pool:?}, {preprocess:?}{variants}"),
            data: self.rows_fingerprint(rows),
        };
        let every = self.settings.checkpoint.every;
        Checkpoint::new(&self.settings.output.head, extension, key, every)
    }

    /// Returns the checkpoint of the head.
    pub fn head_checkpoint(&self, config: &TrainConfig, rows: SplitRows<'_>) -> Checkpoint {
        self.checkpoint(CHECKPOINT, &format!("{config:?}"), &[rows.train, rows.val])
    }

    /// Adds to a cancellation which files are there once the head is written; other errors stay as
    /// they are.
    pub fn after_head(&self, error: anyhow::Error, step: &str) -> anyhow::Error {
        if !error.is::<Interrupted>() {
            return error;
        }
        let output = &self.settings.output.head;
        let head = output.display();
        match Checkpoint::find(output, checkpoint_extensions(self.settings)) {
            Some(path) => anyhow!(
                "interrupted {step}: {head} is written; --resume continues from {}",
                path.display()
            ),
            None => anyhow!("interrupted {step}: {head} is written"),
        }
    }

    /// Starts to report the progress of a training on `samples` images. Augmented trainings have no
    /// bar: the variants, which take most of the time, have their own.
    pub fn progress(
        &self,
        config: &TrainConfig,
        samples: usize,
        [epochs, done]: [usize; 2],
        stage: Stage,
    ) -> TrainProgress<'_> {
        let extent = Extent { epochs, batches: samples.div_ceil(config.batch_size), done };
        let json = self.settings.output.json;
        TrainProgress::new(self.printer, stage, json, extent, self.augmentation.is_none())
    }

    /// Trains with a validation set, beside a checkpoint, and fine-tunes if that is requested.
    pub fn train_validated(&self, rows: SplitRows<'_>) -> Result<()> {
        let config = self.weighted_config(rows.train)?;
        if let Some(state) = self.resumed_tuning(&config, rows)? {
            return self.fine_tune(&config, Start::HeadState(Box::new(state)), rows);
        }
        let mut checkpoint = self.head_checkpoint(&config, rows);
        let from = self.resumed_head(&checkpoint)?;
        let mut stopped = false;
        let mut saved = Ok(());
        let done = from.as_ref().map_or(0, HeadState::epochs);
        let epochs = [config.epochs, done];
        let report = self.progress(&config, rows.train.len(), epochs, Stage::Head);
        let trained = self.train(&config, rows, from, &mut |progress| {
            let last = matches!(progress.at, ProgressEvent::Epoch { last: true, .. });
            stopped = self.cancel.is_canceled() && !last;
            report.report(progress.at);
            // Until fine-tuning has a state of its own, its interruption resumes from the complete
            // head.
            let now = stopped || (last && self.settings.fine_tune.is_some());
            saved = checkpoint.save(|| progress.state(), now);
            if let (Err(e), false) = (&saved, stopped) {
                // The training is worth more than the checkpoint.
                report.warn(format_args!("cannot write the checkpoint: {e:#}"));
            }
            if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        drop(report);
        let mut trained = match trained {
            Err(TrainError::Stopped) => {
                bail!(stopped_at("in the first epoch: there is no head yet", &checkpoint, saved))
            }
            trained => trained?,
        };

        let layers = std::mem::take(&mut trained.layers);
        let frozen = self.settings.fine_tune.is_some().then(|| layers.clone());
        let mut head = self.head_of(layers);
        if !rows.val.is_empty() && self.settings.head.calibrate {
            let logits = metrics::logits(&head, self.features, rows.val)?;
            head.decision.temperature = metrics::temperature(&logits, &self.classes_of(rows.val));
        }
        self.finish(head, &trained, rows, None, stopped)?;
        if stopped {
            let epoch = trained.history.len();
            let step = format!("after epoch {epoch}: wrote the best head so far");
            bail!(stopped_at(&step, &checkpoint, saved));
        }
        match frozen {
            Some(layers) => self.fine_tune(&config, Start::Head(&layers), rows),
            None => Ok(checkpoint.remove()?),
        }
    }

    /// Returns the state of an interrupted training of the head, if it is to be resumed.
    fn resumed_head(&self, checkpoint: &Checkpoint) -> Result<Option<HeadState>> {
        if self.settings.checkpoint.resume {
            let state: HeadState = checkpoint.load()?;
            log::info!("resuming after epoch {}", state.epochs());
            return Ok(Some(state));
        }
        if checkpoint.path().exists() {
            let path = checkpoint.path().display();
            log::warn!(
                "{path} of an interrupted run is not used (--resume would continue from it)"
            );
        }
        Ok(None)
    }

    /// Returns one hash over contents, classes and order of the rows of some lists.
    fn rows_fingerprint(&self, lists: &[&[usize]]) -> Fingerprint {
        let mut bytes = Vec::new();
        for rows in lists {
            bytes.extend_from_slice(&(rows.len() as u64).to_le_bytes());
            for &row in *rows {
                bytes.extend_from_slice(&self.features.hashes[row].0);
                bytes.extend_from_slice(&(self.classes[row] as u64).to_le_bytes());
            }
        }
        Fingerprint::of(&bytes)
    }
}

/// Returns the message of a cancellation, and whether it can be resumed.
fn stopped_at(step: &str, checkpoint: &Checkpoint, saved: Result<()>) -> String {
    match saved {
        Ok(()) => {
            format!("interrupted {step}; --resume continues from {}", checkpoint.path().display())
        }
        Err(e) => format!("interrupted {step}, and the checkpoint cannot be written: {e:#}"),
    }
}
