//! The commands: one file each, with its flags and its work.

pub mod bench;
pub mod classify;
pub mod devices;
pub mod info;
pub mod options;
pub mod rollback;
pub mod run;
