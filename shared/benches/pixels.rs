//! From a camera's frame to the quantised input: what is paid for each frame beside the base.
//!
//! `cargo bench -p shared`

use divan::Bencher;
use shared::Base;
use shared::contract::{Fit, Preprocess};
use shared::conv::Kernel;
use shared::pixels::{Layout, PixelFormat, RawFrame, default_colour};
use shared::resize::Filter;

fn main() {
    divan::main();
}

/// 640x480 pixels, the centre square, to 64x64 or 224x224.
#[divan::bench(args = [(PixelFormat::Yuyv, 64), (PixelFormat::Nv12, 64), (PixelFormat::Rgb3, 64), (PixelFormat::Rggb, 64), (PixelFormat::Yuyv, 224)])]
fn quantise(bencher: Bencher, (format, size): (PixelFormat, u32)) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/vgg16-notop-int8.onnx");
    let base = Base::load(path.as_ref(), Kernel::Portable).unwrap_or_else(|e| panic!("{e}")).contract().clone();
    let quantiser = Preprocess { base, size, fit: Fit::Cover, resize: Filter::Bilinear }.quantiser();
    let layout = Layout::new(format, 640, 480, 0, default_colour(format)).unwrap_or_else(|e| panic!("{e}"));
    let bytes: Vec<u8> =
        (0..layout.frame_bytes() as u32).map(|v| (v.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    bencher.bench_local(|| {
        let frame = RawFrame::new(layout, divan::black_box(&bytes)).unwrap_or_else(|e| panic!("{e}"));
        quantiser.quantise(&frame)
    });
}
