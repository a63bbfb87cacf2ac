//! `edge bench`: the speed of the base on this device.

use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::json;
use vgg_edge::Backbone;
use vgg_edge_cli::options::BaseOptions;
use vgg_edge_cli::terminal::{CancelToken, print_line};

use crate::cli::options::Threads;
use crate::system::memory;

/// Measure the base on this device
///
/// Images of noise run through the base one after the other; the median time is reported. Start-up
/// is the time from the start of the process to the first feature map.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  edge bench --size 224 --threads 4 --runs 20 --json")]
pub struct Args {
    #[command(flatten)]
    base: BaseOptions,

    #[command(flatten)]
    threads: Threads,

    /// Height and width of the input, in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 64)]
    size: u32,

    /// Images per pass
    ///
    /// `host extract` runs small images in batches; a camera delivers one at a time.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=256)
    )]
    batch: u32,

    /// Measure each layer by itself, as the minimum of all runs
    #[arg(long)]
    layers: bool,

    /// Number of measured passes
    #[arg(
        long,
        value_name = "N",
        default_value_t = 30,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    runs: u32,

    /// Print one JSON object, with --layers one per layer
    #[arg(long)]
    json: bool,
}

/// Runs the command; `start` is the start of the process.
pub fn run(args: Args, start: Instant, cancel: &CancelToken) -> Result<()> {
    let base = args.base.load()?;
    base.contract().check_size(args.size)?;
    let images = args.batch as usize;
    let input = noise(3 * images * args.size as usize * args.size as usize);
    if args.layers {
        return measure_layers(&args, &base, &input);
    }
    let mut runner = base.runner(args.threads.pool()?)?;
    runner.batch(&input, images, args.size)?;
    let startup_ms = start.elapsed().as_secs_f64() * 1e3;
    let mut times = Vec::with_capacity(args.runs as usize);
    for _ in 0..args.runs {
        cancel.check()?;
        let start = Instant::now();
        std::hint::black_box(runner.batch(&input, images, args.size)?);
        times.push(start.elapsed().as_secs_f64() * 1e3 / f64::from(args.batch));
    }
    times.sort_by(f64::total_cmp);
    let Some(&median) = times.get(times.len() / 2) else { bail!("no runs") };
    let gmac_per_s = base.macs(args.size) as f64 / 1e6 / median;
    let peak = memory("VmHWM");
    if args.json {
        print_line(json!({
            "ms_per_image": round(median),
            "ms_min": round(times[0]),
            "gmac_per_s": round(gmac_per_s),
            "startup_ms": round(startup_ms),
            "peak_rss_bytes": peak,
            "kernel": base.kernel().name(),
            "size": args.size,
            "threads": args.threads.threads,
            "batch": args.batch,
            "runs": args.runs,
        }))?;
    } else {
        print_line(format_args!(
            "{median:.2} ms per image at {0}x{0} (best {1:.2}), {gmac_per_s:.1} GMAC/s, \
             kernel {2}, {3} threads, start-up {startup_ms:.0} ms, peak memory {4:.1} MiB",
            args.size,
            times[0],
            base.kernel().name(),
            args.threads.threads,
            peak.unwrap_or(0) as f64 / 1_048_576.0
        ))?;
    }
    Ok(())
}

/// Returns bytes of noise, so that no feature map is all zero.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(next).collect()
}

/// Prints one line per layer.
fn measure_layers(args: &Args, base: &Backbone, input: &[u8]) -> Result<()> {
    let pool = args.threads.pool()?;
    let times = base.time_layers(pool.as_deref(), input, args.size, args.runs);
    let mut side = args.size as usize;
    for ((layer, algorithm), time) in base.layers().zip(base.algorithms()).zip(times) {
        let ms = time.as_secs_f64() * 1e3 / f64::from(args.batch);
        let macs = 9 * layer.inputs * layer.outputs * side * side;
        let gmac_per_s = macs as f64 / 1e6 / ms;
        if args.json {
            print_line(json!({
                "layer": layer.name,
                "algorithm": algorithm.name(),
                "size": side,
                "inputs": layer.inputs,
                "outputs": layer.outputs,
                "ms": round(ms),
                "gmac_per_s": round(gmac_per_s),
                "kernel": base.kernel().name(),
                "threads": args.threads.threads,
            }))?;
        } else {
            print_line(format_args!(
                "{:<14}{:<10}{side:>4}x{side:<4}{:>4} to {:<4}{ms:>9.3} ms{gmac_per_s:>8.1} GMAC/s",
                layer.name,
                algorithm.name(),
                layer.inputs,
                layer.outputs
            ))?;
        }
        (side, _) = layer.output_size(side, side);
    }
    Ok(())
}

fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
