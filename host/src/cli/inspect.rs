//! `host inspect`: prints the contents of a head or feature file.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use vgg_edge::Head;
use vgg_edge::head::{MAX_BYTES, format_of};
use vgg_edge::signature::Signable;
use vgg_edge_cli::terminal::{UsageError, print_line};

use crate::features::parts::{Entry, Manifest, Outcome, Part, is_features_file};

/// Print the contents of a head or feature file
#[derive(clap::Args)]
pub struct Args {
    /// Head, or feature file from host extract --shard or host merge
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// List the images of a feature file
    ///
    /// Each with the SHA-256 of its file, or the reason why it was left out.
    #[arg(long)]
    files: bool,

    /// Print a JSON object; with --files, also one per image
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let Args { file: path, files, json } = args;
    if is_features_file(&path) {
        return features(&path, files, json);
    }
    if files {
        bail!(UsageError(format!("{}: --files needs a feature file", path.display())));
    }
    let file = Signable::read(&path, MAX_BYTES)?;
    let head = Head::from_bytes(&file.bytes)
        .map_err(|source| vgg_edge::Error::HeadFile { path: path.clone(), source })?;
    let text = if json { head_json(&file, &head).to_string() } else { head_text(&file, &head) };
    print_line(text)?;
    Ok(())
}

fn layers(head: &Head) -> Vec<String> {
    let layers = head.layers.iter();
    layers.map(|l| format!("{} -> {} ({:?})", l.inputs, l.outputs, l.activation)).collect()
}

fn background(head: &Head) -> Vec<&str> {
    head.background.iter().map(|&label| &*head.labels[label as usize]).collect()
}

fn head_json(file: &Signable, head: &Head) -> Value {
    let signed = file.claim();
    let record = &head.training;
    json!({
        "format": format_of(&file.bytes),
        "sha256": file.digest.to_string(),
        "version": signed.map(|signed| signed.version),
        "key": signed.map(|signed| signed.key.to_string()),
        "base": head.base.to_string(),
        "size": head.preprocess.size,
        "preprocess": head.preprocess.to_string(),
        "labels": head.labels,
        "pool": head.pool.name(),
        "background": background(head),
        "layers": layers(head),
        "output": format!("{:?}", head.output),
        "temperature": head.decision.temperature,
        "threshold": head.decision.threshold,
        "training": {
            "date": record.date,
            "program": record.program,
            "seed": record.seed,
            "settings": record.settings,
            "train_counts": record.train_counts,
            "val_counts": record.val_counts,
            "skipped": record.skipped,
            "data": record.data.map(|d| d.to_string()),
            "best_epoch": record.best_epoch,
            "accuracy": record.metrics.accuracy,
            "loss": record.metrics.loss,
            "val_accuracy": record.metrics.val_accuracy,
            "val_loss": record.metrics.val_loss,
        },
    })
}

fn head_text(file: &Signable, head: &Head) -> String {
    let (record, decision) = (&head.training, &head.decision);
    let metrics = record.metrics;
    let format = format_of(&file.bytes).unwrap_or_default();
    let mut lines = vec![
        format!("head        {} (format {format})", file.path.display()),
        // Only the public key proves it; `host verify` has that.
        match file.claim() {
            Some(signed) => format!("signed      {signed}, not verified (see host verify)"),
            None => "signed      no".into(),
        },
        format!("base        {}", head.base),
        format!("input       {}", head.preprocess),
        format!("pool        {}", head.pool.name()),
        format!("layers      {}", layers(head).join(", ")),
        format!(
            "output      {:?}, temperature {}, threshold {}",
            head.output, decision.temperature, decision.threshold
        ),
        format!("labels      {}", head.labels.join(", ")),
        format!("trained     {} by {}, seed {}", record.date, record.program, record.seed),
        format!("settings    {}, best epoch {}", record.settings, record.best_epoch),
        format!(
            "images      training {:?}, validation {:?}, {} left out",
            record.train_counts, record.val_counts, record.skipped
        ),
        format!("training    accuracy {:.4}, loss {:.4}", metrics.accuracy, metrics.loss),
    ];
    if let (Some(accuracy), Some(loss)) = (metrics.val_accuracy, metrics.val_loss) {
        lines.push(format!("validation  accuracy {accuracy:.4}, loss {loss:.4}"));
    }
    let background = background(head);
    if !background.is_empty() {
        lines.push(format!("background  {}", background.join(", ")));
    }
    if let Some(data) = record.data {
        lines.push(format!("data        {data}"));
    }
    lines.join("\n")
}

/// Number of bytes that are read at once.
const CHUNK: usize = 1 << 20;

fn features(path: &Path, files: bool, json: bool) -> Result<()> {
    let part = Part::open(path)?;
    let Manifest { run, shard, entries, rows, .. } = &part.manifest;
    let data = &run.data;
    if json {
        print_line(json!({
            "program": run.program,
            "base": run.base.to_string(),
            "size": run.preprocess.size,
            "preprocess": run.preprocess.to_string(),
            "shape": run.preprocess.feature_shape(),
            "shard": shard.index,
            "shards": shard.count,
            "pictures": entries,
            "rows": rows,
            "labels": data.classes,
            "list": data.list.to_string(),
            "list_pictures": data.pictures,
            "list_train": data.train,
        }))?;
    } else {
        let split =
            data.train.map_or(String::new(), |train| format!(", the first {train} for training"));
        print_line(format_args!(
            "features    {}\n\
             base        {}\n\
             input       {}\n\
             part        {} of {}\n\
             images      {rows} of {entries} have features\n\
             labels      {}\n\
             list        {} of {} images{split}\n\
             made        by {}",
            path.display(),
            run.base,
            run.preprocess,
            shard.index,
            shard.count,
            data.classes.join(", "),
            data.list,
            data.pictures,
            run.program,
        ))?;
    }
    let mut index = part.index(CHUNK);
    while let Some((Entry { item, class, name, outcome }, _)) =
        index.next_entry()?.filter(|_| files)
    {
        let file = String::from_utf8_lossy(&name);
        match (outcome, json) {
            (Outcome::Row(hash), true) => print_line(
                json!({ "item": item, "file": file, "class": class, "sha256": hash.to_string() }),
            ),
            (Outcome::Unreadable(reason), true) => print_line(
                json!({ "item": item, "file": file, "class": class, "left_out": reason }),
            ),
            (Outcome::Row(hash), false) => print_line(format_args!("{hash}  {file}")),
            (Outcome::Unreadable(reason), false) => {
                print_line(format_args!("left out: {file}: {reason}"))
            }
        }?;
    }
    Ok(())
}
