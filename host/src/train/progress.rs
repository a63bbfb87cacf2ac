//! Progress of a training: a line per epoch on stdout, and a progress bar on stderr.

use std::fmt::Display;

use serde_json::json;
use vgg_edge_cli::terminal::Printer;

use crate::progress::Progress;
use crate::trainer::{EpochStats, ProgressEvent};

/// Subject of a training.
#[derive(Clone, Copy)]
pub(super) enum Stage {
    /// The head.
    Head,
    /// A fold of a cross-validation, from 1.
    Fold(usize),
    /// The last layers of the backbone.
    FineTune,
}

/// Extent of a training.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    /// Maximum number of epochs.
    pub epochs: usize,
    /// Batches per epoch.
    pub batches: usize,
    /// Epochs of an earlier run.
    pub done: usize,
}

/// Progress of one training.
pub(super) struct TrainProgress<'a> {
    printer: &'a Printer,
    stage: Stage,
    json: bool,
    extent: Extent,
    bar: Option<Progress>,
}

impl<'a> TrainProgress<'a> {
    /// Starts to report. Without `bar` only the epochs are reported.
    pub fn new(printer: &'a Printer, stage: Stage, json: bool, extent: Extent, bar: bool) -> Self {
        let bar = bar.then(|| {
            let bar = Progress::new((extent.epochs * extent.batches) as u64, "batches");
            bar.resume_at((extent.done * extent.batches) as u64);
            bar.message(stage.name());
            bar
        });
        Self { printer, stage, json, extent, bar }
    }

    /// Reports a batch or an epoch.
    pub fn report(&self, at: ProgressEvent) {
        let batches = self.extent.batches;
        let done = match at {
            ProgressEvent::Batch { epoch, done } => (epoch - 1) * batches + done,
            ProgressEvent::Epoch { stats, .. } => stats.epoch * batches,
        };
        if let Some(bar) = &self.bar {
            bar.set(done as u64);
        }
        let Some(stats) = at.stats() else { return };
        let line = if self.json {
            epoch_json(stats, self.stage)
        } else {
            epoch_line(stats, self.extent.epochs, self.stage)
        };
        self.suspend(|| self.printer.line(line));
    }

    /// Logs a warning beside the bar.
    pub fn warn(&self, message: impl Display) {
        self.suspend(|| log::warn!("{message}"));
    }

    fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

impl Stage {
    fn name(self) -> String {
        match self {
            Self::Head => String::new(),
            Self::Fold(fold) => format!("fold {fold}"),
            Self::FineTune => "fine-tune".into(),
        }
    }
}

fn epoch_json(stats: &EpochStats, stage: Stage) -> String {
    let mut line = json!({
        "epoch": stats.epoch,
        "loss": stats.loss,
        "accuracy": stats.accuracy,
        "val_loss": stats.val_loss,
        "val_accuracy": stats.val_accuracy,
        "lr": stats.lr,
    });
    match stage {
        Stage::Head => {}
        Stage::Fold(fold) => line["fold"] = fold.into(),
        Stage::FineTune => line["fine_tune"] = true.into(),
    }
    line.to_string()
}

fn epoch_line(stats: &EpochStats, epochs: usize, stage: Stage) -> String {
    let mut line = stage.name();
    if !line.is_empty() {
        line += "  ";
    }
    line += &format!(
        "epoch {}/{epochs}  loss {:.4}  accuracy {:.4}",
        stats.epoch, stats.loss, stats.accuracy
    );
    if let (Some(loss), Some(accuracy)) = (stats.val_loss, stats.val_accuracy) {
        line += &format!("  val_loss {loss:.4}  val_accuracy {accuracy:.4}");
    }
    line + &format!("  lr {:.2e}", stats.lr)
}
