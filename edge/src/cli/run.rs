//! `edge run`: a stream of frames, one result each, until it ends or is stopped.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Map, json};
use vgg_edge::Fingerprint;
use vgg_edge::classifier::{Classification, Classifier};
use vgg_edge::pixel::{parse_layout, parse_size};
use vgg_edge_cli::options::{BaseOptions, ViewOptions};
use vgg_edge_cli::record::{FrameResult, time};
use vgg_edge_cli::terminal::{UsageError, hung_up, interrupted, note, print_line};

use crate::PROGRAM;
use crate::cli::options::Threads;
use crate::collect::{self, CollectOptions, Collected, Collector, Reason};
use crate::frame::Frame;
use crate::model::loader::{Model, ModelLoader, TrustOptions, smoke_test};
use crate::model::manager::{ModelEvent, ModelManager, ModelSpec, Origin, Swap};
use crate::motion::MotionGate;
use crate::sandbox::{Needs, SandboxOptions};
use crate::service::Service;
use crate::smoothing::{Decision, LabelFilter, Smoothing, label};
use crate::source::camera::{self, CameraOptions, is_jpeg_name, parse_format};
use crate::source::files::Source;
use crate::source::stream::{self, StreamFormat};
use crate::source::{
    FrameSource, LatestFrame, Lost, Next, Report, SourceState, SourceThread, TimedFrame,
};
use crate::status::{RunInfo, Status};
use crate::web::{Access, Server, check_token};

/// How long the loop waits for a frame before it looks at signals and the watchdog.
const PATIENCE: Duration = Duration::from_millis(200);

/// Classifies a stream of frames
///
/// The source is a camera (--device), or a folder of pictures (in the order of their names), a
/// picture, YUV4MPEG2 video (.y4m), or - for stdin: a picture, YUV4MPEG2, or raw frames with --raw.
/// Cameras and raw pipes are live: the newest frame is taken, older ones are dropped and counted.
/// One line a frame: source, label and score with tabs between, or NDJSON with --json; at a
/// terminal what is live has one line that is written over. Ctrl-C or SIGTERM ends it with exit
/// code 0. SIGHUP reads the configuration and the head again, but ends it if stderr is a terminal,
/// which hangs up when it is closed.
///
/// With --watch a head, or a base and its head, that is put in place (copied beside and renamed) is
/// taken between two frames. With --state the last good pair is kept: it runs if what is in place
/// is damaged or refused, and `edge rollback` goes back to the one before. With --trust only what
/// is signed runs (host sign).
#[derive(Clone, clap::Args)]
#[command(
    args_override_self = true,
    after_help = "Examples:\n  edge run --head head.postcard --device /dev/video0\n  \
    edge run --head head.postcard --device /dev/video0 --http 127.0.0.1:8080 --smooth 0.8 --hold 3 --threshold 0.6\n  \
    edge run --head head.postcard --source samples/surfaces.y4m\n  \
    rpicam-vid -t 0 --width 640 --height 480 --codec yuv420 -o - | edge run --head head.postcard --source - --raw yuv420:640x480\n  \
    ffmpeg -i film.mp4 -pix_fmt yuv420p -f yuv4mpegpipe - | edge run --head head.postcard --source - --json\n  \
    edge run --head head.postcard --device /dev/video0 --watch --state /var/lib/heads --trust farm.pub"
)]
pub struct Args {
    /// Settings, by the names of these flags, that stand before those of the command line (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The head
    #[arg(long, value_name = "FILE")]
    head: PathBuf,

