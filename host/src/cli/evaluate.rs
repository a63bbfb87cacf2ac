//! `host evaluate`: metrics of a head on labeled images.

use std::path::PathBuf;

use anyhow::{Result, bail};
use vgg_edge::Head;
use vgg_edge_cli::terminal::{CancelToken, print_line};

use crate::cli::options::{BaseOptions, ExtractOptions};
use crate::features::extraction::{Features, extract};
use crate::report::{self, ReportOptions};
use crate::{dataset, metrics};

/// Measure a head on labeled images
///
/// Prints accuracy, loss, precision, recall and F1 per class, and the confusion matrix. Of a split
/// directory, the validation images are used.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  host evaluate --head head.postcard photos/test --json\n  \
    host evaluate --head head.postcard photos --report report --float vgg16.onnx")]
pub struct Args {
    /// Directory with one subdirectory of images per class
    data: PathBuf,

    /// Part of a split directory: train, val, test, ...
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    split: Option<String>,

    #[command(flatten, next_help_heading = "Data")]
    extract: ExtractOptions,

    #[command(flatten, next_help_heading = "Backbone")]
    base: BaseOptions,

    /// Head file
    #[arg(long, value_name = "FILE", help_heading = "Head")]
    head: PathBuf,

    #[command(flatten, next_help_heading = "Output")]
    report: ReportOptions,

    /// Print one JSON object with accuracy, loss, confusion, per_class
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args, cancel: &CancelToken) -> Result<()> {
    let head = Head::open(&args.head)?;
    let base = args.base.load()?;
    head.check_base(&base)?;
    let order = args.report.prepare(&base)?;
    let (path, listing) =
        dataset::open_for_evaluation(&args.data, args.split.as_deref(), &head.labels)?;
    log::info!("evaluating on {}", path.display());
    let settings = args.extract.resolve();
    let features = extract(&base, &head.preprocess, &listing.items, &settings, cancel)?;
    if features.items.is_empty() {
        bail!("{}: no image could be read", path.display());
    }
    let rows: Vec<usize> = (0..features.items.len()).collect();
    let truth: Vec<usize> = features.items.iter().map(|&item| listing.items[item].class).collect();
    warn_of_training_images(&head, &features, &truth);
    let threads = rayon::ThreadPoolBuilder::new().num_threads(settings.threads).build()?;
    let evaluation = threads.install(|| metrics::evaluate(&head, &features, &rows, &truth))?;
    if let Some(order) = &order {
        let name = path.file_name().filter(|_| path != args.data);
        let name = name.map_or("evaluation".into(), |name| name.to_string_lossy().into_owned());
        let made = report::ReportInputs {
            data: &args.data,
            head: &head,
            head_file: &args.head,
            history: None,
            evaluation: &evaluation,
            features: &features,
            items: &listing.items,
        };
        threads
            .install(|| made.write_report(order, vec![report::DataSplit { name, rows }], cancel))?;
    }
    if args.json {
        let mut json = evaluation.to_json(&head.labels);
        json["skipped"] = features.skipped.len().into();
        print_line(json)?;
    } else {
        print_line(evaluation.to_table(&head.labels))?;
    }
    Ok(())
}

/// Warns if the head was trained on exactly these images.
fn warn_of_training_images(head: &Head, features: &Features, truth: &[usize]) {
    if head.training.data != Some(features.fingerprint(truth)) {
        return;
    }
    let val_accuracy = head.training.metrics.val_accuracy;
    let val_accuracy = val_accuracy.map_or(String::new(), |accuracy| {
        format!("; its accuracy on the validation images was {accuracy:.4}")
    });
    log::warn!(
        "the head was trained on these images, so it is less accurate on others{val_accuracy}"
    );
}
