//! The charts of a report.

use super::calibration::Reliability;
use super::chart::{Anchor, Paint, SIZE, Scene};
use super::text::visible;
use super::{History, font};

/// Size of the charts with two axes, in CSS pixels: legible without scaling on a phone of 390 px.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 300.0;

/// A quantity along an axis.
struct Axis<'a> {
    label: &'a str,
    low: f64,
    high: f64,
    /// Between labeled places.
    step: f64,
}

impl<'a> Axis<'a> {
    /// From `low` to `high` or a bit beyond, so that both ends are round; about `count` steps of 1,
    /// 2 or 5 times a power of ten, at least `least`.
    fn round(label: &'a str, low: f64, high: f64, count: f64, least: f64) -> Self {
        // A series that stands still, or all but, gets room around it.
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

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = ((self.high - self.low) / self.step + 1e-6).floor().clamp(0.0, 100.0) as usize;
        (0..=count).map(|i| self.low + i as f64 * self.step)
    }

    /// A number with as many decimals as the steps need.
    fn format(&self, value: f64) -> String {
        let decimals = (-(self.step.log10() + 1e-9).floor()).clamp(0.0, 9.0) as usize;
        // Not "-0".
        let value = if value.abs() < self.step / 1e6 { 0.0 } else { value };
        format!("{value:.decimals$}")
    }

