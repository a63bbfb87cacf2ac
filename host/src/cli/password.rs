//! Passwords of secret keys: from a file or the terminal, never from the command line, which all
//! users can see.

use std::path::Path;

use anyhow::{Context, Result, bail};

/// Reads the first line of a file.
pub fn from_file(path: &Path) -> Result<String> {
    let text = String::from_utf8(vgg_edge::durable_fs::read_limited(path, 4096)?)
        .with_context(|| format!("{}: the password is not valid UTF-8", path.display()))?;
    let password = text.lines().next().unwrap_or_default();
    if password.is_empty() {
        bail!("{}: the first line, which should be the password, is empty", path.display());
    }
    Ok(password.to_owned())
}

/// Prompts for a password.
pub fn prompt(text: &str) -> Result<String> {
    rpassword::prompt_password(text).context("cannot prompt for the password; use --password-file")
}

/// Prompts for a new password, twice because it is not echoed.
pub fn prompt_twice() -> Result<String> {
    let password = prompt("Password for the secret key: ")?;
    if password.is_empty() {
        bail!("the password is empty; omit --password for a key without one");
    }
    if prompt("Repeat the password: ")? != password {
        bail!("the passwords do not match");
    }
    Ok(password)
}
