use serde::{Deserialize, Serialize};

use super::head::Evaluation;
use super::optimizer::Moments;
use super::random::Random;
use super::schedule::{FixedRate, LearningRate, Rate};
use super::tail_network::TailWeights;
use super::{DenseWeights, EpochStats, TrainConfig, TrainError};

/// The state of a head in training.
pub type HeadState = TrainState<Vec<DenseWeights>, Rate>;

/// The state of fine-tuning.
pub type FineTuneState = TrainState<TailWeights, FixedRate>;

/// All that training keeps from one epoch to the next.
///
/// Checkpoints hold it as it is serialized: the order of its fields is part of their format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainState<W, R> {
    /// The weights; empty while the network has them.
    pub(super) weights: W,
    /// The state of the optimizer; `None` at the start.
    pub(super) moments: Option<Moments>,
    pub(super) random: Random,
    /// The order of the samples in the current epoch, else in the last one, which the next one
    /// shuffles.
    pub(super) order: Vec<usize>,
    pub(super) rate: R,
    /// The metrics of each epoch so far.
    pub(super) history: Vec<EpochStats>,
    pub(super) best: Option<BestEpoch<W>>,
    /// The current epoch, if it has begun.
    pub(super) partial: Option<PartialEpoch>,
}

/// Progress within an epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct PartialEpoch {
    /// Batches that are done.
    pub(super) batches: usize,
    /// The sum of the losses of their samples.
    pub(super) loss: f64,
    /// Samples among them that were classified correctly.
    pub(super) correct: usize,
}

impl PartialEpoch {
    /// The metrics of the epoch after all its `samples`; `measured` are those of the validation
    /// set.
    pub(super) fn end(
        self,
        epoch: usize,
        samples: usize,
        measured: Option<Evaluation>,
        lr: f64,
    ) -> EpochStats {
        EpochStats {
            epoch,
            loss: self.loss / samples as f64,
            accuracy: self.correct as f64 / samples as f64,
            val_loss: measured.map(|m| m.loss),
            val_accuracy: measured.map(|m| m.accuracy),
            lr,
        }
    }
}

/// A point of training at which the caller is called.
#[derive(Debug, Clone, Copy)]
pub enum ProgressEvent<'a> {
    /// Between two steps of an epoch.
    Batch {
        /// The epoch, from 1.
        epoch: usize,
        /// Batches of it that are done; 0 if it ends before its first.
        done: usize,
    },
    /// After an epoch.
    Epoch {
        /// Its metrics.
        stats: &'a EpochStats,
        /// Whether it is the last one.
        last: bool,
    },
}

impl<'a> ProgressEvent<'a> {
    /// The metrics of the epoch that has just ended.
    pub fn stats(self) -> Option<&'a EpochStats> {
        match self {
            Self::Epoch { stats, .. } => Some(stats),
            Self::Batch { .. } => None,
        }
    }
}

/// The best epoch so far and its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct BestEpoch<W> {
    pub(super) stats: EpochStats,
    pub(super) weights: W,
}

impl<W, R: LearningRate> TrainState<W, R> {
    /// The state before the first epoch.
    pub(super) fn new(config: &TrainConfig, weights: W, random: Random, samples: usize) -> Self {
        Self {
            weights,
            moments: None,
            random,
            order: (0..samples).collect(),
            rate: R::new(config),
            history: Vec::new(),
            best: None,
            partial: None,
        }
    }

    /// Number of epochs that are done.
    pub fn epochs(&self) -> usize {
        self.history.last().map_or(0, |stats| stats.epoch)
    }

    /// Whether no epoch is left to run: all are done, or patience has run out.
    pub(super) fn is_done(&self, config: &TrainConfig) -> bool {
        let best = self.best.as_ref().map_or(0, |best| best.stats.epoch);
        let waited = self.epochs().saturating_sub(best);
        self.epochs() >= config.epochs
            || config.patience.is_some_and(|patience| waited >= patience.max(1))
    }

    /// Checks a state that was read from a file against the training: its history starts at epoch
    /// `first`, and `fits` says whether weights are of the network.
    pub(super) fn check(
        &self,
        config: &TrainConfig,
        samples: usize,
        first: usize,
        fits: impl Fn(&W) -> bool,
    ) -> Result<(), TrainError> {
        let wrong = |what| Err(TrainError::WrongState { what });
        if !fits(&self.weights) || !self.best.as_ref().is_none_or(|best| fits(&best.weights)) {
            return wrong("weights");
        }
        let mut order = self.order.clone();
        order.sort_unstable();
        if !order.iter().copied().eq(0..samples) {
            return wrong("order of the samples");
        }
        let epochs = first..first + self.history.len();
        let is_started = first > 0 || !epochs.is_empty();
        if !is_started || !self.history.iter().map(|stats| stats.epoch).eq(epochs.clone()) {
            return wrong("epochs");
        }
        let is_past = |best: &BestEpoch<W>| epochs.contains(&best.stats.epoch);
        if !self.best.as_ref().map_or(epochs.is_empty(), is_past) {
            return wrong("best epoch");
        }
        let batches = samples.div_ceil(config.batch_size);
        if self.partial.is_some_and(|partial| partial.batches >= batches) {
            return wrong("batches of the epoch");
        }
        Ok(())
    }
}
