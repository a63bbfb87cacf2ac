//! The training loop, for every network.

use std::ops::ControlFlow;

use super::data::all_finite;
use super::head::Evaluation;
use super::loss::{LossRule, cross_entropy};
use super::network::{Dropout, Network, sum_of_squares};
use super::optimizer::OptimizerState;
use super::schedule::LearningRate;
use super::state::{BestEpoch, PartialEpoch};
use super::{Dataset, EpochStats, ProgressEvent, Split, TrainConfig, TrainError, TrainState};

/// A report to the caller after a batch or an epoch.
pub struct Progress<'a, S> {
    /// The point that training has reached.
    pub at: ProgressEvent<'a>,
    snapshot: &'a dyn Fn() -> S,
}

impl<S> Progress<'_, S> {
    /// A copy of everything needed to resume from here; some four times the size of the weights.
    pub fn state(&self) -> S {
        (self.snapshot)()
    }
}

/// The state of the training of a network.
pub(super) type StateOf<N> = TrainState<<N as Network>::Weights, <N as Network>::Rate>;

/// A callback that may stop the training.
pub(super) type OnEvent<'a, N> = dyn FnMut(&Progress<StateOf<N>>) -> ControlFlow<()> + 'a;

/// One training. Everything in it is valid.
pub(super) struct Fit<'a, N: Network> {
    config: &'a TrainConfig,
    training: &'a Dataset<'a>,
    validation: Option<&'a Dataset<'a>>,
    network: N,
    optimizer: OptimizerState,
    /// Its weights and moments are those at the start; the current ones are in `network` and
    /// `optimizer`.
    state: StateOf<N>,
    on_event: &'a mut OnEvent<'a, N>,
}

impl<'a, N: Network> Fit<'a, N> {
    /// Starts, or resumes, from `state`, whose weights `network` has.
    ///
    /// # Errors
    /// If the state of the optimizer is of another network.
    pub(super) fn new(
        config: &'a TrainConfig,
        (training, validation): (&'a Dataset<'a>, Option<&'a Dataset<'a>>),
        network: N,
        mut state: StateOf<N>,
        on_event: &'a mut OnEvent<'a, N>,
    ) -> Result<Self, TrainError> {
        let lengths: Vec<usize> =
            network.parameters().iter().map(|parameter| parameter.values.len()).collect();
        let mut optimizer = OptimizerState::new(config.optimizer, &lengths);
        if let Some(moments) = state.moments.take()
            && !optimizer.restore(moments)
        {
            return Err(TrainError::WrongState { what: "state of the optimizer" });
        }
        Ok(Self { config, training, validation, network, optimizer, state, on_event })
    }

    /// Measures the network as epoch 0, on the validation set or else on the training set.
    pub(super) fn measure_start(&mut self) -> Result<ControlFlow<()>, TrainError> {
        let (split, data) = match self.validation {
            Some(validation) => (Split::Validation, validation),
            None => (Split::Training, self.training),
        };
        let lr = self.config.optimizer.lr();
        let before = self.evaluate(split, data, TrainError::NonFiniteWeights { epoch: 0, lr })?;
        let measured = self.validation.map(|_| before);
        let stats = EpochStats {
            epoch: 0,
            loss: before.loss,
            accuracy: before.accuracy,
            val_loss: measured.map(|m| m.loss),
            val_accuracy: measured.map(|m| m.accuracy),
            lr,
        };
        Ok(self.record(stats, self.network.weights()))
    }

    /// The state as it is, but for the weights and moments.
    pub(super) fn into_state(self) -> StateOf<N> {
        self.state
    }

    /// Runs the epochs that are left, unless the callback stops them.
    pub(super) fn run(mut self) -> Result<StateOf<N>, TrainError> {
        while !self.state.is_done(self.config) && self.epoch()?.is_continue() {}
        Ok(self.state)
    }

