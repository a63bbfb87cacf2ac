//! The head: dense layers on the feature map, to scores and a decision. The same code on host and
//! device.

mod file;
mod pool;

use serde::{Deserialize, Serialize};

use crate::preprocess::Preprocess;
use crate::{Backbone, Error, Fingerprint, Result};

pub use file::{FORMAT, MAX_BYTES, format_of};
pub use pool::Pool;

/// What is said when no score reaches the threshold.
pub const UNKNOWN: &str = "unknown";

/// Most classes that a head may have.
pub const MAX_LABELS: usize = 10_000;

/// Most values of a feature map: 32 times those of VGG16 at its largest size, 4,096 pixels.
const MAX_FEATURES: u64 = 1 << 28;

/// A trained head and all that it was trained with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// The base it belongs to.
    pub base: Fingerprint,
    /// How pictures reach that base.
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
    /// How it came into being.
    pub training: TrainingRecord,
    /// What the layers see of the feature map.
    pub pool: Pool,
    /// Indices of the labels that mean that nothing of interest is there ([`is_background_name`]),
    /// ascending.
    pub background: Vec<u32>,
}

/// Whether a class of that name stands for nothing of interest: `none`, `background` or `unknown`,
/// in any case.
pub fn is_background_name(name: &str) -> bool {
    ["none", "background", UNKNOWN].iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// A dense layer: `y = activation(x * kernel + bias)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dense {
    /// Values in.
    pub inputs: u32,
    /// Values out (units).
    pub outputs: u32,
    /// What follows the sum.
    pub activation: Activation,
    /// Weights `[inputs, outputs]`, row by row, as Keras has them.
    pub kernel: Vec<f32>,
    /// One for each output.
    pub bias: Vec<f32>,
}

/// What follows a dense sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// Nothing.
    Linear,
    /// `max(x, 0)`.
    Relu,
}

/// How logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Two classes, one logit: the score of the second is `1 / (1 + exp(-logit))`, that of the
    /// first what is left.
    Sigmoid,
    /// One logit a class: `exp(logit) / sum of exp`.
    Softmax,
}

/// How scores become a decision.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Divides the logits; 1 leaves them as they are.
    pub temperature: f32,
    /// The best score must reach this, or the answer is [`UNKNOWN`]; 0 to 1.
    pub threshold: f32,
}

impl Default for Decision {
    fn default() -> Self {
        Self { temperature: 1.0, threshold: 0.0 }
    }
}

/// How a head came into being; words for people, and no part of inference.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainingRecord {
    /// Day of the training, UTC, or that of `SOURCE_DATE_EPOCH`.
    pub date: String,
    /// Program and version.
    pub program: String,
    /// Seed of every random choice.
    pub seed: u64,
    /// Optimizer, learning rate, epochs, batch size, dropout, in one line.
    pub settings: String,
    /// Pictures trained on, a class.
    pub train_counts: Vec<u32>,
    /// Pictures validated on, a class.
    pub val_counts: Vec<u32>,
    /// Files that were left out because they could not be read.
    pub skipped: u32,
    /// SHA-256 over the contents and classes of all pictures.
    pub data: Option<Fingerprint>,
    /// The epoch whose weights were kept, from 1.
    pub best_epoch: u32,
    /// Results of the kept weights.
    pub metrics: Metrics,
}

/// Accuracy (0 to 1) and mean cross-entropy in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// On the training pictures, without dropout.
    pub accuracy: f64,
    /// On the training pictures, without dropout.
    pub loss: f64,
    /// On the validation pictures, if there were any.
    pub val_accuracy: Option<f64>,
    /// On the validation pictures, if there were any.
    pub val_loss: Option<f64>,
}

