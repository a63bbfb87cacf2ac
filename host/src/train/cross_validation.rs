//! Cross-validation, and the training on all images that follows.

use std::ops::ControlFlow;

use anyhow::{Result, anyhow};
use serde_json::json;
use vgg_edge_cli::terminal::Interrupted;

use super::job::{Job, SplitRows};
use super::progress::Stage;
use crate::checkpoint::Checkpoint;
use crate::dataset::folds::{self, CompletedFolds, FoldResult, Summary};
use crate::metrics;
use crate::trainer::{TrainConfig, TrainedHead};

/// Extension of the checkpoint of a cross-validation.
pub(super) const CHECKPOINT: &str = "folds.checkpoint";

/// Results of the folds of a cross-validation.
pub(super) struct FoldResults {
    pub results: Vec<FoldResult>,
    pub summary: Summary,
}

impl Job<'_> {
    /// Trains on all but one of `folds` parts in turn, then on all `rows`.
    pub fn cross_validate(&self, folds: usize, rows: &[usize]) -> Result<()> {
        let (labels, seed) = (&self.head.labels, self.settings.optimizer.seed);
        let fold_of = folds::assign(self.classes, &self.features.hashes, labels, folds, seed)?;
        let settings = format!("{:?}, {folds} folds", self.weighted_config(rows)?);
        let mut checkpoint = self.checkpoint(CHECKPOINT, &settings, &[rows]);
        let resume = self.settings.checkpoint.resume;
        let mut completed = if resume { checkpoint.load()? } else { CompletedFolds::default() };
        if !completed.results.is_empty() {
            log::info!("resuming after fold {}", completed.results.len());
        }
        for fold in completed.results.len()..folds {
            let (val, train): (Vec<usize>, Vec<usize>) =
                rows.iter().partition(|&&row| fold_of[row] == fold);
            self.run_fold(fold, SplitRows { train: &train, val: &val }, &mut completed).map_err(
                |e| stopped_in(e, &checkpoint, &format!("fold {} of {folds}", fold + 1)),
            )?;
            if let Err(e) = checkpoint.save(|| &completed, true) {
                log::warn!("cannot write the checkpoint: {e:#}");
            }
        }
        let CompletedFolds { results, logits, truth } = completed;
        let summary = Summary::of(&results);
        let Summary { accuracy, deviation, epochs, .. } = summary;
        if !self.settings.output.json {
            self.printer
                .line(format_args!("{folds} folds: accuracy {accuracy:.4} +- {deviation:.4}"));
        }
        log::info!("training on all images for {epochs} epochs");
        let config = TrainConfig { keep_last: true, patience: None, ..self.weighted_config(rows)? };
        let all = SplitRows { train: rows, val: &[] };
        let mut trained = self
            .train_epochs(&config, all, epochs, Stage::Head)
            .map_err(|e| stopped_in(e, &checkpoint, "the training on all images"))?;
        let mut head = self.head_of(std::mem::take(&mut trained.layers));
        if self.settings.head.calibrate {
            head.decision.temperature = metrics::temperature(&logits, &truth);
        }
        self.finish(head, &trained, all, Some(&FoldResults { results, summary }), false)?;
        Ok(checkpoint.remove()?)
    }

    /// Trains and measures a fold, counted from 0.
    fn run_fold(
        &self,
        fold: usize,
        rows: SplitRows<'_>,
        completed: &mut CompletedFolds,
    ) -> Result<()> {
        let config = self.weighted_config(rows.train)?;
        let trained = self.train_epochs(&config, rows, config.epochs, Stage::Fold(fold + 1))?;
        // Measured with the code that the device runs.
        let head = self.head_of(trained.layers);
        let val_classes = self.classes_of(rows.val);
        let measured = metrics::evaluate(&head, self.features, rows.val, &val_classes)?;
        let (accuracy, loss) = (measured.accuracy, measured.loss);
        let result = FoldResult { accuracy, loss, best_epoch: trained.best_epoch };
        if self.settings.output.json {
            self.printer.line(json!({
                "fold": fold + 1, "best_epoch": result.best_epoch,
                "fold_accuracy": accuracy, "fold_loss": loss,
                "train": rows.train.len(), "val": rows.val.len(),
            }));
        } else {
            self.printer.line(format_args!(
                "fold {}: accuracy {accuracy:.4}  loss {loss:.4}  epoch {}",
                fold + 1,
                result.best_epoch
            ));
        }
        completed.results.push(result);
        completed.logits.extend(metrics::logits(&head, self.features, rows.val)?);
        completed.truth.extend(val_classes);
        Ok(())
    }

    /// Trains for at most `epochs`, which may be fewer than those of the learning rate schedule.
    fn train_epochs(
        &self,
        config: &TrainConfig,
        rows: SplitRows<'_>,
        epochs: usize,
        stage: Stage,
    ) -> Result<TrainedHead> {
        let report = self.progress(config, rows.train.len(), [epochs, 0], stage);
        let trained = self.train(config, rows, None, &mut |progress| {
            report.report(progress.at);
            let done = progress.at.stats().is_some_and(|stats| stats.epoch >= epochs);
            if done || self.cancel.is_canceled() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        self.cancel.check()?;
        Ok(trained?)
    }
}

/// Adds to a cancellation where it happened and whether it can be resumed; other errors stay as
/// they are.
fn stopped_in(error: anyhow::Error, checkpoint: &Checkpoint, step: &str) -> anyhow::Error {
    if !error.is::<Interrupted>() {
        return error;
    }
    let path = checkpoint.path();
    let resume = if path.exists() {
        format!("; --resume continues from {}", path.display())
    } else {
        String::new()
    };
    anyhow!("interrupted in {step}: there is no head yet{resume}")
}
