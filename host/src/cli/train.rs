//! `host train`: a folder of pictures to a head.

mod fine_tune;
mod progress;

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use serde_json::json;
use vgg_edge::head::{
    Activation, Decision, Dense, Head, Metrics, Output, TrainingRecord, is_background_name,
};
use vgg_edge::image::resize::Filter;
use vgg_edge::preprocess::Preprocess;
use vgg_edge::{Backbone, Fingerprint};
use vgg_edge_cli::options::FitName;
use vgg_edge_cli::terminal::{CancelToken, Interrupted, Printer, UsageError, interrupted, note};

use self::fine_tune::{FineTuneOptions, Start};
use self::progress::{Stage, Teller};
use super::head_options::HeadOptions;
use crate::PROGRAM;
use crate::augment::{Augmentation, Variants, VariantsOptions};
use crate::checkpoint::{Checkpoint, Key};
use crate::cli::options::{BaseOptions, ExtractOptions};
use crate::dataset::folds::{self, Done, FoldResult, Summary};
use crate::dataset::{self, Item, Pool, Splits};
use crate::features::extraction::{Features, Rows, extract};
use crate::features::parts::Set;
use crate::metrics;
use crate::report::{self, ReportOptions, ReportSettings};
use crate::trainer::{
    self, Dataset, DenseWeights, EpochStats, FeatureSource, Moment, Optimizer, Progress, State,
    TrainConfig, TrainError, TrainedHead,
};

/// Ending of the checkpoint of a head in training.
const CHECKPOINT: &str = "checkpoint";

/// Ending of the checkpoint of a cross-validation.
const FOLDS_CHECKPOINT: &str = "folds.checkpoint";

/// Trains a head on a folder of pictures
///
/// DATA has a sub-folder a class, or train/ and val/ (also validation/, test/) over such folders.
/// Without a validation folder a share of each class is set aside (--val-split). The epoch with the
/// best validation accuracy is kept.
///
/// With --features the pictures are not looked at: their features were extracted before, in parts,
/// and the head is the same to the byte.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  host train photos -o head.postcard\n  \
    host train photos -o head.postcard --size 128 --units 512 --cache ~/.cache/vgg-edge\n  \
    host train photos -o head.postcard --size 224 --pool avg --units 256,128 --batch-norm --lr-schedule cosine\n  \
    host train photos -o head.postcard --augment   # on random variants; look at some with host augment\n  \
    host train photos -o head.postcard --folds 5 --class-weights balanced\n  \
    host train photos -o head.postcard --resume   # after Ctrl-C\n  \
    host train photos -o head.postcard --report report   # and look at report/report.html\n  \
    host train cats_and_dogs -o head.postcard --recipe seed   # the Keras tutorial's values\n  \
    host train --features photos.features -o head.postcard   # made by host extract --shard and host merge")]
pub struct Args {
    /// Folder of pictures; beside --features only for --augment, --fine-tune, --float, and pictures
    /// in a report
    #[arg(required_unless_present = "features")]
    data: Option<PathBuf>,

    /// Trains on these features: a file of host merge, or the folder of all parts
    #[arg(long, value_name = "FILE|DIR", conflicts_with_all = ["size", "fit", "resize", "cache", "strict"])]
    features: Option<PathBuf>,

    /// Where the head goes; replaced when training is done, or by the best head so far at Ctrl-C
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    #[command(flatten)]
    base: BaseOptions,

    #[command(flatten)]
    extract: ExtractOptions,

    #[command(flatten)]
    shape: HeadOptions,

    #[command(flatten)]
    fine_tune: FineTuneOptions,

    #[command(flatten)]
    augment: VariantsOptions,

    /// Height and width of the input in pixels, a multiple of 32
    #[arg(long, value_name = "PIXELS", default_value_t = 64)]
    size: u32,

    /// Which part of a picture is used
    #[arg(long, value_enum, default_value_t = FitName::Stretch)]
    fit: FitName,

    /// How it is resized [default: what the base recommends]
    #[arg(long, value_enum)]
    resize: Option<ResizeName>,

    /// Sets of defaults for the options below: `fast` is Adam with early stopping, `seed` the Keras
    /// tutorial (256 units, dropout 0.5, RMSprop at 2e-5, 100 epochs, batches of 100)
    #[arg(long, value_enum, default_value_t = Recipe::Fast)]
    recipe: Recipe,

    /// Width of the hidden layer, or widths of several, such as 256,128; 0 for none [fast: 256,
    /// seed: 256]
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    units: Option<Vec<u32>>,

