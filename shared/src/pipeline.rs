//! Frame to decision: what `host classify` and `edge` both run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::base::Runner;
use crate::contract::Quantiser;
use crate::result::FrameResult;
use crate::{Base, Fingerprint, Frame, Head, Result, cli};

/// A base and a head at work.
pub struct Classifier {
    head: Arc<Head>,
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
        Ok(Self { quantiser: head.preprocess.quantiser(), runner: base.runner(pool)?, head, with_digest: false })
    }

    /// Whether each answer shall carry the digest of its feature map, to compare machines in the field.
    pub fn set_digest(&mut self, with_digest: bool) {
        self.with_digest = with_digest;
    }

    /// The head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The quantised feature map of a frame, channels last.
    ///
    /// # Errors
    /// [`crate::Error::Engine`].
    pub fn features(&mut self, frame: &Frame) -> Result<Vec<u8>> {
        self.runner.features(&self.quantiser.quantise(frame), self.head.preprocess.size)
    }

    /// Classifies a frame.
    ///
    /// # Errors
    /// [`crate::Error::Engine`].
    pub fn classify(&mut self, frame: &Frame) -> Result<Classification> {
        let start = Instant::now();
        let features = self.features(frame)?;
        let scores = self.head.scores(&features);
        let (best, label) = self.head.decide(&scores);
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
    Engine(#[from] crate::Error),
    /// Standard output is closed.
    #[error("cannot write the results")]
    Output(#[from] std::io::Error),
    /// Ctrl-C.
    #[error(transparent)]
    Interrupted(#[from] cli::Interrupted),
}

/// Classifies files one after the other and prints a line for each; what cannot be read is named on stderr and the rest
/// goes on.
///
/// # Errors
/// [`ClassifyError`]; for unreadable files only in the end.
pub fn classify_files(
    program: &str,
    classifier: &mut Classifier,
    files: &[PathBuf],
    json: bool,
) -> std::result::Result<(), ClassifyError> {
    let mut failed = 0;
    for (index, path) in files.iter().enumerate() {
        if cli::interrupted() {
            return Err(cli::Interrupted.into());
        }
        let name = path.to_string_lossy();
        let frame = match crate::decode::decode_file(path) {
            Ok(frame) => frame,
            Err(e) => {
                failed += 1;
                let text = e.to_string();
                // Errors of the system bear the path already.
                let words = if text.starts_with(&*name) { text } else { format!("{name}: {text}") };
                cli::note(program, words);
                continue;
            }
        };
        let result = classifier.classify(&frame)?;
        let result = FrameResult::new(index as u64, &name, &classifier.head().labels, &result);
        if json { cli::print_line(result.to_json())? } else { cli::print_line(&result)? }
    }
    if failed > 0 { Err(ClassifyError::Unreadable { failed, total: files.len() }) } else { Ok(()) }
}
