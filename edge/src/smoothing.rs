//! From the scores of single frames to a label that changes only when it is sure.

use vgg_edge::head::{UNKNOWN, best};

/// How frames are taken together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Smoothing {
    /// Weight of the past in the exponential average, 0 (each frame by itself) to below 1.
    pub past: f32,
    /// Frames in a row in which a new label must lead before it is said, at least 1.
    pub hold: u32,
    /// The averaged score that the best label must reach, or the answer is [`UNKNOWN`].
    pub threshold: f32,
}

/// The running decision.
pub struct LabelFilter {
    smoothing: Smoothing,
    scores: Vec<f32>,
    /// The label said last: its index, or `None` for unknown. The outer `None` is before the first
    /// frame.
    said: Option<Option<usize>>,
    /// Another label that leads, and for how many frames.
    rival: (Option<usize>, u32),
}

/// What is said after a frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Index of the label, `None` for unknown.
    pub label: Option<usize>,
    /// The best of the averaged scores if unknown, else that of the label.
    pub score: f32,
}

impl LabelFilter {
    /// Starts without a past.
    pub fn new(smoothing: Smoothing) -> Self {
        Self { smoothing, scores: Vec::new(), said: None, rival: (None, 0) }
    }

    /// Goes on from where one of the same labels has stopped.
    pub fn follow(&mut self, before: Self) {
        (self.scores, self.said, self.rival) = (before.scores, before.said, before.rival);
    }

    /// Takes in the scores of a frame.
    pub fn update(&mut self, scores: &[f32]) -> Decision {
        let Smoothing { past, hold, threshold } = self.smoothing;
        if self.scores.len() == scores.len() {
            for (average, &score) in self.scores.iter_mut().zip(scores) {
                *average = past * *average + (1.0 - past) * score;
            }
        } else {
            self.scores = scores.to_vec();
        }
        let best = best(&self.scores);
        let lead = (self.scores.get(best).is_some_and(|&score| score >= threshold)).then_some(best);
        let before = self.said;
        let said = match before {
            Some(said) if said != lead => {
                self.rival = if self.rival.0 == lead && self.rival.1 > 0 {
                    (lead, self.rival.1 + 1)
                } else {
                    (lead, 1)
                };
                if self.rival.1 >= hold { lead } else { said }
            }
            _ => lead,
        };
        if said == lead {
            self.rival = (None, 0);
        }
        self.said = Some(said);
        let score = self.scores.get(said.unwrap_or(best)).copied().unwrap_or_default();
        Decision { label: said, score }
    }

    /// The averaged scores.
    pub fn scores(&self) -> &[f32] {
        &self.scores
    }
}

/// The words for a label's index.
pub fn label(labels: &[String], index: Option<usize>) -> &str {
    index.and_then(|index| labels.get(index)).map_or(UNKNOWN, String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(smoothing: Smoothing, frames: &[[f32; 2]]) -> Vec<Option<usize>> {
        let mut decider = LabelFilter::new(smoothing);
        frames.iter().map(|scores| decider.update(scores).label).collect()
    }

    const PLAIN: Smoothing = Smoothing { past: 0.0, hold: 1, threshold: 0.0 };
    const A: [f32; 2] = [0.9, 0.1];
    const B: [f32; 2] = [0.2, 0.8];

    #[test]
    fn without_smoothing_each_frame_speaks_for_itself() {
        let mut decider = LabelFilter::new(PLAIN);
        for (scores, label) in [(A, 0), (B, 1), (B, 1), (A, 0)] {
            assert_eq!(decider.update(&scores).label, Some(label));
            assert_eq!(decider.scores(), scores, "bits are left alone");
        }
        assert_eq!(labels(Smoothing { threshold: 0.85, ..PLAIN }, &[A, B]), [Some(0), None]);
    }

    #[test]
    fn a_new_label_must_lead_for_some_frames() {
        let hold = Smoothing { hold: 3, ..PLAIN };
        assert_eq!(labels(hold, &[A, B, A, B, B, A]), [Some(0); 6]);
        assert_eq!(labels(hold, &[A, B, B, B, A]), [Some(0), Some(0), Some(0), Some(1), Some(1)]);
        // Another rival begins anew: unknown does not help the label.
        let hold = Smoothing { hold: 2, threshold: 0.7, ..PLAIN };
        assert_eq!(
            labels(hold, &[A, [0.5, 0.5], B, [0.5, 0.5], B, B]),
            [Some(0), Some(0), Some(0), Some(0), Some(0), Some(1)]
        );
    }

    #[test]
    fn another_goes_on_where_one_has_stopped() {
        let hold = Smoothing { hold: 3, ..PLAIN };
        let (mut one, mut other) = (LabelFilter::new(hold), LabelFilter::new(hold));
        for scores in [A, B, B] {
            one.update(&scores);
        }
        other.follow(one);
        assert_eq!([B, A].map(|scores| other.update(&scores).label), [Some(1); 2]);
    }

    #[test]
    fn averages_outlast_a_flicker() {
        let smooth = Smoothing { past: 0.8, ..PLAIN };
        assert_eq!(labels(smooth, &[A, B, A, A]), [Some(0); 4]);
        let many: Vec<[f32; 2]> = [A].into_iter().chain([B; 8]).collect();
        assert_eq!(labels(smooth, &many).last(), Some(&Some(1)));
    }
}
