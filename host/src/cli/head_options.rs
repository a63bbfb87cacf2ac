//! Flags of `host train` about the shape of the head and how it is regularized, cross-validated and
//! resumed.

use anyhow::{Result, bail};
use clap::ValueEnum;
use vgg_edge::head::Pool;
use vgg_edge_cli::terminal::UsageError;

use crate::trainer::{Schedule, TrainConfig};

/// See the [module](self).
#[derive(clap::Args)]
pub struct HeadOptions {
    /// What the dense layers see of the feature map: all of it, or one value a channel
    #[arg(long, value_enum, default_value_t = PoolName::Flatten)]
    pub pool: PoolName,

    /// Batch normalization in each hidden layer, before its ReLU; folded into the layer when
    /// training is done
    #[arg(long)]
    pub batch_norm: bool,

    /// Adds STRENGTH times the sum of the squared weights to the loss
    #[arg(long, value_name = "STRENGTH", default_value_t = 0.0)]
    pub l2: f64,

    /// How much the pictures of each class count: `balanced` (all classes the same), `none`, or
    /// NAME=WEIGHT,... (others 1)
    #[arg(long, value_name = "WEIGHTS", default_value = "none", value_parser = parse_class_weights)]
    pub class_weights: ClassWeights,

    /// How the learning rate goes on: `cosine` to 0 over all epochs, `step` to a tenth every
    /// --lr-step epochs, `plateau` to half after 5 epochs without a lower validation loss
    #[arg(long, value_enum, default_value_t = ScheduleName::Constant)]
    pub lr_schedule: ScheduleName,

    /// Epochs between the steps of --lr-schedule step [default: 20]
    #[arg(long, value_name = "EPOCHS", value_parser = clap::value_parser!(u32).range(1..))]
    pub lr_step: Option<u32>,

    /// Share of the target that is spread over all classes
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub label_smoothing: f64,

    /// Cross-validates over so many parts of all pictures, then trains on all of them for the mean
    /// of the best epochs
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(2..=100))]
    pub folds: Option<u32>,

    /// Goes on from HEAD.checkpoint, which an interrupted run has left (with --folds after the last
    /// whole fold, with --fine-tune in any step)
    #[arg(long)]
    pub resume: bool,

    /// Writes HEAD.checkpoint every so many seconds, between two batches
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub checkpoint_every: u32,
}

/// The names of [`Pool`] on the command line.
#[derive(Clone, Copy, ValueEnum)]
pub enum PoolName {
    /// All values (Keras Flatten)
    Flatten,
    /// The mean over the places (GlobalAveragePooling2D)
    Avg,
    /// The largest over the places (GlobalMaxPooling2D)
    Max,
}

impl From<PoolName> for Pool {
    fn from(name: PoolName) -> Self {
        match name {
            PoolName::Flatten => Self::Flatten,
            PoolName::Avg => Self::Avg,
            PoolName::Max => Self::Max,
        }
    }
}

/// The names of [`Schedule`] on the command line.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScheduleName {
    Constant,
    Cosine,
    Step,
    Plateau,
}

/// What `--class-weights` says.
#[derive(Clone, Debug, PartialEq)]
pub enum ClassWeights {
    /// All 1.
    None,
    /// `n / (k * n_c)` with `n` pictures in `k` classes, `n_c` of them in class c (scikit-learn's
    /// `balanced`).
    Balanced,
    /// For some classes by name.
    Named(Vec<(String, f64)>),
}

fn parse_class_weights(text: &str) -> Result<ClassWeights, String> {
    match text {
        "none" => return Ok(ClassWeights::None),
        "balanced" => return Ok(ClassWeights::Balanced),
        _ => {}
    }
    let mut named: Vec<(String, f64)> = Vec::new();
    for part in text.split(',') {
        // The last one: a name may have such a sign.
        let pair = part
            .rsplit_once('=')
            .and_then(|(name, weight)| Some((name.to_owned(), weight.parse().ok()?)));
        let Some((name, weight)) =
            pair.filter(|(_, weight): &(String, f64)| (0.0..1e30).contains(weight))
        else {
            return Err(format!(
                "`balanced`, `none` or NAME=WEIGHT,... with weights of at least 0 is wanted, not {part}"
            ));
        };
        if named.iter().any(|(known, _)| *known == name) {
            return Err(format!("class {name} occurs twice"));
        }
        named.push((name, weight));
    }
    Ok(ClassWeights::Named(named))
}

