//! The flags of `edge run`, and the settings that they resolve to.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use vgg_edge::pixel::{parse_layout, parse_size};
use vgg_edge_cli::options::{BaseOptions, ViewOptions};
use vgg_edge_cli::terminal::{Signals, UsageError};

use crate::cli::options::Threads;
use crate::collect::CollectOptions;
use crate::model::loader::TrustOptions;
use crate::run::settings::{
    CollectSettings, DecisionSettings, Input, ModelSettings, OutputSettings, RunSettings,
    SourceSettings, WebSettings,
};
use crate::sandbox::SandboxOptions;
use crate::source::camera::{CameraOptions, is_jpeg_name, parse_format};
use crate::source::pipe;
use crate::web::{Access, check_token};

/// Largest token file in bytes.
const MAX_TOKEN_FILE: u64 = 4096;

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

    #[command(flatten, next_help_heading = "Image")]
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

#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Source")]
struct SourceFlags {
    /// V4L2 camera, such as /dev/video0
    ///
    /// A link in /dev/v4l/by-id stays the same when the camera is plugged in elsewhere.
    #[arg(
        long,
        value_name = "NODE",
        required_unless_present = "source",
        conflicts_with = "source"
    )]
    device: Option<PathBuf>,

    /// Directory, image or video, or - for stdin
    #[arg(long, value_name = "DIR|FILE|-")]
    source: Option<PathBuf>,

    /// Format of raw frames on stdin: FORMAT:WIDTHxHEIGHT, or mjpeg
    ///
    /// For example yuv420:640x480. If rows are padded, FORMAT:WIDTHxHEIGHT:STRIDE.
    #[arg(long, value_name = "LAYOUT", value_parser = parse_raw)]
    raw: Option<pipe::Kind>,

    /// Frames per second
    ///
    /// Requested from a camera. Files are played at this rate, as by a camera, and so become live.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    fps: Option<u32>,

    /// Start again at the end of the files
    #[arg(long = "loop")]
    looped: bool,

    /// Classify each frame of a live source, however late, instead of the newest
    #[arg(long)]
    every_frame: bool,

    /// Stop after N frames
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    frames: Option<u64>,
}

#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Camera")]
struct CameraFlags {
    /// Pixel format requested from the camera
    ///
    /// One of YUYV, UYVY, NV12, NV21, YU12, RGB3, BGR3, GREY, MJPG, BA81 and others (edge devices);
    /// auto takes the first that edge understands.
    #[arg(
        long,
        value_name = "FOURCC",
        default_value = "auto",
        value_parser = parse_format_name
    )]
    format: CameraFormat,

    /// Resolution requested from the camera, in pixels
    #[arg(
        long,
        alias = "capture",
        value_name = "WxH",
        default_value = "640x480",
        value_parser = parse_resolution
    )]
    resolution: (u32, u32),

    /// Seconds without a frame before the camera is reopened
    #[arg(
        long,
        alias = "stall",
        value_name = "SECONDS",
        default_value_t = 5.0,
        value_parser = parse_stall_timeout
    )]
    stall_timeout: f32,

    /// Seconds of identical frames before the camera is reopened (0: never)
    ///
    /// Frames are compared byte for byte. The time doubles after each attempt.
    #[arg(
        long,
        alias = "frozen",
        value_name = "SECONDS",
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(..=86400)
    )]
    freeze_timeout: u64,
}

#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Decision")]
struct DecisionFlags {
    /// Report `unknown` below this score, 0 to 1 [default: from the head]
    #[arg(long, value_name = "SCORE", value_parser = parse_score)]
    threshold: Option<f32>,

    /// Weight of earlier frames in the averaged scores, 0 (off) to below 1
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.0, value_parser = parse_weight)]
    smooth: f32,

    /// Frames a new label must lead before it is reported
    #[arg(
        long,
        alias = "hold",
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    min_frames: u32,

    /// Skip inference while nothing moves [default level: 6]
    ///
    /// A frame is classified if an 8x8 block of the base's input has changed by this many gray
    /// levels on average.
    #[arg(
        long,
        value_name = "LEVEL",
        num_args = 0..=1,
        default_missing_value = "6",
        require_equals = true,
        value_parser = parse_level
    )]
    on_motion: Option<f32>,
}

