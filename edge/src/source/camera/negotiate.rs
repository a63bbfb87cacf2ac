//! Formats: their names, and the negotiation of format, size and rate with a driver.

use anyhow::{Context, Result, anyhow, bail};
use v4l::format::{Colorspace, Quantization};
use v4l::frameinterval::FrameIntervalEnum;
use v4l::video::Capture;
use v4l::video::capture::Parameters;
use v4l::{Device, Format, FourCC};
use vgg_edge::pixel::{Color, Layout, Matrix, PixelFormat, Range, default_color};

use super::CameraOptions;

/// The form of a session's frames.
#[derive(Clone, Copy, Debug)]
pub(super) enum FrameKind {
    Raw(Layout),
    Jpeg,
}

/// Whether frames of that fourcc are supported.
pub fn is_supported(fourcc: [u8; 4]) -> bool {
    is_jpeg(fourcc) || PixelFormat::from_fourcc(fourcc).is_some()
}

fn is_jpeg(fourcc: [u8; 4]) -> bool {
    matches!(&fourcc, b"MJPG" | b"JPEG")
}

/// Sets format and rate; returns what the driver chose, and a description of it.
pub(super) fn negotiate(device: &Device, options: &CameraOptions) -> Result<(FrameKind, String)> {
    let offered: Vec<[u8; 4]> = device
        .enum_formats()
        .context("this node does not capture")?
        .into_iter()
        .map(|description| description.fourcc.repr)
        .collect();
    if offered.is_empty() {
        bail!("this node does not capture (an output or metadata node?); see edge devices");
    }
    let wanted = match options.format {
        Some(fourcc) => fourcc,
        None => choose(device, &offered, options)?,
    };
    let (width, height) = options.size;
    let request = Format::new(width, height, FourCC::new(&wanted));
    let set =
        device.set_format(&request).with_context(|| format!("cannot set {}", text(wanted)))?;
    let got = set.fourcc.repr;
    let kind = frame_kind(&set, options.color)?;
    let rate = set_rate(device, options.fps);
    let mut detail = match kind {
        FrameKind::Raw(layout) => layout.to_string(),
        FrameKind::Jpeg => format!("{} {}x{}", text(got), set.width, set.height),
    };
    if let Some(rate) = rate {
        detail += &format!(", {} fps", (rate * 10.0).round() / 10.0);
    }
    // Drivers substitute silently.
    let mut other = Vec::new();
    if got != wanted {
        other.push(text(wanted));
    }
    if (set.width, set.height) != (width, height) {
        other.push(format!("{width}x{height}"));
    }
    if let (Some(fps), Some(rate)) = (options.fps, rate)
        && (rate - f64::from(fps)).abs() > 0.5
    {
        other.push(format!("{fps} fps"));
    }
    if !other.is_empty() {
        detail += &format!(" (the driver's choice; requested {})", other.join(", "));
    }
    Ok((kind, detail))
}

fn frame_kind(set: &Format, color: Option<Color>) -> Result<FrameKind> {
    let fourcc = set.fourcc.repr;
    if is_jpeg(fourcc) {
        return Ok(FrameKind::Jpeg);
    }
    let format = PixelFormat::from_fourcc(fourcc).ok_or_else(|| {
        anyhow!("the driver set the format {}, which is not supported", text(fourcc))
    })?;
    let color = color.unwrap_or(color_of(format, set.colorspace, set.quantization));
    let (width, height) = (set.width as usize, set.height as usize);
    Ok(FrameKind::Raw(Layout::new(format, width, height, set.stride as usize, color)?))
}

/// Requests a rate, if there is one to request; returns the rate in force. Not every driver has
/// one.
fn set_rate(device: &Device, fps: Option<u32>) -> Option<f64> {
    let parameters = match fps {
        Some(fps) => device.set_params(&Parameters::with_fps(fps)),
        None => device.params(),
    };
    let interval = parameters.ok().map(|parameters| parameters.interval);
    let interval = interval.filter(|i| i.numerator > 0 && i.denominator > 0)?;
    Some(f64::from(interval.denominator) / f64::from(interval.numerator))
}

/// The first supported format: raw before JPEG, if it reaches the requested rate.
fn choose(device: &Device, offered: &[[u8; 4]], options: &CameraOptions) -> Result<[u8; 4]> {
    let raw = PixelFormat::all().filter_map(PixelFormat::fourcc);
    let order = raw.chain([*b"MJPG", *b"JPEG"]).filter(|fourcc| offered.contains(fourcc));
    let supported: Vec<[u8; 4]> = order.collect();
    let is_fast = |fourcc: &&[u8; 4]| match options.fps {
        Some(fps) => {
            max_rate(device, **fourcc, options.size).is_none_or(|rate| rate + 0.5 >= f64::from(fps))
        }
        None => true,
    };
    supported.iter().find(is_fast).or(supported.first()).copied().ok_or_else(|| {
        let names: Vec<String> = offered.iter().map(|&fourcc| text(fourcc)).collect();
        anyhow!("the camera offers no supported format, only {}", names.join(", "))
    })
}

