//! `host evaluate`: how a head does on labelled pictures.

use std::path::PathBuf;

use anyhow::{Result, bail};
use shared::Head;
use shared::cli::{note, print_line};

use crate::options::{BaseOptions, ExtractOptions};
use crate::{PROGRAM, data, metrics};

/// Measures a head on labelled pictures
///
/// Prints accuracy, loss, precision, recall and F1 a class, and the confusion matrix. Of a split folder the validation part is taken.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  host evaluate --head head.postcard photos/test --json")]
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

    /// Prints one object with accuracy, loss, confusion, per_class
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let head = Head::load(&args.head)?;
    let base = args.base.load()?;
    head.check_base(&base)?;
    let (path, folder) = data::open_for_evaluation(&args.data, args.split.as_deref(), &head.labels)?;
    note(PROGRAM, format_args!("evaluating on {}", path.display()));
    let features = crate::extract::extract(&base, &head.preprocess, &folder.items, &args.extract)?;
    if features.items.is_empty() {
        bail!("{}: no picture could be read", path.display());
    }
    let rows: Vec<usize> = (0..features.items.len()).collect();
    let truth: Vec<usize> = features.items.iter().map(|&item| folder.items[item].class).collect();
    let evaluation = metrics::evaluate(&head, &features, &rows, &truth);
    if args.json {
        let mut json = evaluation.to_json(&head.labels);
        json["skipped"] = features.skipped.len().into();
        print_line(json)?;
    } else {
        print_line(evaluation.to_table(&head.labels))?;
    }
    Ok(())
}
