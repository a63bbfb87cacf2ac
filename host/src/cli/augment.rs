//! `host augment`: a sheet of an image's variants.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{ArgAction, ValueEnum};
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use vgg_edge::Fingerprint;
use vgg_edge::image::decode::{MAX_FILE_BYTES, decode};
use vgg_edge::image::resize::{Filter, Rect, resize};
use vgg_edge::preprocess::Fit;
use vgg_edge_cli::options::FitName;
use vgg_edge_cli::terminal::{UsageError, print_line};

use super::options::ResizeName;
use crate::augment::{Augmentation, Fill};

/// Tiles along each side of the sheet.
const TILES: usize = 4;
/// Pixels between tiles.
const GAP: usize = 4;

/// Draw an image and 15 of its variants as `host train` would make them
///
/// The first tile is the image, followed by its variants of epochs 1 to 15 (with --variants the
/// first 15). Without augmentation flags, those of --augment are used.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  host augment photo.jpg -o sheet.png\n  \
    host augment photo.jpg -o sheet.png --size 128 --rotation 15 --zoom 0.3 --fill reflect")]
pub struct Args {
    /// Image file
    file: PathBuf,

    /// Height and width of each variant in pixels, as for `host train`
    #[arg(long, value_name = "PIXELS", default_value_t = 64,
        value_parser = clap::value_parser!(u16).range(8..=1024), help_heading = "Data")]
    size: u16,

    /// How the image is fitted into the square
    #[arg(long, value_enum, default_value_t = FitName::Stretch, help_heading = "Data")]
    fit: FitName,

    /// Resampling filter
    #[arg(long, value_enum, default_value_t = ResizeName::Bilinear, help_heading = "Data")]
    resize: ResizeName,

    #[command(flatten, next_help_heading = "Augmentation")]
    augment: AugmentOptions,

    /// Random seed, as for `host train`
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Augmentation")]
    seed: u64,

    /// Output file, a PNG
    #[arg(short, long, value_name = "PNG", help_heading = "Output")]
    output: PathBuf,
}

/// Flags of augmentation, for `host train` and `host augment`; as Keras's `ImageDataGenerator`.
#[derive(Clone, clap::Args)]
pub struct AugmentOptions {
    /// Augment with the ranges of the Keras tutorial
    ///
    /// These are rotation 40, shifts 0.2, shear 0.2, zoom 0.2, horizontal flip, fill nearest. The
    /// flags below change one each, or are used without --augment. They mean what they do for
    /// Keras's ImageDataGenerator.
    #[arg(long)]
    augment: bool,

    /// Maximum rotation in degrees, 0 to 180
    #[arg(long, value_name = "DEGREES", allow_negative_numbers = true)]
    rotation: Option<f64>,

    /// Maximum horizontal shift, as a fraction of the width
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true)]
    width_shift: Option<f64>,

    /// Maximum vertical shift, as a fraction of the height
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true)]
    height_shift: Option<f64>,

    /// Maximum shear in degrees
    #[arg(long, value_name = "DEGREES", allow_negative_numbers = true)]
    shear: Option<f64>,

    /// Scale each axis by 1 - FRACTION to 1 + FRACTION
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true)]
    zoom: Option<f64>,

    /// Mirror half of the variants left to right
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = ArgAction::Set)]
    horizontal_flip: Option<bool>,

    /// Turn half of the variants upside down
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = ArgAction::Set)]
    vertical_flip: Option<bool>,

    /// Range of brightness factors, such as 0.8,1.2
    #[arg(long, value_name = "LOW,HIGH", value_parser = parse_brightness,
        allow_negative_numbers = true)]
    brightness: Option<(f64, f64)>,

    /// Fill of the points outside the image [default: nearest]
    #[arg(long, value_enum)]
    fill: Option<FillName>,

    /// Value of --fill constant, 0 to 255 [default: 0]
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    fill_value: Option<f64>,
}

/// Names of [`Fill`] on the command line.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum FillName {
    /// The pixel at the edge
    Nearest,
    /// The image mirrored at its edge
    Reflect,
    /// The opposite side of the image
    Wrap,
    /// --fill-value
    Constant,
}

fn parse_brightness(text: &str) -> Result<(f64, f64), String> {
    let numbers: Option<Vec<f64>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[low, high]) if 0.0 <= low && low <= high && high <= 10.0 => Ok((low, high)),
        _ => Err("expected two factors LOW,HIGH from 0 to 10, such as 0.8,1.2".into()),
    }
}

/// Checks the value of a flag against `0..limit`, or `0..=limit` if `inclusive`.
fn check_range(flag: &str, value: f64, limit: f64, inclusive: bool) -> Result<f64, UsageError> {
    if (0.0..limit).contains(&value) || (inclusive && value == limit) {
        return Ok(value);
    }
    let range = if inclusive {
        format!("from 0 to {limit}")
    } else {
        format!("at least 0 and below {limit}")
    };
    Err(UsageError(format!("{flag} must be {range}, not {value}")))
}

