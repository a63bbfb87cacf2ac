//! The work of `edge run`: frames from a source, one result for each, until the source ends or the
//! run is stopped.
//!
//! [`settings`] holds what the flags resolve to. [`main_loop`] owns the state of the run and waits
//! for frames, models and signals; [`frames`] handles a frame, [`reload`] a reload.

mod engine;
mod frames;
mod input;
mod main_loop;
mod output;
mod reload;
mod retry;
pub mod settings;

use anyhow::Result;
use log::info;
use vgg_edge_cli::terminal::Signals;

use main_loop::Run;
use settings::RunSettings;

/// Runs until the source ends, the limit of frames is reached, or a signal stops it.
/// `read_settings` reads the settings again, for SIGHUP.
///
/// # Errors
/// Anything that keeps the run from starting; a source that fails and cannot be opened again;
/// frames of which none can be read; a closed stdout.
pub fn run(
    settings: RunSettings,
    read_settings: &dyn Fn() -> Result<RunSettings>,
    signals: &Signals,
) -> Result<()> {
    // The sandbox comes before the first thread and the first byte of a model or a frame.
    settings.create_directories()?;
    let sandbox = settings.sandbox.enter(&settings.needs())?;
    info!("sandbox {sandbox}");
    Run::start(settings, read_settings, signals, sandbox)?.run()
}
