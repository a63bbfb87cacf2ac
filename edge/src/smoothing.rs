//! Smoothing over frames: from scores to a label that changes only on enough evidence.

use vgg_edge::head::{UNKNOWN, best};

/// How frames are combined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Smoothing {
    /// Weight of earlier frames in the exponential average, 0 (each frame by itself) to below 1.
    pub past: f32,
    /// Frames in a row that a new label must lead before it is reported, at least 1.
    pub min_frames: u32,
    /// Averaged score that the best label must reach, else the result is [`UNKNOWN`].
    pub threshold: f32,
}

/// The decision over the frames so far.
pub struct LabelFilter {
    smoothing: Smoothing,
    scores: Vec<f32>,
    /// The label reported last: its index, or `None` for unknown. The outer `None` is before the
    /// first frame.
    reported: Option<Option<usize>>,
    /// Another label that leads, and for how many frames.
    rival: (Option<usize>, u32),
}

/// The label after a frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Index of the label, `None` for unknown.
    pub label: Option<usize>,
    /// The averaged score of the label; the best one if unknown.
    pub score: f32,
}

impl LabelFilter {
    /// Creates a filter that has seen no frames.
    pub fn new(smoothing: Smoothing) -> Self {
        Self { smoothing, scores: Vec::new(), reported: None, rival: (None, 0) }
    }

    /// Continues from the state of another filter, of the same labels.
    pub fn inherit(&mut self, before: Self) {
        (self.scores, self.reported, self.rival) = (before.scores, before.reported, before.rival);
    }

    /// Adds the scores of a frame.
    pub fn update(&mut self, scores: &[f32]) -> Decision {
        let Smoothing { past, min_frames, threshold } = self.smoothing;
        if self.scores.len() == scores.len() {
            for (average, &score) in self.scores.iter_mut().zip(scores) {
                *average = past * *average + (1.0 - past) * score;
            }
        } else {
            self.scores = scores.to_vec();
        }
        let best = best(&self.scores);
        let lead = (self.scores.get(best).is_some_and(|&score| score >= threshold)).then_some(best);
        let reported = match self.reported {
            Some(reported) if reported != lead => {
                self.rival = if self.rival.0 == lead && self.rival.1 > 0 {
                    (lead, self.rival.1 + 1)
                } else {
                    (lead, 1)
                };
                if self.rival.1 >= min_frames { lead } else { reported }
            }
            _ => lead,
        };
        if reported == lead {
            self.rival = (None, 0);
        }
        self.reported = Some(reported);
        let score = self.scores.get(reported.unwrap_or(best)).copied().unwrap_or_default();
        Decision { label: reported, score }
    }

    /// The averaged scores.
    pub fn scores(&self) -> &[f32] {
        &self.scores
    }
}

/// Returns the name of a label's index.
pub fn label(labels: &[String], index: Option<usize>) -> &str {
    index.and_then(|index| labels.get(index)).map_or(UNKNOWN, String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(smoothing: Smoothing, frames: &[[f32; 2]]) -> Vec<Option<usize>> {
        let mut filter = LabelFilter::new(smoothing);
        frames.iter().map(|scores| filter.update(scores).label).collect()
    }

    const PLAIN: Smoothing = Smoothing { past: 0.0, min_frames: 1, threshold: 0.0 };
    const A: [f32; 2] = [0.9, 0.1];
    const B: [f32; 2] = [0.2, 0.8];

    #[test]
    fn label_without_smoothing_follows_each_frame() {
        let mut filter = LabelFilter::new(PLAIN);
        for (scores, label) in [(A, 0), (B, 1), (B, 1), (A, 0)] {
            assert_eq!(filter.update(&scores).label, Some(label));
            assert_eq!(filter.scores(), scores, "bit for bit");
        }
        assert_eq!(labels(Smoothing { threshold: 0.85, ..PLAIN }, &[A, B]), [Some(0), None]);
    }

    #[test]
    fn new_label_must_lead_for_min_frames() {
        let hold = Smoothing { min_frames: 3, ..PLAIN };
        assert_eq!(labels(hold, &[A, B, A, B, B, A]), [Some(0); 6]);
        assert_eq!(labels(hold, &[A, B, B, B, A]), [Some(0), Some(0), Some(0), Some(1), Some(1)]);
        // The count starts again for another rival: unknown does not help the label.
        let hold = Smoothing { min_frames: 2, threshold: 0.7, ..PLAIN };
        assert_eq!(
            labels(hold, &[A, [0.5, 0.5], B, [0.5, 0.5], B, B]),
            [Some(0), Some(0), Some(0), Some(0), Some(0), Some(1)]
        );
    }

    #[test]
    fn label_filter_inherits_the_state_of_another() {
        let hold = Smoothing { min_frames: 3, ..PLAIN };
        let (mut one, mut other) = (LabelFilter::new(hold), LabelFilter::new(hold));
        for scores in [A, B, B] {
            one.update(&scores);
        }
        other.inherit(one);
        assert_eq!([B, A].map(|scores| other.update(&scores).label), [Some(1); 2]);
    }

    #[test]
    fn averaged_label_ignores_a_flicker() {
        let smooth = Smoothing { past: 0.8, ..PLAIN };
        assert_eq!(labels(smooth, &[A, B, A, A]), [Some(0); 4]);
        let many: Vec<[f32; 2]> = [A].into_iter().chain([B; 8]).collect();
        assert_eq!(labels(smooth, &many).last(), Some(&Some(1)));
    }
}
