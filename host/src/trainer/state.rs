use serde::{Deserialize, Serialize};

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
    /// The order of the samples in the last epoch, which the next one shuffles.
    pub(super) order: Vec<usize>,
    pub(super) rate: Rate,
    /// One for each epoch so far.
    pub(super) history: Vec<EpochStats>,
    pub(super) best: Option<Best>,
}

/// The best epoch so far and its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Best {
    pub(super) stats: EpochStats,
    pub(super) layers: Vec<DenseWeights>,
}

impl State {
    /// Before the first epoch.
    pub(super) fn new(config: &TrainConfig, layers: Vec<DenseWeights>, random: Random, samples: usize) -> Self {
        let (order, rate) = ((0..samples).collect(), Rate::new(config));
        Self { layers, moments: None, random, order, rate, history: Vec::new(), best: None }
    }

    /// How many epochs are done.
    pub fn epochs(&self) -> usize {
        self.history.len()
    }

    /// Whether more epochs have passed since the best than patience allows.
    pub(super) fn out_of_patience(&self, config: &TrainConfig) -> bool {
        let waited = self.history.len() - self.best.as_ref().map_or(0, |best| best.stats.epoch);
        config.patience.is_some_and(|patience| !self.history.is_empty() && waited >= patience.max(1))
    }

    /// Holds a state that was read from a file against the network and the data.
    pub(super) fn check(&self, widths: &[usize], batch_norm: bool, samples: usize) -> Result<(), TrainError> {
        let wrong = |what| Err(TrainError::WrongState { what });
        let fits = |layers: &[DenseWeights]| {
            layers.len() + 1 == widths.len()
                && layers.iter().zip(widths.windows(2)).enumerate().all(|(index, (layer, pair))| {
                    let (inputs, outputs) = (pair[0], pair[1]);
                    let hidden = index + 2 < widths.len();
                    let norm = layer.norm.as_ref();
                    (layer.inputs, layer.outputs) == (inputs, outputs)
                        && (layer.kernel.len(), layer.bias.len()) == (inputs * outputs, outputs)
                        && norm.is_some() == (batch_norm && hidden)
                        && norm.is_none_or(|n| [&n.gamma, &n.mean, &n.variance].iter().all(|v| v.len() == outputs))
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
        let best = self.best.as_ref();
        if !best.is_some_and(|best| (1..=self.history.len()).contains(&best.stats.epoch) && fits(&best.layers)) {
            return wrong("best epoch");
        }
        Ok(())
    }
}
