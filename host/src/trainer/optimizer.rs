use std::array;

use serde::{Deserialize, Serialize};

use super::Optimizer;

/// An [`Optimizer`] with the state it keeps for each tensor of weights.
///
/// The formulae are those of Keras, from which other libraries differ: an RMSprop that divides by
/// `sqrt(v) + epsilon` rather than `sqrt(v + epsilon)`, for example, makes steps along tiny
/// gradients up to a thousand times smaller. Each step is one pass in place: as a chain of tensor
/// operations it would read and write every weight some eight times, which takes longer than the
/// matrix products.
pub(super) struct OptimizerState {
    rule: Rule,
    moments: Moments,
}

/// The state that an optimizer keeps between steps; part of the format of checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moments {
    /// `beta1^t` and `beta2^t` of Adam's current step `t`.
    beta_powers: [f64; 2],
    tensors: Vec<TensorMoments>,
}

/// Running values for each weight of a tensor; empty if the rule does not use them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct TensorMoments {
    momentum: Vec<f32>,
    velocity: Vec<f32>,
}

/// An [`Optimizer`] with its numbers rounded to `f32` as Keras does.
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
        let tensors = lengths
            .iter()
            .map(|&len| TensorMoments {
                momentum: vec![0.0; if has_momentum { len } else { 0 }],
                velocity: vec![0.0; if has_velocity { len } else { 0 }],
            })
            .collect();
        Self { rule, moments: Moments { beta_powers: [1.0; 2], tensors } }
    }

    /// The state between steps.
    pub(super) fn moments(&self) -> &Moments {
        &self.moments
    }

    /// Continues from a saved state. Returns whether its tensors are of the same lengths.
    pub(super) fn restore(&mut self, moments: Moments) -> bool {
        let lengths = |m: &Moments| -> Vec<_> {
            m.tensors.iter().map(|t| (t.momentum.len(), t.velocity.len())).collect()
        };
        let fits = lengths(&moments) == lengths(&self.moments);
        self.moments = moments;
        fits
    }

    /// Sets the learning rate of the next steps.
    pub(super) fn set_lr(&mut self, rate: f64) {
        match &mut self.rule {
            Rule::RmsProp { lr, .. } | Rule::Adam { lr, .. } | Rule::Sgd { lr, .. } => {
                *lr = rate as f32
            }
        }
    }

    /// Begins a step; called once before the tensors are updated with the gradients of a batch.
    pub(super) fn begin_step(&mut self) {
        if let Rule::Adam { beta1, beta2, .. } = self.rule {
            self.moments.beta_powers[0] *= f64::from(beta1);
            self.moments.beta_powers[1] *= f64::from(beta2);
        }
    }

    /// Steps the tensor `index`. `weights` and `gradient` have the length that was given for it.
    pub(super) fn update(&mut self, index: usize, weights: &mut [f32], gradient: &[f32]) {
        let TensorMoments { momentum, velocity } = &mut self.moments.tensors[index];
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
/// Each weight is stepped by itself, so the pieces do not affect the result.
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
    fn optimizer_steps_follow_the_formula() {
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
    fn optimizer_keeps_separate_state_for_tensors() {
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
