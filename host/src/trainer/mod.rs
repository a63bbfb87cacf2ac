//! Trains the head of a transfer-learning classifier: a small dense network on frozen features.
//!
//! The network is the usual one of Keras,
//!
//! ```text
//! Dense(units, relu) -> Dropout(rate) -> Dense(1, sigmoid)      for two classes
//!                                        Dense(K, softmax)      for K > 2
//! ```
//!
//! (with any number of hidden layers, each with its dropout; with `batch_norm` these are `Dense(units, use_bias=False) ->
//! BatchNormalization -> ReLU -> Dropout`), and [`train`] does what `model.fit` of Keras 3 does:
//!
//! - Kernels start `glorot_uniform`, uniform in `±sqrt(6 / (inputs + outputs))`, biases at zero.
//! - Each epoch takes the samples in a new random order, in batches of `batch_size`; the last batch
//!   of an epoch holds what is left, and its gradient is the mean over those samples.
//! - Dropout is inverted: while training, each value is set to 0 with probability `rate` and else
//!   divided by `1 - rate`; otherwise it does nothing.
//! - The loss is binary or categorical cross-entropy. It is computed from the logits, without
//!   rounding errors, while Keras computes it from the probabilities, in `f32` and clipped to
//!   `[1e-7, 1 - 1e-7]`. The two agree within 1e-6 for losses of a sample up to 16, but for class 0
//!   of two: there Keras loses the digits of `1 - p`, so they agree within 1e-6 up to losses of 2,
//!   1e-5 up to 5 and 1e-3 up to 10. Beyond 16, in samples that are misclassified with complete
//!   certainty, Keras's clipping sets in: its loss stops growing and its gradient is 0, whereas
//!   here such samples go on pulling. (Keras on TensorFlow goes back to the logits by itself and
//!   does as it is done here.)
//! - [`Optimizer`] gives the formulae of the steps, [`Schedule`] how the learning rate goes on.
//! - `l2`, `class_weights` and `label_smoothing` do what Keras does under these names; its losses, too, hold the L2 penalty and smoothed
//!   labels in validation, and the weights of the classes in training only.
//! - [`BatchNorm`] goes by the batch while training and by moving means otherwise; it is folded into the layer in the end.
//!
//! Beyond Keras, the weights of the best epoch are the ones returned; [`train`] says which it is.
//!
//! # Reproducibility
//!
//! The same configuration and data give the same weights, bit for bit, whatever the number of
//! threads: all random numbers come from a generator of our own that is seeded with `seed`, and
//! the parallel parts never split a sum (the matrix products are divided by tiles of the output,
//! the steps by weights). It does not hold between machines with other processors, since the matrix
//! products use the widest vector instructions and block sizes fit for the caches they find.

mod config;
mod data;
mod error;
mod fine_tune;
mod fit;
mod head;
mod loss;
mod network;
mod optimizer;
mod random;
mod schedule;
mod state;
#[cfg(test)]
mod tests;

/// The most weights of a layer. Heads that are of use stay far below (the whole of VGG16's first
/// dense layer has 2^27), so a larger one is a mistake, which would end in the process being killed
/// for want of memory.
const MAX_WEIGHTS: usize = 1 << 29;

pub use config::{Optimizer, Schedule, TrainConfig};
pub use data::{Dataset, FeatureSource};
pub use error::{Split, TrainError};
pub use fine_tune::{FineTuneState, FineTuned, Model, fine_tune};
pub use fit::{Progress, train};
pub use head::{BatchNorm, DenseWeights, EpochStats, TrainedHead};
pub use state::{Moment, State};