#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Output")]
struct OutputFlags {
    /// Print NDJSON
    #[arg(long)]
    json: bool,

    /// Print only changes of the label, the source and the model
    #[arg(long)]
    events: bool,

    /// Add the SHA-256 of the quantized feature map to each line, to compare machines
    #[arg(long, requires = "json")]
    digest: bool,
}

#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Collecting")]
struct CollectFlags {
    /// Directory to save unsure frames and label changes to
    ///
    /// Each frame is saved as JPEG, with a line in frames.ndjson.
    #[arg(long, value_name = "DIR")]
    collect: Option<PathBuf>,

    /// Maximum number of images in the directory
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    collect_max: u64,

    /// Maximum size of the images in the directory, in megabytes
    #[arg(
        long,
        value_name = "MB",
        default_value_t = 500,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    collect_megabytes: u64,

    /// Minimum seconds between two live frames saved for the same reason (0: save all)
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = parse_interval)]
    collect_every: f32,

    /// Score below which a frame is unsure, 0 to 1
    #[arg(
        long,
        alias = "collect-below",
        value_name = "SCORE",
        default_value_t = 0.6,
        value_parser = parse_score
    )]
    collect_threshold: f32,
}

#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Web page")]
struct WebFlags {
    /// Address to serve a page at, such as 127.0.0.1:8080
    ///
    /// The page shows the live image; /metrics, /healthz and /events are served too.
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,

    /// Token required to see the page; mandatory unless --http is a loopback address
    ///
    /// Open http://ADDRESS/?token=TOKEN once to log in.
    #[arg(
        long,
        value_name = "TOKEN",
        env = "VGG_EDGE_HTTP_TOKEN",
        hide_env_values = true,
        value_parser = check_token
    )]
    http_token: Option<String>,

    /// File with the token, such as a systemd credential; overrides --http-token
    #[arg(long, value_name = "FILE")]
    http_token_file: Option<PathBuf>,
}

#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Model")]
struct ModelFlags {
    /// Head file
    #[arg(long, value_name = "FILE")]
    head: PathBuf,

    #[command(flatten)]
    base: BaseOptions,

    /// Use a new head, or a new base and its head, once it is moved into place
    #[arg(long)]
    watch: bool,

    #[command(flatten)]
    trust: TrustOptions,

    #[command(flatten)]
    threads: Threads,
}

/// A fourcc, or the first that is understood. A type of its own, as clap treats an `Option` as a
/// flag that may be missing.
#[derive(Clone, Copy, Debug, PartialEq)]
struct CameraFormat(Option<[u8; 4]>);

fn parse_format_name(text: &str) -> Result<CameraFormat, String> {
    parse_format(text).map(CameraFormat)
}

fn parse_resolution(text: &str) -> Result<(u32, u32), String> {
    let size =
        parse_size(text).and_then(|(w, h)| Some((u32::try_from(w).ok()?, u32::try_from(h).ok()?)));
    size.filter(|&(w, h)| w > 0 && h > 0).ok_or_else(|| "expected WxH, such as 640x480".into())
}

fn parse_raw(text: &str) -> Result<pipe::Kind, String> {
    if is_jpeg_name(text) { Ok(pipe::Kind::Jpeg) } else { parse_layout(text).map(pipe::Kind::Raw) }
}

fn parse_number(text: &str, range: std::ops::RangeInclusive<f32>) -> Result<f32, String> {
    let found = text.parse().ok().filter(|value| range.contains(value));
    found.ok_or_else(|| format!("expected a number from {} to {}", range.start(), range.end()))
}

fn parse_score(text: &str) -> Result<f32, String> {
    parse_number(text, 0.0..=1.0)
}

fn parse_weight(text: &str) -> Result<f32, String> {
    parse_number(text, 0.0..=0.999)
}

fn parse_level(text: &str) -> Result<f32, String> {
    parse_number(text, 0.0..=255.0)
}

fn parse_stall_timeout(text: &str) -> Result<f32, String> {
    parse_number(text, 0.5..=3600.0)
}

