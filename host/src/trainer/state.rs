use serde::{Deserialize, Serialize};

use super::head::Evaluation;
use super::optimizer::Moments;
use super::random::Random;
use super::schedule::Rate;
use super::{DenseWeights, EpochStats, TrainConfig, TrainError};

/// All that training keeps from one epoch to the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The weights; empty while the network has them.
    pub(super) layers: Vec<DenseWeights>,
    /// What the optimiser remembers; `None` at the start.
    pub(super) moments: Option<Moments>,
    pub(super) random: Random,
    /// The order of the samples in the epoch at hand, else in the last one, which the next one shuffles.
    pub(super) order: Vec<usize>,
    pub(super) rate: Rate,
    /// One for each epoch so far.
    pub(super) history: Vec<EpochStats>,
    pub(super) best: Option<Best>,
    /// The epoch at hand, if it has begun.
    pub(super) part: Option<Part>,
}

/// What has been done of an epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Part {
    /// Batches behind it.
    pub(super) batches: usize,
    /// The losses of their samples, added up.
    pub(super) loss: f64,
    /// Samples among them that were classified correctly.
    pub(super) correct: usize,
}

impl Part {
    /// The figures of an epoch that has come to its end after `samples`, `measured` on what validates.
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

/// Where a training stands when it is heard of.
#[derive(Debug, Clone, Copy)]
pub enum Moment<'a> {
    /// Between two steps of an epoch.
    Batch {
        /// The epoch, from 1.
        epoch: usize,
        /// Batches of it that are done; 0 if it is ended before its first.
        done: usize,
    },
    /// After an epoch.
    Epoch {
        /// Its figures.
        stats: &'a EpochStats,
        /// Whether no other follows.
        last: bool,
    },
}

impl<'a> Moment<'a> {
    /// The figures of the epoch that has just ended.
    pub fn stats(self) -> Option<&'a EpochStats> {
        match self {
            Self::Epoch { stats, .. } => Some(stats),
            Self::Batch { .. } => None,
        }
    }
}

/// The best epoch so far and its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Best {
    pub(super) stats: EpochStats,
    pub(super) layers: Vec<DenseWeights>,
}

impl State {
    /// Before the first epoch.
    pub(super) fn new(
        config: &TrainConfig,
        layers: Vec<DenseWeights>,
        random: Random,
        samples: usize,
    ) -> Self {
        let (order, rate) = ((0..samples).collect(), Rate::new(config));
        Self {
            layers,
            moments: None,
            random,
            order,
            rate,
            history: Vec::new(),
            best: None,
            part: None,
        }
    }

    /// How many epochs are done.
    pub fn epochs(&self) -> usize {
        self.history.len()
    }

    /// Whether more epochs have passed since the best than patience allows.
    pub(super) fn out_of_patience(&self, config: &TrainConfig) -> bool {
        let waited = self.history.len() - self.best.as_ref().map_or(0, |best| best.stats.epoch);
        config
            .patience
            .is_some_and(|patience| !self.history.is_empty() && waited >= patience.max(1))
    }

    /// Whether no epoch is left to run.
    pub(super) fn is_done(&self, config: &TrainConfig) -> bool {
        self.history.len() >= config.epochs || self.out_of_patience(config)
    }

    /// Holds a state that was read from a file against the network, whose layers have these widths, and the data.
    pub(super) fn check(
        &self,
        config: &TrainConfig,
        widths: &[usize],
        samples: usize,
    ) -> Result<(), TrainError> {
        let wrong = |what| Err(TrainError::WrongState { what });
        let fits = |layers: &[DenseWeights]| {
            layers.len() + 1 == widths.len()
                && layers.iter().zip(widths.windows(2)).enumerate().all(|(index, (layer, pair))| {
                    let (inputs, outputs) = (pair[0], pair[1]);
                    let hidden = index + 2 < widths.len();
                    let norm = layer.norm.as_ref();
                    (layer.inputs, layer.outputs) == (inputs, outputs)
                        && (layer.kernel.len(), layer.bias.len()) == (inputs * outputs, outputs)
                        && norm.is_some() == (config.batch_norm && hidden)
                        && norm.is_none_or(|n| {
                            [&n.gamma, &n.mean, &n.variance].iter().all(|v| v.len() == outputs)
                        })
                        && layer.is_finite()
                })
        };
        if !fits(&self.layers) {
            return wrong("weights");
        }
        let mut order = self.order.clone();
        order.sort_unstable();
        if !order.iter().copied().eq(0..samples) {
            return wrong("order of the samples");
        }
        let of_history = |best: &Best| {
            (1..=self.history.len()).contains(&best.stats.epoch) && fits(&best.layers)
        };
        if !self.best.as_ref().map_or(self.history.is_empty(), of_history) {
            return wrong("best epoch");
        }
        if self.part.is_some_and(|part| part.batches >= samples.div_ceil(config.batch_size)) {
            return wrong("batches of the epoch");
        }
        Ok(())
    }
}
