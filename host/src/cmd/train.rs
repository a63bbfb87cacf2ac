//! `host train`: a folder of pictures to a head.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::json;
use shared::Fingerprint;
use shared::cli::{Interrupted, UsageError, interrupted, note, print_line};
use shared::contract::Preprocess;
use shared::head::{Activation, Decision, Dense, Head, Metrics, Output, TrainingRecord};
use shared::options::FitName;
use shared::resize::Filter;

use crate::PROGRAM;
use crate::data;
use crate::extract::{Rows, extract};
use crate::metrics;
use crate::options::{BaseOptions, ExtractOptions};
use crate::report::{self, ReportOptions};
use crate::trainer::{self, Dataset, EpochStats, Optimizer, TrainConfig};

/// Trains a head on a folder of pictures
///
/// DATA has a sub-folder a class, or train/ and val/ (also validation/, test/) over such folders. Without a validation folder a share of
/// each class is set aside (--val-split). The epoch with the best validation accuracy is kept.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  host train photos -o head.postcard\n  \
    host train photos -o head.postcard --size 128 --units 512 --cache ~/.cache/vgg-edge\n  \
    host train photos -o head.postcard --report report   # and look at report/report.html\n  \
    host train cats_and_dogs -o head.postcard --recipe seed   # the Keras tutorial's values")]
pub struct Args {
    /// Folder of pictures
    data: PathBuf,

    /// Where the head goes; replaced only when training is done
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    #[command(flatten)]
    base: BaseOptions,

    #[command(flatten)]
    extract: ExtractOptions,

    /// Height and width of the input in pixels, a multiple of 32
    #[arg(long, value_name = "PIXELS", default_value_t = 64)]
    size: u32,

    /// Which part of a picture is used
    #[arg(long, value_enum, default_value_t = FitName::Stretch)]
    fit: FitName,

    /// How it is resized [default: what the base recommends]
    #[arg(long, value_enum)]
    resize: Option<ResizeName>,

    /// Sets of defaults for the options below: `fast` is Adam with early stopping, `seed` the Keras tutorial
    /// (256 units, dropout 0.5, RMSprop at 2e-5, 100 epochs, batches of 100)
    #[arg(long, value_enum, default_value_t = Recipe::Fast)]
    recipe: Recipe,

    /// Width of the hidden layer; 0 for none [fast: 256, seed: 256]
    #[arg(long, value_name = "N")]
    units: Option<u32>,

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

    /// Leaves the scores as training made them; else a temperature found on the validation pictures makes them mean what they say
    #[arg(long)]
    no_calibration: bool,

    /// The device says unknown below this score, 0 to 1
    #[arg(long, value_name = "SCORE", default_value_t = 0.0)]
    threshold: f32,

