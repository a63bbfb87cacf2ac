//! Parsers of flag values.

use vgg_edge::pixel::{parse_layout, parse_size};

use crate::source::camera::{is_jpeg_name, parse_format};
use crate::source::stream::StreamFormat;

/// A fourcc, or the first that is understood. A type of its own, as clap treats an `Option` as a
/// flag that may be missing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CameraFormat(pub Option<[u8; 4]>);

/// Parses the format of a camera.
///
/// # Errors
/// A description of the expected text.
pub fn parse_format_name(text: &str) -> Result<CameraFormat, String> {
    parse_format(text).map(CameraFormat).map_err(|e| e.to_string())
}

/// Parses a size in pixels.
///
/// # Errors
/// A description of the expected text.
pub fn parse_resolution(text: &str) -> Result<(u32, u32), String> {
    let size =
        parse_size(text).and_then(|(w, h)| Some((u32::try_from(w).ok()?, u32::try_from(h).ok()?)));
    size.filter(|&(w, h)| w > 0 && h > 0).ok_or_else(|| "expected WxH, such as 640x480".into())
}

/// Parses the format of frames on stdin.
///
/// # Errors
/// A description of the expected text.
pub fn parse_raw(text: &str) -> Result<StreamFormat, String> {
    if is_jpeg_name(text) {
        Ok(StreamFormat::Jpeg)
    } else {
        parse_layout(text).map(StreamFormat::Raw).map_err(|e| e.to_string())
    }
}

fn parse_number(text: &str, range: std::ops::RangeInclusive<f32>) -> Result<f32, String> {
    let found = text.parse().ok().filter(|value| range.contains(value));
    found.ok_or_else(|| format!("expected a number from {} to {}", range.start(), range.end()))
}

/// Parses a score.
///
/// # Errors
/// A description of the expected text.
pub fn parse_score(text: &str) -> Result<f32, String> {
    parse_number(text, 0.0..=1.0)
}

/// Parses the weight of earlier frames.
///
/// # Errors
/// A description of the expected text.
pub fn parse_weight(text: &str) -> Result<f32, String> {
    parse_number(text, 0.0..=0.999)
}

/// Parses a difference in gray levels.
///
/// # Errors
/// A description of the expected text.
pub fn parse_level(text: &str) -> Result<f32, String> {
    parse_number(text, 0.0..=255.0)
}

/// Parses a timeout in seconds.
///
/// # Errors
/// A description of the expected text.
pub fn parse_stall_timeout(text: &str) -> Result<f32, String> {
    parse_number(text, 0.5..=3600.0)
}

/// Parses an interval in seconds, which may be zero.
///
/// # Errors
/// A description of the expected text.
pub fn parse_interval(text: &str) -> Result<f32, String> {
    parse_number(text, 0.0..=86400.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_values_out_of_range_are_refused() {
        assert_eq!(parse_level("6"), Ok(6.0));
        assert!(parse_level("-1").is_err());
        assert!(parse_weight("1").is_err());
        assert!(parse_score("nan").is_err());
        assert!(parse_interval("0").is_ok());
        assert!(parse_interval("-1").is_err() && parse_interval("inf").is_err());
        assert_eq!(parse_resolution("640x480"), Ok((640, 480)));
        assert!(parse_resolution("0x480").is_err() && parse_resolution("640").is_err());
    }
}
