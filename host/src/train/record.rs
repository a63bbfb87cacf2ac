//! The training record in a head: its settings, as text.
//!
//! The text is a format: it is read by people, but it must not change, so that the same training
//! produces the same bytes.

use vgg_edge::head::Pool;

use super::cross_validation::FoldResults;
use super::settings::{ClassWeights, FineTuneSettings, HeadSettings, TrainSettings};
use crate::trainer::{FineTuned, Optimizer, Schedule, TrainConfig};

/// Returns the text of the settings of the head and its training.
pub(super) fn settings(config: &TrainConfig, head: &HeadSettings) -> String {
    basics(config) + &options(config, head)
}

/// Returns the settings that every training has.
fn basics(config: &TrainConfig) -> String {
    let TrainConfig { units, dropout, epochs, batch_size, .. } = config;
    let widths: Vec<String> = units.iter().map(usize::to_string).collect();
    let units = if units.is_empty() { "0".into() } else { widths.join(",") };
    let optimizer = match config.optimizer {
        Optimizer::RmsProp { .. } => "rmsprop",
        Optimizer::Adam { .. } => "adam",
        Optimizer::Sgd { .. } => "sgd",
    };
    let lr = config.optimizer.lr();
    format!(
        "{units} units, dropout {dropout}, {optimizer} at {lr}, {epochs} epochs, \
         batches of {batch_size}"
    )
}

/// Returns the settings that differ from the defaults; each part starts with a comma.
fn options(config: &TrainConfig, head: &HeadSettings) -> String {
    let mut text = String::new();
    let mut add = |part: String| text += &format!(", {part}");
    if head.pool != Pool::Flatten {
        add(format!("pool {}", head.pool.name()));
    }
    if config.batch_norm {
        add("batch normalisation".into());
    }
    if config.l2 > 0.0 {
        add(format!("l2 {}", config.l2));
    }
    match &head.class_weights {
        ClassWeights::None => {}
        ClassWeights::Balanced => add("class weights balanced".into()),
        ClassWeights::Named(named) => {
            let list: Vec<String> =
                named.iter().map(|(name, weight)| format!("{name}={weight}")).collect();
            add(format!("class weights {}", list.join(" ")));
        }
    }
    match config.schedule {
        Schedule::Constant => {}
        Schedule::Cosine => add("cosine schedule".into()),
        Schedule::Step { epochs } => add(format!("a tenth of the rate every {epochs} epochs")),
        Schedule::Plateau { patience } => {
            add(format!("half of the rate after {patience} epochs on a plateau"));
        }
    }
    if config.label_smoothing > 0.0 {
        add(format!("label smoothing {}", config.label_smoothing));
    }
    text
}

/// Returns the text of the augmentation; empty without one.
pub(super) fn augmentation(settings: &TrainSettings) -> String {
    settings.augmentation.as_ref().map_or_else(String::new, |augmentation| augmentation.record())
}

/// Returns the text of the cross-validation.
pub(super) fn folds(folds: &FoldResults) -> String {
    let summary = &folds.summary;
    format!(
        ", {} folds with accuracy {:.4} +- {:.4}, then trained on all pictures for {} epochs \
         without a validation set",
        folds.results.len(),
        summary.accuracy,
        summary.deviation,
        summary.epochs
    )
}

/// Returns the text of an interrupted training.
pub(super) fn interrupted(epoch: usize) -> String {
    format!(", interrupted after epoch {epoch}")
}

/// Returns the text of fine-tuning.
pub(super) fn fine_tuning(settings: &FineTuneSettings, tuned: &FineTuned) -> String {
    format!(
        ", then fine-tuned from {} on with rmsprop at {}, best of {} epochs",
        settings.first,
        settings.lr,
        tuned.history.len() - 1
    )
}
