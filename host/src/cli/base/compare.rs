//! `host base compare`: what quantization costs, layer by layer and in the accuracy of heads.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Result, bail};
use quant::compare::{LayerReport, compare};
use quant::float::{FloatNet, Map};
use quant::quantize::{Inputs, input};
use rayon::prelude::*;
use serde_json::{Value, json};
use vgg_edge::Backbone;
use vgg_edge::head::Pool;
use vgg_edge::kernels::Kernel;
use vgg_edge::preprocess::{Fit, Preprocess};
use vgg_edge_cli::terminal::{CancelToken, Interrupted, interrupted, note, print_line};

use crate::PROGRAM;
use crate::cli::options::ExtractOptions;
use crate::dataset::{self, Item};
use crate::features::extraction::{Features, Rows, extract};
use crate::progress::Progress;
use crate::train::settings::Recipe;
use crate::trainer::{self, Dataset, FeatureSource};

/// Compares an int8 base with the f32 weights it was made of
///
/// Runs both on pictures and prints for each layer the signal-to-quantization-noise ratio, the
/// relative L2 error, the cosine, the largest error and the share of values clipped. If DATA has
/// class folders, heads are trained on the features of both, with the same seeds.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  host base compare vgg16.onnx int8.onnx photos\n  \
    host base compare vgg16.onnx int8.onnx photos --size 128 --seeds 5 --html compare.html")]
pub struct Args {
    #[command(flatten)]
    weights: super::Weights,

    /// The int8 base
    #[arg(value_name = "INT8")]
    int8: PathBuf,

    /// Folder of pictures; with class folders, or train/ and val/ over them, heads are compared too
    data: PathBuf,

    /// Height and width of the input in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 64)]
    size: u32,

    /// Pictures at most for the table of layers, spread evenly over the files
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pictures: u32,

    /// Heads to train on each, with seeds from 0; 0 for none
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=100))]
    seeds: u32,

    /// Writes the figures as a page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Prints one object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    extract: ExtractOptions,
}

/// Accuracies of heads trained with the same seeds.
pub struct HeadReport {
    /// What the validation pictures are.
    pub data: String,
    /// On f32 features, one a seed.
    pub float: Vec<f64>,
    /// On int8 features, one a seed.
    pub int8: Vec<f64>,
}

impl HeadReport {
    /// `int8 - float`, one a seed.
    pub fn differences(&self) -> Vec<f64> {
        self.int8.iter().zip(&self.float).map(|(a, b)| a - b).collect()
    }
}

/// Mean and sample standard deviation.
pub fn mean_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (mean, if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

/// Runs the command.
pub fn run(args: Args, cancel: &CancelToken) -> Result<()> {
    if let Some(html) = &args.html {
        vgg_edge::durable_fs::check_writable(html)?;
    }
    let float = args.weights.load()?;
    let kernel = Kernel::detect()?;
    let base = Backbone::load(&args.int8, kernel)?;
    let contract = base.contract();
    let n = float.normalization;
    if (n.channel_order, n.mean, n.std) != (contract.channel_order, contract.mean, contract.std) {
        bail!(
            "{} and {} pre-process pictures differently; if the weights are those it was made of, say so with --preprocess",
            args.weights.path.display(),
            args.int8.display()
        );
    }
    let preprocess = Preprocess::new(contract.clone(), args.size, Fit::Stretch, contract.resize)?;
    let layers = base.layers_with_weights();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.extract.threads()).build()?;
    let quantizer = quant::quantize::preprocess(&float, args.size, Fit::Stretch).quantizer();
    let mut inputs = Inputs::default();
    let reports = pool.install(|| -> Result<_> {
        let pictures = super::pictures(&args.data, args.pictures as usize, |frame| {
            input(&quantizer, args.size, frame)
        });
        pictures?.into_iter().for_each(|picture| inputs.push(picture));
        Ok(compare(&float, &layers, &base.scales(), &inputs, kernel)?)
    })?;
    let pictures = inputs.real.len();
    if !args.json {
        print_layers(&reports)?;
    }
    let heads = if args.seeds > 0 {
        heads(&args, &float, &base, &preprocess, &pool, cancel)?
    } else {
        None
    };
    if let (Some(heads), false) = (&heads, args.json) {
        print_heads(heads)?;
    }
    let title = format!("{pictures} pictures of {} at {} px", args.data.display(), args.size);
    if args.json {
        print_line(as_json(&reports, heads.as_ref()))?;
    }
    if let Some(path) = &args.html {
        let page =
            super::page::page(&title, &base.fingerprint().to_string(), &reports, heads.as_ref());
        vgg_edge::durable_fs::write_bytes(path, page.as_bytes())?;
        note(PROGRAM, format_args!("wrote {}", path.display()));
    }
    Ok(())
}

fn print_layers(reports: &[LayerReport]) -> Result<()> {
    print_line(format_args!(
        "{:<14}{:>10}{:>16}{:>10}{:>18}{:>10}",
        "layer", "SQNR dB", "relative error", "cosine", "max error (steps)", "clipped"
    ))?;
    for r in reports {
        print_line(format_args!(
            "{:<14}{:>10.2}{:>16.4}{:>10.5}{:>18.1}{:>8.4} %",
            r.name,
            r.sqnr_db,
            r.relative_error,
            r.cosine,
            r.max_error / r.scale,
            100.0 * r.clipped
        ))?;
    }
    Ok(())
}

