//! A chart as a list of marks, drawn once and written twice: as SVG for the page, in its colors,
//! and as PNG.

use std::fmt::Write;

use anyhow::{Context, Result};
use tiny_skia::{
    FillRule, LineCap, LineJoin, Path, PathBuilder, Pixmap, Stroke, StrokeDash, Transform,
};

use super::font;
use super::text::{escape, visible};

/// What a mark is, which says its color: on the page by the style sheet, light or dark, in the PNG
/// by [`Paint::rgb`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// Words and numbers.
    Ink,
    /// Words of less weight, axes.
    Soft,
    /// Lines behind the marks.
    Grid,
    /// The first series.
    First,
    /// The second series.
    Second,
    /// A cell, as strong as its opacity.
    Heat,
    /// A number on a strong cell.
    OnHeat,
}

impl Paint {
    /// The class in the style sheet.
    fn class(self) -> &'static str {
        match self {
            Self::Ink => "ink",
            Self::Soft => "soft",
            Self::Grid => "grid",
            Self::First => "first",
            Self::Second => "second",
            Self::Heat => "heat",
            Self::OnHeat => "onheat",
        }
    }

    /// The color on white; the same as the style sheet has for light.
    fn rgb(self) -> [u8; 3] {
        match self {
            Self::Ink => [0x1b, 0x1f, 0x24],
            Self::Soft => [0x57, 0x60, 0x6a],
            Self::Grid => [0xdd, 0xe2, 0xe8],
            Self::First => [0x1d, 0x5f, 0xd1],
            Self::Second => [0xc2, 0x57, 0x0c],
            Self::Heat => [0x1d, 0x4e, 0xb8],
            Self::OnHeat => [0xff, 0xff, 0xff],
        }
    }
}

/// Where a text stands relative to its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// It begins there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

/// One thing drawn. Units are CSS pixels, y goes down.
#[derive(Clone, Debug, PartialEq)]
enum Mark {
    Rect { at: [f64; 4], paint: Paint, opacity: f64 },
    Line { points: Vec<(f64, f64)>, paint: Paint, width: f64, dashed: bool },
    Dot { at: (f64, f64), radius: f64, paint: Paint },
    Text { at: (f64, f64), text: String, size: f64, anchor: Anchor, paint: Paint, upright: bool },
}

/// A chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// Names its files and its parts in the page: ASCII letters and digits, `_` for anything else.
    pub name: String,
    /// What it shows, in a few words.
    pub title: String,
    /// What is to be seen, in a sentence, for those who cannot see it.
    pub description: String,
    /// Width in CSS pixels.
    pub width: f64,
    /// Height in CSS pixels.
    pub height: f64,
    marks: Vec<Mark>,
}

/// Font size of labels in CSS pixels.
pub const SIZE: f64 = 12.0;

impl Scene {
    /// An empty chart with its title at the top left.
    pub fn new(name: &str, title: &str, width: f64, height: f64) -> Self {
        let mut scene = Self {
            name: name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect(),
            title: title.to_owned(),
            description: String::new(),
            width,
            height,
            marks: Vec::new(),
        };
        scene.text((8.0, 18.0), title, 14.0, Anchor::Start, Paint::Ink);
        scene
    }

    /// A filled rectangle; `opacity` from 0 to 1.
    pub fn rect(&mut self, at: [f64; 4], paint: Paint, opacity: f64) {
        self.marks.push(Mark::Rect { at, paint, opacity });
    }

    /// A line through points.
    pub fn line(&mut self, points: Vec<(f64, f64)>, paint: Paint, width: f64, dashed: bool) {
        self.marks.push(Mark::Line { points, paint, width, dashed });
    }

    /// A filled circle.
    pub fn dot(&mut self, at: (f64, f64), radius: f64, paint: Paint) {
        self.marks.push(Mark::Dot { at, radius, paint });
    }

