//! `host base quantize`: an f32 base to the exact int8 base.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use quant::calibrate::Method;
use quant::quantize::{Inputs, Options, input, preprocess, quantize};
use quant::round::Rounding;
use serde_json::json;
use vgg_edge::kernels::Kernel;
use vgg_edge::preprocess::Fit;
use vgg_edge::{Fingerprint, Image};
use vgg_edge_cli::terminal::{Interrupted, UsageError, interrupted, note, print_line};

use crate::PROGRAM;
use crate::progress::Progress;

/// Quantizes a base to int8, with ranges from calibration pictures
///
/// Weights become i8 with a scale for each output channel, activations u8 with zero point 0 after
/// ReLU. The sums that any picture can reach are proved to fit 32 bits and written into the file.
/// The same weights and pictures give the same bytes on every machine.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  host base quantize vgg16.onnx --calibrate photos -o int8.onnx\n  \
    host train photos -o head.postcard --base int8.onnx"
)]
pub struct Args {
    #[command(flatten)]
    weights: super::Weights,

    /// Folder of pictures like those that the base will see, at any depth; 100 or more are good
    #[arg(long, value_name = "DIR")]
    calibrate: PathBuf,

    /// Where the int8 base goes
    #[arg(short, long, value_name = "ONNX")]
    output: PathBuf,

    /// How the range of a layer's output is chosen
    #[arg(long, value_enum, default_value_t = MethodName::Percentile)]
    method: MethodName,

    /// Share of the values above 0 that stay in range, for --method percentile
    #[arg(long, value_name = "PERCENT", default_value_t = 99.9999)]
    percentile: f64,

    /// How weights are rounded: each by itself, or each taking up the errors of those before it
    /// (GPTQ)
    #[arg(long, value_enum, default_value_t = RoundingName::Compensated)]
    rounding: RoundingName,

    /// Cross-layer equalization: channels that use little of their layer's range are stretched up
    /// to so many times; 1 for none
    #[arg(long, value_name = "FACTOR", default_value_t = 2.0)]
    equalize: f64,

    /// Corrects each bias by the mean error of its channel's sums
    #[arg(long)]
    bias_correction: bool,

    /// Sizes in pixels at which pictures are run
    #[arg(long, value_name = "PIXELS", value_delimiter = ',', default_value = "64,128")]
    size: Vec<u32>,

    /// Pictures at most, for each size; spread evenly over the sorted files
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pictures: u32,

    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Prints one object
    #[arg(long)]
    json: bool,
}

/// The methods as flags.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MethodName {
    /// The largest value seen
    Minmax,
    /// See --percentile
    Percentile,
    /// The least mean squared error
    Mse,
}

/// The roundings as flags.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoundingName {
    /// To the nearest integer
    Nearest,
    /// With compensation of errors
    Compensated,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let method = match args.method {
        MethodName::Minmax => Method::MinMax,
        MethodName::Mse => Method::Mse,
        MethodName::Percentile if args.percentile > 0.0 && args.percentile <= 100.0 => {
            Method::Percentile(args.percentile)
        }
        MethodName::Percentile => {
            return Err(UsageError(format!(
                "--percentile {}: it is above 0 and at most 100",
                args.percentile
            ))
            .into());
        }
    };
    if !(1.0..=64.0).contains(&args.equalize) {
        return Err(UsageError(format!("--equalize {}: it is from 1 to 64", args.equalize)).into());
    }
    let options = Options {
        method,
        rounding: match args.rounding {
            RoundingName::Nearest => Rounding::Nearest,
            RoundingName::Compensated => Rounding::Compensated,
        },
        equalization: args.equalize,
        bias_correction: args.bias_correction,
    };
    vgg_edge::durable_fs::check_writable(&args.output)?;
    let base = args.weights.load()?;
    let mut ways = Vec::new();
    for &size in &args.size {
        let preprocess = preprocess(&base, size, Fit::Stretch);
        preprocess.base.check_size(size)?;
        ways.push((preprocess.quantizer(), size));
    }
    let kernel = Kernel::detect()?;
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(args.threads.map_or(0, usize::from)).build()?;
    let each_size =
        |frame: &Image| ways.iter().map(|(way, size)| input(way, *size, frame)).collect::<Vec<_>>();
    let pictures =
        pool.install(|| super::pictures(&args.calibrate, args.pictures as usize, each_size))?;
    let count = pictures.len();
    if count < 32 {
        note(
            PROGRAM,
            format_args!(
                "only {count} calibration pictures: ranges may be too narrow, 100 or more are good"
            ),
        );
    }
    let mut inputs: Vec<Inputs> = ways.iter().map(|_| Inputs::default()).collect();
    for picture in pictures {
        inputs.iter_mut().zip(picture).for_each(|(inputs, picture)| inputs.push(picture));
    }
    let bar = Progress::new(base.layers.len() as u64, "layers");
    let mut quantized = pool.install(|| {
        quantize(&base, inputs, &options, kernel, |layer| {
            bar.next(layer);
            if interrupted() { Err(quant::Error::Interrupted) } else { Ok(()) }
        })
        .map_err(|e| match e {
            quant::Error::Interrupted => anyhow::Error::from(Interrupted),
            e => e.into(),
        })
    })?;
    drop(bar);
    let sizes: Vec<String> = args.size.iter().map(u32::to_string).collect();
    quantized.how = format!(
        "host base quantize: ranges by {method}, weights rounded {}, equalisation up to {}, bias correction {}, {} pictures at {} px",
        if options.rounding == Rounding::Nearest {
            "to nearest"
        } else {
            "with compensation (GPTQ)"
        },
        options.equalization,
        if options.bias_correction { "on" } else { "off" },
        count,
        sizes.join(" and "),
    );
    let bytes = quant::onnx::int8_model(&quantized);
    // What is written is what both programs will accept.
    vgg_edge::Backbone::from_bytes(&args.output, &bytes, kernel)?;
    vgg_edge::durable_fs::write_bytes(&args.output, &bytes)?;
    let fingerprint = Fingerprint::of(&bytes);
    if args.json {
        let layers = quantized.layers.iter().map(|layer| {
            json!({
                "name": layer.conv.name, "scale": layer.output_scale, "largest": layer.largest,
                "accumulator": layer.bounds(),
            })
        });
        print_line(json!({
            "output": args.output, "fingerprint": fingerprint.to_string(), "bytes": bytes.len(), "pictures": count,
            "layers": layers.collect::<Vec<_>>(),
        }))?;
        return Ok(());
    }
    print_line(format_args!(
        "{:<14}{:>12}{:>14}{:>28}",
        "layer", "scale", "clipped at", "sums can reach"
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
        "{}: {} bytes, fingerprint {fingerprint}",
        args.output.display(),
        bytes.len()
    ))?;
    Ok(())
}
