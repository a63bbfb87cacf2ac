//! V4L2 cameras: opened, set up, streamed from, lost and found again.
//!
//! A session lasts from opening the node to the first thing that goes wrong; then everything is
//! closed and, after a pause that grows, the camera is looked for again, also under another node.
//! Some ways of the `v4l` crate shape the code:
//!
//! - Its wait is infinite unless told otherwise, and after a timeout its `next` queues a buffer
//!   twice and fails for ever. So the wait is a `poll` of our own, and `next` is called only when a
//!   frame is there.
//! - `next` gives the whole mapping: the frame is its first `bytesused` bytes.
//! - Dropping a stream panics if the driver fails to stop it, and so does getting one if the driver
//!   gives too few buffers and does not take them back. Panics are caught; the session is over
//!   anyway.
//! - `query_caps` panics on names that are no UTF-8, so [`names`] asks by itself.

use std::io;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use sd_notify::NotifyState;
use v4l::buffer::{Flags, Metadata, Type};
use v4l::format::{Colorspace, Quantization};
use v4l::frameinterval::FrameIntervalEnum;
use v4l::io::mmap::Stream;
use v4l::io::traits::{CaptureStream, Stream as _};
use v4l::v4l_sys::v4l2_capability;
use v4l::video::Capture;
use v4l::video::capture::Parameters;
use v4l::{Device, Format, FourCC, v4l2};
use vgg_edge::image::decode::decode;
use vgg_edge::pixel::{Color, Layout, Matrix, PixelFormat, Range, RawFrame, default_color};

use super::{LatestFrame, SourceState, panic_words};
use crate::picture::Picture;

/// Buffers that the driver fills.
const BUFFERS: u32 = 4;

/// How long a wait lasts before it is looked whether to stop.
const TICK: Duration = Duration::from_millis(200);

/// `POLLIN` of poll(2).
const POLLIN: i16 = 1;

/// Pauses between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// How long a camera is waited for before another one at its node is as good: one that broke, or
/// was put into another port, is not coming back.
const FAITHFUL: Duration = Duration::from_secs(600);

/// What is asked of the camera.
#[derive(Clone, Debug, PartialEq)]
pub struct CameraOptions {
    /// The node, such as `/dev/video0` or a link in `/dev/v4l/by-id`.
    pub device: PathBuf,
    /// The fourcc; `None` for the first that is understood.
    pub format: Option<[u8; 4]>,
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// Frames a second; `None` leaves the driver's choice.
    pub fps: Option<u32>,
    /// Without a frame for so long, the camera is opened anew.
    pub stall: Duration,
    /// With the same picture for so long, byte for byte, it is opened anew; zero for never.
    pub frozen: Duration,
    /// What samples mean, in place of what the driver says.
    pub color: Option<Color>,
}

/// What frames of a session are.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Raw(Layout),
    Jpeg,
}

/// What a driver calls itself, its camera, and where that is plugged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The driver.
    pub driver: String,
    /// The camera.
    pub card: String,
    /// The place.
    pub bus: String,
}

/// Asks a node for its names. Bytes that are no UTF-8 are replaced: the kernel cuts long names, be
/// it within a letter.
///
/// # Errors
/// What the system says.
pub fn names(device: &Device) -> io::Result<Names> {
    let mut capability = MaybeUninit::<v4l2_capability>::zeroed();
    // SAFETY: the request fills a structure of just this type. It is one of numbers, so any bytes
    // are valid, and zeros before that.
    let capability = unsafe {
        v4l2::ioctl(
            device.handle().fd(),
            v4l2::vidioc::VIDIOC_QUERYCAP,
            capability.as_mut_ptr().cast(),
        )?;
        capability.assume_init()
    };
    let v4l2_capability { driver, card, bus_info, .. } = capability;
    Ok(Names { driver: name_of(&driver), card: name_of(&card), bus: name_of(&bus_info) })
}

