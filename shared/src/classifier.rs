//! From an image to a decision: the pipeline of `host classify` and `edge`.

use std::sync::Arc;
use std::time::Instant;

use crate::backbone::Runner;
use crate::image::resize::Rect;
use crate::pixel::Pixels;
use crate::preprocess::{Fit, Quantizer};
use crate::{Backbone, Error, Fingerprint, Head, Result};

/// A backbone and a head, ready to classify images.
///
/// It has its own working memory, so each thread takes its own. Backbone and head are shared.
pub struct Classifier {
    head: Arc<Head>,
    threshold: f32,
    quantizer: Quantizer,
    runner: Runner,
    with_digest: bool,
}

/// The result for one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Classification {
    /// The label with the best score; [`crate::head::UNKNOWN`] below the threshold.
    pub label: String,
    /// The best score, 0 to 1.
    pub score: f32,
    /// All scores, 0 to 1, in the order of [`Head::labels`].
    pub scores: Vec<f32>,
    /// Time from the decoded image to the result, in milliseconds.
    pub latency_ms: f64,
    /// SHA-256 of the quantized feature map, if [`Classifier::set_digest`] asked for it.
    pub digest: Option<Fingerprint>,
}

impl Classifier {
    /// Joins a backbone and a head that was trained on it, to run on the calling thread.
    ///
    /// # Errors
    /// [`Error::WrongBase`] if the head was trained on another backbone; [`Error::Engine`].
    pub fn new(backbone: &Backbone, head: impl Into<Arc<Head>>) -> Result<Self> {
        Self::with_pool(backbone, head, None)
    }

    /// As [`Classifier::new`], with the layers of the backbone divided among the threads of `pool`
    /// ([`thread_pool`](crate::backbone::thread_pool)). The results are the same, bit for bit.
    ///
    /// # Errors
    /// As [`Classifier::new`].
    pub fn with_pool(
        backbone: &Backbone,
        head: impl Into<Arc<Head>>,
        pool: Option<Arc<rayon::ThreadPool>>,
    ) -> Result<Self> {
        let head = head.into();
        head.check_base(backbone)?;
        let (quantizer, threshold) = (head.preprocess.quantizer(), head.decision.threshold);
        let runner = backbone.runner(pool)?;
        Ok(Self { quantizer, threshold, runner, head, with_digest: false })
    }

    /// Sets the crop of each image, and how the crop is fitted to the square input. `None` keeps
    /// the whole image, and the fit that the head was trained with.
    pub fn set_view(&mut self, crop: Option<Rect>, fit: Option<Fit>) {
        self.quantizer.set_crop(crop);
        if let Some(fit) = fit {
            self.quantizer.set_fit(fit);
        }
    }

    /// Replaces the threshold of the head: the score, 0 to 1, that the best label must reach.
    pub fn set_threshold(&mut self, threshold: f32) {
        self.threshold = threshold;
    }

    /// Returns the score that the best label must reach.
    pub fn threshold(&self) -> f32 {
        self.threshold
    }

    /// Sets whether each result has the digest of its feature map, to compare machines.
    pub fn set_digest(&mut self, with_digest: bool) {
        self.with_digest = with_digest;
    }

    /// Returns the head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Returns the quantized input of an image: u8, channels first, `[3, size, size]`.
    ///
    /// # Errors
    /// [`Error::Image`] if the crop lies outside the image.
    pub fn quantize(&self, pixels: &dyn Pixels) -> Result<Vec<u8>> {
        let (width, height) = (pixels.width(), pixels.height());
        if self.quantizer.source(width, height).is_none() {
            return Err(Error::Image(format!("the crop lies outside its {width}x{height} pixels")));
        }
        Ok(self.quantizer.quantize(pixels))
    }

    /// Classifies an image: an [`Image`](crate::Image) or a
    /// [`RawFrame`](crate::pixel::RawFrame).
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

    /// Classifies a quantized input, as [`Classifier::quantize`] returns it.
    ///
    /// # Errors
    /// [`Error::Engine`], also for an input of another length.
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

impl std::fmt::Debug for Classifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Classifier")
            .field("labels", &self.head.labels)
            .field("threshold", &self.threshold)
            .finish_non_exhaustive()
    }
}
