//! Classifies many images at a time: one pass through the backbone for a batch of images, with
//! several threads. The scores are the same as one by one, bit for bit.
//!
//! `cargo run -p vgg-edge --example batch -- BACKBONE HEAD IMAGE...`

use std::error::Error;

use vgg_edge::backbone::thread_pool;
use vgg_edge::{Backbone, Head, Image};

/// Images per pass. Small inputs gain most, because they share the transformed weights.
const BATCH: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [backbone, head, images @ ..] = &args[..] else {
        return Err("usage: batch BACKBONE HEAD IMAGE...".into());
    };
    print!("{}", run(backbone, head, images)?);
    Ok(())
}

/// Returns a line for each image: the file, the label and its score.
pub fn run(backbone: &str, head: &str, images: &[String]) -> Result<String, Box<dyn Error>> {
    let backbone = Backbone::open(backbone)?;
    let head = Head::open(head)?;
    head.check_base(&backbone)?;

    let quantizer = head.preprocess.quantizer();
    let threads = std::thread::available_parallelism()?.get();
    let mut runner = backbone.runner(thread_pool(threads)?)?;

    let mut lines = String::new();
    for paths in images.chunks(BATCH) {
        let mut inputs = Vec::with_capacity(paths.len() * head.preprocess.input_len());
        for path in paths {
            inputs.extend(quantizer.quantize(&Image::open(path)?));
        }
        let maps = runner.batch(&inputs, paths.len(), head.preprocess.size)?;
        for (path, map) in paths.iter().zip(maps.chunks_exact(head.preprocess.feature_len())) {
            let scores = head.scores(map);
            let (best, label) = head.decide(&scores, head.decision.threshold);
            lines += &format!("{path}\t{label}\t{:.3}\n", scores[best]);
        }
    }
    Ok(lines)
}
