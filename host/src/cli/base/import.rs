//! `host base import`: weights of another program to an f32 base.

use std::path::PathBuf;

use anyhow::Result;
use quant::weights::CANONICAL;
use serde_json::json;
use vgg_edge_cli::terminal::print_line;

/// Reads the weights of a VGG16 and writes its convolutional base as ONNX, in f32
///
/// A classifier on top is dropped. Every shape is checked. The pre-processing of the weights
/// travels in the file.
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
    vgg_edge::durable_fs::check_writable(&args.output)?;
    let base = args.weights.load()?;
    let bytes = quant::onnx::float_model(&base);
    vgg_edge::durable_fs::write_bytes(&args.output, &bytes)?;
    let n = base.normalization;
    let digest = base.digest().to_string();
    let canonical = digest == CANONICAL;
    if args.json {
        print_line(json!({
            "output": args.output, "parameters": base.parameters(), "layers": base.layers.len(), "source": base.source,
            "weights_sha256": digest, "canonical": canonical,
            "channel_order": n.channel_order.name(), "mean": n.mean, "std": n.std,
        }))?;
    } else {
        let words =
            if canonical { "the ImageNet weights of VGG16" } else { "weights of their own" };
        print_line(format_args!(
            "{}: {} parameters, {words} ({})\npre-processing: {}, mean {:?}, std {:?}\nnext: host base quantize {} --calibrate PICTURES -o int8.onnx",
            args.output.display(),
            base.parameters(),
            digest,
            n.channel_order.name(),
            n.mean,
            n.std,
            args.output.display(),
        ))?;
    }
    Ok(())
}