fn parse_interval(text: &str) -> Result<f32, String> {
    parse_number(text, 0.0..=86400.0)
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

impl SourceFlags {
    fn is_stdin(&self) -> bool {
        self.source.as_deref().is_some_and(|path| path.as_os_str() == "-")
    }

    fn resolve(self, camera: CameraFlags, view: &ViewOptions) -> Result<SourceSettings> {
        let color = view.color;
        let is_stdin = self.is_stdin();
        let Some(path) = self.device.as_ref().or(self.source.as_ref()) else {
            return Err(UsageError("--device or --source is required".into()).into());
        };
        let name = if is_stdin { "stdin".into() } else { path.to_string_lossy().into_owned() };
        let input = match self {
            Self { device: Some(device), fps, .. } => Input::Camera(CameraOptions {
                device,
                format: camera.format.0,
                size: camera.resolution,
                fps,
                stall: Duration::from_secs_f32(camera.stall_timeout),
                frozen: Duration::from_secs(camera.freeze_timeout),
                color,
            }),
            Self { raw: Some(pipe::Kind::Raw(layout)), .. } => {
                Input::RawStdin(pipe::Kind::Raw(view.color(layout)))
            }
            Self { raw: Some(pipe::Kind::Jpeg), .. } => Input::RawStdin(pipe::Kind::Jpeg),
            Self { .. } if is_stdin => Input::Stdin { color },
            Self { looped, fps, .. } => Input::Files { path: path.clone(), color, looped, fps },
        };
        Ok(SourceSettings { name, input, every_frame: self.every_frame })
    }
}

impl CollectFlags {
    fn resolve(self) -> Option<CollectSettings> {
        let options = CollectOptions {
            folder: self.collect?,
            most: self.collect_max,
            most_bytes: self.collect_megabytes.saturating_mul(1_000_000),
            every: Duration::from_secs_f32(self.collect_every),
        };
        Some(CollectSettings { options, threshold: self.collect_threshold })
    }
}

impl WebFlags {
    fn resolve(self) -> Result<Option<WebSettings>> {
        let Some(address) = self.http else { return Ok(None) };
        let token = match &self.http_token_file {
            Some(path) => {
                let bytes = vgg_edge::durable_fs::read_limited(path, MAX_TOKEN_FILE)?;
                let token = check_token(String::from_utf8_lossy(&bytes).trim());
                Some(
                    token
                        .map_err(|problem| UsageError(format!("{}: {problem}", path.display())))?,
                )
            }
            None => self.http_token,
        };
        let access = Access::new(address, token.as_deref());
        let access = access.map_err(|problem| UsageError(problem.to_string()))?;
        Ok(Some(WebSettings { access, token_file: self.http_token_file }))
    }
}

/// Runs the command; `again` parses the command line and reads the settings file again, for SIGHUP.
pub fn run(args: Args, again: &dyn Fn() -> Result<Args>, signals: &Signals) -> Result<()> {
    crate::run::run(args.resolve()?, &|| again()?.resolve(), signals)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{Cli, Command};

    fn resolve(flags: &str) -> Result<RunSettings> {
        let arguments = ["edge", "run", "--head", "h"].into_iter().chain(flags.split(' '));
        match Cli::try_parse_from(arguments)?.command {
            Command::Run(args) => args.resolve(),
            _ => panic!("not edge run"),
        }
    }

    #[test]
    fn flag_values_out_of_range_are_refused() {
        assert_eq!(parse_level("6"), Ok(6.0));
        assert!(parse_level("-1").is_err());
        assert!(parse_weight("1").is_err());
        assert!(parse_score("nan").is_err());
        assert!(parse_interval("0").is_ok());
        assert!(parse_interval("-1").is_err() && parse_interval("inf").is_err());
        assert_eq!(parse_resolution("640x480"), Ok((640, 480)));
        assert!(parse_resolution("0x480").is_err() && parse_resolution("640").is_err());
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
            ("crop", Some("Image")),
            ("min-frames", Some("Decision")),
            ("json", Some("Output")),
            ("collect", Some("Collecting")),
            ("http", Some("Web page")),
            ("base", Some("Model")),
            ("trust", Some("Model")),
            ("sandbox", Some("Sandbox")),
        ] {
            assert_eq!(heading(long), group, "--{long}");
        }
        assert!(run.get_about().is_some_and(|about| about.to_string().contains("stream")));
    }
}
