//! `host evaluate`: how a head does on labeled pictures.

use std::path::PathBuf;

use anyhow::{Result, bail};
use vgg_edge::Head;
use vgg_edge_cli::terminal::{CancelToken, note, print_line};

use crate::cli::options::{BaseOptions, ExtractOptions};
use crate::report::{self, ReportOptions};
use crate::{PROGRAM, dataset, metrics};

/// Measures a head on labeled pictures
///
/// Prints accuracy, loss, precision, recall and F1 a class, and the confusion matrix. Of a split
/// folder the validation part is taken.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  host evaluate --head head.postcard photos/test --json\n  \
    host evaluate --head head.postcard photos --report report --float vgg16.onnx")]
pub struct Args {
    /// Folder with a sub-folder of pictures a class
    data: PathBuf,

    /// The head
    #[arg(long, value_name = "FILE")]
    head: PathBuf,

    /// The part of a split folder: train, val, test, ...
    #[arg(long, value_name = "NAME")]
    split: Option<String>,

    #[command(flatten)]
    base: BaseOptions,

    #[command(flatten)]
    extract: ExtractOptions,

    #[command(flatten)]
    report: ReportOptions,

    /// Prints one object with accuracy, loss, confusion, per_class
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args, cancel: &CancelToken) -> Result<()> {
    let head = Head::load(&args.head)?;
    let base = args.base.load()?;
    head.check_base(&base)?;
    let order = args.report.prepare(&base)?;
    let (path, folder) =
        dataset::open_for_evaluation(&args.data, args.split.as_deref(), &head.labels)?;
    note(PROGRAM, format_args!("evaluating on {}", path.display()));
    let features = crate::features::extraction::extract(
        &base,
        &head.preprocess,
        &folder.items,
        &args.extract,
    )?;
    if features.items.is_empty() {
        bail!("{}: no picture could be read", path.display());
    }
    let rows: Vec<usize> = (0..features.items.len()).collect();
    let truth: Vec<usize> = features.items.iter().map(|&item| folder.items[item].class).collect();
    if head.training.data == Some(features.fingerprint(&truth)) {
        let held = head.training.metrics.val_accuracy;
        let held = held.map_or(String::new(), |held| {
            format!("; on those that were set aside it was {held:.4} right")
        });
        note(
            PROGRAM,
            format_args!(
                "the head was trained on these pictures, so it does better here than elsewhere{held}"
            ),
        );
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.extract.threads()).build()?;
    let evaluation = pool.install(|| metrics::evaluate(&head, &features, &rows, &truth))?;
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
            items: &folder.items,
        };
        pool.install(|| made.write_report(order, vec![report::DataSplit { name, rows }], cancel))?;
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