    /// A V4L2 camera; its link in /dev/v4l/by-id stays the same when it is plugged in elsewhere
    #[arg(
        long,
        value_name = "NODE",
        required_unless_present = "source",
        conflicts_with = "source"
    )]
    device: Option<PathBuf>,

    /// Folder, picture, video, or - for stdin
    #[arg(long, value_name = "DIR|FILE|-")]
    source: Option<PathBuf>,

    /// Format asked of the camera: auto, YUYV, UYVY, NV12, NV21, YU12, RGB3, BGR3, GREY, MJPG, BA81
    /// and others (edge devices)
    #[arg(long, value_name = "FOURCC", default_value = "auto", value_parser = parse_format_name)]
    format: CameraFormat,

    /// Size asked of the camera, in pixels
    #[arg(long, value_name = "WxH", default_value = "640x480", value_parser = parse_capture)]
    capture: (u32, u32),

    /// Frames a second: asked of the camera; files are played at that rate, as a camera would, and
    /// so become live
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    fps: Option<u32>,

    /// What comes on stdin: FORMAT:WIDTHxHEIGHT, with :STRIDE if rows are padded, such as
    /// yuv420:640x480; or mjpeg
    #[arg(long, value_name = "LAYOUT", value_parser = parse_raw)]
    raw: Option<StreamFormat>,

    /// Starts again at the end (files)
    #[arg(long = "loop")]
    looped: bool,

    /// Classifies each frame of a live source, however late, instead of the newest
    #[arg(long)]
    every_frame: bool,

    /// Ends after so many frames
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    frames: Option<u64>,

    /// Without a frame for so many seconds a camera is opened anew
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = parse_stall)]
    stall: f32,

    /// With the same picture for so many seconds, byte for byte, a camera is opened anew, then at
    /// intervals that double (0: never)
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(..=86400))]
    frozen: u64,

    #[command(flatten)]
    view: ViewOptions,

    /// Says unknown below this score, 0 to 1 [default: the head's]
    #[arg(long, value_name = "SCORE", value_parser = parse_share)]
    threshold: Option<f32>,

    /// Averages scores over frames: the weight of the past, 0 (off) to below 1
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.0, value_parser = parse_past)]
    smooth: f32,

    /// A new label must lead for so many frames before it is said
    #[arg(long, value_name = "FRAMES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    hold: u32,

    /// Prints changes of the label and of the source only
    #[arg(long)]
    events: bool,

    /// Skips inference while nothing moves: the least mean change of an 8x8 block of the base's
    /// input, in grey levels [default: 6]
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, default_missing_value = "6", require_equals = true, value_parser = parse_level)]
    on_motion: Option<f32>,

    /// Keeps frames that were unsure or changed the label in this folder, as JPEG with a line in
    /// frames.ndjson
    #[arg(long, value_name = "DIR")]
    collect: Option<PathBuf>,

    /// Most pictures in that folder
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    collect_max: u64,

    /// Most megabytes of pictures in that folder
    #[arg(long, value_name = "MB", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    collect_megabytes: u64,

    /// SourceThread, at most one unsure frame and one change are kept in so many seconds (0: all)
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = parse_every)]
    collect_every: f32,

    /// A frame whose best score is below this is unsure
    #[arg(long, value_name = "SCORE", default_value_t = 0.6, value_parser = parse_share)]
    collect_below: f32,

    /// Serves a page with the live picture, /metrics, /healthz and /events at this address, such as
    /// 127.0.0.1:8080
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,

    /// What other machines must show to see the page (http://.../?token=...); demanded if --http is
    /// not a loopback address
    #[arg(long, value_name = "TOKEN", env = "VGG_EDGE_HTTP_TOKEN", hide_env_values = true, value_parser = check_token)]
    http_token: Option<String>,

    /// The token in a file, such as one of systemd's credentials; before --http-token
    #[arg(long, value_name = "FILE")]
    http_token_file: Option<PathBuf>,

    #[command(flatten)]
    base: BaseOptions,

    /// Takes a head, or a base and its head, that is put in place while it runs
    #[arg(long)]
    watch: bool,

    #[command(flatten)]
    trust: TrustOptions,

    #[command(flatten)]
    threads: Threads,

    #[command(flatten)]
    sandbox: SandboxOptions,

    /// Prints NDJSON
    #[arg(long)]
    json: bool,

    /// Adds the SHA-256 of the quantized feature map to each line, to compare machines
    #[arg(long, requires = "json")]
    digest: bool,
}

/// A fourcc, or the camera's choice. A type of its own, as clap reads `Option` as a flag that may
/// be missing.
#[derive(Clone, Copy, Debug, PartialEq)]
struct CameraFormat(Option<[u8; 4]>);

fn parse_format_name(text: &str) -> Result<CameraFormat, String> {
    parse_format(text).map(CameraFormat).map_err(|e| e.to_string())
}

fn parse_capture(text: &str) -> Result<(u32, u32), String> {
    let size =
        parse_size(text).and_then(|(w, h)| Some((u32::try_from(w).ok()?, u32::try_from(h).ok()?)));
    size.filter(|&(w, h)| w > 0 && h > 0).ok_or_else(|| "a size such as 640x480 is wanted".into())
}

fn parse_raw(text: &str) -> Result<pipe::Kind, String> {
    if is_jpeg_name(text) {
        return Ok(pipe::Kind::Jpeg);
    }
    parse_layout(text).map(pipe::Kind::Raw).map_err(|e| e.to_string())
}

fn number(text: &str, range: std::ops::RangeInclusive<f32>) -> Result<f32, String> {
    let found = text.parse().ok().filter(|value| range.contains(value));
    found.ok_or_else(|| format!("a number from {} to {} is wanted", range.start(), range.end()))
}

fn parse_share(text: &str) -> Result<f32, String> {
    number(text, 0.0..=1.0)
}

fn parse_past(text: &str) -> Result<f32, String> {
    number(text, 0.0..=0.999)
}

fn parse_level(text: &str) -> Result<f32, String> {
    number(text, 0.0..=255.0)
}

fn parse_stall(text: &str) -> Result<f32, String> {
    number(text, 0.5..=3600.0)
}

fn parse_every(text: &str) -> Result<f32, String> {
    number(text, 0.0..=86400.0)
}

