//! `host verify`: whether heads and bases are signed by keys that are trusted.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::json;
use vgg_edge::head::format_of;
use vgg_edge::kernels::Kernel;
use vgg_edge::signature::{SignedFile, TrustedKeys};
use vgg_edge::{Backbone, Head};
use vgg_edge_cli::terminal::{Printer, note};

use crate::PROGRAM;

/// Largest file that may be signed, in bytes: heads are allowed to be larger than bases.
pub const MAX_BYTES: u64 = vgg_edge::head::MAX_BYTES;

/// Verifies the signatures of heads and bases
///
/// One line a file: file, kind, version, key. A file that is not signed by one of the keys, or no
/// head or base, is told on stderr, and the exit code is 1. What is older than what a device had
/// only the device can know.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  host verify head.postcard head.onnx --trust farm.pub")]
pub struct Args {
    /// Heads and bases
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// A public key that may sign; can be given more than once
    #[arg(long, required = true, value_name = "KEY.pub")]
    trust: Vec<PathBuf>,

    /// Prints NDJSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let keys = TrustedKeys::load(&args.trust)?;
    // Whoever reads the lines may go, whoever asks for the exit code stays.
    let printer = Printer::default();
    let mut refused = 0;
    for path in &args.files {
        let verified = SignedFile::read(path, MAX_BYTES).and_then(|file| {
            let signed = keys.verify(&file)?;
            Ok((signed, kind(&file)?))
        });
        match verified {
            Ok((signed, kind)) if args.json => {
                printer.line(json!({
                    "file": path, "kind": kind, "version": signed.version, "key": signed.key.to_string(),
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
                note(PROGRAM, e);
            }
        }
    }
    if refused > 0 {
        bail!("{refused} of {} files refused", args.files.len());
    }
    printer.end().context("standard output")
}

/// What a file is, once all of it has been checked.
pub fn kind(file: &SignedFile) -> vgg_edge::Result<&'static str> {
    if format_of(&file.bytes).is_some() {
        let head = Head::from_bytes(&file.bytes);
        head.map_err(|source| vgg_edge::Error::HeadFile { path: file.path.clone(), source })?;
        return Ok("head");
    }
    Backbone::from_bytes(&file.path, &file.bytes, Kernel::PORTABLE)?;
    Ok("base")
}
