//! Charts as PNG, rendered from their SVG.
//!
//! The bundled font is the only one, so that charts look the same on every machine: a part of
//! DejaVu Sans with Latin, Greek and Cyrillic (`font/LICENSE`). Other scripts show as boxes in a
//! PNG. The page uses the fonts of its reader.

use std::error::Error as StdError;
use std::sync::OnceLock;

use maud::html;
use resvg::tiny_skia::{Color, Pixmap, Transform};
use resvg::usvg::{Node, Options, Tree};

use super::chart::{Chart, Style};
use super::text::visible;

static FONT: &[u8] = include_bytes!("font/DejaVuSans-subset.ttf");

/// Pixels of a PNG for each CSS pixel.
const SCALE: f32 = 2.0;

/// Why a chart could not be rendered as PNG.
#[derive(Debug, thiserror::Error)]
pub enum RasterError {
    /// The SVG cannot be parsed.
    #[error("cannot parse the SVG of the chart")]
    Svg(#[from] resvg::usvg::Error),
    /// The chart is empty or too large.
    #[error("cannot render a chart of {width:.0} x {height:.0} pixels")]
    Size {
        /// Width in CSS pixels.
        width: f64,
        /// Height in CSS pixels.
        height: f64,
    },
    /// The PNG encoder failed.
    #[error("cannot encode the chart as PNG")]
    Encode(#[source] Box<dyn StdError + Send + Sync>),
}

/// The bundled font, and the colors of charts on white.
fn options() -> &'static Options<'static> {
    static OPTIONS: OnceLock<Options<'static>> = OnceLock::new();
    OPTIONS.get_or_init(|| {
        let mut options = Options { style_sheet: Some(style_sheet()), ..Options::default() };
        options.fontdb_mut().load_font_data(FONT.to_vec());
        let family = options.fontdb.faces().next().and_then(|face| face.families.first().cloned());
        if let Some((family, _)) = family {
            options.font_family = family;
        }
        options
    })
}

/// The rules of the page's style sheet that concern charts, in the colors on white.
fn style_sheet() -> String {
    let colors = Style::ALL.map(|style| {
        let (name, color) = (style.name(), style.color());
        format!(".f-{name}{{fill:{color}}}.s-{name}{{stroke:{color}}}")
    });
    format!("path{{fill:none;stroke-linejoin:round}}{}", colors.concat())
}

/// Renders a chart on white.
///
/// # Errors
/// [`RasterError`].
pub fn png(chart: &Chart) -> Result<Vec<u8>, RasterError> {
    let tree = Tree::from_str(&chart.svg().into_string(), options())?;
    let side = |length: f64| (length.round() as f32 * SCALE).ceil() as u32;
    let (width, height) = (chart.width, chart.height);
    let mut pixels =
        Pixmap::new(side(width), side(height)).ok_or(RasterError::Size { width, height })?;
    pixels.fill(Color::WHITE);
    resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    pixels.encode_png().map_err(|error| RasterError::Encode(error.into()))
}

/// Width of a text in the bundled font, in the unit of `size`.
pub fn text_width(text: &str, size: f64) -> f64 {
    let svg = html! {
        svg xmlns="http://www.w3.org/2000/svg" width="1" height="1" {
            text font-size=(size) xml:space="preserve" { (visible(text)) }
        }
    };
    let Ok(tree) = Tree::from_str(&svg.into_string(), options()) else { return 0.0 };
    // An empty text has no node.
    let width = tree.root().children().iter().find_map(|node| match node {
        Node::Text(text) => Some(text.bounding_box().width()),
        _ => None,
    });
    width.map_or(0.0, f64::from)
}

/// Shortens a text that is wider than `room` to the longest start that fits with an ellipsis.
pub fn ellipsize(text: &str, size: f64, room: f64) -> String {
    if text_width(text, size) <= room {
        return text.to_owned();
    }
    let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    let shortened = |end: usize| text[..end].trim_end().to_owned() + "…";
    let fitting = ends.partition_point(|&end| text_width(&shortened(end), size) <= room);
    // If not even the ellipsis fits, it stands alone.
    shortened(ends.get(fitting.saturating_sub(1)).copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::super::chart::Anchor;
    use super::*;

    #[test]
    fn texts_have_widths_and_are_shortened_to_fit() {
        assert!(text_width("", 12.0) == 0.0 && text_width("ii", 12.0) < text_width("WW", 12.0));
        assert!((text_width("abc", 24.0) - 2.0 * text_width("abc", 12.0)).abs() < 1e-3);
        assert_eq!(ellipsize("short", 12.0, 100.0), "short");
        let long = ellipsize("a very long name of a class", 12.0, 60.0);
        assert!(
            long.ends_with('…') && text_width(&long, 12.0) <= 60.0 && long.chars().count() > 4,
            "{long}"
        );
        assert_eq!(ellipsize("wide", 12.0, 0.0), "…");
    }

    #[test]
    fn bundled_font_has_the_promised_letters() {
        // A letter that the font lacks has the width of the box.
        let missing = text_width("猫", 1000.0);
        let blank = |text: &str| {
            let mut chart = Chart::new("x", "", 40.0, 20.0);
            chart.text((10.0, 15.0), text, 12.0, Anchor::Start, Style::Ink);
            png(&chart).unwrap()
        };
        let boxed = blank("猫");
        for c in "azAZ09äöüßéñłČşðΩλЖя%…–—×±→".chars() {
            let text = c.to_string();
            assert!(
                text_width(&text, 1000.0) != missing || blank(&text) != boxed,
                "{c} is not in the font"
            );
        }
    }

    #[test]
    fn png_shows_the_shapes() {
        let mut chart = Chart::new("x", "", 40.0, 20.0);
        chart.rect([0.0, 0.0, 10.0, 10.0], Style::Heat, 1.0);
        chart.line(vec![(20.0, 0.0), (20.0, 20.0)], Style::First, 4.0, false);
        chart.text((26.0, 15.0), "\u{2588}I猫", 12.0, Anchor::Start, Style::Ink);
        let png = image::load_from_memory(&png(&chart).unwrap()).unwrap().into_rgb8();
        assert_eq!(png.dimensions(), (80, 40));
        assert_eq!(png.get_pixel(4, 4).0, [0x1d, 0x4e, 0xb8]);
        assert_eq!(png.get_pixel(40, 20).0, [0x1d, 0x5f, 0xd1]);
        assert_eq!(png.get_pixel(30, 30).0, [255; 3]);
        let dark = png.enumerate_pixels().filter(|(x, _, p)| *x >= 52 && p.0[0] < 64).count();
        assert!(dark > 20, "text has {dark} dark pixels");
    }
}
