//! Axes and the area between them.

use super::super::chart::{Anchor, Chart, SIZE, Style};
use super::super::raster::text_width;

/// A quantity along an axis.
pub struct Axis<'a> {
    /// The quantity, with its unit.
    pub label: &'a str,
    /// The value at the low end.
    pub low: f64,
    /// The value at the high end.
    pub high: f64,
    /// Distance between ticks.
    pub step: f64,
}

impl<'a> Axis<'a> {
    /// Returns an axis from `low` to `high` or slightly beyond, so that both ends are round, with
    /// about `count` steps of 1, 2 or 5 times a power of ten, and of at least `least`.
    pub fn round(label: &'a str, low: f64, high: f64, count: f64, least: f64) -> Self {
        // A constant series, or nearly so, gets room around it.
        let span = (high - low).max(1e-6 * high.abs().max(low.abs())).max(1e-9);
        let raw = (span / count).max(least).max(f64::MIN_POSITIVE);
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|m| m * power)
            .into_iter()
            .find(|s| *s >= raw * 0.999)
            .unwrap_or(raw);
        let low = (low / step + 1e-9).floor() * step;
        let high = ((high / step - 1e-9).ceil() * step).max(low + step);
        Self { label, low, high, step }
    }

    /// An axis of percentages from 0 to 100.
    pub fn percent(label: &'a str) -> Self {
        Self { label, low: 0.0, high: 100.0, step: 20.0 }
    }

    /// The values with a number.
    pub fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = ((self.high - self.low) / self.step + 1e-6).floor().clamp(0.0, 100.0) as usize;
        (0..=count).map(|i| self.low + i as f64 * self.step)
    }

    /// Formats a value with as many decimals as the steps need.
    pub fn format(&self, value: f64) -> String {
        let decimals = (-(self.step.log10() + 1e-9).floor()).clamp(0.0, 9.0) as usize;
        // Not "-0".
        let value = if value.abs() < self.step / 1e6 { 0.0 } else { value };
        format!("{value:.decimals$}")
    }

    /// The position of a value, from 0 at the low end to 1 at the high one.
    fn position(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

/// The area between two axes, in CSS pixels of the chart.
pub struct Area {
    /// Left edge.
    pub left: f64,
    /// Right edge.
    pub right: f64,
    /// Upper edge.
    pub top: f64,
    /// Lower edge.
    pub bottom: f64,
}

impl Area {
    /// Draws grid, ticks and labels of both axes.
    pub fn draw(chart: &mut Chart, x: &Axis<'_>, y: &Axis<'_>) -> Self {
        let widest = y.ticks().map(|tick| text_width(&y.format(tick), SIZE)).fold(0.0, f64::max);
        let area = Self {
            left: 34.0 + widest,
            right: chart.width - 16.0,
            top: 52.0,
            bottom: chart.height - 42.0,
        };
        let Self { left, right, bottom, .. } = area;
        for tick in y.ticks() {
            let at = area.y(y, tick);
            chart.line(vec![(left, at), (right, at)], Style::Grid, 1.0, false);
            let number = y.format(tick);
            chart.text((left - 7.0, at + 4.0), &number, SIZE, Anchor::End, Style::Soft);
        }
        for tick in x.ticks() {
            let at = area.x(x, tick);
            chart.line(vec![(at, bottom), (at, bottom + 4.0)], Style::Soft, 1.0, false);
            let number = x.format(tick);
            chart.text((at, bottom + 18.0), &number, SIZE, Anchor::Middle, Style::Soft);
        }
        chart.line(vec![(left, bottom), (right, bottom)], Style::Soft, 1.0, false);
        let middle = (f64::midpoint(left, right), f64::midpoint(area.top, bottom));
        chart.text((middle.0, bottom + 36.0), x.label, SIZE, Anchor::Middle, Style::Soft);
        chart.rotated((16.0, middle.1), y.label, SIZE, Anchor::Middle, Style::Soft);
        area
    }

    /// The horizontal coordinate of a value.
    pub fn x(&self, axis: &Axis<'_>, value: f64) -> f64 {
        self.left + axis.position(value) * (self.right - self.left)
    }

    /// The vertical coordinate of a value.
    pub fn y(&self, axis: &Axis<'_>, value: f64) -> f64 {
        self.bottom - axis.position(value) * (self.bottom - self.top)
    }
}

/// Draws the names of series, each with a piece of its line, in a row above the area.
pub fn legend<'a>(chart: &mut Chart, series: impl Iterator<Item = (&'a str, Style, bool)>) {
    let mut x = 10.0;
    for (name, style, dashed) in series {
        chart.line(vec![(x, 36.0), (x + 20.0, 36.0)], style, 2.5, dashed);
        chart.text((x + 26.0, 40.0), name, SIZE, Anchor::Start, Style::Ink);
        x += 26.0 + text_width(name, SIZE) + 18.0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn axes_contain_their_values(
            low in -1e6f64..1e6,
            span in 0f64..1e6,
            count in 2f64..10.0,
        ) {
            let high = low + span;
            let axis = Axis::round("", low, high, count, 0.0);
            let slack = 1e-6 * axis.step;
            prop_assert!(axis.low <= low + slack && axis.high >= high - slack);
            prop_assert!(axis.high > axis.low);
            let ticks: Vec<_> = axis.ticks().map(|tick| axis.format(tick)).collect();
            prop_assert!((2..=14).contains(&ticks.len()), "{ticks:?}");
            prop_assert!(ticks.windows(2).all(|pair| pair[0] != pair[1]), "{ticks:?}");
        }
    }
}
