//! Settings of a training: what the work takes instead of flags.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use vgg_edge::Backbone;
use vgg_edge::head::Pool;
use vgg_edge::image::resize::Filter;
use vgg_edge::preprocess::{Fit, Preprocess};
use vgg_edge_cli::options::BaseOptions;
use vgg_edge_cli::terminal::UsageError;

use crate::augment::AugmentSettings;
use crate::features::extraction::ExtractSettings;
use crate::report::ReportOptions;
use crate::trainer::{Optimizer, Schedule, TrainConfig};

/// Settings of a training.
pub struct TrainSettings {
    /// Data to train and validate on.
    pub data: DataSettings,
    /// The backbone.
    pub base: BaseOptions,
    /// The dense layers and their decision.
    pub head: HeadSettings,
    /// How the head is trained.
    pub optimizer: OptimizerSettings,
    /// Augmentation, if any.
    pub augmentation: Option<AugmentSettings>,
    /// Training of the last layers of the backbone, if any.
    pub fine_tune: Option<FineTuneSettings>,
    /// Checkpoints.
    pub checkpoint: CheckpointSettings,
    /// Output files.
    pub output: OutputSettings,
}

/// Data to train and validate on.
pub struct DataSettings {
    /// Images or features.
    pub source: DataSource,
    /// Fraction of each class to validate on, unless the data are split.
    pub val_split: f64,
    /// Number of folds of a cross-validation.
    pub folds: Option<usize>,
    /// Extraction of features, and the number of threads.
    pub extract: ExtractSettings,
}

/// Source of the features.
pub enum DataSource {
    /// A directory of images, whose features are extracted.
    Images {
        /// The directory.
        directory: PathBuf,
        /// Height and width of the input in pixels.
        size: u32,
        /// How an image is fitted into the input.
        fit: Fit,
        /// Resampling filter; `None` for the one that the backbone recommends.
        resize: Option<Filter>,
    },
    /// Extracted features: a file, or the directory of all parts.
    Features {
        /// The file or directory.
        path: PathBuf,
        /// Directory of their images, if it is available.
        images: Option<PathBuf>,
    },
}

/// The dense layers and their decision.
pub struct HeadSettings {
    /// Pooling of the feature map.
    pub pool: Pool,
    /// Widths of the hidden layers.
    pub units: Vec<usize>,
    /// Dropout rate of the hidden layers.
    pub dropout: f32,
    /// Batch normalization in each hidden layer.
    pub batch_norm: bool,
    /// Strength of the L2 penalty.
    pub l2: f64,
    /// Weights of the classes.
    pub class_weights: ClassWeights,
    /// Fraction of the target that is spread over all classes.
    pub label_smoothing: f64,
    /// Whether a temperature is fitted on the validation set.
    pub calibrate: bool,
    /// Score below which the device reports `unknown`.
    pub threshold: f32,
}

/// Weights of the classes in the loss.
#[derive(Clone, Debug, PartialEq)]
pub enum ClassWeights {
    /// All 1.
    None,
    /// `n / (k * n_c)` with `n` images in `k` classes, `n_c` of them in class c (scikit-learn's
    /// `balanced`).
    Balanced,
    /// Weights of some classes by name; the others have 1.
    Named(Vec<(String, f64)>),
}

/// How the head is trained.
pub struct OptimizerSettings {
    /// Optimizer and learning rate.
    pub optimizer: Optimizer,
    /// Schedule of the learning rate.
    pub schedule: Schedule,
    /// Maximum number of epochs.
    pub epochs: usize,
    /// Epochs without improvement after which training stops.
    pub patience: Option<usize>,
    /// Images per batch.
    pub batch_size: usize,
    /// Random seed.
    pub seed: u64,
}

/// Training of the last layers of the backbone.
pub struct FineTuneSettings {
    /// First block or layer that is trained.
    pub first: String,
    /// Output file of the new backbone.
    pub base: PathBuf,
    /// Learning rate.
    pub lr: f64,
    /// Maximum number of epochs.
    pub epochs: usize,
    /// Epochs without improvement after which training stops.
    pub patience: Option<usize>,
}

