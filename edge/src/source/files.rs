//! Frames from files: images, directories of them, video; the same on standard input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use vgg_edge::image::decode::{MAX_FILE_BYTES, decode, decode_file, has_picture_extension};
use vgg_edge::pixel::Color;
use vgg_edge_cli::terminal::UsageError;

use super::video::{self, Video};
use super::{Next, TimedFrame};
use crate::frame::Frame;

/// A sequence of frames.
pub enum Source {
    /// Image files.
    Images(Images),
    /// A video.
    Video(Box<Video>),
}

/// Image files, in order.
pub struct Images {
    files: Vec<PathBuf>,
    /// An image that was read from stdin.
    stdin: Option<Vec<u8>>,
    next: usize,
    looped: bool,
    /// Whether a file could be read since the last start: a loop over damaged files alone would
    /// spin.
    any: bool,
}

impl Source {
    /// Opens a directory, an image, a video, or `-`.
    ///
    /// # Errors
    /// A source that cannot be read or has no frames; `looped` with stdin.
    pub fn open(path: &Path, looped: bool) -> Result<Self> {
        if path == Path::new("-") {
            if looped {
                bail!(UsageError(
                    "--loop cannot be used with stdin, which cannot be read again".into()
                ));
            }
            return Self::from_reader("stdin", None, Box::new(BufReader::new(io::stdin())), false);
        }
        if path.is_dir() {
            let files = list_images(path)?;
            return Ok(Self::Images(Images { files, stdin: None, next: 0, looped, any: false }));
        }
        let file = File::open(path).with_context(|| format!("{}: cannot read", path.display()))?;
        Self::from_reader(
            &path.to_string_lossy(),
            Some(path),
            Box::new(BufReader::new(file)),
            looped,
        )
    }

    /// Detects the format of a reader; `path` is where to read it again.
    ///
    /// # Errors
    /// Data that is not a video and cannot be read.
    pub fn from_reader(
        name: &str,
        path: Option<&Path>,
        mut reader: Box<dyn BufRead + Send>,
        looped: bool,
    ) -> Result<Self> {
        let mut start = Vec::new();
        (&mut reader)
            .take(video::MAGIC.len() as u64)
            .read_to_end(&mut start)
            .with_context(|| format!("{name}: cannot read"))?;
        let is_video = start == video::MAGIC;
        let mut reader: Box<dyn BufRead + Send> = Box::new(io::Cursor::new(start).chain(reader));
        if is_video {
            return Ok(Self::Video(Box::new(Video::new(name, path, reader, looped)?)));
        }
        let mut images = Images { files: Vec::new(), stdin: None, next: 0, looped, any: false };
        match path {
            Some(path) => images.files.push(path.to_owned()),
            None => {
                let mut bytes = Vec::new();
                (&mut reader)
                    .take(MAX_FILE_BYTES)
                    .read_to_end(&mut bytes)
                    .context("stdin: cannot read")?;
                images.stdin = Some(bytes);
            }
        }
        Ok(Self::Images(images))
    }

    /// Replaces the color encoding that a video states, if another was requested.
    pub fn colored(self, color: Option<Color>) -> Self {
        match self {
            Self::Video(video) => Self::Video(Box::new(video.colored(color))),
            images => images,
        }
    }

    /// Returns the next frame.
    ///
    /// # Errors
    /// A video that is truncated or cannot be opened again.
    pub fn next(&mut self) -> Result<Next> {
        match self {
            Self::Images(images) => Ok(images.next()),
            Self::Video(video) => video.next(),
        }
    }
}

/// The image files of a directory, sorted.
fn list_images(directory: &Path) -> Result<Vec<PathBuf>> {
    let cannot_list = || format!("{}: cannot list", directory.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(cannot_list)? {
        let file = entry.with_context(cannot_list)?.path();
        if file.is_file() && has_picture_extension(&file) {
            files.push(file);
        }
    }
    if files.is_empty() {
        bail!("{}: no images in this directory", directory.display());
    }
    files.sort();
    Ok(files)
}

impl Images {
    fn next(&mut self) -> Next {
        if let Some(bytes) = self.stdin.take() {
            return match decode(&bytes) {
                Ok(image) => frame_of("stdin", Frame::Rgb(image)),
                Err(e) => Next::Unreadable(format!("stdin: {e}")),
            };
        }
        if self.next == self.files.len() {
            if !(self.looped && self.any) {
                return Next::End;
            }
            (self.next, self.any) = (0, false);
        }
        let path = &self.files[self.next];
        self.next += 1;
        match decode_file(path) {
            Ok(image) => {
                self.any = true;
                frame_of(&path.to_string_lossy(), Frame::Rgb(image))
            }
            Err(e @ vgg_edge::Error::Io { .. }) => Next::Unreadable(e.to_string()),
            Err(e) => Next::Unreadable(format!("{}: {e}", path.display())),
        }
    }
}

/// A frame of a file, which has no age.
pub(super) fn frame_of(name: &str, frame: Frame) -> Next {
    Next::Frame(TimedFrame { name: name.into(), frame, at: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_read_in_order_and_looped() {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in [("b.ppm", 2), ("a.ppm", 1)] {
            let mut bytes = b"P6 1 1 255\n".to_vec();
            bytes.extend_from_slice(&[value; 3]);
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        std::fs::write(dir.path().join("c.png"), b"junk").unwrap();
        let mut source = Source::open(dir.path(), true).unwrap();
        let mut seen = Vec::new();
        for _ in 0..5 {
            match source.next().unwrap() {
                Next::Frame(TimedFrame { frame: Frame::Rgb(image), .. }) => {
                    seen.push(image.rgb()[0])
                }
                Next::Unreadable(message) => {
                    assert!(message.contains("c.png"));
                    seen.push(0);
                }
                _ => panic!("a loop does not end"),
            }
        }
        assert_eq!(seen, [1, 2, 0, 1, 2]);
        std::fs::remove_file(dir.path().join("a.ppm")).unwrap();
        std::fs::remove_file(dir.path().join("b.ppm")).unwrap();
        let mut damaged = Source::open(dir.path(), true).unwrap();
        assert!(matches!(damaged.next().unwrap(), Next::Unreadable(_)));
        assert!(
            matches!(damaged.next().unwrap(), Next::End),
            "a loop over damaged files alone must not spin"
        );
    }
}