impl HeadOptions {
    /// Sets what these flags say, but for the weights of classes.
    ///
    /// # Errors
    /// [`UsageError`] for a flag that does nothing beside the others.
    pub fn apply(&self, config: TrainConfig) -> Result<TrainConfig, UsageError> {
        if self.lr_step.is_some() && self.lr_schedule != ScheduleName::Step {
            return Err(UsageError("--lr-step is for --lr-schedule step".into()));
        }
        Ok(TrainConfig {
            batch_norm: self.batch_norm,
            l2: self.l2,
            label_smoothing: self.label_smoothing,
            schedule: match self.lr_schedule {
                ScheduleName::Constant => Schedule::Constant,
                ScheduleName::Cosine => Schedule::Cosine,
                ScheduleName::Step => {
                    Schedule::Step { epochs: self.lr_step.unwrap_or(20) as usize }
                }
                ScheduleName::Plateau => Schedule::Plateau { patience: 5 },
            },
            ..config
        })
    }

    /// The hidden layers that `--units` names.
    ///
    /// # Errors
    /// [`UsageError`] for a width of 0 among others.
    pub fn units(widths: &[u32]) -> Result<Vec<usize>> {
        match widths {
            [0] => Ok(Vec::new()),
            widths if widths.contains(&0) => {
                bail!(UsageError(
                    "--units 0 is for no hidden layer; among several each has at least 1".into()
                ))
            }
            widths => Ok(widths.iter().map(|&units| units as usize).collect()),
        }
    }

    /// The factor of each class; empty if all are 1. `counts` are those of the pictures to train
    /// on.
    ///
    /// # Errors
    /// [`UsageError`] for a class that is none.
    pub fn class_weights(&self, labels: &[String], counts: &[u32]) -> Result<Vec<f64>> {
        match &self.class_weights {
            ClassWeights::None => Ok(Vec::new()),
            ClassWeights::Balanced => {
                let total = counts.iter().sum::<u32>();
                let each = f64::from(total) / labels.len() as f64;
                Ok(counts.iter().map(|&count| each / f64::from(count.max(1))).collect())
            }
            ClassWeights::Named(named) => {
                let mut weights = vec![1.0; labels.len()];
                for (name, weight) in named {
                    let Some(class) = labels.iter().position(|label| label == name) else {
                        let known = labels.join(", ");
                        bail!(UsageError(format!(
                            "--class-weights: there is no class {name} (there are: {known})"
                        )));
                    };
                    weights[class] = *weight;
                }
                Ok(weights)
            }
        }
    }

    /// What differs from the defaults, in words for the training record; each part begins with a
    /// comma.
    pub fn words(&self, config: &TrainConfig) -> String {
        let mut words = String::new();
        let mut say = |text: String| words += &format!(", {text}");
        if !matches!(self.pool, PoolName::Flatten) {
            say(format!("pool {}", Pool::from(self.pool).name()));
        }
        if config.batch_norm {
            say("batch normalisation".into());
        }
        if config.l2 > 0.0 {
            say(format!("l2 {}", config.l2));
        }
        match &self.class_weights {
            ClassWeights::None => {}
            ClassWeights::Balanced => say("class weights balanced".into()),
            ClassWeights::Named(named) => {
                let list: Vec<String> =
                    named.iter().map(|(name, weight)| format!("{name}={weight}")).collect();
                say(format!("class weights {}", list.join(" ")));
            }
        }
        match config.schedule {
            Schedule::Constant => {}
            Schedule::Cosine => say("cosine schedule".into()),
            Schedule::Step { epochs } => say(format!("a tenth of the rate every {epochs} epochs")),
            Schedule::Plateau { patience } => {
                say(format!("half of the rate after {patience} epochs on a plateau"))
            }
        }
        if config.label_smoothing > 0.0 {
            say(format!("label smoothing {}", config.label_smoothing));
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_weights_are_read() {
        assert_eq!(parse_class_weights("balanced"), Ok(ClassWeights::Balanced));
        let named = vec![("a=b".to_owned(), 2.0), ("c".to_owned(), 0.5)];
        assert_eq!(parse_class_weights("a=b=2,c=0.5"), Ok(ClassWeights::Named(named)));
        for bad in ["", "a", "a=", "a=-1", "a=nan", "a=inf", "a=1,,b=2", "a=1,a=2"] {
            assert!(parse_class_weights(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn widths_are_read() {
        assert_eq!(HeadOptions::units(&[0]).unwrap(), [0usize; 0]);
        assert_eq!(HeadOptions::units(&[256, 128]).unwrap(), [256, 128]);
        assert!(HeadOptions::units(&[256, 0]).is_err());
    }
}
