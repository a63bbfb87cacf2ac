//! The head: dense layers on the feature map, which give scores and a decision. Host and device run
//! the same code.

mod file;
mod pool;

use serde::{Deserialize, Serialize};

use crate::preprocess::Preprocess;
use crate::{Backbone, Error, Fingerprint, HeadFileError, Result};

pub use file::{FORMAT, MAX_BYTES, format_of};
pub use pool::Pool;

/// The label if no score reaches the threshold.
pub const UNKNOWN: &str = "unknown";

/// Maximum number of classes of a head.
pub const MAX_LABELS: usize = 10_000;

/// Maximum number of values of a feature map: 32 times those of VGG16 at its largest size, 4,096
/// pixels.
const MAX_FEATURES: u64 = 1 << 28;

/// A trained head, with the settings it was trained with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// Fingerprint of the backbone it was trained on.
    pub base: Fingerprint,
    /// How images become the input of that backbone.
    pub preprocess: Preprocess,
    /// Scale of each channel of the feature map: a feature is `q * scale`.
    pub feature_scales: Vec<f32>,
    /// Names of the classes, in the order of the scores.
    pub labels: Vec<String>,
    /// The layers, first to last; the last one gives logits.
    pub layers: Vec<Dense>,
    /// How logits become scores.
    pub output: Output,
    /// How scores become a decision.
    pub decision: Decision,
    /// How it was trained.
    pub training: TrainingRecord,
    /// The pooling between the feature map and the first layer.
    pub pool: Pool,
    /// Indices of the labels for images without anything of interest ([`is_background_name`]),
    /// ascending.
    pub background: Vec<u32>,
}

/// Whether a class of this name stands for images without anything of interest: `none`,
/// `background` or `unknown`, in any case.
pub fn is_background_name(name: &str) -> bool {
    ["none", "background", UNKNOWN].iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// A dense layer: `y = activation(x * kernel + bias)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dense {
    /// Number of inputs.
    pub inputs: u32,
    /// Number of outputs (units).
    pub outputs: u32,
    /// The function applied to each sum.
    pub activation: Activation,
    /// Weights `[inputs, outputs]`, row by row, as in Keras.
    pub kernel: Vec<f32>,
    /// One value for each output.
    pub bias: Vec<f32>,
}

/// The activation function of a dense layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// The identity.
    Linear,
    /// `max(x, 0)`.
    Relu,
}

/// How logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Two classes, one logit: the score of the second is `1 / (1 + exp(-logit))`, and the two
    /// scores add up to 1.
    Sigmoid,
    /// One logit per class: `exp(logit) / sum of exp`.
    Softmax,
}

/// How scores become a decision.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// The divisor of the logits; 1 leaves them unchanged.
    pub temperature: f32,
    /// The score, 0 to 1, that the best label must reach; below it the result is [`UNKNOWN`].
    pub threshold: f32,
}

impl Default for Decision {
    fn default() -> Self {
        Self { temperature: 1.0, threshold: 0.0 }
    }
}

/// How a head was trained: information for users, not used by inference.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainingRecord {
    /// Date of the training in UTC, or that of `SOURCE_DATE_EPOCH`.
    pub date: String,
    /// Program and version.
    pub program: String,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Optimizer, learning rate, epochs, batch size, dropout, in one line.
    pub settings: String,
    /// Training images per class.
    pub train_counts: Vec<u32>,
    /// Validation images per class.
    pub val_counts: Vec<u32>,
    /// Files that were skipped because they could not be read.
    pub skipped: u32,
    /// SHA-256 over the contents and classes of all images.
    pub data: Option<Fingerprint>,
    /// The epoch whose weights were kept, counted from 1.
    pub best_epoch: u32,
    /// Metrics of the kept weights.
    pub metrics: Metrics,
}

/// Accuracy (0 to 1) and mean cross-entropy in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Accuracy on the training images, without dropout.
    pub accuracy: f64,
    /// Loss on the training images, without dropout.
    pub loss: f64,
    /// Accuracy on the validation images, if there were any.
    pub val_accuracy: Option<f64>,
    /// Loss on the validation images, if there were any.
    pub val_loss: Option<f64>,
}

