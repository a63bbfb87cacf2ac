//! Collection of frames that had a low score or changed the label, to label and train on.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use crate::frame::Frame;
use crate::jpeg::encode;
use crate::status::Status;

/// Name of the file with a JSON line for each image.
pub const INDEX: &str = "frames.ndjson";

/// Quality of the JPEGs.
const QUALITY: u8 = 95;

/// Largest width of collected images, in pixels; the backbone uses far less.
const MAX_WIDTH: usize = 4096;

/// Time after which a full directory is scanned again: people take images out of it.
const RESCAN_INTERVAL: Duration = Duration::from_secs(60);

/// The directory and its limits.
#[derive(Clone, Debug, PartialEq)]
pub struct CollectOptions {
    /// The directory.
    pub directory: PathBuf,
    /// Most images in it.
    pub max_images: u64,
    /// Most bytes of images in it.
    pub max_bytes: u64,
    /// Least time between two live frames that are collected for the same reason; those in between
    /// would look the same.
    pub every: Duration,
}

/// The reason to collect a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its best score is low.
    Unsure,
    /// It changed the label.
    Changed,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Self::Unsure => "unsure",
            Self::Changed => "changed",
        }
    }
}

/// A frame to collect.
pub struct Collected {
    /// The frame.
    pub frame: Arc<Frame>,
    /// When it was captured; `None` for one of a file.
    pub at: Option<Instant>,
    /// When it was classified, RFC 3339.
    pub time: String,
    /// The name of its source.
    pub source: Arc<str>,
    /// The reason to collect it.
    pub reason: Reason,
    /// The label that was reported.
    pub label: String,
    /// Labels and scores.
    pub scores: Vec<(String, f32)>,
}

/// A thread that encodes and writes, so that a slow card never blocks the classifier. It counts in
/// the status what it collects and misses.
pub struct Collector {
    sender: Option<SyncSender<Collected>>,
    thread: Option<JoinHandle<()>>,
    status: Arc<Status>,
    options: CollectOptions,
    /// When the last live frame was collected, for each reason.
    last: [Cell<Option<Instant>>; 2],
}

impl Collector {
    /// Opens the directory, and creates it if it does not exist.
    ///
    /// # Errors
    /// If it cannot be created, read or written to.
    pub fn new(options: &CollectOptions, status: &Arc<Status>) -> Result<Self> {
        let directory = &options.directory;
        make_directory(directory)?;
        let index = directory.join(INDEX);
        vgg_edge::durable_fs::check_writable(&index)?;
        if index.exists() {
            // It may belong to another user, who ran edge here by hand.
            drop(open_index(&index)?);
        }
        let (count, bytes) = scan(directory)?;
        // One frame waits while one is written; more would be memory.
        let (sender, receiver) = sync_channel(1);
        let (theirs, settings) = (status.clone(), options.clone());
        let thread = std::thread::Builder::new().name("collect".into()).spawn(move || {
            work(CollectDir { options: settings, count, bytes, full: None }, &receiver, &theirs)
        })?;
        let (status, options) = (status.clone(), options.clone());
        Ok(Self {
            sender: Some(sender),
            thread: Some(thread),
            status,
            options,
            last: Default::default(),
        })
    }

    /// The options it was created with.
    pub fn options(&self) -> &CollectOptions {
        &self.options
    }

    /// Whether a frame of that reason and time arrives long enough after the last one. Files are
    /// not live: each of them is due.
    pub fn is_due(&self, reason: Reason, at: Option<Instant>) -> bool {
        match (self.last[reason as usize].get(), at) {
            (Some(last), Some(at)) => at.saturating_duration_since(last) >= self.options.every,
            _ => true,
        }
    }

    /// Passes on a frame. If the one before is not yet written, a live one is dropped and counted;
    /// one of a file waits.
    pub fn keep(&self, frame: Collected) {
        let Some(sender) = &self.sender else { return };
        let (reason, at) = (frame.reason, frame.at);
        let taken =
            if at.is_some() { sender.try_send(frame).is_ok() } else { sender.send(frame).is_ok() };
        if taken {
            self.last[reason as usize].set(at);
        } else {
            self.status.update(|now| now.collect_missed += 1);
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // The thread writes what it has and ends.
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.status.update(|now| now.collect_full = false);
    }
}

/// Creates the directory if it does not exist.
///
/// # Errors
/// The system's error, with the path.
pub fn make_directory(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("{}: cannot create the directory", directory.display()))
}

/// Counts the images and their bytes.
fn scan(directory: &Path) -> Result<(u64, u64)> {
    let list = || format!("{}: cannot list", directory.display());
    let (mut count, mut bytes) = (0, 0);
    for entry in std::fs::read_dir(directory).with_context(list)? {
        let entry = entry.with_context(list)?;
        if entry.path().extension().is_some_and(|e| e == "jpg") {
            count += 1;
            bytes += entry.metadata().map_or(0, |m| m.len());
        }
    }
    Ok((count, bytes))
}

