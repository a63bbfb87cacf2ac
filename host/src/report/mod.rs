//! The report of `host train` and `host evaluate`: a page in one file, the history as CSV, the
//! figures as PNG.
//!
//! The commands say what is known in a [`Report`]; all that is derived from it is derived here.

mod audit;
mod calibration;
mod chart;
mod float;
mod font;
mod page;
mod plots;
mod text;
mod thumbnail;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rayon::prelude::*;
use vgg_edge::head::{Output, best};
use vgg_edge::{Backbone, Fingerprint, Head};
use vgg_edge_cli::terminal::note;

use crate::PROGRAM;
use crate::dataset::Item;
use crate::features::extraction::Features;
use crate::metrics::Evaluation;
use crate::trainer::EpochStats;

pub use float::{FloatAnswers, FloatReference};

/// What a command is asked for.
#[derive(clap::Args)]
pub struct ReportOptions {
    /// Writes a report into this folder: report.html, figures as PNG and, when training,
    /// history.csv
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,

    /// The weights that the base was made of, as `host base compare` reads them: the report then
    /// tells what int8 costs
    #[arg(long, value_name = "FILE", requires = "report")]
    pub float: Option<PathBuf>,
}

/// What [`ReportOptions`] resolve to, before the work begins.
pub struct Order {
    /// The folder.
    pub folder: PathBuf,
    /// The base in f32, if it is given.
    pub float: Option<FloatReference>,
}

impl ReportOptions {
    /// Makes the folder, looks whether it can be written to, and reads the f32 weights; `None` if
    /// no report is asked for.
    ///
    /// # Errors
    /// A folder that cannot be made or written to; weights that cannot be read or are not of this
    /// base.
    pub fn prepare(&self, base: &Backbone) -> Result<Option<Order>> {
        let Some(folder) = &self.report else { return Ok(None) };
        std::fs::create_dir_all(folder).map_err(vgg_edge::Error::io("make", folder))?;
        for file in [PAGE, HISTORY] {
            vgg_edge::durable_fs::check_writable(&folder.join(file))?;
        }
        let float =
            self.float.as_deref().map(|path| FloatReference::load(path, base)).transpose()?;
        Ok(Some(Order { folder: folder.clone(), float }))
    }
}

const PAGE: &str = "report.html";
const HISTORY: &str = "history.csv";

/// A quantity of each epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// As in history.csv: `loss`, `accuracy`, with `val_` before it for the validation pictures.
    pub name: String,
    /// One an epoch, from the first; `None` where there was none.
    pub values: Vec<Option<f64>>,
}

impl Column {
    /// The value of an epoch, counted from 0.
    fn at(&self, epoch: usize) -> Option<f64> {
        self.values.get(epoch).copied().flatten()
    }
}

/// The epochs of a training, in columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// All of equal length.
    pub columns: Vec<Column>,
}

impl History {
    /// The columns of the trainer's history; those without any value are left out, and a learning
    /// rate that never changes. A further field of [`EpochStats`] is a further line here.
    pub fn of(epochs: &[EpochStats]) -> Self {
        type Field = fn(&EpochStats) -> Option<f64>;
        let fields: [(&str, Field); 5] = [
            ("loss", |e| Some(e.loss)),
            ("accuracy", |e| Some(e.accuracy)),
            ("val_loss", |e| e.val_loss),
            ("val_accuracy", |e| e.val_accuracy),
            ("lr", |e| Some(e.lr)),
        ];
        let columns = fields.map(|(name, field)| Column {
            name: name.into(),
            values: epochs.iter().map(field).collect(),
        });
        let tells = |c: &Column| match c.name.as_str() {
            "lr" => c.values.windows(2).any(|pair| pair[0] != pair[1]),
            _ => c.values.iter().any(Option::is_some),
        };
        Self { columns: columns.into_iter().filter(tells).collect() }
    }

    /// How many there are.
    pub fn epochs(&self) -> usize {
        self.columns.first().map_or(0, |column| column.values.len())
    }

    /// The header, then a line an epoch; what is not known is empty.
    fn csv(&self) -> String {
        let line =
            |first: String, cells: Vec<String>| [vec![first], cells].concat().join(",") + "\n";
        let mut out = line("epoch".into(), self.columns.iter().map(|c| c.name.clone()).collect());
        for epoch in 0..self.epochs() {
            let cell = |c: &Column| c.at(epoch).map_or(String::new(), |value| value.to_string());
            out += &line((epoch + 1).to_string(), self.columns.iter().map(cell).collect());
        }
        out
    }
}

