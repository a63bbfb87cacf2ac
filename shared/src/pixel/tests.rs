//! Tests of the pixel formats against naive definitions.

use proptest::prelude::*;

use super::format::FORMATS;
use super::*;

#[test]
fn primary_colors_convert() {
    let rgb = |color: Color, y, cb, cr| color.rgb(y, cb, cr);
    assert_eq!(rgb(Color::JPEG, 0, 128, 128), [0, 0, 0]);
    assert_eq!(rgb(Color::JPEG, 255, 128, 128), [255, 255, 255]);
    assert_eq!(rgb(Color::JPEG, 76, 85, 255), [254, 0, 0]);
    assert_eq!(rgb(Color::VIDEO, 16, 128, 128), [0, 0, 0]);
    assert_eq!(rgb(Color::VIDEO, 235, 128, 128), [255, 255, 255]);
    assert_eq!(rgb(Color::VIDEO, 81, 90, 240), [254, 0, 0]);
    let hd = Color { matrix: Matrix::Bt709, range: Range::Limited };
    assert_eq!(rgb(hd, 63, 102, 240), [255, 1, 0]);
    assert_eq!(rgb(hd, 32, 240, 118), [1, 0, 255]);
}

#[test]
fn color_conversion_is_within_one_of_real_numbers() {
    for color in Color::ALL {
        let (kr, kb) =
            if color.matrix == Matrix::Bt601 { (0.299, 0.114) } else { (0.2126, 0.0722) };
        let (offset, luma, chroma) = match color.range {
            Range::Full => (0.0, 1.0, 1.0),
            Range::Limited => (16.0, 255.0 / 219.0, 255.0 / 224.0),
        };
        let step = if cfg!(miri) { 85 } else { 5 };
        for (y, cb, cr) in (0..=255u8).step_by(step).flat_map(|y| {
            (0..=255u8)
                .step_by(15)
                .flat_map(move |cb| (0..=255u8).step_by(15).map(move |cr| (y, cb, cr)))
        }) {
            let (y_, u, v) = (
                luma * (f64::from(y) - offset),
                chroma * (f64::from(cb) - 128.0),
                chroma * (f64::from(cr) - 128.0),
            );
            let (r, b) = (y_ + 2.0 * (1.0 - kr) * v, y_ + 2.0 * (1.0 - kb) * u);
            let g = (y_ - kr * r - kb * b) / (1.0 - kr - kb);
            for (got, want) in color.rgb(y, cb, cr).into_iter().zip([r, g, b]) {
                assert!(
                    (f64::from(got) - want.clamp(0.0, 255.0)).abs() <= 0.51,
                    "{color} {y} {cb} {cr}"
                );
            }
        }
    }
}

fn bytes(n: usize, seed: u32) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed.into());
    (0..n).map(|_| random.u8(..)).collect()
}

/// The definition of each format, one sample at a time.
fn naive(layout: &Layout, bytes: &[u8], x: usize, y: usize) -> [u8; 3] {
    use PixelFormat as F;
    let Layout { format, height, stride, color, .. } = *layout;
    let at = |plane: usize, stride: usize, y: usize, x: usize| bytes[plane + y * stride + x];
    let luma_end = stride * height;
    let (pair, half) = (x / 2, stride.div_ceil(2));
    let second = luma_end + half * height.div_ceil(2);
    let ycbcr = |y: u8, cb: u8, cr: u8| color.rgb(y, cb, cr);
    match format {
        F::Yuyv => ycbcr(
            at(0, stride, y, 2 * x),
            at(0, stride, y, 4 * pair + 1),
            at(0, stride, y, 4 * pair + 3),
        ),
        F::Yvyu => ycbcr(
            at(0, stride, y, 2 * x),
            at(0, stride, y, 4 * pair + 3),
            at(0, stride, y, 4 * pair + 1),
        ),
        F::Uyvy => ycbcr(
            at(0, stride, y, 2 * x + 1),
            at(0, stride, y, 4 * pair),
            at(0, stride, y, 4 * pair + 2),
        ),
        F::Vyuy => ycbcr(
            at(0, stride, y, 2 * x + 1),
            at(0, stride, y, 4 * pair + 2),
            at(0, stride, y, 4 * pair),
        ),
        F::Nv12 => {
            let (cb, cr) =
                (at(luma_end, stride, y / 2, 2 * pair), at(luma_end, stride, y / 2, 2 * pair + 1));
            ycbcr(at(0, stride, y, x), cb, cr)
        }
        F::Nv21 => {
            let (cr, cb) =
                (at(luma_end, stride, y / 2, 2 * pair), at(luma_end, stride, y / 2, 2 * pair + 1));
            ycbcr(at(0, stride, y, x), cb, cr)
        }
        F::Yu12 => ycbcr(
            at(0, stride, y, x),
            at(luma_end, half, y / 2, pair),
            at(second, half, y / 2, pair),
        ),
        F::Yv12 => ycbcr(
            at(0, stride, y, x),
            at(second, half, y / 2, pair),
            at(luma_end, half, y / 2, pair),
        ),
        F::Yuv422p => {
            let second = luma_end + half * height;
            ycbcr(at(0, stride, y, x), at(luma_end, half, y, pair), at(second, half, y, pair))
        }
        F::Yuv444p => {
            ycbcr(at(0, stride, y, x), at(luma_end, stride, y, x), at(2 * luma_end, stride, y, x))
        }
        F::Rgb3 => [0, 1, 2].map(|c| at(0, stride, y, 3 * x + c)),
        F::Bgr3 => [2, 1, 0].map(|c| at(0, stride, y, 3 * x + c)),
        F::Grey if color.range == Range::Full => [at(0, stride, y, x); 3],
        F::Grey => ycbcr(at(0, stride, y, x), 128, 128),
        F::Bggr | F::Gbrg | F::Grbg | F::Rggb => naive_mosaic(layout, bytes, x, y),
    }
}

