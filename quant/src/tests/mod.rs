//! Import of the files of other programs, and quantization from end to end.

mod import;
mod quantize;

use vgg_edge::Image;
use vgg_edge::preprocess::Fit;

use crate::quantize::{Inputs, input, preprocess};
use crate::weights::{FloatBase, FloatLayer, Normalization, VGG16};

/// A pseudo-random stream of numbers from -1 to 1.
struct Numbers(fastrand::Rng);

impl Numbers {
    fn next(&mut self) -> f32 {
        2.0 * self.0.f32() - 1.0
    }
}

fn chain(shape: &[(&str, usize, usize, bool)], seed: u32) -> FloatBase {
    let mut numbers = Numbers(fastrand::Rng::with_seed(seed.into()));
    let layers = shape.iter().map(|&(name, inputs, outputs, pool)| {
        // He initialization, so that signals keep their magnitude.
        let size = (6.0 / (9.0 * inputs as f32)).sqrt();
        FloatLayer {
            name: name.into(),
            inputs,
            outputs,
            kernel: (0..9 * inputs * outputs).map(|_| size * numbers.next()).collect(),
            bias: (0..outputs).map(|_| 0.5 * numbers.next()).collect(),
            pool,
        }
    });
    FloatBase {
        layers: layers.collect(),
        normalization: Normalization::CAFFE,
        source: "a test".into(),
    }
}

fn vgg16() -> FloatBase {
    chain(&VGG16, 7)
}

fn small() -> FloatBase {
    chain(
        &[
            ("block1_conv1", 3, 16, false),
            ("block1_conv2", 16, 24, true),
            ("block2_conv1", 24, 20, true),
        ],
        3,
    )
}

/// Inputs of 32 pixels.
fn inputs_of(base: &FloatBase, frames: &[Image]) -> Inputs {
    let quantizer = preprocess(base, 32, Fit::Stretch).quantizer();
    let mut inputs = Inputs::default();
    frames.iter().for_each(|frame| inputs.push(input(&quantizer, 32, frame)));
    inputs
}

fn frames(count: usize, seed: u32) -> Vec<Image> {
    let mut numbers = Numbers(fastrand::Rng::with_seed(seed.into()));
    let image = |_| {
        let (a, b, c) = (numbers.next(), numbers.next(), numbers.next());
        let pixel = |at: usize| {
            let (x, y) = ((at / 3 % 40) as f32, (at / 120) as f32);
            let wave = (x * (0.3 + 0.2 * a) + y * 0.3 * b + (at % 3) as f32 * c).sin();
            (127.0 + 100.0 * wave + 20.0 * numbers.next()).clamp(0.0, 255.0) as u8
        };
        Image::new(40, 40, (0..4800).map(pixel).collect()).unwrap()
    };
    (0..count).map(image).collect()
}