impl Args {
    /// What is wrong with flags that are right one by one.
    fn check(&self) -> Result<()> {
        let usage = |words: &str| Err(UsageError(words.into()).into());
        let stdin = self.is_stdin();
        if self.raw.is_some() && !stdin {
            return usage("--raw goes with --source - only");
        }
        if stdin && self.looped {
            return usage("--loop does not go with stdin, which cannot be read again");
        }
        if stdin && self.fps.is_some() {
            return usage("--fps does not go with stdin, which has a rate of its own");
        }
        if self.device.is_some() && self.looped && self.config.is_none() {
            return usage("--loop does not go with a camera, which has no end");
        }
        if self.http.is_none() && self.http_token.is_some() && self.config.is_none() {
            return usage("--http-token without --http");
        }
        self.access()?;
        Ok(())
    }

    fn access(&self) -> Result<Option<Access>> {
        let Some(address) = self.http else { return Ok(None) };
        let token = match &self.http_token_file {
            Some(path) => {
                let bytes = vgg_edge::durable_fs::read_limited(path, 4096)?;
                let token = check_token(String::from_utf8_lossy(&bytes).trim());
                Some(token.map_err(|words| UsageError(format!("{}: {words}", path.display())))?)
            }
            None => self.http_token.clone(),
        };
        Access::new(address, token.as_deref())
            .map(Some)
            .map_err(|e| UsageError(e.to_string()).into())
    }

    fn source_name(&self) -> String {
        let path = self.device.as_ref().or(self.source.as_ref());
        let name = path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        if name == "-" { "stdin".into() } else { name }
    }

    fn collect_options(&self) -> Option<CollectOptions> {
        let folder = self.collect.clone()?;
        let every = Duration::from_secs_f32(self.collect_every);
        Some(CollectOptions {
            directory: folder,
            max_images: self.collect_max,
            max_bytes: self.collect_megabytes.saturating_mul(1_000_000),
            every,
        })
    }

    /// What is to run, in what a run is known by.
    fn plan(&self, run: &str) -> Result<ModelSpec<(Engine, RunInfo)>> {
        let files = ModelLoader::new(&self.head, &self.base, &self.trust)?;
        let (args, run) = (self.clone(), run.to_owned());
        Ok(ModelSpec {
            files,
            make: Box::new(move |pair| Engine::new(&args, pair, &run)),
            watch: self.watch,
        })
    }

    /// Whether another source is meant, or the same in another way.
    fn same_source(&self, other: &Self) -> bool {
        let key = |args: &Self| {
            let (device, source) = (args.device.clone(), args.source.clone());
            let camera = device.is_some().then_some((
                args.format,
                args.capture,
                args.stall.to_bits(),
                args.frozen,
            ));
            (
                device,
                source,
                camera,
                args.view.color,
                args.fps,
                args.raw,
                args.looped,
                args.every_frame,
            )
        };
        key(self) == key(other)
    }

    fn is_stdin(&self) -> bool {
        self.source.as_deref().is_some_and(|path| path.as_os_str() == "-")
    }

    /// What must go on working in the sandbox: what is read again at SIGHUP, the source, the folder
    /// for collected frames, the page.
    fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        needs.service();
        // A base that is not found is told of when it is loaded.
        let base = self.base.path().ok();
        for path in
            [Some(&self.head), base.as_ref(), self.config.as_ref(), self.http_token_file.as_ref()]
        {
            path.into_iter().for_each(|path| needs.replaceable(path));
        }
        match (&self.device, &self.source) {
            (Some(device), _) => needs.camera(device),
            (None, Some(source)) if source.is_dir() => needs.directory(source),
            (None, Some(source)) => needs.file(source),
            (None, None) => {}
        }
        if let Some(folder) = &self.collect {
            needs.writable(folder);
        }
        self.trust.needs(&mut needs);
        if let Some(address) = self.http {
            needs.listen(address.port());
        }
        needs
    }

    /// Creates the directories that the run writes to, which the sandbox requires to exist.
    fn create_directories(&self) -> Result<()> {
        if let Some(directory) = &self.collect {
            collect::make_directory(directory)?;
        }
        self.trust.create_state()
    }

    /// Opens the source; [`FrameSource::start`] is still to come.
    fn source(&self) -> Result<FrameSource> {
        if let Some(device) = &self.device {
            let options = CameraOptions {
                device: device.clone(),
                format: self.format.0,
                size: self.capture,
                fps: self.fps,
                stall: Duration::from_secs_f32(self.stall),
                frozen: Duration::from_secs(self.frozen),
                color: self.view.color,
            };
            let run = move |slot: &LatestFrame| camera::run(&options, slot);
            return Ok(FrameSource::Live(SourceThread::new(
                "camera",
                self.every_frame,
                false,
                run,
            )));
        }
        let Some(path) = &self.source else {
            bail!(UsageError("--device or --source is wanted".into()))
        };
        if let Some(raw) = self.raw {
            let kind = match raw {
                StreamFormat::Raw(layout) => StreamFormat::Raw(self.view.color(layout)),
                StreamFormat::Jpeg => StreamFormat::Jpeg,
            };
            let run = move |slot: &LatestFrame| stream::run(std::io::stdin(), kind, slot);
            return Ok(FrameSource::Live(SourceThread::new("pipe", self.every_frame, true, run)));
        }
        let color = self.view.color;
        if self.is_stdin() {
            // In a thread, since a signal must end the program while it waits for bytes. Each frame
            // counts, as in a file.
            let run = move |slot: &LatestFrame| {
                play(Source::open("-".as_ref(), false)?.colored(color), None, slot)
            };
            return Ok(FrameSource::Live(SourceThread::new("stdin", true, true, run)));
        }
        let source = Source::open(path, self.looped)?.colored(color);
        match self.fps {
            Some(fps) => {
                let every = Duration::from_secs(1) / fps;
                let run = move |slot: &LatestFrame| play(source, Some(every), slot);
                Ok(FrameSource::Live(SourceThread::new("player", self.every_frame, false, run)))
            }
            None => Ok(FrameSource::Files(source, Lost::default())),
        }
    }
}