    /// From 0 at the low end to 1 at the high one.
    fn share(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

/// The area between two axes.
struct Area {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Area {
    /// Draws grid, numbers and labels.
    fn draw(scene: &mut Scene, x: &Axis<'_>, y: &Axis<'_>) -> Self {
        let widest = y.ticks().map(|tick| font::width(&y.format(tick), SIZE)).fold(0.0, f64::max);
        let area = Self {
            left: 34.0 + widest,
            right: scene.width - 16.0,
            top: 52.0,
            bottom: scene.height - 42.0,
        };
        for tick in y.ticks() {
            let at = area.y(y, tick);
            scene.line(vec![(area.left, at), (area.right, at)], Paint::Grid, 1.0, false);
            scene.text(
                (area.left - 7.0, at + 4.0),
                &y.format(tick),
                SIZE,
                Anchor::End,
                Paint::Soft,
            );
        }
        for tick in x.ticks() {
            let at = area.x(x, tick);
            scene.line(vec![(at, area.bottom), (at, area.bottom + 4.0)], Paint::Soft, 1.0, false);
            scene.text(
                (at, area.bottom + 18.0),
                &x.format(tick),
                SIZE,
                Anchor::Middle,
                Paint::Soft,
            );
        }
        scene.line(
            vec![(area.left, area.bottom), (area.right, area.bottom)],
            Paint::Soft,
            1.0,
            false,
        );
        let (middle_x, middle_y) =
            (f64::midpoint(area.left, area.right), f64::midpoint(area.top, area.bottom));
        scene.text((middle_x, area.bottom + 36.0), x.label, SIZE, Anchor::Middle, Paint::Soft);
        scene.upright((16.0, middle_y), y.label, SIZE, Anchor::Middle, Paint::Soft);
        area
    }

    fn x(&self, axis: &Axis<'_>, value: f64) -> f64 {
        self.left + axis.share(value) * (self.right - self.left)
    }

    fn y(&self, axis: &Axis<'_>, value: f64) -> f64 {
        self.bottom - axis.share(value) * (self.bottom - self.top)
    }
}

/// The names of series with a piece of their line, in a row above the area.
fn legend(scene: &mut Scene, series: &[(String, Paint, bool)]) {
    let mut x = 10.0;
    for (name, paint, dashed) in series {
        scene.line(vec![(x, 36.0), (x + 20.0, 36.0)], *paint, 2.5, *dashed);
        scene.text((x + 26.0, 40.0), name, SIZE, Anchor::Start, Paint::Ink);
        x += 26.0 + font::width(name, SIZE) + 18.0;
    }
}

/// A chart for each quantity of a history (`loss`, `accuracy`, ...), with the training and the
/// validation series of it. `best` is the epoch whose weights were kept, from 1.
pub fn curves(history: &History, best: Option<usize>) -> Vec<Scene> {
    let mut quantities: Vec<&str> = Vec::new();
    for column in &history.columns {
        let quantity = column.name.strip_prefix("val_").unwrap_or(&column.name);
        if !quantities.contains(&quantity) {
            quantities.push(quantity);
        }
    }
    quantities.into_iter().filter_map(|quantity| curve(history, quantity, best)).collect()
}

/// `None` if there is nothing to draw.
fn curve(history: &History, quantity: &str, best: Option<usize>) -> Option<Scene> {
    let (unit, factor) = match quantity {
        "accuracy" => (" (%)", 100.0),
        "loss" => (" (nats)", 1.0),
        _ => ("", 1.0),
    };
    let series = |name: &str| -> Option<Vec<(f64, f64)>> {
        let column = history.columns.iter().find(|column| column.name == name)?;
        let points = column.values.iter().zip(1..).filter_map(|(value, epoch)| {
            value.filter(|v| v.abs() < 1e12).map(|v| (f64::from(epoch), factor * v))
        });
        Some(points.collect::<Vec<_>>()).filter(|points| !points.is_empty())
    };
    let lines: Vec<_> = [
        ("training", series(quantity), Paint::Second, true),
        ("validation", series(&format!("val_{quantity}")), Paint::First, false),
    ]
    .into_iter()
    .filter_map(|(name, points, paint, dashed)| Some((name, points?, paint, dashed)))
    .collect();
    let values = || lines.iter().flat_map(|line| line.1.iter().map(|point| point.1));
    let (low, high) =
        (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    if low > high {
        return None;
    }
    let mut name = quantity.replace('_', " ");
    if let Some(first) = name.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let mut scene = Scene::new(quantity, &format!("{name} over the epochs"), WIDTH, HEIGHT);
    let label = format!("{}{unit}", quantity.replace('_', " "));
    // A loss is read from 0; an accuracy does not pass 100 %.
    let y = match quantity {
        "loss" => Axis::round(&label, low.min(0.0), high, 5.0, 0.0),
        "accuracy" => Axis::round(&label, low, high.max(100.0), 5.0, 0.0),
        _ => Axis::round(&label, low, high, 5.0, 0.0),
    };
    let epochs = history.epochs().max(1) as f64;
    let steps = Axis::round("epoch", 1.0, epochs, 8.0, 1.0);
    // From the first to the last epoch, which need not be round.
    let x = Axis { low: 0.0, high: epochs.max(2.0), ..steps };
    let area = Area::draw(&mut scene, &x, &y);
    if let Some(best) = best.filter(|best| (1..=history.epochs()).contains(best)) {
        let at = area.x(&x, best as f64);
        scene.line(vec![(at, area.top), (at, area.bottom)], Paint::Soft, 1.0, true);
        let words = format!("kept: epoch {best}");
        let room = font::width(&words, SIZE) + 6.0;
        let fits = at + room < area.right;
        let (x_text, anchor) =
            if fits { (at + 5.0, Anchor::Start) } else { (at - 5.0, Anchor::End) };
        // At the top or at the bottom, whichever is farther from the curves.
        let reach = if fits { at..=at + room } else { at - room..=at };
        let near: Vec<f64> = lines
            .iter()
            .flat_map(|line| &line.1)
            .filter(|&&(epoch, _)| reach.contains(&area.x(&x, epoch)))
            .map(|&(_, value)| area.y(&y, value))
            .collect();
        let distance =
            |height: f64| near.iter().map(|y| (y - height).abs()).fold(f64::INFINITY, f64::min);
        let (high, low) = (area.top + 10.0, area.bottom - 8.0);
        let height = if distance(low) > distance(high) { low } else { high };
        scene.text((x_text, height), &words, SIZE, anchor, Paint::Soft);
    }
    for (_, points, paint, dashed) in &lines {
        let places: Vec<_> =
            points.iter().map(|&(epoch, v)| (area.x(&x, epoch), area.y(&y, v))).collect();
        if places.len() == 1 {
            scene.dot(places[0], 3.0, *paint);
        }
        for (&place, _) in places
            .iter()
            .zip(points)
            .filter(|(_, (epoch, _))| best.is_some_and(|b| *epoch == b as f64))
        {
            scene.dot(place, 3.5, *paint);
        }
        scene.line(places, *paint, 2.0, *dashed);
    }
    legend(
        &mut scene,
        &lines
            .iter()
            .map(|(name, _, paint, dashed)| ((*name).to_owned(), *paint, *dashed))
            .collect::<Vec<_>>(),
    );
    let ends: Vec<String> = lines
        .iter()
        .filter_map(|(name, points, ..)| {
            let (first, last) = (points.first()?, points.last()?);
            Some(format!("{name} goes from {:.3} to {:.3}", first.1, last.1))
        })
        .collect();
    scene.description = format!("{label} over {} epochs: {}.", history.epochs(), ends.join(", "));
    Some(scene)
}

/// Most classes that a confusion matrix is drawn for.
pub const MOST_CLASSES: usize = 60;

/// `confusion[truth][answer]` as a heat map, rows as strong as their share; `None` for more than
/// [`MOST_CLASSES`].
pub fn confusion(labels: &[String], confusion: &[Vec<u64>]) -> Option<Scene> {
    let n = labels.len();
    if n > MOST_CLASSES {
        return None;
    }
    let labels: Vec<String> = labels.iter().map(|label| visible(label)).collect();
    let longest =
        labels.iter().map(|label| font::width(label, SIZE)).fold(0.0, f64::max).min(110.0);
    let left = 36.0 + longest;
    let cell = match n {
        0..=3 => 80.0,
        4..=6 => 54.0,
        7..=9 => 38.0,
        10..=12 => 31.0,
        // Some 40 classes are as wide as the page on a desk.
        _ => ((1020.0 - left) / n as f64).clamp(18.0, 26.0),
    };
    // Names of columns lie flat where they fit.
    let flat = longest <= cell - 6.0;
    let top = 54.0 + if flat { SIZE } else { longest };
    let side = cell * n as f64;
    let width = (left + side + 14.0).max(300.0);
    let mut scene =
        Scene::new("confusion", "Confusion matrix (pictures)", width, top + side + 14.0);
    scene.text((left + side / 2.0, 40.0), "answer", SIZE, Anchor::Middle, Paint::Soft);
    scene.upright(
        (16.0, top + side / 2.0),
        "label of the picture",
        SIZE,
        Anchor::Middle,
        Paint::Soft,
    );
    for (index, label) in labels.iter().enumerate() {
        let middle = (index as f64 + 0.5) * cell;
        let label = font::cut(label, SIZE, longest + 0.01);
        scene.text((left - 7.0, top + middle + 4.0), &label, SIZE, Anchor::End, Paint::Ink);
        if flat {
            scene.text((left + middle, top - 7.0), &label, SIZE, Anchor::Middle, Paint::Ink);
        } else {
            scene.upright(
                (left + middle + 4.0, top - 7.0),
                &label,
                SIZE,
                Anchor::Start,
                Paint::Ink,
            );
        }
    }
    let mut right = 0;
    for (row, counts) in confusion.iter().enumerate() {
        let total: u64 = counts.iter().sum();
        for (column, &count) in counts.iter().enumerate() {
            let (x, y) = (left + column as f64 * cell, top + row as f64 * cell);
            let share = count as f64 / total.max(1) as f64;
            scene.rect([x + 0.75, y + 0.75, cell - 1.5, cell - 1.5], Paint::Grid, 0.35);
            if count == 0 {
                continue;
            }
            right += if row == column { count } else { 0 };
            let strength = 0.12 + 0.88 * share;
            scene.rect([x + 0.75, y + 0.75, cell - 1.5, cell - 1.5], Paint::Heat, strength);
            let words = count.to_string();
            let size = (SIZE + 1.0).min(SIZE * (cell - 4.0) / font::width(&words, SIZE));
            // Where both inks are equally legible, in both schemes.
            let paint = if strength > 0.72 { Paint::OnHeat } else { Paint::Ink };
            scene.text(
                (x + cell / 2.0, y + cell / 2.0 + 0.36 * size),
                &words,
                size,
                Anchor::Middle,
                paint,
            );
        }
    }
    let all: u64 = confusion.iter().flatten().sum();
    scene.description = format!(
        "{n} classes; {right} of {all} pictures lie on the diagonal. Each row is as strong as its share."
    );
    Some(scene)
}

/// Accuracy by score, before and after the temperature.
pub fn reliability(before: Option<&Reliability>, after: &Reliability, temperature: f32) -> Scene {
    let mut scene = Scene::new("reliability", "Reliability of the scores", WIDTH, 340.0);
    let x = Axis { label: "score of the answer (%)", low: 0.0, high: 100.0, step: 20.0 };
    let y = Axis { label: "right among them (%)", low: 0.0, high: 100.0, step: 20.0 };
    let area = Area::draw(&mut scene, &x, &y);
    let corners = [0.0, 100.0].map(|v| (area.x(&x, v), area.y(&y, v)));
    scene.line(corners.to_vec(), Paint::Soft, 1.0, true);
    let mut names = Vec::new();
    let mut series = |scene: &mut Scene, name: String, found: &Reliability, paint, dashed| {
        let all = found.count().max(1) as f64;
        let bins: Vec<_> = found.bins.iter().filter(|bin| bin.count > 0).collect();
        let place = |score: f64, share: f64| (area.x(&x, 100.0 * score), area.y(&y, 100.0 * share));
        let places: Vec<_> = bins.iter().map(|bin| place(bin.score(), bin.accuracy())).collect();
        for (bin, &at) in bins.iter().zip(&places) {
            scene.dot(at, 3.0 + 6.0 * (bin.count as f64 / all).sqrt(), paint);
        }
        scene.line(places, paint, 2.0, dashed);
        names.push((format!("{name}: ECE {:.1} %", 100.0 * found.error()), paint, dashed));
    };
    let mut words = Vec::new();
    if let Some(before) = before {
        series(&mut scene, "as trained".into(), before, Paint::Second, true);
        words.push(format!("{:.1} % as trained", 100.0 * before.error()));
    }
    series(&mut scene, format!("temperature {temperature:.2}"), after, Paint::First, false);
    words.push(format!("{:.1} % at temperature {temperature:.2}", 100.0 * after.error()));
    legend(&mut scene, &names);
    scene.description = format!(
        "Share of right answers by score. The expected calibration error is {}. On the diagonal scores are what they say.",
        words.join(", ")
    );
    scene
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Column;
    use super::*;

    fn history(columns: &[(&str, Vec<Option<f64>>)]) -> History {
        let column = |(name, values): &(&str, Vec<Option<f64>>)| Column {
            name: (*name).into(),
            values: values.clone(),
        };
        History { columns: columns.iter().map(column).collect() }
    }

    #[test]
    fn each_quantity_has_a_chart() {
        let history = history(&[
            ("loss", vec![Some(1.0), Some(0.5)]),
            ("val_loss", vec![Some(1.1), Some(0.7)]),
            ("accuracy", vec![Some(0.5), Some(f64::NAN)]),
            ("lr", vec![Some(1e-3), Some(1e-4)]),
            ("empty", vec![None, None]),
        ]);
        let charts = curves(&history, Some(2));
        assert_eq!(
            charts.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(),
            ["loss", "accuracy", "lr"]
        );
        let svg = charts[0].svg();
        assert!(
            svg.contains("kept: epoch 2")
                && svg.contains("validation")
                && svg.contains("loss (nats)")
        );
        assert!(
            charts[1].svg().contains("accuracy (%)") && !charts[1].svg().contains("validation")
        );
    }

    #[test]
    fn matrices_of_many_classes_stay_legible_or_are_left_out() {
        for n in [2, 3, 10, 40] {
            let labels: Vec<String> =
                (0..n).map(|i| format!("\u{202e}\u{202e} a class with a long name {i}")).collect();
            let counts: Vec<Vec<u64>> =
                (0..n).map(|i| (0..n).map(|j| if i == j { 12_345 } else { 1 }).collect()).collect();
            let scene = confusion(&labels, &counts).unwrap();
            roxmltree::Document::parse(&scene.svg()).unwrap();
            assert!(scene.width < 1100.0 && scene.svg().contains(">12345<"));
            // What is spelt out is cut too.
            assert!(scene.svg().contains("\\u{202e}") && !scene.svg().contains("long"));
        }
        let labels = vec!["x".to_owned(); MOST_CLASSES + 1];
        assert!(confusion(&labels, &[]).is_none());
    }

    proptest! {
        #[test]
        fn axes_hold_their_values(low in -1e6f64..1e6, span in 0f64..1e6, count in 2f64..10.0) {
            let high = low + span;
            let axis = Axis::round("", low, high, count, 0.0);
            let slack = 1e-6 * axis.step;
            prop_assert!(axis.low <= low + slack && axis.high >= high - slack && axis.high > axis.low);
            let ticks: Vec<_> = axis.ticks().map(|tick| axis.format(tick)).collect();
            prop_assert!((2..=14).contains(&ticks.len()), "{ticks:?}");
            prop_assert!(ticks.windows(2).all(|pair| pair[0] != pair[1]), "{ticks:?}");
        }

        #[test]
        fn charts_are_well_formed(values in prop::collection::vec(prop::option::of(prop::num::f64::ANY), 0..20), best in 0usize..22) {
            for chart in curves(&history(&[("loss", values.clone()), ("val_accuracy", values)]), Some(best)) {
                roxmltree::Document::parse(&chart.svg()).unwrap();
                prop_assert!(!chart.svg().contains("NaN") && !chart.svg().contains("inf"));
            }
        }
    }
}