impl Dense {
    /// Returns the outputs, each sum in the order of the inputs, without fused multiply-add.
    fn forward(&self, inputs: impl Iterator<Item = f32>) -> Vec<f32> {
        let outputs = self.outputs as usize;
        let mut sums = vec![0.0f32; outputs];
        for (input, kernel) in inputs.zip(self.kernel.chunks_exact(outputs)) {
            // A product with 0 does not change the bits: weights are finite, and a sum that starts
            // at +0 is never -0. More than half of a feature map is 0.
            if input != 0.0 {
                for (sum, &weight) in sums.iter_mut().zip(kernel) {
                    *sum += input * weight;
                }
            }
        }
        for (sum, &bias) in sums.iter_mut().zip(&self.bias) {
            *sum += bias;
            if self.activation == Activation::Relu {
                // Not `max`, which may return either zero.
                *sum = if *sum > 0.0 { *sum } else { 0.0 };
            }
        }
        sums
    }
}

/// Returns the index of the best score; the first of several equal ones.
pub fn best(scores: &[f32]) -> usize {
    let mut best = 0;
    for (index, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = index;
        }
    }
    best
}

/// Returns the features of a quantized feature map, channels last, with a scale for each channel.
pub fn dequantize(features: &[u8], scales: &[f32]) -> impl Iterator<Item = f32> {
    features.iter().zip(scales.iter().cycle()).map(|(&q, scale)| f32::from(q) * scale)
}

impl Head {
    /// Checks that the head was trained on this backbone, with the same input settings.
    ///
    /// # Errors
    /// [`Error::WrongBase`].
    pub fn check_base(&self, base: &Backbone) -> Result<()> {
        // The fingerprint covers weights and input settings; the rest guards against a forged head.
        let same = self.base == base.fingerprint()
            && self.preprocess.base == *base.contract()
            && self.feature_scales == base.feature_scales();
        if same {
            Ok(())
        } else {
            Err(Error::WrongBase {
                path: base.path().to_owned(),
                wanted: self.base,
                found: base.fingerprint(),
            })
        }
    }

    /// Returns the logits of a quantized feature map, before the temperature.
    pub fn logits(&self, features: &[u8]) -> Vec<f32> {
        match self.pool {
            Pool::Flatten => self.dense(dequantize(features, &self.feature_scales)),
            pool => {
                let mut pooled = vec![0.0; self.feature_scales.len()];
                pool.features(features, &self.feature_scales, &mut pooled);
                self.dense(pooled.into_iter())
            }
        }
    }

    /// Returns the logits of a feature map in f32, channels last, before the temperature: those of
    /// an f32 backbone.
    pub fn logits_of(&self, features: &[f32]) -> Vec<f32> {
        self.dense(self.pool.features_of(features, self.feature_scales.len()).into_iter())
    }

    fn dense(&self, features: impl Iterator<Item = f32>) -> Vec<f32> {
        let mut layers = self.layers.iter();
        let Some(first) = layers.next() else { return Vec::new() };
        layers.fold(first.forward(features), |values, layer| layer.forward(values.into_iter()))
    }

    /// Returns the scores of a quantized feature map (u8, channels last), in the order of the
    /// labels; except for rounding they add up to 1.
    pub fn scores(&self, features: &[u8]) -> Vec<f32> {
        let mut logits = self.logits(features);
        for logit in &mut logits {
            *logit /= self.decision.temperature;
        }
        match self.output {
            Output::Sigmoid => {
                let score = 1.0 / (1.0 + libm::expf(-logits[0]));
                vec![1.0 - score, score]
            }
            Output::Softmax => {
                let largest =
                    logits.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
                let mut sum = 0.0;
                for logit in &mut logits {
                    *logit = libm::expf(*logit - largest);
                    sum += *logit;
                }
                for value in &mut logits {
                    *value /= sum;
                }
                logits
            }
        }
    }