impl AugmentOptions {
    /// Returns the augmentation; `None` without any of these flags.
    ///
    /// # Errors
    /// [`UsageError`] for a value out of range, and for a fill without anything that needs one.
    pub fn resolve(&self) -> Result<Option<Augmentation>, UsageError> {
        let set = if self.augment { Augmentation::TUTORIAL } else { Augmentation::NONE };
        let below = |flag: &str, value: Option<f64>, default: f64, limit: f64| {
            check_range(flag, value.unwrap_or(default), limit, false)
        };
        let fill_value = check_range("--fill-value", self.fill_value.unwrap_or(0.0), 255.0, true)?;
        if self.fill_value.is_some() && self.fill != Some(FillName::Constant) {
            return Err(UsageError("--fill-value requires --fill constant".into()));
        }
        let rotation = self.rotation.unwrap_or(set.rotation);
        let augmentation = Augmentation {
            rotation: check_range("--rotation", rotation, 180.0, true)?,
            width_shift: below("--width-shift", self.width_shift, set.width_shift, 1.0)?,
            height_shift: below("--height-shift", self.height_shift, set.height_shift, 1.0)?,
            shear: below("--shear", self.shear, set.shear, 90.0)?,
            zoom: below("--zoom", self.zoom, set.zoom, 1.0)?,
            horizontal_flip: self.horizontal_flip.unwrap_or(set.horizontal_flip),
            vertical_flip: self.vertical_flip.unwrap_or(set.vertical_flip),
            brightness: self.brightness.or(set.brightness),
            fill: match self.fill {
                None | Some(FillName::Nearest) => Fill::Nearest,
                Some(FillName::Reflect) => Fill::Reflect,
                Some(FillName::Wrap) => Fill::Wrap,
                Some(FillName::Constant) => Fill::Constant(fill_value),
            },
        };
        let is_none =
            augmentation == Augmentation { fill: augmentation.fill, ..Augmentation::NONE };
        if is_none && (self.augment || self.fill.is_some()) {
            return Err(UsageError(
                "nothing is left to augment with; add --augment, --rotation, --zoom or another \
                 of these flags"
                    .into(),
            ));
        }
        Ok((!is_none).then_some(augmentation))
    }
}

/// Settings of a sheet.
struct SheetSettings {
    augmentation: Augmentation,
    seed: u64,
    size: usize,
    fit: Fit,
    filter: Filter,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let settings = SheetSettings {
        augmentation: args.augment.resolve()?.unwrap_or(Augmentation::TUTORIAL),
        seed: args.seed,
        size: args.size.into(),
        fit: args.fit.into(),
        filter: args.resize.into(),
    };
    if args.output == args.file {
        bail!(UsageError("--output would replace the image; name another file".into()));
    }
    vgg_edge::durable_fs::check_writable(&args.output)?;
    let (rgb, side) = settings.draw(&args.file)?;
    vgg_edge::durable_fs::write_atomic::<anyhow::Error>(&args.output, |file| {
        let (encoder, side) = (PngEncoder::new(file), side as u32);
        Ok(encoder.write_image(&rgb, side, side, ExtendedColorType::Rgb8)?)
    })?;
    print_line(format_args!("wrote {}: {}", args.output.display(), settings.augmentation))?;
    Ok(())
}

impl SheetSettings {
    /// Draws the sheet of an image: RGB8, and its height and width in pixels.
    fn draw(&self, file: &Path) -> Result<(Vec<u8>, usize)> {
        let size = self.size;
        let bytes = vgg_edge::durable_fs::read_limited(file, MAX_FILE_BYTES)?;
        let frame = decode(&bytes).map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?;
        let content = Fingerprint::of(&bytes);
        let whole = Rect { x: 0, y: 0, width: frame.width(), height: frame.height() };
        let source = self.fit.source(whole);
        let target = self.fit.target(source, size);
        let resized = resize(&frame, source, target.width, target.height, self.filter);

        let side = TILES * (size + GAP) + GAP;
        let mut sheet = vec![0xff; 3 * side * side];
        for tile in 0..TILES * TILES {
            let image = match tile as u64 {
                0 => resized.clone(),
                epoch => {
                    self.augmentation.variant(self.seed, epoch, &content, &resized, target.width)
                }
            };
            let (left, top) =
                (GAP + (tile % TILES) * (size + GAP), GAP + (tile / TILES) * (size + GAP));
            for y in 0..size {
                // The borders of --fit contain.
                sheet[3 * ((top + y) * side + left)..][..3 * size].fill(0x80);
            }
            for (y, row) in image.chunks_exact(3 * target.width).enumerate() {
                let at = 3 * ((top + target.y + y) * side + left + target.x);
                sheet[at..at + row.len()].copy_from_slice(row);
            }
        }
        Ok((sheet, side))
    }
}
