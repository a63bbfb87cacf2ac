//! `host extract`: a folder of pictures to a NumPy archive of features, or to a part of all
//! features.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use anyhow::Result;
use vgg_edge::head::dequantize;
use vgg_edge::preprocess::Preprocess;
use vgg_edge::{Backbone, Error};
use vgg_edge_cli::options::FitName;
use vgg_edge_cli::terminal::print_line;

use super::train::ResizeName;
use crate::cli::options::{BaseOptions, ExtractOptions};
use crate::dataset::{self, Pool};
use crate::features::npz::NpzWriter;
use crate::features::parts::{Made, Shard, ShardOption, extract_part};

/// Extracts features into a NumPy archive
///
/// Writes `features` (n, h, w, 512) as f32 in Keras's channel-last order, `labels` (n) as i64,
/// `class_names`, and `file_names` (n) relative to DATA; read it with numpy.load. With --quantized,
/// `features` are u8 and `scale` (512), one a channel, turns them into f32.
///
/// With --shard I/N it extracts one of N parts, each on a machine of its own, into a file in the
/// folder DIR. Parts are for host merge and host train --features. A part that is there is left as
/// it is, so the same command may be run again; pictures that have changed since are told.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  host extract photos/train -o train.npz --size 64\n  \
    python3 -c \"import numpy as np; f = np.load('train.npz'); print(f['features'].shape)\"\n  \
    host extract photos --shard 0/4 -o parts   # then 1/4, 2/4, 3/4, on any machine\n  \
    host extract photos --shard auto -o parts   # in a task of a Slurm array 0-(N-1)\n  \
    host extract photos --shard auto/16 -o parts   # in an indexed job of Kubernetes\n  \
    host merge parts -o photos.features && host train --features photos.features -o head.postcard")]
pub struct Args {
    /// Folder with a sub-folder of pictures a class, or train/ and val/ over such folders (then all
    /// are extracted)
    data: PathBuf,

    /// Where the archive goes; with --shard the folder of the parts
    #[arg(short, long, value_name = "FILE|DIR")]
    output: PathBuf,

    /// Extracts part I of N (from 0) of the pictures. auto takes both from SLURM_ARRAY_TASK_ID and
    /// its kin; auto/N takes I from there or from JOB_COMPLETION_INDEX
    #[arg(long, value_name = "I/N", conflicts_with = "quantized")]
    shard: Option<ShardOption>,

    #[command(flatten)]
    base: BaseOptions,

    #[command(flatten)]
    extract: ExtractOptions,

    /// Height and width of the input in pixels, a multiple of 32
    #[arg(long, value_name = "PIXELS", default_value_t = 64)]
    size: u32,

    /// Which part of a picture is used
    #[arg(long, value_enum, default_value_t = FitName::Stretch)]
    fit: FitName,

    /// How it is resized [default: what the base recommends]
    #[arg(long, value_enum)]
    resize: Option<ResizeName>,

    /// Writes the u8 feature maps and their scales, a quarter of the size
    #[arg(long, alias = "quantised")]
    quantized: bool,

    /// Prints one object with the shape, or with --shard the numbers of pictures
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let shard = args.shard.map(|shard| shard.resolve(|name| std::env::var_os(name))).transpose()?;
    if shard.is_none() {
        vgg_edge::durable_fs::check_writable(&args.output)?;
    }
    let base = args.base.load()?;
    let resize = args.resize.map_or(base.contract().resize, Into::into);
    let preprocess = Preprocess::new(base.contract().clone(), args.size, args.fit.into(), resize)?;
    if let Some(shard) = shard {
        return part(&args, &base, &preprocess, shard);
    }
    let Pool { classes, items, .. } = dataset::open(&args.data)?.pool();
    let features = crate::features::extraction::extract(&base, &preprocess, &items, &args.extract)?;
    let [height, width, channels] = preprocess.feature_shape();
    let shape = [features.items.len() as u64, height as u64, width as u64, channels as u64];
    let kept = || features.items.iter().map(|&item| &items[item]);
    let names: Vec<String> = kept().map(|item| relative(&item.path, &args.data)).collect();
    vgg_edge::durable_fs::write_atomic::<anyhow::Error>(&args.output, |file| {
        let wrong = || Error::io("write", &args.output);
        let mut npz = NpzWriter::new(file);
        let rows = 0..features.items.len();
        if args.quantized {
            npz.rows(
                "features",
                &shape,
                rows.map(|row| features.row(row).map(Cow::into_owned)),
                wrong,
            )?;
            npz.numbers("scale", &[channels as u64], features.scales.iter().copied())
                .map_err(wrong())?;
        } else {
            let real =
                |map: Cow<'_, [u8]>| dequantize(&map, &features.scales).collect::<Vec<f32>>();
            npz.rows("features", &shape, rows.map(|row| features.row(row).map(real)), wrong)?;
        }
        npz.numbers("labels", &[names.len() as u64], kept().map(|item| item.class as i64))
            .map_err(wrong())?;
        npz.strings("class_names", &classes).map_err(wrong())?;
        npz.strings("file_names", &names).map_err(wrong())?;
        npz.finish().map_err(wrong())?;
        Ok(())
    })?;
    if args.json {
        print_line(serde_json::json!({
            "output": args.output, "shape": shape, "skipped": features.skipped.len(), "cached": features.cached
        }))?;
    } else {
        print_line(format_args!("wrote {}: features {shape:?}", args.output.display()))?;
    }
    Ok(())
}

/// Makes a part.
fn part(args: &Args, base: &Backbone, preprocess: &Preprocess, shard: Shard) -> Result<()> {
    let Made { path, pictures, rows, cached, kept } =
        extract_part(base, preprocess, &args.data, shard, &args.output, &args.extract)?;
    if args.json {
        print_line(serde_json::json!({
            "output": path, "shard": shard.index, "shards": shard.count, "pictures": pictures, "skipped": pictures - rows,
            "cached": cached, "kept": kept,
        }))?;
    } else {
        let done = if kept { "kept" } else { "wrote" };
        print_line(format_args!("{done} {}: {rows} of {pictures} pictures", path.display()))?;
    }
    Ok(())
}

fn relative(path: &Path, root: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned()
}