    /// Seed of every random choice: the same seed gives the same file, whatever the number of threads
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
        let common = TrainConfig { units: 256, dropout: 0.5, classes, seed, shuffle: true, ..TrainConfig::default() };
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
            units: self.units.map_or(recipe.units, |units| units as usize),
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
        config.validate().map_err(|e| UsageError(e.to_string()))?;
        if !(self.val_split > 0.0 && self.val_split < 1.0) {
            bail!(UsageError(format!("--val-split must lie between 0 and 1, not at {}", self.val_split)));
        }
        if !(0.0..=1.0).contains(&self.threshold) {
            bail!(UsageError(format!("--threshold must lie between 0 and 1, not at {}", self.threshold)));
        }
        Ok(config)
    }
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    // The command line is looked at whole before anything is read.
    args.config(2)?;
    let base = args.base.load()?;
    let resize = args.resize.map_or(base.contract().resize, Into::into);
    let preprocess = Preprocess::new(base.contract().clone(), args.size, args.fit.into(), resize)?;
    let splits = data::open(&args.data)?;
    let labels = splits.train.classes.clone();
    let config = args.config(labels.len())?;
    // Before minutes of work rather than after.
    shared::fs::check_writable(&args.output)?;
    let order = args.report.prepare(&base)?;

    let ignored = splits.train.ignored + splits.val.as_ref().map_or(0, |(_, folder)| folder.ignored);
    if ignored > 0 {
        note(PROGRAM, format_args!("{ignored} files without the name of a picture are not looked at"));
    }
    match &splits.val {
        Some((path, _)) => note(PROGRAM, format_args!("validating on {}", path.display())),
        None => note(PROGRAM, format_args!("setting aside {} of each class for validation", args.val_split)),
    }
    let pictures = splits.pool();
    let features = extract(&base, &preprocess, &pictures.items, &args.extract)?;
    let classes = pictures.classes_of(&features.items);
    let (train_rows, val_rows) = pictures.rows(&features.items, args.val_split, args.seed);
    let of = |rows: &[usize]| rows.iter().map(|&row| classes[row]).collect::<Vec<_>>();
    let (train_classes, val_classes) = (of(&train_rows), of(&val_rows));
    let counts = |classes: &[usize]| -> Vec<u32> {
        (0..labels.len()).map(|class| classes.iter().filter(|&&c| c == class).count() as u32).collect()
    };
    if let Some(class) = counts(&train_classes).iter().position(|&count| count == 0) {
        bail!("{}: no picture of class {} could be read", args.data.display(), labels[class]);
    }

    let train_source = Rows { features: &features, rows: &train_rows };
    let val_source = Rows { features: &features, rows: &val_rows };
    let train = Dataset { features: &train_source, labels: &train_classes };
    let val = (!val_rows.is_empty()).then_some(Dataset { features: &val_source, labels: &val_classes });
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.extract.threads()).build()?;
    let mut printed = Ok(());
    let trained = pool.install(|| {
        trainer::train(&config, &train, val.as_ref(), &mut |stats| {
            printed = print_line(if args.json { epoch_json(stats) } else { epoch_line(stats, config.epochs) });
            if interrupted() || printed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    });
    printed?;
    if interrupted() {
        return Err(Interrupted.into());
    }
    let trained = trained?;

    let layer_count = trained.layers.len();
    let layers = trained.layers.into_iter().enumerate().map(|(index, layer)| Dense {
        inputs: layer.inputs as u32,
        outputs: layer.outputs as u32,
        activation: if index + 1 < layer_count { Activation::Relu } else { Activation::Linear },
        kernel: layer.kernel,
        bias: layer.bias,
    });
    let mut head = Head {
        base: base.fingerprint(),
        preprocess,
        feature_scales: base.feature_scales().to_vec(),
        labels: labels.clone(),
        layers: layers.collect(),
        output: if labels.len() == 2 { Output::Sigmoid } else { Output::Softmax },
        decision: Decision { threshold: args.threshold, ..Decision::default() },
        training: TrainingRecord {
            date: shared::cli::date(),
            program: format!("{PROGRAM} {}", env!("CARGO_PKG_VERSION")),
            seed: args.seed,
            settings: settings(&config),
            train_counts: counts(&train_classes),
            val_counts: counts(&val_classes),
            skipped: features.skipped.len() as u32,
            data: Some(data_fingerprint(&features.hashes, &classes)),
            best_epoch: trained.best_epoch as u32,
            metrics: Metrics::default(),
        },
    };
    if val.is_some() && !args.no_calibration {
        head.decision.temperature = metrics::temperature(&head, &features, &val_rows, &val_classes);
    }
    // Measured with the code that the device runs, not with the trainer's.
    let on_train = metrics::evaluate(&head, &features, &train_rows, &train_classes);
    let on_val = val.is_some().then(|| metrics::evaluate(&head, &features, &val_rows, &val_classes));
    head.training.metrics = Metrics {
        accuracy: on_train.accuracy,
        loss: on_train.loss,
        val_accuracy: on_val.as_ref().map(|e| e.accuracy),
        val_loss: on_val.as_ref().map(|e| e.loss),
    };
    head.save(&args.output)?;
    if let Some(order) = &order {
        let mut parts = vec![report::Part { name: "training".into(), rows: train_rows.clone() }];
        if on_val.is_some() {
            parts.push(report::Part { name: "validation".into(), rows: val_rows.clone() });
        }
        let made = report::Made {
            data: &args.data,
            head: &head,
            head_file: &args.output,
            history: Some(report::History::of(&trained.history)),
            evaluation: on_val.as_ref().unwrap_or(&on_train),
            features: &features,
            items: &pictures.items,
        };
        pool.install(|| made.report(order, parts))?;
    }

    if args.json {
        print_line(json!({
            "head": args.output,
            "best_epoch": trained.best_epoch,
            "epochs": trained.history.len(),
            "accuracy": on_train.accuracy,
            "loss": on_train.loss,
            "val_accuracy": head.training.metrics.val_accuracy,
            "val_loss": head.training.metrics.val_loss,
            "temperature": head.decision.temperature,
            "labels": labels,
            "train": train_rows.len(),
            "val": val_rows.len(),
            "skipped": features.skipped.len(),
            "cached": features.cached,
        }))?;
    } else {
        let val = on_val.map_or(String::new(), |e| format!("  val_accuracy {:.4}  val_loss {:.4}", e.accuracy, e.loss));
        print_line(format_args!("kept epoch {}: accuracy {:.4}{val}", trained.best_epoch, on_train.accuracy))?;
        print_line(format_args!("wrote {}", args.output.display()))?;
    }
    Ok(())
}

fn settings(config: &TrainConfig) -> String {
    let TrainConfig { units, dropout, epochs, batch_size, .. } = config;
    let optimizer = match config.optimizer {
        Optimizer::RmsProp { .. } => "rmsprop",
        Optimizer::Adam { .. } => "adam",
        Optimizer::Sgd { .. } => "sgd",
    };
    let lr = config.optimizer.lr();
    format!("{units} units, dropout {dropout}, {optimizer} at {lr}, {epochs} epochs, batches of {batch_size}")
}

/// One hash over all pictures and their classes, whatever their names.
fn data_fingerprint(hashes: &[Fingerprint], classes: &[usize]) -> Fingerprint {
    let mut parts: Vec<Vec<u8>> = hashes
        .iter()
        .zip(classes)
        .map(|(hash, &class)| [&hash.0[..], &(class as u64).to_le_bytes()].concat())
        .collect();
    parts.sort();
    Fingerprint::of_parts(parts.iter().map(Vec::as_slice))
}

fn epoch_json(stats: &EpochStats) -> String {
    json!({
        "epoch": stats.epoch,
        "loss": stats.loss,
        "accuracy": stats.accuracy,
        "val_loss": stats.val_loss,
        "val_accuracy": stats.val_accuracy,
    })
    .to_string()
}

fn epoch_line(stats: &EpochStats, epochs: usize) -> String {
    let mut line = format!("epoch {}/{epochs}  loss {:.4}  accuracy {:.4}", stats.epoch, stats.loss, stats.accuracy);
    if let (Some(loss), Some(accuracy)) = (stats.val_loss, stats.val_accuracy) {
        line += &format!("  val_loss {loss:.4}  val_accuracy {accuracy:.4}");
    }
    line
}
