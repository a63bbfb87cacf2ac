//! `host inspect`: what is in a head file.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;
use shared::Head;
use shared::cli::print_line;
use shared::head::{MAX_BYTES, format_of};
use shared::trust::Signable;

/// Shows what is in a head file; needs no base
#[derive(clap::Args)]
pub struct Args {
    /// The head
    #[arg(value_name = "HEAD")]
    head: PathBuf,

    /// Prints one object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let file = Signable::read(&args.head, MAX_BYTES)?;
    let head = Head::from_bytes(&file.bytes);
    let head = head.map_err(|source| shared::Error::HeadFile { path: args.head.clone(), source })?;
    let format = format_of(&file.bytes);
    // Without the public key nobody can tell whether it is true; `host verify` does.
    let signed = file.claim();
    let layers: Vec<String> =
        head.layers.iter().map(|l| format!("{} -> {} ({:?})", l.inputs, l.outputs, l.activation)).collect();
    let record = &head.training;
    let background: Vec<&str> = head.background.iter().map(|&label| &*head.labels[label as usize]).collect();
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
