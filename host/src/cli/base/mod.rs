//! `host base`: makes the int8 base from published weights.

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
use vgg_edge_cli::terminal::{CancelToken, Interrupted};

/// Make the int8 base: fetch, import and quantize weights, compare the result
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
        Command::Fetch(args) => fetch::run(args, cancel),
        Command::Import(args) => import::run(args),
        Command::Quantize(args) => quantize::run(args, cancel),
        Command::Compare(args) => compare::run(args, cancel),
    }
}

/// The weights, and their preprocessing.
#[derive(clap::Args)]
struct WeightsOptions {
    /// Weights of VGG16: Keras .h5 or .weights.h5, torchvision .safetensors, or .onnx
    #[arg(value_name = "WEIGHTS")]
    path: PathBuf,

    /// Preprocessing of the images [default: as the file implies]
    ///
    /// One of caffe (Keras), torchvision, tutorial (RGB / 255), or
    /// ORDER:MEAN,MEAN,MEAN:STD,STD,STD in units of pixel values.
    #[arg(long, value_name = "SPEC", value_parser = parse_normalization)]
    preprocess: Option<Normalization>,
}

impl WeightsOptions {
    fn load(&self) -> Result<FloatBase> {
        Ok(quant::import::import(&self.path, self.preprocess)?)
    }
}

/// Why a value of `--preprocess` is invalid.
#[derive(Debug, thiserror::Error)]
enum PreprocessError {
    /// Neither a name nor numbers.
    #[error(
        "expected caffe, torchvision, tutorial, or for instance \
         RGB:123.7,116.3,103.5:58.4,57.1,57.4"
    )]
    Syntax,
    /// Numbers that cannot be used.
    #[error("{0}")]
    Values(String),
}

/// Parses `--preprocess`.
fn parse_normalization(text: &str) -> Result<Normalization, PreprocessError> {
    match text {
        "caffe" => return Ok(Normalization::CAFFE),
        "torchvision" => return Ok(Normalization::TORCHVISION),
        "tutorial" => return Ok(Normalization::TUTORIAL),
        _ => {}
    }
    let mut parts = text.split(':');
    let mut parse = || {
        let channel_order = ChannelOrder::from_name(parts.next()?)?;
        let (mean, std) = (three(parts.next()?)?, three(parts.next()?)?);
        parts.next().is_none().then_some(Normalization { channel_order, mean, std })
    };
    let normalization = parse().ok_or(PreprocessError::Syntax)?;
    normalization.check().map_err(|error| PreprocessError::Values(error.to_string()))?;
    Ok(normalization)
}

/// Applies `convert` to the images in a directory and its subdirectories, at most `limit` of them,
/// spread evenly over the sorted files.
///
/// Unreadable files are reported and left out. An image is dropped as soon as it is converted: a
/// few hundred from a phone would fill the memory.
fn convert_images<T: Send>(
    directory: &Path,
    limit: usize,
    cancel: &CancelToken,
    convert: impl Fn(&Image) -> T + Sync,
) -> Result<Vec<T>> {
    let files = crate::dataset::images(directory)?;
    if files.is_empty() {
        bail!("{}: no images found", directory.display());
    }
    let count = files.len().min(limit);
    let read = |index: usize| -> Result<_, Interrupted> {
        cancel.check()?;
        let file = &files[(2 * index + 1) * files.len() / (2 * count)];
        let frame = vgg_edge::image::decode::decode_file(file);
        Ok((file, frame.map(|frame| convert(&frame))))
    };
    let read: Vec<_> = (0..count).into_par_iter().map(read).collect::<Result<_, _>>()?;
    let mut converted = Vec::with_capacity(count);
    for (file, result) in read {
        match result {
            Ok(image) => converted.push(image),
            Err(error) => log::warn!("left out: {}: {error}", file.display()),
        }
    }
    if converted.is_empty() {
        bail!("{}: none of {count} images can be read", directory.display());
    }
    Ok(converted)
}

/// Checks that the weights are preprocessed as the int8 base is.
fn check_preprocessing(weights: &Path, float: &FloatBase, int8: &vgg_edge::Backbone) -> Result<()> {
    let (n, input) = (float.normalization, int8.contract());
    if (n.channel_order, n.mean, n.std) != (input.channel_order, input.mean, input.std) {
        bail!(
            "{} and {} preprocess images differently; if the base was quantized from these \
             weights, give their preprocessing with --preprocess",
            weights.display(),
            int8.path().display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preprocess_is_a_name_or_numbers() {
        assert_eq!(parse_normalization("caffe").unwrap(), Normalization::CAFFE);
        assert_eq!(
            parse_normalization("BGR:103.939,116.779,123.68:1,1,1").unwrap(),
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
            assert!(parse_normalization(bad).is_err(), "{bad}");
        }
    }
}
