//! Frames as JPEG, for the page and for collected frames.
//!
//! The encoder's bits need not be equal on all machines: nothing is classified from them.

use anyhow::{Result, anyhow};
use jpeg_encoder::{ColorType, Encoder};
use vgg_edge::image::resize::{Filter, Rect, resize};
use vgg_edge::pixel::Pixels;

use crate::frame::Frame;

/// Encodes the whole frame as a JPEG at most `max_width` pixels wide, of a quality from 1 to 100.
///
/// # Errors
/// For a frame that cannot be decoded, or of over 65,535 pixels per side.
pub fn encode(frame: &Frame, max_width: usize, quality: u8) -> Result<Vec<u8>> {
    let (rgb, width, height) = frame.with_pixels(|pixels| scaled(pixels, max_width))?;
    let side = |pixels: usize| {
        u16::try_from(pixels).map_err(|_| anyhow!("a side of {pixels} pixels is too long for JPEG"))
    };
    let mut bytes = Vec::new();
    Encoder::new(&mut bytes, quality).encode(&rgb, side(width)?, side(height)?, ColorType::Rgb)?;
    Ok(bytes)
}

fn scaled(pixels: &dyn Pixels, max_width: usize) -> (Vec<u8>, usize, usize) {
    let (width, height) = (pixels.width(), pixels.height());
    let to = (width.min(max_width).max(1), (height * width.min(max_width) / width.max(1)).max(1));
    (resize(pixels, Rect { x: 0, y: 0, width, height }, to.0, to.1, Filter::Bilinear), to.0, to.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vgg_edge::Image;

    #[test]
    fn large_jpegs_are_scaled_and_all_decode() {
        let image = Image::new(100, 60, (0..18_000u32).map(|v| (v / 71) as u8).collect()).unwrap();
        let small = encode(&Frame::Rgb(image.clone()), 40, 90).unwrap();
        let decoded = vgg_edge::image::decode::decode(&small).unwrap();
        assert_eq!((decoded.width(), decoded.height()), (40, 24));
        let whole =
            vgg_edge::image::decode::decode(&encode(&Frame::Rgb(image.clone()), 640, 95).unwrap())
                .unwrap();
        assert_eq!((whole.width(), whole.height()), (100, 60));
        let off = whole.rgb().iter().zip(image.rgb()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(off < Some(60), "{off:?}");
    }
}
