//! Trains the head of a transfer-learning classifier: a small dense network on frozen features.
//!
//! The network is the usual one of Keras,
//!
//! ```text
//! Dense(units, relu) -> Dropout(rate) -> Dense(1, sigmoid)      for two classes
//!                                        Dense(K, softmax)      for K > 2
//! ```
//!
//! (with any number of hidden layers, each with its dropout; with `batch_norm` these are
//! `Dense(units, use_bias=False) -> BatchNormalization -> ReLU -> Dropout`), and [`train()`] does
//! what `model.fit` of Keras 3 does:
//!
//! - Kernels start `glorot_uniform`, uniform in `±sqrt(6 / (inputs + outputs))`, biases at zero.
//! - Each epoch takes the samples in a new random order, in batches of `batch_size`; the last batch
//!   of an epoch holds what is left, and its gradient is the mean over those samples.
//! - Dropout is inverted: in training, each value is set to 0 with probability `rate` and else
//!   divided by `1 - rate`; otherwise it does nothing.
//! - The loss is binary or categorical cross-entropy. It is computed from the logits, without
//!   rounding errors, while Keras computes it from the probabilities, in `f32` and clipped to
//!   `[1e-7, 1 - 1e-7]`. The two agree within 1e-6 for losses of a sample up to 16, but for class 0
//!   of two: there Keras loses the digits of `1 - p`, so they agree within 1e-6 up to losses of 2,
//!   1e-5 up to 5 and 1e-3 up to 10. Beyond 16, in samples that are misclassified with complete
//!   certainty, Keras's clipping sets in: its loss stops growing and its gradient is 0, whereas
//!   here such samples still pull. (Keras on TensorFlow returns to the logits by itself and behaves
//!   as this trainer.)
//! - [`Optimizer`] gives the formulae of the steps, [`Schedule`] the change of the learning rate.
//! - `l2`, `class_weights` and `label_smoothing` do what Keras does under these names; its losses,
//!   too, include the L2 penalty and smoothed labels in validation, and the weights of the classes
//!   in training only.
//! - [`BatchNorm`] uses mean and variance of the batch in training and moving means otherwise; it
//!   is folded into the layer in the end.
//!
//! Beyond Keras, the weights of the best epoch are the ones returned; [`train()`] defines which it
//! is. [`fine_tune()`] trains the last convolutions of the base with the head, by the same loop.
//!
//! # Structure
//!
//! `fit` is the loop. It trains any `network::Network`, of which there are two: `head_network` is a
//! stack of `dense` layers, `tail_network` puts `conv` layers before one. Forward and backward
//! passes are written by hand; matrix products (`product`) are those of the crate gemm.
//!
//! # Reproducibility
//!
//! The same configuration and data give the same weights, bit for bit, whatever the number of
//! threads: all random numbers come from a generator that is seeded with `seed`, and parallel parts
//! never split a sum (the matrix products are divided by tiles of the output, the steps by weights,
//! tiles of maps by images and planes). This does not hold between machines with different
//! processors, since the matrix products use the widest vector instructions and block sizes that
//! suit the caches they find.

mod config;
mod conv;
mod data;
mod dense;
mod error;
mod fine_tune;
mod fit;
mod head;
mod head_network;
mod loss;
mod network;
mod optimizer;
mod pooling;
mod product;
mod random;
mod schedule;
mod state;
mod tail_network;
#[cfg(test)]
mod tests;
mod train;
mod winograd;

/// Maximum number of weights of a layer. Useful heads stay far below (the whole of VGG16's first
/// dense layer has 2^27), so a larger one is a mistake, which would end in the process being killed
/// for want of memory.
const MAX_WEIGHTS: usize = 1 << 29;

pub use config::{Optimizer, Schedule, TrainConfig};
pub use data::{Dataset, FeatureSource};
pub use error::{Split, TrainError};
pub use fine_tune::{FineTuned, Model, fine_tune};
pub use fit::Progress;
pub use head::{BatchNorm, DenseWeights, EpochStats, TrainedHead};
pub use state::{FineTuneState, HeadState, ProgressEvent, TrainState};
pub use train::train;
