//! One file a command: its arguments and what it does.

pub mod augment;
pub mod base;
pub mod classify;
pub mod evaluate;
pub mod extract;
pub mod head_options;
pub mod inspect;
pub mod keygen;
pub mod label;
pub mod merge;
pub mod options;
mod password;
pub mod sign;
pub mod summary;
pub mod train;
pub mod verify;
