//! From a camera's frame to the quantized input: the cost of each frame beside the backbone.
//!
//! `cargo bench -p vgg-edge`

use divan::Bencher;
use vgg_edge::Backbone;
use vgg_edge::image::resize::Filter;
use vgg_edge::kernels::Kernel;
use vgg_edge::pixel::{Layout, PixelFormat, RawFrame, default_color};
use vgg_edge::preprocess::{Fit, Preprocess};

fn main() {
    divan::main();
}

const CASES: [(PixelFormat, u32); 5] = [
    (PixelFormat::Yuyv, 64),
    (PixelFormat::Nv12, 64),
    (PixelFormat::Rgb3, 64),
    (PixelFormat::Rggb, 64),
    (PixelFormat::Yuyv, 224),
];

/// 640x480 pixels, the center square, to 64x64 or 224x224.
#[divan::bench(args = CASES)]
fn quantize(bencher: Bencher, (format, size): (PixelFormat, u32)) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/vgg16-notop-int8.onnx");
    let base = Backbone::load(path.as_ref(), Kernel::PORTABLE)
        .unwrap_or_else(|e| panic!("{e}"))
        .contract()
        .clone();
    let quantizer =
        Preprocess { base, size, fit: Fit::Cover, resize: Filter::Bilinear }.quantizer();
    let layout =
        Layout::new(format, 640, 480, 0, default_color(format)).unwrap_or_else(|e| panic!("{e}"));
    let bytes: Vec<u8> = (0..layout.frame_bytes() as u32)
        .map(|v| (v.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    bencher.bench_local(|| {
        let frame =
            RawFrame::new(layout, divan::black_box(&bytes)).unwrap_or_else(|e| panic!("{e}"));
        quantizer.quantize(&frame)
    });
}
