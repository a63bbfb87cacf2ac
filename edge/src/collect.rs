//! Keeps frames that were unsure or changed the label, for people to sort and train on.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use serde_json::json;
use shared::cli::note;

use crate::PROGRAM;
use crate::jpeg::encode;
use crate::picture::Picture;

/// Name of the file with a JSON line for each picture.
pub const INDEX: &str = "frames.ndjson";

/// Quality of the JPEGs.
const QUALITY: u8 = 95;

/// The widest that pictures are kept; the base sees far less.
const WIDEST: usize = 4096;

/// How much is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct CollectOptions {
    /// The folder.
    pub folder: PathBuf,
    /// Most pictures in it.
    pub most: u64,
    /// Most bytes of pictures in it.
    pub most_bytes: u64,
}

/// A frame to keep.
pub struct Collected {
    /// The picture.
    pub picture: Arc<Picture>,
    /// When it was classified, RFC 3339.
    pub time: String,
    /// Where it came from.
    pub source: Arc<str>,
    /// Why it is kept: `unsure` or `changed`.
    pub reason: &'static str,
    /// What was said.
    pub label: String,
    /// Labels and scores.
    pub scores: Vec<(String, f32)>,
}

/// A thread that encodes and writes, so that a slow card never holds up the classifier.
pub struct Collector {
    sender: Option<SyncSender<Collected>>,
    thread: Option<JoinHandle<()>>,
    kept: Arc<AtomicU64>,
    options: CollectOptions,
}

impl Collector {
    /// Opens the folder, and makes it if it is not there.
    ///
    /// # Errors
    /// If it cannot be made, read or written to.
    pub fn new(options: &CollectOptions) -> Result<Self> {
        let folder = &options.folder;
        make_folder(folder)?;
        shared::fs::check_writable(&folder.join(INDEX))?;
        let (count, bytes) = stock(folder)?;
        let kept = Arc::new(AtomicU64::new(0));
        // One frame waits while one is written; more would be memory.
        let (sender, receiver) = sync_channel(1);
        let (theirs, settings) = (kept.clone(), options.clone());
        let thread = std::thread::Builder::new()
            .name("collect".into())
            .spawn(move || work(&settings, &receiver, count, bytes, &theirs))?;
        Ok(Self { sender: Some(sender), thread: Some(thread), kept, options: options.clone() })
    }

    /// What it was made with.
    pub fn options(&self) -> &CollectOptions {
        &self.options
    }

    /// Hands over a frame; if the one before is not yet written, this one is let go.
    pub fn keep(&self, frame: Collected) {
        if let Some(sender) = &self.sender {
            let _ = sender.try_send(frame);
        }
    }

    /// Frames kept by this run.
    pub fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // The thread writes what it has and ends.
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Makes the folder if it is not there.
///
/// # Errors
/// What the system says.
pub fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot make the folder", folder.display()))
}

/// Pictures and bytes that are there.
fn stock(folder: &Path) -> Result<(u64, u64)> {
    let list = || format!("{}: cannot list", folder.display());
    let (mut count, mut bytes) = (0, 0);
    for entry in std::fs::read_dir(folder).with_context(list)? {
        let entry = entry.with_context(list)?;
        if entry.path().extension().is_some_and(|e| e == "jpg") {
            count += 1;
            bytes += entry.metadata().map_or(0, |m| m.len());
        }
    }
    Ok((count, bytes))
}

fn work(options: &CollectOptions, frames: &Receiver<Collected>, mut count: u64, mut bytes: u64, kept: &AtomicU64) {
    let (mut told_full, mut told_error) = (false, false);
    for frame in frames {
        if count >= options.most || bytes >= options.most_bytes {
            if !told_full {
                note(
                    PROGRAM,
                    format_args!(
                        "{} is full ({count} pictures, {} MB); nothing more is collected until it is emptied and edge starts anew",
                        options.folder.display(),
                        bytes / 1_000_000
                    ),
                );
                told_full = true;
            }
            continue;
        }
        match write(&options.folder, &frame) {
            Ok(written) => {
                count += 1;
                bytes += written;
                kept.fetch_add(1, Ordering::Relaxed);
                told_error = false;
            }
            // A full card must not fill the log as well.
            Err(e) if !told_error => {
                note(PROGRAM, format_args!("cannot collect: {e:#}"));
                told_error = true;
            }
            Err(_) => {}
        }
    }
}

/// Writes the picture, then its line: a line never names a picture that is not there.
fn write(folder: &Path, frame: &Collected) -> Result<u64> {
    let jpeg = encode(&frame.picture, WIDEST, QUALITY)?;
    // Colons are not welcome in file names everywhere.
    let name = format!("{}-{}.jpg", frame.time.replace(':', "").trim_end_matches('Z'), file_name_of(&frame.label));
    shared::fs::write_bytes(&folder.join(&name), &jpeg)?;
    let scores: serde_json::Map<_, _> =
        frame.scores.iter().map(|(label, score)| (label.clone(), json!(score))).collect();
    let line = json!({
        "file": name,
        "time": frame.time,
        "source": &*frame.source,
        "reason": frame.reason,
        "label": frame.label,
        "scores": scores,
    });
    let mut index = OpenOptions::new().create(true).append(true).open(folder.join(INDEX)).context(INDEX)?;
    index.write_all(format!("{line}\n").as_bytes()).context(INDEX)?;
    Ok(jpeg.len() as u64)
}

/// A label in letters that any file system takes.
fn file_name_of(label: &str) -> String {
    label.chars().take(40).map(|c| if c.is_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::Frame;

    fn frame(second: u32) -> Collected {
        Collected {
            picture: Arc::new(Picture::Rgb(Frame::new(8, 8, vec![90; 192]).unwrap())),
            time: format!("2026-11-24T10:00:{second:02}.000Z"),
            source: "/dev/video0".into(),
            reason: "unsure",
            label: "a/b c".into(),
            scores: vec![("a/b c".into(), 0.5), ("d".into(), 0.5)],
        }
    }

    #[test]
    fn it_keeps_no_more_than_allowed_and_counts_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let options = CollectOptions { folder: dir.path().join("new"), most: 3, most_bytes: 1 << 30 };
        for run in 0..2 {
            let collector = Collector::new(&options).unwrap();
            for second in 0..4 {
                // As a camera would, slower than the disk: wait until the frame before is written.
                let sender = collector.sender.as_ref().unwrap();
                sender.send(frame(10 * run + second)).unwrap();
            }
            let kept = collector.kept.clone();
            drop(collector);
            assert_eq!(kept.load(Ordering::Relaxed), if run == 0 { 3 } else { 0 });
        }
        assert_eq!(stock(&options.folder).unwrap().0, 3);
        let index = std::fs::read_to_string(options.folder.join(INDEX)).unwrap();
        let lines: Vec<serde_json::Value> = index.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        for line in lines {
            let path = options.folder.join(line["file"].as_str().unwrap());
            assert!(path.to_string_lossy().ends_with("-a_b_c.jpg"));
            assert!(shared::decode::decode_file(&path).is_ok());
        }
        let bytes = CollectOptions { most_bytes: 1, ..options };
        let collector = Collector::new(&bytes).unwrap();
        collector.keep(frame(50));
        drop(collector);
        assert_eq!(stock(&bytes.folder).unwrap().0, 3);
    }
}
