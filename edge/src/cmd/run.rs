//! `edge run`: a stream of frames, one result each, until it ends or is stopped.

use std::path::PathBuf;

use anyhow::Result;
use shared::cli::{interrupted, note, print_line};
use shared::result::FrameResult;

use crate::PROGRAM;
use crate::options::BaseOptions;
use crate::source::{Next, Source};

/// Classifies a stream of frames
///
/// The source is a folder of pictures (in the order of their names), a picture, YUV4MPEG2 video (.y4m), or - for either of them on stdin.
/// One line a frame: source, label, score; or NDJSON with --json. Ctrl-C or SIGTERM ends it with exit code 0.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  edge run --head head.postcard --source samples/surfaces.y4m\n  \
    ffmpeg -i film.mp4 -pix_fmt yuv420p -f yuv4mpegpipe - | edge run --head head.postcard --source - --json")]
pub struct Args {
    /// The head
    #[arg(long, value_name = "FILE")]
    head: PathBuf,

    /// Folder, picture, video, or - for stdin
    #[arg(long, value_name = "DIR|FILE|-")]
    source: PathBuf,

    /// Starts again at the end (not with stdin)
    #[arg(long = "loop")]
    looped: bool,

    #[command(flatten)]
    base: BaseOptions,

    /// Prints NDJSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let mut source = Source::open(&args.source, args.looped)?;
    let mut classifier = args.base.classifier(&args.head)?;
    let (mut frame_number, mut unreadable) = (0u64, 0u64);
    while !interrupted() {
        match source.next()? {
            Next::Frame(name, frame) => {
                let result = classifier.classify(&frame)?;
                let result = FrameResult::new(frame_number, &name, &classifier.head().labels, &result);
                if args.json { print_line(result.to_json())? } else { print_line(&result)? }
            }
            Next::Unreadable(words) => {
                unreadable += 1;
                note(PROGRAM, words);
            }
            Next::End => break,
        }
        frame_number += 1;
    }
    note(PROGRAM, format_args!("{} frames, {unreadable} unreadable", frame_number));
    if unreadable > 0 && unreadable == frame_number {
        anyhow::bail!("{}: no frame could be read", args.source.display());
    }
    Ok(())
}
