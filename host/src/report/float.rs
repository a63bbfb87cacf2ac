//! The same head on the features of the f32 base: what int8 costs.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use quant::FloatBase;
use quant::float::{FloatNet, Map};
use rayon::prelude::*;
use vgg_edge::{Backbone, Head};
use vgg_edge_cli::terminal::{Interrupted, interrupted, note};

use super::{Picture, softmax};
use crate::PROGRAM;
use crate::progress::Progress;

/// The f32 weights that a base was made of.
pub struct FloatReference {
    path: PathBuf,
    base: FloatBase,
}

/// What the head says on f32 features.
pub struct FloatAnswers {
    /// The weights.
    pub path: PathBuf,
    /// The class answered for each of the measured pictures, in their order; `None` if the file
    /// could not be read again.
    pub said: Vec<Option<usize>>,
}

impl FloatReference {
    /// Reads the weights and holds their pre-processing against the base's.
    ///
    /// # Errors
    /// Weights that cannot be read or that see pictures otherwise.
    pub fn load(path: &Path, int8: &Backbone) -> Result<Self> {
        let base = quant::import::import(path, None)?;
        let (n, contract) = (base.normalization, int8.contract());
        if (n.channel_order, n.mean, n.std) != (contract.channel_order, contract.mean, contract.std)
        {
            bail!(
                "{} and {} pre-process pictures differently; if the weights are those it was made of, say so with `host base import \
                 --preprocess` and give that file",
                path.display(),
                int8.path().display()
            );
        }
        Ok(Self { path: path.to_owned(), base })
    }

    /// Asks the head about the pictures of a part on their f32 features.
    ///
    /// # Errors
    /// Ctrl-C.
    pub fn answers(&self, head: &Head, pictures: &[Picture], part: usize) -> Result<FloatAnswers> {
        let net = FloatNet::new(&self.base);
        let quantizer = head.preprocess.quantizer();
        let side = head.preprocess.size as usize;
        let measured: Vec<&Picture> =
            pictures.iter().filter(|picture| picture.part == part).collect();
        note(PROGRAM, format_args!("f32 features of {} pictures", measured.len()));
        let bar = Progress::new(measured.len() as u64, "pictures");
        let answer = |picture: &&Picture| -> Result<Option<usize>> {
            if interrupted() {
                return Err(Interrupted.into());
            }
            let Ok(frame) = vgg_edge::image::decode::decode_file(&picture.file) else {
                return Ok(None);
            };
            let input =
                Map { height: side, width: side, channels: 3, data: quantizer.normalize(&frame) };
            let logits = head.logits_of(&net.features(&input).data);
            let scores = softmax(head.output, &logits);
            // The first of equals, as in a head's decision.
            Ok((0..scores.len()).rev().max_by(|&a, &b| scores[a].total_cmp(&scores[b])))
        };
        let said = measured
            .par_iter()
            .map(|picture| answer(picture).inspect(|_| bar.inc(1)))
            .collect::<Result<_>>()?;
        Ok(FloatAnswers { path: self.path.clone(), said })
    }
}