/// Plays files as a camera would; or as fast as they are taken.
fn play(mut source: Source, every: Option<Duration>, slot: &LatestFrame) -> Result<()> {
    let mut due = Instant::now();
    let mut first = true;
    while !slot.stopped() {
        match source.next()? {
            Next::Frame(stamped) => {
                if std::mem::take(&mut first) && every.is_some() {
                    slot.report(SourceState::Streaming, "a file, played");
                }
                if let Some(every) = every {
                    slot.sleep(due.saturating_duration_since(Instant::now()));
                    due = (due + every).max(Instant::now());
                }
                slot.put(stamped.name, stamped.frame);
            }
            Next::Unreadable(words) => slot.unreadable(words),
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// Everything that a reload replaces, but the source.
struct Engine {
    classifier: Classifier,
    decider: LabelFilter,
    gate: Option<MotionGate>,
    /// The last answer, for frames in which nothing moves.
    last: Option<(Classification, Decision)>,
    /// The label said last, perhaps by the engine before.
    said: Option<String>,
}

impl Engine {
    /// Takes the place of another: what that said last holds until this one says otherwise, and a
    /// change between the two is one.
    fn follow(&mut self, before: Self) {
        if before.classifier.head().labels == self.classifier.head().labels {
            self.decider.follow(before.decider);
        }
        self.said = before.said;
    }

    /// An engine that was tried, and what the page is told of it once it is in place.
    fn new(args: &Args, pair: &Model, run: &str) -> Result<(Self, RunInfo)> {
        let mut classifier = pair.classifier(args.threads.pool()?)?;
        classifier.set_view(args.view.crop, args.view.fit.map(Into::into));
        classifier.set_digest(args.digest);
        if let Some(threshold) = args.threshold {
            classifier.set_threshold(threshold);
        }
        smoke_test(&mut classifier)?;
        let head = classifier.head();
        let hello = RunInfo {
            run: run.to_owned(),
            edge: env!("CARGO_PKG_VERSION"),
            kernel: pair.base.kernel().name(),
            threads: args.threads.threads,
            size: head.preprocess.size,
            labels: head.labels.clone(),
            base: pair.id.base.to_string(),
            head: pair.id.head.to_string(),
            head_version: pair.head_signed.map(|signed| signed.version),
            head_key: pair.head_signed.map(|signed| signed.key.to_string()),
            head_date: head.training.date.clone(),
            val_accuracy: head.training.metrics.val_accuracy,
        };
        let threshold = classifier.threshold();
        let smoothing = Smoothing { past: args.smooth, hold: args.hold, threshold };
        let gate = args.on_motion.map(MotionGate::new);
        Ok((
            Self { classifier, decider: LabelFilter::new(smoothing), gate, last: None, said: None },
            hello,
        ))
    }
}

/// What came of a frame.
enum Outcome {
    Answer {
        result: Classification,
        said: Decision,
        still: bool,
    },
    /// Not a picture.
    Unreadable(String),
}

impl Engine {
    fn classify_frame(&mut self, picture: &Frame) -> Result<Outcome> {
        let start = Instant::now();
        let input = match picture.with_pixels(|pixels| self.classifier.quantize(pixels)) {
            Ok(Ok(input)) => input,
            Ok(Err(e)) | Err(e) => return Ok(Outcome::Unreadable(e.to_string())),
        };
        let size = self.classifier.head().preprocess.size as usize;
        let moves = self.gate.as_mut().is_none_or(|gate| gate.moves(&input, size));
        if let (false, Some((result, said))) = (moves, &mut self.last) {
            // The scores count as those of a new frame: the decision may follow them only later.
            *said = self.decider.update(&result.scores);
            return Ok(Outcome::Answer { result: result.clone(), said: said.clone(), still: true });
        }
        let mut result = self.classifier.classify_input(&input)?;
        let said = self.decider.update(&result.scores);
        result.latency_ms = start.elapsed().as_secs_f64() * 1e3;
        self.last = Some((result.clone(), said.clone()));
        Ok(Outcome::Answer { result, said, still: false })
    }
}

/// Where results go.
struct Output {
    json: bool,
    events: bool,
    /// One line that is written over, rather than one a frame: live, at a terminal.
    status_line: bool,
}

impl Output {
    fn event(&self, event: serde_json::Value, words: &str) -> Result<()> {
        self.clear_line();
        if self.json {
            print_line(event)?;
        } else if self.events {
            print_line(words)?;
        } else {
            note(PROGRAM, words);
        }
        Ok(())
    }

    /// An event that somebody should hear of who reads words, too.
    fn warning(&self, event: serde_json::Value, words: &str) -> Result<()> {
        if self.json || self.events {
            note(PROGRAM, words);
        }
        self.event(event, words)
    }

    fn clear_line(&self) {
        if self.status_line {
            use std::io::Write;
            let _ = write!(std::io::stdout(), "\r\x1b[K");
        }
    }
}

/// Runs the command; `again` reads arguments and configuration anew, for SIGHUP.
pub fn run(mut args: Args, again: &dyn Fn() -> Result<Args>) -> Result<()> {
    args.check()?;
    // Before the first thread and the first byte of a head or a frame.
    args.create_directories()?;
    let sandbox = args.sandbox.enter(&args.needs())?;
    note(PROGRAM, format_args!("sandbox {sandbox}"));
    let status = Arc::new(Status::new());
    status.set_sandbox(&sandbox);
    let id = Fingerprint::of(format!("{} {}", time(), std::process::id()).as_bytes()).short();
    let mut service = Service::new();
    // The source is opened first: its errors should not wait for the base.
    let mut source = args.source()?;
    source.start();
    let (swap, manager) = ModelManager::start(args.plan(&id)?)?;
    let mut output = output(&args, &source);
    if swap.is_odd() {
        report_swap(&swap, &status, &output)?;
    }
    let mut engine = install(swap, &status, None);
    let (mut collector, mut collect_again) =
        open_or_retry(open_collector(&args, &status), "collect", &status)?;
    let (mut server, mut serve_again) =
        open_or_retry(start_server(args.access()?, &status), "page", &status)?;
    set_source(&status, &args, &source);
    service.ready();

    let (mut number, mut unreadable) = (0u64, 0u64);
    let mut told_unreadable = false;
    let mut pending: Option<Reload> = None;
    while !interrupted() && args.frames.is_none_or(|frames| number < frames) {
        service.alive();
        if pending.is_none() && hung_up() {
            service.reloading();
            match Reload::begin(
                &args,
                again,
                &status,
                &id,
                &manager,
                collector.as_ref(),
                &mut server,
            ) {
                Ok(reload) => pending = Some(reload),
                Err(e) => {
                    report_failed_reload(&sandbox.explain(e), &status, &output)?;
                    service.ready();
                }
            }
        }
        if collect_again.is_some_and(|at| Instant::now() >= at) {
            (collector, collect_again) = retry(open_collector(&args, &status), "collect", &status);
        }
        if serve_again.is_some_and(|at| Instant::now() >= at) {
            let access = args.access();
            let started = access.and_then(|access| start_server(access, &status));
            (server, serve_again) = retry(started, "page", &status);
        }
        // Between two frames: each is looked at by one engine from beginning to end.
        while let Some(news) = manager.news()? {
            match news {
                ModelEvent::Swap(swap) => {
                    report_swap(&swap, &status, &output)?;
                    status.update(|now| now.model.swaps += 1);
                    engine = install(swap, &status, Some(engine));
                }
                ModelEvent::Reloaded(outcome) => {
                    let Some(reload) = pending.take() else { continue };
                    match outcome {
                        Ok(swap) => {
                            reload.finish(&mut args, &mut source, &mut collector);
                            // Both were there, or the reload would have been refused.
                            (collect_again, serve_again) = (None, None);
                            output = self::output(&args, &source);
                            set_source(&status, &args, &source);
                            if swap.is_odd() {
                                report_swap(&swap, &status, &output)?;
                            }
                            engine = install(swap, &status, Some(engine));
                            status.log("reload", "settings and head read again".into(), None);
                            output.event(
                                json!({ "event": "reload", "time": time(), "ok": true }),
                                "reloaded",
                            )?;
                        }
                        Err(e) => {
                            reload.give_up(&status, &mut server)?;
                            report_failed_reload(&sandbox.explain(e), &status, &output)?;
                        }
                    }
                    service.ready();
                }
                ModelEvent::Refused(e) => {
                    report_kept("refused", &format!("{:#}", sandbox.explain(e)), &status, &output)?;
                }
                ModelEvent::Waiting(words) => report_kept("waiting", &words, &status, &output)?,
                ModelEvent::Settled => {
                    status.update(|now| now.model.note = None);
                    let words = "what is in place is again what runs";
                    status.log("model", words.into(), None);
                    output.event(
                        json!({ "event": "model", "time": time(), "state": "settled" }),
                        words,
                    )?;
                }
            }
        }
        match source.next(PATIENCE)? {
            Next::Frame(stamped) => {
                let frame = FrameJob {
                    number,
                    source: &source,
                    status: &status,
                    collector: collector.as_ref(),
                };
                if let Some(words) = frame.classify(stamped, &mut engine, &args, &output)? {
                    unreadable += 1;
                    // A camera that gives nothing but faults must not fill the log.
                    if !source.is_live() || !std::mem::replace(&mut told_unreadable, true) {
                        note(PROGRAM, words);
                    }
                } else {
                    told_unreadable = false;
                }
                status.set_lost(source.lost(), unreadable);
                number += 1;
            }
            Next::Unreadable(words) => {
                unreadable += 1;
                note(PROGRAM, words);
                number += 1;
            }
            Next::Report(report) => tell(&report, &args, &status, &mut service, &output)?,
            Next::Idle => status.set_lost(source.lost(), unreadable),
            Next::End => {
                status.update(|now| now.source.state = SourceState::Ended);
                break;
            }
        }
    }
    service.stopping();
    output.clear_line();
    let lost = source.lost();
    let mut words = format!("{number} frames, {unreadable} unreadable");
    if source.is_live() {
        words += &format!(", {} dropped, {} corrupt", lost.dropped, lost.corrupt);
    }
    note(PROGRAM, words);
    if unreadable > 0 && unreadable == number {
        bail!("{}: no frame could be read", args.source_name());
    }
    Ok(())
}

fn output(args: &Args, source: &FrameSource) -> Output {
    let status_line =
        source.is_live() && !args.json && !args.events && std::io::stdout().is_terminal();
    Output { json: args.json, events: args.events, status_line }
}

fn set_source(status: &Status, args: &Args, source: &FrameSource) {
    status.update(|now| {
        now.source.name = args.source_name();
        if !source.is_live() {
            now.source.state = SourceState::Streaming;
            now.source.detail = "files".into();
        }
    });
}

fn open_collector(args: &Args, status: &Arc<Status>) -> Result<Option<Collector>> {
    args.collect_options().map(|options| Collector::new(&options, status)).transpose()
}

/// How long after a failure what passes is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// Whether a device that starts by itself should rather run without: a card that is full or that
/// the kernel has made read-only, an address that is not up yet.
fn is_transient(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{AddrNotAvailable, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let kinds = [AddrNotAvailable, QuotaExceeded, ReadOnlyFilesystem, StorageFull];
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| kinds.contains(&e.kind()))
    })
}

/// At the start: what is there, or when to try again, which is told.
///
/// # Errors
/// What does not pass by itself.
fn open_or_retry<T>(
    opened: Result<Option<T>>,
    what: &'static str,
    status: &Status,
) -> Result<(Option<T>, Option<Instant>)> {
    match opened {
        Ok(opened) => Ok((opened, None)),
        Err(e) if is_transient(&e) => {
            let words = format!("{what}: goes on without, and tries again each minute: {e:#}");
            note(PROGRAM, &words);
            status.log(what, words, None);
            Ok((None, Some(Instant::now() + TRY_AGAIN)))
        }
        Err(e) => Err(e),
    }
}

/// Later: what is there now, or when to try once more, without a word.
fn retry<T>(
    opened: Result<Option<T>>,
    what: &'static str,
    status: &Status,
) -> (Option<T>, Option<Instant>) {
    match opened {
        Ok(opened) => {
            let words = format!("{what}: it works now");
            note(PROGRAM, &words);
            status.log(what, words, None);
            (opened, None)
        }
        Err(_) => (None, Some(Instant::now() + TRY_AGAIN)),
    }
}

fn start_server(access: Option<Access>, status: &Arc<Status>) -> Result<Option<Server>> {
    let Some(access) = access else { return Ok(None) };
    let server = Server::start(access, status.clone())?;
    note(PROGRAM, format_args!("page at http://{}/", server.address()));
    Ok(Some(server))
}

/// A reload under way: everything new but the engine, which is in the making.
struct Reload {
    args: Args,
    /// In place of what is there, if it has changed.
    collector: Option<Option<Collector>>,
    source: Option<FrameSource>,
    /// How the old server was to be reached, if the new one is there already: its port must be free
    /// before it can be taken again.
    before: Option<Option<Access>>,
}

impl Reload {
    /// Makes all that is quick, and orders the engine; on an error everything stays as it was.
    fn begin(
        args: &Args,
        again: &dyn Fn() -> Result<Args>,
        status: &Arc<Status>,
        id: &str,
        manager: &ModelManager<(Engine, RunInfo)>,
        collector: Option<&Collector>,
        server: &mut Option<Server>,
    ) -> Result<Self> {
        let new = again()?;
        new.check()?;
        if new.sandbox != args.sandbox {
            bail!("the sandbox cannot change while edge runs; restart it");
        }
        if new.is_stdin() && args.is_stdin() && !new.same_source(args) {
            bail!("what comes on stdin cannot be taken in another way from amid; restart edge");
        }
        let plan = new.plan(id)?;
        let options = new.collect_options();
        let new_collector = if options.as_ref() == collector.map(Collector::options) {
            None
        } else {
            Some(open_collector(&new, status)?)
        };
        let source = if new.same_source(args) { None } else { Some(new.source()?) };
        // The server knows what it was started with; the file of the token may have changed since.
        let (access, old) = (new.access()?, server.as_ref().map(|server| server.access().clone()));
        let changed = access != old;
        if changed {
            *server = None;
            *server = match start_server(access, status) {
                Ok(server) => server,
                Err(e) => {
                    *server = start_server(old, status)?;
                    return Err(e);
                }
            };
        }
        let reload =
            Self { args: new, collector: new_collector, source, before: changed.then_some(old) };
        if let Err(e) = manager.reload(plan) {
            reload.give_up(status, server)?;
            return Err(e);
        }
        Ok(reload)
    }

    /// Puts the parts in.
    fn finish(self, args: &mut Args, source: &mut FrameSource, collector: &mut Option<Collector>) {
        if let Some(new) = self.collector {
            *collector = new;
        }
        if let Some(new) = self.source {
            source.replace(new);
        }
        *args = self.args;
    }

    /// Leaves everything as it was.
    fn give_up(self, status: &Arc<Status>, server: &mut Option<Server>) -> Result<()> {
        if let Some(old) = self.before {
            *server = None;
            *server = start_server(old, status)?;
        }
        Ok(())
    }
}

fn report_failed_reload(error: &anyhow::Error, status: &Status, output: &Output) -> Result<()> {
    let words = format!("{error:#}");
    status.log("reload", format!("kept the old settings: {words}"), None);
    note(PROGRAM, format_args!("not reloaded, the old settings stay: {words}"));
    output.event(json!({ "event": "reload", "time": time(), "ok": false, "detail": words }), &words)
}

/// The engine of a pair; the page and the metrics show it from now on.
fn install(swap: Swap<(Engine, RunInfo)>, status: &Status, before: Option<Engine>) -> Engine {
    let note = swap.is_odd().then(|| swap.to_string());
    let (mut engine, hello) = swap.made;
    if let Some(before) = before {
        engine.follow(before);
    }
    status.set_hello(hello);
    status.update(|now| (now.model.origin, now.model.note) = (swap.origin, note));
    engine
}

/// Tells which pair runs from here on, and why if it is not the one in place.
fn report_swap(swap: &Swap<(Engine, RunInfo)>, status: &Status, output: &Output) -> Result<()> {
    let mut event = json!({
        "event": "model", "time": time(), "state": swap.origin.event(),
        "head": swap.id.head.to_string(), "base": swap.id.base.to_string(),
    });
    if let Some(version) = swap.version {
        event["version"] = version.into();
    }
    for (key, words) in [("detail", &swap.why), ("unkept", &swap.unkept)] {
        if let Some(words) = words {
            event[key] = words.as_str().into();
        }
    }
    let words = swap.to_string();
    status.log("model", words.clone(), None);
    if !swap.is_odd() {
        return output.event(event, &words);
    }
    status.update(|now| now.model.refused += u64::from(swap.origin == Origin::LastGood));
    output.warning(event, &words)
}

/// Tells why what was put in place does not run.
fn report_kept(state: &str, words: &str, status: &Status, output: &Output) -> Result<()> {
    let line = format!("{state}, what ran goes on: {words}");
    status.update(|now| {
        now.model.note = Some(line.clone());
        now.model.refused += u64::from(state == "refused");
    });
    status.log("model", line.clone(), None);
    output.warning(
        json!({ "event": "model", "time": time(), "state": state, "detail": words }),
        &line,
    )
}

fn tell(
    report: &Report,
    args: &Args,
    status: &Status,
    service: &mut Service,
    output: &Output,
) -> Result<()> {
    let Report { state, detail } = report;
    status.update(|now| {
        now.source.state = *state;
        now.source.detail.clone_from(detail);
        if matches!(state, SourceState::Lost | SourceState::Stalled | SourceState::Frozen) {
            now.source.lost += 1;
            now.fps = 0.0;
        }
    });
    let state_name = format!("{state:?}").to_lowercase();
    let words = format!("{}: {state_name}: {detail}", args.source_name());
    status.log("source", format!("{state_name}: {detail}"), None);
    service.status(&words);
    let event = json!({ "event": "source", "time": time(), "state": state, "detail": detail });
    output.event(event, &words)
}

/// A frame on its way.
struct FrameJob<'a> {
    number: u64,
    source: &'a FrameSource,
    status: &'a Status,
    collector: Option<&'a Collector>,
}

