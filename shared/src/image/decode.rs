//! File bytes to an upright RGB8 [`Image`], with the same bits on every CPU.
//!
//! JPEG goes through `zune-jpeg` in its scalar build; PNG, BMP, PNM and WebP through `image`. The
//! content decides the format, never the name. As with Pillow's `convert("RGB")`, alpha is dropped
//! and gray is repeated. Unlike Keras's `load_img`, the EXIF orientation is applied, because
//! cameras and phones rely on it.

use std::io::Cursor;
use std::path::Path;

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use crate::{Error, Image, Result};

/// Maximum number of pixels of an image: 2^27, enough for 10,000 x 10,000.
pub const MAX_PIXELS: u64 = 1 << 27;

/// Maximum side of an image, in pixels.
pub const MAX_SIDE: u32 = 32_768;

/// Maximum memory for decoding, in bytes: enough for [`MAX_PIXELS`] in RGB, for fewer pixels in
/// formats that take more per pixel (16 bits, alpha, progressive JPEG).
pub const MAX_MEMORY: u64 = 512 << 20;

/// Maximum length of an image file, in bytes.
pub const MAX_FILE_BYTES: u64 = 512 << 20;

/// Extensions of the image files that [`decode()`] reads, in lower case.
pub const EXTENSIONS: &[&str] =
    &["bmp", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm", "webp"];

/// Whether a path has one of the [`EXTENSIONS`], in any case.
pub fn has_image_extension(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
}

/// Reads and decodes an image file.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; otherwise as [`decode()`].
pub fn decode_file(path: &Path) -> Result<Image> {
    decode(&crate::durable_fs::read_limited(path, MAX_FILE_BYTES)?)
}

/// Decodes the bytes of an image file.
///
/// # Errors
/// [`Error::Image`] if the bytes are not an image, end early, are damaged, or would take more than
/// [`MAX_MEMORY`]; [`Error::ImageTooLarge`] beyond [`MAX_PIXELS`] or [`MAX_SIDE`].
pub fn decode(bytes: &[u8]) -> Result<Image> {
    if bytes.is_empty() {
        return Err(Error::Image("the file is empty".into()));
    }
    let (image, orientation) =
        if bytes.starts_with(&[0xff, 0xd8]) { decode_jpeg(bytes)? } else { decode_other(bytes)? };
    let mut image = DynamicImage::ImageRgb8(image.into_rgb8());
    image.apply_orientation(orientation);
    let image = image.into_rgb8();
    Image::new(image.width() as usize, image.height() as usize, image.into_raw())
}

/// Checks a size in pixels against [`MAX_PIXELS`] and [`MAX_SIDE`].
///
/// # Errors
/// [`Error::ImageTooLarge`].
pub fn check_size(width: u64, height: u64) -> Result<()> {
    let fits =
        width.max(height) <= u64::from(MAX_SIDE) && width.saturating_mul(height) <= MAX_PIXELS;
    if fits { Ok(()) } else { Err(Error::ImageTooLarge { width, height }) }
}

/// Checks the memory for decoding an image and converting it to RGB against [`MAX_MEMORY`].
fn check_memory(width: u64, height: u64, bytes_per_pixel: u64) -> Result<()> {
    let bytes = width * height * bytes_per_pixel;
    if bytes <= MAX_MEMORY {
        return Ok(());
    }
    Err(Error::Image(format!(
        "{width}x{height} pixels of its format take {} MB to decode, over the limit of {} MB; \
         scale it down, or save it in 8 bits without alpha and not as progressive JPEG",
        bytes / 1_000_000,
        MAX_MEMORY / 1_000_000
    )))
}

fn decode_jpeg(bytes: &[u8]) -> Result<(DynamicImage, Orientation)> {
    let wrong = |e: zune_jpeg::errors::DecodeErrors| Error::Image(format!("JPEG: {e}"));
    // The decoder fills missing pixels with gray; an image that is half gray must not pass for a
    // whole one.
    let scan = first_scan(bytes).filter(|scan| scan.ends(bytes));
    let scan =
        scan.ok_or_else(|| Error::Image("JPEG: it ends early (no end-of-image marker)".into()))?;
    let with_tables;
    let bytes = if scan.has_tables {
        bytes
    } else {
        // Motion JPEG omits the tables that the standard proposes.
        with_tables = [&bytes[..scan.at], &huffman_segment(), &bytes[scan.at..]].concat();
        &with_tables[..]
    };
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX));
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(wrong)?;
    let (width, height) = decoder.dimensions().unwrap_or((0, 0));
    check_size(width as u64, height as u64)?;
    // Each block of 8x8 pixels takes at least the bit of its mean.
    if (width.div_ceil(8) * height.div_ceil(8)).div_ceil(8) > bytes.len() {
        return Err(Error::Image(format!(
            "JPEG: it ends early ({} bytes cannot hold {width}x{height} pixels)",
            bytes.len()
        )));
    }
    let gray = matches!(decoder.input_colorspace(), Some(ColorSpace::Luma));
    let out = if gray { ColorSpace::Luma } else { ColorSpace::RGB };
    // Scans without whole pixels are collected as coefficients of 16 bits.
    let coefficients = if scan.is_whole { 0 } else { 2 * u64::from(scan.components) };
    check_memory(width as u64, height as u64, coefficients + if gray { 4 } else { 3 })?;
    decoder.set_options(options.jpeg_set_out_colorspace(out));
    let orientation = decoder
        .exif()
        .and_then(|chunk| Orientation::from_exif_chunk(chunk))
        .unwrap_or(Orientation::NoTransforms);
    let pixels = decoder.decode().map_err(wrong)?;
    let (width, height) = (width as u32, height as u32);
    let image = if gray {
        image::GrayImage::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8)
    } else {
        image::RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8)
    };
    Ok((image.ok_or_else(|| Error::Image("JPEG: fewer pixels than declared".into()))?, orientation))
}