/// The highest rate at which a format is offered, if the driver reports it.
fn max_rate(device: &Device, fourcc: [u8; 4], (width, height): (u32, u32)) -> Option<f64> {
    let intervals = device.enum_frameintervals(FourCC::new(&fourcc), width, height).ok()?;
    let rate = |f: v4l::Fraction| f64::from(f.denominator) / f64::from(f.numerator.max(1));
    let rates = intervals.into_iter().map(|interval| match interval.interval {
        FrameIntervalEnum::Discrete(fraction) => rate(fraction),
        FrameIntervalEnum::Stepwise(step) => rate(step.min),
    });
    rates.max_by(f64::total_cmp)
}

/// The color encoding of samples as the driver reports it (V4L2 color spaces); by default as
/// [`default_color`].
fn color_of(format: PixelFormat, space: Colorspace, quantization: Quantization) -> Color {
    let default = default_color(format);
    let matrix = if matches!(space, Colorspace::Rec709) { Matrix::Bt709 } else { Matrix::Bt601 };
    let range = match (quantization, space) {
        (Quantization::FullRange, _) | (Quantization::Default, Colorspace::JPEG) => Range::Full,
        (Quantization::LimitedRange, _) => Range::Limited,
        (Quantization::Default, _) => default.range,
    };
    Color { matrix, range }
}

/// A fourcc as text.
pub fn text(fourcc: [u8; 4]) -> String {
    fourcc.iter().map(|&b| if b.is_ascii_graphic() { char::from(b) } else { '?' }).collect()
}

/// Whether a name is one of those in use for JPEG frames.
pub fn is_jpeg_name(name: &str) -> bool {
    ["MJPG", "MJPEG", "JPEG"].iter().any(|jpeg| name.eq_ignore_ascii_case(jpeg))
}

/// A format that `--format` does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownFormat;

impl std::fmt::Display for UnknownFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> =
            PixelFormat::all().filter_map(PixelFormat::fourcc).map(text).collect();
        write!(f, "expected one of auto, {}, MJPG, JPEG", names.join(", "))
    }
}

impl std::error::Error for UnknownFormat {}

/// `--format`: a fourcc or another name of a supported format; `None` for auto.
///
/// # Errors
/// [`UnknownFormat`], whose message lists the formats.
pub fn parse_format(name: &str) -> Result<Option<[u8; 4]>, UnknownFormat> {
    if name.eq_ignore_ascii_case("auto") {
        return Ok(None);
    }
    let fourcc = if name.eq_ignore_ascii_case("JPEG") {
        Some(*b"JPEG")
    } else if is_jpeg_name(name) {
        Some(*b"MJPG")
    } else {
        PixelFormat::from_name(name).and_then(PixelFormat::fourcc)
    };
    fourcc.map(Some).ok_or(UnknownFormat)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_by_name() {
        assert_eq!(parse_format("auto"), Ok(None));
        assert_eq!(parse_format("yuyv"), Ok(Some(*b"YUYV")));
        assert_eq!(parse_format("mjpeg"), Ok(Some(*b"MJPG")));
        assert_eq!(parse_format("jpeg"), Ok(Some(*b"JPEG")));
        assert_eq!(parse_format("BA81"), Ok(Some(*b"BA81")));
        assert_eq!(parse_format("H264"), Err(UnknownFormat));
        assert!(UnknownFormat.to_string().contains("NV12"));
    }

    #[test]
    fn colors_of_drivers() {
        let of = |format, space, quantization| color_of(format, space, quantization).name();
        assert_eq!(of(PixelFormat::Yuyv, Colorspace::SRGB, Quantization::Default), "bt601");
        assert_eq!(of(PixelFormat::Yuyv, Colorspace::JPEG, Quantization::Default), "bt601-full");
        assert_eq!(of(PixelFormat::Nv12, Colorspace::Rec709, Quantization::LimitedRange), "bt709");
        assert_eq!(of(PixelFormat::Grey, Colorspace::Default, Quantization::Default), "bt601-full");
        assert_eq!(of(PixelFormat::Grey, Colorspace::Default, Quantization::LimitedRange), "bt601");
    }
}
