//! Computes features without a head, for a classifier of one's own: the mean of each channel of
//! the feature map.
//!
//! `cargo run -p vgg-edge --example features -- BACKBONE SIZE IMAGE...`

use std::error::Error;

use vgg_edge::head::Pool;
use vgg_edge::preprocess::{Fit, Preprocess};
use vgg_edge::{Backbone, Image};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [backbone, size, images @ ..] = &args[..] else {
        return Err("usage: features BACKBONE SIZE IMAGE...".into());
    };
    for (path, features) in images.iter().zip(run(backbone, size.parse()?, images)?) {
        let numbers: Vec<String> = features.iter().map(f32::to_string).collect();
        println!("{path}\t{}", numbers.join(" "));
    }
    Ok(())
}

/// Returns the features of each image: one f32 per channel, 512 for VGG16.
pub fn run(backbone: &str, size: u32, images: &[String]) -> Result<Vec<Vec<f32>>, Box<dyn Error>> {
    let backbone = Backbone::open(backbone)?;
    let spec = backbone.contract().clone();
    let filter = spec.resize;
    let preprocess = Preprocess::new(spec, size, Fit::Cover, filter)?;
    let quantizer = preprocess.quantizer();
    let mut runner = backbone.runner(None)?;

    let mut all = Vec::with_capacity(images.len());
    for path in images {
        let input = quantizer.quantize(&Image::open(path)?);
        let map = runner.features(&input, size)?;
        let mut features = vec![0.0; Pool::Avg.len(&preprocess)];
        Pool::Avg.features(&map, backbone.feature_scales(), &mut features);
        all.push(features);
    }
    Ok(all)
}