/// The first scan of a JPEG.
struct Scan {
    /// Offset of its segment.
    at: usize,
    /// Whether Huffman tables precede it.
    has_tables: bool,
    /// Number of components of the frame.
    components: u8,
    /// Whether it has whole pixels: it is sequential and has all components.
    is_whole: bool,
}

impl Scan {
    /// Whether an end-of-image marker follows.
    ///
    /// Within a scan a 0xff byte is always escaped, so the marker cannot occur by chance (ISO/IEC
    /// 10918-1, B.1.1.5).
    fn ends(&self, bytes: &[u8]) -> bool {
        bytes[self.at..].windows(2).any(|pair| pair == [0xff, 0xd9])
    }
}

/// Finds the first start of scan, with the facts in the segments before it.
///
/// Segments are skipped by their lengths, since an EXIF thumbnail is a JPEG of its own.
fn first_scan(bytes: &[u8]) -> Option<Scan> {
    let (mut at, mut has_tables, mut frame) = (2, false, (0, 0));
    loop {
        let &[mark, kind] = bytes.get(at..at + 2)? else { return None };
        match (mark, kind) {
            (0xff, 0xff) => at += 1,
            (0xff, 0x01 | 0xd0..=0xd8) => at += 2,
            (0xff, 0xda) => {
                let (process, components) = frame;
                let is_whole =
                    process <= 0xc1 && bytes.get(at + 4).is_some_and(|&count| count >= components);
                return Some(Scan { at, has_tables, components, is_whole });
            }
            (0xff, _) => {
                has_tables |= kind == 0xc4;
                if matches!(kind, 0xc0..=0xcf) && !matches!(kind, 0xc4 | 0xc8 | 0xcc) {
                    frame = (kind, bytes.get(at + 9).copied().unwrap_or(0));
                }
                let &[high, low] = bytes.get(at + 2..at + 4)? else { return None };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
            }
            // Bytes between segments: the decoder skips them too.
            _ => at += 1,
        }
    }
}

