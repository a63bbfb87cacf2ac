//! `host verify`: verifies the signatures of heads and bases.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::json;
use vgg_edge::head::format_of;
use vgg_edge::kernels::Kernel;
use vgg_edge::signature::{Signable, TrustedKeys};
use vgg_edge::{Backbone, Head};
use vgg_edge_cli::terminal::Printer;

/// Maximum size of a signed file, in bytes: heads may be larger than bases.
pub const MAX_BYTES: u64 = vgg_edge::head::MAX_BYTES;

/// Verify the signatures of heads and bases
///
/// Prints a line per file: file, kind, version, key. A file that is not signed by one of the keys,
/// or is neither a head nor a base, is reported on stderr, and the exit code is 1. Only a device
/// itself can tell whether a version is lower than the one it had.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  host verify head.postcard head.onnx --trust farm.pub")]
pub struct Args {
    /// Heads and bases
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Trusted public key; may be repeated
    #[arg(long, required = true, value_name = "KEY.pub")]
    trust: Vec<PathBuf>,

    /// Print NDJSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let keys = TrustedKeys::load(&args.trust)?;
    // The reader of the lines may close the pipe; the exit code still matters.
    let printer = Printer::default();
    let mut refused = 0;
    for path in &args.files {
        let verified = Signable::read(path, MAX_BYTES).and_then(|file| {
            let signed = keys.verify(&file)?;
            Ok((signed, kind(&file)?))
        });
        match verified {
            Ok((signed, kind)) if args.json => {
                printer.line(json!({
                    "file": path,
                    "kind": kind,
                    "version": signed.version,
                    "key": signed.key.to_string(),
                }));
            }
            Ok((signed, kind)) => {
                let name = path.display();
                printer.line(format_args!(
                    "{name}\t{kind}\tversion {}\tkey {}",
                    signed.version, signed.key
                ));
            }
            Err(e) => {
                refused += 1;
                log::error!("{e}");
            }
        }
    }
    if refused > 0 {
        bail!("{refused} of {} files refused", args.files.len());
    }
    printer.end().context("standard output")
}

/// Returns the kind of a file after checking all of it.
pub fn kind(file: &Signable) -> vgg_edge::Result<&'static str> {
    if format_of(&file.bytes).is_some() {
        let head = Head::from_bytes(&file.bytes);
        head.map_err(|source| vgg_edge::Error::HeadFile { path: file.path.clone(), source })?;
        return Ok("head");
    }
    Backbone::from_bytes(&file.path, &file.bytes, Kernel::Portable)?;
    Ok("base")
}