    /// Share of hidden values set to zero while training [fast: 0.5, seed: 0.5]
    #[arg(long, value_name = "SHARE")]
    dropout: Option<f32>,

    /// How weights are stepped [fast: adam, seed: rmsprop]
    #[arg(long, value_enum)]
    optimizer: Option<OptimizerName>,

    /// Learning rate [fast: 0.001, seed: 0.00002]
    #[arg(long, value_name = "RATE")]
    lr: Option<f64>,

    /// Most passes over the pictures [fast: 60, seed: 100]
    #[arg(long, value_name = "N")]
    epochs: Option<u32>,

    /// Stops after so many epochs without a better one; 0 runs all [fast: 10, seed: 0]
    #[arg(long, value_name = "EPOCHS")]
    patience: Option<u32>,

    /// Pictures a step [fast: 32, seed: 100]
    #[arg(long, value_name = "N")]
    batch_size: Option<u32>,

    /// Share of each class to validate on, if DATA has no validation folder
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    val_split: f64,

    /// Leaves the scores as training made them; else a temperature found on the validation pictures
    /// makes them mean what they say
    #[arg(long)]
    no_calibration: bool,

    /// The device says unknown below this score, 0 to 1
    #[arg(long, value_name = "SCORE", default_value_t = 0.0)]
    threshold: f32,

    /// Seed of every random choice: the same seed gives the same file, whatever the number of
    /// threads (the date in it is that of SOURCE_DATE_EPOCH, if that is set)
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    #[command(flatten)]
    report: ReportOptions,

    /// Prints NDJSON: an object an epoch, then the result
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Recipe {
    Fast,
    Seed,
}

impl Recipe {
    fn optimizer(self) -> OptimizerName {
        match self {
            Self::Fast => OptimizerName::Adam,
            Self::Seed => OptimizerName::Rmsprop,
        }
    }

