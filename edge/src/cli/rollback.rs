//! `edge rollback`: returns to the model that ran before.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::json;
use vgg_edge_cli::terminal::print_line;

use crate::config;
use crate::model::store::{ModelPart, ModelStore};

/// Return to the head and base that ran before
///
/// An edge run that uses the state directory switches to them within seconds, between two frames;
/// otherwise the next edge run does. The rejected head may stay in place: it is not used again
/// until another one is moved there. A second rollback undoes the first.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  edge rollback --state /var/lib/vgg-edge/state\n  \
    edge rollback --config /etc/vgg-edge/edge.toml")]
pub struct Args {
    /// State directory of edge run
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    state: Option<PathBuf>,

    /// Settings file of edge run, which names the state directory
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    config: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let directory = match (args.state, args.config) {
        (Some(directory), _) => directory,
        (None, Some(config)) => config::state_directory(&config)?,
        (None, None) => bail!("no state directory"),
    };
    if !directory.is_dir() {
        bail!("{}: no such state directory", directory.display());
    }
    let store = ModelStore::open(&directory)?;
    let (from, to) = store.update(|record| {
        let from = record.current;
        let to = record.roll_back()?;
        // It may be loaded at once, and there is nothing else to return to.
        store.read_kept(ModelPart::Head, to.head, vgg_edge::head::MAX_BYTES)?;
        store.read_kept(ModelPart::Base, to.base, vgg_edge::backbone::MAX_BYTES)?;
        Ok((from, to))
    })?;
    let running = store.is_running();
    if args.json {
        let from = from.map(|from| from.head.to_string());
        print_line(json!({
            "from": from,
            "head": to.head.to_string(),
            "base": to.base.to_string(),
            "running": running,
        }))?;
    } else {
        print_line(format_args!(
            "{to}: will run {}",
            if running { "within seconds" } else { "when edge run starts" }
        ))?;
    }
    Ok(())
}