    /// Returns the index of the best score (the first of several equal ones) and its label, or
    /// [`UNKNOWN`] below `threshold`.
    pub fn decide(&self, scores: &[f32], threshold: f32) -> (usize, &str) {
        let best = best(scores);
        let sure = scores.get(best).is_some_and(|&score| score >= threshold);
        (best, if sure { &self.labels[best] } else { UNKNOWN })
    }

    /// Whether this label stands for images without anything of interest.
    pub fn is_background(&self, label: &str) -> bool {
        self.background
            .iter()
            .any(|&index| self.labels.get(index as usize).is_some_and(|name| name == label))
    }

    /// Checks that all parts are valid and match each other.
    ///
    /// # Errors
    /// [`HeadFileError::Inconsistent`] names the part.
    pub fn check(&self) -> Result<(), HeadFileError> {
        let mismatch = self.check_input().or_else(|| self.check_labels());
        let mismatch = mismatch.or_else(|| self.check_layers());
        mismatch.map_or(Ok(()), |reason| Err(HeadFileError::Inconsistent(reason)))
    }

    /// Returns a problem of the input settings, if there is one.
    fn check_input(&self) -> Option<String> {
        let base = &self.preprocess.base;
        if let Err(e) = base.check_size(self.preprocess.size) {
            return Some(e.to_string());
        }
        // In 64 bits: a declared size need not fit the machine's.
        let side = u64::from(self.preprocess.size.checked_div(base.stride).unwrap_or(0));
        let features = side.saturating_mul(side).saturating_mul(base.channels.into());
        if !(1..=MAX_FEATURES).contains(&features) {
            return Some(format!("its base gives {features} features, not 1 to {MAX_FEATURES}"));
        }
        let finite = all_finite(&base.mean) && base.std.iter().all(|s| s.is_finite() && *s > 0.0);
        if !(finite && base.scale.is_normal() && base.scale > 0.0) {
            return Some("a number of its preprocessing is not finite".into());
        }
        if self.feature_scales.len() != base.channels as usize {
            return Some(format!(
                "{} feature scales for {} channels",
                self.feature_scales.len(),
                base.channels
            ));
        }
        if !self.feature_scales.iter().all(|scale| scale.is_normal() && *scale > 0.0) {
            return Some("a feature scale is not a positive number".into());
        }
        None
    }

    /// Returns a problem of the labels, if there is one.
    fn check_labels(&self) -> Option<String> {
        if !(2..=MAX_LABELS).contains(&self.labels.len()) {
            return Some(format!("it has {} labels, not 2 to {MAX_LABELS}", self.labels.len()));
        }
        let mut sorted: Vec<_> = self.labels.iter().collect();
        sorted.sort_unstable();
        if sorted[0].is_empty() || sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return Some("a label is empty or occurs twice".into());
        }
        if self.background.iter().any(|&label| label as usize >= self.labels.len())
            || self.background.windows(2).any(|pair| pair[0] >= pair[1])
        {
            return Some("a background class is not one of its labels".into());
        }
        None
    }

    /// Returns a problem of the layers and the decision, if there is one.
    fn check_layers(&self) -> Option<String> {
        let mut width = self.pool.len(&self.preprocess) as u64;
        for (index, layer) in self.layers.iter().enumerate() {
            let (inputs, outputs) = (u64::from(layer.inputs), u64::from(layer.outputs));
            if inputs != width || outputs == 0 {
                return Some(format!("layer {index} has {inputs} inputs instead of {width}"));
            }
            if layer.kernel.len() as u64 != inputs * outputs || layer.bias.len() as u64 != outputs {
                return Some(format!("layer {index} lacks weights for {inputs} x {outputs}"));
            }
            if !all_finite(&layer.kernel) || !all_finite(&layer.bias) {
                return Some(format!("layer {index} has weights that are not finite"));
            }
            width = outputs;
        }
        let expected = match self.output {
            Output::Sigmoid if self.labels.len() == 2 => 1,
            Output::Sigmoid => return Some("a sigmoid output needs two labels".into()),
            Output::Softmax => self.labels.len() as u64,
        };
        if self.layers.last().is_none_or(|last| last.activation != Activation::Linear)
            || width != expected
        {
            return Some(format!("its last layer gives {width} logits, not {expected}"));
        }
        if !(self.decision.temperature.is_normal() && self.decision.temperature > 0.0) {
            return Some("its temperature is not a positive number".into());
        }
        if !(0.0..=1.0).contains(&self.decision.threshold) {
            return Some("its threshold is not within 0 to 1".into());
        }
        None
    }
}

