//! Flags of augmentation, for `host train` and `host augment`.

use anyhow::{Result, bail};
use clap::{ArgAction, ValueEnum};
use vgg_edge_cli::terminal::UsageError;

use super::{Augmentation, Fill};

/// See the [module](self).
#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Augmentation (as Keras's ImageDataGenerator)")]
pub struct AugmentOptions {
    /// Trains on random variants: the Keras tutorial's rotation 40, shifts 0.2, shear 0.2, zoom
    /// 0.2, horizontal flip, nearest; the flags below change one each, or are used alone
    #[arg(long)]
    augment: bool,

    /// Turns by up to so many degrees, 0 to 180
    #[arg(long, value_name = "DEGREES", allow_negative_numbers = true)]
    rotation: Option<f64>,

    /// Shifts sideways by up to this share of the width
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    width_shift: Option<f64>,

    /// Shifts up or down by up to this share of the height
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    height_shift: Option<f64>,

    /// Shears by up to so many degrees
    #[arg(long, value_name = "DEGREES", allow_negative_numbers = true)]
    shear: Option<f64>,

    /// Scales each axis by 1 - SHARE to 1 + SHARE
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    zoom: Option<f64>,

    /// Mirrors half of the variants left to right
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    horizontal_flip: Option<bool>,

    /// Turns half of the variants upside down
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    vertical_flip: Option<bool>,

    /// Multiplies by a factor between these two, such as 0.8,1.2
    #[arg(long, value_name = "LOW,HIGH", value_parser = parse_brightness, allow_negative_numbers = true)]
    brightness: Option<(f64, f64)>,

    /// What shows beyond the edges of the picture [default: nearest]
    #[arg(long, value_enum)]
    fill: Option<FillName>,

    /// The value of --fill constant, 0 to 255 [default: 0]
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    fill_value: Option<f64>,
}

/// The names of [`Fill`] on the command line.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum FillName {
    /// The pixel at the edge
    Nearest,
    /// The picture mirrored at its edge
    Reflect,
    /// The picture's other side
    Wrap,
    /// --fill-value
    Constant,
}

fn parse_brightness(text: &str) -> Result<(f64, f64), String> {
    let numbers: Option<Vec<f64>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[low, high]) if 0.0 <= low && low <= high && high <= 10.0 => Ok((low, high)),
        _ => Err("two factors LOW,HIGH from 0 to 10 are wanted, such as 0.8,1.2".into()),
    }
}

impl AugmentOptions {
    /// What was asked for; `None` if nothing was.
    ///
    /// # Errors
    /// [`UsageError`] for a value out of its range, and for a fill without anything that needs one.
    pub fn resolve(&self) -> Result<Option<Augmentation>> {
        let set = if self.augment { Augmentation::TUTORIAL } else { Augmentation::NONE };
        let check = |flag: &str,
                     value: Option<f64>,
                     default: f64,
                     limit: f64,
                     inclusive: bool|
         -> Result<f64> {
            let value = value.unwrap_or(default);
            if (0.0..limit).contains(&value) || (inclusive && value == limit) {
                return Ok(value);
            }
            let words = if inclusive {
                format!("from 0 to {limit}")
            } else {
                format!("at least 0 and below {limit}")
            };
            bail!(UsageError(format!("{flag} must be {words}, not {value}")))
        };
        let fill_value = check("--fill-value", self.fill_value, 0.0, 255.0, true)?;
        if self.fill_value.is_some() && self.fill != Some(FillName::Constant) {
            bail!(UsageError("--fill-value is for --fill constant; add that".into()));
        }
        let augmentation = Augmentation {
            rotation: check("--rotation", self.rotation, set.rotation, 180.0, true)?,
            width_shift: check("--width-shift", self.width_shift, set.width_shift, 1.0, false)?,
            height_shift: check("--height-shift", self.height_shift, set.height_shift, 1.0, false)?,
            shear: check("--shear", self.shear, set.shear, 90.0, false)?,
            zoom: check("--zoom", self.zoom, set.zoom, 1.0, false)?,
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
        let does_nothing =
            augmentation == Augmentation { fill: augmentation.fill, ..Augmentation::NONE };
        if does_nothing && (self.augment || self.fill.is_some()) {
            let words = "nothing is left to augment with; give --augment, --rotation, --zoom or another of these flags";
            bail!(UsageError(words.into()));
        }
        Ok((!does_nothing).then_some(augmentation))
    }
}
