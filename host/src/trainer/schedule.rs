use serde::{Deserialize, Serialize};

use super::{Schedule, TrainConfig};

/// Keras's `min_delta` of `ReduceLROnPlateau`.
const MIN_DELTA: f64 = 1e-4;

/// The learning rate as training goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Rate {
    /// That of the optimiser, less what plateaus have taken.
    base: f64,
    /// Lowest loss so far, for plateaus.
    best: f64,
    /// Epochs since then.
    waited: usize,
}

impl Rate {
    pub(super) fn new(config: &TrainConfig) -> Self {
        Self { base: config.optimizer.lr(), best: f64::INFINITY, waited: 0 }
    }

    /// The rate of a step: `epoch` from 1, `step` of all `steps` of the training from 0.
    pub(super) fn at(&self, config: &TrainConfig, epoch: usize, step: usize, steps: usize) -> f64 {
        match config.schedule {
            Schedule::Constant | Schedule::Plateau { .. } => self.base,
            Schedule::Cosine => {
                let share = step.min(steps) as f64 / steps.max(1) as f64;
                self.base * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * share))
            }
            Schedule::Step { epochs } => {
                let tenths = (epoch - 1) / epochs.max(1);
                self.base * libm::pow(0.1, tenths as f64)
            }
        }
    }

    /// Takes in the loss of an epoch.
    pub(super) fn end_epoch(&mut self, config: &TrainConfig, loss: f64) {
        let Schedule::Plateau { patience } = config.schedule else { return };
        if loss < self.best - MIN_DELTA {
            self.best = loss;
            self.waited = 0;
            return;
        }
        self.waited += 1;
        if self.waited >= patience {
            self.base *= 0.5;
            self.waited = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trainer::Optimizer;

    fn config(schedule: Schedule) -> TrainConfig {
        TrainConfig { optimizer: Optimizer::sgd(0.8), schedule, ..TrainConfig::default() }
    }

    #[test]
    fn cosine_goes_from_all_to_nothing() {
        let config = config(Schedule::Cosine);
        let rate = Rate::new(&config);
        let at = |step| rate.at(&config, 1, step, 100);
        assert_eq!(at(0), 0.8);
        assert!((at(50) - 0.4).abs() < 1e-12 && at(100) < 1e-12);
        assert!((1..100).all(|step| at(step) < at(step - 1)));
    }

    #[test]
    fn steps_are_tenths() {
        let config = config(Schedule::Step { epochs: 3 });
        let rates: Vec<f64> =
            (1..=7).map(|epoch| Rate::new(&config).at(&config, epoch, 0, 1)).collect();
        for (found, wanted) in rates.iter().zip([0.8, 0.8, 0.8, 0.08, 0.08, 0.08, 0.008]) {
            assert!((found - wanted).abs() < 1e-12, "{rates:?}");
        }
    }

    #[test]
    fn plateaus_halve() {
        let config = config(Schedule::Plateau { patience: 2 });
        let mut rate = Rate::new(&config);
        // The fourth is not better by enough; the fifth makes two in a row; then it begins anew.
        let losses = [1.0, 0.9, 0.8, 0.799_95, 0.85, 0.85, 0.79, 0.79, 0.79];
        let rates = losses.map(|loss| {
            rate.end_epoch(&config, loss);
            rate.at(&config, 1, 0, 1)
        });
        assert_eq!(rates, [0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.4, 0.2]);
    }
}
