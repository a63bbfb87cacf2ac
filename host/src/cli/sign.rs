//! `host sign`: signs heads and bases.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minisign::{PublicKey, SecretKey, SecretKeyBox};
use serde_json::json;
use vgg_edge::signature::{self, KeyId, Signable};
use vgg_edge_cli::terminal::print_line;

use super::password;
use super::verify::{MAX_BYTES, kind};

/// Length of a secret key in minisign's format.
const KEY_BYTES: usize = 158;

/// Sign heads and bases for devices that trust the key
///
/// Writes FILE.minisig beside each file, which minisign can verify too. The version increases with
/// time; a device refuses files with a lower version than it had before.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  host sign head.postcard --key farm.key\n  \
    host sign head.onnx head.postcard --key farm.key        # a base and its head\n  \
    minisign -Vm head.postcard -p farm.pub                  # verify with minisign")]
pub struct Args {
    /// Heads and bases
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Secret key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,

    /// Version, higher than that of the files on the devices [default: the Unix time in seconds]
    #[arg(long, value_name = "N")]
    version: Option<u64>,

    /// File with the password of the key [default: prompt for it if the key has one]
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// Print NDJSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let secret = secret_key(&args.key, args.password_file.as_deref())?;
    let public = PublicKey::from_secret_key(&secret).context("the secret key is damaged")?;
    let id = secret
        .keynum()
        .first_chunk()
        .copied()
        .map(KeyId)
        .context("the secret key has no key id")?;
    let now =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let version = args.version.unwrap_or(now);
    // All are checked before the first is signed: a base without its head is useless.
    let files: Vec<(Signable, &str)> = args
        .files
        .iter()
        .map(|path| {
            let file = Signable::read(path, MAX_BYTES)?;
            let kind = kind(&file)?;
            Ok((file, kind))
        })
        .collect::<Result<_>>()?;
    for (file, kind) in files {
        if let Some(before) = file.claim().filter(|before| before.version > version) {
            log::warn!(
                "{}: version {version} is lower than that of the existing signature ({before}); \
                 devices that had it refuse this one",
                file.path.display()
            );
        }
        let comment = signature::comment(now, version, &file.path);
        let untrusted = format!("signature from minisign secret key {id}");
        let signature = minisign::sign(
            Some(&public),
            &secret,
            &file.bytes[..],
            Some(&comment),
            Some(&untrusted),
        )
        .with_context(|| format!("{}: cannot sign", file.path.display()))?;
        let beside = signature::signature_path(&file.path);
        vgg_edge::durable_fs::write_bytes(&beside, &signature.to_bytes())?;
        if args.json {
            print_line(json!({
                "file": file.path,
                "kind": kind,
                "signature": beside,
                "version": version,
                "key": id.to_string(),
            }))?;
        } else {
            print_line(format_args!("{}\tversion {version}\tkey {id}", beside.display()))?;
        }
    }
    Ok(())
}

/// Reads a secret key in minisign's format.
fn secret_key(path: &Path, password_file: Option<&Path>) -> Result<SecretKey> {
    use std::os::unix::fs::PermissionsExt;
    let wrong = || format!("{}: not a usable secret key", path.display());
    let text = String::from_utf8(vgg_edge::durable_fs::read_limited(path, 8192)?)
        .ok()
        .with_context(wrong)?;
    let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o077 != 0 {
        log::warn!("{}: other users can read this key; run chmod 600 on it", path.display());
    }
    let bytes = text
        .lines()
        .nth(1)
        .and_then(|line| STANDARD.decode(line).ok())
        .filter(|bytes| bytes.len() == KEY_BYTES);
    let bytes = bytes.filter(|bytes| bytes.starts_with(b"Ed")).with_context(wrong)?;
    // The key derivation; zeros for none. Not from_unencrypted_box, which refuses the empty
    // checksum that minisign writes to such keys. A damaged key is detected when its signature is
    // verified.
    if bytes[2..4] == [0, 0] {
        return SecretKey::from_bytes(&bytes).with_context(wrong);
    }
    let password = match password_file {
        Some(file) => password::from_file(file)?,
        None => password::prompt(&format!("Password of {}: ", path.display()))?,
    };
    SecretKeyBox::from(text).into_secret_key(Some(password)).with_context(wrong)
}
