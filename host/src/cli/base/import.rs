//! `host base import`: converts weights to an f32 base.

use std::path::PathBuf;

use anyhow::Result;
use quant::weights::CANONICAL;
use serde_json::json;
use vgg_edge_cli::terminal::print_line;

/// Convert the weights of a VGG16 to its convolutional base in f32, as ONNX
///
/// A classifier on top is dropped. Every shape is checked. The preprocessing of the weights is
/// stored in the file.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    host base import vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5 -o vgg16.onnx\n  \
    host base import vgg16.safetensors -o vgg16.onnx          # from torchvision\n  \
    host base import classifier.onnx -o vgg16.onnx --preprocess tutorial")]
pub struct Args {
    #[command(flatten)]
    weights: super::WeightsOptions,

    /// Output file of the f32 base
    #[arg(short, long, value_name = "ONNX")]
    output: PathBuf,

    /// Print a JSON object
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
            "output": args.output,
            "parameters": base.parameters(),
            "layers": base.layers.len(),
            "source": base.source,
            "weights_sha256": digest,
            "canonical": canonical,
            "channel_order": n.channel_order.name(),
            "mean": n.mean,
            "std": n.std,
        }))?;
    } else {
        let origin =
            if canonical { "the ImageNet weights of VGG16" } else { "not the published weights" };
        print_line(format_args!(
            "{0}: {1} parameters, {origin} ({digest})\n\
             preprocessing: {2}, mean {3:?}, std {4:?}\n\
             next: host base quantize {0} --calibrate IMAGES -o int8.onnx",
            args.output.display(),
            base.parameters(),
            n.channel_order.name(),
            n.mean,
            n.std,
        ))?;
    }
    Ok(())
}
