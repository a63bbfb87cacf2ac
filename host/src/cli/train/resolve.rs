//! Settings that the flags of `host train` resolve to.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use vgg_edge::head::Pool;
use vgg_edge_cli::terminal::UsageError;

use super::{
    Args, DataArgs, FineTuneArgs, HeadArgs, OptimizerArgs, OptimizerName, PoolName, RecipeName,
    ScheduleName,
};
use crate::augment::AugmentSettings;
use crate::cli::options::{ExtractOptions, InputOptions};
use crate::train::settings::{
    CheckpointSettings, ClassWeights, DataSettings, DataSource, FineTuneSettings, HeadSettings,
    OptimizerSettings, OutputSettings, Recipe, TrainSettings,
};
use crate::trainer::{Optimizer, Schedule};

impl Args {
    /// Returns the settings, checked as far as possible without reading files.
    pub(super) fn resolve(self) -> Result<TrainSettings> {
        let recipe = match self.optimizer.recipe {
            RecipeName::Fast => Recipe::Fast,
            RecipeName::Seed => Recipe::Seed,
        };
        let fine_tune = self.fine_tune.resolve(&self.output.output);
        let augmentation = self.augment.resolve()?;
        if self.variants.is_some() && augmentation.is_none() {
            bail!(UsageError(
                "--variants requires --augment or one of its parts, such as --rotation".into()
            ));
        }
        let settings = TrainSettings {
            head: self.head.resolve(recipe)?,
            optimizer: self.optimizer.resolve(recipe)?,
            data: self.data.resolve(&self.input, &self.extract),
            base: self.base,
            augmentation: augmentation
                .map(|augmentation| AugmentSettings { augmentation, variants: self.variants }),
            fine_tune,
            checkpoint: CheckpointSettings {
                resume: self.output.resume,
                every: Duration::from_secs(self.output.checkpoint_every.into()),
            },
            output: OutputSettings {
                head: self.output.output,
                json: self.output.json,
                report: self.report,
            },
        };
        settings.check()?;
        Ok(settings)
    }
}

impl DataArgs {
    fn resolve(self, input: &InputOptions, extract: &ExtractOptions) -> DataSettings {
        let source = match self.features {
            Some(path) => DataSource::Features { path, images: self.data },
            None => DataSource::Images {
                // Required by the command line without --features.
                directory: self.data.unwrap_or_default(),
                size: input.size,
                fit: input.fit.into(),
                resize: input.resize.map(Into::into),
            },
        };
        DataSettings {
            source,
            val_split: self.val_split,
            folds: self.folds.map(|folds| folds as usize),
            extract: extract.resolve(),
        }
    }
}

impl HeadArgs {
    fn resolve(self, recipe: Recipe) -> Result<HeadSettings, UsageError> {
        let defaults = recipe.head();
        Ok(HeadSettings {
            pool: match self.pool {
                PoolName::Flatten => Pool::Flatten,
                PoolName::Avg => Pool::Avg,
                PoolName::Max => Pool::Max,
            },
            units: self.units.as_deref().map_or(Ok(defaults.units), hidden_layers)?,
            dropout: self.dropout.unwrap_or(defaults.dropout),
            batch_norm: self.batch_norm,
            l2: self.l2,
            class_weights: self.class_weights,
            label_smoothing: self.label_smoothing,
            calibrate: !self.no_calibration,
            threshold: self.threshold,
        })
    }
}

impl OptimizerArgs {
    fn resolve(self, recipe: Recipe) -> Result<OptimizerSettings, UsageError> {
        let defaults = recipe.optimizer();
        if self.lr_step.is_some() && self.lr_schedule != ScheduleName::Step {
            return Err(UsageError("--lr-step requires --lr-schedule step".into()));
        }
        let lr = self.lr.unwrap_or(defaults.optimizer.lr());
        Ok(OptimizerSettings {
            optimizer: match (self.optimizer, recipe) {
                (Some(OptimizerName::Adam), _) | (None, Recipe::Fast) => Optimizer::adam(lr),
                (Some(OptimizerName::Rmsprop), _) | (None, Recipe::Seed) => Optimizer::rms_prop(lr),
                (Some(OptimizerName::Sgd), _) => Optimizer::sgd(lr),
            },
            schedule: match self.lr_schedule {
                ScheduleName::Constant => Schedule::Constant,
                ScheduleName::Cosine => Schedule::Cosine,
                ScheduleName::Step => {
                    Schedule::Step { epochs: self.lr_step.unwrap_or(20) as usize }
                }
                ScheduleName::Plateau => Schedule::Plateau { patience: 5 },
            },
            epochs: self.epochs.map_or(defaults.epochs, |epochs| epochs as usize),
            patience: match self.patience {
                Some(epochs) => (epochs > 0).then_some(epochs as usize),
                None => defaults.patience,
            },
            batch_size: self.batch_size.map_or(defaults.batch_size, |images| images as usize),
            seed: self.seed,
        })
    }
}

impl FineTuneArgs {
    fn resolve(self, head: &Path) -> Option<FineTuneSettings> {
        Some(FineTuneSettings {
            first: self.first?,
            base: self.tuned_base.unwrap_or_else(|| head.with_extension("onnx")),
            lr: self.fine_tune_lr,
            epochs: self.fine_tune_epochs as usize,
            patience: (self.fine_tune_patience > 0).then_some(self.fine_tune_patience as usize),
        })
    }
}

/// Returns the hidden layers of `--units`.
fn hidden_layers(widths: &[u32]) -> Result<Vec<usize>, UsageError> {
    match widths {
        [0] => Ok(Vec::new()),
        widths if widths.contains(&0) => Err(UsageError(
            "--units 0 means no hidden layer; with several layers each has at least 1 unit".into(),
        )),
        widths => Ok(widths.iter().map(|&units| units as usize).collect()),
    }
}

pub(super) fn parse_class_weights(text: &str) -> Result<ClassWeights, String> {
    match text {
        "none" => return Ok(ClassWeights::None),
        "balanced" => return Ok(ClassWeights::Balanced),
        _ => {}
    }
    let mut named: Vec<(String, f64)> = Vec::new();
    for part in text.split(',') {
        // At the last equals sign: a name may contain some.
        let pair = part
            .rsplit_once('=')
            .and_then(|(name, weight)| Some((name.to_owned(), weight.parse().ok()?)));
        let Some((name, weight)) =
            pair.filter(|(_, weight): &(String, f64)| (0.0..1e30).contains(weight))
        else {
            return Err(format!(
                "expected `balanced`, `none` or NAME=WEIGHT,... with weights of at least 0, not \
                 {part}"
            ));
        };
        if named.iter().any(|(known, _)| *known == name) {
            return Err(format!("class {name} occurs twice"));
        }
        named.push((name, weight));
    }
    Ok(ClassWeights::Named(named))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_weights_are_parsed() {
        assert_eq!(parse_class_weights("balanced"), Ok(ClassWeights::Balanced));
        let named = vec![("a=b".to_owned(), 2.0), ("c".to_owned(), 0.5)];
        assert_eq!(parse_class_weights("a=b=2,c=0.5"), Ok(ClassWeights::Named(named)));
        for bad in ["", "a", "a=", "a=-1", "a=nan", "a=inf", "a=1,,b=2", "a=1,a=2"] {
            assert!(parse_class_weights(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn units_are_parsed() {
        assert_eq!(hidden_layers(&[0]).unwrap(), [0usize; 0]);
        assert_eq!(hidden_layers(&[256, 128]).unwrap(), [256, 128]);
        assert!(hidden_layers(&[256, 0]).is_err());
    }
}
