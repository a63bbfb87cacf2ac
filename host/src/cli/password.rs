//! Passwords of secret keys: from a file, or asked for at the terminal, never from the command
//! line, which everybody can see.

use std::path::Path;

use anyhow::{Context, Result, bail};

/// The first line of a file.
pub fn in_file(path: &Path) -> Result<String> {
    let text = String::from_utf8(vgg_edge::durable_fs::read_limited(path, 4096)?)
        .with_context(|| format!("{}: the password is no text", path.display()))?;
    let password = text.lines().next().unwrap_or_default();
    if password.is_empty() {
        bail!("{}: there is no password in it", path.display());
    }
    Ok(password.to_owned())
}

/// One that is typed.
pub fn asked(prompt: &str) -> Result<String> {
    rpassword::prompt_password(prompt)
        .context("cannot ask for the password; name a file with --password-file")
}

/// One that is typed twice, since nobody sees it.
pub fn asked_twice() -> Result<String> {
    let password = asked("Password for the secret key: ")?;
    if password.is_empty() {
        bail!("the password is empty; leave --password away for a key without one");
    }
    if asked("Once more: ")? != password {
        bail!("the passwords differ");
    }
    Ok(password)
}
