//! `host base quantize`: quantizes an f32 base to the exact int8 base.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use quant::FloatBase;
use quant::calibrate::Method;
use quant::quantize::{Inputs, Options, QuantBase, input, preprocess, quantize};
use quant::round::Rounding;
use serde_json::json;
use vgg_edge::kernels::Kernel;
use vgg_edge::preprocess::Fit;
use vgg_edge::{Fingerprint, Image};
use vgg_edge_cli::terminal::{CancelToken, Interrupted, UsageError, print_line};

use crate::progress::Meter;

/// Quantize a base to int8, with ranges from calibration images
///
/// Weights become i8 with a scale per output channel, activations u8 with zero point 0 after ReLU.
/// The accumulator bounds over all possible images are proved to fit 32 bits, and stored in the
/// file. The same weights and images give the same bytes on every machine.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  host base quantize vgg16.onnx --calibrate photos -o int8.onnx\n  \
    host train photos -o head.postcard --base int8.onnx"
)]
pub struct Args {
    #[command(flatten)]
    weights: super::WeightsOptions,

    /// Directory of images like those to be classified, preferably 100 or more
    ///
    /// Subdirectories are included.
    #[arg(long, value_name = "DIR", help_heading = "Calibration")]
    calibrate: PathBuf,

    /// Output file of the int8 base
    #[arg(short, long, value_name = "ONNX")]
    output: PathBuf,

    /// Method for the range of a layer's output
    #[arg(
        long,
        value_enum,
        help_heading = "Quantization",
        default_value_t = MethodName::Percentile
    )]
    method: MethodName,

    /// Percentage of the values above 0 that stay in range, for --method percentile
    #[arg(long, value_name = "PERCENT", help_heading = "Quantization", default_value_t = 99.9999)]
    percentile: f64,

    /// Rounding of the weights
    #[arg(
        long,
        value_enum,
        help_heading = "Quantization",
        default_value_t = RoundingName::Compensated
    )]
    rounding: RoundingName,

    /// Maximum factor of the cross-layer equalization; 1 for none
    ///
    /// Channels that use a small part of their layer's range are scaled up.
    #[arg(long, value_name = "FACTOR", help_heading = "Quantization", default_value_t = 2.0)]
    equalize: f64,

    /// Correct each bias by the mean error of its channel's accumulators
    #[arg(long, help_heading = "Quantization")]
    bias_correction: bool,

    /// Input sizes to calibrate at, in pixels
    #[arg(
        long,
        value_name = "PIXELS",
        help_heading = "Calibration",
        value_delimiter = ',',
        default_value = "64,128"
    )]
    size: Vec<u32>,

    /// Maximum number of images for each size, spread evenly over the sorted files
    #[arg(
        long = "images",
        alias = "pictures",
        value_name = "N",
        help_heading = "Calibration",
        default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    images: u32,

    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// The values of `--method`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MethodName {
    /// The largest value
    Minmax,
    /// See --percentile
    Percentile,
    /// The lowest mean squared error
    Mse,
}

/// The values of `--rounding`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoundingName {
    /// Each weight to the nearest integer
    Nearest,
    /// Each weight compensates the errors of those before it (GPTQ)
    Compensated,
}

/// The fewest calibration images that are not warned about.
const FEW_IMAGES: usize = 32;

/// The resolved [`Args`].
struct Settings {
    weights: super::WeightsOptions,
    calibrate: PathBuf,
    images: usize,
    sizes: Vec<u32>,
    options: Options,
    threads: usize,
    output: PathBuf,
    json: bool,
}

impl Args {
    fn resolve(self) -> Result<Settings, UsageError> {
        let method = match self.method {
            MethodName::Minmax => Method::MinMax,
            MethodName::Mse => Method::Mse,
            MethodName::Percentile if self.percentile > 0.0 && self.percentile <= 100.0 => {
                Method::Percentile(self.percentile)
            }
            MethodName::Percentile => {
                return Err(UsageError(format!(
                    "--percentile {}: must be above 0 and at most 100",
                    self.percentile
                )));
            }
        };
        if !(1.0..=64.0).contains(&self.equalize) {
            return Err(UsageError(format!("--equalize {}: must be from 1 to 64", self.equalize)));
        }
        let options = Options {
            method,
            rounding: match self.rounding {
                RoundingName::Nearest => Rounding::Nearest,
                RoundingName::Compensated => Rounding::Compensated,
            },
            equalization: self.equalize,
            bias_correction: self.bias_correction,
        };
        Ok(Settings {
            weights: self.weights,
            calibrate: self.calibrate,
            images: self.images as usize,
            sizes: self.size,
            options,
            threads: self.threads.map_or(0, usize::from),
            output: self.output,
            json: self.json,
        })
    }
}

