//! `host keygen`: generates a key pair for signing heads and bases.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use minisign::KeyPair;
use serde_json::json;
use vgg_edge::signature::KeyId;
use vgg_edge_cli::terminal::{UsageError, print_line};

use super::password;

/// Generate a key pair for signing heads and bases
///
/// NAME.key is the secret key for host sign; NAME.pub is the public key for edge run --trust. The
/// files have minisign's format. NAME.key is readable by its owner only, and is never printed:
/// anybody who has it can sign heads for your devices. Keep it off the devices, and keep a copy in
/// a safe place.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  host keygen -o farm\n  \
    host keygen -o farm --password       # prompts for a password")]
pub struct Args {
    /// Output files NAME.key and NAME.pub, which must not exist
    #[arg(short, long, value_name = "NAME")]
    output: PathBuf,

    /// Prompt for a password, and encrypt the secret key with it
    #[arg(long)]
    password: bool,

    /// Encrypt the secret key with the password in this file
    #[arg(long, value_name = "FILE", conflicts_with = "password")]
    password_file: Option<PathBuf>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    if args.output.file_name().is_none() {
        bail!(UsageError(format!("{}: not a file name", args.output.display())));
    }
    let (secret, public) = (with_suffix(&args.output, ".key"), with_suffix(&args.output, ".pub"));
    for path in [&secret, &public] {
        if path.symlink_metadata().is_ok() {
            bail!("{}: the file exists, and keys are never overwritten", path.display());
        }
    }
    let password = match &args.password_file {
        Some(path) => Some(password::from_file(path)?),
        None => args.password.then(password::prompt_twice).transpose()?,
    };
    let encrypted = password.is_some();
    let KeyPair { pk, sk } = match password {
        Some(password) => KeyPair::generate_encrypted_keypair(Some(password)),
        None => KeyPair::generate_unencrypted_keypair(),
    }
    .context("cannot generate keys")?;
    // The key id in the secret key is encrypted too, so the one in the public key is used.
    let id =
        pk.keynum().first_chunk().copied().map(KeyId).context("the public key has no key id")?;
    let kind = if encrypted { "encrypted secret key" } else { "secret key" };
    let secret_text = sk
        .to_box(Some(&format!("minisign {kind} {id}")))
        .context("cannot encode the secret key")?;
    let public_text = format!("untrusted comment: minisign public key {id}\n{}\n", pk.to_base64());
    vgg_edge::durable_fs::create_private(&secret, &secret_text.to_bytes())?;
    vgg_edge::durable_fs::write_bytes(&public, public_text.as_bytes())?;
    if args.json {
        print_line(json!({
            "key": id.to_string(),
            "secret": secret,
            "public": public,
            "encrypted": encrypted,
        }))?;
    } else {
        print_line(format_args!("{}\t{}\t{id}", secret.display(), public.display()))?;
        log::info!("keep {} secret; copy {} to the devices", secret.display(), public.display());
    }
    Ok(())
}

/// Appends a suffix to a path, and keeps any extension that it has.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