    /// A text on its base line.
    pub fn text(&mut self, at: (f64, f64), text: &str, size: f64, anchor: Anchor, paint: Paint) {
        self.marks.push(Mark::Text {
            at,
            text: visible(text),
            size,
            anchor,
            paint,
            upright: false,
        });
    }

    /// A text that runs upwards.
    pub fn upright(&mut self, at: (f64, f64), text: &str, size: f64, anchor: Anchor, paint: Paint) {
        self.marks.push(Mark::Text { at, text: visible(text), size, anchor, paint, upright: true });
    }

    /// As an element of the page. The classes `f-*` fill and `s-*` stroke.
    pub fn svg(&self) -> String {
        let Self { name, width, height, .. } = self;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
             height=\"{height:.0}\" role=\"img\" aria-labelledby=\"{name}-title {name}-desc\"><title id=\"{name}-title\">{}</title>\
             <desc id=\"{name}-desc\">{}</desc>",
            escape(&self.title),
            escape(&self.description)
        );
        for mark in &self.marks {
            // Writing to a String does not fail.
            let _ = match mark {
                Mark::Rect { at: [x, y, w, h], paint, opacity } => write!(
                    out,
                    "<rect class=\"f-{}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" fill-opacity=\"{opacity:.3}\"/>",
                    paint.class()
                ),
                Mark::Line { points, paint, width, dashed } => {
                    let mut path = String::new();
                    for (index, (x, y)) in points.iter().enumerate() {
                        let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { "M" } else { "L" });
                    }
                    let dash = if *dashed { " stroke-dasharray=\"5 4\"" } else { "" };
                    write!(
                        out,
                        "<path class=\"s-{}\" d=\"{path}\" stroke-width=\"{width}\"{dash}/>",
                        paint.class()
                    )
                }
                Mark::Dot { at: (x, y), radius, paint } => {
                    write!(
                        out,
                        "<circle class=\"f-{}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\"/>",
                        paint.class()
                    )
                }
                Mark::Text { at: (x, y), text, size, anchor, paint, upright } => {
                    let anchor = match anchor {
                        Anchor::Start => "start",
                        Anchor::Middle => "middle",
                        Anchor::End => "end",
                    };
                    let turn = if *upright {
                        format!(" transform=\"rotate(-90 {x:.1} {y:.1})\"")
                    } else {
                        String::new()
                    };
                    write!(
                        out,
                        "<text class=\"f-{}\" x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size:.1}\" text-anchor=\"{anchor}\"{turn}>{}</text>",
                        paint.class(),
                        escape(text)
                    )
                }
            };
        }
        out.push_str("</svg>");
        out
    }

    /// As a PNG on white, two pixels for each of CSS.
    ///
    /// # Errors
    /// If it is too large to draw.
    pub fn png(&self) -> Result<Vec<u8>> {
        const SCALE: f32 = 2.0;
        let side = |length: f64| (length as f32 * SCALE).ceil() as u32;
        let mut pixels =
            Pixmap::new(side(self.width), side(self.height)).context("the chart is too large")?;
        pixels.fill(tiny_skia::Color::WHITE);
        let scale = Transform::from_scale(SCALE, SCALE);
        for mark in &self.marks {
            let (paint, opacity) = match mark {
                Mark::Rect { paint, opacity, .. } => (paint, *opacity),
                Mark::Line { paint, .. } | Mark::Dot { paint, .. } | Mark::Text { paint, .. } => {
                    (paint, 1.0)
                }
            };
            let [r, g, b] = paint.rgb();
            let mut color = tiny_skia::Paint { anti_alias: true, ..tiny_skia::Paint::default() };
            color.set_color_rgba8(r, g, b, (255.0 * opacity).round() as u8);
            if let Mark::Line { width, dashed, .. } = mark {
                let dash = if *dashed { StrokeDash::new(vec![5.0, 4.0], 0.0) } else { None };
                let stroke = Stroke {
                    width: *width as f32,
                    dash,
                    line_cap: LineCap::Butt,
                    line_join: LineJoin::Round,
                    ..Stroke::default()
                };
                if let Some(path) = mark.path() {
                    pixels.stroke_path(&path, &color, &stroke, scale, None);
                }
            } else if let Some(path) = mark.path() {
                pixels.fill_path(&path, &color, FillRule::Winding, scale, None);
            }
        }
        Ok(pixels.encode_png()?)
    }
}

