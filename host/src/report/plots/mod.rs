//! The charts of a report.

mod axis;
mod confusion;
mod curves;
mod reliability;

pub use confusion::confusion;
pub use curves::curves;
pub use reliability::reliability;

/// Width of the charts with two axes, in CSS pixels: legible without scaling on a phone of 390 px.
const WIDTH: f64 = 440.0;
/// Their usual height.
const HEIGHT: f64 = 300.0;
