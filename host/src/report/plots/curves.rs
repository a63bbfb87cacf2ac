//! Training curves: a quantity by epoch.

use super::super::chart::{Anchor, Chart, SIZE, Style};
use super::super::history::History;
use super::super::raster::text_width;
use super::axis::{Area, Axis, legend};
use super::{HEIGHT, WIDTH};

/// A line of a chart.
struct Series {
    name: &'static str,
    /// Epoch, from 1, and value.
    points: Vec<(f64, f64)>,
    style: Style,
    dashed: bool,
}

/// Draws a chart for each quantity of a history (`loss`, `accuracy`, ...), with its training and
/// its validation series. `best` is the epoch whose weights were kept, from 1.
pub fn curves(history: &History, best: Option<usize>) -> Vec<Chart> {
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
fn curve(history: &History, quantity: &str, best: Option<usize>) -> Option<Chart> {
    let (unit, factor) = match quantity {
        "accuracy" => (" (%)", 100.0),
        "loss" => (" (nats)", 1.0),
        _ => ("", 1.0),
    };
    let lines = series(history, quantity, factor);
    let values = || lines.iter().flat_map(|line| line.points.iter().map(|point| point.1));
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(f64::NEG_INFINITY, f64::max);
    if low > high {
        return None;
    }
    let mut name = quantity.replace('_', " ");
    if let Some(first) = name.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let mut chart = Chart::new(quantity, &format!("{name} by epoch"), WIDTH, HEIGHT);
    let label = format!("{}{unit}", quantity.replace('_', " "));
    // The axis of a loss starts at 0; that of an accuracy ends at 100 %.
    let y = match quantity {
        "loss" => Axis::round(&label, low.min(0.0), high, 5.0, 0.0),
        "accuracy" => Axis::round(&label, low, high.max(100.0), 5.0, 0.0),
        _ => Axis::round(&label, low, high, 5.0, 0.0),
    };
    let epochs = history.epochs().max(1) as f64;
    let steps = Axis::round("epoch", 1.0, epochs, 8.0, 1.0);
    // From the first to the last epoch, which need not be round.
    let x = Axis { low: 0.0, high: epochs.max(2.0), ..steps };
    let area = Area::draw(&mut chart, &x, &y);
    let place = |&(epoch, value): &(f64, f64)| (area.x(&x, epoch), area.y(&y, value));
    if let Some(best) = best.filter(|best| (1..=history.epochs()).contains(best)) {
        let points: Vec<_> = lines.iter().flat_map(|line| line.points.iter().map(place)).collect();
        mark_best(&mut chart, &area, area.x(&x, best as f64), best, &points);
    }
    for Series { points, style, dashed, .. } in &lines {
        let placed: Vec<_> = points.iter().map(place).collect();
        if let [only] = placed[..] {
            chart.dot(only, 3.0, *style);
        }
        for (&at, (epoch, _)) in placed.iter().zip(points) {
            if best.is_some_and(|best| *epoch == best as f64) {
                chart.dot(at, 3.5, *style);
            }
        }
        chart.line(placed, *style, 2.0, *dashed);
    }
    legend(&mut chart, lines.iter().map(|line| (line.name, line.style, line.dashed)));
    let changes: Vec<String> = lines
        .iter()
        .filter_map(|line| {
            let (first, last) = (line.points.first()?, line.points.last()?);
            Some(format!("{} from {:.3} to {:.3}", line.name, first.1, last.1))
        })
        .collect();
    chart.description =
        format!("{label} over {} epochs: {}.", history.epochs(), changes.join(", "));
    Some(chart)
}

/// The training and the validation series of a quantity, without those that have no value.
fn series(history: &History, quantity: &str, factor: f64) -> Vec<Series> {
    let points = |name: &str| -> Vec<(f64, f64)> {
        let column = history.columns.iter().find(|column| column.name == name);
        let values = column.into_iter().flat_map(|column| &column.values);
        values
            .zip(1..)
            .filter_map(|(value, epoch)| {
                value.filter(|v| v.abs() < 1e12).map(|v| (f64::from(epoch), factor * v))
            })
            .collect()
    };
    let training = points(quantity);
    let validation = points(&format!("val_{quantity}"));
    [
        Series { name: "training", points: training, style: Style::Second, dashed: true },
        Series { name: "validation", points: validation, style: Style::First, dashed: false },
    ]
    .into_iter()
    .filter(|series| !series.points.is_empty())
    .collect()
}

/// Marks the best epoch by a line at `x`, and labels it at the top or at the bottom of the area,
/// whichever is farther from the points of the curves.
fn mark_best(chart: &mut Chart, area: &Area, x: f64, best: usize, points: &[(f64, f64)]) {
    chart.line(vec![(x, area.top), (x, area.bottom)], Style::Soft, 1.0, true);
    let text = format!("best epoch: {best}");
    let room = text_width(&text, SIZE) + 6.0;
    let fits = x + room < area.right;
    let (text_x, anchor) = if fits { (x + 5.0, Anchor::Start) } else { (x - 5.0, Anchor::End) };
    let reach = if fits { x..=x + room } else { x - room..=x };
    let distance = |height: f64| {
        points
            .iter()
            .filter(|(x, _)| reach.contains(x))
            .map(|(_, y)| (y - height).abs())
            .fold(f64::INFINITY, f64::min)
    };
    let (high, low) = (area.top + 10.0, area.bottom - 8.0);
    let height = if distance(low) > distance(high) { low } else { high };
    chart.text((text_x, height), &text, SIZE, anchor, Style::Soft);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::history::Column;
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
        let svg = charts[0].svg().into_string();
        for text in ["best epoch: 2", "validation", "loss (nats)"] {
            assert!(svg.contains(text), "{text}");
        }
        let svg = charts[1].svg().into_string();
        assert!(svg.contains("accuracy (%)") && !svg.contains("validation"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn charts_are_well_formed(
            values in prop::collection::vec(prop::option::of(prop::num::f64::ANY), 0..20),
            best in 0usize..22,
        ) {
            let history = history(&[("loss", values.clone()), ("val_accuracy", values)]);
            for chart in curves(&history, Some(best)) {
                let svg = chart.svg().into_string();
                roxmltree::Document::parse(&svg).unwrap();
                prop_assert!(!svg.contains("NaN") && !svg.contains("inf"));
            }
        }
    }
}
