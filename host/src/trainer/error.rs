use std::fmt;

use thiserror::Error;

/// Which of the two data sets an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// The samples that the weights are fitted to.
    Training,
    /// The samples that only measure the weights.
    Validation,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Training => "training",
            Self::Validation => "validation",
        })
    }
}

/// Why a head could not be trained or evaluated.
///
/// Rows count from 0, as in [`Dataset`](super::Dataset); epochs and batches from 1, as people and
/// Keras count them.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A field of [`TrainConfig`](super::TrainConfig) is outside its range.
    #[error("`{field}` must be {requirement}, but is {value}")]
    InvalidConfig {
        /// The field, as `optimizer.rho`.
        field: &'static str,
        /// Its range in words.
        requirement: &'static str,
        /// The value found.
        value: String,
    },
    /// A data set has no rows.
    #[error("the {split} set has no samples")]
    Empty {
        /// The data set.
        split: Split,
    },
    /// The features have no columns.
    #[error("the features of the {split} set have dimension 0")]
    NoFeatures {
        /// The data set.
        split: Split,
    },
    /// There is not exactly one label for each row.
    #[error("the {split} set has {rows} rows of features but {labels} labels")]
    LabelCount {
        /// The data set.
        split: Split,
        /// Rows of features.
        rows: usize,
        /// Labels.
        labels: usize,
    },
    /// A label is not the index of a class.
    #[error(
        "the label of row {row} of the {split} set is {label}, but with {classes} classes labels \
         go from 0 to {}", classes - 1
    )]
    LabelOutOfRange {
        /// The data set.
        split: Split,
        /// The row of the label.
        row: usize,
        /// The label found.
        label: usize,
        /// How many classes there are.
        classes: usize,
    },
    /// The features do not fit the head, or those of the validation set those of the training set.
    #[error("the features of the {split} set have dimension {found}, not {expected}")]
    DimensionMismatch {
        /// The data set.
        split: Split,
        /// The dimension wanted.
        expected: usize,
        /// The dimension found.
        found: usize,
    },
    /// A feature is infinite or not a number.
    #[error("row {row} of the {split} set holds a feature that is not finite")]
    NonFiniteFeature {
        /// The data set.
        split: Split,
        /// The row that holds it.
        row: usize,
    },
    /// Features could not be read from where they are kept.
    #[error("the features of the {split} set cannot be read any more: {reason}")]
    Unreadable {
        /// The data set.
        split: Split,
        /// The source's reason.
        reason: String,
    },
    /// A layer would have more than 2^29 weights.
    #[error(
        "a layer from {inputs} to {outputs} values has too many weights (over {})",
        super::MAX_WEIGHTS
    )]
    TooManyWeights {
        /// Inputs of the layer.
        inputs: usize,
        /// Outputs of the layer.
        outputs: usize,
    },
    /// Training diverged: the loss of a batch overflowed or is not a number.
    #[error(
        "the loss is not finite in epoch {epoch}, batch {batch}: the training diverged; \
         try a lower learning rate (it is {lr})"
    )]
    NonFiniteLoss {
        /// The epoch, from 1.
        epoch: usize,
        /// The batch within the epoch, from 1.
        batch: usize,
        /// The learning rate in use.
        lr: f64,
    },
    /// Training diverged in the last step of an epoch, after its last loss was measured.
    #[error(
        "the weights are not finite after epoch {epoch}: the training diverged in its last batch; \
         try a lower learning rate (it is {lr})"
    )]
    NonFiniteWeights {
        /// The epoch, from 1.
        epoch: usize,
        /// The learning rate in use.
        lr: f64,
    },
    /// A state to go on from is of another network or other data.
    #[error("the saved state of the training does not fit: its {what} are of another training")]
    WrongState {
        /// The part that does not fit.
        what: &'static str,
    },
    /// The rows of an epoch could not be made.
    #[error("epoch {epoch}: {reason}")]
    Source {
        /// The epoch, from 1.
        epoch: usize,
        /// What the source of the rows says.
        reason: String,
    },
    /// Training was stopped before its first epoch was whole.
    #[error("training was stopped before the end of its first epoch")]
    Stopped,
    /// The tensor library failed; the trainer itself never causes this.
    #[error("the tensor backend failed: {0}")]
    Backend(String),
}

impl TrainError {
    pub(super) fn backend(error: impl fmt::Display) -> Self {
        Self::Backend(error.to_string())
    }
}
