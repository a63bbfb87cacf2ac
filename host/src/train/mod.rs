//! Training of a head: from a directory of images, or extracted features, to a head file.
//!
//! [`run`] takes [`settings`] and does one of three things: it trains with a validation set, and
//! may then fine-tune the last layers of the backbone, or it cross-validates and trains on all
//! images. Each can be interrupted and resumed from a checkpoint.

mod cross_validation;
mod data;
mod fine_tuning;
mod job;
mod output;
mod progress;
mod record;
pub mod settings;

use std::collections::HashSet;

use anyhow::{Context, Result, bail};
use vgg_edge::Backbone;
use vgg_edge::head::{Decision, Head, Output, TrainingRecord, is_background_name};
use vgg_edge::preprocess::Preprocess;
use vgg_edge_cli::terminal::{CancelToken, Printer, UsageError};

use self::data::{Loaded, Source};
use self::job::{Job, SplitRows};
use self::settings::{HeadSettings, TrainSettings};
use crate::checkpoint::Checkpoint;
use crate::features::extraction::Features;

/// Trains a head and writes it.
///
/// # Errors
/// Settings or data that cannot be trained on; files that cannot be read or written; a training
/// that diverges; cancellation, after what can be saved was saved.
pub fn run(settings: &TrainSettings, cancel: &CancelToken) -> Result<()> {
    settings.check()?;
    let base = settings.base.load()?;
    let source = Source::open(&settings.data, &base)?;
    let labels = source.labels().to_vec();
    let config = settings.config(labels.len());
    config.validate().map_err(|e| UsageError(e.to_string()))?;
    // Before minutes of work rather than after.
    vgg_edge::durable_fs::check_writable(&settings.output.head)?;
    settings.check_head_size(&config, source.preprocess())?;
    if let Some(fine_tune) = &settings.fine_tune {
        fine_tune.check(&settings.output.head, &base)?;
    }
    let order = settings.output.report.prepare(&base)?;
    settings.head.class_weights.resolve(&labels, &vec![1; labels.len()])?;
    if settings.checkpoint.resume {
        Checkpoint::check_exists(&settings.output.head, job::checkpoint_extensions(settings))?;
    }
    if settings.fine_tune.is_some() && settings.output.report.float.is_some() {
        log::warn!(
            "--float belongs to the frozen backbone: the report of the fine-tuned one does not \
             compare with it"
        );
    }

    source.log(&settings.data);
    let Loaded { pool, features, preprocess } = source.load(settings, &base, cancel)?;
    let classes = pool.classes_of(&features.items);
    let (train_rows, val_rows) = match settings.data.folds {
        Some(_) => ((0..classes.len()).collect(), Vec::new()),
        None => {
            let (val_split, seed) = (settings.data.val_split, settings.optimizer.seed);
            pool.rows(&features.items, &features.hashes, val_split, seed)
        }
    };
    let rows = SplitRows { train: &train_rows, val: &val_rows };
    warn_of_copies(&features, rows);
    let printer = Printer::default();
    let job = Job {
        settings,
        cancel,
        printer: &printer,
        augmentation: settings.augmentation.as_ref(),
        config,
        base: &base,
        items: &pool.items,
        features: &features,
        classes: &classes,
        head: empty_head(&settings.head, &base, preprocess, &labels),
        order: order.as_ref(),
        record: record::augmentation(settings),
    };
    if let Some(class) = job.counts(rows.train).iter().position(|&count| count == 0) {
        bail!(
            "{}: no image of class {} could be read",
            settings.data.source.path().display(),
            labels[class]
        );
    }
    // Everything runs on the requested number of threads.
    let threads =
        rayon::ThreadPoolBuilder::new().num_threads(settings.data.extract.threads).build()?;
    threads.install(|| match settings.data.folds {
        Some(folds) => job.cross_validate(folds, rows.train),
        None => job.train_validated(rows),
    })?;
    printer.end().context("standard output")
}

/// Returns a head without layers, temperature and training record.
fn empty_head(
    settings: &HeadSettings,
    base: &Backbone,
    preprocess: Preprocess,
    labels: &[String],
) -> Head {
    let background = (0..labels.len()).filter(|&label| is_background_name(&labels[label]));
    Head {
        base: base.fingerprint(),
        preprocess,
        feature_scales: base.feature_scales().to_vec(),
        labels: labels.to_vec(),
        layers: Vec::new(),
        output: if labels.len() == 2 { Output::Sigmoid } else { Output::Softmax },
        decision: Decision { threshold: settings.threshold, ..Decision::default() },
        training: TrainingRecord::default(),
        pool: settings.pool,
        background: background.map(|label| label as u32).collect(),
    }
}

/// Warns of validation images that are also training images: the data are split that way, or an
/// image is in two classes.
fn warn_of_copies(features: &Features, rows: SplitRows<'_>) {
    let known: HashSet<_> = rows.train.iter().map(|&row| features.hashes[row]).collect();
    let copies = rows.val.iter().filter(|&&row| known.contains(&features.hashes[row])).count();
    if copies > 0 {
        log::warn!(
            "{copies} validation images are copies of training images: the validation metrics \
             are too good"
        );
    }
}
