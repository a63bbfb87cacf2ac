//! One file a command: its arguments and what it does.

pub mod bench;
pub mod classify;
pub mod devices;
pub mod info;
pub mod options;
pub mod rollback;
pub mod run;
