//! `host augment`: a sheet of a picture's variants, to look at.

use std::path::PathBuf;

use anyhow::Result;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use vgg_edge::Fingerprint;
use vgg_edge::image::decode::{MAX_FILE_BYTES, decode};
use vgg_edge::image::resize::{Rect, resize};
use vgg_edge::preprocess::Fit;
use vgg_edge_cli::options::FitName;
use vgg_edge_cli::terminal::{UsageError, print_line};

use super::train::ResizeName;
use crate::augment::{AugmentOptions, Augmentation};

/// Tiles along each side of the sheet.
const TILES: usize = 4;
/// Pixels between tiles.
const GAP: usize = 4;

/// Draws a picture and 15 of its variants as `host train` would make them
///
/// The picture is the first of the sheet, then come its variants of the epochs 1 to 15 (or with
/// --variants the first 15). Without flags of augmentation, those of --augment are drawn.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  host augment photo.jpg -o sheet.png\n  \
    host augment photo.jpg -o sheet.png --size 128 --rotation 15 --zoom 0.3 --fill reflect")]
pub struct Args {
    /// Picture file
    file: PathBuf,

    /// Where the sheet goes, a PNG
    #[arg(short, long, value_name = "PNG")]
    output: PathBuf,

    #[command(flatten)]
    augment: AugmentOptions,

    /// Height and width of each variant in pixels, as of `host train`
    #[arg(long, value_name = "PIXELS", default_value_t = 64, value_parser = clap::value_parser!(u16).range(8..=1024))]
    size: u16,

    /// Which part of a picture is used
    #[arg(long, value_enum, default_value_t = FitName::Stretch)]
    fit: FitName,

    /// How it is resized
    #[arg(long, value_enum, default_value_t = ResizeName::Bilinear)]
    resize: ResizeName,

    /// The seed of `host train`
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let augmentation = args.augment.resolve()?.unwrap_or(Augmentation::TUTORIAL);
    if args.output == args.file {
        return Err(
            UsageError("the sheet would replace the picture; name another file".into()).into()
        );
    }
    vgg_edge::durable_fs::check_writable(&args.output)?;
    let bytes = vgg_edge::durable_fs::read_limited(&args.file, MAX_FILE_BYTES)?;
    let frame = decode(&bytes).map_err(|e| anyhow::anyhow!("{}: {e}", args.file.display()))?;
    let (content, size, fit) =
        (Fingerprint::of(&bytes), usize::from(args.size), Fit::from(args.fit));
    let source = fit.source(Rect { x: 0, y: 0, width: frame.width(), height: frame.height() });
    let target = fit.target(source, size);
    let resized = resize(&frame, source, target.width, target.height, args.resize.into());

    let side = TILES * (size + GAP) + GAP;
    let mut sheet = vec![0xff; 3 * side * side];
    for tile in 0..TILES * TILES {
        let picture = match tile {
            0 => resized.clone(),
            epoch => {
                augmentation.variant(args.seed, epoch as u64, &content, &resized, target.width)
            }
        };
        let (left, top) =
            (GAP + (tile % TILES) * (size + GAP), GAP + (tile / TILES) * (size + GAP));
        for y in 0..size {
            // What --fit contain leaves free.
            sheet[3 * ((top + y) * side + left)..][..3 * size].fill(0x80);
        }
        for (y, row) in picture.chunks_exact(3 * target.width).enumerate() {
            let at = 3 * ((top + target.y + y) * side + left + target.x);
            sheet[at..at + row.len()].copy_from_slice(row);
        }
    }
    vgg_edge::durable_fs::write_atomic::<anyhow::Error>(&args.output, |file| {
        let (encoder, side) = (PngEncoder::new(file), side as u32);
        Ok(encoder.write_image(&sheet, side, side, ExtendedColorType::Rgb8)?)
    })?;
    print_line(format_args!("wrote {}: {augmentation}", args.output.display()))?;
    Ok(())
}