fn print_heads(heads: &HeadReport) -> Result<()> {
    let words = |values: &[f64]| {
        let (mean, deviation) = mean_deviation(values);
        format!("{:.2} % +- {:.2}", 100.0 * mean, 100.0 * deviation)
    };
    let differences = heads.differences();
    print_line(format_args!(
        "heads, {} seeds, {}: f32 {}, int8 {}, difference {} points",
        heads.float.len(),
        heads.data,
        words(&heads.float),
        words(&heads.int8),
        words(&differences).replace(" %", "")
    ))?;
    Ok(())
}

fn as_json(reports: &[LayerReport], heads: Option<&HeadReport>) -> Value {
    let layers = reports.iter().map(|r| {
        json!({
            "name": r.name, "sqnr_db": r.sqnr_db, "relative_error": r.relative_error, "cosine": r.cosine,
            "max_error": r.max_error, "scale": r.scale, "clipped": r.clipped,
        })
    });
    let heads =
        heads.map(|h| json!({ "data": h.data, "float": h.float, "int8": h.int8, "differences": h.differences() }));
    json!({ "layers": layers.collect::<Vec<_>>(), "heads": heads })
}

/// f32 features, a row a picture.
struct FloatRows<'a> {
    data: &'a [f32],
    dim: usize,
    rows: &'a [usize],
}

impl FeatureSource for FloatRows<'_> {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn gather(&self, rows: &[usize], out: &mut [f32]) -> std::io::Result<()> {
        for (&row, out) in rows.iter().zip(out.chunks_exact_mut(self.dim.max(1))) {
            out.copy_from_slice(&self.data[self.rows[row] * self.dim..][..self.dim]);
        }
        Ok(())
    }
}

/// Trains heads on the features of both; `None` if the data are not sorted into classes.
fn heads(
    args: &Args,
    float: &quant::FloatBase,
    base: &Backbone,
    preprocess: &Preprocess,
    pool: &rayon::ThreadPool,
    cancel: &CancelToken,
) -> Result<Option<HeadReport>> {
    let splits = match dataset::open(&args.data) {
        Ok(splits) => splits,
        Err(e) => {
            note(PROGRAM, format_args!("no heads are compared: {e}"));
            return Ok(None);
        }
    };
    let what = match &splits.val {
        Some((path, _)) => format!("validated on {}", path.display()),
        None => "a fifth of each class set aside".to_owned(),
    };
    let pictures = splits.pool();
    let integers = extract(base, preprocess, &pictures.items, &args.extract.resolve(), cancel)?;
    let floats = float_features(float, preprocess, &pictures.items, &integers, pool)?;
    let of = pictures.classes_of(&integers.items);
    let mut report = HeadReport { data: what, float: Vec::new(), int8: Vec::new() };
    for seed in 0..u64::from(args.seeds) {
        let (train_rows, val_rows) = pictures.rows(&integers.items, &integers.hashes, 0.2, seed);
        let labels = |rows: &[usize]| rows.iter().map(|&row| of[row]).collect::<Vec<_>>();
        let (train_labels, val_labels) = (labels(&train_rows), labels(&val_rows));
        let dim = integers.dim;
        let float_of = |rows| FloatRows { data: &floats, dim, rows };
        let int_of = |rows| Rows { features: &integers, rows, pool: Pool::Flatten };
        let (float_train, float_val) = (float_of(&train_rows), float_of(&val_rows));
        let (int_train, int_val) = (int_of(&train_rows), int_of(&val_rows));
        let run = |train: &dyn FeatureSource, val: &dyn FeatureSource| {
            let train = Dataset { features: train, labels: &train_labels };
            let val = Dataset { features: val, labels: &val_labels };
            pool.install(|| accuracy(pictures.classes.len(), seed, &train, &val))
        };
        report.float.push(run(&float_train, &float_val)?);
        report.int8.push(run(&int_train, &int_val)?);
        note(
            PROGRAM,
            format_args!(
                "seed {seed}: f32 {:.4}, int8 {:.4}",
                report.float[seed as usize], report.int8[seed as usize]
            ),
        );
    }
    Ok(Some(report))
}

/// The best validation accuracy of a head with the defaults of `host train`.
fn accuracy(classes: usize, seed: u64, train: &Dataset<'_>, val: &Dataset<'_>) -> Result<f64> {
    let config = Recipe::Fast.config(classes, seed);
    let trained = trainer::train(&config, train, Some(val), None, &mut |_| {
        if interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if interrupted() {
        return Err(Interrupted.into());
    }
    Ok(trained.history.iter().filter_map(|epoch| epoch.val_accuracy).fold(0.0, f64::max))
}

/// f32 features of the pictures that have int8 features, in the same order.
fn float_features(
    float: &quant::FloatBase,
    preprocess: &Preprocess,
    items: &[Item],
    integers: &Features,
    pool: &rayon::ThreadPool,
) -> Result<Vec<f32>> {
    let net = FloatNet::new(float);
    let quantizer = preprocess.quantizer();
    let side = preprocess.size as usize;
    let mut out = vec![0.0; integers.items.len() * integers.dim];
    note(PROGRAM, format_args!("f32 features of {} pictures", integers.items.len()));
    let bar = Progress::new(integers.items.len() as u64, "pictures");
    pool.install(|| {
        out.par_chunks_mut(integers.dim).zip(&integers.items).try_for_each(
            |(out, &item)| -> Result<()> {
                if interrupted() {
                    return Err(Interrupted.into());
                }
                let frame = vgg_edge::image::decode::decode_file(&items[item].path)?;
                let input = Map {
                    height: side,
                    width: side,
                    channels: 3,
                    data: quantizer.normalize(&frame),
                };
                out.copy_from_slice(&net.features(&input).data);
                bar.inc(1);
                Ok(())
            },
        )
    })?;
    Ok(out)
}
