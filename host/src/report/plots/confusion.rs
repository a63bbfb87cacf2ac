//! The confusion matrix as a heat map.

use super::super::chart::{Anchor, Chart, SIZE, Style};
use super::super::raster::{ellipsize, text_width};
use super::super::text::visible;

/// The largest number of classes for which a confusion matrix is drawn.
pub const MAX_CLASSES: usize = 60;

/// The geometry of a matrix, in CSS pixels.
struct Grid {
    left: f64,
    top: f64,
    cell: f64,
    /// Width of the longest label, and the room for each of them.
    longest: f64,
    /// Whether the names of the columns fit without rotation.
    flat: bool,
}

impl Grid {
    fn new(labels: &[String]) -> Self {
        let widths = labels.iter().map(|label| text_width(label, SIZE));
        let longest = widths.fold(0.0, f64::max).min(110.0);
        let left = 36.0 + longest;
        let cell = match labels.len() {
            0..=3 => 80.0,
            4..=6 => 54.0,
            7..=9 => 38.0,
            10..=12 => 31.0,
            // About 40 classes are as wide as the page on a desktop.
            n => ((1020.0 - left) / n as f64).clamp(18.0, 26.0),
        };
        let flat = longest <= cell - 6.0;
        let top = 54.0 + if flat { SIZE } else { longest };
        Self { left, top, cell, longest, flat }
    }
}

/// Draws `confusion[truth][prediction]` as a heat map; the color of a cell is its fraction of the
/// row. `None` for more than [`MAX_CLASSES`] classes.
pub fn confusion(labels: &[String], confusion: &[Vec<u64>]) -> Option<Chart> {
    let n = labels.len();
    if n > MAX_CLASSES {
        return None;
    }
    let labels: Vec<String> = labels.iter().map(|label| visible(label)).collect();
    let grid = Grid::new(&labels);
    let side = grid.cell * n as f64;
    let width = (grid.left + side + 14.0).max(300.0);
    let mut chart =
        Chart::new("confusion", "Confusion matrix (images)", width, grid.top + side + 14.0);
    let (x, y) = (grid.left + side / 2.0, grid.top + side / 2.0);
    chart.text((x, 40.0), "predicted class", SIZE, Anchor::Middle, Style::Soft);
    chart.rotated((16.0, y), "true class", SIZE, Anchor::Middle, Style::Soft);
    draw_labels(&mut chart, &grid, &labels);
    for (row, counts) in confusion.iter().enumerate() {
        let total: u64 = counts.iter().sum();
        for (column, &count) in counts.iter().enumerate() {
            let at = (grid.left + column as f64 * grid.cell, grid.top + row as f64 * grid.cell);
            draw_cell(&mut chart, at, grid.cell, count, total);
        }
    }
    let all: u64 = confusion.iter().flatten().sum();
    let correct: u64 = confusion.iter().enumerate().map(|(class, row)| row[class]).sum();
    chart.description = format!(
        "{n} classes; {correct} of {all} images lie on the diagonal. \
         The color of a cell is its fraction of the row."
    );
    Some(chart)
}

fn draw_labels(chart: &mut Chart, grid: &Grid, labels: &[String]) {
    let Grid { left, top, cell, longest, flat } = *grid;
    for (index, label) in labels.iter().enumerate() {
        let middle = (index as f64 + 0.5) * cell;
        let label = ellipsize(label, SIZE, longest + 0.01);
        chart.text((left - 7.0, top + middle + 4.0), &label, SIZE, Anchor::End, Style::Ink);
        if flat {
            chart.text((left + middle, top - 7.0), &label, SIZE, Anchor::Middle, Style::Ink);
        } else {
            let at = (left + middle + 4.0, top - 7.0);
            chart.rotated(at, &label, SIZE, Anchor::Start, Style::Ink);
        }
    }
}

/// Draws a cell, whose upper left corner is given, with its count of the row's `total`.
fn draw_cell(chart: &mut Chart, (x, y): (f64, f64), cell: f64, count: u64, total: u64) {
    let square = [x + 0.75, y + 0.75, cell - 1.5, cell - 1.5];
    chart.rect(square, Style::Grid, 0.35);
    if count == 0 {
        return;
    }
    let strength = 0.12 + 0.88 * (count as f64 / total.max(1) as f64);
    chart.rect(square, Style::Heat, strength);
    let text = count.to_string();
    let size = (SIZE + 1.0).min(SIZE * (cell - 4.0) / text_width(&text, SIZE));
    // The point where both text colors are equally legible, in both schemes.
    let style = if strength > 0.72 { Style::OnHeat } else { Style::Ink };
    let at = (x + cell / 2.0, y + cell / 2.0 + 0.36 * size);
    chart.text(at, &text, size, Anchor::Middle, style);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_of_many_classes_stay_legible_or_are_left_out() {
        for n in [2, 3, 10, 40] {
            let labels: Vec<String> =
                (0..n).map(|i| format!("\u{202e}\u{202e} a class with a long name {i}")).collect();
            let counts: Vec<Vec<u64>> =
                (0..n).map(|i| (0..n).map(|j| if i == j { 12_345 } else { 1 }).collect()).collect();
            let chart = confusion(&labels, &counts).unwrap();
            let svg = chart.svg().into_string();
            roxmltree::Document::parse(&svg).unwrap();
            assert!(chart.width < 1100.0 && svg.contains(">12345<"));
            // Spelled out characters are shortened too.
            assert!(svg.contains("\\u{202e}") && !svg.contains("long"));
        }
        let labels = vec!["x".to_owned(); MAX_CLASSES + 1];
        assert!(confusion(&labels, &[]).is_none());
    }
}