fn all_finite(values: &[f32]) -> bool {
    values.iter().all(|value| value.is_finite())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::image::resize::Filter;
    use crate::preprocess::{Fit, tests::caffe};

    /// A head of two layers with simple weights.
    pub(crate) fn example(labels: &[&str]) -> Head {
        let outputs = if labels.len() == 2 { 1 } else { labels.len() };
        let dense = |inputs: usize, outputs: usize, activation| Dense {
            inputs: inputs as u32,
            outputs: outputs as u32,
            activation,
            kernel: (0..inputs * outputs)
                .map(|i| ((i * i * 31 + i * 7) % 1009) as f32 / 1009.0 - 0.45)
                .collect(),
            bias: (0..outputs).map(|i| i as f32 * 0.25).collect(),
        };
        Head {
            base: Fingerprint::of(b"base"),
            preprocess: Preprocess::new(caffe(), 32, Fit::Stretch, Filter::Bilinear).unwrap(),
            feature_scales: vec![0.05; 512],
            labels: labels.iter().map(|&label| label.to_owned()).collect(),
            layers: vec![dense(512, 6, Activation::Relu), dense(6, outputs, Activation::Linear)],
            output: if labels.len() == 2 { Output::Sigmoid } else { Output::Softmax },
            decision: Decision::default(),
            training: TrainingRecord::default(),
            pool: Pool::Flatten,
            background: Vec::new(),
        }
    }

    #[test]
    fn scores_match_the_formulas() {
        let features: Vec<u8> = (0..512).map(|i| (i * 37 % 256) as u8).collect();
        for labels in [&["no", "yes"][..], &["a", "b", "c", "d"]] {
            let mut head = example(labels);
            head.feature_scales
                .iter_mut()
                .enumerate()
                .for_each(|(c, scale)| *scale *= 1.0 + c as f32 / 100.0);
            head.check().unwrap();
            head.decision.temperature = 2.0;
            let mut values: Vec<f64> = features
                .iter()
                .zip(&head.feature_scales)
                .map(|(&q, &scale)| f64::from(q) * f64::from(scale))
                .collect();
            for layer in &head.layers {
                values = (0..layer.outputs as usize)
                    .map(|j| {
                        let sum: f64 = (0..values.len())
                            .map(|i| {
                                values[i] * f64::from(layer.kernel[i * layer.outputs as usize + j])
                            })
                            .sum();
                        let sum = sum + f64::from(layer.bias[j]);
                        if layer.activation == Activation::Relu { sum.max(0.0) } else { sum }
                    })
                    .collect();
            }
            let exp: Vec<f64> = match head.output {
                Output::Sigmoid => vec![1.0, (values[0] / 2.0).exp()],
                Output::Softmax => values.iter().map(|v| (v / 2.0).exp()).collect(),
            };
            let scores = head.scores(&features);
            for (score, exp_value) in scores.iter().zip(&exp) {
                assert!((f64::from(*score) - exp_value / exp.iter().sum::<f64>()).abs() < 1e-5);
            }
        }
    }

    /// Bits that every architecture must give; recorded on x86-64, checked on ARM under QEMU.
    #[test]
    fn scores_have_these_bits() {
        let features: Vec<u8> = (0..512).map(|i| (i * 37 % 256) as u8).collect();
        let bits = |labels: &[&str]| -> Vec<u32> {
            let mut head = example(labels);
            head.feature_scales.fill(0.0005);
            head.scores(&features).iter().map(|s| s.to_bits()).collect()
        };
        assert_eq!(bits(&["no", "yes"]), [1059317660, 1052258505]);
        assert_eq!(bits(&["a", "b", "c", "d"]), [1040266802, 1061536789, 999412613, 1036408252]);
    }

    /// The same for 2 x 2 positions, pooled to one.
    #[test]
    fn pooled_scores_have_these_bits() {
        let map: Vec<u8> = (0..4 * 512).map(|i| (i * 37 % 251) as u8).collect();
        let bits = |pool: Pool| -> Vec<u32> {
            let mut head = example(&["a", "b", "c", "d"]);
            head.preprocess.size = 64;
            head.pool = pool;
            head.feature_scales.fill(0.0005);
            head.check().unwrap();
            head.scores(&map).iter().map(|s| s.to_bits()).collect()
        };
        assert_eq!(bits(Pool::Avg), [1040771114, 1061414486, 999611657, 1036365605]);
        assert_eq!(bits(Pool::Max), [1035167970, 1063064186, 978881466, 1027908715]);
    }

    #[test]
    fn background_classes_are_found_by_name() {
        for (name, is) in [
            ("none", true),
            ("Background", true),
            ("UNKNOWN", true),
            ("nonesuch", false),
            ("", false),
        ] {
            assert_eq!(is_background_name(name), is, "{name}");
        }
        let mut head = example(&["a", "none", "c"]);
        head.background = vec![1];
        head.check().unwrap();
        assert_eq!(
            ["a", "none", UNKNOWN].map(|label| head.is_background(label)),
            [false, true, false]
        );
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let mut head = example(&["a", "b", "c"]);
        head.layers[1].bias = vec![1e30, -1e30, 0.0];
        assert_eq!(head.scores(&[9; 512]), [1.0, 0.0, 0.0]);
        let mut head = example(&["no", "yes"]);
        head.layers[1].bias = vec![-1e30];
        assert_eq!(head.scores(&[9; 512]), [1.0, 0.0]);
    }

    #[test]
    fn below_the_threshold_it_is_unknown() {
        let head = example(&["a", "b", "c"]);
        assert_eq!(head.decide(&[0.2, 0.4, 0.4], 0.0), (1, "b"));
        assert_eq!(head.decide(&[0.2, 0.4, 0.4], 0.5), (1, UNKNOWN));
        assert_eq!(head.decide(&[0.2, 0.3, 0.5], 0.5), (2, "c"));
    }

    #[test]
    fn contradictions_in_a_head_are_found() {
        let broken = |breaks: fn(&mut Head)| {
            let mut head = example(&["a", "b", "c"]);
            breaks(&mut head);
            head.check().unwrap_err().to_string()
        };
        assert!(
            broken(|h| h.feature_scales.truncate(1)).contains("1 feature scales for 512 channels")
        );
        assert!(broken(|h| h.feature_scales[9] = 0.0).contains("feature scale"));
        assert!(broken(|h| h.labels.truncate(1)).contains("1 labels"));
        assert!(broken(|h| h.labels[0] = "b".into()).contains("twice"));
        assert!(broken(|h| h.preprocess.size = 64).contains("instead of 2048"));
        assert!(broken(|h| h.layers[1].kernel[3] = f32::INFINITY).contains("not finite"));
        assert!(broken(|h| drop(h.layers.pop())).contains("logits"));
        assert!(broken(|h| h.output = Output::Sigmoid).contains("two labels"));
        assert!(broken(|h| h.layers[0].inputs = u32::MAX).contains("inputs instead of"));
        assert!(broken(|h| h.layers[0].outputs = u32::MAX).contains("lacks weights"));
        assert!(broken(|h| h.decision.temperature = 0.0).contains("temperature"));
        assert!(broken(|h| h.decision.threshold = f32::NAN).contains("threshold"));
        assert!(broken(|h| h.preprocess.base.stride = 0).contains("gives 0 features"));
        let huge = broken(|h| {
            (h.preprocess.size, h.preprocess.base.size_max) = (1 << 31, 1 << 31);
            (h.preprocess.base.stride, h.preprocess.base.channels) = (1, u32::MAX);
        });
        assert!(huge.contains("features, not 1 to"), "{huge}");
        assert!(broken(|h| h.background = vec![3]).contains("background"));
        assert!(broken(|h| h.background = vec![1, 1]).contains("background"));
        assert!(broken(|h| h.layers[0].inputs = 2048).contains("instead of 512"));
    }
}