/// Runs the command.
pub fn run(args: Args, cancel: &CancelToken) -> Result<()> {
    let settings = args.resolve()?;
    let Settings { options, output, .. } = &settings;
    vgg_edge::durable_fs::check_writable(output)?;
    let base = settings.weights.load()?;
    let kernel = Kernel::detect()?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(settings.threads).build()?;
    let inputs = pool.install(|| settings.inputs(&base, cancel))?;
    let count = inputs.first().map_or(0, |inputs| inputs.real.len());
    if count < FEW_IMAGES {
        log::warn!(
            "only {count} calibration images: ranges may be too narrow, use 100 or more images"
        );
    }
    let bar = Meter::new(base.layers.len() as u64, "layers");
    let mut quantized = pool.install(|| {
        quantize(&base, inputs, options, kernel, |layer| {
            bar.next(layer);
            cancel.check().map_err(|_| quant::Error::Interrupted)
        })
        .map_err(|e| match e {
            quant::Error::Interrupted => anyhow::Error::from(Interrupted),
            e => e.into(),
        })
    })?;
    drop(bar);
    quantized.how = settings.record(count);
    let bytes = quant::onnx::int8_model(&quantized);
    // Both programs must accept the file.
    vgg_edge::Backbone::from_bytes(output, &bytes, kernel)?;
    vgg_edge::durable_fs::write_bytes(output, &bytes)?;
    if settings.json {
        print_json(output, &quantized, &bytes, count)
    } else {
        print_table(output, &quantized, &bytes)
    }
}

impl Settings {
    /// Reads the calibration images as inputs of each size.
    fn inputs(&self, base: &FloatBase, cancel: &CancelToken) -> Result<Vec<Inputs>> {
        let mut quantizers = Vec::new();
        for &size in &self.sizes {
            let preprocess = preprocess(base, size, Fit::Stretch);
            preprocess.base.check_size(size)?;
            quantizers.push((preprocess.quantizer(), size));
        }
        let each_size = |frame: &Image| {
            let inputs = quantizers.iter().map(|(quantizer, size)| input(quantizer, *size, frame));
            inputs.collect::<Vec<_>>()
        };
        let images = super::convert_images(&self.calibrate, self.images, cancel, each_size)?;
        let mut inputs: Vec<Inputs> = quantizers.iter().map(|_| Inputs::default()).collect();
        for image in images {
            inputs.iter_mut().zip(image).for_each(|(inputs, image)| inputs.push(image));
        }
        Ok(inputs)
    }

    /// The record of the quantization in the file, whose wording is part of the format.
    fn record(&self, count: usize) -> String {
        let Options { method, rounding, equalization, bias_correction } = &self.options;
        let rounding = match rounding {
            Rounding::Nearest => "to nearest",
            Rounding::Compensated => "with compensation (GPTQ)",
        };
        let bias_correction = if *bias_correction { "on" } else { "off" };
        let sizes: Vec<String> = self.sizes.iter().map(u32::to_string).collect();
        format!(
            "host base quantize: ranges by {method}, weights rounded {rounding}, \
             equalisation up to {equalization}, bias correction {bias_correction}, \
             {count} pictures at {} px",
            sizes.join(" and "),
        )
    }
}

fn print_json(output: &Path, quantized: &QuantBase, bytes: &[u8], count: usize) -> Result<()> {
    let layers = quantized.layers.iter().map(|layer| {
        json!({
            "name": layer.conv.name,
            "scale": layer.output_scale,
            "largest": layer.largest,
            "accumulator": layer.bounds(),
        })
    });
    print_line(json!({
        "output": output,
        "fingerprint": Fingerprint::of(bytes).to_string(),
        "bytes": bytes.len(),
        "pictures": count,
        "layers": layers.collect::<Vec<_>>(),
    }))?;
    Ok(())
}

fn print_table(output: &Path, quantized: &QuantBase, bytes: &[u8]) -> Result<()> {
    print_line(format_args!(
        "{:<14}{:>12}{:>14}{:>28}",
        "layer", "scale", "clipped at", "accumulator bounds"
    ))?;
    for layer in &quantized.layers {
        let (low, high) = layer.bounds();
        print_line(format_args!(
            "{:<14}{:>12.5}{:>12.0} %{:>28}",
            layer.conv.name,
            layer.output_scale,
            100.0 * 255.0 * layer.output_scale / layer.largest,
            format!("{low} to {high}"),
        ))?;
    }
    print_line(format_args!(
        "{}: {} bytes, fingerprint {}",
        output.display(),
        bytes.len(),
        Fingerprint::of(bytes)
    ))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn record_of_the_quantization_keeps_its_wording() {
        let args =
            ["host", "w.onnx", "--calibrate", "d", "-o", "x", "--pictures", "4", "--size", "32,64"];
        let settings = Cli::parse_from(args).args.resolve().unwrap();
        assert_eq!(settings.images, 4);
        assert_eq!(
            settings.record(4),
            "host base quantize: ranges by percentile 99.9999, weights rounded with \
             compensation (GPTQ), equalisation up to 2, bias correction off, 4 pictures at 32 and \
             64 px"
        );
    }
}