/// Returns the Huffman tables of ISO/IEC 10918-1, K.3, as a segment.
fn huffman_segment() -> Vec<u8> {
    /// Class and number of a table, the number of codes of each length, and the values in order.
    const TABLES: [(u8, [u8; 16], &[u8]); 4] = [
        (
            0x00,
            [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
            &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
        ),
        (
            0x10,
            [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 0x7d],
            &[
                0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51,
                0x61, 0x07, 0x22, 0x71, 0x14, 0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1,
                0x15, 0x52, 0xd1, 0xf0, 0x24, 0x33, 0x62, 0x72, 0x82, 0x09, 0x0a, 0x16, 0x17, 0x18,
                0x19, 0x1a, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39,
                0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57,
                0x58, 0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75,
                0x76, 0x77, 0x78, 0x79, 0x7a, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92,
                0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7,
                0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3,
                0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8,
                0xd9, 0xda, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf1, 0xf2,
                0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
            ],
        ),
        (
            0x01,
            [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
            &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
        ),
        (
            0x11,
            [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 0x77],
            &[
                0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07,
                0x61, 0x71, 0x13, 0x22, 0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09,
                0x23, 0x33, 0x52, 0xf0, 0x15, 0x62, 0x72, 0xd1, 0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25,
                0xf1, 0x17, 0x18, 0x19, 0x1a, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x35, 0x36, 0x37, 0x38,
                0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56,
                0x57, 0x58, 0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74,
                0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89,
                0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5,
                0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba,
                0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6,
                0xd7, 0xd8, 0xd9, 0xda, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf2,
                0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
            ],
        ),
    ];
    let body: Vec<u8> = TABLES
        .iter()
        .flat_map(|(id, counts, values)| [&[*id][..], counts, values].concat())
        .collect();
    [&[0xff, 0xc4][..], &((body.len() + 2) as u16).to_be_bytes(), &body].concat()
}

fn decode_other(bytes: &[u8]) -> Result<(DynamicImage, Orientation)> {
    let wrong = |e: image::ImageError| Error::Image(e.to_string());
    let reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| Error::Image(e.to_string()))?;
    if reader.format().is_none() {
        return Err(Error::Image("none of JPEG, PNG, BMP, PNM, WebP".into()));
    }
    let is_webp = reader.format() == Some(ImageFormat::WebP);
    let mut reader = reader;
    // Decoders respect the limit as far as they know their memory; the rest is counted below.
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_MEMORY);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(wrong)?;
    let (width, height) = decoder.dimensions();
    check_size(u64::from(width), u64::from(height))?;
    let color = decoder.color_type();
    let rgb = if color == ColorType::Rgb8 { 0 } else { 3 };
    // WebP is decoded to RGBA first.
    let own = if is_webp { 4 } else { 0 };
    check_memory(width.into(), height.into(), u64::from(color.bytes_per_pixel()) + rgb + own)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((DynamicImage::from_decoder(decoder).map_err(wrong)?, orientation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32, color: ColorType, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        image::write_buffer_with_format(
            &mut Cursor::new(&mut bytes),
            data,
            width,
            height,
            color,
            ImageFormat::Png,
        )
        .unwrap();
        bytes
    }

    #[test]
    fn image_alpha_is_dropped_and_gray_repeated() {
        let frame = decode(&png(1, 1, ColorType::Rgba8, &[9, 8, 7, 0])).unwrap();
        assert_eq!(frame.rgb(), [9, 8, 7]);
        let frame = decode(&png(2, 1, ColorType::L8, &[3, 200])).unwrap();
        assert_eq!(frame.rgb(), [3, 3, 3, 200, 200, 200]);
    }

    #[test]
    fn bytes_that_are_not_an_image_have_their_own_errors() {
        let text = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
        assert!(text(b"").contains("empty"));
        assert!(text(b"hello, I am a text file").contains("none of JPEG"));
        assert!(text(&[0xff, 0xd8, 0xff, 0xe0, 0, 4, 1]).contains("ends early"));
        let whole = png(16, 16, ColorType::L8, &[7; 256]);
        assert!(decode(&whole[..whole.len() / 2]).is_err());
    }

    #[test]
    fn image_size_is_checked_before_decoding() {
        let mut bomb = png(1, 1, ColorType::L8, &[0]);
        bomb[16..20].copy_from_slice(&60_000u32.to_be_bytes());
        bomb[20..24].copy_from_slice(&60_000u32.to_be_bytes());
        // The checksum of the header is wrong now, so either error is fine; neither may allocate
        // 3.6 GB.
        assert!(decode(&bomb).is_err());
        assert!(matches!(check_size(60_000, 60_000), Err(Error::ImageTooLarge { .. })));
        assert!(check_size(10_000, 10_000).is_ok());
    }

    #[test]
    fn image_memory_is_limited_by_the_format() {
        // 10,000 x 10,000 in gray or baseline color passes, in 16-bit RGBA it does not.
        assert!(check_memory(10_000, 10_000, 4).is_ok() && check_memory(11_585, 11_585, 3).is_ok());
        assert!(
            check_memory(10_000, 10_000, 11).unwrap_err().to_string().contains("1100 MB to decode")
        );
        let fixture = |name: &str| {
            std::fs::read(
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/jpeg").join(name),
            )
            .unwrap()
        };
        for (name, is_whole, components) in [
            ("baseline-420.jpg", true, 3),
            ("progressive-420.jpg", false, 3),
            ("cmyk.jpg", true, 4),
            ("grey.jpg", true, 1),
        ] {
            let scan = first_scan(&fixture(name)).unwrap();
            assert_eq!((scan.is_whole, scan.components), (is_whole, components), "{name}");
        }
        // Few bytes that declare many pixels: the whole image would be invented.
        let mut huge = fixture("progressive-420.jpg");
        let frame = huge.windows(2).position(|pair| pair == [0xff, 0xc2]).unwrap();
        huge[frame + 5..frame + 9].copy_from_slice(&[0x10, 0, 0x10, 0]);
        assert!(decode(&huge).unwrap_err().to_string().contains("cannot hold 4096x4096"));
        huge.extend_from_slice(&vec![0; 1 << 20]);
        huge[frame + 5..frame + 9].copy_from_slice(&[0x20, 0, 0x40, 0]);
        assert!(decode(&huge).unwrap_err().to_string().contains("MB to decode"));
    }

    /// A file with the standard's tables decodes to the same image without them, as Motion JPEG
    /// cameras send it.
    #[test]
    fn jpeg_huffman_tables_may_be_missing() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/jpeg");
        let standard = huffman_segment();
        let mut compared = 0;
        for entry in std::fs::read_dir(directory).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            // Removes the segments, if they hold the standard's tables.
            let (mut at, mut bare, mut tables) = (2, vec![0xff, 0xd8], Vec::new());
            while bytes.get(at).is_some_and(|&b| b == 0xff) && bytes[at + 1] != 0xda {
                let length = 2 + usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
                let segment = &bytes[at..at + length];
                if segment[1] == 0xc4 {
                    tables.extend_from_slice(&segment[4..])
                } else {
                    bare.extend_from_slice(segment)
                }
                at += length;
            }
            bare.extend_from_slice(&bytes[at..]);
            if tables == standard[4..] {
                assert!(decode(&bare).unwrap() == decode(&bytes).unwrap());
                compared += 1;
            }
        }
        assert!(compared >= 3, "only {compared} files have the standard's tables");
    }

    #[test]
    fn image_extensions() {
        assert!(has_image_extension(Path::new("a/b.JPG")));
        assert!(!has_image_extension(Path::new("a/b.txt")));
        assert!(!has_image_extension(Path::new("a/jpg")));
    }
}
