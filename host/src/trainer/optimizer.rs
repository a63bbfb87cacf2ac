use std::array;

use serde::{Deserialize, Serialize};

use super::Optimizer;

/// An [`Optimizer`] with the state it keeps for each tensor of weights.
///
/// The steps are written out here rather than taken from `burn::optim` for two reasons. Burn's
/// formulae are not Keras's: its RMSprop divides by `sqrt(v) + epsilon` where Keras divides by
/// `sqrt(v + epsilon)`, which makes steps along tiny gradients up to a thousand times smaller; its Adam corrects the bias of `v` before it adds `epsilon` and not after, and its
/// defaults differ. And as a chain of tensor operations each step would read and write every
/// weight some eight times, which takes longer than the matrix products; here it is one pass in
/// place.
pub(super) struct OptimizerState {
    rule: Rule,
    moments: Moments,
}

/// What an optimiser remembers of the steps so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Moments {
    /// `beta1^t` and `beta2^t` of Adam's current step `t`.
    beta_powers: [f64; 2],
    slots: Vec<Slot>,
}

/// Running values for each weight of a tensor; empty if the rule has no use for them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Slot {
    momentum: Vec<f32>,
    velocity: Vec<f32>,
}

/// An [`Optimizer`] with its numbers rounded to `f32` in the way that Keras does.
#[derive(Clone, Copy)]
enum Rule {
    RmsProp {
        lr: f32,
        rho: f32,
        one_minus_rho: f32,
        epsilon: f32,
        momentum: f32,
    },
    Adam {
        lr: f32,
        beta1: f32,
        beta2: f32,
        one_minus_beta1: f32,
        one_minus_beta2: f32,
        epsilon: f32,
    },
    Sgd {
        lr: f32,
        momentum: f32,
    },
}

impl From<Optimizer> for Rule {
    fn from(optimizer: Optimizer) -> Self {
        match optimizer {
            Optimizer::RmsProp { lr, rho, epsilon, momentum } => Self::RmsProp {
                lr: lr as f32,
                rho: rho as f32,
                one_minus_rho: (1.0 - rho) as f32,
                epsilon: epsilon as f32,
                momentum: momentum as f32,
            },
            Optimizer::Adam { lr, beta1, beta2, epsilon } => Self::Adam {
                lr: lr as f32,
                beta1: beta1 as f32,
                beta2: beta2 as f32,
                one_minus_beta1: (1.0 - beta1) as f32,
                one_minus_beta2: (1.0 - beta2) as f32,
                epsilon: epsilon as f32,
            },
            Optimizer::Sgd { lr, momentum } => {
                Self::Sgd { lr: lr as f32, momentum: momentum as f32 }
            }
        }
    }
}

impl OptimizerState {
    /// State for tensors of the given numbers of weights, all zero.
    pub(super) fn new(optimizer: Optimizer, lengths: &[usize]) -> Self {
        let rule = Rule::from(optimizer);
        let (has_momentum, has_velocity) = match rule {
            Rule::RmsProp { momentum, .. } => (momentum > 0.0, true),
            Rule::Adam { .. } => (true, true),
            Rule::Sgd { momentum, .. } => (momentum > 0.0, false),
        };
        let slots = lengths
            .iter()
            .map(|&len| Slot {
                momentum: vec![0.0; if has_momentum { len } else { 0 }],
                velocity: vec![0.0; if has_velocity { len } else { 0 }],
            })
            .collect();
        Self { rule, moments: Moments { beta_powers: [1.0; 2], slots } }
    }

    /// What it remembers.
    pub(super) fn moments(&self) -> &Moments {
        &self.moments
    }

    /// Goes on where another one was; whether the tensors are of the same lengths.
    pub(super) fn restore(&mut self, moments: Moments) -> bool {
        let lengths = |m: &Moments| {
            m.slots.iter().map(|s| (s.momentum.len(), s.velocity.len())).collect::<Vec<_>>()
        };
        let fits = lengths(&moments) == lengths(&self.moments);
        self.moments = moments;
        fits
    }

    /// The learning rate of the next steps.
    pub(super) fn set_lr(&mut self, rate: f64) {
        match &mut self.rule {
            Rule::RmsProp { lr, .. } | Rule::Adam { lr, .. } | Rule::Sgd { lr, .. } => {
                *lr = rate as f32
            }
        }
    }

    /// To be called once before the tensors are updated with the gradients of a batch.
    pub(super) fn begin_step(&mut self) {
        if let Rule::Adam { beta1, beta2, .. } = self.rule {
            self.moments.beta_powers[0] *= f64::from(beta1);
            self.moments.beta_powers[1] *= f64::from(beta2);
        }
    }