    /// What is trained with unless flags say otherwise.
    pub fn config(self, classes: usize, seed: u64) -> TrainConfig {
        let common = TrainConfig {
            units: vec![256],
            dropout: 0.5,
            classes,
            seed,
            shuffle: true,
            ..TrainConfig::default()
        };
        match self {
            Self::Fast => TrainConfig {
                optimizer: Optimizer::adam(1e-3),
                epochs: 60,
                patience: Some(10),
                batch_size: 32,
                ..common
            },
            Self::Seed => TrainConfig {
                optimizer: Optimizer::rms_prop(2e-5),
                epochs: 100,
                patience: None,
                batch_size: 100,
                ..common
            },
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum OptimizerName {
    Rmsprop,
    Adam,
    Sgd,
}

/// The names of [`Filter`] on the command line.
#[derive(Clone, Copy, ValueEnum)]
pub enum ResizeName {
    /// Pillow's BILINEAR, without aliasing
    Bilinear,
    /// Pillow's NEAREST, the default of Keras
    Nearest,
}

impl From<ResizeName> for Filter {
    fn from(name: ResizeName) -> Self {
        match name {
            ResizeName::Bilinear => Self::Bilinear,
            ResizeName::Nearest => Self::Nearest,
        }
    }
}

impl Args {
    fn config(&self, classes: usize) -> Result<TrainConfig> {
        let recipe = self.recipe.config(classes, self.seed);
        let lr = self.lr.unwrap_or(recipe.optimizer.lr());
        let config = TrainConfig {
            units: self.units.as_deref().map_or(Ok(recipe.units.clone()), HeadOptions::units)?,
            dropout: self.dropout.unwrap_or(recipe.dropout),
            optimizer: match self.optimizer.unwrap_or(self.recipe.optimizer()) {
                OptimizerName::Rmsprop => Optimizer::rms_prop(lr),
                OptimizerName::Adam => Optimizer::adam(lr),
                OptimizerName::Sgd => Optimizer::sgd(lr),
            },
            epochs: self.epochs.map_or(recipe.epochs, |epochs| epochs as usize),
            batch_size: self.batch_size.map_or(recipe.batch_size, |pictures| pictures as usize),
            patience: match self.patience {
                Some(epochs) => (epochs > 0).then_some(epochs as usize),
                None => recipe.patience,
            },
            ..recipe
        };
        let config = self.shape.apply(config)?;
        config.validate().map_err(|e| UsageError(e.to_string()))?;
        self.fine_tune
            .config(&config)
            .validate()
            .map_err(|e| UsageError(format!("fine-tuning: {e}")))?;
        if !(self.val_split > 0.0 && self.val_split < 1.0) {
            bail!(UsageError(format!(
                "--val-split must lie between 0 and 1, not at {}",
                self.val_split
            )));
        }
        if !(0.0..=1.0).contains(&self.threshold) {
            bail!(UsageError(format!(
                "--threshold must lie between 0 and 1, not at {}",
                self.threshold
            )));
        }
        Ok(config)
    }

    /// Whether the head will be small enough for its file.
    fn check_head_size(&self, config: &TrainConfig, preprocess: &Preprocess) -> Result<()> {
        let mut inputs = vgg_edge::head::Pool::from(self.shape.pool).len(preprocess) as u64;
        let mut bytes = 0u64;
        for outputs in config.units.iter().copied().chain([config.outputs()]) {
            let outputs = outputs as u64;
            bytes = bytes.saturating_add(
                (inputs.saturating_add(1)).saturating_mul(outputs).saturating_mul(4),
            );
            inputs = outputs;
        }
        // Labels, scales and the record of the training.
        const REST: u64 = 1 << 20;
        let most = vgg_edge::head::MAX_BYTES - REST;
        if bytes > most {
            bail!(UsageError(format!(
                "the head would have {} MB of weights, and a head file has at most {}: take --pool avg, fewer --units or a smaller size",
                bytes / 1_000_000,
                most / 1_000_000
            )));
        }
        Ok(())
    }

    /// Endings of the checkpoints that such a run goes on from, that of the latest step first.
    fn checkpoints(&self) -> &'static [&'static str] {
        match (self.shape.folds, &self.fine_tune.first) {
            (Some(_), _) => &[FOLDS_CHECKPOINT],
            (None, Some(_)) => &[fine_tune::CHECKPOINT, CHECKPOINT],
            (None, None) => &[CHECKPOINT],
        }
    }
}

/// Runs the command.
pub fn run(args: Args, cancel: &CancelToken) -> Result<()> {
    // The command line is looked at whole before anything is read.
    args.config(2)?;
    let augmentation = args.augment.resolve()?;
    if augmentation.is_some() && args.fine_tune.first.is_some() {
        let words = "--fine-tune trains on the pictures as they are; leave it or the flags of augmentation out";
        bail!(UsageError(words.into()));
    }
    let base = args.base.load()?;
    let source = args.source(&base)?;
    let labels = source.labels().to_vec();
    let config = args.config(labels.len())?;
    // Before minutes of work rather than after.
    vgg_edge::durable_fs::check_writable(&args.output)?;
    args.check_head_size(&config, source.preprocess())?;
    args.fine_tune.check(&args.output, &base)?;
    let order = args.report.prepare(&base)?;
    args.shape.class_weights(&labels, &vec![1; labels.len()])?;
    if args.shape.resume {
        Checkpoint::check_exists(&args.output, args.checkpoints())?;
    }
    if args.fine_tune.first.is_some() && args.report.float.is_some() {
        note(
            PROGRAM,
            "--float is of the frozen base: the report of a fine-tuned one does not compare with it",
        );
    }

    source.tell(&args);
    let (pictures, features, preprocess) = source.load(&args, &base, &labels)?;
    let classes = pictures.classes_of(&features.items);
    let (train_rows, val_rows) = match args.shape.folds {
        Some(_) => ((0..classes.len()).collect(), Vec::new()),
        None => pictures.rows(&features.items, &features.hashes, args.val_split, args.seed),
    };
    // Only a folder that is split, or a picture in two classes, brings a content to both sides.
    let known: HashSet<_> = train_rows.iter().map(|&row| features.hashes[row]).collect();
    let copies = val_rows.iter().filter(|&&row| known.contains(&features.hashes[row])).count();
    if copies > 0 {
        note(
            PROGRAM,
            format_args!(
                "{copies} of the pictures to validate on are copies of pictures to train on: the head knows them"
            ),
        );
    }
    let background = (0..labels.len()).filter(|&label| is_background_name(&labels[label]));
    let head = Head {
        base: base.fingerprint(),
        preprocess,
        feature_scales: base.feature_scales().to_vec(),
        labels: labels.clone(),
        layers: Vec::new(),
        output: if labels.len() == 2 { Output::Sigmoid } else { Output::Softmax },
        decision: Decision { threshold: args.threshold, ..Decision::default() },
        training: TrainingRecord::default(),
        pool: args.shape.pool.into(),
        background: background.map(|label| label as u32).collect(),
    };
    let printer = Printer::default();
    let job = Job {
        args: &args,
        printer: &printer,
        augmentation,
        config,
        base: &base,
        items: &pictures.items,
        features: &features,
        classes: &classes,
        head,
        order: order.as_ref(),
        cancel,
        words: args.augment.words(),
    };
    if let Some(class) = job.counts(&train_rows).iter().position(|&count| count == 0) {
        bail!("{}: no picture of class {} could be read", args.about().display(), labels[class]);
    }
    // All of it on the threads that were asked for.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.extract.threads()).build()?;
    pool.install(|| match args.shape.folds {
        Some(folds) => job.cross_validated(folds as usize, &train_rows),
        None => job.validated(&train_rows, &val_rows),
    })?;
    printer.end().context("standard output")
}

/// Where features come from.
enum Source {
    /// They are extracted now.
    Folder(Splits, Preprocess),
    /// They were extracted before.
    Features(Set),
}

impl Args {
    /// What is trained on, for messages: the data folder, or the features.
    fn about(&self) -> &Path {
        self.data.as_deref().or(self.features.as_deref()).unwrap_or(Path::new(""))
    }

    /// What is named on the command line, looked at but not read.
    fn source(&self, base: &Backbone) -> Result<Source> {
        let Some(path) = &self.features else {
            let resize = self.resize.map_or(base.contract().resize, Into::into);
            let preprocess =
                Preprocess::new(base.contract().clone(), self.size, self.fit.into(), resize)?;
            return Ok(Source::Folder(dataset::open(self.about())?, preprocess));
        };
        let needs = [
            (self.augment.resolve()?.is_some(), "augmentation"),
            (self.fine_tune.first.is_some(), "--fine-tune"),
            (self.report.float.is_some(), "--float"),
        ];
        if let (None, Some((_, flag))) = (&self.data, needs.iter().find(|(asked, _)| *asked)) {
            bail!(UsageError(format!(
                "{flag} needs the pictures themselves: name their folder beside --features"
            )));
        }
        let set = Set::open(path)?;
        set.check_base(base)?;
        Ok(Source::Features(set))
    }
}

impl Source {
    fn preprocess(&self) -> &Preprocess {
        match self {
            Self::Folder(_, preprocess) => preprocess,
            Self::Features(set) => &set.run().preprocess,
        }
    }

    fn labels(&self) -> &[String] {
        match self {
            Self::Folder(splits, _) => &splits.train.classes,
            Self::Features(set) => &set.run().data.classes,
        }
    }

    /// Says what is trained and validated on.
    fn tell(&self, args: &Args) {
        let val = match self {
            Self::Folder(splits, _) => {
                let ignored = splits.train.ignored
                    + splits.val.as_ref().map_or(0, |(_, folder)| folder.ignored);
                if ignored > 0 {
                    note(
                        PROGRAM,
                        format_args!(
                            "{ignored} files without the name of a picture are not looked at"
                        ),
                    );
                }
                splits.val.as_ref().map(|(path, _)| path.display().to_string())
            }
            Self::Features(set) => {
                set.run().data.train.map(|_| "the validation folder's features".to_owned())
            }
        };
        match (val, args.shape.folds) {
            (_, Some(folds)) => {
                note(PROGRAM, format_args!("cross-validating over {folds} parts of all pictures"))
            }
            (Some(val), None) => note(PROGRAM, format_args!("validating on {val}")),
            (None, None) => {
                note(
                    PROGRAM,
                    format_args!("setting aside {} of each class for validation", args.val_split),
                );
            }
        }
    }

    /// Extracts features, or finds where they are.
    fn load(
        self,
        args: &Args,
        base: &Backbone,
        labels: &[String],
    ) -> Result<(Pool, Features, Preprocess)> {
        let check = |pictures: &Pool| match args.shape.folds {
            Some(folds) => folds::check_counts(
                pictures.items.iter().map(|item| item.class),
                labels,
                folds as usize,
            ),
            None => Ok(()),
        };
        match self {
            Self::Folder(splits, preprocess) => {
                let pictures = splits.pool();
                check(&pictures)?;
                let features = extract(base, &preprocess, &pictures.items, &args.extract)?;
                Ok((pictures, features, preprocess))
            }
            Self::Features(set) => {
                // Only what reads or names pictures needs their paths.
                let names = args.data.is_some() || args.report.report.is_some();
                let root = args.data.as_deref().unwrap_or(Path::new(""));
                let (pictures, features) = set.features(root, names)?;
                check(&pictures)?;
                let skipped = features.skipped.len();
                if skipped > 0 {
                    note(
                        PROGRAM,
                        format_args!(
                            "{skipped} pictures could not be read when features were extracted"
                        ),
                    );
                }
                Ok((pictures, features, set.run().preprocess.clone()))
            }
        }
    }
}

/// What all trainings of a run share.
struct Job<'a> {
    args: &'a Args,
    printer: &'a Printer,
    augmentation: Option<Augmentation>,
    config: TrainConfig,
    base: &'a Backbone,
    items: &'a [Item],
    features: &'a Features,
    /// The class of each row.
    classes: &'a [usize],
    /// All of the head but its layers, temperature and record.
    head: Head,
    /// The report that is asked for.
    order: Option<&'a ReportSettings>,
    /// Stops the predictions of the report.
    cancel: &'a CancelToken,
    /// Added to the settings in the head's record.
    words: String,
}

/// The folds, if there were any, and what they found.
struct Folds {
    results: Vec<FoldResult>,
    summary: Summary,
}

impl Job<'_> {
    fn of(&self, rows: &[usize]) -> Vec<usize> {
        rows.iter().map(|&row| self.classes[row]).collect()
    }

