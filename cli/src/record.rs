//! The result line of a frame, as text or as NDJSON; the same in both programs.

use std::fmt;
use std::time::SystemTime;

use serde::ser::{Serialize, SerializeMap, Serializer};

use vgg_edge::classifier::Classification;

/// Returns the current time: RFC 3339, UTC, milliseconds.
pub fn time() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// The result of one frame.
///
/// As JSON: `{"frame","source","time","label","score","scores","latency_ms"}`, and optional fields
/// that are present only if they apply. `scores` is an object from label to score in the order of
/// the labels; numbers are the shortest that parse to the same f32.
#[derive(serde::Serialize)]
pub struct FrameResult<'a> {
    /// Number of the frame, counted from 0.
    pub frame: u64,
    /// The file or device of the frame.
    pub source: &'a str,
    /// Time of the classification: RFC 3339, UTC, milliseconds.
    pub time: String,
    /// The label, or `unknown`.
    pub label: &'a str,
    /// Whether the label stands for images without anything of interest
    /// ([`vgg_edge::Head::background`]).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub background: bool,
    /// The best score, 0 to 1.
    pub score: f32,
    /// All scores.
    pub scores: Scores<'a>,
    /// Time from the decoded frame to the result, in milliseconds.
    pub latency_ms: f64,
    /// Time from the capture to the result, in milliseconds; only for live sources. Sources without
    /// capture times (a pipe, a file that is played, some drivers) count from the arrival.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<f64>,
    /// Whether nothing moved, so that this is the result of an earlier frame.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub still: bool,
    /// SHA-256 of the quantized feature map, if it was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub features_sha256: Option<String>,
}

/// Labels with their scores, serialized as a JSON object.
pub struct Scores<'a> {
    /// The labels.
    pub labels: &'a [String],
    /// The scores, in the same order.
    pub scores: &'a [f32],
}

impl Serialize for Scores<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.labels.len()))?;
        for (label, score) in self.labels.iter().zip(self.scores) {
            map.serialize_entry(label, score)?;
        }
        map.end()
    }
}

impl<'a> FrameResult<'a> {
    /// Creates the result of a frame that was classified just now.
    pub fn new(
        frame: u64,
        source: &'a str,
        labels: &'a [String],
        result: &'a Classification,
    ) -> Self {
        Self {
            frame,
            source,
            time: time(),
            label: &result.label,
            background: false,
            score: result.score,
            scores: Scores { labels, scores: &result.scores },
            latency_ms: (result.latency_ms * 1e3).round() / 1e3,
            age_ms: None,
            still: false,
            features_sha256: result.digest.map(|digest| digest.to_string()),
        }
    }

    /// Returns one line of JSON, without the newline.
    pub fn to_json(&self) -> String {
        // Serializing strings and finite numbers cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl fmt::Display for FrameResult<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\t{}\t{:.3}", self.source, self.label, self.score)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_json_has_its_fields_in_order() {
        let labels = ["z".to_owned(), "a\"b".to_owned()];
        let result = Classification {
            label: "z".into(),
            score: 0.1,
            scores: vec![0.1, 0.9],
            latency_ms: 1.234_567_8,
            digest: None,
        };
        let mut line = FrameResult::new(7, "x/y.jpg", &labels, &result);
        line.time = "T".into();
        let expected = [
            r#"{"frame":7,"source":"x/y.jpg","time":"T","label":"z","score":0.1,"#,
            r#""scores":{"z":0.1,"a\"b":0.9},"latency_ms":1.235}"#,
        ];
        assert_eq!(line.to_json(), expected.concat());
        assert_eq!(line.to_string(), "x/y.jpg\tz\t0.100");
    }
}
