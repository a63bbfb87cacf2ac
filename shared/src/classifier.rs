//! Image to decision: what `host classify` and `edge` both run.

use std::sync::Arc;
use std::time::Instant;

use crate::backbone::Runner;
use crate::image::resize::Rect;
use crate::pixel::Pixels;
use crate::preprocess::Fit;
use crate::preprocess::Quantizer;
use crate::{Backbone, Error, Fingerprint, Head, Result};

/// A base and a head at work.
pub struct Classifier {
    head: Arc<Head>,
    threshold: f32,
    quantizer: Quantizer,
    runner: Runner,
    with_digest: bool,
}

/// The answer for one frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Classification {
    /// The label to say; [`crate::head::UNKNOWN`] below the threshold.
    pub label: String,
    /// The best score, 0 to 1.
    pub score: f32,
    /// All scores, in the order of the head's labels.
    pub scores: Vec<f32>,
    /// Time from the decoded frame to the answer, in milliseconds.
    pub latency_ms: f64,
    /// SHA-256 of the quantized feature map, if it was asked for.
    pub digest: Option<Fingerprint>,
}

impl Classifier {
    /// Joins a base and a head that belongs to it; `pool` as in [`Backbone::runner`].
    ///
    /// # Errors
    /// [`crate::Error::WrongBase`], [`crate::Error::Engine`].
    pub fn new(
        base: &Backbone,
        head: Arc<Head>,
        pool: Option<Arc<rayon::ThreadPool>>,
    ) -> Result<Self> {
        head.check_base(base)?;
        let (quantizer, threshold) = (head.preprocess.quantizer(), head.decision.threshold);
        Ok(Self { quantizer, threshold, runner: base.runner(pool)?, head, with_digest: false })
    }

    /// Sets the part of an image that is used, and how it is fitted to the square input; `None`
    /// keeps the whole image, and the fit the head was trained with.
    pub fn set_view(&mut self, crop: Option<Rect>, fit: Option<Fit>) {
        self.quantizer.set_crop(crop);
        if let Some(fit) = fit {
            self.quantizer.set_fit(fit);
        }
    }

    /// Sets the score that the best label must reach, 0 to 1, in place of the head's own.
    pub fn set_threshold(&mut self, threshold: f32) {
        self.threshold = threshold;
    }

    /// The score that the best label must reach.
    pub fn threshold(&self) -> f32 {
        self.threshold
    }

    /// Whether each answer shall carry the digest of its feature map, to compare machines in the
    /// field.
    pub fn set_digest(&mut self, with_digest: bool) {
        self.with_digest = with_digest;
    }

    /// The head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The quantized input of a picture: u8, `[3, size, size]`.
    ///
    /// # Errors
    /// [`Error::Picture`] if the crop lies outside of it.
    pub fn quantize(&self, pixels: &dyn Pixels) -> Result<Vec<u8>> {
        let (width, height) = (pixels.width(), pixels.height());
        if self.quantizer.source(width, height).is_none() {
            return Err(Error::Picture(format!(
                "the crop lies outside of its {width}x{height} pixels"
            )));
        }
        Ok(self.quantizer.quantize(pixels))
    }

    /// Classifies a picture.
    ///
    /// # Errors
    /// As [`Classifier::quantize`] and [`Classifier::classify_input`].
    pub fn classify(&mut self, pixels: &dyn Pixels) -> Result<Classification> {
        let start = Instant::now();
        let input = self.quantize(pixels)?;
        let mut result = self.classify_input(&input)?;
        result.latency_ms = start.elapsed().as_secs_f64() * 1e3;
        Ok(result)
    }

    /// Classifies a quantized input.
    ///
    /// # Errors
    /// [`Error::Engine`].
    pub fn classify_input(&mut self, input: &[u8]) -> Result<Classification> {
        let start = Instant::now();
        let features = self.runner.features(input, self.head.preprocess.size)?;
        let scores = self.head.scores(&features);
        let (best, label) = self.head.decide(&scores, self.threshold);
        let label = label.to_owned();
        let latency_ms = start.elapsed().as_secs_f64() * 1e3;
        let digest = self.with_digest.then(|| Fingerprint::of(&features));
        Ok(Classification { label, score: scores[best], scores, latency_ms, digest })
    }
}
