//! `host base compare`: measures the cost of quantization, by layer and in the accuracy of heads.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;
use quant::FloatBase;
use quant::compare::{LayerReport, compare};
use quant::float::{FloatNet, Map};
use quant::quantize::{Inputs, input};
use rayon::prelude::*;
use serde_json::{Value, json};
use vgg_edge::head::Pool;
use vgg_edge::kernels::Kernel;
use vgg_edge::preprocess::{Fit, Preprocess};
use vgg_edge::{Backbone, Image};
use vgg_edge_cli::terminal::{CancelToken, print_line};

use crate::cli::options::ExtractOptions;
use crate::dataset::{self, Item};
use crate::features::extraction::{Features, Rows, extract};
use crate::progress::Progress;
use crate::train::settings::Recipe;
use crate::trainer::{self, Dataset, FeatureSource};

/// Compare an int8 base with the f32 weights that it was quantized from
///
/// Runs both on images, and prints for each layer the signal-to-quantization-noise ratio (SQNR),
/// the relative L2 error, the cosine similarity, the maximum error and the fraction of clipped
/// values. If DATA has class directories, heads are trained on the features of both, with the same
/// seeds.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  host base compare vgg16.onnx int8.onnx photos\n  \
    host base compare vgg16.onnx int8.onnx photos --size 128 --seeds 5 --html compare.html")]
pub struct Args {
    #[command(flatten)]
    weights: super::WeightsOptions,

    /// Int8 base
    #[arg(value_name = "INT8")]
    int8: PathBuf,

    /// Directory of images; with class directories, heads are compared too
    ///
    /// The class directories may be in train/ and val/.
    data: PathBuf,

    /// Height and width of the input in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 64)]
    size: u32,

    /// Maximum number of images for the table of layers, spread evenly over the files
    #[arg(
        long = "images",
        alias = "pictures",
        value_name = "N",
        default_value_t = 200,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    images: u32,

    /// Number of heads to train on the features of each base; 0 for none
    ///
    /// The seeds count from 0.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(0..=100)
    )]
    seeds: u32,

    /// Write the results to an HTML file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,

    /// Print a JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,

    #[command(flatten)]
    extract: ExtractOptions,
}

/// Accuracies of heads trained with the same seeds.
pub struct HeadReport {
    /// Description of the validation set.
    pub data: String,
    /// On f32 features, one per seed.
    pub float: Vec<f64>,
    /// On int8 features, one per seed.
    pub int8: Vec<f64>,
}

impl HeadReport {
    /// `int8 - float`, one per seed.
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
    let int8 = Backbone::load(&args.int8, kernel)?;
    super::check_preprocessing(&args.weights.path, &float, &int8)?;
    let spec = int8.contract();
    let preprocess = Preprocess::new(spec.clone(), args.size, Fit::Stretch, spec.resize)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.extract.threads()).build()?;
    let quantizer = quant::quantize::preprocess(&float, args.size, Fit::Stretch).quantizer();
    let mut inputs = Inputs::default();
    let layers = pool.install(|| -> Result<_> {
        let convert = |frame: &Image| input(&quantizer, args.size, frame);
        let images = super::convert_images(&args.data, args.images as usize, cancel, convert)?;
        images.into_iter().for_each(|image| inputs.push(image));
        Ok(compare(&float, &int8.layers_with_weights(), &int8.scales(), &inputs, kernel)?)
    })?;
    if !args.json {
        print_layers(&layers)?;
    }
    let heads = if args.seeds > 0 {
        HeadComparison {
            args: &args,
            float: &float,
            int8: &int8,
            preprocess: &preprocess,
            pool: &pool,
        }
        .run(cancel)?
    } else {
        None
    };
    if args.json {
        print_line(as_json(&layers, heads.as_ref()))?;
    } else if let Some(heads) = &heads {
        print_heads(heads)?;
    }
    if let Some(path) = &args.html {
        let images = inputs.real.len();
        let title = format!("{images} images of {} at {} px", args.data.display(), args.size);
        let fingerprint = int8.fingerprint().to_string();
        let page = super::page::page(&title, &fingerprint, &layers, heads.as_ref());
        vgg_edge::durable_fs::write_bytes(path, page.as_bytes())?;
        log::info!("wrote {}", path.display());
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
    let summary = |values: &[f64]| {
        let (mean, deviation) = mean_deviation(values);
        format!("{:.2} % +- {:.2}", 100.0 * mean, 100.0 * deviation)
    };
    let differences = heads.differences();
    print_line(format_args!(
        "heads, {} seeds, {}: f32 {}, int8 {}, difference {} points",
        heads.float.len(),
        heads.data,
        summary(&heads.float),
        summary(&heads.int8),
        summary(&differences).replace(" %", "")
    ))?;
    Ok(())
}

