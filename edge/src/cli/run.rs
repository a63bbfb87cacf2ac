//! The flags of `edge run`, and the settings that they resolve to.

mod flags;
mod values;

use std::path::PathBuf;

use anyhow::Result;
use vgg_edge_cli::options::ViewOptions;
use vgg_edge_cli::terminal::{Signals, UsageError};

use crate::run::settings::{DecisionSettings, ModelSettings, OutputSettings, RunSettings};
use crate::sandbox::SandboxOptions;
use flags::{
    CameraFlags, CollectFlags, DecisionFlags, ModelFlags, OutputFlags, SourceFlags, WebFlags,
};

/// Classify a stream of frames
///
/// The source is a camera (--device), or with --source a directory of images, which are read in the
/// order of their names, an image, YUV4MPEG2 video (.y4m), or - for stdin: an image, YUV4MPEG2
/// video, or with --raw frames without a header. Cameras and raw frames on stdin are live: the
/// newest frame is classified; older ones are dropped and counted.
///
/// Stdout carries one line per frame: source, label and score, separated by tabs, or NDJSON with
/// --json. On a terminal a live source has one line that is overwritten. Messages go to stderr.
/// Ctrl-C or SIGTERM ends the run with exit code 0. SIGHUP reloads the settings and the model; if
/// stderr is a terminal, which sends SIGHUP when it is closed, it ends the run.
///
/// With --watch, a head, or a base and its head, that is moved into place while edge runs is used
/// from the next frame on. With --state the last good model is kept: it runs if the one in place is
/// damaged or refused, and `edge rollback` returns to the one before. With --trust only signed
/// files are used (host sign).
#[derive(Clone, clap::Args)]
#[command(
    args_override_self = true,
    after_help = "Examples:\n  \
    edge run --head head.postcard --device /dev/video0\n  \
    edge run --head head.postcard --device /dev/video0 --http 127.0.0.1:8080 --smooth 0.8 \
    --min-frames 3 --threshold 0.6\n  \
    edge run --head head.postcard --source samples/surfaces.y4m\n  \
    rpicam-vid -t 0 --width 640 --height 480 --codec yuv420 -o - | \
    edge run --head head.postcard --source - --raw yuv420:640x480\n  \
    ffmpeg -i film.mp4 -pix_fmt yuv420p -f yuv4mpegpipe - | \
    edge run --head head.postcard --source - --json\n  \
    edge run --head head.postcard --device /dev/video0 --watch --state /var/lib/heads \
    --trust farm.pub"
)]
pub struct Args {
    /// Settings file (TOML)
    ///
    /// Its keys are the long names of these flags. Flags on the command line have priority.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    source: SourceFlags,

    #[command(flatten)]
    camera: CameraFlags,

    #[command(flatten)]
    view: ViewOptions,

    #[command(flatten)]
    decision: DecisionFlags,

    #[command(flatten)]
    output: OutputFlags,

    #[command(flatten)]
    collect: CollectFlags,

    #[command(flatten)]
    web: WebFlags,

    #[command(flatten)]
    model: ModelFlags,

    #[command(flatten, next_help_heading = "Sandbox")]
    sandbox: SandboxOptions,
}

impl Args {
    /// Resolves the flags to settings.
    ///
    /// # Errors
    /// Flags that are not valid together, and a token file that cannot be read.
    pub fn resolve(self) -> Result<RunSettings> {
        self.check_combinations()?;
        let Self { config, source, camera, view, decision, output, collect, web, model, sandbox } =
            self;
        Ok(RunSettings {
            config,
            frame_limit: source.frames,
            source: source.resolve(camera, &view)?,
            decision: DecisionSettings {
                crop: view.crop,
                fit: view.fit.map(Into::into),
                threshold: decision.threshold,
                smooth: decision.smooth,
                min_frames: decision.min_frames,
                on_motion: decision.on_motion,
            },
            collect: collect.resolve(),
            web: web.resolve()?,
            model: ModelSettings {
                head: model.head,
                base: model.base,
                trust: model.trust,
                watch: model.watch,
                threads: model.threads,
            },
            sandbox,
            output: OutputSettings {
                json: output.json,
                events: output.events,
                digest: output.digest,
            },
        })
    }

