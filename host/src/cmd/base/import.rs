//! `host base import`: weights of another program to an f32 base.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;
use shared::Error;
use shared::cli::print_line;

/// Reads the weights of a VGG16 and writes its convolutional base as ONNX, in f32
///
/// A classifier on top is dropped. Every shape is checked. The pre-processing of the weights travels in the file.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    host base import vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5 -o vgg16.onnx\n  \
    host base import vgg16.safetensors -o vgg16.onnx          # torchvision's\n  \
    host base import classifier.onnx -o vgg16.onnx --preprocess tutorial")]
pub struct Args {
    #[command(flatten)]
    weights: super::Weights,

    /// Where the f32 base goes
    #[arg(short, long, value_name = "ONNX")]
    output: PathBuf,

    /// Prints one object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    shared::fs::check_writable(&args.output)?;
    let base = args.weights.load()?;
    let bytes = quant::onnx::float_model(&base);
    shared::fs::write_atomic::<anyhow::Error>(&args.output, |file| {
        file.write_all(&bytes).map_err(|e| Error::io("write", &args.output)(e).into())
    })?;
    let n = base.normalisation;
    if args.json {
        print_line(json!({
            "output": args.output, "parameters": base.parameters(), "layers": base.layers.len(), "source": base.source,
            "weights_sha256": base.digest().to_string(), "canonical": base.is_canonical(),
            "channel_order": n.channel_order.name(), "mean": n.mean, "std": n.std,
        }))?;
    } else {
        let words = if base.is_canonical() { "the ImageNet weights of VGG16" } else { "weights of their own" };
        print_line(format_args!(
            "{}: {} parameters, {words} ({})\npre-processing: {}, mean {:?}, std {:?}\nnext: host base quantize {} --calibrate PICTURES -o int8.onnx",
            args.output.display(),
            base.parameters(),
            base.digest(),
            n.channel_order.name(),
            n.mean,
            n.std,
            args.output.display(),
        ))?;
    }
    Ok(())
}
