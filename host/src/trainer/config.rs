use std::fmt::Display;

use super::TrainError;

/// The rule that turns a gradient `g` into a step of a weight `w`, as in Keras 3.
///
/// Numbers are `f64` so that `1 - rho` and the like are rounded to `f32` only once, as Keras does;
/// the steps themselves are computed in `f32`. All state starts at zero. The learning rate is where
/// a [`Schedule`] starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Optimizer {
    /// Divides the step by a running root mean square of the gradient (not centred).
    ///
    /// ```text
    /// v <- rho * v + (1 - rho) * g^2
    /// i  = lr * g / sqrt(v + epsilon)
    /// w <- w - i                          if momentum = 0, else
    /// m <- momentum * m + i;  w <- w - m
    /// ```
    RmsProp {
        /// Learning rate, above 0. Keras's default is 0.001.
        lr: f64,
        /// Decay of the running mean, in `[0, 1)`. Keras's default is 0.9.
        rho: f64,
        /// Keeps the divisor from being 0; above 0. Keras's default is 1e-7.
        epsilon: f64,
        /// Momentum, in `[0, 1)`. Keras's default is 0.
        momentum: f64,
    },
    /// Adaptive moments. In step `t`, from 1:
    ///
    /// ```text
    /// alpha = lr * sqrt(1 - beta2^t) / (1 - beta1^t)
    /// m <- m + (g - m) * (1 - beta1)
    /// v <- v + (g^2 - v) * (1 - beta2)
    /// w <- w - alpha * m / (sqrt(v) + epsilon)
    /// ```
    Adam {
        /// Learning rate, above 0. Keras's default is 0.001.
        lr: f64,
        /// Decay of the first moment, in `[0, 1)`. Keras's default is 0.9.
        beta1: f64,
        /// Decay of the second moment, in `[0, 1)`. Keras's default is 0.999.
        beta2: f64,
        /// Keeps the divisor from being 0; above 0. Keras's default is 1e-7.
        epsilon: f64,
    },
    /// Stochastic gradient descent (no Nesterov).
    ///
    /// ```text
    /// w <- w - lr * g                           if momentum = 0, else
    /// m <- momentum * m - lr * g;  w <- w + m
    /// ```
    Sgd {
        /// Learning rate, above 0. Keras's default is 0.01.
        lr: f64,
        /// Momentum, in `[0, 1)`. Keras's default is 0.
        momentum: f64,
    },
}

impl Optimizer {
    /// RMSprop with Keras's defaults, but for the learning rate.
    pub const fn rms_prop(lr: f64) -> Self {
        Self::RmsProp { lr, rho: 0.9, epsilon: 1e-7, momentum: 0.0 }
    }

    /// Adam with Keras's defaults, but for the learning rate.
    pub const fn adam(lr: f64) -> Self {
        Self::Adam { lr, beta1: 0.9, beta2: 0.999, epsilon: 1e-7 }
    }

    /// Plain gradient descent, without momentum.
    pub const fn sgd(lr: f64) -> Self {
        Self::Sgd { lr, momentum: 0.0 }
    }

    /// The learning rate.
    pub const fn lr(&self) -> f64 {
        match *self {
            Self::RmsProp { lr, .. } | Self::Adam { lr, .. } | Self::Sgd { lr, .. } => lr,
        }
    }

    fn validate(&self) -> Result<(), TrainError> {
        positive("optimizer.lr", self.lr())?;
        match *self {
            Self::RmsProp { rho, epsilon, momentum, .. } => {
                fraction("optimizer.rho", rho)?;
                positive("optimizer.epsilon", epsilon)?;
                fraction("optimizer.momentum", momentum)
            }
            Self::Adam { beta1, beta2, epsilon, .. } => {
                fraction("optimizer.beta1", beta1)?;
                fraction("optimizer.beta2", beta2)?;
                positive("optimizer.epsilon", epsilon)
            }
            Self::Sgd { momentum, .. } => fraction("optimizer.momentum", momentum),
        }
    }
}

/// How the learning rate goes on from that of the [`Optimizer`], as in Keras 3.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// It stays.
    Constant,
    /// `CosineDecay` over all steps of all epochs: `lr * (1 + cos(pi * step / steps)) / 2`, steps from 0.
    Cosine,
    /// A tenth after every so many epochs, at least 1.
    Step {
        /// Epochs at one rate.
        epochs: usize,
    },
    /// `ReduceLROnPlateau`: half, each time that `patience` epochs in a row (at least 1) have not brought the validation loss (without a
    /// validation set the training loss) more than 1e-4 below its best.
    Plateau {
        /// Epochs without improvement.
        patience: usize,
    },
}

