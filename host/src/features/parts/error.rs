//! Errors of a set of parts.

use std::path::PathBuf;

use vgg_edge::Error;
use vgg_edge_cli::terminal::Interrupted;

use super::file::FileError;

/// Reason why parts are not a data set.
#[derive(Debug, thiserror::Error)]
pub enum PartSetError {
    /// A file is not usable.
    #[error(transparent)]
    File(#[from] FileError),
    /// A directory cannot be listed, or a file cannot be written.
    #[error(transparent)]
    Io(#[from] Error),
    /// The work was canceled.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// No file is named like a part.
    #[error(
        "{0}: no parts (part-....features); make them with host extract DATA --shard I/N -o {0}"
    )]
    Empty(PathBuf),
    /// Parts of runs with different numbers of parts.
    #[error("{path}: parts of different runs: {counts}; remove those of all but one")]
    Counts {
        /// The directory.
        path: PathBuf,
        /// The parts of each run.
        counts: String,
    },
    /// Parts are missing or damaged.
    #[error(
        "{path}: {problems}; make them with host extract DATA --shard I/{count} -o {path} \
         (on Slurm: --array={array})"
    )]
    Incomplete {
        /// The directory.
        path: PathBuf,
        /// The parts and their problems.
        problems: String,
        /// The number of parts.
        count: u32,
        /// The parts to make, as a scheduler takes them.
        array: String,
    },
    /// Parts of different runs.
    #[error(
        "{path}: parts do not belong together: {differences}; remove those that are not wanted, \
         and make them again"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// The parts and their differences.
        differences: String,
    },
    /// Features that do not fit the backbone or the program.
    #[error("{path}: {differences}; extract them again, or name their backbone with --base")]
    Unfit {
        /// The file or directory.
        path: PathBuf,
        /// The differences.
        differences: String,
    },
    /// One part of several, alone.
    #[error("{path}: part {index} of {count}; name the directory of all parts, or merge them")]
    Alone {
        /// The file.
        path: PathBuf,
        /// Index of the part.
        index: u32,
        /// Number of parts.
        count: u32,
    },
    /// The images of the parts are not those of the list: a defect, or a forged file.
    #[error("{path}: {what}")]
    Images {
        /// The part.
        path: PathBuf,
        /// The problem with its images.
        what: String,
    },
}
