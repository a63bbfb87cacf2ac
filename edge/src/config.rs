//! `edge.toml`: the flags of `edge run` in a file.
//!
//! Each key is the long name of a flag, or an earlier name of it. The file becomes arguments before
//! those of the command line, so that the command line has priority, and clap checks the values of
//! both.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, CommandFactory};
use toml::Value;
use vgg_edge_cli::terminal::UsageError;

/// Maximum size of a settings file in bytes.
const LIMIT: u64 = 1 << 20;

/// Returns the arguments, with those of the settings file inserted if they contain
/// `run --config FILE`.
///
/// # Errors
/// A file that cannot be read or is not valid TOML, and keys that are not flags.
pub fn expand<C: CommandFactory>(arguments: &[OsString]) -> Result<Vec<OsString>> {
    // Flags before the command, such as -q, have no values.
    let is_flag = |argument: &OsString| argument.as_encoded_bytes().starts_with(b"-");
    let command = arguments.iter().skip(1).position(|argument| !is_flag(argument));
    let command = command.map(|index| index + 1).filter(|&index| arguments[index] == "run");
    let Some((start, path)) =
        command.and_then(|index| Some((index + 1, config_path(&arguments[index + 1..])?)))
    else {
        return Ok(arguments.to_vec());
    };
    let flags = to_flags::<C>(&path, &read(&path)?)?;
    Ok(arguments[..start]
        .iter()
        .cloned()
        .chain(flags.into_iter().map(Into::into))
        .chain(arguments[start..].iter().cloned())
        .collect())
}

fn read(path: &Path) -> Result<String> {
    String::from_utf8(vgg_edge::durable_fs::read_limited(path, LIMIT)?)
        .with_context(|| format!("{}: not valid UTF-8", path.display()))
}

/// Returns the state directory that a settings file names.
///
/// # Errors
/// A file that cannot be read, and one that does not name a state directory.
pub fn state_directory(path: &Path) -> Result<PathBuf> {
    let table = parse(path, &read(path)?)?;
    let state = table.get("state").and_then(Value::as_str);
    let missing = || format!("{}: no state directory; add state = \"DIR\"", path.display());
    Ok(state.with_context(missing)?.into())
}

fn parse(path: &Path, text: &str) -> Result<toml::Table> {
    text.parse().map_err(|e: toml::de::Error| {
        // The error's own message quotes the line, which may be as long as the file.
        let before = e.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        let message = e.message().replace('\n', ", ");
        UsageError(format!("{}, line {line}: {message}", path.display())).into()
    })
}

/// Returns the file of the last `--config FILE` or `--config=FILE`.
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

/// Returns the settings in a file's text as flags; `path` is for messages.
///
/// # Errors
/// Text that is not valid TOML, keys that are not flags, and values of another type.
pub fn to_flags<C: CommandFactory>(path: &Path, text: &str) -> Result<Vec<String>> {
    let name = path.display();
    let table = parse(path, text)?;
    let mut command = C::command();
    // clap knows the names of flags only once the command is built.
    command.build();
    let run = command.find_subcommand("run").context("no command run")?;
    let mut flags = Vec::new();
    for (key, value) in table {
        let Some(flag) = run.get_arguments().find(|flag| is_named(flag, &key)) else {
            let known: Vec<&str> = run
                .get_arguments()
                .filter_map(Arg::get_long)
                .filter(|long| !matches!(*long, "help" | "config"))
                .collect();
            bail!(UsageError(format!(
                "{name}: no setting {key:?}; the settings are {}",
                known.join(", ")
            )));
        };
        let found = to_arguments(flag, &key, value);
        flags.extend(found.map_err(|problem| UsageError(format!("{name}: {key} {problem}")))?);
    }
    Ok(flags)
}

/// Whether a flag has such a long name, or had it in an earlier version.
fn is_named(flag: &Arg, key: &str) -> bool {
    let aliases = flag.get_all_aliases().unwrap_or_default();
    key != "config" && (flag.get_long() == Some(key) || aliases.contains(&key))
}

