//! Output of a training: the measured head, the report, and the result on stdout.

use anyhow::Result;
use serde_json::json;
use vgg_edge::head::{Head, Metrics, TrainingRecord};

use super::cross_validation::FoldResults;
use super::job::{Job, SplitRows};
use super::record;
use crate::PROGRAM;
use crate::metrics::{self, Evaluation};
use crate::report::{self, ReportSettings};
use crate::trainer::{EpochStats, TrainedHead};

/// Metrics of a head on its training and validation sets.
struct Measured {
    train: Evaluation,
    val: Option<Evaluation>,
}

/// The result of a training, for stdout.
struct Outcome<'a> {
    head: &'a Head,
    trained: &'a TrainedHead,
    measured: &'a Measured,
    rows: SplitRows<'a>,
    folds: Option<&'a FoldResults>,
    stopped: bool,
}

impl Job<'_> {
    /// Measures, records, writes and reports the head.
    pub fn finish(
        &self,
        mut head: Head,
        trained: &TrainedHead,
        rows: SplitRows<'_>,
        folds: Option<&FoldResults>,
        stopped: bool,
    ) -> Result<()> {
        let mut settings = record::settings(&self.config, &self.settings.head) + &self.record;
        if let Some(folds) = folds {
            settings += &record::folds(folds);
        }
        if stopped {
            settings += &record::interrupted(trained.history.len());
        }
        head.training = TrainingRecord {
            date: vgg_edge_cli::terminal::date(),
            program: format!("{PROGRAM} {}", env!("CARGO_PKG_VERSION")),
            seed: self.settings.optimizer.seed,
            settings,
            train_counts: self.counts(rows.train),
            val_counts: self.counts(rows.val),
            skipped: self.features.skipped.len() as u32,
            data: Some(self.features.fingerprint(self.classes)),
            best_epoch: trained.best_epoch as u32,
            metrics: Metrics::default(),
        };
        // Measured with the code that the device runs, not with the trainer's.
        let measure =
            |rows: &[usize]| metrics::evaluate(&head, self.features, rows, &self.classes_of(rows));
        let measured = Measured {
            train: measure(rows.train)?,
            val: (!rows.val.is_empty()).then(|| measure(rows.val)).transpose()?,
        };
        head.training.metrics = Metrics {
            accuracy: measured.train.accuracy,
            loss: measured.train.loss,
            val_accuracy: measured.val.as_ref().map(|e| e.accuracy),
            val_loss: measured.val.as_ref().map(|e| e.loss),
        };
        head.save(&self.settings.output.head)?;
        if let Some(order) = self.order {
            self.write_report(order, &head, trained, &measured, rows)
                .map_err(|e| self.after_head(e, "before the report was written"))?;
        }
        let outcome = Outcome { head: &head, trained, measured: &measured, rows, folds, stopped };
        self.print(&outcome);
        Ok(())
    }

    fn write_report(
        &self,
        order: &ReportSettings,
        head: &Head,
        trained: &TrainedHead,
        measured: &Measured,
        rows: SplitRows<'_>,
    ) -> Result<()> {
        let mut parts =
            vec![report::DataSplit { name: "training".into(), rows: rows.train.to_vec() }];
        if measured.val.is_some() {
            parts.push(report::DataSplit { name: "validation".into(), rows: rows.val.to_vec() });
        }
        // Without the state before the first epoch, which starts the history of fine-tuning.
        let epochs: Vec<EpochStats> =
            trained.history.iter().filter(|stats| stats.epoch > 0).copied().collect();
        let made = report::ReportInputs {
            data: self.settings.data.source.path(),
            head,
            head_file: &self.settings.output.head,
            history: Some(report::History::of(&epochs)),
            evaluation: measured.val.as_ref().unwrap_or(&measured.train),
            features: self.features,
            items: self.items,
        };
        made.write_report(order, parts, self.cancel)
    }

    /// Prints the result.
    fn print(&self, outcome: &Outcome<'_>) {
        let output = &self.settings.output.head;
        if self.settings.output.json {
            self.printer.line(self.result_json(outcome));
            return;
        }
        let val = outcome.measured.val.as_ref().map_or(String::new(), |e| {
            format!("  val_accuracy {:.4}  val_loss {:.4}", e.accuracy, e.loss)
        });
        let (best, accuracy) = (outcome.trained.best_epoch, outcome.measured.train.accuracy);
        self.printer.line(format_args!("kept epoch {best}: accuracy {accuracy:.4}{val}"));
        self.printer.line(format_args!("wrote {}", output.display()));
    }

    /// Returns the result as JSON; its keys are a format.
    fn result_json(&self, outcome: &Outcome<'_>) -> serde_json::Value {
        let Outcome { head, trained, measured, rows, folds, stopped } = outcome;
        let mut result = json!({
            "head": self.settings.output.head,
            "best_epoch": trained.best_epoch,
            "epochs": trained.history.len(),
            "accuracy": measured.train.accuracy,
            "loss": measured.train.loss,
            "val_accuracy": head.training.metrics.val_accuracy,
            "val_loss": head.training.metrics.val_loss,
            "temperature": head.decision.temperature,
            "labels": head.labels,
            "train": rows.train.len(),
            "val": rows.val.len(),
            "skipped": self.features.skipped.len(),
            "cached": self.features.cached,
            "pool": head.pool.name(),
            "settings": head.training.settings,
            "interrupted": stopped,
        });
        if let Some(FoldResults { results, summary }) = folds {
            result["folds"] = results.len().into();
            result["folds_accuracy"] = summary.accuracy.into();
            result["folds_accuracy_deviation"] = summary.deviation.into();
            result["folds_loss"] = summary.loss.into();
        }
        result
    }
}