/// Checkpoints of a training.
pub struct CheckpointSettings {
    /// Whether an interrupted training is continued.
    pub resume: bool,
    /// Time between two checkpoints.
    pub every: Duration,
}

/// Output files of a training.
pub struct OutputSettings {
    /// Output file of the head.
    pub head: PathBuf,
    /// Whether stdout is NDJSON.
    pub json: bool,
    /// The report.
    pub report: ReportOptions,
}

/// A set of defaults for the head and the optimizer.
#[derive(Clone, Copy, Debug)]
pub enum Recipe {
    /// Adam with early stopping.
    Fast,
    /// The values of the Keras tutorial.
    Seed,
}

impl Recipe {
    /// Returns the head.
    pub fn head(self) -> HeadSettings {
        HeadSettings {
            pool: Pool::Flatten,
            units: vec![256],
            dropout: 0.5,
            batch_norm: false,
            l2: 0.0,
            class_weights: ClassWeights::None,
            label_smoothing: 0.0,
            calibrate: true,
            threshold: 0.0,
        }
    }

    /// Returns the optimizer.
    pub fn optimizer(self) -> OptimizerSettings {
        let schedule = Schedule::Constant;
        match self {
            Self::Fast => OptimizerSettings {
                optimizer: Optimizer::adam(1e-3),
                schedule,
                epochs: 60,
                patience: Some(10),
                batch_size: 32,
                seed: 0,
            },
            Self::Seed => OptimizerSettings {
                optimizer: Optimizer::rms_prop(2e-5),
                schedule,
                epochs: 100,
                patience: None,
                batch_size: 100,
                seed: 0,
            },
        }
    }

    /// Returns the configuration of the trainer.
    pub fn config(self, classes: usize, seed: u64) -> TrainConfig {
        config(&self.head(), &OptimizerSettings { seed, ..self.optimizer() }, classes)
    }
}

/// Returns the configuration of the trainer, without the weights of the classes.
fn config(head: &HeadSettings, optimizer: &OptimizerSettings, classes: usize) -> TrainConfig {
    TrainConfig {
        units: head.units.clone(),
        batch_norm: head.batch_norm,
        dropout: head.dropout,
        l2: head.l2,
        class_weights: Vec::new(),
        label_smoothing: head.label_smoothing,
        classes,
        optimizer: optimizer.optimizer,
        schedule: optimizer.schedule,
        epochs: optimizer.epochs,
        batch_size: optimizer.batch_size,
        seed: optimizer.seed,
        patience: optimizer.patience,
        shuffle: true,
        keep_last: false,
    }
}

impl TrainSettings {
    /// Checks the settings as far as possible without reading files.
    ///
    /// # Errors
    /// [`UsageError`] for a value out of range or settings that contradict each other.
    pub fn check(&self) -> Result<()> {
        let config = self.config(2);
        config.validate().map_err(|e| UsageError(e.to_string()))?;
        if let Some(fine_tune) = &self.fine_tune {
            let tuning = fine_tune.config(&config).validate();
            tuning.map_err(|e| UsageError(format!("fine-tuning: {e}")))?;
        }
        let val_split = self.data.val_split;
        if !(val_split > 0.0 && val_split < 1.0) {
            bail!(UsageError(format!("--val-split must be between 0 and 1, not {val_split}")));
        }
        let threshold = self.head.threshold;
        if !(0.0..=1.0).contains(&threshold) {
            bail!(UsageError(format!("--threshold must be between 0 and 1, not {threshold}")));
        }
        if self.augmentation.is_some() && self.fine_tune.is_some() {
            bail!(UsageError(
                "--fine-tune does not augment images; leave out --fine-tune or the augmentation"
                    .into()
            ));
        }
        let needs_images = [
            (self.augmentation.is_some(), "augmentation"),
            (self.fine_tune.is_some(), "--fine-tune"),
            (self.output.report.float.is_some(), "--float"),
        ];
        if let DataSource::Features { images: None, .. } = self.data.source
            && let Some((_, flag)) = needs_images.iter().find(|(asked, _)| *asked)
        {
            bail!(UsageError(format!(
                "{flag} needs the images themselves: name their directory beside --features"
            )));
        }
        Ok(())
    }

