//! `host label`: pictures into class folders, by keyboard.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use serde_json::json;
use vgg_edge::Head;
use vgg_edge_cli::terminal::{UsageError, interrupted, note, print_line};

use crate::PROGRAM;
use crate::labeling::{Desk, check_class, serve};

/// Sorts pictures into class folders, by keyboard on a page in the browser
///
/// DIR is what `edge run --collect` fills, or any folder of pictures. What edge said of a picture
/// is suggested, and the pictures of which it was least sure come first. Pictures are moved, never
/// overwritten; each decision can be undone and is noted in DIR/labels.ndjson. Rejected ones go to
/// DIR/_rejected. Ctrl-C ends it.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  host label collected\n  \
    host label collected --to photos --head head.postcard --http :8080\n  \
    host train photos -o head.postcard      (again, with what was sorted)")]
pub struct Args {
    /// Folder of pictures
    dir: PathBuf,

    /// Folder of class folders, as host train takes it; existing classes are offered [default:
    /// DIR/sorted]
    #[arg(long, value_name = "DATA")]
    to: Option<PathBuf>,

    /// Classes to offer, before those that have a folder
    #[arg(long, value_name = "A,B,...", value_delimiter = ',', conflicts_with = "head")]
    classes: Option<Vec<String>>,

    /// Offers the classes of this head
    #[arg(long, value_name = "HEAD")]
    head: Option<PathBuf>,

    /// Where to serve the page: a loopback address, port 0 for any that is free
    #[arg(long, value_name = "[ADDRESS]:PORT", default_value = "127.0.0.1:0", value_parser = address)]
    http: SocketAddr,

    /// Prints one object at the start (url, dir, data, pictures) and one at the end (sorted,
    /// rejected, left, classes)
    #[arg(long)]
    json: bool,
}

/// `:8080` is a port of this machine.
fn address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').and_then(|port| port.parse().ok());
    let local = port.map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    local
        .or_else(|| text.parse().ok())
        .ok_or_else(|| "an address like 127.0.0.1:8080 or :8080 is wanted".into())
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    if !args.http.ip().is_loopback() {
        let words = format!(
            "--http {} can be reached from other machines; take 127.0.0.1 or a port alone",
            args.http
        );
        return Err(UsageError(words).into());
    }
    for class in args.classes.iter().flatten() {
        check_class(class).map_err(|words| UsageError(format!("--classes {class:?}: {words}")))?;
    }
    let classes = match &args.head {
        Some(head) => Some(Head::load(head)?.labels),
        None => args.classes,
    };
    let desk = Desk::open(&args.dir, args.to.as_deref(), classes.as_deref())
        .map_err(|words| anyhow!(words))?;
    if desk.bad_lines > 0 {
        note(PROGRAM, format_args!("frames.ndjson: {} lines could not be read", desk.bad_lines));
    }
    let (pictures, data) = (desk.total(), desk.data().to_owned());
    if pictures == 0 {
        bail!(
            "{}: no pictures to sort ({})",
            args.dir.display(),
            vgg_edge::image::decode::EXTENSIONS.join(", ")
        );
    }
    let summary = serve(desk, args.http, interrupted, |address| {
        let url = format!("http://{address}/");
        if args.json {
            print_line(json!({ "url": url, "dir": args.dir, "data": data, "pictures": pictures }))?;
        } else {
            print_line(&url)?;
            note(
                PROGRAM,
                format_args!("{pictures} pictures to sort into {}; Ctrl-C ends", data.display()),
            );
        }
        Ok(())
    })?;
    if args.json {
        print_line(summary)?;
        return Ok(());
    }
    let classes = summary["classes"].as_object().into_iter().flatten();
    let classes: Vec<String> = classes.map(|(name, count)| format!("{name} {count}")).collect();
    let number = |key: &str| summary[key].as_u64().unwrap_or_default();
    let classes =
        if classes.is_empty() { String::new() } else { format!(" ({})", classes.join(", ")) };
    print_line(format_args!(
        "{} sorted{classes}, {} rejected, {} left",
        number("sorted"),
        number("rejected"),
        number("left")
    ))?;
    if number("sorted") > 0 {
        note(
            PROGRAM,
            format_args!("train on them: host train {} -o head.postcard", data.display()),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(address(":8080").unwrap(), "127.0.0.1:8080".parse().unwrap());
        assert_eq!(address("[::1]:0").unwrap(), "[::1]:0".parse().unwrap());
        assert!(
            address("8080").is_err()
                && address("example.com:80").is_err()
                && address(":x").is_err()
        );
    }
}
