//! The flags of `edge run` by groups of the help, and what each group resolves to.
//!
//! The groups have no doc comments: clap would take them for the help of the command.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use vgg_edge_cli::options::{BaseOptions, ViewOptions};
use vgg_edge_cli::terminal::UsageError;

use super::values::{
    CameraFormat, parse_format_name, parse_interval, parse_level, parse_raw, parse_resolution,
    parse_score, parse_stall_timeout, parse_weight,
};
use crate::cli::options::Threads;
use crate::collect::CollectOptions;
use crate::model::loader::TrustOptions;
use crate::run::settings::{CollectSettings, Input, SourceSettings, WebSettings};
use crate::source::camera::CameraOptions;
use crate::source::stream::StreamFormat;
use crate::web::{Access, check_token};

/// Largest token file in bytes.
const MAX_TOKEN_FILE: u64 = 4096;

#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Source")]
pub struct SourceFlags {
    /// V4L2 camera, such as /dev/video0
    ///
    /// A link in /dev/v4l/by-id stays the same when the camera is plugged in elsewhere.
    #[arg(
        long,
        value_name = "NODE",
        required_unless_present = "source",
        conflicts_with = "source"
    )]
    pub device: Option<PathBuf>,

    /// Directory, image or video, or - for stdin
    #[arg(long, value_name = "DIR|FILE|-")]
    pub source: Option<PathBuf>,

    /// Format of raw frames on stdin: FORMAT:WIDTHxHEIGHT, or mjpeg
    ///
    /// For example yuv420:640x480. If rows are padded, FORMAT:WIDTHxHEIGHT:STRIDE.
    #[arg(long, value_name = "LAYOUT", value_parser = parse_raw)]
    pub raw: Option<StreamFormat>,

    /// Frames per second
    ///
    /// Requested from a camera. Files are played at this rate, as by a camera, and so become live.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub fps: Option<u32>,

    /// Start again at the end of the files
    #[arg(long = "loop")]
    pub looped: bool,

    /// Classify each frame of a live source, however late, instead of the newest
    #[arg(long)]
    pub every_frame: bool,

    /// Stop after N frames
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub frames: Option<u64>,
}

#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Camera")]
pub struct CameraFlags {
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
    pub format: CameraFormat,

    /// Resolution requested from the camera, in pixels
    #[arg(
        long,
        alias = "capture",
        value_name = "WxH",
        default_value = "640x480",
        value_parser = parse_resolution
    )]
    pub resolution: (u32, u32),

    /// Seconds without a frame before the camera is reopened
    #[arg(
        long,
        alias = "stall",
        value_name = "SECONDS",
        default_value_t = 5.0,
        value_parser = parse_stall_timeout
    )]
    pub stall_timeout: f32,

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
    pub freeze_timeout: u64,
}

#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Decision")]
pub struct DecisionFlags {
    /// Report `unknown` below this score, 0 to 1 [default: from the head]
    #[arg(long, value_name = "SCORE", value_parser = parse_score)]
    pub threshold: Option<f32>,

    /// Weight of earlier frames in the averaged scores, 0 (off) to below 1
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.0, value_parser = parse_weight)]
    pub smooth: f32,

    /// Frames a new label must lead before it is reported
    #[arg(
        long,
        alias = "hold",
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub min_frames: u32,

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
    pub on_motion: Option<f32>,
}

#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Output")]
pub struct OutputFlags {
    /// Print NDJSON
    #[arg(long)]
    pub json: bool,

    /// Print only changes of the label, the source and the model
    #[arg(long)]
    pub events: bool,

    /// Add the SHA-256 of the quantized feature map to each line, to compare machines
    #[arg(long, requires = "json")]
    pub digest: bool,
}

#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Collecting")]
pub struct CollectFlags {
    /// Directory to save unsure frames and label changes to
    ///
    /// Each frame is saved as JPEG, with a line in frames.ndjson.
    #[arg(long, value_name = "DIR")]
    pub collect: Option<PathBuf>,

    /// Maximum number of images in the directory
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub collect_max: u64,

    /// Maximum size of the images in the directory, in megabytes
    #[arg(
        long,
        value_name = "MB",
        default_value_t = 500,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub collect_megabytes: u64,

    /// Minimum seconds between two live frames saved for the same reason (0: save all)
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = parse_interval)]
    pub collect_every: f32,

    /// Score below which a frame is unsure, 0 to 1
    #[arg(
        long,
        alias = "collect-below",
        value_name = "SCORE",
        default_value_t = 0.6,
        value_parser = parse_score
    )]
    pub collect_threshold: f32,
}

#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Web page")]
pub struct WebFlags {
    /// Address to serve a page at, such as 127.0.0.1:8080
    ///
    /// The page shows the live image; /metrics, /healthz and /events are served too.
    #[arg(long, value_name = "ADDRESS")]
    pub http: Option<SocketAddr>,

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
    pub http_token: Option<String>,

    /// File with the token, such as a systemd credential; overrides --http-token
    #[arg(long, value_name = "FILE")]
    pub http_token_file: Option<PathBuf>,
}

#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Model")]
pub struct ModelFlags {
    /// Head file
    #[arg(long, value_name = "FILE")]
    pub head: PathBuf,

    #[command(flatten)]
    pub base: BaseOptions,

    /// Use a new head, or a new base and its head, once it is moved into place
    #[arg(long, help_heading = "Model")]
    pub watch: bool,

    #[command(flatten, next_help_heading = "Model")]
    pub trust: TrustOptions,

    #[command(flatten, next_help_heading = "Model")]
    pub threads: Threads,
}

impl SourceFlags {
    /// Whether frames come on stdin.
    pub fn is_stdin(&self) -> bool {
        self.source.as_deref().is_some_and(|path| path.as_os_str() == "-")
    }

    /// Returns the settings of the source.
    ///
    /// # Errors
    /// If there is no source.
    pub fn resolve(self, camera: CameraFlags, view: &ViewOptions) -> Result<SourceSettings> {
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
            Self { raw: Some(StreamFormat::Raw(layout)), .. } => {
                Input::RawStdin(StreamFormat::Raw(view.color(layout)))
            }
            Self { raw: Some(StreamFormat::Jpeg), .. } => Input::RawStdin(StreamFormat::Jpeg),
            Self { .. } if is_stdin => Input::Stdin { color },
            Self { looped, fps, .. } => Input::Files { path: path.clone(), color, looped, fps },
        };
        Ok(SourceSettings { name, input, every_frame: self.every_frame })
    }
}

impl CollectFlags {
    /// Returns the settings of collecting, if it is on.
    pub fn resolve(self) -> Option<CollectSettings> {
        let options = CollectOptions {
            directory: self.collect?,
            max_images: self.collect_max,
            max_bytes: self.collect_megabytes.saturating_mul(1_000_000),
            every: Duration::from_secs_f32(self.collect_every),
        };
        Some(CollectSettings { options, threshold: self.collect_threshold })
    }
}

impl WebFlags {
    /// Returns the settings of the page, if it is served.
    ///
    /// # Errors
    /// A token that is not valid or cannot be read, and a public address without a token.
    pub fn resolve(self) -> Result<Option<WebSettings>> {
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