/// Pictures of one part of the data.
pub struct Part {
    /// `training`, `validation`, or the name of the folder.
    pub name: String,
    /// Its rows in the features.
    pub rows: Vec<usize>,
}

/// One picture and what the head says of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// The file.
    pub file: PathBuf,
    /// The part it belongs to.
    pub part: usize,
    /// Its class.
    pub class: usize,
    /// SHA-256 of the file.
    pub hash: Fingerprint,
    /// The best classes with their scores, best first; the first one is the answer. At most
    /// [`TOP`].
    pub top: Vec<(usize, f32)>,
    /// The score of its own class.
    pub label_score: f32,
    /// The score of the answer at temperature 1.
    pub raw_score: f64,
}

/// How many scores of a picture are kept: with thousands of classes all of them would fill the
/// memory.
const TOP: usize = 3;

impl Picture {
    /// The class that was answered, whatever the threshold.
    pub fn said(&self) -> usize {
        self.top[0].0
    }

    /// Its score.
    pub fn said_score(&self) -> f32 {
        self.top[0].1
    }

    /// Whether the answer is its class.
    pub fn is_right(&self) -> bool {
        self.said() == self.class
    }
}

/// What is known after a training or an evaluation; all that is shown comes from here.
pub struct Report<'a> {
    /// What it is about, for instance the data folder.
    pub title: String,
    /// The data folder; files are named relative to it.
    pub data: &'a Path,
    /// The head.
    pub head: &'a Head,
    /// SHA-256 of the head's file.
    pub fingerprint: Fingerprint,
    /// The epochs, if it was trained just now.
    pub history: Option<History>,
    /// The parts of the data.
    pub parts: Vec<String>,
    /// The part that the figures are measured on.
    pub measured: usize,
    /// The figures.
    pub evaluation: Evaluation,
    /// All pictures that could be read.
    pub pictures: Vec<Picture>,
    /// Files that could not be read, and why.
    pub skipped: &'a [(PathBuf, String)],
    /// What the head says of the measured pictures on f32 features.
    pub float: Option<FloatAnswers>,
}

/// What a command has at its end, of which the report is made.
pub struct Made<'a> {
    /// The data folder.
    pub data: &'a Path,
    /// The head, as it was written.
    pub head: &'a Head,
    /// Its file.
    pub head_file: &'a Path,
    /// The epochs, if it was trained just now.
    pub history: Option<History>,
    /// The figures of the last part.
    pub evaluation: &'a Evaluation,
    /// The features of all pictures.
    pub features: &'a Features,
    /// The pictures that [`Features::items`] points into.
    pub items: &'a [Item],
}

impl Made<'_> {
    /// Asks the head about all pictures, and writes the report. The figures are those of the last
    /// of the parts.
    ///
    /// # Errors
    /// A disk that refuses, a head file that is gone, Ctrl-C.
    pub fn report(self, order: &Order, parts: Vec<Part>) -> Result<()> {
        let measured = parts.len().saturating_sub(1);
        let pictures = self.pictures(&parts)?;
        let float = match &order.float {
            Some(float) => Some(float.answers(self.head, &pictures, measured)?),
            None => None,
        };
        let report = Report {
            title: self.data.display().to_string(),
            data: self.data,
            head: self.head,
            fingerprint: Fingerprint::of(&vgg_edge::durable_fs::read_limited(
                self.head_file,
                vgg_edge::head::MAX_BYTES,
            )?),
            history: self.history,
            parts: parts.into_iter().map(|part| part.name).collect(),
            measured,
            evaluation: self.evaluation.clone(),
            pictures,
            skipped: &self.features.skipped,
            float,
        };
        report.write(&order.folder)
    }

    fn pictures(&self, parts: &[Part]) -> Result<Vec<Picture>> {
        let Self { head, features, .. } = self;
        let rows: Vec<(usize, usize)> = parts
            .iter()
            .enumerate()
            .flat_map(|(part, p)| p.rows.iter().map(move |&row| (part, row)))
            .collect();
        rows.into_par_iter()
            .map(|(part, row)| {
                let Item { path, class } = &self.items[features.items[row]];
                let map = features.row(row)?;
                let scores = head.scores(&map);
                let said = best(&scores);
                let mut order: Vec<usize> = (0..scores.len()).filter(|&c| c != said).collect();
                order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
                Ok(Picture {
                    file: path.clone(),
                    part,
                    class: *class,
                    hash: features.hashes[row],
                    top: std::iter::once(said)
                        .chain(order)
                        .take(TOP)
                        .map(|c| (c, scores[c]))
                        .collect(),
                    label_score: scores[*class],
                    raw_score: softmax(head.output, &head.logits(&map))[said],
                })
            })
            .collect()
    }
}

