//! `host extract`: a directory of images to a NumPy archive of features, or to a part of all
//! features.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use anyhow::Result;
use vgg_edge::head::dequantize;
use vgg_edge::{Backbone, Error};
use vgg_edge_cli::terminal::{CancelToken, print_line};

use crate::cli::options::{BaseOptions, ExtractOptions, InputOptions};
use crate::dataset::{self, Item, Pool};
use crate::features::extraction::{Features, extract};
use crate::features::npz::NpzWriter;
use crate::features::parts::{ExtractedPart, PartSettings, Shard, ShardOption, extract_part};

/// Extract features into a NumPy archive
///
/// Writes `features` (n, h, w, 512) as f32 in Keras's channel-last order, `labels` (n) as i64,
/// `class_names`, and `file_names` (n) relative to DATA; read it with numpy.load. With --quantized,
/// `features` are u8, and `scale` (512), one per channel, converts them to f32.
///
/// With --shard I/N it extracts one of N parts, each on a machine of its own, into a file in the
/// directory DIR. Parts are for host merge and host train --features. An existing part is left as
/// it is, so that the same command may run again; images that changed since are an error.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  host extract photos/train -o train.npz --size 64\n  \
    python3 -c \"import numpy as np; f = np.load('train.npz'); print(f['features'].shape)\"\n  \
    host extract photos --shard 0/4 -o parts   # then 1/4, 2/4, 3/4, on any machine\n  \
    host extract photos --shard auto -o parts   # in a task of a Slurm array 0-(N-1)\n  \
    host extract photos --shard auto/16 -o parts   # in an indexed job of Kubernetes\n  \
    host merge parts -o photos.features && host train --features photos.features -o head.postcard")]
pub struct Args {
    /// Directory with one subdirectory of images per class
    ///
    /// It may also have train/ and val/ with such subdirectories; then all images are extracted.
    data: PathBuf,

    /// Extract part I of N (from 0) of the images; auto or auto/N inside a cluster job
    ///
    /// auto reads both numbers from SLURM_ARRAY_TASK_ID and the related variables; auto/N reads I
    /// from there or from JOB_COMPLETION_INDEX.
    #[arg(long, value_name = "I/N", conflicts_with = "quantized", help_heading = "Data")]
    shard: Option<ShardOption>,

    #[command(flatten, next_help_heading = "Data")]
    input: InputOptions,

    #[command(flatten, next_help_heading = "Data")]
    extract: ExtractOptions,

    #[command(flatten, next_help_heading = "Backbone")]
    base: BaseOptions,

    /// Output file of the archive; with --shard, the directory of the parts
    #[arg(short, long, value_name = "FILE|DIR", help_heading = "Output")]
    output: PathBuf,

    /// Write the u8 feature maps and their scales, a quarter of the size
    #[arg(long, alias = "quantised", help_heading = "Output")]
    quantized: bool,

    /// Print one JSON object with the shape; with --shard, the numbers of images
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args, cancel: &CancelToken) -> Result<()> {
    let shard = args.shard.map(|shard| shard.resolve(|name| std::env::var_os(name))).transpose()?;
    if shard.is_none() {
        vgg_edge::durable_fs::check_writable(&args.output)?;
    }
    let base = args.base.load()?;
    match shard {
        Some(shard) => run_shard(args, &base, shard, cancel),
        None => run_archive(&args, &base, cancel),
    }
}

/// Extracts all features into an archive.
fn run_archive(args: &Args, base: &Backbone, cancel: &CancelToken) -> Result<()> {
    let preprocess = args.input.preprocess(base)?;
    let Pool { classes, items, .. } = dataset::open(&args.data)?.pool();
    let features = extract(base, &preprocess, &items, &args.extract.resolve(), cancel)?;
    let [height, width, channels] = preprocess.feature_shape();
    let shape = [features.items.len() as u64, height as u64, width as u64, channels as u64];
    let items: Vec<&Item> = features.items.iter().map(|&item| &items[item]).collect();
    let archive = Archive { features: &features, shape, items, classes: &classes };
    archive.write(args)?;
    if args.json {
        print_line(serde_json::json!({
            "output": args.output, "shape": shape, "skipped": features.skipped.len(),
            "cached": features.cached
        }))?;
    } else {
        print_line(format_args!("wrote {}: features {shape:?}", args.output.display()))?;
    }
    Ok(())
}

/// Content of an archive.
struct Archive<'a> {
    features: &'a Features,
    shape: [u64; 4],
    /// Item of each row.
    items: Vec<&'a Item>,
    classes: &'a [String],
}

impl Archive<'_> {
    /// Writes the archive.
    fn write(&self, args: &Args) -> Result<()> {
        let Self { features, shape, items, classes } = self;
        let names: Vec<String> =
            items.iter().map(|item| relative(&item.path, &args.data)).collect();
        vgg_edge::durable_fs::write_atomic::<anyhow::Error>(&args.output, |file| {
            let wrong = || Error::io("write", &args.output);
            let mut npz = NpzWriter::new(file);
            let rows = (0..items.len()).map(|row| features.row(row));
            if args.quantized {
                npz.rows("features", shape, rows.map(|row| row.map(Cow::into_owned)), wrong)?;
                let [.., channels] = *shape;
                npz.numbers("scale", &[channels], features.scales.iter().copied())
                    .map_err(wrong())?;
            } else {
                let real =
                    |map: Cow<'_, [u8]>| dequantize(&map, &features.scales).collect::<Vec<f32>>();
                npz.rows("features", shape, rows.map(|row| row.map(real)), wrong)?;
            }
            npz.numbers("labels", &[names.len() as u64], items.iter().map(|i| i.class as i64))
                .map_err(wrong())?;
            npz.strings("class_names", classes).map_err(wrong())?;
            npz.strings("file_names", &names).map_err(wrong())?;
            npz.finish().map_err(wrong())?;
            Ok(())
        })
    }
}

/// Extracts a part.
fn run_shard(args: Args, base: &Backbone, shard: Shard, cancel: &CancelToken) -> Result<()> {
    let preprocess = args.input.preprocess(base)?;
    let settings = PartSettings {
        data: args.data,
        shard,
        directory: args.output,
        extract: args.extract.resolve(),
    };
    let ExtractedPart { path, images, rows, cached, kept } =
        extract_part(base, &preprocess, &settings, cancel)?;
    if args.json {
        print_line(serde_json::json!({
            "output": path, "shard": shard.index, "shards": shard.count,
            "pictures": images, "skipped": images - rows, "cached": cached, "kept": kept,
        }))?;
    } else {
        let done = if kept { "kept" } else { "wrote" };
        print_line(format_args!("{done} {}: {rows} of {images} images", path.display()))?;
    }
    Ok(())
}

fn relative(path: &Path, root: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned()
}
