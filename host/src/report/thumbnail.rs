//! Images as small JPEGs embedded in the page.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jpeg_encoder::{ColorType, Encoder};
use vgg_edge::Image;
use vgg_edge::image::resize::{Filter, Rect, resize};
use vgg_edge::preprocess::Preprocess;

/// Height and width in pixels: sharp at 96 CSS pixels on a phone, and about 6 kB each.
pub const SIDE: u16 = 160;
const QUALITY: u8 = 80;

/// Returns an image file as a `data:` URI, cropped, scaled and padded (with medium gray) to the
/// square that the base classifies. `None` if the file can no longer be read.
pub fn data_uri(file: &Path, preprocess: &Preprocess) -> Option<String> {
    let frame = vgg_edge::image::decode::decode_file(file).ok()?;
    let jpeg = encode(&frame, preprocess)?;
    Some(format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg)))
}

fn encode(frame: &Image, preprocess: &Preprocess) -> Option<Vec<u8>> {
    let side = usize::from(SIDE);
    let whole = Rect { x: 0, y: 0, width: frame.width(), height: frame.height() };
    let source = preprocess.fit.source(whole);
    let target = preprocess.fit.target(source, side);
    let part = resize(frame, source, target.width, target.height, Filter::Bilinear);
    let mut square = vec![0x80; 3 * side * side];
    for (y, row) in part.chunks_exact(3 * target.width).enumerate() {
        let at = 3 * ((target.y + y) * side + target.x);
        square[at..at + row.len()].copy_from_slice(row);
    }
    let mut jpeg = Vec::new();
    Encoder::new(&mut jpeg, QUALITY).encode(&square, SIDE, SIDE, ColorType::Rgb).ok()?;
    Some(jpeg)
}

#[cfg(test)]
mod tests {
    use vgg_edge::preprocess::{ChannelOrder, Fit, InputSpec};

    use super::*;

    #[test]
    fn thumbnails_show_the_input_of_the_base() {
        let base = InputSpec {
            channel_order: ChannelOrder::Bgr,
            mean: [0.0; 3],
            std: [1.0; 3],
            scale: 1.0,
            zero_point: 0,
            resize: Filter::Bilinear,
            channels: 4,
            stride: 32,
            size_multiple: 32,
            size_min: 32,
            size_max: 64,
        };
        // Red at the left, green in the middle, blue at the right.
        let color = |x: u32| {
            if x < 40 {
                [250, 0, 0]
            } else if x < 80 {
                [0, 250, 0]
            } else {
                [0, 0, 250]
            }
        };
        let rgb = (0..40 * 120).flat_map(|i| color(i % 120)).collect();
        let frame = Image::new(120, 40, rgb).unwrap();
        let pixel = |fit, x: usize, y: usize| {
            let preprocess = Preprocess::new(base.clone(), 64, fit, Filter::Bilinear).unwrap();
            let decoded =
                vgg_edge::image::decode::decode(&encode(&frame, &preprocess).unwrap()).unwrap();
            assert_eq!((decoded.width(), decoded.height()), (160, 160));
            let at = 3 * (y * 160 + x);
            std::array::from_fn::<_, 3, _>(|c| decoded.rgb()[at + c] / 64)
        };
        assert_eq!(pixel(Fit::Stretch, 20, 80), [3, 0, 0]);
        assert_eq!(pixel(Fit::Stretch, 140, 80), [0, 0, 3]);
        assert_eq!(pixel(Fit::Cover, 20, 80), [0, 3, 0]);
        assert_eq!(pixel(Fit::Contain, 20, 80), [3, 0, 0]);
        assert_eq!(pixel(Fit::Contain, 20, 20), [2, 2, 2]);
    }
}
