//! The head on features of the f32 base, which shows the cost of int8.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use quant::FloatBase;
use quant::float::{FloatNet, Map};
use rayon::prelude::*;
use vgg_edge::{Backbone, Head};
use vgg_edge_cli::terminal::CancelToken;

use super::prediction::{Prediction, softmax};
use crate::progress::Meter;

/// The f32 weights that a base was quantized from.
pub struct FloatReference {
    path: PathBuf,
    base: FloatBase,
}

/// The predictions of a head on f32 features.
pub struct FloatPredictions {
    /// The weights.
    pub path: PathBuf,
    /// The predicted class for each of the measured images, in their order; `None` if the file
    /// could not be read again.
    pub predicted: Vec<Option<usize>>,
}

impl FloatReference {
    /// Reads the weights, and checks that their preprocessing is the base's.
    ///
    /// # Errors
    /// Weights that cannot be read, or that preprocess images differently.
    pub fn load(path: &Path, int8: &Backbone) -> Result<Self> {
        let base = quant::import::import(path, None)?;
        let (n, input) = (base.normalization, int8.contract());
        if (n.channel_order, n.mean, n.std) != (input.channel_order, input.mean, input.std) {
            bail!(
                "{} and {} preprocess images differently; if the base was quantized from these \
                 weights, import them with `host base import --preprocess` and pass that file",
                path.display(),
                int8.path().display()
            );
        }
        Ok(Self { path: path.to_owned(), base })
    }

    /// Classifies the images of a split by their f32 features.
    ///
    /// # Errors
    /// [`vgg_edge_cli::terminal::Interrupted`].
    pub fn predict(
        &self,
        head: &Head,
        predictions: &[Prediction],
        split: usize,
        cancel: &CancelToken,
    ) -> Result<FloatPredictions> {
        let net = FloatNet::new(&self.base);
        let quantizer = head.preprocess.quantizer();
        let side = head.preprocess.size as usize;
        let measured: Vec<&Prediction> =
            predictions.iter().filter(|prediction| prediction.split == split).collect();
        log::info!("extracting f32 features of {} images", measured.len());
        let bar = Meter::new(measured.len() as u64, "images");
        let predict = |prediction: &&Prediction| -> Result<Option<usize>> {
            cancel.check()?;
            let Ok(frame) = vgg_edge::image::decode::decode_file(&prediction.file) else {
                return Ok(None);
            };
            let input =
                Map { height: side, width: side, channels: 3, data: quantizer.normalize(&frame) };
            let logits = head.logits_of(&net.features(&input).data);
            let scores = softmax(head.output, &logits);
            // The first of equals, as in a head's decision.
            Ok((0..scores.len()).rev().max_by(|&a, &b| scores[a].total_cmp(&scores[b])))
        };
        let predicted = measured
            .par_iter()
            .map(|prediction| predict(prediction).inspect(|_| bar.inc(1)))
            .collect::<Result<_>>()?;
        Ok(FloatPredictions { path: self.path.clone(), predicted })
    }
}