impl FrameJob<'_> {
    /// Classifies the frame and tells everyone; gives words if it is no picture.
    fn classify(
        self,
        stamped: TimedFrame,
        engine: &mut Engine,
        args: &Args,
        output: &Output,
    ) -> Result<Option<String>> {
        let TimedFrame { name, frame: picture, at } = stamped;
        let picture = picture.decoded();
        self.source.judge(picture.is_ok());
        let picture = match picture {
            Ok(picture) => picture,
            Err(e) => return Ok(Some(format!("{name}: {e}"))),
        };
        let (mut result, said, still) = match engine.classify_frame(&picture)? {
            Outcome::Answer { result, said, still } => (result, said, still),
            Outcome::Unreadable(words) => return Ok(Some(format!("{name}: {words}"))),
        };
        let age_ms = at.map(|at| at.elapsed().as_secs_f64() * 1e3);
        let best = result.score;
        let head = engine.classifier.head();
        let labels = &head.labels;
        // What is said is the decision over the frames so far; with neither --smooth nor --hold it
        // is that of this frame, bit for bit.
        result.label = label(labels, said.label).to_owned();
        result.score = said.score;
        result.scores = engine.decider.scores().to_vec();
        // The first answer of all is no change.
        let before =
            engine.said.replace(result.label.clone()).filter(|before| *before != result.label);

        let background = head.is_background(&result.label);
        self.print(&result, background, still, age_ms, &name, labels, before.as_deref(), output)?;
        self.publish(&result, still, age_ms, labels, engine.classifier.threshold());
        if let Some(before) = &before {
            self.status.log(
                "label",
                format!("{before} \u{2192} {}", result.label),
                Some(said.score),
            );
        }

        // That something has gone is no picture to train on.
        let reason = if before.is_some() && !background {
            Some(Reason::Changed)
        } else {
            (!still && best < args.collect_below.max(engine.classifier.threshold()))
                .then_some(Reason::Unsure)
        };
        let keep =
            self.collector.zip(reason).filter(|(collector, reason)| collector.is_due(*reason, at));
        let show = self.status.wants_picture();
        if keep.is_none() && !show {
            self.source.recycle(picture);
            return Ok(None);
        }
        let picture = Arc::new(picture);
        if let Some((collector, reason)) = keep {
            collector.keep(Collected {
                frame: picture.clone(),
                at,
                time: time(),
                source: name,
                reason,
                label: result.label.clone(),
                scores: labels.iter().cloned().zip(result.scores.iter().copied()).collect(),
            });
        }
        if show && let Some(old) = self.status.show(picture).and_then(Arc::into_inner) {
            self.source.recycle(old);
        }
        Ok(None)
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one line")]
    fn print(
        &self,
        result: &Classification,
        background: bool,
        still: bool,
        age_ms: Option<f64>,
        name: &str,
        labels: &[String],
        before: Option<&str>,
        output: &Output,
    ) -> Result<()> {
        if output.events {
            if let Some(before) = before {
                let mut event = json!({
                    "event": "label", "time": time(), "frame": self.number, "source": name,
                    "from": before, "to": result.label, "score": result.score,
                });
                if background {
                    event["background"] = true.into();
                }
                output.event(
                    event,
                    &format!("{name}\t{before}\t{}\t{:.3}", result.label, result.score),
                )?;
            }
            return Ok(());
        }
        let mut line = FrameResult::new(self.number, name, labels, result);
        line.age_ms = age_ms.map(|age| (age * 1e3).round() / 1e3);
        line.still = still;
        line.background = background;
        if output.json {
            print_line(line.to_json())?;
        } else if output.status_line {
            use std::io::Write;
            let still = if still { "  still" } else { "" };
            let mut out = std::io::stdout().lock();
            write!(
                out,
                "\r\x1b[K{}  {:.3}  {:.1} ms, age {:.0} ms, frame {}, {} dropped{still}",
                result.label,
                result.score,
                result.latency_ms,
                age_ms.unwrap_or_default(),
                self.number,
                self.source.lost().dropped
            )?;
            out.flush()?;
        } else {
            print_line(&line)?;
        }
        Ok(())
    }

    fn publish(
        &self,
        result: &Classification,
        still: bool,
        age_ms: Option<f64>,
        labels: &[String],
        threshold: f32,
    ) {
        let number = self.number;
        let change = |now: &mut crate::status::Snapshot| {
            now.label = Some(result.label.clone());
            now.score = Some(result.score);
            let scores = labels.iter().zip(&result.scores);
            now.scores = Some(
                scores.map(|(label, score)| (label.clone(), json!(score))).collect::<Map<_, _>>(),
            );
            now.threshold = threshold;
            now.still = still;
            now.skipped += u64::from(still);
            now.age_ms = age_ms;
            now.frames = number + 1;
        };
        if still {
            self.status.still(change)
        } else {
            self.status.answered(result.latency_ms, change)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_refused() {
        assert_eq!(parse_level("6"), Ok(6.0));
        assert!(
            parse_level("-1").is_err() && parse_past("1").is_err() && parse_share("nan").is_err()
        );
        assert!(
            parse_every("0").is_ok() && parse_every("-1").is_err() && parse_every("inf").is_err()
        );
        assert_eq!(parse_capture("640x480"), Ok((640, 480)));
        assert!(parse_capture("0x480").is_err() && parse_capture("640").is_err());
    }
}
