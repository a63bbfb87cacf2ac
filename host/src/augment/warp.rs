//! Arithmetic of a variant: `apply_affine_transform` of Keras over `affine_transform` of scipy
//! 1.17, `order=1`.

use std::f64::consts::PI;

use super::{Fill, Transform};

/// Affine map `[[a, b, c], [d, e, f]]` from row and column of the variant to those of the image.
type Affine = [[f64; 3]; 2];

/// Product of two maps, without the bottom rows `[0, 0, 1]`.
fn product(left: Affine, right: Affine) -> Affine {
    left.map(|[a, b, c]| {
        let [r, s] = right;
        [a * r[0] + b * s[0], a * r[1] + b * s[1], a * r[2] + b * s[2] + c]
    })
}

/// `transform_matrix` of Keras about a center `[x, y]`; `None` for the identity.
///
/// Keras composes it for points (x, y) and swaps its first two columns and rows for NumPy's (row,
/// column), so x lies along columns.
fn matrix(transform: &Transform, [x, y]: [f64; 2]) -> Option<Affine> {
    let Transform { theta, tx, ty, shear, zx, zy, .. } = *transform;
    let mut parts: Vec<Affine> = Vec::new();
    if theta != 0.0 {
        let (sin, cos) = (libm::sin(theta * (PI / 180.0)), libm::cos(theta * (PI / 180.0)));
        parts.push([[cos, -sin, 0.0], [sin, cos, 0.0]]);
    }
    if tx != 0.0 || ty != 0.0 {
        parts.push([[1.0, 0.0, tx], [0.0, 1.0, ty]]);
    }
    if shear != 0.0 {
        let angle = shear * (PI / 180.0);
        parts.push([[1.0, -libm::sin(angle), 0.0], [0.0, libm::cos(angle), 0.0]]);
    }
    if zx != 1.0 || zy != 1.0 {
        parts.push([[zx, 0.0, 0.0], [0.0, zy, 0.0]]);
    }
    let all = parts.into_iter().reduce(product)?;
    let centered =
        product(product([[1.0, 0.0, x], [0.0, 1.0, y]], all), [[1.0, 0.0, -x], [0.0, 1.0, -y]]);
    let [[a, b, c], [d, e, f]] = centered;
    Some([[e, d, f], [b, a, c]])
}

/// Interpolation of a coordinate along an axis of `len` pixels: two pixels and the weight of the
/// second. `None` where a constant is filled in.
///
/// Follows scipy's `map_coordinate`, then the two nodes of a linear spline with the border rule of
/// the mode, as in `NI_GeometricTransform`.
fn taps(at: f64, len: usize, fill: Fill) -> Option<(usize, usize, f64)> {
    let last = (len - 1) as f64;
    let inside = match fill {
        _ if (0.0..=last).contains(&at) => at,
        Fill::Constant(_) => return None,
        Fill::Nearest => at.clamp(0.0, last),
        _ if len == 1 => 0.0,
        // The period is `len - 1`: pixel 0 and the last coincide, and points inside are not
        // wrapped.
        Fill::Wrap if at < 0.0 => at + last * ((-at / last).trunc() + 1.0),
        Fill::Wrap => at - last * (at / last).trunc(),
        // The period is `2 len`, mirrored at -0.5 and `len - 0.5`; the result lies in `[-1, len)`.
        Fill::Reflect if at < 0.0 => {
            let period = 2.0 * len as f64;
            let at = if at < -period { at + period * (-at / period).trunc() } else { at };
            if at < -(len as f64) {
                at + period
            } else {
                // scipy keeps it above -1, which marks a constant there.
                (if at > -1e-15 { 1e-15 } else { -at }) - 1.0
            }
        }
        Fill::Reflect => {
            let period = 2.0 * len as f64;
            let at = at - period * (at / period).trunc();
            if at >= len as f64 { period - at - 1.0 } else { at }
        }
    };
    let floor = inside.floor();
    // A node outside is replaced by the nearest one: for `reflect` that is its mirror image,
    // otherwise its weight is 0.
    let node = |position: f64| position.clamp(0.0, last) as usize;
    Some((node(floor), node(floor + 1.0), inside - floor))
}

impl Transform {
    /// Applies the transform to RGB8 `[height, width, 3]` about the center of the image; the result
    /// is f32, as that of Keras's `apply_transform`.
    pub fn apply(&self, rgb: &[u8], width: usize, fill: Fill) -> Vec<f32> {
        let height = rgb.len() / (3 * width).max(1);
        self.apply_about(rgb, width, [width, height].map(|side| side as f64 / 2.0 - 0.5), fill)
    }

    /// As [`Transform::apply`], about the point `[column, row]`.
    pub(super) fn apply_about(
        &self,
        rgb: &[u8],
        width: usize,
        center: [f64; 2],
        fill: Fill,
    ) -> Vec<f32> {
        let height = rgb.len() / (3 * width).max(1);
        let mut out = vec![0.0; rgb.len()];
        let affine = matrix(self, center);
        let outside = match fill {
            Fill::Constant(value) => value as f32,
            _ => 0.0,
        };
        for (index, pixel) in out.chunks_exact_mut(3).enumerate() {
            // The flips come after the affine part: they select which of its pixels goes here.
            let (row, column) = (index / width, index % width);
            let row = if self.flip_vertical { height - 1 - row } else { row };
            let column = if self.flip_horizontal { width - 1 - column } else { column };
            let Some(affine) = affine else {
                let from = &rgb[3 * (row * width + column)..];
                pixel.iter_mut().zip(from).for_each(|(out, &value)| *out = value.into());
                continue;
            };
            let (row, column) = (row as f64, column as f64);
            let [y, x] = affine.map(|[a, b, c]| row * a + column * b + c);
            let (Some((y0, y1, dy)), Some((x0, x1, dx))) =
                (taps(y, height, fill), taps(x, width, fill))
            else {
                pixel.fill(outside);
                continue;
            };
            let corner = |y: usize, x: usize| &rgb[3 * (y * width + x)..][..3];
            let corners =
                [(corner(y0, x0), (1.0 - dy) * (1.0 - dx)), (corner(y0, x1), (1.0 - dy) * dx)];
            let lower = [(corner(y1, x0), dy * (1.0 - dx)), (corner(y1, x1), dy * dx)];
            for (c, out) in pixel.iter_mut().enumerate() {
                let sum = |two: &[(&[u8], f64); 2]| {
                    f64::from(two[0].0[c]) * two[0].1 + f64::from(two[1].0[c]) * two[1].1
                };
                *out = (sum(&corners) + sum(&lower)) as f32;
            }
        }
        if let Some(factor) = self.brightness {
            let factor = factor as f32;
            for value in &mut out {
                // Pillow's blend with black: f32, truncated, clamped.
                *value = (value.trunc() * factor).trunc().clamp(0.0, 255.0);
            }
        }
        out
    }
}
