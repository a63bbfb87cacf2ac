//! Rows of the Y'CbCr formats.

use super::{Layout, PixelFormat, RawFrame};
use crate::multiversion;

multiversion! {
    /// Splits pairs of pixels that share chroma, in groups of four bytes. `offsets` are those of
    /// the first luma (the second is two bytes later), Cb and Cr.
    fn split_packed(
        groups: &[u8], offsets: [usize; 3], luma: &mut [i16], cb: &mut [i16], cr: &mut [i16],
    ) {
        let even = luma.len() / 2 * 2;
        let pairs = groups.chunks_exact(4).zip(luma[..even].chunks_exact_mut(2));
        // With constant offsets the compiler vectorizes the loop.
        macro_rules! split {
            ($at:literal, $u:literal, $v:literal) => {{
                let chroma = cb[..even].chunks_exact_mut(2).zip(cr[..even].chunks_exact_mut(2));
                for ((group, luma), (cb, cr)) in pairs.zip(chroma) {
                    (luma[0], luma[1]) = (group[$at].into(), group[$at + 2].into());
                    (cb[0], cb[1]) = (group[$u].into(), group[$u].into());
                    (cr[0], cr[1]) = (group[$v].into(), group[$v].into());
                }
            }};
        }
        match offsets {
            [0, 1, 3] => split!(0, 1, 3),
            [0, 3, 1] => split!(0, 3, 1),
            [1, 0, 2] => split!(1, 0, 2),
            _ => split!(1, 2, 0),
        }
        if even < luma.len() {
            let group = &groups[2 * even..];
            let [at, u, v] = offsets;
            (luma[even], cb[even], cr[even]) = (group[at].into(), group[u].into(), group[v].into());
        }
    }
}

/// Repeats the samples of a chroma plane that has one sample for `across` pixels; `step` is the
/// length of a group of samples, `offset` the position of the sample within it.
fn spread(row: &[u8], x: usize, across: usize, step: usize, offset: usize, out: &mut [i16]) {
    if across == 1 {
        for (out, &sample) in out.iter_mut().zip(&row[x..]) {
            *out = sample.into();
        }
        return;
    }
    let odd = out.len().min(x % 2);
    let (first, out) = out.split_at_mut(odd);
    first.fill(row[x / 2 * step + offset].into());
    let group = x / 2 + odd;
    let mut pairs = out.chunks_exact_mut(2);
    let mut groups = row[(group * step).min(row.len())..].chunks_exact(step);
    for (pair, samples) in (&mut pairs).zip(&mut groups) {
        pair.fill(samples[offset].into());
    }
    if let [last] = pairs.into_remainder() {
        let samples = groups.next().unwrap_or_else(|| groups.remainder());
        *last = samples[offset].into();
    }
}

/// Reads a part of row `y` from `x` on into planes of Y, Cb and Cr.
pub(super) fn read_row(frame: &RawFrame<'_>, y: usize, x: usize, [luma, cb, cr]: [&mut [i16]; 3]) {
    let Layout { format, width, height, stride, .. } = frame.layout;
    let row = &frame.bytes[y * stride..][..format.row_bytes(width)];
    let (chroma_stride, chroma_rows) = frame.layout.chroma();
    let plane = |index: usize, y: usize| {
        let at = stride * height + index * chroma_stride * chroma_rows + y * chroma_stride;
        &frame.bytes[at..]
    };
    let copy = |out: &mut [i16], step: usize, offset: usize| {
        for (out, samples) in out.iter_mut().zip(row[x * step..].chunks_exact(step)) {
            *out = samples[offset].into();
        }
    };
    let half = 2 * width.div_ceil(2);
    match format {
        PixelFormat::Yuyv | PixelFormat::Uyvy | PixelFormat::Yvyu | PixelFormat::Vyuy => {
            let (at, [u, v]) = match format {
                PixelFormat::Yuyv => (0, [1, 3]),
                PixelFormat::Yvyu => (0, [3, 1]),
                PixelFormat::Uyvy => (1, [0, 2]),
                _ => (1, [2, 0]),
            };
            // An odd first pixel is the second of its pair.
            let odd = (x % 2).min(luma.len());
            if odd == 1 {
                let group = &row[x / 2 * 4..];
                (luma[0], cb[0], cr[0]) = (group[2 + at].into(), group[u].into(), group[v].into());
            }
            split_packed(
                &row[(x / 2 + odd) * 4..],
                [at, u, v],
                &mut luma[odd..],
                &mut cb[odd..],
                &mut cr[odd..],
            );
        }
        PixelFormat::Nv12 | PixelFormat::Nv21 => {
            let [u, v] = if format == PixelFormat::Nv12 { [0, 1] } else { [1, 0] };
            let chroma = &plane(0, y / 2)[..half];
            copy(luma, 1, 0);
            spread(chroma, x, 2, 2, u, cb);
            spread(chroma, x, 2, 2, v, cr);
        }
        PixelFormat::Yu12 | PixelFormat::Yv12 | PixelFormat::Yuv422p => {
            let [u, v] = if format == PixelFormat::Yv12 { [1, 0] } else { [0, 1] };
            let y = if format == PixelFormat::Yuv422p { y } else { y / 2 };
            copy(luma, 1, 0);
            spread(&plane(u, y)[..half / 2], x, 2, 1, 0, cb);
            spread(&plane(v, y)[..half / 2], x, 2, 1, 0, cr);
        }
        PixelFormat::Yuv444p => {
            copy(luma, 1, 0);
            spread(&plane(0, y)[..width], x, 1, 1, 0, cb);
            spread(&plane(1, y)[..width], x, 1, 1, 0, cr);
        }
        _ => {
            copy(luma, 1, 0);
            cb.fill(128);
            cr.fill(128);
        }
    }
}
