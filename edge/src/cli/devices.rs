//! `edge devices`: lists cameras with their formats.

use std::path::Path;

use anyhow::Result;
use log::{info, warn};
use serde_json::{Value, json};
use v4l::frameinterval::FrameIntervalEnum;
use v4l::framesize::FrameSizeEnum;
use v4l::video::Capture;
use v4l::{Device, FourCC};
use vgg_edge_cli::terminal::print_line;

use crate::source::camera;

/// List cameras with their formats, resolutions and frame rates
///
/// Formats that edge cannot decode are marked with a minus. Nodes that do not capture are left
/// out.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  edge devices\n  \
    edge run --head head.postcard --device /dev/video0 --format YUYV --resolution 640x480")]
pub struct Args {
    /// Print NDJSON, one object per device
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let mut found = 0;
    for path in camera::nodes() {
        match describe(&path) {
            Ok(Some(device)) => {
                found += 1;
                if args.json { print_line(device)? } else { print_text(&device)? }
            }
            Ok(None) => {}
            Err(e) => warn!("{}: {e}", path.display()),
        }
    }
    if found == 0 {
        info!("no camera found (is this user in the group video?)");
    }
    Ok(())
}

/// Describes a device; `None` if it does not capture.
fn describe(path: &Path) -> std::io::Result<Option<Value>> {
    let device = Device::with_path(path)?;
    let camera::Identity { driver, card, bus } = camera::Identity::of(&device)?;
    let formats: Vec<Value> = match device.enum_formats() {
        Ok(formats) if !formats.is_empty() => formats
            .into_iter()
            .map(|format| {
                json!({
                    "fourcc": camera::text(format.fourcc.repr),
                    "description": format.description,
                    "understood": camera::is_supported(format.fourcc.repr),
                    "sizes": sizes(&device, format.fourcc),
                })
            })
            .collect(),
        _ => return Ok(None),
    };
    Ok(Some(
        json!({ "device": path, "card": card, "driver": driver, "bus": bus, "formats": formats }),
    ))
}

/// Returns the sizes of a format, each with its frame rates; of a range, its ends.
fn sizes(device: &Device, fourcc: FourCC) -> Vec<Value> {
    let sizes = device.enum_framesizes(fourcc).unwrap_or_default();
    sizes
        .into_iter()
        .map(|size| match size.size {
            FrameSizeEnum::Discrete(size) => {
                json!({
                    "size": format!("{}x{}", size.width, size.height),
                    "fps": rates(device, fourcc, size.width, size.height),
                })
            }
            FrameSizeEnum::Stepwise(range) => json!({
                "from": format!("{}x{}", range.min_width, range.min_height),
                "to": format!("{}x{}", range.max_width, range.max_height),
                "fps": rates(device, fourcc, range.max_width, range.max_height),
            }),
        })
        .collect()
}

fn rates(device: &Device, fourcc: FourCC, width: u32, height: u32) -> Vec<f64> {
    let rate = |f: v4l::Fraction| {
        (10.0 * f64::from(f.denominator) / f64::from(f.numerator.max(1))).round() / 10.0
    };
    let intervals = device.enum_frameintervals(fourcc, width, height).unwrap_or_default();
    let rates = intervals.into_iter().flat_map(|interval| match interval.interval {
        FrameIntervalEnum::Discrete(fraction) => vec![rate(fraction)],
        // The shortest interval is the highest rate.
        FrameIntervalEnum::Stepwise(step) => vec![rate(step.max), rate(step.min)],
    });
    rates.collect()
}

fn print_text(device: &Value) -> std::io::Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    print_line(format_args!(
        "{}  {} ({}, {})",
        text(&device["device"]),
        text(&device["card"]),
        text(&device["driver"]),
        text(&device["bus"])
    ))?;
    for format in device["formats"].as_array().into_iter().flatten() {
        let sizes: Vec<String> = format["sizes"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|size| {
                let fps: Vec<String> =
                    size["fps"].as_array().into_iter().flatten().map(Value::to_string).collect();
                let fps =
                    if fps.is_empty() { String::new() } else { format!(" @ {}", fps.join("/")) };
                match size["size"].as_str() {
                    Some(size) => format!("{size}{fps}"),
                    None => format!("{} to {}{fps}", text(&size["from"]), text(&size["to"])),
                }
            })
            .collect();
        let mark = if format["understood"] == true { ' ' } else { '-' };
        print_line(format_args!("  {mark} {}  {}", text(&format["fourcc"]), sizes.join(", ")))?;
    }
    Ok(())
}
