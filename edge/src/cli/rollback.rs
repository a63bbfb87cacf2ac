//! `edge rollback`: back to the pair of head and base that ran before.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::json;
use vgg_edge_cli::terminal::print_line;

use crate::config;
use crate::model::store::{ModelPart, ModelStore};

/// Goes back to the head and base that ran before
///
/// An edge run that uses the folder takes them within seconds, between two frames; else the next
/// one does. The head that was gone back from may stay in its place: it is not taken again until
/// another one is put there. Doing it twice leads back.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  edge rollback --state /var/lib/vgg-edge/state\n  \
    edge rollback --config /etc/vgg-edge/edge.toml")]
pub struct Args {
    /// The state folder of edge run
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    state: Option<PathBuf>,

    /// The settings of edge run, which name it
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    config: Option<PathBuf>,

    /// Prints one object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let folder = match (args.state, args.config) {
        (Some(folder), _) => folder,
        (None, Some(config)) => config::state_folder(&config)?,
        (None, None) => bail!("no state folder"),
    };
    if !folder.is_dir() {
        bail!("{}: there is no such state folder", folder.display());
    }
    let state = ModelStore::open(&folder)?;
    let (from, to) = state.update(|record| {
        let from = record.current;
        let to = record.roll_back()?;
        // It may be needed at once, and there is nothing else to go back to.
        state.read_kept(ModelPart::Head, to.head, vgg_edge::head::MAX_BYTES)?;
        state.read_kept(ModelPart::Base, to.base, vgg_edge::backbone::MAX_BYTES)?;
        Ok((from, to))
    })?;
    let running = state.is_running();
    if args.json {
        let from = from.map(|from| from.head.to_string());
        print_line(
            json!({ "from": from, "head": to.head.to_string(), "base": to.base.to_string(), "running": running }),
        )?;
    } else {
        print_line(format_args!(
            "{to}: taken {}",
            if running { "within seconds" } else { "when edge run starts" }
        ))?;
    }
    Ok(())
}
