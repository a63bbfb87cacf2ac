//! `host label`: sorts images into class directories by keyboard.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::json;
use vgg_edge::Head;
use vgg_edge_cli::terminal::{CancelToken, UsageError, print_line};

use crate::labeling::{LabelSession, check_class, serve};

/// Sort images into class directories, by keyboard on a page in the browser
///
/// DIR is the directory of `edge run --collect`, or any directory of images. The class that edge
/// predicted is suggested, and the least certain images come first. Images are moved, never
/// overwritten; each decision can be undone, and is logged in DIR/labels.ndjson. Rejected images
/// go to DIR/_rejected. Ctrl-C ends the session.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  host label collected\n  \
    host label collected --to photos --head head.postcard --http :8080\n  \
    host train photos -o head.postcard      (retrain, with the labeled images)")]
pub struct Args {
    /// Directory of images
    dir: PathBuf,

    /// Data directory to move images to [default: DIR/sorted]
    ///
    /// It has a subdirectory for each class, as for host train; existing classes are offered.
    #[arg(long, value_name = "DATA")]
    to: Option<PathBuf>,

    /// Classes to offer, before those that have a directory
    #[arg(long, value_name = "A,B,...", value_delimiter = ',', conflicts_with = "head")]
    classes: Option<Vec<String>>,

    /// Offer the classes of this head
    #[arg(long, value_name = "HEAD")]
    head: Option<PathBuf>,

    /// Loopback address of the page; port 0 for any free port
    #[arg(
        long,
        value_name = "[ADDRESS]:PORT",
        default_value = "127.0.0.1:0",
        value_parser = address
    )]
    http: SocketAddr,

    /// Print JSON: an object at the start, and a summary at the end
    ///
    /// The first object has url, dir, data and pictures; the second one sorted, rejected, left and
    /// classes.
    #[arg(long)]
    json: bool,
}

/// Parses an address; `:8080` is a port of the loopback interface.
fn address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').and_then(|port| port.parse().ok());
    let local = port.map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    local
        .or_else(|| text.parse().ok())
        .ok_or_else(|| "expected an address like 127.0.0.1:8080 or :8080".into())
}

/// Runs the command.
pub fn run(args: Args, cancel: &CancelToken) -> Result<()> {
    if !args.http.ip().is_loopback() {
        return Err(UsageError(format!(
            "--http {} is reachable from other machines; use 127.0.0.1 or only a port",
            args.http
        ))
        .into());
    }
    for class in args.classes.iter().flatten() {
        check_class(class).map_err(|error| UsageError(format!("--classes {class:?}: {error}")))?;
    }
    let classes = match &args.head {
        Some(head) => Some(Head::open(head)?.labels),
        None => args.classes,
    };
    let session = LabelSession::open(&args.dir, args.to.as_deref(), classes.as_deref())?;
    if session.bad_lines > 0 {
        log::warn!("frames.ndjson: {} lines could not be read", session.bad_lines);
    }
    let (images, data) = (session.total(), session.data().to_owned());
    if images == 0 {
        bail!(
            "{}: no images to label ({})",
            args.dir.display(),
            vgg_edge::image::decode::EXTENSIONS.join(", ")
        );
    }
    let summary = serve(
        session,
        args.http,
        || cancel.is_canceled(),
        |address| {
            let url = format!("http://{address}/");
            if args.json {
                print_line(
                    json!({ "url": url, "dir": args.dir, "data": data, "pictures": images }),
                )?;
            } else {
                print_line(&url)?;
                log::info!(
                    "{images} images to sort into {}; press Ctrl-C when done",
                    data.display()
                );
            }
            Ok(())
        },
    )?;
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
        log::info!("to train on them: host train {} -o head.postcard", data.display());
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