fn as_json(reports: &[LayerReport], heads: Option<&HeadReport>) -> Value {
    let layers = reports.iter().map(|r| {
        json!({
            "name": r.name,
            "sqnr_db": r.sqnr_db,
            "relative_error": r.relative_error,
            "cosine": r.cosine,
            "max_error": r.max_error,
            "scale": r.scale,
            "clipped": r.clipped,
        })
    });
    let heads = heads.map(|h| {
        json!({
            "data": h.data,
            "float": h.float,
            "int8": h.int8,
            "differences": h.differences(),
        })
    });
    json!({ "layers": layers.collect::<Vec<_>>(), "heads": heads })
}

/// f32 features, one row per image.
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

/// Heads trained on the features of both bases.
struct HeadComparison<'a> {
    args: &'a Args,
    float: &'a FloatBase,
    int8: &'a Backbone,
    preprocess: &'a Preprocess,
    pool: &'a rayon::ThreadPool,
}

impl HeadComparison<'_> {
    /// Trains and measures the heads; `None` if the images are not sorted into classes.
    fn run(&self, cancel: &CancelToken) -> Result<Option<HeadReport>> {
        let splits = match dataset::open(&self.args.data) {
            Ok(splits) => splits,
            Err(e) => {
                log::warn!("no heads are compared: {e}");
                return Ok(None);
            }
        };
        let data = match &splits.val {
            Some((path, _)) => format!("validated on {}", path.display()),
            None => "validated on 20 % of each class".to_owned(),
        };
        let images = splits.pool();
        let int8 = extract(
            self.int8,
            self.preprocess,
            &images.items,
            &self.args.extract.resolve(),
            cancel,
        )?;
        let float = self.float_features(&images.items, &int8, cancel)?;
        let classes = images.classes_of(&int8.items);
        let mut report = HeadReport { data, float: Vec::new(), int8: Vec::new() };
        for seed in 0..u64::from(self.args.seeds) {
            let (train_rows, val_rows) = images.rows(&int8.items, &int8.hashes, 0.2, seed);
            let labels = |rows: &[usize]| rows.iter().map(|&row| classes[row]).collect::<Vec<_>>();
            let (train_labels, val_labels) = (labels(&train_rows), labels(&val_rows));
            let measure = |train: &dyn FeatureSource, val: &dyn FeatureSource| {
                let train = Dataset { features: train, labels: &train_labels };
                let val = Dataset { features: val, labels: &val_labels };
                let classes = images.classes.len();
                self.pool.install(|| accuracy(classes, seed, &train, &val, cancel))
            };
            let float_of = |rows| FloatRows { data: &float, dim: int8.dim, rows };
            let int8_of = |rows| Rows { features: &int8, rows, pool: Pool::Flatten };
            let float_accuracy = measure(&float_of(&train_rows), &float_of(&val_rows))?;
            let int8_accuracy = measure(&int8_of(&train_rows), &int8_of(&val_rows))?;
            log::info!("seed {seed}: f32 {float_accuracy:.4}, int8 {int8_accuracy:.4}");
            report.float.push(float_accuracy);
            report.int8.push(int8_accuracy);
        }
        Ok(Some(report))
    }

    /// Returns the f32 features of the images that have int8 features, in the same order.
    fn float_features(
        &self,
        items: &[Item],
        int8: &Features,
        cancel: &CancelToken,
    ) -> Result<Vec<f32>> {
        let net = FloatNet::new(self.float);
        let quantizer = self.preprocess.quantizer();
        let side = self.preprocess.size as usize;
        let mut out = vec![0.0; int8.items.len() * int8.dim];
        log::info!("extracting f32 features of {} images", int8.items.len());
        let bar = Progress::new(int8.items.len() as u64, "images");
        let extract = |(out, &item): (&mut [f32], &usize)| -> Result<()> {
            cancel.check()?;
            let frame = vgg_edge::image::decode::decode_file(&items[item].path)?;
            let input =
                Map { height: side, width: side, channels: 3, data: quantizer.normalize(&frame) };
            out.copy_from_slice(&net.features(&input).data);
            bar.inc(1);
            Ok(())
        };
        self.pool
            .install(|| out.par_chunks_mut(int8.dim).zip(&int8.items).try_for_each(extract))?;
        Ok(out)
    }
}

/// The best validation accuracy of a head with the defaults of `host train`.
fn accuracy(
    classes: usize,
    seed: u64,
    train: &Dataset<'_>,
    val: &Dataset<'_>,
    cancel: &CancelToken,
) -> Result<f64> {
    let config = Recipe::Fast.config(classes, seed);
    let trained = trainer::train(&config, train, Some(val), None, &mut |_| {
        if cancel.is_canceled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    cancel.check()?;
    Ok(trained.history.iter().filter_map(|epoch| epoch.val_accuracy).fold(0.0, f64::max))
}