    /// Pictures of each class.
    fn counts(&self, rows: &[usize]) -> Vec<u32> {
        let mut counts = vec![0; self.head.labels.len()];
        rows.iter().for_each(|&row| counts[self.classes[row]] += 1);
        counts
    }

    /// The configuration with the weights of the classes.
    fn config(&self, train_rows: &[usize]) -> Result<TrainConfig> {
        let class_weights =
            self.args.shape.class_weights(&self.head.labels, &self.counts(train_rows))?;
        Ok(TrainConfig { class_weights, ..self.config.clone() })
    }

    /// Trains on some rows; without `val_rows` there is no validation set.
    fn train(
        &self,
        config: &TrainConfig,
        train_rows: &[usize],
        val_rows: &[usize],
        from: Option<State>,
        hear: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<TrainedHead, TrainError> {
        let rows = |rows| Rows { features: self.features, rows, pool: self.head.pool };
        let (train_source, val_source) = (rows(train_rows), rows(val_rows));
        let (train_classes, val_classes) = (self.of(train_rows), self.of(val_rows));
        let variants;
        let train_source: &dyn FeatureSource = match &self.augmentation {
            None => &train_source,
            Some(augmentation) => {
                let (count, seed, threads) =
                    (self.args.augment.variants, config.seed, self.args.extract.threads());
                let (base, preprocess) = (self.base, &self.head.preprocess);
                let augmentation = augmentation.clone();
                variants = Variants::new(
                    augmentation,
                    count,
                    seed,
                    base,
                    preprocess,
                    self.items,
                    train_source,
                    threads,
                );
                &variants
            }
        };
        let train = Dataset { features: train_source, labels: &train_classes };
        let val = (!val_rows.is_empty())
            .then_some(Dataset { features: &val_source, labels: &val_classes });
        trainer::train(config, &train, val.as_ref(), from, hear)
    }

    /// The head with these layers.
    fn head_of(&self, layers: Vec<DenseWeights>) -> Head {
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

    /// A checkpoint of a training with these settings on these rows.
    fn checkpoint(&self, ending: &str, settings: &str, rows: &[&[usize]]) -> Checkpoint {
        let (pool, preprocess, variants) =
            (self.head.pool, &self.head.preprocess, self.args.augment.words());
        let key = Key {
            base: self.head.base,
            settings: format!("{settings}, {pool:?}, {preprocess:?}{variants}"),
            data: self.rows_fingerprint(rows),
        };
        let every = Duration::from_secs(self.args.shape.checkpoint_every.into());
        Checkpoint::new(&self.args.output, ending, key, every)
    }

    fn head_checkpoint(&self, config: &TrainConfig, rows: [&[usize]; 2]) -> Checkpoint {
        self.checkpoint(CHECKPOINT, &format!("{config:?}"), &rows)
    }

    /// Says of Ctrl-C what it leaves once the head is written; other errors stay as they are.
    fn after_head(&self, error: anyhow::Error, step: &str) -> anyhow::Error {
        if !error.is::<Interrupted>() {
            return error;
        }
        let head = self.args.output.display();
        match Checkpoint::find(&self.args.output, self.args.checkpoints()) {
            Some(path) => {
                anyhow!(
                    "interrupted {step}: {head} is written; --resume goes on from {}",
                    path.display()
                )
            }
            None => anyhow!("interrupted {step}: {head} is written"),
        }
    }

    /// What tells of a training that begins after some epochs. The variants of the pictures, which
    /// take most of the time, have a bar of their own.
    fn teller(
        &self,
        config: &TrainConfig,
        samples: usize,
        epochs: usize,
        done: usize,
        stage: Stage,
    ) -> Teller<'_> {
        let batches = samples.div_ceil(config.batch_size);
        Teller::new(
            self.printer,
            stage,
            self.args.json,
            self.augmentation.is_none(),
            epochs,
            batches,
            done,
        )
    }

    /// Trains with a validation set, beside a checkpoint.
    fn validated(&self, train_rows: &[usize], val_rows: &[usize]) -> Result<()> {
        let config = self.config(train_rows)?;
        let rows = [train_rows, val_rows];
        if let Some(state) = self.resumed_tuning(&config, rows)? {
            return self.fine_tuned(&config, Start::State(Box::new(state)), rows);
        }
        let mut checkpoint = self.head_checkpoint(&config, rows);
        let from = if self.args.shape.resume {
            let state: State = checkpoint.load()?;
            note(PROGRAM, format_args!("going on after epoch {}", state.epochs()));
            Some(state)
        } else {
            if checkpoint.path().exists() {
                let path = checkpoint.path().display();
                note(
                    PROGRAM,
                    format_args!(
                        "{path} of an interrupted run is not used (--resume would go on from it)"
                    ),
                );
            }
            None
        };
        let tunes = self.args.fine_tune.first.is_some();
        let mut stopped = false;
        let mut saved = Ok(());
        let done = from.as_ref().map_or(0, State::epochs);
        let teller = self.teller(&config, train_rows.len(), config.epochs, done, Stage::Head);
        let trained = self.train(&config, train_rows, val_rows, from, &mut |progress| {
            let last = matches!(progress.at, Moment::Epoch { last: true, .. });
            stopped = interrupted() && !last;
            teller.tell(progress.at);
            // Until fine-tuning has a state of its own, an interruption of it goes on from the
            // whole head.
            saved = checkpoint.save(|| progress.state(), stopped || (last && tunes));
            if let (Err(e), false) = (&saved, stopped) {
                // The training is worth more than the checkpoint.
                teller.note(format_args!("no checkpoint was written: {e:#}"));
            }
            if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        drop(teller);
        let path = checkpoint.path().display();
        let mut trained = match (trained, &saved) {
            (Err(TrainError::Stopped), Ok(())) => {
                bail!(
                    "interrupted in the first epoch: there is no head yet; --resume goes on from {path}"
                )
            }
            (Err(TrainError::Stopped), Err(e)) => {
                bail!(
                    "interrupted in the first epoch: there is no head yet, and no checkpoint: {e:#}"
                )
            }
            (trained, _) => trained?,
        };

        let layers = std::mem::take(&mut trained.layers);
        let frozen = self.args.fine_tune.first.is_some().then(|| layers.clone());
        let mut head = self.head_of(layers);
        if !val_rows.is_empty() && !self.args.no_calibration {
            let logits = metrics::logits(&head, self.features, val_rows)?;
            head.decision.temperature = metrics::temperature(&logits, &self.of(val_rows));
        }
        self.finish(head, &trained, [train_rows, val_rows], None, stopped)?;
        if stopped {
            let epoch = trained.history.len();
            match saved {
                Ok(()) => {
                    bail!(
                        "interrupted after epoch {epoch}: wrote the best head so far; --resume goes on from {path}"
                    )
                }
                Err(e) => {
                    bail!(
                        "interrupted after epoch {epoch}: wrote the best head so far, but no checkpoint: {e:#}"
                    )
                }
            }
        }
        match frozen {
            Some(layers) => self.fine_tuned(&config, Start::Head(&layers), rows),
            None => Ok(checkpoint.remove()?),
        }
    }

    /// Trains on all but one of `folds` parts in turn, then on all `rows`.
    fn cross_validated(&self, folds: usize, rows: &[usize]) -> Result<()> {
        let labels = &self.head.labels;
        let fold_of =
            folds::assign(self.classes, &self.features.hashes, labels, folds, self.args.seed)?;
        let settings = format!("{:?}, {folds} folds", self.config(rows)?);
        let mut checkpoint = self.checkpoint(FOLDS_CHECKPOINT, &settings, &[rows]);
        let mut done = if self.args.shape.resume { checkpoint.load()? } else { Done::default() };
        if !done.results.is_empty() {
            note(PROGRAM, format_args!("going on after fold {}", done.results.len()));
        }
        let leaves = |error: anyhow::Error, checkpoint: &Checkpoint, step: &str| {
            if !error.is::<Interrupted>() {
                return error;
            }
            let path = checkpoint.path();
            let rest = if path.exists() {
                format!("; --resume goes on from {}", path.display())
            } else {
                String::new()
            };
            anyhow!("interrupted in {step}: there is no head yet{rest}")
        };
        for fold in done.results.len()..folds {
            let (val_rows, train_rows): (Vec<usize>, Vec<usize>) =
                rows.iter().partition(|&&row| fold_of[row] == fold);
            let config = self.config(&train_rows)?;
            let trained = self
                .train_all(&config, &train_rows, &val_rows, config.epochs, Some(fold + 1))
                .map_err(|e| leaves(e, &checkpoint, &format!("fold {} of {folds}", fold + 1)))?;
            // Measured with the code that the device runs.
            let head = self.head_of(trained.layers);
            let val_classes = self.of(&val_rows);
            let measured = metrics::evaluate(&head, self.features, &val_rows, &val_classes)?;
            let (accuracy, loss) = (measured.accuracy, measured.loss);
            let result = FoldResult { accuracy, loss, best_epoch: trained.best_epoch };
            if self.args.json {
                self.printer.line(json!({
                    "fold": fold + 1, "best_epoch": result.best_epoch, "fold_accuracy": accuracy, "fold_loss": loss,
                    "train": train_rows.len(), "val": val_rows.len(),
                }));
            } else {
                let best = result.best_epoch;
                let line = format_args!(
                    "fold {}: accuracy {accuracy:.4}  loss {loss:.4}  epoch {best}",
                    fold + 1
                );
                self.printer.line(line);
            }
            done.results.push(result);
            done.logits.extend(metrics::logits(&head, self.features, &val_rows)?);
            done.truth.extend(val_classes);
            if let Err(e) = checkpoint.save(|| Ok(&done), true) {
                note(PROGRAM, format_args!("no checkpoint was written: {e:#}"));
            }
        }
        let Done { results, logits, truth } = done;
        let summary = Summary::of(&results);
        let Summary { accuracy, deviation, epochs, .. } = summary;
        if !self.args.json {
            self.printer
                .line(format_args!("{folds} folds: accuracy {accuracy:.4} +- {deviation:.4}"));
        }
        note(PROGRAM, format_args!("training on all pictures for {epochs} epochs"));
        let config = TrainConfig { keep_last: true, patience: None, ..self.config(rows)? };
        let mut trained = self
            .train_all(&config, rows, &[], epochs, None)
            .map_err(|e| leaves(e, &checkpoint, "the training on all pictures"))?;
        let mut head = self.head_of(std::mem::take(&mut trained.layers));
        if !self.args.no_calibration {
            head.decision.temperature = metrics::temperature(&logits, &truth);
        }
        self.finish(head, &trained, [rows, &[]], Some(&Folds { results, summary }), false)?;
        Ok(checkpoint.remove()?)
    }

    /// Trains for at most `epochs`, which may be fewer than the schedule of the learning rate goes
    /// over.
    fn train_all(
        &self,
        config: &TrainConfig,
        train_rows: &[usize],
        val_rows: &[usize],
        epochs: usize,
        fold: Option<usize>,
    ) -> Result<TrainedHead> {
        let teller =
            self.teller(config, train_rows.len(), epochs, 0, fold.map_or(Stage::Head, Stage::Fold));
        let trained = self.train(config, train_rows, val_rows, None, &mut |progress| {
            teller.tell(progress.at);
            let done = progress.at.stats().is_some_and(|stats| stats.epoch >= epochs);
            if done || interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if interrupted() {
            return Err(Interrupted.into());
        }
        Ok(trained?)
    }

    /// Measures, records, writes and tells of the head.
    fn finish(
        &self,
        mut head: Head,
        trained: &TrainedHead,
        [train_rows, val_rows]: [&[usize]; 2],
        folds: Option<&Folds>,
        stopped: bool,
    ) -> Result<()> {
        let (args, features) = (self.args, self.features);
        let mut settings = settings(&self.config) + &args.shape.words(&self.config) + &self.words;
        if let Some(Folds { results, summary }) = folds {
            settings += &format!(
                ", {} folds with accuracy {:.4} +- {:.4}, then trained on all pictures for {} epochs without a validation set",
                results.len(),
                summary.accuracy,
                summary.deviation,
                summary.epochs
            );
        }
        if stopped {
            settings += &format!(", interrupted after epoch {}", trained.history.len());
        }
        head.training = TrainingRecord {
            date: vgg_edge_cli::terminal::date(),
            program: format!("{PROGRAM} {}", env!("CARGO_PKG_VERSION")),
            seed: args.seed,
            settings,
            train_counts: self.counts(train_rows),
            val_counts: self.counts(val_rows),
            skipped: features.skipped.len() as u32,
            data: Some(features.fingerprint(self.classes)),
            best_epoch: trained.best_epoch as u32,
            metrics: Metrics::default(),
        };
        // Measured with the code that the device runs, not with the trainer's.
        let measure = |rows: &[usize]| metrics::evaluate(&head, features, rows, &self.of(rows));
        let on_train = measure(train_rows)?;
        let on_val = (!val_rows.is_empty()).then(|| measure(val_rows)).transpose()?;
        head.training.metrics = Metrics {
            accuracy: on_train.accuracy,
            loss: on_train.loss,
            val_accuracy: on_val.as_ref().map(|e| e.accuracy),
            val_loss: on_val.as_ref().map(|e| e.loss),
        };
        head.save(&args.output)?;
        if let Some(order) = self.order {
            let mut parts =
                vec![report::DataSplit { name: "training".into(), rows: train_rows.to_vec() }];
            if on_val.is_some() {
                parts
                    .push(report::DataSplit { name: "validation".into(), rows: val_rows.to_vec() });
            }
            // The state before the first epoch, which fine-tuning begins its history with, is none
            // of the report's.
            let epochs: Vec<EpochStats> =
                trained.history.iter().filter(|stats| stats.epoch > 0).copied().collect();
            let made = report::ReportInputs {
                data: args.about(),
                head: &head,
                head_file: &args.output,
                history: Some(report::History::of(&epochs)),
                evaluation: on_val.as_ref().unwrap_or(&on_train),
                features,
                items: self.items,
            };
            made.write_report(order, parts, self.cancel)
                .map_err(|e| self.after_head(e, "before the report was made"))?;
        }

        if args.json {
            let mut result = json!({
                "head": args.output,
                "best_epoch": trained.best_epoch,
                "epochs": trained.history.len(),
                "accuracy": on_train.accuracy,
                "loss": on_train.loss,
                "val_accuracy": head.training.metrics.val_accuracy,
                "val_loss": head.training.metrics.val_loss,
                "temperature": head.decision.temperature,
                "labels": head.labels,
                "train": train_rows.len(),
                "val": val_rows.len(),
                "skipped": features.skipped.len(),
                "cached": features.cached,
                "pool": head.pool.name(),
                "settings": head.training.settings,
                "interrupted": stopped,
            });
            if let Some(Folds { results, summary }) = folds {
                result["folds"] = results.len().into();
                result["folds_accuracy"] = summary.accuracy.into();
                result["folds_accuracy_deviation"] = summary.deviation.into();
                result["folds_loss"] = summary.loss.into();
            }
            self.printer.line(result);
        } else {
            let val = on_val.map_or(String::new(), |e| {
                format!("  val_accuracy {:.4}  val_loss {:.4}", e.accuracy, e.loss)
            });
            let (best, accuracy) = (trained.best_epoch, on_train.accuracy);
            self.printer.line(format_args!("kept epoch {best}: accuracy {accuracy:.4}{val}"));
            self.printer.line(format_args!("wrote {}", args.output.display()));
        }
        Ok(())
    }

    /// One hash over contents, classes and order of the rows of some lists.
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

fn settings(config: &TrainConfig) -> String {
    let TrainConfig { units, dropout, epochs, batch_size, .. } = config;
    let widths: Vec<String> = units.iter().map(usize::to_string).collect();
    let units = if units.is_empty() { "0".into() } else { widths.join(",") };
    let optimizer = match config.optimizer {
        Optimizer::RmsProp { .. } => "rmsprop",
        Optimizer::Adam { .. } => "adam",
        Optimizer::Sgd { .. } => "sgd",
    };
    let lr = config.optimizer.lr();
    format!(
        "{units} units, dropout {dropout}, {optimizer} at {lr}, {epochs} epochs, batches of {batch_size}"
    )
}
