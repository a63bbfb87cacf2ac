//! `edge bench`: how fast the base runs here.

use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::json;
use vgg_edge::Backbone;
use vgg_edge_cli::options::BaseOptions;
use vgg_edge_cli::terminal::{Interrupted, interrupted, print_line};

use crate::cli::options::{Threads, memory};

/// Measures the base on this device
///
/// Runs one picture of noise after the other through the base; the median counts. Start-up is the
/// time from the start of the process to the first feature map.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  edge bench --size 224 --threads 4 --runs 20 --json")]
pub struct Args {
    #[command(flatten)]
    base: BaseOptions,

    #[command(flatten)]
    threads: Threads,

    /// Height and width of the input in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 64)]
    size: u32,

    /// Pictures that are run together, as `host extract` does with small ones; a camera gives one
    /// at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    batch: u32,

    /// Measures each layer by itself, in its place in the chain; the least of all runs counts
    #[arg(long)]
    layers: bool,

    /// How often they are run
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,

    /// Prints one object, with --layers one a layer
    #[arg(long)]
    json: bool,
}

/// Runs the command; `start` is when the process began.
pub fn run(args: Args, start: Instant) -> Result<()> {
    let base = args.base.load()?;
    base.contract().check_size(args.size)?;
    // Noise, so that no feature map is all zero.
    let mut state = 0x2545_f491u32;
    let pictures = args.batch as usize;
    let input: Vec<u8> = (0..3 * pictures * args.size as usize * args.size as usize)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    if args.layers {
        return layers(&args, &base, &input);
    }
    let mut runner = base.runner(args.threads.pool()?)?;
    runner.batch(&input, pictures, args.size)?;
    let startup_ms = start.elapsed().as_secs_f64() * 1e3;
    let mut times = Vec::with_capacity(args.runs as usize);
    for _ in 0..args.runs {
        if interrupted() {
            return Err(Interrupted.into());
        }
        let start = Instant::now();
        std::hint::black_box(runner.batch(&input, pictures, args.size)?);
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
            "{median:.2} ms an image at {0}x{0} (best {1:.2}), {gmac_per_s:.1} GMAC/s, kernel {2}, {3} threads, start-up {startup_ms:.0} ms, peak memory {4:.1} MiB",
            args.size,
            times[0],
            base.kernel().name(),
            args.threads.threads,
            peak.unwrap_or(0) as f64 / 1_048_576.0
        ))?;
    }
    Ok(())
}

/// One line a layer.
fn layers(args: &Args, base: &Backbone, input: &[u8]) -> Result<()> {
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
