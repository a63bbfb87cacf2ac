//! The reliability diagram.

use super::super::calibration::Reliability;
use super::super::chart::{Chart, Style};
use super::WIDTH;
use super::axis::{Area, Axis, legend};

/// Draws accuracy by score, at the head's temperature and, if given, at temperature 1.
pub fn reliability(
    uncalibrated: Option<&Reliability>,
    calibrated: &Reliability,
    temperature: f32,
) -> Chart {
    let mut chart = Chart::new("reliability", "Reliability diagram", WIDTH, 340.0);
    let (x, y) = (Axis::percent("score (%)"), Axis::percent("accuracy (%)"));
    let area = Area::draw(&mut chart, &x, &y);
    let place = |score: f64, accuracy: f64| (area.x(&x, score), area.y(&y, accuracy));
    chart.line(vec![place(0.0, 0.0), place(100.0, 100.0)], Style::Soft, 1.0, true);
    let sides = uncalibrated
        .map(|reliability| ("temperature 1".to_owned(), reliability, Style::Second, true))
        .into_iter()
        .chain([(format!("temperature {temperature:.2}"), calibrated, Style::First, false)]);
    let (mut names, mut errors) = (Vec::new(), Vec::new());
    for (name, reliability, style, dashed) in sides {
        let all = reliability.count().max(1) as f64;
        let mut points = Vec::new();
        for bin in reliability.bins.iter().filter(|bin| bin.count > 0) {
            let at = place(100.0 * bin.score(), 100.0 * bin.accuracy());
            chart.dot(at, 3.0 + 6.0 * (bin.count as f64 / all).sqrt(), style);
            points.push(at);
        }
        chart.line(points, style, 2.0, dashed);
        let error = 100.0 * reliability.error();
        errors.push(format!("{error:.1} % at {name}"));
        names.push((format!("{name}: ECE {error:.1} %"), style, dashed));
    }
    legend(&mut chart, names.iter().map(|(name, style, dashed)| (&**name, *style, *dashed)));
    chart.description = format!(
        "Accuracy of the predictions by score. The expected calibration error is {}. \
         On the diagonal, the accuracy equals the score.",
        errors.join(", ")
    );
    chart
}
