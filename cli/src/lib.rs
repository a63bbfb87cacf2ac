//! Command-line conventions shared by `host` and `edge`.
//!
//! [`terminal`] has exit codes, signals and output; [`logging`] messages on stderr; [`options`] the flags of both programs and the
//! settings they resolve to; [`record`] the result line of an image; [`classify`] the command that
//! both programs have.

pub mod classify;
pub mod http;
pub mod logging;
pub mod options;
pub mod record;
pub mod terminal;