/// Returns a setting as arguments.
///
/// # Errors
/// What is wrong with the type of the value, as the end of a sentence.
fn to_arguments(flag: &Arg, key: &str, value: Value) -> Result<Vec<String>, String> {
    let is_switch = matches!(flag.get_action(), ArgAction::SetTrue | ArgAction::Count);
    let is_optional = flag.get_num_args().is_some_and(|number| number.min_values() == 0);
    let is_repeatable = matches!(flag.get_action(), ArgAction::Append);
    Ok(match value {
        Value::Boolean(on) if is_switch || is_optional => {
            if on {
                vec![format!("--{key}")]
            } else {
                Vec::new()
            }
        }
        _ if is_switch => return Err("is true or false".into()),
        Value::String(text) => vec![format!("--{key}={text}")],
        Value::Integer(number) => vec![format!("--{key}={number}")],
        Value::Float(number) => vec![format!("--{key}={number}")],
        Value::Array(parts) if parts.iter().all(Value::is_integer) => {
            let parts: Vec<String> = parts.iter().map(Value::to_string).collect();
            vec![format!("--{key}={}", parts.join(","))]
        }
        Value::Array(parts) if is_repeatable && parts.iter().all(Value::is_str) => {
            parts.iter().filter_map(Value::as_str).map(|text| format!("--{key}={text}")).collect()
        }
        other => return Err(format!("cannot be of type {}", other.type_str())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(text: &str) -> Result<Vec<String>> {
        to_flags::<crate::Cli>(Path::new("edge.toml"), text)
    }

    #[test]
    fn settings_keys_are_the_names_of_flags() {
        let found = flags(
            "head = \"h\"\nfps = 30\nsmooth = 0.5\njson = true\nloop = false\n\
             crop = [1, 2, 3, 4]\non-motion = true",
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
        for (wrong, message) in [
            ("heads = 1", "no setting \"heads\"; the settings are"),
            ("config = \"x\"", "no setting"),
            ("json = 1", "true or false"),
            ("fps = {}", "cannot be"),
            ("head = [\"a\", \"b\"]", "cannot be"),
            ("json = true\nhead = ", "edge.toml, line 2: "),
        ] {
            let error = flags(wrong).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn settings_keys_of_earlier_versions_still_work() {
        use clap::Parser;
        let old = "head = \"h\"\ndevice = \"/dev/video0\"\ncapture = \"8x6\"\nstall = 2\n\
                   frozen = 3\nhold = 4\ncollect = \"c\"\ncollect-below = 0.5";
        let new = old
            .replace("capture", "resolution")
            .replace("stall", "stall-timeout")
            .replace("frozen", "freeze-timeout")
            .replace("hold", "min-frames")
            .replace("collect-below", "collect-threshold");
        let parsed = |text: &str| {
            let start = ["edge", "run"].map(str::to_owned).into_iter();
            let cli = crate::Cli::try_parse_from(start.chain(flags(text).unwrap())).unwrap();
            let crate::Command::Run(args) = cli.command else { panic!("not edge run") };
            let settings = args.resolve().unwrap();
            format!("{:?} {:?} {:?}", settings.source, settings.decision, settings.collect)
        };
        assert_eq!(parsed(old), parsed(&new));
        assert!(parsed(old).contains("size: (8, 6)") && parsed(old).contains("min_frames: 4"));
    }

    #[test]
    fn settings_file_is_found_among_the_arguments() {
        let arguments = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(config_path(&arguments("--head h --config a.toml")), Some("a.toml".into()));
        assert_eq!(config_path(&arguments("--config=a --config=b")), Some("b".into()));
        assert_eq!(config_path(&arguments("-- --config=a")), None);
        let flags_first = arguments("edge -q -v run --config none.toml");
        assert!(expand::<crate::Cli>(&flags_first).is_err(), "the file is not there");
        let untouched = arguments("edge classify --config x");
        assert_eq!(expand::<crate::Cli>(&untouched).unwrap(), untouched);
    }
}
