//! Frame to decision: what `host classify` and `edge` both run.

use std::sync::Arc;
use std::time::Instant;

use crate::base::Runner;
use crate::contract::Quantiser;
use crate::options::{ClassifyOptions, ViewOptions};
use crate::pixels::{Pixels, RawFrame};
use crate::result::FrameResult;
use crate::{Base, Error, Fingerprint, Head, Result, cli};

/// A base and a head at work.
pub struct Classifier {
    head: Arc<Head>,
    threshold: f32,
    quantiser: Quantiser,
    runner: Runner,
    with_digest: bool,
}

/// The answer for one frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Classification {
    /// The label to say; [`crate::head::UNKNOWN`] below the threshold.
    pub label: String,
    /// The best score, 0 to 1.
    pub score: f32,
    /// All scores, in the order of the head's labels.
    pub scores: Vec<f32>,
    /// Time from the decoded frame to the answer, in milliseconds.
    pub latency_ms: f64,
    /// SHA-256 of the quantised feature map, if it was asked for.
    pub digest: Option<Fingerprint>,
}

impl Classifier {
    /// Joins a base and a head that belongs to it; `pool` as in [`Base::runner`].
    ///
    /// # Errors
    /// [`crate::Error::WrongBase`], [`crate::Error::Engine`].
    pub fn new(base: &Base, head: Arc<Head>, pool: Option<Arc<rayon::ThreadPool>>) -> Result<Self> {
        head.check_base(base)?;
        let (quantiser, threshold) = (head.preprocess.quantiser(), head.decision.threshold);
        Ok(Self { quantiser, threshold, runner: base.runner(pool)?, head, with_digest: false })
    }

    /// Looks at another part of pictures than the whole, or fits it in another way than the head was trained with.
    pub fn set_view(&mut self, view: &ViewOptions) {
        view.apply(&mut self.quantiser);
    }

    /// Sets the score that the best label must reach, 0 to 1, in place of the head's own.
    pub fn set_threshold(&mut self, threshold: f32) {
        self.threshold = threshold;
    }

    /// The score that the best label must reach.
    pub fn threshold(&self) -> f32 {
        self.threshold
    }

    /// Whether each answer shall carry the digest of its feature map, to compare machines in the field.
    pub fn set_digest(&mut self, with_digest: bool) {
        self.with_digest = with_digest;
    }

    /// The head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The quantised input of a picture: u8, `[3, size, size]`.
    ///
    /// # Errors
    /// [`Error::Picture`] if the crop lies outside of it.
    pub fn quantise(&self, pixels: &dyn Pixels) -> Result<Vec<u8>> {
        let (width, height) = (pixels.width(), pixels.height());
        if self.quantiser.source(width, height).is_none() {
            return Err(Error::Picture(format!("the crop lies outside of its {width}x{height} pixels")));
        }
        Ok(self.quantiser.quantise(pixels))
    }

    /// Classifies a picture.
    ///
    /// # Errors
    /// As [`Classifier::quantise`] and [`Classifier::classify_input`].
    pub fn classify(&mut self, pixels: &dyn Pixels) -> Result<Classification> {
        let start = Instant::now();
        let input = self.quantise(pixels)?;
        let mut result = self.classify_input(&input)?;
        result.latency_ms = start.elapsed().as_secs_f64() * 1e3;
        Ok(result)
    }

    /// Classifies a quantised input.
    ///
    /// # Errors
    /// [`Error::Engine`].
    pub fn classify_input(&mut self, input: &[u8]) -> Result<Classification> {
        let start = Instant::now();
        let features = self.runner.features(input, self.head.preprocess.size)?;
        let scores = self.head.scores(&features);
        let (best, label) = self.head.decide(&scores, self.threshold);
        let label = label.to_owned();
        let latency_ms = start.elapsed().as_secs_f64() * 1e3;
        let digest = self.with_digest.then(|| Fingerprint::of(&features));
        Ok(Classification { label, score: scores[best], scores, latency_ms, digest })
    }
}

/// Why [`classify_files`] did not get through.
#[derive(Debug, thiserror::Error)]
pub enum ClassifyError {
    /// Some files could not be read; each was named on stderr.
    #[error("{failed} of {total} files could not be classified")]
    Unreadable {
        /// How many failed.
        failed: usize,
        /// How many there were.
        total: usize,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] Error),
    /// Standard output is closed.
    #[error("cannot write the results")]
    Output(#[from] std::io::Error),
    /// Ctrl-C.
    #[error(transparent)]
    Interrupted(#[from] cli::Interrupted),
}

/// Classifies files one after the other and prints a line for each; what cannot be read is named on stderr and the rest
/// goes on. The whole of `host classify` and `edge classify` once the classifier stands.
///
/// # Errors
/// [`ClassifyError`]; for unreadable files only in the end.
pub fn classify_files(
    program: &str,
    classifier: &mut Classifier,
    options: &ClassifyOptions,
) -> std::result::Result<(), ClassifyError> {
    classifier.set_view(&options.view);
    classifier.set_digest(options.digest);
    let layout = options.raw.map(|layout| options.view.colour(layout));
    let mut failed = 0;
    for (index, path) in options.files.iter().enumerate() {
        if cli::interrupted() {
            return Err(cli::Interrupted.into());
        }
        let name = path.to_string_lossy();
        let result = match layout {
            Some(layout) => crate::fs::read_limited(path, crate::decode::MAX_FILE_BYTES)
                .and_then(|bytes| classifier.classify(&RawFrame::new(layout, &bytes)?)),
            None => crate::decode::decode_file(path).and_then(|frame| classifier.classify(&frame)),
        };
        let result = match result {
            Ok(result) => result,
            Err(e @ Error::Engine(_)) => return Err(e.into()),
            Err(e) => {
                failed += 1;
                let text = e.to_string();
                // Errors of the system bear the path already.
                let words = if text.starts_with(&*name) { text } else { format!("{name}: {text}") };
                cli::note(program, words);
                continue;
            }
        };
        let background = classifier.head().is_background(&result.label);
        let result =
            FrameResult { background, ..FrameResult::new(index as u64, &name, &classifier.head().labels, &result) };
        if options.json { cli::print_line(result.to_json())? } else { cli::print_line(&result)? }
    }
    if failed > 0 { Err(ClassifyError::Unreadable { failed, total: options.files.len() }) } else { Ok(()) }
}