impl Mark {
    /// Its outline; `None` if it has none (a space, a line of one point).
    fn path(&self) -> Option<Path> {
        let mut builder = PathBuilder::new();
        match self {
            Self::Rect { at, .. } => {
                let [x, y, w, h] = at.map(|v| v as f32);
                builder.push_rect(tiny_skia::Rect::from_xywh(x, y, w, h)?);
            }
            Self::Line { points, .. } => {
                for (index, &(x, y)) in points.iter().enumerate() {
                    let (x, y) = (x as f32, y as f32);
                    if index == 0 { builder.move_to(x, y) } else { builder.line_to(x, y) }
                }
            }
            Self::Dot { at, radius, .. } => {
                builder.push_circle(at.0 as f32, at.1 as f32, *radius as f32)
            }
            Self::Text { at, text, size, anchor, upright, .. } => {
                let width = font::width(text, *size);
                let shift = match anchor {
                    Anchor::Start => 0.0,
                    Anchor::Middle => -width / 2.0,
                    Anchor::End => -width,
                };
                font::outline(text, *size, &mut builder);
                let mut place = Transform::from_translate(shift as f32, 0.0);
                if *upright {
                    place = place.post_rotate(-90.0);
                }
                return builder.finish()?.transform(place.post_translate(at.0 as f32, at.1 as f32));
            }
        }
        builder.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svg_is_well_formed_whatever_the_words() {
        let mut scene = Scene::new("loss", "</title><script>alert(1)</script>", 100.0, 60.0);
        scene.description = "\"<&'\u{0}\u{202e}".into();
        scene.text((1.0, 2.0), "<b>\u{7}]]>", 12.0, Anchor::End, Paint::Ink);
        scene.upright((1.0, 2.0), "猫 & Hund", 12.0, Anchor::Middle, Paint::OnHeat);
        scene.line(vec![(0.0, 0.0), (5.0, 5.0)], Paint::First, 2.0, true);
        scene.rect([0.0, 0.0, 5.0, 5.0], Paint::Heat, 0.25);
        scene.dot((3.0, 3.0), 2.0, Paint::Second);
        let svg = scene.svg();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let names: Vec<_> = document
            .root_element()
            .children()
            .filter(|n| n.is_element())
            .map(|n| n.tag_name().name())
            .collect();
        assert_eq!(names, ["title", "desc", "text", "text", "text", "path", "rect", "circle"]);
        assert_eq!(document.root_element().attribute("role"), Some("img"));
        for id in document.root_element().attribute("aria-labelledby").unwrap().split(' ') {
            assert!(document.descendants().any(|n| n.attribute("id") == Some(id)), "{id}");
        }
    }

    #[test]
    fn the_png_shows_its_marks() {
        let mut scene = Scene::new("x", "", 40.0, 20.0);
        scene.rect([0.0, 0.0, 10.0, 10.0], Paint::Heat, 1.0);
        scene.line(vec![(20.0, 0.0), (20.0, 20.0)], Paint::First, 4.0, false);
        scene.text((26.0, 15.0), "\u{2588}I猫", 12.0, Anchor::Start, Paint::Ink);
        let png = image::load_from_memory(&scene.png().unwrap()).unwrap().into_rgb8();
        assert_eq!(png.dimensions(), (80, 40));
        assert_eq!(png.get_pixel(4, 4).0, Paint::Heat.rgb());
        assert_eq!(png.get_pixel(40, 20).0, Paint::First.rgb());
        assert_eq!(png.get_pixel(30, 30).0, [255; 3]);
        let dark = png.enumerate_pixels().filter(|(x, _, p)| *x >= 52 && p.0[0] < 64).count();
        assert!(dark > 20, "text has {dark} dark pixels");
    }
}
