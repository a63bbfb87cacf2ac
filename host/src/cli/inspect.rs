//! `host inspect`: what is in a head file, or in a file of features.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde_json::json;
use vgg_edge::Head;
use vgg_edge::head::{MAX_BYTES, format_of};
use vgg_edge::signature::SignedFile;
use vgg_edge_cli::terminal::{UsageError, print_line};

use crate::features::parts::{Entry, Manifest, Outcome, Part, is_features_file};

/// Shows what is in a head file, or in a file of features; needs no base
#[derive(clap::Args)]
pub struct Args {
    /// The head, a part of host extract --shard, or a file of host merge
    #[arg(value_name = "FILE")]
    head: PathBuf,

    /// Lists the pictures of a file of features too, with the SHA-256 of their files or why they
    /// were left out
    #[arg(long)]
    files: bool,

    /// Prints one object; with --files then one a picture
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    if is_features_file(&args.head) {
        return features(&args.head, args.files, args.json);
    }
    if args.files {
        bail!(UsageError(format!("{}: --files is for files of features", args.head.display())));
    }
    let file = SignedFile::read(&args.head, MAX_BYTES)?;
    let head = Head::from_bytes(&file.bytes);
    let head =
        head.map_err(|source| vgg_edge::Error::HeadFile { path: args.head.clone(), source })?;
    let format = format_of(&file.bytes);
    // Without the public key nobody can tell whether it is true; `host verify` does.
    let signed = file.unverified_info();
    let layers: Vec<String> = head
        .layers
        .iter()
        .map(|l| format!("{} -> {} ({:?})", l.inputs, l.outputs, l.activation))
        .collect();
    let record = &head.training;
    let background: Vec<&str> =
        head.background.iter().map(|&label| &*head.labels[label as usize]).collect();
    if args.json {
        print_line(json!({
            "format": format,
            "sha256": file.digest.to_string(),
            "version": signed.map(|signed| signed.version),
            "key": signed.map(|signed| signed.key.to_string()),
            "base": head.base.to_string(),
            "size": head.preprocess.size,
            "preprocess": head.preprocess.to_string(),
            "labels": head.labels,
            "pool": head.pool.name(),
            "background": background,
            "layers": layers,
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
        }))?;
        return Ok(());
    }
    let metrics = record.metrics;
    let mut lines = vec![
        format!("head        {} (format {})", args.head.display(), format.unwrap_or_default()),
        match signed {
            Some(signed) => format!("signed      {signed}, by its own words (host verify)"),
            None => "signed      no".into(),
        },
        format!("base        {}", head.base),
        format!("input       {}", head.preprocess),
        format!("pool        {}", head.pool.name()),
        format!("layers      {}", layers.join(", ")),
        format!(
            "output      {:?}, temperature {}, threshold {}",
            head.output, head.decision.temperature, head.decision.threshold
        ),
        format!("labels      {}", head.labels.join(", ")),
        format!("trained     {} by {}, seed {}", record.date, record.program, record.seed),
        format!("settings    {}, best epoch {}", record.settings, record.best_epoch),
        format!(
            "pictures    {:?} to train on, {:?} to validate on, {} left out",
            record.train_counts, record.val_counts, record.skipped
        ),
        format!("training    accuracy {:.4}, loss {:.4}", metrics.accuracy, metrics.loss),
    ];
    if let (Some(accuracy), Some(loss)) = (metrics.val_accuracy, metrics.val_loss) {
        lines.push(format!("validation  accuracy {accuracy:.4}, loss {loss:.4}"));
    }
    if !background.is_empty() {
        lines.push(format!("background  {}", background.join(", ")));
    }
    if let Some(data) = record.data {
        lines.push(format!("data        {data}"));
    }
    print_line(lines.join("\n"))?;
    Ok(())
}

/// Bytes of a file that are read at once.
const PIECE: usize = 1 << 20;

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
            data.train.map_or(String::new(), |train| format!(", the first {train} to train on"));
        print_line(format_args!(
            "features    {}\nbase        {}\ninput       {}\npart        {} of {}\npictures    {rows} of {entries} have features\n\
             labels      {}\nlist        {} of {} pictures{split}\nmade        by {}",
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
    let mut index = part.index(PIECE);
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
