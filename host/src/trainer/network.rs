//! Common parts of the networks that the loop trains.

use super::random::Stream;
use super::schedule::LearningRate;

/// A tensor of weights with the gradient of the latest batch.
pub(super) struct Parameter {
    pub(super) values: Vec<f32>,
    /// As many as `values`; meaningless before the first backward pass.
    pub(super) gradient: Vec<f32>,
    /// Whether the L2 penalty counts it.
    pub(super) is_kernel: bool,
}

impl Parameter {
    pub(super) fn kernel(values: Vec<f32>) -> Self {
        Self { is_kernel: true, ..Self::offset(values) }
    }

    /// A bias, or anything else that the L2 penalty leaves out.
    pub(super) fn offset(values: Vec<f32>) -> Self {
        Self { gradient: vec![0.0; values.len()], values, is_kernel: false }
    }
}

/// Dropout of a forward pass: the fraction of values set to zero, and the source of its masks.
pub(super) struct Dropout<'a> {
    pub(super) rate: f32,
    pub(super) stream: &'a mut Stream,
}

/// A network with hand-written forward and backward passes.
pub(super) trait Network {
    /// A copy of all weights.
    type Weights: Clone;
    /// The learning rate as training advances.
    type Rate: LearningRate;

    /// Rows that are evaluated at once.
    const EVALUATION_ROWS: usize;
    /// Whether smoothed labels count in validation, as in Keras.
    const SMOOTHED_VALIDATION: bool;

    /// All parameters, always in the same order.
    fn parameters(&self) -> Vec<&Parameter>;

    /// As [`parameters`](Self::parameters), to be stepped.
    fn parameters_mut(&mut self) -> Vec<&mut Parameter>;

    /// A copy of the weights.
    fn weights(&self) -> Self::Weights;

    /// Whether no weight is infinite or not a number.
    fn is_finite(weights: &Self::Weights) -> bool;

    /// Computes the logits of `features`, `[rows, dim]`, as after training: without dropout.
    fn logits(&self, features: Vec<f32>, rows: usize) -> Vec<f32>;

    /// Computes the logits of a batch in training, and keeps what the backward pass uses.
    fn forward(&mut self, features: Vec<f32>, rows: usize, dropout: Option<Dropout>) -> Vec<f32>;

    /// Replaces all gradients by those of the latest [`forward`](Self::forward), given the
    /// gradient of the loss by its logits.
    fn backward(&mut self, upstream: Vec<f32>);
}

/// Replaces each value by `max(x, 0)`; NaN stays, so that divergence is detected.
pub(super) fn relu(values: &mut [f32]) {
    for value in values {
        *value = if is_active(*value) { *value } else { 0.0 };
    }
}

/// Sets the gradient to zero where ReLU did so with its input, or with its output.
pub(super) fn relu_backward(sums: &[f32], gradient: &mut [f32]) {
    for (gradient, &sum) in gradient.iter_mut().zip(sums) {
        *gradient = if is_active(sum) { *gradient } else { 0.0 };
    }
}

/// Whether ReLU lets a value through.
fn is_active(value: f32) -> bool {
    value.is_nan() || value > 0.0
}

/// Adds up the rows of a matrix, first to last.
pub(super) fn sum_rows(values: &[f32], columns: usize) -> Vec<f32> {
    let mut sums = vec![0.0; columns];
    for row in values.chunks_exact(columns) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    sums
}

/// Returns the gradient of values that were added to every row: [`sum_rows`], except that a single
/// row keeps its negative zeros.
pub(super) fn broadcast_backward(gradient: &[f32], columns: usize) -> Vec<f32> {
    if gradient.len() == columns { gradient.to_vec() } else { sum_rows(gradient, columns) }
}

/// In eight interleaved sums, so that it is vectorized and always adds in the same order.
pub(super) fn sum_of_squares(values: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    for chunk in values.chunks(8) {
        for (sum, &value) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    sums.iter().sum()
}