    fn check_combinations(&self) -> Result<(), UsageError> {
        let usage = |message: &str| Err(UsageError(message.into()));
        let SourceFlags { device, raw, looped, fps, .. } = &self.source;
        let is_stdin = self.source.is_stdin();
        if raw.is_some() && !is_stdin {
            return usage("--raw requires --source - (stdin)");
        }
        if is_stdin && *looped {
            return usage("--loop cannot be used with stdin, which cannot be read again");
        }
        if is_stdin && fps.is_some() {
            return usage("--fps cannot be used with stdin, which has its own rate");
        }
        // A settings file may have these for another source than that of the command line.
        if device.is_some() && *looped && self.config.is_none() {
            return usage("--loop cannot be used with a camera, which has no end");
        }
        if self.web.http.is_none() && self.web.http_token.is_some() && self.config.is_none() {
            return usage("--http-token requires --http");
        }
        Ok(())
    }
}

/// Runs the command; `again` parses the command line and reads the settings file again, for SIGHUP.
pub fn run(args: Args, again: &dyn Fn() -> Result<Args>, signals: &Signals) -> Result<()> {
    crate::run::run(args.resolve()?, &|| again()?.resolve(), signals)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;
    use crate::run::settings::Input;
    use crate::{Cli, Command};

    fn resolve(flags: &str) -> Result<RunSettings> {
        let arguments = ["edge", "run", "--head", "h"].into_iter().chain(flags.split(' '));
        match Cli::try_parse_from(arguments)?.command {
            Command::Run(args) => args.resolve(),
            _ => panic!("not edge run"),
        }
    }

    #[test]
    fn flags_resolve_to_a_source() {
        let source = |flags: &str| resolve(flags).unwrap().source;
        let camera = source("--device /dev/video0 --capture 8x6 --frozen 1 --color bt709");
        assert_eq!(camera.name, "/dev/video0");
        let Input::Camera(options) = &camera.input else { panic!("{camera:?}") };
        assert_eq!((options.size, options.frozen), ((8, 6), Duration::from_secs(1)));
        assert_eq!(
            camera,
            source("--device /dev/video0 --resolution 8x6 --freeze-timeout 1 --color bt709")
        );
        assert_ne!(camera, source("--device /dev/video0 --resolution 8x6 --freeze-timeout 1"));
        let stdin = source("--source -");
        assert_eq!((&*stdin.name, stdin.is_stdin()), ("stdin", true));
        let raw = source("--source - --raw nv12:4x4");
        assert!(raw.is_stdin() && raw != stdin, "{raw:?}");
        let files = source("--source x --loop --fps 5");
        let Input::Files { looped: true, fps: Some(5), .. } = files.input else {
            panic!("{files:?}")
        };
    }

    #[test]
    fn flags_resolve_to_what_the_sandbox_must_leave_open() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new");
        let flags = format!("--source x --collect {}", path.display());
        let settings = resolve(&flags).unwrap();
        drop(settings.needs());
        assert!(!path.exists(), "computing the needs has no side effects");
        settings.create_directories().unwrap();
        assert!(path.is_dir());
    }

    #[test]
    fn flags_that_are_not_valid_together() {
        for flags in [
            "--source x --raw nv12:4x4",
            "--source - --loop",
            "--source - --fps 5",
            "--device /dev/video0 --loop",
            "--source x --http 0.0.0.0:80",
        ] {
            let error = resolve(flags).map(drop).unwrap_err();
            assert!(error.is::<UsageError>(), "{flags}: {error}");
        }
    }

    #[test]
    fn flags_are_grouped_in_the_help() {
        let mut command = <Cli as clap::CommandFactory>::command();
        command.build();
        let run = command.find_subcommand("run").unwrap();
        let heading = |long: &str| {
            let flag = run.get_arguments().find(|flag| flag.get_long() == Some(long)).unwrap();
            flag.get_help_heading()
        };
        for (long, group) in [
            ("config", None),
            ("source", Some("Source")),
            ("resolution", Some("Camera")),
            ("crop", Some("Input")),
            ("min-frames", Some("Decision")),
            ("json", Some("Output")),
            ("collect", Some("Collecting")),
            ("http", Some("Web page")),
            ("base", Some("Backbone")),
            ("trust", Some("Model")),
            ("sandbox", Some("Sandbox")),
        ] {
            assert_eq!(heading(long), group, "--{long}");
        }
        assert!(run.get_about().is_some_and(|about| about.to_string().contains("stream")));
    }
}