/// The scores of logits at temperature 1, in f64.
fn softmax(output: Output, logits: &[f32]) -> Vec<f64> {
    let logits: Vec<f64> = match output {
        // A sigmoid is a softmax over 0 and the logit.
        Output::Sigmoid => [0.0].into_iter().chain(logits.iter().map(|&l| f64::from(l))).collect(),
        Output::Softmax => logits.iter().map(|&l| f64::from(l)).collect(),
    };
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|logit| libm::exp(logit - largest)).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

impl Report<'_> {
    /// The pictures that the figures are measured on.
    fn measured(&self) -> impl Iterator<Item = &Picture> {
        self.pictures.iter().filter(|picture| picture.part == self.measured)
    }

    /// A file's name relative to the data folder.
    fn name(&self, file: &Path) -> String {
        file.strip_prefix(self.data).unwrap_or(file).to_string_lossy().into_owned()
    }

    /// Writes all files into a folder that is there, each as a whole; the page comes last.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let best = self.history.is_some().then_some(self.head.training.best_epoch as usize);
        let curves =
            self.history.as_ref().map_or(Vec::new(), |history| plots::curves(history, best));
        let confusion = plots::confusion(&self.head.labels, &self.evaluation.confusion);
        let temperature = self.head.decision.temperature;
        let after = calibration::Reliability::of(
            self.measured().map(|p| (p.said_score().into(), p.is_right())),
        );
        // A temperature of about 1 changes nothing.
        let before = ((temperature - 1.0).abs() > 0.005).then(|| {
            calibration::Reliability::of(self.measured().map(|p| (p.raw_score, p.is_right())))
        });
        let reliability = plots::reliability(before.as_ref(), &after, temperature);
        let save =
            |name: &str, bytes: &[u8]| vgg_edge::durable_fs::write_bytes(&folder.join(name), bytes);
        for chart in curves.iter().chain(&confusion).chain([&reliability]) {
            let png = chart.png().with_context(|| format!("figure {}", chart.name))?;
            save(&format!("{}.png", chart.name), &png)?;
        }
        if let Some(history) = &self.history {
            save(HISTORY, history.csv().as_bytes())?;
        }
        let figures = page::Figures { curves, confusion, reliability, before, after };
        save(PAGE, page::page(self, &figures).as_bytes())?;
        note(PROGRAM, format_args!("wrote {}", folder.join(PAGE).display()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_a_table_of_what_there_is() {
        let epoch = |epoch, val| EpochStats {
            epoch,
            loss: 0.5,
            accuracy: 0.25,
            val_loss: val,
            val_accuracy: val,
            lr: 0.5,
        };
        let with = History::of(&[epoch(1, Some(0.125)), epoch(2, None)]);
        assert_eq!(
            with.csv(),
            "epoch,loss,accuracy,val_loss,val_accuracy\n1,0.5,0.25,0.125,0.125\n2,0.5,0.25,,\n"
        );
        assert_eq!(History::of(&[epoch(1, None)]).csv(), "epoch,loss,accuracy\n1,0.5,0.25\n");
        let slower = History::of(&[epoch(1, None), EpochStats { lr: 0.25, ..epoch(2, None) }]);
        assert_eq!(slower.csv(), "epoch,loss,accuracy,lr\n1,0.5,0.25,0.5\n2,0.5,0.25,0.25\n");
        assert_eq!((with.epochs(), History::default().epochs()), (2, 0));
    }

    #[test]
    fn softmax_of_both_outputs() {
        let p = softmax(Output::Sigmoid, &[3f32.ln()]);
        assert!((p[0] - 0.25).abs() < 1e-6 && (p[1] - 0.75).abs() < 1e-6);
        let p = softmax(Output::Softmax, &[1000.0, 1000.0, -1000.0]);
        assert_eq!(p, [0.5, 0.5, 0.0]);
    }
}
