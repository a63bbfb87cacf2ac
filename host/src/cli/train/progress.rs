//! What `host train` tells of a training on its way: a line an epoch on stdout, and how far it has
//! come on stderr.

use std::fmt::Display;

use serde_json::json;
use vgg_edge_cli::terminal::{Printer, note};

use crate::PROGRAM;
use crate::progress::Meter;
use crate::trainer::{EpochStats, ProgressEvent};

/// What is being trained.
#[derive(Clone, Copy)]
pub(super) enum Stage {
    Head,
    /// Of a cross-validation, from 1.
    Fold(usize),
    FineTune,
}

/// Of one training.
pub(super) struct Teller<'a> {
    printer: &'a Printer,
    stage: Stage,
    json: bool,
    /// Epochs that are run at most.
    epochs: usize,
    /// Batches of an epoch.
    batches: usize,
    meter: Option<Meter>,
}

impl<'a> Teller<'a> {
    /// `metered` if how far it has come is told; `done` epochs are of an earlier run.
    pub fn new(
        printer: &'a Printer,
        stage: Stage,
        json: bool,
        metered: bool,
        epochs: usize,
        batches: usize,
        done: usize,
    ) -> Self {
        let meter = metered.then(|| {
            let meter = Meter::new((epochs * batches) as u64, "batches");
            meter.resume_at((done * batches) as u64);
            meter.message(stage.words());
            meter
        });
        Self { printer, stage, json, epochs, batches, meter }
    }

    /// Tells of a batch or an epoch.
    pub fn tell(&self, at: ProgressEvent) {
        let done = match at {
            ProgressEvent::Batch { epoch, done } => (epoch - 1) * self.batches + done,
            ProgressEvent::Epoch { stats, .. } => stats.epoch * self.batches,
        };
        if let Some(meter) = &self.meter {
            meter.set(done as u64);
        }
        let Some(stats) = at.stats() else { return };
        let line = if self.json {
            epoch_json(stats, self.stage)
        } else {
            epoch_line(stats, self.epochs, self.stage)
        };
        self.aside(|| self.printer.line(line));
    }

    /// A note beside the bar.
    pub fn note(&self, words: impl Display) {
        self.aside(|| note(PROGRAM, words));
    }

    fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.meter {
            Some(meter) => meter.suspend(write),
            None => write(),
        }
    }
}

impl Stage {
    fn words(self) -> String {
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
    let mut line = stage.words();
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