/// What to train, and how.
///
/// The defaults are those of Keras where it has any.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    /// Widths of the hidden layers, first to last, each at least 1. A layer may have at most 2^29 weights (2 GiB), its
    /// inputs times its outputs. Default 256, one layer.
    pub units: Vec<usize>,
    /// Whether the sums of each hidden layer are normalised before its ReLU (Keras `BatchNormalization`); such a layer has no bias of its
    /// own. Batches must then have at least 2 samples. Default false.
    pub batch_norm: bool,
    /// Share of the values that dropout sets to zero while training, in `[0, 1)`. It acts on the
    /// output of each hidden layer, or on the features if there is none. Default 0.5.
    pub dropout: f32,
    /// Adds this times the sum of the squares of all kernels to the loss (Keras `regularizers.L2`), at least 0. Default 0.
    pub l2: f64,
    /// For each class a factor of the losses of its samples (Keras `class_weight`), at least 0; empty if all are 1. Default empty.
    pub class_weights: Vec<f64>,
    /// Share of the target that is spread over all classes (Keras `label_smoothing`), in `[0, 1)`. Default 0.
    pub label_smoothing: f64,
    /// How many classes there are, at least 2. Default 2.
    pub classes: usize,
    /// How the weights are stepped. Default RMSprop with learning rate 0.001.
    pub optimizer: Optimizer,
    /// How the learning rate goes on. Default constant.
    pub schedule: Schedule,
    /// The most passes over the training set, at least 1. Default 30.
    pub epochs: usize,
    /// Samples for each step, at least 1; the last batch of an epoch may be smaller. Default 32.
    pub batch_size: usize,
    /// Seed of the initial weights, of the shuffles and of the dropout masks, which are drawn from
    /// three independent streams: changing `dropout`, say, leaves the shuffles as they were.
    /// Default 0.
    pub seed: u64,
    /// Stops after this many epochs in a row without a new best epoch (0 acts as 1, as in Keras's
    /// `EarlyStopping`). `None` runs all epochs. Default `None`.
    pub patience: Option<usize>,
    /// Whether each epoch takes the samples in a new random order. Default true.
    pub shuffle: bool,
    /// Whether the last epoch counts as the best. Default false.
    pub keep_last: bool,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            units: vec![256],
            batch_norm: false,
            dropout: 0.5,
            l2: 0.0,
            class_weights: Vec::new(),
            label_smoothing: 0.0,
            classes: 2,
            optimizer: Optimizer::rms_prop(0.001),
            schedule: Schedule::Constant,
            epochs: 30,
            batch_size: 32,
            seed: 0,
            patience: None,
            shuffle: true,
            keep_last: false,
        }
    }
}

impl TrainConfig {
    /// Checks every field against its range.
    ///
    /// # Errors
    ///
    /// [`TrainError::InvalidConfig`] for the first field that is outside.
    pub fn validate(&self) -> Result<(), TrainError> {
        fraction("dropout", f64::from(self.dropout))?;
        at_least("classes", self.classes, 2, "at least 2")?;
        at_least("epochs", self.epochs, 1, "at least 1")?;
        at_least("batch_size", self.batch_size, 1, "at least 1")?;
        if let Some(&units) = self.units.iter().find(|&&units| units == 0) {
            return invalid("units", "at least 1 in each hidden layer", units);
        }
        if self.batch_norm {
            at_least("batch_size", self.batch_size, 2, "at least 2 with batch_norm")?;
        }
        fraction("label_smoothing", self.label_smoothing)?;
        if !(self.l2 >= 0.0 && (self.l2 as f32).is_finite()) {
            return invalid("l2", "at least 0 and within the range of f32", self.l2);
        }
        if !self.class_weights.is_empty() {
            at_least(
                "class_weights",
                self.class_weights.len(),
                self.classes,
                "one for each class",
            )?;
            let bad = |w: &&f64| !(**w >= 0.0 && (**w as f32).is_finite());
            if let Some(weight) = self.class_weights.iter().find(bad) {
                return invalid("class_weights", "at least 0 and within the range of f32", weight);
            }
        }
        match self.schedule {
            Schedule::Step { epochs } => at_least("schedule.epochs", epochs, 1, "at least 1")?,
            Schedule::Plateau { patience } => {
                at_least("schedule.patience", patience, 1, "at least 1")?
            }
            Schedule::Constant | Schedule::Cosine => {}
        }
        self.optimizer.validate()
    }

    /// How many values the last layer gives: 1 (a sigmoid's) for two classes, else one a class.
    pub fn outputs(&self) -> usize {
        if self.classes == 2 { 1 } else { self.classes }
    }
}

fn invalid(
    field: &'static str,
    requirement: &'static str,
    value: impl Display,
) -> Result<(), TrainError> {
    Err(TrainError::InvalidConfig { field, requirement, value: value.to_string() })
}

/// The steps are computed in `f32`, so what counts is what is left of the number there: 1e-50 would
/// become 0, and 0.999999999 would become 1.
fn positive(field: &'static str, value: f64) -> Result<(), TrainError> {
    let rounded = value as f32;
    if rounded > 0.0 && rounded.is_finite() {
        return Ok(());
    }
    invalid(field, "a positive number within the range of f32", value)
}

fn fraction(field: &'static str, value: f64) -> Result<(), TrainError> {
    if (0.0..1.0).contains(&(value as f32)) && value >= 0.0 {
        return Ok(());
    }
    invalid(field, "at least 0 and below 1", value)
}

fn at_least(
    field: &'static str,
    value: usize,
    least: usize,
    requirement: &'static str,
) -> Result<(), TrainError> {
    if value >= least {
        return Ok(());
    }
    invalid(field, requirement, value)
}