fn work(mut directory: CollectDir, frames: &Receiver<Collected>, status: &Status) {
    let name = directory.options.directory.display().to_string();
    let report = |level: log::Level, message: String| {
        log::log!(level, "{name}: {message}");
        status.log("collect", format!("{name}: {message}"), None);
    };
    let (mut was_full, mut reported_error) = (false, false);
    for frame in frames {
        let outcome = directory.keep(&frame, Instant::now());
        let full = directory.full.is_some();
        status.update(|now| {
            let count = if matches!(outcome, Ok(true)) {
                &mut now.collected
            } else {
                &mut now.collect_missed
            };
            *count += 1;
            now.collect_full = full;
        });
        if std::mem::replace(&mut was_full, full) != full {
            if full {
                let (count, megabytes) = (directory.count, directory.bytes as f64 / 1e6);
                let message = format!(
                    "full ({count} images, {megabytes:.1} MB); collection is paused until there is \
                     room"
                );
                report(log::Level::Warn, message);
            } else {
                report(log::Level::Info, "there is room again; collection continues".into());
            }
        }
        match outcome {
            Ok(kept) => reported_error &= !kept,
            // A card that fails must not fill the log as well.
            Err(e) if !std::mem::replace(&mut reported_error, true) => {
                report(log::Level::Error, format!("cannot collect: {e:#}"))
            }
            Err(_) => {}
        }
    }
}

/// The directory and its contents.
struct CollectDir {
    options: CollectOptions,
    count: u64,
    bytes: u64,
    /// When it was found full, if it is.
    full: Option<Instant>,
}

impl CollectDir {
    /// Writes a frame, if there is room for it.
    fn keep(&mut self, frame: &Collected, now: Instant) -> Result<bool> {
        let CollectOptions { directory, max_images, max_bytes, .. } = &self.options;
        if let Some(since) = self.full {
            if now.saturating_duration_since(since) < RESCAN_INTERVAL {
                return Ok(false);
            }
            (self.count, self.bytes) = scan(directory)?;
        }
        // A frame is encoded only if it may fit.
        let fits = |jpeg: &Vec<u8>| self.bytes + jpeg.len() as u64 <= *max_bytes;
        let jpeg = match self.count < *max_images && self.bytes < *max_bytes {
            true => Some(encode(&frame.frame, MAX_WIDTH, QUALITY)?).filter(fits),
            false => None,
        };
        let Some(jpeg) = jpeg else {
            self.full = Some(now);
            return Ok(false);
        };
        self.full = None;
        let name = write_image(directory, frame, &jpeg)?;
        self.count += 1;
        self.bytes += jpeg.len() as u64;
        if let Err(e) = write_line(directory, frame, &name) {
            // Without a line it is useless, and would still take up space.
            if std::fs::remove_file(directory.join(&name)).is_ok() {
                self.count -= 1;
                self.bytes -= jpeg.len() as u64;
            }
            return Err(e);
        }
        Ok(true)
    }
}

/// Writes the image under a free name, and returns that. Its line is written after it: a line never
/// names an image that does not exist.
fn write_image(directory: &Path, frame: &Collected, jpeg: &[u8]) -> Result<String> {
    // Colons are not allowed in file names everywhere.
    let stem = format!(
        "{}-{}",
        frame.time.replace(':', "").trim_end_matches('Z'),
        file_name_of(&frame.label)
    );
    // The clock of a board without a battery shows the same time again after each start.
    let mut names = std::iter::once(format!("{stem}.jpg"))
        .chain((2..).map(|number| format!("{stem}-{number}.jpg")));
    let name = names.find(|name| !directory.join(name).exists()).unwrap_or_default();
    vgg_edge::durable_fs::write_bytes(&directory.join(&name), jpeg)?;
    Ok(name)
}

fn open_index(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .read(true)
        .append(true)
        .open(path)
        .with_context(|| path.display().to_string())
}

/// Appends the line of an image.
fn write_line(directory: &Path, frame: &Collected, name: &str) -> Result<()> {
    let scores: serde_json::Map<_, _> =
        frame.scores.iter().map(|(label, score)| (label.clone(), json!(score))).collect();
    let line = json!({
        "file": name,
        "time": frame.time,
        "source": &*frame.source,
        "reason": frame.reason.name(),
        "label": frame.label,
        "scores": scores,
    });
    let path = directory.join(INDEX);
    let is_new = !path.exists();
    let index = open_index(&path)?;
    vgg_edge::durable_fs::append_line(&index, &line.to_string()).context(INDEX)?;
    if is_new {
        vgg_edge::durable_fs::sync_folder(&path)?;
    }
    Ok(())
}

