//! The report of `host train` and `host evaluate`: a page in one file, the history as CSV, the
//! charts as PNG.
//!
//! The commands give a [`ReportInputs`], from which a [`Report`] is made: the predictions for all
//! images. Everything that is shown is derived from it: [`audit`] finds duplicates and doubtful
//! labels, [`calibration`] bins the scores, [`plots`] draws, [`html`] writes the page.

mod audit;
mod calibration;
mod chart;
mod float;
mod history;
mod html;
mod plots;
mod prediction;
mod raster;
mod text;
mod thumbnail;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vgg_edge::{Backbone, Fingerprint, Head};
use vgg_edge_cli::terminal::CancelToken;

use crate::dataset::Item;
use crate::features::extraction::Features;
use crate::metrics::Evaluation;

pub use float::{FloatPredictions, FloatReference};
pub use history::History;
pub use prediction::{DataSplit, Prediction};

/// The flags of a report.
#[derive(clap::Args)]
pub struct ReportOptions {
    /// Write a report to this directory
    ///
    /// It has report.html, the charts as PNG and, from a training, history.csv.
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,

    /// Compare with the f32 weights of the base in the report
    ///
    /// FILE has the weights that the int8 base was quantized from, in a format that `host base
    /// compare` reads.
    #[arg(long, value_name = "FILE", requires = "report")]
    pub float: Option<PathBuf>,
}

/// The resolved [`ReportOptions`].
pub struct ReportSettings {
    /// The output directory.
    pub directory: PathBuf,
    /// The base in f32, if it is given.
    pub float: Option<FloatReference>,
}

impl ReportOptions {
    /// Creates the directory, checks that it is writable, and reads the f32 weights. `None` if no
    /// report is requested.
    ///
    /// # Errors
    /// A directory that cannot be created or written to; weights that cannot be read or do not
    /// belong to this base.
    pub fn prepare(&self, base: &Backbone) -> Result<Option<ReportSettings>> {
        let Some(directory) = &self.report else { return Ok(None) };
        std::fs::create_dir_all(directory).map_err(vgg_edge::Error::io("create", directory))?;
        for file in [PAGE, HISTORY] {
            vgg_edge::durable_fs::check_writable(&directory.join(file))?;
        }
        let float =
            self.float.as_deref().map(|path| FloatReference::load(path, base)).transpose()?;
        Ok(Some(ReportSettings { directory: directory.clone(), float }))
    }
}

const PAGE: &str = "report.html";
const HISTORY: &str = "history.csv";

/// The contents of a report.
pub struct Report<'a> {
    /// The subject, for instance the data directory.
    pub title: String,
    /// The data directory; file names are shown relative to it.
    pub data: &'a Path,
    /// The head.
    pub head: &'a Head,
    /// SHA-256 of the head file.
    pub fingerprint: Fingerprint,
    /// The epochs, if the head was just trained.
    pub history: Option<History>,
    /// The names of the data splits.
    pub splits: Vec<String>,
    /// The split that the metrics are measured on.
    pub measured: usize,
    /// The metrics.
    pub evaluation: Evaluation,
    /// The predictions for all images that could be read.
    pub predictions: Vec<Prediction>,
    /// Files that could not be read, each with the reason.
    pub skipped: &'a [(PathBuf, String)],
    /// The predictions for the measured images on f32 features.
    pub float: Option<FloatPredictions>,
}

/// The results of a command, from which a report is made.
pub struct ReportInputs<'a> {
    /// The data directory.
    pub data: &'a Path,
    /// The head, as it was written.
    pub head: &'a Head,
    /// Its file.
    pub head_file: &'a Path,
    /// The epochs, if the head was just trained.
    pub history: Option<History>,
    /// The metrics of the last split.
    pub evaluation: &'a Evaluation,
    /// The features of all images.
    pub features: &'a Features,
    /// The images that [`Features::items`] refers to.
    pub items: &'a [Item],
}

impl ReportInputs<'_> {
    /// Classifies all images, and writes the report. The metrics are those of the last split.
    ///
    /// # Errors
    /// An I/O error of the output directory, a head file that no longer exists, cancellation.
    pub fn write_report(
        self,
        settings: &ReportSettings,
        splits: Vec<DataSplit>,
        cancel: &CancelToken,
    ) -> Result<()> {
        let measured = splits.len().saturating_sub(1);
        let predictions = prediction::predict(self.head, self.features, self.items, &splits)?;
        let float = match &settings.float {
            Some(float) => Some(float.predict(self.head, &predictions, measured, cancel)?),
            None => None,
        };
        let head_file =
            vgg_edge::durable_fs::read_limited(self.head_file, vgg_edge::head::MAX_BYTES)?;
        let report = Report {
            title: self.data.display().to_string(),
            data: self.data,
            head: self.head,
            fingerprint: Fingerprint::of(&head_file),
            history: self.history,
            splits: splits.into_iter().map(|split| split.name).collect(),
            measured,
            evaluation: self.evaluation.clone(),
            predictions,
            skipped: &self.features.skipped,
            float,
        };
        report.write(&settings.directory)
    }
}

impl Report<'_> {
    /// The predictions that the metrics are measured on.
    fn measured(&self) -> impl Iterator<Item = &Prediction> {
        self.predictions.iter().filter(|prediction| prediction.split == self.measured)
    }

    /// A file's name relative to the data directory.
    fn name(&self, file: &Path) -> String {
        file.strip_prefix(self.data).unwrap_or(file).to_string_lossy().into_owned()
    }

    fn charts(&self) -> html::Charts {
        use calibration::Reliability;
        let best = self.history.is_some().then_some(self.head.training.best_epoch as usize);
        let temperature = self.head.decision.temperature;
        let calibrated =
            Reliability::of(self.measured().map(|p| (p.score().into(), p.is_correct())));
        // A temperature of about 1 changes nothing.
        let uncalibrated = ((temperature - 1.0).abs() > 0.005)
            .then(|| Reliability::of(self.measured().map(|p| (p.raw_score, p.is_correct()))));
        html::Charts {
            curves: self.history.as_ref().map_or(Vec::new(), |h| plots::curves(h, best)),
            confusion: plots::confusion(&self.head.labels, &self.evaluation.confusion),
            reliability: plots::reliability(uncalibrated.as_ref(), &calibrated, temperature),
            uncalibrated,
            calibrated,
        }
    }

    /// Writes all files to an existing directory, each of them atomically; the page is the last.
    ///
    /// # Errors
    /// An I/O error of the directory.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let charts = self.charts();
        let save = |name: &str, bytes: &[u8]| {
            vgg_edge::durable_fs::write_bytes(&directory.join(name), bytes)
        };
        for chart in charts.curves.iter().chain(&charts.confusion).chain([&charts.reliability]) {
            let png = raster::png(chart).with_context(|| format!("{}.png", chart.name))?;
            save(&format!("{}.png", chart.name), &png)?;
        }
        if let Some(history) = &self.history {
            save(HISTORY, history.to_csv().as_bytes())?;
        }
        save(PAGE, html::page(self, &charts).as_bytes())?;
        log::info!("wrote {}", directory.join(PAGE).display());
        Ok(())
    }
}
