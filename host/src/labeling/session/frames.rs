//! The predictions of edge for the images that it collected.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read};

use serde_json::Value;

use super::super::directory::Directory;

/// The file that `edge run --collect` writes beside its images.
pub const FRAMES: &str = "frames.ndjson";
/// Maximum number of bytes of [`FRAMES`] that are read.
const MAX_BYTES: u64 = 256 << 20;

/// A prediction of edge.
#[derive(Debug, Default, PartialEq)]
pub struct EdgePrediction {
    /// The label, which may be `unknown`.
    pub label: String,
    /// Labels and scores, the best first.
    pub scores: Vec<(String, f64)>,
    /// When the frame was classified.
    pub time: String,
    /// The camera or file.
    pub source: String,
    /// Why the frame was collected.
    pub reason: String,
}

impl EdgePrediction {
    /// The difference between the best two scores: the smaller, the less certain.
    pub fn margin(&self) -> f64 {
        match self.scores[..] {
            [(_, best), (_, next), ..] => best - next,
            _ => f64::INFINITY,
        }
    }
}

/// The contents of [`FRAMES`].
#[derive(Debug, Default)]
pub struct Frames {
    /// By file name; of several lines on a file the last one counts.
    pub predictions: HashMap<String, EdgePrediction>,
    /// Number of lines that could not be read.
    pub bad_lines: usize,
}

impl Frames {
    /// Reads the file, if it exists.
    ///
    /// # Errors
    /// An I/O error.
    pub fn read(inbox: &Directory) -> io::Result<Self> {
        let mut bytes = Vec::new();
        match inbox.file(FRAMES.as_ref()) {
            Ok(file) => file.take(MAX_BYTES).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let mut frames = Self::default();
        for line in bytes.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
            match parse(line) {
                Some((name, prediction)) => {
                    frames.predictions.insert(name, prediction);
                }
                None => frames.bad_lines += 1,
            }
        }
        Ok(frames)
    }
}

fn parse(line: &[u8]) -> Option<(String, EdgePrediction)> {
    let value: Value = serde_json::from_slice(line).unwrap_or_default();
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let name = value["file"].as_str()?;
    let scores = value["scores"].as_object().into_iter().flatten();
    let mut scores: Vec<(String, f64)> =
        scores.filter_map(|(label, score)| Some((label.clone(), score.as_f64()?))).collect();
    scores.sort_by(|a, b| b.1.total_cmp(&a.1));
    let prediction = EdgePrediction {
        label: text("label"),
        scores,
        time: text("time"),
        source: text("source"),
        reason: text("reason"),
    };
    Some((name.to_owned(), prediction))
}
