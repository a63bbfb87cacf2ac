//! `host train`: the flags.

mod resolve;

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use clap::builder::Resettable;
use vgg_edge_cli::terminal::CancelToken;

use self::resolve::parse_class_weights;
use super::augment::AugmentOptions;
use super::options::{BaseOptions, ExtractOptions, InputOptions};
use crate::report::ReportOptions;
use crate::train::settings::ClassWeights;

/// Train a head on a directory of images
///
/// DATA has one subdirectory per class, or train/ and val/ (also validation/, test/) with such
/// subdirectories. Without a validation directory, a fraction of each class is set aside
/// (--val-split). The epoch with the best validation accuracy is kept.
///
/// With --features the images are not read: their features were extracted before, in parts, and
/// the head is the same to the byte.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  host train photos -o head.postcard\n  \
    host train photos -o head.postcard --size 128 --units 512 --cache ~/.cache/vgg-edge\n  \
    host train photos -o head.postcard --pool avg --units 256,128 --lr-schedule cosine\n  \
    host train photos -o head.postcard --augment   # random variants; host augment draws some\n  \
    host train photos -o head.postcard --folds 5 --class-weights balanced\n  \
    host train photos -o head.postcard --resume   # after Ctrl-C\n  \
    host train photos -o head.postcard --report report   # then open report/report.html\n  \
    host train cats_and_dogs -o head.postcard --recipe seed   # the Keras tutorial's values\n  \
    host train --features photos.features -o head.postcard   # of host merge")]
pub struct Args {
    #[command(flatten, next_help_heading = "Data")]
    data: DataArgs,

    #[command(flatten, next_help_heading = "Data")]
    input: InputOptions,

    #[command(flatten, next_help_heading = "Data")]
    extract: ExtractOptions,

    #[command(flatten, next_help_heading = "Backbone")]
    base: BaseOptions,

    #[command(flatten, next_help_heading = "Head")]
    head: HeadArgs,

    #[command(flatten, next_help_heading = "Optimizer")]
    optimizer: OptimizerArgs,

    #[command(flatten, next_help_heading = "Augmentation")]
    augment: AugmentOptions,

    /// Alternate K fixed variants of each image with the originals
    ///
    /// Epochs after these need no backbone. By default each epoch has new variants.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(1..=1000),
        help_heading = "Augmentation")]
    variants: Option<u16>,

    #[command(flatten, next_help_heading = "Fine-tuning")]
    fine_tune: FineTuneArgs,

    #[command(flatten, next_help_heading = "Output")]
    output: OutputArgs,

    #[command(flatten, next_help_heading = "Output")]
    report: ReportOptions,
}

/// Flags of the data.
#[derive(clap::Args)]
struct DataArgs {
    /// Directory of images
    ///
    /// With --features it is only needed for --augment, --fine-tune, --float, and images in a
    /// report.
    #[arg(required_unless_present = "features", help_heading = Resettable::Reset)]
    data: Option<PathBuf>,

    /// Train on extracted features
    ///
    /// They are a file of host merge, or the directory of all parts.
    #[arg(long, value_name = "FILE|DIR",
        conflicts_with_all = ["size", "fit", "resize", "cache", "strict"])]
    features: Option<PathBuf>,

    /// Fraction of each class to validate on
    ///
    /// It is not used if DATA has a validation directory.
    #[arg(long, value_name = "FRACTION", default_value_t = 0.2)]
    val_split: f64,

    /// Cross-validate over K folds, then train on all images
    ///
    /// The final training runs for the mean of the folds' best epochs.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(2..=100))]
    folds: Option<u32>,
}

/// Flags of the dense layers and their decision.
#[derive(clap::Args)]
struct HeadArgs {
    /// Pooling of the feature map before the dense layers
    #[arg(long, value_enum, default_value_t = PoolName::Flatten)]
    pool: PoolName,

    /// Widths of the hidden layers [fast: 256, seed: 256]
    ///
    /// For example 256,128 for two layers; 0 for no hidden layer.
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    units: Option<Vec<u32>>,

    /// Dropout rate of the hidden layers [fast: 0.5, seed: 0.5]
    #[arg(long, value_name = "RATE")]
    dropout: Option<f32>,

    /// Batch normalization in each hidden layer
    ///
    /// It comes before the ReLU, and is folded into the layer after training.
    #[arg(long)]
    batch_norm: bool,

    /// Strength of the L2 penalty
    ///
    /// It adds STRENGTH times the sum of the squared weights to the loss.
    #[arg(long, value_name = "STRENGTH", default_value_t = 0.0)]
    l2: f64,

    /// Weights of the classes: `balanced`, `none`, or NAME=WEIGHT,...
    ///
    /// `balanced` weights all classes equally whatever their number of images. Classes without a
    /// NAME=WEIGHT have weight 1.
    #[arg(long, value_name = "WEIGHTS", default_value = "none", value_parser = parse_class_weights)]
    class_weights: ClassWeights,

    /// Label smoothing
    ///
    /// This fraction of the target is spread over all classes.
    #[arg(long, value_name = "FRACTION", default_value_t = 0.0)]
    label_smoothing: f64,

