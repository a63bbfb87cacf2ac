use std::io;
use std::ops::ControlFlow;

use super::{Split, TrainError};

/// A table of features, one row a sample, from which batches are gathered.
///
/// Rows may be kept in any form, for instance quantised in a mapped file; a row must give the same
/// values whenever it is gathered within an epoch, or training is not reproducible.
pub trait FeatureSource: Sync {
    /// Makes the rows of an epoch (from 1) ready, if they differ from epoch to epoch; they must depend on its number only, not on the epochs
    /// before. A break ends the training before that epoch. The trainer calls this for the training set only.
    ///
    /// # Errors
    /// What is wrong, in one line; it becomes [`TrainError::Source`].
    fn prepare(&self, _epoch: usize) -> Result<ControlFlow<()>, String> {
        Ok(ControlFlow::Continue(()))
    }

    /// How many rows there are.
    fn len(&self) -> usize;

    /// Whether there are no rows.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many features a row has.
    fn dim(&self) -> usize;

    /// Writes the given rows, in their order, one after the other into `out`.
    ///
    /// The trainer calls this with every row below [`len`](Self::len) and with
    /// `out.len() == rows.len() * dim()`. All of `out` must be written.
    ///
    /// # Errors
    /// If rows are kept in a file that cannot be read.
    fn gather(&self, rows: &[usize], out: &mut [f32]) -> io::Result<()>;
}

/// Samples with their classes.
#[derive(Clone, Copy)]
pub struct Dataset<'a> {
    /// The features, `[samples, dim]`. They must be finite.
    pub features: &'a dyn FeatureSource,
    /// The class of each row, from 0 to one below the number of classes.
    pub labels: &'a [usize],
}

impl Dataset<'_> {
    pub(super) fn validate(&self, split: Split, classes: usize) -> Result<(), TrainError> {
        let (rows, labels) = (self.features.len(), self.labels.len());
        if rows != labels {
            return Err(TrainError::LabelCount { split, rows, labels });
        }
        if self.features.is_empty() {
            return Err(TrainError::Empty { split });
        }
        if self.features.dim() == 0 {
            return Err(TrainError::NoFeatures { split });
        }
        match self.labels.iter().position(|&label| label >= classes) {
            Some(row) => {
                Err(TrainError::LabelOutOfRange { split, row, label: self.labels[row], classes })
            }
            None => Ok(()),
        }
    }

    /// The features of `rows`, `[rows, dim]` row by row, and their labels.
    pub(super) fn batch(
        &self,
        split: Split,
        rows: &[usize],
    ) -> Result<(Vec<f32>, Vec<usize>), TrainError> {
        let dim = self.features.dim();
        let mut features = vec![0.0; rows.len() * dim];
        let gathered = self.features.gather(rows, &mut features);
        gathered.map_err(|e| TrainError::Unreadable { split, reason: e.to_string() })?;
        // One bad feature would spoil all weights within two steps and then look like divergence.
        if !all_finite(&features) {
            let bad = features.chunks_exact(dim).zip(rows).find(|(values, _)| !all_finite(values));
            if let Some((_, &row)) = bad {
                return Err(TrainError::NonFiniteFeature { split, row });
            }
        }
        let labels = rows.iter().map(|&row| self.labels[row]).collect();
        Ok((features, labels))
    }
}

/// Whether no value is infinite or not a number. Without an early exit, so that it is vectorised.
pub(super) fn all_finite(values: &[f32]) -> bool {
    values.iter().fold(true, |all, v| all & v.is_finite())
}
