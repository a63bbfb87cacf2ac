//! Charts as lists of shapes, written as SVG.
//!
//! The page colors the SVG by its style sheet, light or dark. [`super::raster`] renders the same
//! SVG as PNG.

use std::fmt::Write;

use maud::{Markup, html};

use super::text::visible;

/// The role of a shape, which decides its color: on the page by the style sheet, light or dark, in
/// a PNG by [`Style::color`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Text and numbers.
    Ink,
    /// Text of less weight, axes.
    Soft,
    /// Grid lines and empty cells.
    Grid,
    /// The first series.
    First,
    /// The second series.
    Second,
    /// A cell of a heat map, as strong as its opacity.
    Heat,
    /// A number on a strong cell.
    OnHeat,
}

impl Style {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Ink, Self::Soft, Self::Grid, Self::First, Self::Second, Self::Heat, Self::OnHeat];

    /// The name in the style sheet: the classes `f-NAME` fill and `s-NAME` stroke, in the color of
    /// the variable `--NAME`.
    pub fn name(self) -> &'static str {
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

    /// The CSS color on white, which is the one of the page's light scheme.
    pub fn color(self) -> &'static str {
        match self {
            Self::Ink => "#1b1f24",
            Self::Soft => "#57606a",
            Self::Grid => "#dde2e8",
            Self::First => "#1d5fd1",
            Self::Second => "#c2570c",
            Self::Heat => "#1d4eb8",
            Self::OnHeat => "#fff",
        }
    }

    fn fill(self) -> String {
        format!("f-{}", self.name())
    }

    fn stroke(self) -> String {
        format!("s-{}", self.name())
    }
}

/// The position of a text relative to its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The text starts at the point.
    Start,
    /// The text is centered on the point.
    Middle,
    /// The text ends at the point.
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Middle => "middle",
            Self::End => "end",
        }
    }
}

/// One drawn element. Units are CSS pixels, y points down.
#[derive(Clone, Debug, PartialEq)]
enum Shape {
    Rect { at: [f64; 4], style: Style, opacity: f64 },
    Line { points: Vec<(f64, f64)>, style: Style, width: f64, dashed: bool },
    Dot { at: (f64, f64), radius: f64, style: Style },
    Text { at: (f64, f64), text: String, size: f64, anchor: Anchor, style: Style, rotated: bool },
}

/// A chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// The stem of its file name and of its element ids: ASCII letters and digits, `_` for anything
    /// else.
    pub name: String,
    /// The title.
    pub title: String,
    /// A text alternative of one or two sentences, for screen readers.
    pub description: String,
    /// Width in CSS pixels.
    pub width: f64,
    /// Height in CSS pixels.
    pub height: f64,
    shapes: Vec<Shape>,
}

/// Font size of labels in CSS pixels.
pub const SIZE: f64 = 12.0;

impl Chart {
    /// Returns an empty chart with its title at the top left.
    pub fn new(name: &str, title: &str, width: f64, height: f64) -> Self {
        let mut chart = Self {
            name: name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect(),
            title: title.to_owned(),
            description: String::new(),
            width,
            height,
            shapes: Vec::new(),
        };
        chart.text((8.0, 18.0), title, 14.0, Anchor::Start, Style::Ink);
        chart
    }

    /// Adds a filled rectangle, `[x, y, width, height]`; `opacity` from 0 to 1.
    pub fn rect(&mut self, at: [f64; 4], style: Style, opacity: f64) {
        self.shapes.push(Shape::Rect { at, style, opacity });
    }

    /// Adds a line through points.
    pub fn line(&mut self, points: Vec<(f64, f64)>, style: Style, width: f64, dashed: bool) {
        self.shapes.push(Shape::Line { points, style, width, dashed });
    }

    /// Adds a filled circle.
    pub fn dot(&mut self, at: (f64, f64), radius: f64, style: Style) {
        self.shapes.push(Shape::Dot { at, radius, style });
    }

    /// Adds a text on its baseline.
    pub fn text(&mut self, at: (f64, f64), text: &str, size: f64, anchor: Anchor, style: Style) {
        let text = visible(text);
        self.shapes.push(Shape::Text { at, text, size, anchor, style, rotated: false });
    }

    /// Adds a text that runs upward.
    pub fn rotated(&mut self, at: (f64, f64), text: &str, size: f64, anchor: Anchor, style: Style) {
        let text = visible(text);
        self.shapes.push(Shape::Text { at, text, size, anchor, style, rotated: true });
    }

    /// The SVG element.
    pub fn svg(&self) -> Markup {
        let Self { name, width, height, .. } = self;
        let (title, description) = (format!("{name}-title"), format!("{name}-desc"));
        html! {
            svg xmlns="http://www.w3.org/2000/svg" class="chart"
                viewBox=(format_args!("0 0 {width:.0} {height:.0}"))
                width=(format_args!("{width:.0}")) height=(format_args!("{height:.0}"))
                role="img" aria-labelledby=(format_args!("{title} {description}")) {
                title id=(title) { (visible(&self.title)) }
                desc id=(description) { (visible(&self.description)) }
                @for shape in &self.shapes { (shape.svg()) }
            }
        }
    }
}

impl Shape {
    fn svg(&self) -> Markup {
        match self {
            Self::Rect { at: [x, y, width, height], style, opacity } => html! {
                rect class=(style.fill()) x=(px(*x)) y=(px(*y)) width=(px(*width))
                    height=(px(*height)) fill-opacity=(format_args!("{opacity:.3}")) {}
            },
            Self::Line { points, style, width, dashed } => html! {
                path class=(style.stroke()) d=(path(points)) stroke-width=(width)
                    stroke-dasharray=[dashed.then_some("5 4")] {}
            },
            Self::Dot { at: (x, y), radius, style } => html! {
                circle class=(style.fill()) cx=(px(*x)) cy=(px(*y)) r=(px(*radius)) {}
            },
            Self::Text { at: (x, y), text, size, anchor, style, rotated } => html! {
                text class=(style.fill()) x=(px(*x)) y=(px(*y)) font-size=(px(*size))
                    text-anchor=(anchor.name())
                    transform=[rotated.then(|| format!("rotate(-90 {x:.1} {y:.1})"))] { (text) }
            },
        }
    }
}

/// A coordinate to a tenth of a pixel.
fn px(value: f64) -> String {
    format!("{value:.1}")
}

fn path(points: &[(f64, f64)]) -> String {
    let mut path = String::new();
    for (index, (x, y)) in points.iter().enumerate() {
        // Writing to a String does not fail.
        let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { "M" } else { "L" });
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svg_is_well_formed_whatever_the_text() {
        let mut chart = Chart::new("loss", "</title><script>alert(1)</script>", 100.0, 60.0);
        chart.description = "\"<&'\u{0}\u{202e}".into();
        chart.text((1.0, 2.0), "<b>\u{7}]]>", 12.0, Anchor::End, Style::Ink);
        chart.rotated((1.0, 2.0), "猫 & Hund", 12.0, Anchor::Middle, Style::OnHeat);
        chart.line(vec![(0.0, 0.0), (5.0, 5.0)], Style::First, 2.0, true);
        chart.rect([0.0, 0.0, 5.0, 5.0], Style::Heat, 0.25);
        chart.dot((3.0, 3.0), 2.0, Style::Second);
        let svg = chart.svg().into_string();
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
    fn colors_are_those_of_the_light_style_sheet() {
        let light = include_str!("html/page.css").split("@media").next().unwrap();
        for style in Style::ALL {
            let variable = format!("--{}:{}", style.name(), style.color());
            assert!(light.contains(&variable), "{variable}");
        }
    }
}