/// A label in characters that any file system accepts.
fn file_name_of(label: &str) -> String {
    label.chars().take(40).map(|c| if c.is_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vgg_edge::Image;

    fn frame(second: u32) -> Collected {
        Collected {
            frame: Arc::new(Frame::Rgb(Image::new(8, 8, vec![90; 192]).unwrap())),
            at: None,
            time: format!("2026-11-24T10:00:{second:02}.000Z"),
            source: "/dev/video0".into(),
            reason: Reason::Unsure,
            label: "a/b c".into(),
            scores: vec![("a/b c".into(), 0.5), ("d".into(), 0.5)],
        }
    }

    fn options(directory: &Path) -> CollectOptions {
        CollectOptions {
            directory: directory.to_owned(),
            max_images: 3,
            max_bytes: 1 << 30,
            every: Duration::from_secs(5),
        }
    }

    /// The counts of the status: frames collected and missed, and how often the directory was found
    /// full.
    fn counts(status: &Status) -> (u64, u64, usize) {
        let mut counts = (0, 0);
        status.update(|now| counts = (now.collected, now.collect_missed));
        (
            counts.0,
            counts.1,
            status.entries(0).iter().filter(|(_, entry)| entry.contains(": full (")).count(),
        )
    }

    #[test]
    fn collection_stays_within_its_count_and_includes_earlier_images() {
        let dir = tempfile::tempdir().unwrap();
        let options = options(&dir.path().join("new"));
        let status = Arc::new(Status::new());
        for run in 0..2 {
            let collector = Collector::new(&options, &status).unwrap();
            // Frames of files: each waits until the one before is written. Two of them have the
            // same name.
            (0..4u32).for_each(|number| collector.keep(frame(10 * run + number / 2)));
            drop(collector);
            assert_eq!(counts(&status), if run == 0 { (3, 1, 1) } else { (3, 5, 2) });
        }
        assert_eq!(scan(&options.directory).unwrap().0, 3);
        let index = std::fs::read_to_string(options.directory.join(INDEX)).unwrap();
        let lines: Vec<serde_json::Value> =
            index.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let names: Vec<&str> = lines.iter().map(|line| line["file"].as_str().unwrap()).collect();
        let start = "2026-11-24T1000";
        assert_eq!(
            names,
            ["00.000-a_b_c.jpg", "00.000-a_b_c-2.jpg", "01.000-a_b_c.jpg"]
                .map(|end| format!("{start}{end}"))
        );
        names.iter().for_each(|name| {
            assert!(vgg_edge::image::decode::decode_file(&options.directory.join(name)).is_ok())
        });
    }

    #[test]
    fn collection_stays_within_its_bytes_to_the_last_image() {
        let dir = tempfile::tempdir().unwrap();
        let status = Arc::new(Status::new());
        let length = encode(&frame(0).frame, MAX_WIDTH, QUALITY).unwrap().len() as u64;
        let options = CollectOptions {
            max_images: 100,
            max_bytes: 2 * length + length / 2,
            ..options(dir.path())
        };
        let collector = Collector::new(&options, &status).unwrap();
        (0..4).for_each(|second| collector.keep(frame(second)));
        drop(collector);
        assert_eq!(scan(dir.path()).unwrap(), (2, 2 * length));
        assert_eq!(counts(&status), (2, 2, 1));
    }

    #[test]
    fn an_emptied_collect_directory_is_filled_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut directory =
            CollectDir { options: options(dir.path()), count: 0, bytes: 0, full: None };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        (0..3).for_each(|second| assert!(directory.keep(&frame(second), start).unwrap()));
        assert!(!directory.keep(&frame(3), start).unwrap());
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        assert!(
            !directory.keep(&frame(4), at(59)).unwrap(),
            "scanning a directory for each frame would be too much"
        );
        assert!(directory.keep(&frame(5), at(60)).unwrap());
        assert_eq!((directory.count, directory.full), (1, None));
    }

    #[test]
    fn an_image_without_a_line_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(INDEX)).unwrap();
        let mut directory =
            CollectDir { options: options(dir.path()), count: 0, bytes: 0, full: None };
        assert!(directory.keep(&frame(0), Instant::now()).is_err());
        assert_eq!((scan(dir.path()).unwrap(), directory.count, directory.bytes), ((0, 0), 0, 0));
        assert!(Collector::new(&options(dir.path()), &Arc::new(Status::new())).is_err());
    }

    #[test]
    fn live_frames_soon_after_a_collected_one_are_not_due() {
        let dir = tempfile::tempdir().unwrap();
        let collector = Collector::new(&options(dir.path()), &Arc::new(Status::new())).unwrap();
        let start = Instant::now();
        let at = |milliseconds| Some(start + Duration::from_millis(milliseconds));
        assert!(collector.is_due(Reason::Unsure, at(0)));
        collector.keep(Collected { at: at(0), ..frame(0) });
        assert!(
            !collector.is_due(Reason::Unsure, at(4999))
                && collector.is_due(Reason::Unsure, at(5000))
        );
        assert!(collector.is_due(Reason::Changed, at(100)), "each reason for itself");
        assert!(collector.is_due(Reason::Unsure, None), "files are not live");
    }

    #[test]
    fn collecting_a_live_frame_never_waits_for_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let status = Arc::new(Status::new());
        // A thread that receives nothing.
        let (sender, _receiver) = sync_channel(1);
        let collector = Collector {
            sender: Some(sender),
            thread: None,
            status: status.clone(),
            options: options(dir.path()),
            last: Default::default(),
        };
        let now = Some(Instant::now());
        (0..3).for_each(|second| collector.keep(Collected { at: now, ..frame(second) }));
        assert_eq!(counts(&status), (0, 2, 0));
    }
}