impl Dense {
    /// The layer's output, each sum in the order of the inputs, without fused multiply-add.
    fn forward(&self, inputs: impl Iterator<Item = f32>) -> Vec<f32> {
        let outputs = self.outputs as usize;
        let mut sums = vec![0.0f32; outputs];
        for (input, kernel) in inputs.zip(self.kernel.chunks_exact(outputs)) {
            // A product with 0 adds nothing to the bits: weights are finite and a sum that starts
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

/// The index of the best score; the first of equals.
pub fn best(scores: &[f32]) -> usize {
    let mut best = 0;
    for (index, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = index;
        }
    }
    best
}

/// The features of a quantized feature map, channels last, with a scale for each channel.
pub fn dequantize(features: &[u8], scales: &[f32]) -> impl Iterator<Item = f32> {
    features.iter().zip(scales.iter().cycle()).map(|(&q, scale)| f32::from(q) * scale)
}

impl Head {
    /// Whether this head may run on that base, with the contract it was trained with.
    ///
    /// # Errors
    /// [`Error::WrongBase`].
    pub fn check_base(&self, base: &Backbone) -> Result<()> {
        // The fingerprint covers weights and contract; the rest guards against a head made by hand.
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

    /// The logits of a quantized feature map, before the temperature.
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

    /// The logits of a feature map in f32, channels last, before the temperature: what an f32 base
    /// would give.
    pub fn logits_of(&self, features: &[f32]) -> Vec<f32> {
        self.dense(self.pool.real(features, self.feature_scales.len()).into_iter())
    }

    fn dense(&self, features: impl Iterator<Item = f32>) -> Vec<f32> {
        let mut layers = self.layers.iter();
        let Some(first) = layers.next() else { return Vec::new() };
        layers.fold(first.forward(features), |values, layer| layer.forward(values.into_iter()))
    }

    /// The scores of a quantized feature map, in the order of the labels; they add up to 1 but for
    /// rounding.
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

    /// The index of the best score (the first of equals), and the label to say: [`UNKNOWN`] below
    /// `threshold`.
    pub fn decide(&self, scores: &[f32], threshold: f32) -> (usize, &str) {
        let best = best(scores);
        let sure = scores.get(best).is_some_and(|&score| score >= threshold);
        (best, if sure { &self.labels[best] } else { UNKNOWN })
    }

    /// Whether that label means that nothing of interest is there.
    pub fn is_background(&self, label: &str) -> bool {
        self.background
            .iter()
            .any(|&index| self.labels.get(index as usize).is_some_and(|name| name == label))
    }

    /// Holds all parts against each other.
    ///
    /// # Errors
    /// A sentence that names the part.
    pub fn check(&self) -> Result<(), String> {
        let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
        let (base, decision) = (&self.preprocess.base, &self.decision);
        base.check_size(self.preprocess.size).map_err(|e| e.to_string())?;
        // In 64 bits: what is declared need not fit the machine's.
        let side = u64::from(self.preprocess.size.checked_div(base.stride).unwrap_or(0));
        let features = side.saturating_mul(side).saturating_mul(base.channels.into());
        if !(1..=MAX_FEATURES).contains(&features) {
            return Err(format!("its base gives {features} features, not 1 to {MAX_FEATURES}"));
        }
        let contract = finite(&base.mean) && base.std.iter().all(|s| s.is_finite() && *s > 0.0);
        if !(contract && base.scale.is_normal() && base.scale > 0.0) {
            return Err("its pre-processing is not of finite numbers".into());
        }
        if self.feature_scales.len() != base.channels as usize {
            return Err(format!(
                "{} feature scales for {} channels",
                self.feature_scales.len(),
                base.channels
            ));
        }
        if !self.feature_scales.iter().all(|scale| scale.is_normal() && *scale > 0.0) {
            return Err("a feature scale is not a positive number".into());
        }
        if !(2..=MAX_LABELS).contains(&self.labels.len()) {
            return Err(format!("it has {} labels, not 2 to {MAX_LABELS}", self.labels.len()));
        }
        let mut sorted: Vec<_> = self.labels.iter().collect();
        sorted.sort_unstable();
        if sorted[0].is_empty() || sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("a label is empty or occurs twice".into());
        }
        if self.background.iter().any(|&label| label as usize >= self.labels.len())
            || self.background.windows(2).any(|pair| pair[0] >= pair[1])
        {
            return Err("a background class is not one of its labels".into());
        }
        let mut width = self.pool.len(&self.preprocess) as u64;
        for (index, layer) in self.layers.iter().enumerate() {
            let (inputs, outputs) = (u64::from(layer.inputs), u64::from(layer.outputs));
            if inputs != width || outputs == 0 {
                return Err(format!("layer {index} takes {inputs} values, but {width} come in"));
            }
            if layer.kernel.len() as u64 != inputs * outputs || layer.bias.len() as u64 != outputs {
                return Err(format!("layer {index} lacks weights for {inputs} x {outputs}"));
            }
            if !finite(&layer.kernel) || !finite(&layer.bias) {
                return Err(format!("layer {index} has weights that are not finite"));
            }
            width = outputs;
        }
        let expected = match self.output {
            Output::Sigmoid if self.labels.len() == 2 => 1,
            Output::Sigmoid => return Err("a sigmoid output needs two labels".into()),
            Output::Softmax => self.labels.len() as u64,
        };
        if self.layers.last().is_none_or(|last| last.activation != Activation::Linear)
            || width != expected
        {
            return Err(format!("its last layer gives {width} logits, not {expected}"));
        }
        if !(decision.temperature.is_normal() && decision.temperature > 0.0) {
            return Err("its temperature is not a positive number".into());
        }
        if !(0.0..=1.0).contains(&decision.threshold) {
            return Err("its threshold is not within 0 to 1".into());
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::image::resize::Filter;
    use crate::preprocess::{Fit, tests::caffe};

    /// A head of two layers with simple numbers.
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
    fn scores_are_those_of_the_formulae() {
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

    /// Bits that every architecture must give; recorded on x86-64 and run on ARM under QEMU.
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

    /// The same, of 2 x 2 places that are pooled to one.
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
    fn background_goes_by_the_name() {
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
    fn contradictions_are_found() {
        let broken = |breaks: fn(&mut Head)| {
            let mut head = example(&["a", "b", "c"]);
            breaks(&mut head);
            head.check().unwrap_err()
        };
        assert!(
            broken(|h| h.feature_scales.truncate(1)).contains("1 feature scales for 512 channels")
        );
        assert!(broken(|h| h.feature_scales[9] = 0.0).contains("feature scale"));
        assert!(broken(|h| h.labels.truncate(1)).contains("1 labels"));
        assert!(broken(|h| h.labels[0] = "b".into()).contains("twice"));
        assert!(broken(|h| h.preprocess.size = 64).contains("but 2048 come in"));
        assert!(broken(|h| h.layers[1].kernel[3] = f32::INFINITY).contains("not finite"));
        assert!(broken(|h| drop(h.layers.pop())).contains("logits"));
        assert!(broken(|h| h.output = Output::Sigmoid).contains("two labels"));
        assert!(broken(|h| h.layers[0].inputs = u32::MAX).contains("come in"));
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
        assert!(broken(|h| h.layers[0].inputs = 2048).contains("but 512 come in"));
    }
}