    /// One epoch, or what is left of it.
    fn epoch(&mut self) -> Result<ControlFlow<()>, TrainError> {
        let epoch = self.state.epochs() + 1;
        let prepared = self.training.features.prepare(epoch);
        if prepared.map_err(|reason| TrainError::Source { epoch, reason })?.is_break() {
            let done = self.state.partial.map_or(0, |partial| partial.batches);
            // It stops whatever the callback answers.
            let _ = self.report(ProgressEvent::Batch { epoch, done });
            return Ok(ControlFlow::Break(()));
        }
        if self.config.shuffle && self.state.partial.is_none() {
            self.state.random.order.shuffle(&mut self.state.order);
        }
        let samples = self.state.order.len();
        let batches = samples.div_ceil(self.config.batch_size);
        let mut lr = 0.0;
        let mut partial = self.state.partial.take().unwrap_or_default();
        while partial.batches < batches {
            let step = (epoch - 1) * batches + partial.batches;
            lr = self.state.rate.at(self.config, epoch, step, self.config.epochs * batches);
            self.optimizer.set_lr(lr);
            partial = self.step(epoch, partial, lr)?;
            if partial.batches < batches {
                self.state.partial = Some(partial);
                if self.report(ProgressEvent::Batch { epoch, done: partial.batches }).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        self.state.partial = None;
        self.end_epoch(epoch, partial, lr)
    }

    /// One step, on the batch after those of `partial`.
    fn step(
        &mut self,
        epoch: usize,
        partial: PartialEpoch,
        lr: f64,
    ) -> Result<PartialEpoch, TrainError> {
        let Self { config, state, network, .. } = self;
        let first = partial.batches * config.batch_size;
        let rows = &state.order[first..state.order.len().min(first + config.batch_size)];
        let (features, labels) = self.training.batch(Split::Training, rows)?;
        let samples = rows.len();
        let stream = &mut state.random.dropout;
        let dropout = (config.dropout > 0.0).then_some(Dropout { rate: config.dropout, stream });
        let logits = network.forward(features, samples, dropout);
        let batch = partial.batches + 1;
        if !all_finite(&logits) {
            return Err(TrainError::NonFiniteLoss { epoch, batch, lr });
        }
        let rule = LossRule { smoothing: config.label_smoothing, weights: &config.class_weights };
        let loss = cross_entropy(&logits, &labels, config.outputs(), rule);
        network.backward(loss.gradient);
        let penalty = self.update();
        Ok(PartialEpoch {
            batches: batch,
            loss: partial.loss + (loss.sum + penalty * samples as f64),
            correct: partial.correct + loss.correct,
        })
    }

    /// Steps all weights. Returns the L2 penalty before the step, whose gradient is added to that
    /// of the loss.
    fn update(&mut self) -> f64 {
        let l2 = self.config.l2;
        let mut penalty = 0.0;
        self.optimizer.begin_step();
        for (index, parameter) in self.network.parameters_mut().into_iter().enumerate() {
            let (values, gradient) = (&mut parameter.values, &mut parameter.gradient);
            if l2 > 0.0 && parameter.is_kernel {
                penalty += l2 * sum_of_squares(values);
                let factor = (2.0 * l2) as f32;
                for (gradient, weight) in gradient.iter_mut().zip(&*values) {
                    *gradient += factor * weight;
                }
            }
            self.optimizer.update(index, values, gradient);
        }
        penalty
    }

    /// Measures and records an epoch whose batches are done.
    fn end_epoch(
        &mut self,
        epoch: usize,
        partial: PartialEpoch,
        lr: f64,
    ) -> Result<ControlFlow<()>, TrainError> {
        let diverged = TrainError::NonFiniteWeights { epoch, lr };
        // The losses do not show what the last step of the epoch did.
        let weights = self.network.weights();
        if !N::is_finite(&weights) {
            return Err(diverged);
        }
        let measured = match self.validation {
            Some(validation) => Some(self.evaluate(Split::Validation, validation, diverged)?),
            None => None,
        };
        let stats = partial.end(epoch, self.state.order.len(), measured, lr);
        self.state.rate.end_epoch(self.config, stats.val_loss.unwrap_or(stats.loss));
        Ok(self.record(stats, weights))
    }

    /// Mean loss, with the L2 penalty, and accuracy; `diverged` if a logit is not finite.
    fn evaluate(
        &self,
        split: Split,
        data: &Dataset,
        diverged: TrainError,
    ) -> Result<Evaluation, TrainError> {
        let config = self.config;
        // Keras weights the classes in training only.
        let smoothing = if N::SMOOTHED_VALIDATION { config.label_smoothing } else { 0.0 };
        let rule = LossRule { smoothing, weights: &[] };
        let measured = evaluate(&self.network, config.outputs(), split, data, rule)?;
        let mut measured = measured.ok_or(diverged)?;
        if config.l2 > 0.0 {
            let parameters = self.network.parameters();
            let kernels = parameters.iter().filter(|parameter| parameter.is_kernel);
            let squares: f64 = kernels.map(|kernel| sum_of_squares(&kernel.values)).sum();
            measured.loss += config.l2 * squares;
        }
        Ok(measured)
    }

    /// Adds an epoch to the history, keeps its weights if it is the best, and reports it.
    fn record(&mut self, stats: EpochStats, weights: N::Weights) -> ControlFlow<()> {
        self.state.history.push(stats);
        let best = self.state.best.as_ref();
        if self.config.keep_last || best.is_none_or(|best| is_better(&stats, &best.stats)) {
            self.state.best = Some(BestEpoch { stats, weights });
        }
        let last = self.state.is_done(self.config);
        self.report(ProgressEvent::Epoch { stats: &stats, last })
    }

    fn report(&mut self, at: ProgressEvent) -> ControlFlow<()> {
        let Self { network, optimizer, state, on_event, .. } = self;
        let snapshot = || TrainState {
            weights: network.weights(),
            moments: Some(optimizer.moments().clone()),
            ..state.clone()
        };
        on_event(&Progress { at, snapshot: &snapshot })
    }
}

/// Mean loss and accuracy of valid data; `None` if a logit is not finite.
pub(super) fn evaluate<N: Network>(
    network: &N,
    outputs: usize,
    split: Split,
    data: &Dataset,
    rule: LossRule,
) -> Result<Option<Evaluation>, TrainError> {
    let rows: Vec<usize> = (0..data.labels.len()).collect();
    let (mut loss, mut correct) = (0.0, 0);
    for rows in rows.chunks(N::EVALUATION_ROWS) {
        let (features, labels) = data.batch(split, rows)?;
        let logits = network.logits(features, rows.len());
        if !all_finite(&logits) {
            return Ok(None);
        }
        let batch = cross_entropy(&logits, &labels, outputs, rule);
        loss += batch.sum;
        correct += batch.correct;
    }
    let samples = rows.len() as f64;
    Ok(Some(Evaluation { loss: loss / samples, accuracy: correct as f64 / samples }))
}

fn is_better(new: &EpochStats, old: &EpochStats) -> bool {
    match (new.val_accuracy, old.val_accuracy) {
        (Some(accuracy), Some(best)) if accuracy != best => accuracy > best,
        (Some(_), Some(_)) => new.val_loss < old.val_loss,
        _ => new.loss < old.loss,
    }
}
