//! File bytes to an upright RGB8 [`Frame`], with the same bits on every CPU.
//!
//! JPEG goes through `zune-jpeg` in its scalar build; PNG, BMP, PNM and WebP through `image`. The format is told by the
//! content, never by the name. As with Pillow's `convert("RGB")`, alpha is dropped and grey is repeated; unlike Keras's
//! `load_img`, the EXIF orientation is applied, because cameras and phones rely on it.

use std::io::Cursor;
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use crate::{Error, Frame, Result};

/// The largest number of pixels that is decoded: 2^27, which lets a 10,000 x 10,000 picture through.
pub const MAX_PIXELS: u64 = 1 << 27;

/// The largest side that is decoded, in pixels.
pub const MAX_SIDE: u32 = 32_768;

/// The largest file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 512 << 20;

/// File name endings of pictures that [`decode`] reads, lower case.
pub const EXTENSIONS: &[&str] = &["bmp", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm", "webp"];

/// Whether the name of a file ends as pictures' names do, in upper or lower case.
pub fn has_picture_extension(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
}

/// Reads and decodes one picture file.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; otherwise as [`decode`].
pub fn decode_file(path: &Path) -> Result<Frame> {
    decode(&crate::fs::read_limited(path, MAX_FILE_BYTES)?)
}

/// Decodes the bytes of a picture file.
///
/// # Errors
/// [`Error::Picture`] for what is not a picture, ends early or is damaged; [`Error::PictureTooLarge`] beyond
/// [`MAX_PIXELS`] or [`MAX_SIDE`].
pub fn decode(bytes: &[u8]) -> Result<Frame> {
    if bytes.is_empty() {
        return Err(Error::Picture("the file is empty".into()));
    }
    let (picture, orientation) =
        if bytes.starts_with(&[0xff, 0xd8]) { decode_jpeg(bytes)? } else { decode_other(bytes)? };
    let mut picture = DynamicImage::ImageRgb8(picture.into_rgb8());
    picture.apply_orientation(orientation);
    let picture = picture.into_rgb8();
    Frame::new(picture.width() as usize, picture.height() as usize, picture.into_raw())
}

fn check_size(width: u64, height: u64) -> Result<()> {
    let fits = width.max(height) <= u64::from(MAX_SIDE) && width.saturating_mul(height) <= MAX_PIXELS;
    if fits { Ok(()) } else { Err(Error::PictureTooLarge { width, height }) }
}

fn decode_jpeg(bytes: &[u8]) -> Result<(DynamicImage, Orientation)> {
    let wrong = |e: zune_jpeg::errors::DecodeErrors| Error::Picture(format!("JPEG: {e}"));
    // The decoder fills up what is missing with grey; a picture that is half grey must not pass for a whole one.
    if !has_end_of_image(bytes) {
        return Err(Error::Picture("JPEG: it ends early (no end-of-image marker)".into()));
    }
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX));
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(wrong)?;
    let (width, height) = decoder.dimensions().unwrap_or((0, 0));
    check_size(width as u64, height as u64)?;
    let grey = matches!(decoder.input_colorspace(), Some(ColorSpace::Luma));
    let out = if grey { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(options.jpeg_set_out_colorspace(out));
    let orientation =
        decoder.exif().and_then(|chunk| Orientation::from_exif_chunk(chunk)).unwrap_or(Orientation::NoTransforms);
    let pixels = decoder.decode().map_err(wrong)?;
    let (width, height) = (width as u32, height as u32);
    let picture = if grey {
        image::GrayImage::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8)
    } else {
        image::RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8)
    };
    Ok((picture.ok_or_else(|| Error::Picture("JPEG: fewer pixels than announced".into()))?, orientation))
}

/// Whether an end-of-image marker follows the first start of scan.
///
/// Segments before the scan are skipped by their lengths, since an EXIF thumbnail has an end of its own. Within a scan a
/// 0xff byte is always escaped, so the marker cannot occur by chance (ISO/IEC 10918-1, B.1.1.5).
fn has_end_of_image(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[mark, kind]) = bytes.get(at..at + 2) {
        match (mark, kind) {
            (0xff, 0xff) => at += 1,
            (0xff, 0x01 | 0xd0..=0xd8) => at += 2,
            (0xff, 0xda) => return bytes[at..].windows(2).any(|pair| pair == [0xff, 0xd9]),
            (0xff, _) => match bytes.get(at + 2..at + 4) {
                Some(&[high, low]) => at += 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
            // Bytes between segments: the decoder skips them too.
            _ => at += 1,
        }
    }
    false
}

fn decode_other(bytes: &[u8]) -> Result<(DynamicImage, Orientation)> {
    let wrong = |e: image::ImageError| Error::Picture(e.to_string());
    let reader =
        ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| Error::Picture(e.to_string()))?;
    if reader.format().is_none() {
        return Err(Error::Picture("none of JPEG, PNG, BMP, PNM, WebP".into()));
    }
    let mut reader = reader;
    // The limit is on what a decoder allocates at once: the pixels of the largest picture, in 16-bit RGBA.
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_PIXELS * 8);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(wrong)?;
    let (width, height) = decoder.dimensions();
    check_size(u64::from(width), u64::from(height))?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((DynamicImage::from_decoder(decoder).map_err(wrong)?, orientation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32, color: image::ColorType, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        image::write_buffer_with_format(
            &mut Cursor::new(&mut bytes),
            data,
            width,
            height,
            color,
            image::ImageFormat::Png,
        )
        .unwrap();
        bytes
    }

    #[test]
    fn alpha_is_dropped_and_grey_repeated() {
        let frame = decode(&png(1, 1, image::ColorType::Rgba8, &[9, 8, 7, 0])).unwrap();
        assert_eq!(frame.rgb(), [9, 8, 7]);
        let frame = decode(&png(2, 1, image::ColorType::L8, &[3, 200])).unwrap();
        assert_eq!(frame.rgb(), [3, 3, 3, 200, 200, 200]);
    }

    #[test]
    fn junk_is_told_apart() {
        let text = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
        assert!(text(b"").contains("empty"));
        assert!(text(b"hello, I am a text file").contains("none of JPEG"));
        assert!(text(&[0xff, 0xd8, 0xff, 0xe0, 0, 4, 1]).contains("ends early"));
        let whole = png(16, 16, image::ColorType::L8, &[7; 256]);
        assert!(decode(&whole[..whole.len() / 2]).is_err());
    }

    #[test]
    fn a_declared_size_beyond_the_limit_is_refused_before_decoding() {
        let mut bomb = png(1, 1, image::ColorType::L8, &[0]);
        bomb[16..20].copy_from_slice(&60_000u32.to_be_bytes());
        bomb[20..24].copy_from_slice(&60_000u32.to_be_bytes());
        // The header's checksum no longer holds, so either refusal will do; neither may allocate 3.6 GB.
        assert!(decode(&bomb).is_err());
        assert!(matches!(check_size(60_000, 60_000), Err(Error::PictureTooLarge { .. })));
        assert!(check_size(10_000, 10_000).is_ok());
    }

    #[test]
    fn names_of_pictures() {
        assert!(has_picture_extension(Path::new("a/b.JPG")));
        assert!(!has_picture_extension(Path::new("a/b.txt")));
        assert!(!has_picture_extension(Path::new("a/jpg")));
    }
}
