//! The command `classify` of both programs.

use vgg_edge::classifier::Classifier;
use vgg_edge::pixel::RawFrame;
use vgg_edge::{Error, Image};

use crate::options::ClassifyOptions;
use crate::record::FrameResult;
use crate::terminal::{self, CancelToken, Interrupted};

/// The errors of [`classify`].
#[derive(Debug, thiserror::Error)]
pub enum ClassifyError {
    /// Some files could not be read; each has a message of its own.
    #[error("{failed} of {total} files could not be classified")]
    Unreadable {
        /// Number of files that failed.
        failed: usize,
        /// Number of all files.
        total: usize,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] Error),
    /// Standard output cannot be written.
    #[error("cannot write the results")]
    Output(#[from] std::io::Error),
    /// The run was interrupted.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Classifies files one after the other and prints a line for each. A file that cannot be read is
/// logged, and the next one follows.
///
/// # Errors
/// [`ClassifyError`]; [`ClassifyError::Unreadable`] only after the last file.
pub fn classify(
    classifier: &mut Classifier,
    options: &ClassifyOptions,
    cancel: &CancelToken,
) -> Result<(), ClassifyError> {
    classifier.set_view(options.view.crop, options.view.fit.map(Into::into));
    classifier.set_digest(options.digest);
    let layout = options.raw.map(|layout| options.view.color(layout));
    let mut failed = 0;
    for (index, path) in options.files.iter().enumerate() {
        cancel.check()?;
        let name = path.to_string_lossy();
        let result = match layout {
            Some(layout) => {
                vgg_edge::durable_fs::read_limited(path, vgg_edge::image::decode::MAX_FILE_BYTES)
                    .and_then(|bytes| classifier.classify(&RawFrame::new(layout, &bytes)?))
            }
            None => Image::open(path).and_then(|image| classifier.classify(&image)),
        };
        let result = match result {
            Ok(result) => result,
            Err(e @ Error::Engine(_)) => return Err(e.into()),
            Err(e) => {
                failed += 1;
                match e {
                    // The text has the path already.
                    Error::Io { .. } => log::error!("{e}"),
                    e => log::error!("{name}: {e}"),
                }
                continue;
            }
        };
        let background = classifier.head().is_background(&result.label);
        let result = FrameResult {
            background,
            ..FrameResult::new(index as u64, &name, &classifier.head().labels, &result)
        };
        if options.json {
            terminal::print_line(result.to_json())?
        } else {
            terminal::print_line(&result)?
        }
    }
    if failed > 0 {
        Err(ClassifyError::Unreadable { failed, total: options.files.len() })
    } else {
        Ok(())
    }
}