    /// Returns the configuration of the trainer, without the weights of the classes.
    pub fn config(&self, classes: usize) -> TrainConfig {
        config(&self.head, &self.optimizer, classes)
    }

    /// Checks that the head fits into a head file.
    ///
    /// # Errors
    /// [`UsageError`] otherwise.
    pub fn check_head_size(
        &self,
        config: &TrainConfig,
        preprocess: &Preprocess,
    ) -> Result<(), UsageError> {
        let mut inputs = self.head.pool.len(preprocess) as u64;
        let mut bytes = 0u64;
        for outputs in config.units.iter().copied().chain([config.outputs()]) {
            let outputs = outputs as u64;
            bytes = bytes.saturating_add(
                (inputs.saturating_add(1)).saturating_mul(outputs).saturating_mul(4),
            );
            inputs = outputs;
        }
        // Labels, scales and the training record.
        const REST: u64 = 1 << 20;
        let limit = vgg_edge::head::MAX_BYTES - REST;
        if bytes > limit {
            return Err(UsageError(format!(
                "the head would have {} MB of weights, but a head file holds at most {}; use \
                 --pool avg, fewer --units or a smaller --size",
                bytes / 1_000_000,
                limit / 1_000_000
            )));
        }
        Ok(())
    }
}

impl DataSource {
    /// Returns the path that messages name: the image directory, or the features.
    pub fn path(&self) -> &Path {
        match self {
            Self::Images { directory, .. } => directory,
            Self::Features { path, images } => images.as_deref().unwrap_or(path),
        }
    }
}

impl FineTuneSettings {
    /// Returns the configuration of fine-tuning, from that of the head.
    pub fn config(&self, head: &TrainConfig) -> TrainConfig {
        TrainConfig {
            optimizer: Optimizer::rms_prop(self.lr),
            epochs: self.epochs,
            patience: self.patience,
            batch_size: head.batch_size.min(32),
            ..head.clone()
        }
    }

    /// Checks, before any work is done, that the backbone has the layers and that the new one does
    /// not replace another file of the run.
    ///
    /// # Errors
    /// [`UsageError`] otherwise; an output file that cannot be written.
    pub fn check(&self, head: &Path, base: &Backbone) -> Result<()> {
        quant::tail::tail(&super::fine_tuning::model_bytes(base)?, &self.first)
            .map_err(|e| UsageError(format!("--fine-tune: {e}")))?;
        if self.base == head || self.base == base.path() {
            bail!(UsageError(format!(
                "--tuned-base: {} is already used by this run; name another file",
                self.base.display()
            )));
        }
        Ok(vgg_edge::durable_fs::check_writable(&self.base)?)
    }
}

impl ClassWeights {
    /// Returns the weight of each class; empty if all are 1. `counts` are the numbers of training
    /// images.
    ///
    /// # Errors
    /// [`UsageError`] for a name that is not a class.
    pub fn resolve(&self, labels: &[String], counts: &[u32]) -> Result<Vec<f64>, UsageError> {
        match self {
            Self::None => Ok(Vec::new()),
            Self::Balanced => {
                let total = counts.iter().sum::<u32>();
                let each = f64::from(total) / labels.len() as f64;
                Ok(counts.iter().map(|&count| each / f64::from(count.max(1))).collect())
            }
            Self::Named(named) => {
                let mut weights = vec![1.0; labels.len()];
                for (name, weight) in named {
                    let Some(class) = labels.iter().position(|label| label == name) else {
                        let known = labels.join(", ");
                        return Err(UsageError(format!(
                            "--class-weights: unknown class {name} (known classes: {known})"
                        )));
                    };
                    weights[class] = *weight;
                }
                Ok(weights)
            }
        }
    }
}
