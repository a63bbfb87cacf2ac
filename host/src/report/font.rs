//! The bundled font: widths of texts and, for PNG, their outlines. No font of the system is asked
//! for, so figures look the same everywhere.
//!
//! It is a part of DejaVu Sans with Latin, Greek and Cyrillic (`font/LICENSE`); other writing shows
//! as boxes in a PNG. The page uses the fonts of its reader.

use std::sync::OnceLock;

use tiny_skia::PathBuilder;
use ttf_parser::{Face, GlyphId, OutlineBuilder};

static BYTES: &[u8] = include_bytes!("font/DejaVuSans-subset.ttf");

/// `None` only if the bundled file were damaged.
fn face() -> Option<&'static Face<'static>> {
    static FACE: OnceLock<Option<Face<'static>>> = OnceLock::new();
    FACE.get_or_init(|| Face::parse(BYTES, 0).ok()).as_ref()
}

/// The glyphs of a text with the place of each, in units of the font, and where the text ends.
fn layout(face: &Face<'_>, text: &str) -> (Vec<(GlyphId, f32)>, f32) {
    let mut at = 0.0;
    let glyphs = text
        .chars()
        .map(|c| {
            // Glyph 0 is the box.
            let glyph = face.glyph_index(c).unwrap_or(GlyphId(0));
            let place = at;
            at += f32::from(face.glyph_hor_advance(glyph).unwrap_or(0));
            (glyph, place)
        })
        .collect();
    (glyphs, at)
}

/// Width of a text of a font size, in the unit of `size`.
pub fn width(text: &str, size: f64) -> f64 {
    face()
        .map_or(0.0, |face| f64::from(layout(face, text).1) * size / f64::from(face.units_per_em()))
}

/// The text, cut off with an ellipsis if it is wider than `room`.
pub fn cut(text: &str, size: f64, room: f64) -> String {
    if width(text, size) <= room {
        return text.to_owned();
    }
    let mut kept: Vec<char> = text.chars().collect();
    loop {
        kept.pop();
        let shorter = kept.iter().collect::<String>().trim_end().to_owned() + "…";
        if kept.is_empty() || width(&shorter, size) <= room {
            return shorter;
        }
    }
}

/// Adds the outline of a text to a path; it begins at (0, 0), its base line, and y goes down.
pub fn outline(text: &str, size: f64, path: &mut PathBuilder) {
    let Some(face) = face() else { return };
    let scale = size as f32 / f32::from(face.units_per_em());
    for (glyph, at) in layout(face, text).0 {
        face.outline_glyph(glyph, &mut Pen { path, scale, at: at * scale });
    }
}

struct Pen<'a> {
    path: &'a mut PathBuilder,
    scale: f32,
    at: f32,
}

impl Pen<'_> {
    fn place(&self, x: f32, y: f32) -> (f32, f32) {
        (self.at + x * self.scale, -y * self.scale)
    }
}

impl OutlineBuilder for Pen<'_> {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.place(x, y);
        self.path.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.place(x, y);
        self.path.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.place(x1, y1), self.place(x, y));
        self.path.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) =
            (self.place(x1, y1), self.place(x2, y2), self.place(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_widths_and_are_cut_to_fit() {
        let face = face().unwrap();
        for c in "azAZ09äöüßéñłČşðΩλЖя%…–—×±→ ".chars() {
            assert!(face.glyph_index(c).is_some(), "{c} is not in the font");
        }
        assert!(width("", 12.0) == 0.0 && width("ii", 12.0) < width("WW", 12.0));
        assert!((width("abc", 24.0) - 2.0 * width("abc", 12.0)).abs() < 1e-6);
        assert_eq!(cut("short", 12.0, 100.0), "short");
        let long = cut("a very long name of a class", 12.0, 60.0);
        assert!(
            long.ends_with('…') && width(&long, 12.0) <= 60.0 && long.chars().count() > 4,
            "{long}"
        );
        assert_eq!(cut("wide", 12.0, 0.0), "…");
    }
}
