//! Features of a training: extracted from images, or read from parts.

use anyhow::Result;
use vgg_edge::Backbone;
use vgg_edge::preprocess::Preprocess;
use vgg_edge_cli::terminal::CancelToken;

use super::settings::{DataSettings, DataSource, TrainSettings};
use crate::dataset::{self, Pool, Splits, folds};
use crate::features::extraction::{Features, extract};
use crate::features::parts::PartSet;

/// Source of the features, listed but not read.
pub(super) enum Source {
    /// Images, whose features are extracted.
    Images(Splits, Preprocess),
    /// Extracted features.
    Features(PartSet),
}

/// Images, their features, and how these were made.
pub(super) struct Loaded {
    pub pool: Pool,
    pub features: Features,
    pub preprocess: Preprocess,
}

impl Source {
    /// Opens what the settings name.
    pub fn open(settings: &DataSettings, base: &Backbone) -> Result<Self> {
        match &settings.source {
            DataSource::Images { directory, size, fit, resize } => {
                let resize = resize.unwrap_or(base.contract().resize);
                let preprocess = Preprocess::new(base.contract().clone(), *size, *fit, resize)?;
                Ok(Self::Images(dataset::open(directory)?, preprocess))
            }
            DataSource::Features { path, .. } => {
                let set = PartSet::open(path)?;
                set.check_base(base)?;
                Ok(Self::Features(set))
            }
        }
    }

    /// Returns the preprocessing.
    pub fn preprocess(&self) -> &Preprocess {
        match self {
            Self::Images(_, preprocess) => preprocess,
            Self::Features(set) => &set.run().preprocess,
        }
    }

    /// Returns the names of the classes.
    pub fn labels(&self) -> &[String] {
        match self {
            Self::Images(splits, _) => &splits.train.classes,
            Self::Features(set) => &set.run().data.classes,
        }
    }

    /// Logs how the data are split.
    pub fn log(&self, settings: &DataSettings) {
        let val = match self {
            Self::Images(splits, _) => {
                let ignored = splits.train.ignored
                    + splits.val.as_ref().map_or(0, |(_, listing)| listing.ignored);
                if ignored > 0 {
                    log::info!("{ignored} files without an image extension are ignored");
                }
                splits.val.as_ref().map(|(path, _)| path.display().to_string())
            }
            Self::Features(set) => {
                set.run().data.train.map(|_| "the features of the validation directory".to_owned())
            }
        };
        match (val, settings.folds) {
            (_, Some(folds)) => log::info!("cross-validating over {folds} folds of all images"),
            (Some(val), None) => log::info!("validating on {val}"),
            (None, None) => {
                log::info!("setting aside {} of each class for validation", settings.val_split);
            }
        }
    }

    /// Extracts the features, or opens them.
    pub fn load(
        self,
        settings: &TrainSettings,
        base: &Backbone,
        cancel: &CancelToken,
    ) -> Result<Loaded> {
        let data = &settings.data;
        let check = |pool: &Pool| match data.folds {
            Some(folds) => {
                folds::check_counts(pool.items.iter().map(|item| item.class), &pool.classes, folds)
            }
            None => Ok(()),
        };
        match self {
            Self::Images(splits, preprocess) => {
                let pool = splits.pool();
                check(&pool)?;
                let features = extract(base, &preprocess, &pool.items, &data.extract, cancel)?;
                Ok(Loaded { pool, features, preprocess })
            }
            Self::Features(set) => {
                let images = match &data.source {
                    DataSource::Features { images, .. } => images.as_deref(),
                    DataSource::Images { .. } => None,
                };
                // Paths are only needed to read or name images.
                let names = images.is_some() || settings.output.report.report.is_some();
                let (pool, features) =
                    set.features(images.unwrap_or("".as_ref()), names, cancel)?;
                check(&pool)?;
                let skipped = features.skipped.len();
                if skipped > 0 {
                    log::warn!(
                        "{skipped} images could not be read when their features were extracted"
                    );
                }
                let preprocess = set.run().preprocess.clone();
                Ok(Loaded { pool, features, preprocess })
            }
        }
    }
}
