//! Rows of Bayer mosaics.

use super::{Layout, PixelFormat, RawFrame};

/// Reads a part of row `y` from `x` on into planes of R, G and B.
///
/// Each missing color is the mean of its nearest neighbors, mirrored at the edges, which keeps the
/// pattern.
pub(super) fn read_row(frame: &RawFrame<'_>, y: usize, x: usize, planes: [&mut [i16]; 3]) {
    let Layout { format, stride, width, height, .. } = frame.layout;
    // The position of red in the pattern of 2x2.
    let (red_x, red_y) = match format {
        PixelFormat::Rggb => (0, 0),
        PixelFormat::Grbg => (1, 0),
        PixelFormat::Gbrg => (0, 1),
        _ => (1, 1),
    };
    let mirror = |at: usize, by: isize, size: usize| match at.checked_add_signed(by) {
        None => 1,
        Some(at) if at >= size => size - 2,
        Some(at) => at,
    };
    let row = |by: isize| &frame.bytes[mirror(y, by, height) * stride..][..width];
    let (above, here, below) = (row(-1), row(0), row(1));
    let [r, g, b] = planes;
    for (at, ((r, g), b)) in r.iter_mut().zip(g).zip(b).enumerate() {
        let x = x + at;
        let (left, right) = (mirror(x, -1, width), mirror(x, 1, width));
        let value = |row: &[u8], x: usize| i16::from(row[x]);
        let across = value(here, left) + value(here, right);
        let down = value(above, x) + value(below, x);
        let corners =
            value(above, left) + value(above, right) + value(below, left) + value(below, right);
        let center = value(here, x);
        let (on_red_column, on_red_row) = (x % 2 == red_x, y % 2 == red_y);
        let (red, green, blue) = match (on_red_column, on_red_row) {
            (true, true) => (center, (across + down + 2) / 4, (corners + 2) / 4),
            (false, false) => ((corners + 2) / 4, (across + down + 2) / 4, center),
            (false, true) => ((across + 1) / 2, center, (down + 1) / 2),
            (true, false) => ((down + 1) / 2, center, (across + 1) / 2),
        };
        (*r, *g, *b) = (red, green, blue);
    }
}