/// The definition of the Bayer formats.
fn naive_mosaic(layout: &Layout, bytes: &[u8], x: usize, y: usize) -> [u8; 3] {
    use PixelFormat as F;
    let Layout { format, width, height, stride, .. } = *layout;
    let pattern: [usize; 4] = match format {
        F::Bggr => [2, 1, 1, 0],
        F::Gbrg => [1, 2, 0, 1],
        F::Grbg => [1, 0, 2, 1],
        _ => [0, 1, 1, 2],
    };
    let color_at = |x: usize, y: usize| pattern[2 * (y % 2) + x % 2];
    let mirror = |v: isize, n: usize| {
        let last = n as isize - 1;
        (if v < 0 {
            -v
        } else if v > last {
            2 * last - v
        } else {
            v
        }) as usize
    };
    // The mean of the nearest neighbors of a color, rounded half up.
    [0, 1, 2].map(|color| {
        for distance in 0..=2isize {
            let near = (-1..=1isize).flat_map(|dy| (-1..=1isize).map(move |dx| (dx, dy)));
            let found: Vec<u32> = near
                .filter(|(dx, dy)| dx * dx + dy * dy == distance)
                .map(|(dx, dy)| (mirror(x as isize + dx, width), mirror(y as isize + dy, height)))
                .filter(|&(x, y)| color_at(x, y) == color)
                .map(|(x, y)| u32::from(bytes[y * stride + x]))
                .collect();
            if !found.is_empty() {
                let n = found.len() as u32;
                return ((found.iter().sum::<u32>() + n / 2) / n) as u8;
            }
        }
        unreachable!("every color is within the pattern")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 96 }))]

    #[test]
    fn rows_match_the_definition_of_the_pixel_format(
        index in 0..FORMATS.len(), width in 2usize..35, height in 2usize..12,
        padding in 0usize..9, color in 0usize..4, seed: u32,
    ) {
        let format = FORMATS[index].0;
        // Chroma of NV12 comes in pairs, so its stride is even.
        let unit = if matches!(format, PixelFormat::Nv12 | PixelFormat::Nv21) { 2 } else { 1 };
        let stride = format.row_bytes(width) + unit * padding;
        let layout = Layout::new(format, width, height, stride, Color::ALL[color]).unwrap();
        let bytes = bytes(layout.frame_bytes(), seed);
        let raw = RawFrame::new(layout, &bytes).unwrap();
        let frame = raw.to_frame();
        let positions = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let wanted: Vec<u8> =
            positions.flat_map(|(x, y)| naive(&layout, &bytes, x, y)).collect();
        prop_assert_eq!(frame.rgb(), &wanted[..], "{:?}", format);
        // Every part of a row is the same part of the whole.
        let (x, y) = (seed as usize % width, seed as usize % height);
        let n = 1 + (seed as usize / 7) % (width - x);
        let mut planes = vec![0i16; 3 * n];
        let (r, rest) = planes.split_at_mut(n);
        let (g, b) = rest.split_at_mut(n);
        raw.row(y, x, [&mut *r, &mut *g, &mut *b]);
        for i in 0..n {
            let got = [r[i], g[i], b[i]].map(|v| v as u8);
            prop_assert_eq!(&got[..], &frame.rgb()[3 * (y * width + x + i)..][..3]);
        }
        // No byte beyond the last pixel is read, and one fewer is refused.
        let least = layout.least_len();
        prop_assert!(RawFrame::new(layout, &bytes[..least]).unwrap().to_frame() == frame);
        prop_assert!(RawFrame::new(layout, &bytes[..least - 1]).is_err());
    }
}

#[test]
fn pixel_format_names_and_fourccs() {
    for format in PixelFormat::all() {
        assert_eq!(PixelFormat::from_name(&format.name()), Some(format));
        if let Some(fourcc) = format.fourcc() {
            assert_eq!(PixelFormat::from_fourcc(fourcc), Some(format));
        }
    }
    let layout = parse_layout("yuv420:640x480").unwrap();
    assert_eq!((layout.format(), layout.frame_bytes()), (PixelFormat::Yu12, 460_800));
    assert_eq!(parse_layout("NV12:636x480:640").unwrap().frame_bytes(), 640 * 720);
    for wrong in [
        "",
        "yuyv",
        "yuyv:",
        "yuyv:0x4",
        "yuyv:4x4:7",
        "yuyv:4x4:8:1",
        "h264:4x4",
        "grey:99999x99999",
        "rggb:1x4",
    ] {
        assert!(parse_layout(wrong).is_err(), "{wrong}");
    }
}