    /// Steps the tensor `index`. All three have the length that was given for it.
    pub(super) fn update(&mut self, index: usize, weights: &mut [f32], gradient: &[f32]) {
        let Slot { momentum, velocity } = &mut self.moments.slots[index];
        let (momentum, velocity) = (momentum.as_mut_slice(), velocity.as_mut_slice());
        match self.rule {
            Rule::RmsProp { lr, rho, one_minus_rho, epsilon, momentum: decay } => {
                let increment = move |g: f32, v: &mut f32| {
                    *v = rho * *v + one_minus_rho * (g * g);
                    lr * g / (*v + epsilon).sqrt()
                };
                if decay > 0.0 {
                    in_chunks(weights, gradient, [momentum, velocity], &|w, g, [m, v]| {
                        for (((w, &g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                            *m = decay * *m + increment(g, v);
                            *w -= *m;
                        }
                    });
                } else {
                    in_chunks(weights, gradient, [velocity], &|w, g, [v]| {
                        for ((w, &g), v) in w.iter_mut().zip(g).zip(v) {
                            *w -= increment(g, v);
                        }
                    });
                }
            }
            Rule::Adam { lr, one_minus_beta1, one_minus_beta2, epsilon, .. } => {
                // Keras rounds the powers to f32 before it subtracts them from 1.
                let [power1, power2] = self.moments.beta_powers.map(|power| power as f32);
                let alpha = lr * (1.0 - power2).sqrt() / (1.0 - power1);
                in_chunks(weights, gradient, [momentum, velocity], &|w, g, [m, v]| {
                    for (((w, &g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                        *m += (g - *m) * one_minus_beta1;
                        *v += (g * g - *v) * one_minus_beta2;
                        *w -= *m * alpha / (v.sqrt() + epsilon);
                    }
                });
            }
            Rule::Sgd { lr, momentum: decay } => {
                if decay > 0.0 {
                    in_chunks(weights, gradient, [momentum], &|w, g, [m]| {
                        for ((w, &g), m) in w.iter_mut().zip(g).zip(m) {
                            *m = *m * decay - g * lr;
                            *w += *m;
                        }
                    });
                } else {
                    in_chunks(weights, gradient, [], &|w, g, []| {
                        for (w, &g) in w.iter_mut().zip(g) {
                            *w -= g * lr;
                        }
                    });
                }
            }
        }
    }
}

/// Work for one thread: long enough to outweigh handing it over.
const CHUNK: usize = 1 << 15;

/// Runs `step` on pieces of the slices, all of the same length, in parallel.
///
/// Each weight is stepped by itself, so the pieces have no influence on the outcome.
fn in_chunks<const N: usize>(
    weights: &mut [f32],
    gradient: &[f32],
    state: [&mut [f32]; N],
    step: &(impl Fn(&mut [f32], &[f32], [&mut [f32]; N]) + Sync),
) {
    if weights.len() <= CHUNK {
        return step(weights, gradient, state);
    }
    let middle = weights.len() / 2;
    let (weights0, weights1) = weights.split_at_mut(middle);
    let (gradient0, gradient1) = gradient.split_at(middle);
    let mut state0: [&mut [f32]; N] = array::from_fn(|_| Default::default());
    let mut state1: [&mut [f32]; N] = array::from_fn(|_| Default::default());
    for (i, values) in state.into_iter().enumerate() {
        (state0[i], state1[i]) = values.split_at_mut(middle);
    }
    rayon::join(
        || in_chunks(weights0, gradient0, state0, step),
        || in_chunks(weights1, gradient1, state1, step),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formulae of [`Optimizer`] in `f64`, one weight, written down a second time.
    fn reference(optimizer: Optimizer, mut w: f64, gradients: &[f64]) -> f64 {
        let (mut m, mut v) = (0.0, 0.0);
        for (g, t) in gradients.iter().zip(1..) {
            match optimizer {
                Optimizer::RmsProp { lr, rho, epsilon, momentum } => {
                    v = rho * v + (1.0 - rho) * g * g;
                    m = momentum * m + lr * g / (v + epsilon).sqrt();
                    w -= m;
                }
                Optimizer::Adam { lr, beta1, beta2, epsilon } => {
                    m += (g - m) * (1.0 - beta1);
                    v += (g * g - v) * (1.0 - beta2);
                    let alpha = lr * (1.0 - beta2.powi(t)).sqrt() / (1.0 - beta1.powi(t));
                    w -= alpha * m / (v.sqrt() + epsilon);
                }
                Optimizer::Sgd { lr, momentum } => {
                    m = momentum * m - lr * g;
                    w += m;
                }
            }
        }
        w
    }

    #[test]
    fn every_weight_follows_the_formula() {
        let rules = [
            Optimizer::rms_prop(0.01),
            Optimizer::RmsProp { lr: 0.02, rho: 0.7, epsilon: 1e-3, momentum: 0.6 },
            Optimizer::adam(0.01),
            Optimizer::sgd(0.1),
            Optimizer::Sgd { lr: 0.1, momentum: 0.9 },
        ];
        // Long enough for several chunks of unequal length.
        let len = 5 * CHUNK + 3;
        let gradient = |step: usize, i: usize| ((i * 7 + step * 3) % 23) as f32 * 0.1 - 1.1;
        for optimizer in rules {
            let mut state = OptimizerState::new(optimizer, &[1, len]);
            let mut weights: Vec<f32> = (0..len).map(|i| (i % 11) as f32 * 0.2 - 1.0).collect();
            let start = weights.clone();
            for step in 0..6 {
                let gradients: Vec<f32> = (0..len).map(|i| gradient(step, i)).collect();
                state.begin_step();
                state.update(1, &mut weights, &gradients);
            }
            for i in (0..len).step_by(997).chain([len - 1]) {
                let gradients: Vec<f64> = (0..6).map(|s| f64::from(gradient(s, i))).collect();
                let expected = reference(optimizer, f64::from(start[i]), &gradients);
                let difference = (f64::from(weights[i]) - expected).abs();
                assert!(difference < 1e-5, "{optimizer:?}, weight {i}: {difference}");
            }
        }
    }

    #[test]
    fn tensors_keep_separate_state() {
        let mut state = OptimizerState::new(Optimizer::rms_prop(0.01), &[1, 1]);
        let (mut a, mut b) = ([0.0], [0.0]);
        state.begin_step();
        state.update(0, &mut a, &[1.0]);
        state.begin_step();
        state.update(0, &mut a, &[1.0]);
        state.update(1, &mut b, &[1.0]);
        assert!(a[0] < b[0] && b[0] < 0.0);
    }
}
