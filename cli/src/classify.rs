//! The command `classify` of both programs.

use vgg_edge::Error;
use vgg_edge::classifier::Classifier;
use vgg_edge::pixel::RawFrame;

use crate::options::ClassifyOptions;
use crate::record::FrameResult;
use crate::terminal;

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
    Interrupted(#[from] terminal::Interrupted),
}

/// Classifies files one after the other and prints a line for each; what cannot be read is named on
/// stderr and the rest goes on. The whole of `host classify` and `edge classify` once the
/// classifier stands.
///
/// # Errors
/// [`ClassifyError`]; for unreadable files only in the end.
pub fn classify_files(
    program: &str,
    classifier: &mut Classifier,
    options: &ClassifyOptions,
) -> Result<(), ClassifyError> {
    classifier.set_view(options.view.crop, options.view.fit.map(Into::into));
    classifier.set_digest(options.digest);
    let layout = options.raw.map(|layout| options.view.color(layout));
    let mut failed = 0;
    for (index, path) in options.files.iter().enumerate() {
        if terminal::interrupted() {
            return Err(terminal::Interrupted.into());
        }
        let name = path.to_string_lossy();
        let result = match layout {
            Some(layout) => {
                vgg_edge::durable_fs::read_limited(path, vgg_edge::image::decode::MAX_FILE_BYTES)
                    .and_then(|bytes| classifier.classify(&RawFrame::new(layout, &bytes)?))
            }
            None => vgg_edge::image::decode::decode_file(path)
                .and_then(|frame| classifier.classify(&frame)),
        };
        let result = match result {
            Ok(result) => result,
            Err(e @ Error::Engine(_)) => return Err(e.into()),
            Err(e) => {
                failed += 1;
                let text = e.to_string();
                // Errors of the system bear the path already.
                let words = if text.starts_with(&*name) { text } else { format!("{name}: {text}") };
                terminal::note(program, words);
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
