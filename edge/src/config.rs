//! `edge.toml`: the flags of `edge run` in a file.
//!
//! Each key is the long name of a flag. The file becomes arguments that stand before those of the
//! command line, so that the command line has the last word, and clap checks values and tells
//! errors for both.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{ArgAction, CommandFactory};
use toml::Value;
use vgg_edge_cli::terminal::UsageError;

/// Largest file that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// The arguments with those of the configuration file put in, if `run --config FILE` is among them.
///
/// # Errors
/// A file that cannot be read, is no TOML, or has keys that are no flags.
pub fn expand<C: CommandFactory>(arguments: &[OsString]) -> Result<Vec<OsString>> {
    let is_run = arguments.get(1).is_some_and(|name| name == "run");
    let Some(path) = is_run.then(|| config_path(&arguments[2..])).flatten() else {
        return Ok(arguments.to_vec());
    };
    let text = String::from_utf8(vgg_edge::durable_fs::read_limited(&path, LIMIT)?)
        .with_context(|| format!("{}: not UTF-8", path.display()))?;
    let flags = to_flags::<C>(&path, &text)?;
    Ok(arguments[..2]
        .iter()
        .cloned()
        .chain(flags.into_iter().map(Into::into))
        .chain(arguments[2..].iter().cloned())
        .collect())
}

/// The state folder that a configuration file names.
///
/// # Errors
/// A file that cannot be read or names none.
pub fn state_folder(path: &Path) -> Result<PathBuf> {
    let name = path.display();
    let text = String::from_utf8(vgg_edge::durable_fs::read_limited(path, LIMIT)?)
        .with_context(|| format!("{name}: not UTF-8"))?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        UsageError(format!("{name}: {}", e.to_string().trim_end()))
    })?;
    let state = table.get("state").and_then(Value::as_str);
    Ok(state.with_context(|| format!("{name}: it names no state folder (state = \"DIR\")"))?.into())
}

/// The last `--config FILE` or `--config=FILE`.
fn config_path(arguments: &[OsString]) -> Option<PathBuf> {
    let mut found = None;
    for (index, argument) in arguments.iter().enumerate() {
        match argument.to_str() {
            Some("--") => break,
            Some("--config") => found = arguments.get(index + 1).map(PathBuf::from),
            Some(text) => found = text.strip_prefix("--config=").map(PathBuf::from).or(found),
            None => {}
        }
    }
    found
}

/// The settings in a file's text as flags; `path` is for messages.
///
/// # Errors
/// Text that is no TOML, and keys that are no flags.
pub fn to_flags<C: CommandFactory>(path: &Path, text: &str) -> Result<Vec<String>> {
    let name = path.display();
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        // The error's own words quote the line, which may be as long as the file.
        let line = e
            .span()
            .and_then(|span| text.get(..span.start))
            .map_or(1, |before| before.matches('\n').count() + 1);
        UsageError(format!("{name}, line {line}: {}", e.message().replace('\n', ", ")))
    })?;
    let mut command = C::command();
    // Names of flags are known to clap only once the command is built.
    command.build();
    let run = command.find_subcommand("run").context("no command run")?;
    let mut flags = Vec::new();
    for (key, value) in table {
        let known = run
            .get_arguments()
            .find(|argument| argument.get_long() == Some(&*key) && key != "config");
        let Some(known) = known else {
            let longs: Vec<&str> = run
                .get_arguments()
                .filter_map(|a| a.get_long())
                .filter(|l| !matches!(*l, "help" | "config"))
                .collect();
            bail!(UsageError(format!(
                "{name}: no setting {key:?}; there are {}",
                longs.join(", ")
            )));
        };
        let switch = matches!(known.get_action(), ArgAction::SetTrue);
        match value {
            Value::Boolean(on) if switch => flags.extend(on.then(|| format!("--{key}"))),
            // A flag whose value may be left out.
            Value::Boolean(on) if known.get_num_args().is_some_and(|n| n.min_values() == 0) => {
                flags.extend(on.then(|| format!("--{key}")));
            }
            _ if switch => bail!(UsageError(format!("{name}: {key} is true or false"))),
            Value::String(text) => flags.push(format!("--{key}={text}")),
            Value::Integer(number) => flags.push(format!("--{key}={number}")),
            Value::Float(number) => flags.push(format!("--{key}={number}")),
            Value::Array(parts) if parts.iter().all(Value::is_integer) => {
                let parts: Vec<String> = parts.iter().map(Value::to_string).collect();
                flags.push(format!("--{key}={}", parts.join(",")));
            }
            // A flag that can be given more than once.
            Value::Array(parts)
                if matches!(known.get_action(), ArgAction::Append)
                    && parts.iter().all(Value::is_str) =>
            {
                flags.extend(
                    parts.iter().filter_map(Value::as_str).map(|text| format!("--{key}={text}")),
                );
            }
            other => bail!(UsageError(format!("{name}: {key} cannot be a {}", other.type_str()))),
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(text: &str) -> Result<Vec<String>> {
        to_flags::<crate::Cli>(Path::new("edge.toml"), text)
    }

    #[test]
    fn keys_are_the_names_of_flags() {
        let found = flags(
            "head = \"h\"\nfps = 30\nsmooth = 0.5\njson = true\nloop = false\ncrop = [1, 2, 3, 4]\non-motion = true",
        )
        .unwrap();
        let mut found: Vec<&str> = found.iter().map(String::as_str).collect();
        found.sort_unstable();
        assert_eq!(
            found,
            ["--crop=1,2,3,4", "--fps=30", "--head=h", "--json", "--on-motion", "--smooth=0.5"]
        );
        assert_eq!(
            flags("trust = [\"a.pub\", \"b.pub\"]").unwrap(),
            ["--trust=a.pub", "--trust=b.pub"]
        );
        assert_eq!(flags("trust = \"a.pub\"").unwrap(), ["--trust=a.pub"]);
        for (wrong, words) in [
            ("heads = 1", "no setting \"heads\"; there are"),
            ("config = \"x\"", "no setting"),
            ("json = 1", "true or false"),
            ("fps = {}", "cannot be"),
            ("head = [\"a\", \"b\"]", "cannot be"),
            ("json = true\nhead = ", "edge.toml, line 2: "),
        ] {
            let error = flags(wrong).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn the_file_is_found_among_the_arguments() {
        let arguments = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(config_path(&arguments("--head h --config a.toml")), Some("a.toml".into()));
        assert_eq!(config_path(&arguments("--config=a --config=b")), Some("b".into()));
        assert_eq!(config_path(&arguments("-- --config=a")), None);
        let untouched = arguments("edge classify --config x");
        assert_eq!(expand::<crate::Cli>(&untouched).unwrap(), untouched);
    }
}