/// The text before the first zero.
fn name_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Why a session ended before it was stopped.
enum Ended {
    /// No frames, or none of use; in words.
    Stalled(&'static str),
    /// The same picture for so long.
    Frozen(Duration),
    /// An error.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Puts the frames of a camera into the slot until it is stopped.
///
/// # Errors
/// None: whatever goes wrong is told and tried again.
pub fn run(options: &CameraOptions, slot: &LatestFrame) -> Result<()> {
    let name: Arc<str> = options.device.to_string_lossy().into();
    let mut identity = None;
    let mut pause = FIRST_PAUSE;
    let mut told = None;
    let mut freeze = Freeze::new(options.frozen);
    let mut seen = Instant::now();
    slot.report(SourceState::Opening, &*name);
    loop {
        let mut streamed = false;
        if identity.is_some() && seen.elapsed() >= FAITHFUL {
            identity = None;
            let minutes = FAITHFUL.as_secs() / 60;
            slot.report(
                SourceState::Lost,
                &*format!("away for {minutes} minutes; any camera at {name} is taken from now on"),
            );
            told = None;
        }
        slot.forgive();
        let ended =
            guarded(|| session(options, slot, &name, &mut identity, &mut freeze, &mut streamed));
        if streamed {
            (pause, told, seen) = (FIRST_PAUSE, None, Instant::now());
        }
        let (state, detail) = match ended {
            _ if slot.stopped() => return Ok(()),
            Ok(()) => return Ok(()),
            Err(Ended::Stalled(words)) => {
                (SourceState::Stalled, format!("{words} for {} s", options.stall.as_secs_f32()))
            }
            Err(Ended::Frozen(time)) => (
                SourceState::Frozen,
                format!("the same picture, byte for byte, for {} s", time.as_secs()),
            ),
            Err(Ended::Failed(e)) => (SourceState::Lost, format!("{e:#}")),
        };
        // A camera that stays away is told of once, not every four seconds.
        if told.as_ref() != Some(&(state, detail.clone())) {
            slot.report(state, &*detail);
            told = Some((state, detail));
        }
        slot.sleep(pause);
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Makes a panic in a session an error of it.
fn guarded(session: impl FnOnce() -> Result<(), Ended>) -> Result<(), Ended> {
    catch_unwind(AssertUnwindSafe(session)).unwrap_or_else(|panic| {
        Err(anyhow!("it does what no camera should: {}", panic_words(&*panic)).into())
    })
}

fn session(
    options: &CameraOptions,
    slot: &LatestFrame,
    name: &Arc<str>,
    identity: &mut Option<Names>,
    freeze: &mut Freeze,
    streamed: &mut bool,
) -> Result<(), Ended> {
    let (device, path) = find(&options.device, identity.as_ref())?;
    let (kind, detail) = set_up(&device, options)?;
    let detail = if path == options.device {
        detail
    } else {
        format!("{detail}, now at {}", path.display())
    };
    *identity = names(&device).ok();
    let mut stream = Stream::with_buffers(&device, Type::VideoCapture, BUFFERS)
        .context("the driver gives no buffers")?;
    // `next` takes no longer than this once a frame is there; it is set only so that it can never
    // hang.
    stream.set_timeout(TICK);
    let ended = pump(options, slot, name, &mut stream, kind, &detail, freeze, streamed);
    // Drop panics if the driver fails to stop, see above.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(stream)));
    ended
}

#[allow(clippy::too_many_arguments, reason = "the parts of a session, and what outlives it")]
fn pump(
    options: &CameraOptions,
    slot: &LatestFrame,
    name: &Arc<str>,
    stream: &mut Stream,
    kind: Kind,
    detail: &str,
    freeze: &mut Freeze,
    streamed: &mut bool,
) -> Result<(), Ended> {
    for index in 0..BUFFERS as usize {
        // A driver may give fewer buffers than were asked for.
        if CaptureStream::queue(stream, index).is_err() && index == 0 {
            return Err(anyhow!("the driver takes no buffer").into());
        }
    }
    stream.start().context("cannot start streaming")?;
    let handle = stream.handle();
    let mut last = Instant::now();
    let (mut primed, mut sequence) = (false, None);
    loop {
        if slot.stopped() {
            return Ok(());
        }
        match handle.poll(POLLIN, TICK.as_millis() as i32) {
            Ok(0) if last.elapsed() >= options.stall => return Err(Ended::Stalled("no frame")),
            Ok(0) => continue,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(anyhow::Error::from(e).context("waiting for a frame").into()),
        }
        if !primed {
            // The first frame may be one from before the format was set, and taking it alone gives
            // `next` a buffer to queue.
            CaptureStream::dequeue(stream).map_err(|e| gone(&e))?;
            primed = true;
            slot.lose(1, 0);
            continue;
        }
        let (bytes, meta) = CaptureStream::next(stream).map_err(|e| gone(&e))?;
        if let Some(before) = sequence {
            // Frames that the driver dropped leave a gap; a restart of the count is none.
            let gap = meta.sequence.wrapping_sub(before).wrapping_sub(1);
            slot.lose(if gap < 1000 { gap.into() } else { 0 }, 0);
        }
        sequence = Some(meta.sequence);
        let used = (meta.bytesused as usize).min(bytes.len());
        let frame = &bytes[..used];
        let whole = match kind {
            Kind::Raw(layout) => RawFrame::new(layout, frame).is_ok(),
            // The first one is decoded here: what gives nothing else than damage never counts as
            // streaming.
            Kind::Jpeg => frame.starts_with(&[0xff, 0xd8]) && (*streamed || decode(frame).is_ok()),
        };
        if meta.flags.contains(Flags::ERROR) || !whole {
            slot.lose(0, 1);
            // Nothing but faults is no stream.
            if last.elapsed() >= options.stall {
                return Err(Ended::Stalled("nothing but faulty frames"));
            }
            continue;
        }
        last = Instant::now();
        let captured = captured(meta, last, monotonic());
        if slot.undecoded() >= options.stall {
            return Err(Ended::Stalled("no frame that can be decoded"));
        }
        if let Some(time) = freeze.after(frame, last) {
            return Err(Ended::Frozen(time));
        }
        if !*streamed {
            *streamed = true;
            slot.report(SourceState::Streaming, detail);
        }
        // One copy, and the buffer is the driver's again: its memory may be uncached, where reading
        // pixels one by one is slow.
        let mut buffer = slot.buffer();
        buffer.extend_from_slice(frame);
        let picture = match kind {
            Kind::Raw(layout) => Picture::Raw(layout, buffer),
            Kind::Jpeg => Picture::Jpeg(buffer),
        };
        slot.put_captured(name.clone(), picture, captured);
    }
}

/// The oldest that a frame may be by its driver's word: drivers exist whose clock is another one.
const OLDEST: Duration = Duration::from_secs(10);

/// When a frame that came just `now` was captured: by the driver's stamp, if that is of the
/// monotonic clock and can be right, else now. `clock` is that clock, see [`monotonic`].
fn captured(meta: &Metadata, now: Instant, clock: Option<u32>) -> Instant {
    let Some(clock) = clock.filter(|_| meta.flags.contains(Flags::TIMESTAMP_MONOTONIC)) else {
        return now;
    };
    let stamp = i128::from(meta.timestamp.sec) * 1_000_000 + i128::from(meta.timestamp.usec);
    // A stamp of the future becomes a very old one.
    let age = Duration::from_micros(clock.wrapping_sub(stamp as u32).into());
    if age <= OLDEST { now.checked_sub(age).unwrap_or(now) } else { now }
}

/// The clock of the stamps, which is behind [`Instant`] too but not to be had from it: microseconds
/// modulo 2^32, all that sd-notify's arithmetic leaves of them on 32-bit systems.
fn monotonic() -> Option<u32> {
    match NotifyState::monotonic_usec_now() {
        Ok(NotifyState::MonotonicUsec(now)) => Some(now as u32),
        _ => None,
    }
}

/// Finds out a camera that goes on counting frames but shows the same one: sensors have noise, so
/// no two pictures of one are equal.
///
/// What is as still as that but alive (a test picture, darkness that a driver clips to black) is
/// opened anew at intervals that double.
struct Freeze {
    first: Duration,
    patience: Duration,
    digest: Option<u64>,
    since: Instant,
}

impl Freeze {
    /// The longest interval.
    const LONGEST: Duration = Duration::from_secs(3600);

    fn new(patience: Duration) -> Self {
        Self { first: patience, patience, digest: None, since: Instant::now() }
    }

    /// Takes a frame; if it has been the same one for too long, for how long.
    fn after(&mut self, frame: &[u8], now: Instant) -> Option<Duration> {
        if self.first.is_zero() {
            return None;
        }
        let digest = Self::digest(frame);
        if self.digest.replace(digest) != Some(digest) {
            (self.since, self.patience) = (now, self.first);
            return None;
        }
        let patience = self.patience;
        if now.duration_since(self.since) < patience {
            return None;
        }
        self.since = now;
        self.patience = (2 * patience).min(Self::LONGEST).max(self.first);
        Some(patience)
    }

    /// FNV-1a over every seventh word and the length: what does not change there does not change at
    /// all, or it would have no noise.
    fn digest(frame: &[u8]) -> u64 {
        let words = frame.as_chunks().0.iter().step_by(7).map(|&word| u64::from_le_bytes(word));
        words.fold(0xcbf2_9ce4_8422_2325 ^ frame.len() as u64, |hash, word| {
            (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
        })
    }
}

/// The words for an error of the driver.
fn gone(error: &io::Error) -> anyhow::Error {
    match error.raw_os_error() {
        Some(19) => anyhow!("the camera was unplugged"),
        Some(5) => anyhow!("the driver failed (EIO)"),
        _ => anyhow!("cannot take a frame: {error}"),
    }
}

/// Opens the node, or the one at which the same camera is now.
fn find(path: &Path, identity: Option<&Names>) -> Result<(Device, PathBuf)> {
    let opened =
        Device::with_path(path).with_context(|| format!("{}: cannot open", path.display()));
    let Some(identity) = identity else { return opened.map(|device| (device, path.to_owned())) };
    // Most cameras have a node for metadata too, of the same names.
    let is_same = |device: &Device| {
        names(device).is_ok_and(|found| found == *identity)
            && device.enum_formats().is_ok_and(|formats| !formats.is_empty())
    };
    if let Ok(device) = opened {
        // Another camera under the same node is not the one that was asked for, unless the node is
        // a link to its identity.
        if path.is_symlink() || is_same(&device) {
            return Ok((device, path.to_owned()));
        }
    }
    for node in nodes() {
        let Ok(device) = Device::with_path(&node) else { continue };
        if is_same(&device) {
            return Ok((device, node));
        }
    }
    bail!("{}: the camera {} is not there", path.display(), identity.card)
}

/// Nodes of video devices, in the order of their numbers.
pub fn nodes() -> Vec<PathBuf> {
    let number = |name: &str| name.strip_prefix("video").and_then(|rest| rest.parse::<u32>().ok());
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| Some((number(entry.file_name().to_str()?)?, entry.path())))
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// Whether frames of that fourcc are understood.
pub fn is_understood(fourcc: [u8; 4]) -> bool {
    is_jpeg(fourcc) || PixelFormat::from_fourcc(fourcc).is_some()
}

fn is_jpeg(fourcc: [u8; 4]) -> bool {
    matches!(&fourcc, b"MJPG" | b"JPEG")
}

/// Sets format and rate, and reads back what the driver made of it.
fn set_up(device: &Device, options: &CameraOptions) -> Result<(Kind, String)> {
    let offered: Vec<[u8; 4]> = device
        .enum_formats()
        .context("it does not capture")?
        .into_iter()
        .map(|d| d.fourcc.repr)
        .collect();
    if offered.is_empty() {
        bail!("it does not capture (an output or metadata node?); see edge devices");
    }
    let wanted = match options.format {
        Some(fourcc) => fourcc,
        None => choose(device, &offered, options)?,
    };
    let (width, height) = options.size;
    let asked = Format::new(width, height, FourCC::new(&wanted));
    let set = device.set_format(&asked).with_context(|| format!("cannot set {}", text(wanted)))?;
    let got = set.fourcc.repr;
    let kind = if is_jpeg(got) {
        Kind::Jpeg
    } else {
        let format = PixelFormat::from_fourcc(got).ok_or_else(|| {
            anyhow!("the driver set the format {}, which is not understood", text(got))
        })?;
        let color = options.color.unwrap_or(color_of(format, set.colorspace, set.quantization));
        Kind::Raw(Layout::new(
            format,
            set.width as usize,
            set.height as usize,
            set.stride as usize,
            color,
        )?)
    };
    // Not every driver has a rate to set.
    let rate = match options.fps {
        Some(fps) => device.set_params(&Parameters::with_fps(fps)),
        None => device.params(),
    };
    let rate = rate.ok().map(|p| p.interval).filter(|i| i.numerator > 0 && i.denominator > 0);
    let rate = rate.map(|i| f64::from(i.denominator) / f64::from(i.numerator));
    let mut detail = match kind {
        Kind::Raw(layout) => layout.to_string(),
        Kind::Jpeg => format!("{} {}x{}", text(got), set.width, set.height),
    };
    if let Some(rate) = rate {
        detail += &format!(", {} fps", (rate * 10.0).round() / 10.0);
    }
    // The driver substitutes without a word.
    let mut other = Vec::new();
    if got != wanted {
        other.push(text(wanted));
    }
    if (set.width, set.height) != (width, height) {
        other.push(format!("{width}x{height}"));
    }
    if let (Some(fps), Some(rate)) = (options.fps, rate)
        && (rate - f64::from(fps)).abs() > 0.5
    {
        other.push(format!("{fps} fps"));
    }
    if !other.is_empty() {
        detail += &format!(" (the driver's choice; asked for {})", other.join(", "));
    }
    Ok((kind, detail))
}

/// The first format that is understood: raw before JPEG, if it reaches the rate that is asked for.
fn choose(device: &Device, offered: &[[u8; 4]], options: &CameraOptions) -> Result<[u8; 4]> {
    let raw = PixelFormat::all().filter_map(PixelFormat::fourcc);
    let order = raw.chain([*b"MJPG", *b"JPEG"]).filter(|fourcc| offered.contains(fourcc));
    let understood: Vec<[u8; 4]> = order.collect();
    let fast = |fourcc: &&[u8; 4]| match options.fps {
        Some(fps) => {
            fastest(device, **fourcc, options.size).is_none_or(|rate| rate + 0.5 >= f64::from(fps))
        }
        None => true,
    };
    understood.iter().find(fast).or(understood.first()).copied().ok_or_else(|| {
        let names: Vec<String> = offered.iter().map(|&fourcc| text(fourcc)).collect();
        anyhow!("no format is understood; it offers {}", names.join(", "))
    })
}

/// The highest rate that a format is offered at, if the driver tells.
fn fastest(device: &Device, fourcc: [u8; 4], (width, height): (u32, u32)) -> Option<f64> {
    let intervals = device.enum_frameintervals(FourCC::new(&fourcc), width, height).ok()?;
    let rate = |f: v4l::Fraction| f64::from(f.denominator) / f64::from(f.numerator.max(1));
    let rates = intervals.into_iter().map(|interval| match interval.interval {
        FrameIntervalEnum::Discrete(fraction) => rate(fraction),
        FrameIntervalEnum::Stepwise(step) => rate(step.min),
    });
    rates.max_by(f64::total_cmp)
}

/// What samples mean, by the driver's word (V4L2 color spaces); by default as [`default_color`].
fn color_of(format: PixelFormat, space: Colorspace, quantization: Quantization) -> Color {
    let default = default_color(format);
    let matrix = if matches!(space, Colorspace::Rec709) { Matrix::Bt709 } else { Matrix::Bt601 };
    let range = match (quantization, space) {
        (Quantization::FullRange, _) | (Quantization::Default, Colorspace::JPEG) => Range::Full,
        (Quantization::LimitedRange, _) => Range::Limited,
        (Quantization::Default, _) => default.range,
    };
    Color { matrix, range }
}

/// A fourcc in letters.
pub fn text(fourcc: [u8; 4]) -> String {
    fourcc.iter().map(|&b| if b.is_ascii_graphic() { char::from(b) } else { '?' }).collect()
}

/// Whether that is what people call JPEG frames.
pub fn is_jpeg_name(name: &str) -> bool {
    ["MJPG", "MJPEG", "JPEG"].iter().any(|jpeg| name.eq_ignore_ascii_case(jpeg))
}

/// `--format`: a fourcc or another name of a format that is understood; `None` for auto.
///
/// # Errors
/// A sentence that names the formats.
pub fn parse_format(name: &str) -> Result<Option<[u8; 4]>, String> {
    if name.eq_ignore_ascii_case("auto") {
        return Ok(None);
    }
    let fourcc =
        match (is_jpeg_name(name), PixelFormat::from_name(name).and_then(PixelFormat::fourcc)) {
            (true, _) => Some(if name.eq_ignore_ascii_case("JPEG") { *b"JPEG" } else { *b"MJPG" }),
            (false, fourcc) => fourcc,
        };
    fourcc.map(Some).ok_or_else(|| {
        let names: Vec<String> =
            PixelFormat::all().filter_map(PixelFormat::fourcc).map(text).collect();
        format!("one of auto, {}, MJPG, JPEG is wanted", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use v4l::timestamp::Timestamp;

    #[test]
    fn formats_by_name() {
        assert_eq!(parse_format("auto"), Ok(None));
        assert_eq!(parse_format("yuyv"), Ok(Some(*b"YUYV")));
        assert_eq!(parse_format("mjpeg"), Ok(Some(*b"MJPG")));
        assert_eq!(parse_format("BA81"), Ok(Some(*b"BA81")));
        assert!(parse_format("H264").unwrap_err().contains("NV12"));
    }

    #[test]
    fn names_that_are_cut_within_a_letter() {
        assert_eq!(name_of(b"Cam\xc3\xa9ra\0\0junk"), "Cam\u{e9}ra");
        assert_eq!(name_of(b"Cam\xc3"), "Cam\u{fffd}");
        assert_eq!(name_of(b""), "");
    }

    #[test]
    fn a_panic_ends_a_session_only() {
        let Err(Ended::Failed(error)) = guarded(|| panic!("as v4l does")) else {
            panic!("it has failed")
        };
        assert!(error.to_string().contains("as v4l does"), "{error}");
    }

    #[test]
    fn frames_are_as_old_as_the_driver_says_if_that_can_be() {
        let now = Instant::now() + Duration::from_secs(100);
        let age = |flags, sec, usec, clock| {
            let meta =
                Metadata { flags, timestamp: Timestamp::new(sec, usec), ..Metadata::default() };
            now.duration_since(captured(&meta, now, clock)).as_micros()
        };
        let stamped = Flags::TIMESTAMP_MONOTONIC;
        assert_eq!(age(stamped, 1234, 500_000, Some(1_234_570_000)), 70_000);
        assert_eq!(
            age(stamped | Flags::TSTAMP_SRC_SOE, 1234, 500_000, Some(1_234_570_000)),
            70_000
        );
        // Over an hour after the start the sum of microseconds has passed 2^32.
        assert_eq!(age(stamped, 4294, 967_290, Some(4)), 10);
        for (flags, sec, clock) in [
            (Flags::TIMESTAMP_COPY, 1234, Some(1_234_570_000)),
            (Flags::TIMESTAMP_UNKNOWN, 1234, Some(1_234_570_000)),
            (stamped, 1235, Some(1_234_570_000)),
            (stamped, 1200, Some(1_234_570_000)),
            (stamped, 1234, None),
        ] {
            assert_eq!(age(flags, sec, 500_000, clock), 0, "{flags} {sec}");
        }
        // It is the clock of Instant, here in whole microseconds.
        let (at, before) = (Instant::now(), monotonic().unwrap());
        std::thread::sleep(Duration::from_millis(5));
        let passed = u128::from(monotonic().unwrap().wrapping_sub(before));
        assert!(passed >= 4999 && passed <= at.elapsed().as_micros() + 1, "{passed}");
    }

    #[test]
    fn a_frozen_picture_is_found_at_intervals_that_double() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut freeze = Freeze::new(Duration::from_secs(10));
        let (still, mut other) = (vec![7u8; 4096], vec![7u8; 4096]);
        other[8 * 7 * 20 + 3] = 8;
        let mut found = Vec::new();
        for second in 0..75 {
            found.extend(freeze.after(&still, at(second)).map(|time| (second, time.as_secs())));
        }
        assert_eq!(found, [(10, 10), (30, 20), (70, 40)]);
        assert_eq!(freeze.after(&other, at(75)), None);
        assert_eq!(freeze.after(&still, at(84)), None, "another picture in between");
        assert_eq!(freeze.after(&still, at(94)), Some(Duration::from_secs(10)));
        let mut never = Freeze::new(Duration::ZERO);
        assert!((0..100).all(|second| never.after(&still, at(second * 1000)).is_none()));
    }

    #[test]
    fn colors_of_drivers() {
        let of = |format, space, quantization| color_of(format, space, quantization).name();
        assert_eq!(of(PixelFormat::Yuyv, Colorspace::SRGB, Quantization::Default), "bt601");
        assert_eq!(of(PixelFormat::Yuyv, Colorspace::JPEG, Quantization::Default), "bt601-full");
        assert_eq!(of(PixelFormat::Nv12, Colorspace::Rec709, Quantization::LimitedRange), "bt709");
        assert_eq!(of(PixelFormat::Grey, Colorspace::Default, Quantization::Default), "bt601-full");
        assert_eq!(of(PixelFormat::Grey, Colorspace::Default, Quantization::LimitedRange), "bt601");
    }

    #[test]
    fn a_camera_that_is_not_there_is_told_once_and_tried_again() {
        use crate::source::{FrameSource, Next, SourceThread};
        let options = CameraOptions {
            device: "/dev/no-such-camera".into(),
            format: None,
            size: (640, 480),
            fps: None,
            stall: Duration::from_secs(5),
            frozen: Duration::ZERO,
            color: None,
        };
        let mut source =
            FrameSource::Live(SourceThread::new("camera", false, false, move |slot| {
                run(&options, slot)
            }));
        source.start();
        let mut reports = Vec::new();
        // Long enough for three attempts.
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            if let Next::Report(report) = source.next(TICK).unwrap() {
                reports.push(report);
            }
        }
        assert_eq!(reports.len(), 2, "{reports:?}");
        assert_eq!((reports[0].state, reports[1].state), (SourceState::Opening, SourceState::Lost));
        assert!(reports[1].detail.contains("/dev/no-such-camera: cannot open"), "{reports:?}");
    }
}
