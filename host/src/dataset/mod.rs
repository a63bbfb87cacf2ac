//! Labeled images: directories with one subdirectory per class, their split into training and
//! validation, and folds.

pub mod folds;
pub mod listing;
pub mod split;

pub use listing::{
    DataError, Item, Listing, Pool, Splits, Walked, images, is_training_name, open,
    open_for_evaluation, training_directory, walk,
};