    /// Skip temperature scaling on the validation set
    #[arg(long)]
    no_calibration: bool,

    /// Report `unknown` on the device below this score, 0 to 1
    #[arg(long, value_name = "SCORE", default_value_t = 0.0)]
    threshold: f32,
}

/// Flags of the optimizer.
#[derive(clap::Args)]
struct OptimizerArgs {
    /// Set of default values
    ///
    /// It applies to the flags of the head and the optimizer whose help names it. `fast` is Adam
    /// with early stopping; `seed` is the Keras tutorial (256 units, dropout 0.5, RMSprop at 2e-5,
    /// 100 epochs, batches of 100).
    #[arg(long, value_enum, default_value_t = RecipeName::Fast)]
    recipe: RecipeName,

    /// Optimizer [fast: adam, seed: rmsprop]
    #[arg(long, value_enum)]
    optimizer: Option<OptimizerName>,

    /// Learning rate [fast: 0.001, seed: 0.00002]
    #[arg(long, value_name = "RATE")]
    lr: Option<f64>,

    /// Schedule of the learning rate
    ///
    /// `cosine` decays to 0 over all epochs, `step` to a tenth every --lr-step epochs, `plateau` to
    /// half after 5 epochs without a lower validation loss.
    #[arg(long, value_enum, default_value_t = ScheduleName::Constant)]
    lr_schedule: ScheduleName,

    /// Epochs between the steps of --lr-schedule step [default: 20]
    #[arg(long, value_name = "EPOCHS", value_parser = clap::value_parser!(u32).range(1..))]
    lr_step: Option<u32>,

    /// Maximum number of epochs [fast: 60, seed: 100]
    #[arg(long, value_name = "N")]
    epochs: Option<u32>,

    /// Epochs without improvement before training stops [fast: 10, seed: 0]
    ///
    /// 0 runs all epochs.
    #[arg(long, value_name = "EPOCHS")]
    patience: Option<u32>,

    /// Images per batch [fast: 32, seed: 100]
    #[arg(long, value_name = "N")]
    batch_size: Option<u32>,

    /// Random seed
    ///
    /// The same seed gives the same file, whatever the number of threads (the date in it is that
    /// of SOURCE_DATE_EPOCH, if set).
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// Flags of fine-tuning.
#[derive(clap::Args)]
struct FineTuneArgs {
    /// Fine-tune the backbone from this layer on
    ///
    /// LAYER is a block or a layer, such as block5 or block5_conv3. When the head has converged,
    /// the backbone is trained with it from there on, and written as a new int8 backbone with the
    /// head that belongs to it.
    #[arg(long = "fine-tune", value_name = "LAYER", conflicts_with = "folds")]
    first: Option<String>,

    /// Output file of the new backbone [default: HEAD as .onnx]
    #[arg(long, value_name = "FILE", requires = "first")]
    tuned_base: Option<PathBuf>,

    /// Learning rate of fine-tuning (RMSprop)
    #[arg(
        long,
        value_name = "RATE",
        requires = "first",
        default_value_t = 1e-5,
        allow_negative_numbers = true
    )]
    fine_tune_lr: f64,

    /// Maximum number of epochs of fine-tuning
    #[arg(long, value_name = "N", requires = "first", default_value_t = 20)]
    fine_tune_epochs: u32,

    /// Epochs without improvement before fine-tuning stops
    ///
    /// 0 runs all epochs.
    #[arg(long, value_name = "EPOCHS", requires = "first", default_value_t = 5)]
    fine_tune_patience: u32,
}

/// Flags of the output files.
#[derive(clap::Args)]
struct OutputArgs {
    /// Output file of the head
    ///
    /// It is replaced when training is complete, or by the best head so far on Ctrl-C.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Continue an interrupted run from HEAD.checkpoint
    ///
    /// With --folds it continues after the last complete fold, with --fine-tune in any step.
    #[arg(long)]
    resume: bool,

    /// Seconds between two writes of HEAD.checkpoint
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    checkpoint_every: u32,

    /// Print NDJSON: one object per epoch, then the result
    #[arg(long)]
    json: bool,
}

/// Names of the recipes on the command line.
#[derive(Clone, Copy, ValueEnum)]
enum RecipeName {
    Fast,
    Seed,
}

/// Names of the optimizers on the command line.
#[derive(Clone, Copy, ValueEnum)]
enum OptimizerName {
    Rmsprop,
    Adam,
    Sgd,
}

/// Names of the learning rate schedules on the command line.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScheduleName {
    Constant,
    Cosine,
    Step,
    Plateau,
}

/// Names of the poolings on the command line.
#[derive(Clone, Copy, ValueEnum)]
enum PoolName {
    /// All values (Keras Flatten)
    Flatten,
    /// The mean of each channel (GlobalAveragePooling2D)
    Avg,
    /// The maximum of each channel (GlobalMaxPooling2D)
    Max,
}

/// Runs the command.
pub fn run(args: Args, cancel: &CancelToken) -> Result<()> {
    crate::train::run(&args.resolve()?, cancel)
}
