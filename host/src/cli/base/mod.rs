//! `host base`: makes the int8 base from the weights of other programs.

mod compare;
mod fetch;
mod import;
mod page;
mod quantize;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Subcommand;
use quant::{FloatBase, Normalization};
use rayon::prelude::*;
use vgg_edge::Image;
use vgg_edge::preprocess::{ChannelOrder, three};
use vgg_edge_cli::terminal::{CancelToken, Interrupted, UsageError, interrupted, note};

use crate::PROGRAM;

/// Makes the int8 base: fetch the weights, import, quantize, compare
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Fetch(fetch::Args),
    Import(import::Args),
    Quantize(quantize::Args),
    Compare(compare::Args),
}

/// Runs the command.
pub fn run(args: Args, cancel: &CancelToken) -> Result<()> {
    match args.command {
        Command::Fetch(args) => fetch::run(args),
        Command::Import(args) => import::run(args),
        Command::Quantize(args) => quantize::run(args),
        Command::Compare(args) => compare::run(args, cancel),
    }
}

/// Which weights, and how their pictures are pre-processed.
#[derive(clap::Args)]
struct Weights {
    /// Weights of VGG16: Keras .h5 or .weights.h5, torchvision .safetensors, or .onnx
    #[arg(value_name = "WEIGHTS")]
    path: PathBuf,

    /// How pictures are pre-processed: caffe (Keras), torchvision, tutorial (RGB / 255), or
    /// ORDER:MEAN,MEAN,MEAN:STD,STD,STD in pixel units [default: what the file implies]
    #[arg(long, value_name = "HOW")]
    preprocess: Option<String>,
}

impl Weights {
    fn load(&self) -> Result<FloatBase> {
        let normalization =
            self.preprocess.as_deref().map(normalization).transpose().map_err(UsageError)?;
        Ok(quant::import::import(&self.path, normalization)?)
    }
}

/// What `--preprocess` says.
fn normalization(text: &str) -> Result<Normalization, String> {
    match text {
        "caffe" => return Ok(Normalization::CAFFE),
        "torchvision" => return Ok(Normalization::TORCHVISION),
        "tutorial" => return Ok(Normalization::TUTORIAL),
        _ => {}
    }
    let unclear = || {
        format!(
            "--preprocess {text}: take caffe, torchvision, tutorial, or e.g. RGB:123.7,116.3,103.5:58.4,57.1,57.4"
        )
    };
    let mut parts = text.split(':');
    let parsed = (|| {
        let order = ChannelOrder::from_name(parts.next()?)?;
        let (mean, std) = (three(parts.next()?)?, three(parts.next()?)?);
        parts.next().is_none().then_some(Normalization { channel_order: order, mean, std })
    })();
    let normalization = parsed.ok_or_else(unclear)?;
    normalization.check().map_err(|e| format!("--preprocess: {e}"))?;
    Ok(normalization)
}

/// What `make` makes of the pictures below a folder, at any depth: at most `most`, spread evenly
/// over the sorted files. Unreadable ones are named and left out. A picture is forgotten as soon as
/// it is made use of: a few hundred from a telephone would fill the memory.
fn pictures<T: Send>(
    folder: &Path,
    most: usize,
    make: impl Fn(&Image) -> T + Sync,
) -> Result<Vec<T>> {
    let files = crate::dataset::images(folder)?;
    if files.is_empty() {
        bail!("{}: no pictures in it", folder.display());
    }
    let count = files.len().min(most);
    let read = |index: usize| -> Result<Result<T, String>, Interrupted> {
        if interrupted() {
            return Err(Interrupted);
        }
        let file = &files[(2 * index + 1) * files.len() / (2 * count)];
        let frame = vgg_edge::image::decode::decode_file(file);
        Ok(frame
            .map(|frame| make(&frame))
            .map_err(|e| format!("left out: {}: {e}", file.display())))
    };
    let read: Vec<_> = (0..count).into_par_iter().map(read).collect::<Result<_, _>>()?;
    let mut made = Vec::with_capacity(count);
    for picture in read {
        match picture {
            Ok(picture) => made.push(picture),
            Err(words) => note(PROGRAM, words),
        }
    }
    if made.is_empty() {
        bail!("{}: none of {count} pictures can be read", folder.display());
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preprocess_is_a_name_or_numbers() {
        assert_eq!(normalization("caffe").unwrap(), Normalization::CAFFE);
        assert_eq!(
            normalization("BGR:103.939,116.779,123.68:1,1,1").unwrap(),
            Normalization::CAFFE
        );
        for bad in [
            "",
            "keras",
            "RGB",
            "RGB:1,2:1,1,1",
            "RGB:1,2,3:1,1,1:4",
            "RGB:1,2,3:0,1,1",
            "RGB:nan,2,3:1,1,1",
        ] {
            assert!(normalization(bad).is_err(), "{bad}");
        }
    }
}
