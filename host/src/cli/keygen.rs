//! `host keygen`: a pair of keys to sign heads and bases with.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use minisign::KeyPair;
use serde_json::json;
use vgg_edge::signature::KeyId;
use vgg_edge_cli::terminal::{UsageError, note, print_line};

use super::password;
use crate::PROGRAM;

/// Makes a pair of keys: NAME.key signs (host sign), NAME.pub goes to the devices (edge run
/// --trust)
///
/// The files are those of minisign. NAME.key can be read by its owner only, and is never shown:
/// whoever has it can give your devices heads. Keep it off the devices, and a copy in a safe place.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  host keygen -o farm\n  host keygen -o farm --password       asks for a password"
)]
pub struct Args {
    /// Where the keys go: NAME.key and NAME.pub, neither of which may be there
    #[arg(short, long, value_name = "NAME")]
    output: PathBuf,

    /// Encrypts the secret key with a password, which is asked for
    #[arg(long)]
    password: bool,

    /// Encrypts it with the password in this file
    #[arg(long, value_name = "FILE", conflicts_with = "password")]
    password_file: Option<PathBuf>,

    /// Prints one object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    if args.output.file_name().is_none() {
        bail!(UsageError(format!("{}: not a name for files", args.output.display())));
    }
    let (secret, public) = (with_suffix(&args.output, ".key"), with_suffix(&args.output, ".pub"));
    for path in [&secret, &public] {
        if path.symlink_metadata().is_ok() {
            bail!("{}: there is a file already; keys are never written over", path.display());
        }
    }
    let password = match &args.password_file {
        Some(path) => Some(password::in_file(path)?),
        None => args.password.then(password::asked_twice).transpose()?,
    };
    let encrypted = password.is_some();
    let KeyPair { pk, sk } = match password {
        Some(password) => KeyPair::generate_encrypted_keypair(Some(password)),
        None => KeyPair::generate_unencrypted_keypair(),
    }
    .context("cannot make keys")?;
    // Encryption covers the number in the secret key, so that of the public one counts.
    let id = pk.keynum().first_chunk().copied().map(KeyId).context("the key has no number")?;
    let kind = if encrypted { "encrypted secret key" } else { "secret key" };
    let secret_text =
        sk.to_box(Some(&format!("minisign {kind} {id}"))).context("cannot write the secret key")?;
    let public_text = format!("untrusted comment: minisign public key {id}\n{}\n", pk.to_base64());
    vgg_edge::durable_fs::create_private(&secret, &secret_text.to_bytes())?;
    vgg_edge::durable_fs::write_bytes(&public, public_text.as_bytes())?;
    if args.json {
        print_line(
            json!({ "key": id.to_string(), "secret": secret, "public": public, "encrypted": encrypted }),
        )?;
    } else {
        print_line(format_args!("{}\t{}\t{id}", secret.display(), public.display()))?;
        note(
            PROGRAM,
            format_args!(
                "keep {} to yourself; {} goes to the devices",
                secret.display(),
                public.display()
            ),
        );
    }
    Ok(())
}

/// `NAME` with something behind it, dots in it left alone.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
