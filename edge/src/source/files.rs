//! Frames out of files: pictures, folders of them, YUV4MPEG2 video; the same on standard input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use vgg_edge::image::decode::{
    MAX_FILE_BYTES, MAX_PIXELS, decode, decode_file, has_image_extension,
};
use vgg_edge::pixel::{Color, Layout, PixelFormat, Range};
use vgg_edge_cli::terminal::UsageError;

use super::{Next, TimedFrame};
use crate::picture::Picture;

/// The first bytes of YUV4MPEG2.
const Y4M_MAGIC: &[u8] = b"YUV4MPEG2 ";

/// The longest header that the decoder reads, in bytes.
const Y4M_HEADER: u64 = 1024;

/// A stream of frames.
pub enum Source {
    /// Picture files.
    Pictures(Pictures),
    /// A video.
    Video(Box<Video>),
}

/// Picture files, in order.
pub struct Pictures {
    files: Vec<PathBuf>,
    /// A picture that came on stdin.
    stdin: Option<Vec<u8>>,
    next: usize,
    looped: bool,
    /// Whether a file could be read since the last start: a loop over nothing but damage would
    /// spin.
    any: bool,
}

/// YUV4MPEG2.
pub struct Video {
    name: String,
    path: Option<PathBuf>,
    decoder: y4m::Decoder<Counted>,
    layout: Layout,
    /// What was asked for.
    color: Option<Color>,
    looped: bool,
    frames: u64,
    /// Bytes read so far, and at the end of the last whole frame: the decoder calls a cut frame the
    /// end too.
    read: Arc<AtomicU64>,
    whole: u64,
}

/// A reader that counts.
struct Counted {
    reader: Box<dyn BufRead + Send>,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Source {
    /// Opens a folder, a picture, a video, or `-`.
    ///
    /// # Errors
    /// A source that cannot be read or holds no frames; `looped` with stdin.
    pub fn open(path: &Path, looped: bool) -> Result<Self> {
        if path == Path::new("-") {
            if looped {
                bail!(UsageError(
                    "--loop does not go with stdin, which cannot be read again".into()
                ));
            }
            return Self::from_reader("stdin", None, Box::new(BufReader::new(io::stdin())), false);
        }
        if path.is_dir() {
            let entries = std::fs::read_dir(path)
                .with_context(|| format!("{}: cannot list", path.display()))?;
            let mut files = Vec::new();
            for entry in entries {
                let file =
                    entry.with_context(|| format!("{}: cannot list", path.display()))?.path();
                if file.is_file() && has_image_extension(&file) {
                    files.push(file);
                }
            }
            if files.is_empty() {
                bail!("{}: no pictures in this folder", path.display());
            }
            files.sort();
            return Ok(Self::Pictures(Pictures {
                files,
                stdin: None,
                next: 0,
                looped,
                any: false,
            }));
        }
        let file = File::open(path).with_context(|| format!("{}: cannot read", path.display()))?;
        Self::from_reader(
            &path.to_string_lossy(),
            Some(path),
            Box::new(BufReader::new(file)),
            looped,
        )
    }

    /// Finds out what a reader gives; `path` is where to read it again.
    ///
    /// # Errors
    /// What is no video and cannot be read.
    pub fn from_reader(
        name: &str,
        path: Option<&Path>,
        mut reader: Box<dyn BufRead + Send>,
        looped: bool,
    ) -> Result<Self> {
        let mut start = Vec::new();
        (&mut reader)
            .take(Y4M_MAGIC.len() as u64)
            .read_to_end(&mut start)
            .with_context(|| format!("{name}: cannot read"))?;
        let is_video = start == Y4M_MAGIC;
        let mut reader: Box<dyn BufRead + Send> = Box::new(io::Cursor::new(start).chain(reader));
        if is_video {
            return Ok(Self::Video(Box::new(Video::new(name, path, reader, looped)?)));
        }
        let mut pictures = Pictures { files: Vec::new(), stdin: None, next: 0, looped, any: false };
        match path {
            Some(path) => pictures.files.push(path.to_owned()),
            None => {
                let mut bytes = Vec::new();
                (&mut reader)
                    .take(MAX_FILE_BYTES)
                    .read_to_end(&mut bytes)
                    .context("stdin: cannot read")?;
                pictures.stdin = Some(bytes);
            }
        }
        Ok(Self::Pictures(pictures))
    }

    /// The same with the color that was asked for, if any was, whatever a video says of its own.
    pub fn colored(self, color: Option<Color>) -> Self {
        match self {
            Self::Video(video) => Self::Video(Box::new(video.colored(color))),
            pictures => pictures,
        }
    }

    /// The next frame.
    ///
    /// # Errors
    /// A video that breaks off or cannot be opened again.
    pub fn next(&mut self) -> Result<Next> {
        match self {
            Self::Pictures(pictures) => Ok(pictures.next()),
            Self::Video(video) => video.next(),
        }
    }
}

impl Pictures {
    fn next(&mut self) -> Next {
        if let Some(bytes) = self.stdin.take() {
            return match decode(&bytes) {
                Ok(frame) => of_file("stdin", Picture::Rgb(frame)),
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
            Ok(frame) => {
                self.any = true;
                of_file(&path.to_string_lossy(), Picture::Rgb(frame))
            }
            Err(e @ vgg_edge::Error::Io { .. }) => Next::Unreadable(e.to_string()),
            Err(e) => Next::Unreadable(format!("{}: {e}", path.display())),
        }
    }
}

impl Video {
    fn new(
        name: &str,
        path: Option<&Path>,
        reader: Box<dyn BufRead + Send>,
        looped: bool,
    ) -> Result<Self> {
        // The decoder's own limit is on what it allocates: three planes of at most MAX_PIXELS
        // samples, and a little.
        let limits = y4m::Limits { bytes: 3 * MAX_PIXELS as usize + 4096 };
        let read = Arc::new(AtomicU64::new(0));
        let counted = Counted {
            reader: sized(reader).map_err(|e| anyhow::anyhow!("{name}: {e}"))?,
            read: read.clone(),
        };
        let decoder = y4m::Decoder::new_with_limits(counted, limits).map_err(|e| {
            anyhow::anyhow!("{name}: not a YUV4MPEG2 stream that can be read: {}", words(&e))
        })?;
        if decoder.get_bit_depth() != 8 {
            bail!(
                "{name}: {} bits a sample; convert it to 8 (ffmpeg -pix_fmt yuv420p)",
                decoder.get_bit_depth()
            );
        }
        let parameters = decoder.get_raw_params();
        let full = parameters.split(|&b| b == b' ').any(|p| p == b"XCOLORRANGE=FULL");
        let range = if full { Range::Full } else { Range::Limited };
        let format = format(decoder.get_colorspace(), name)?;
        let color = Color { range, ..Color::VIDEO };
        let layout = Layout::new(format, decoder.get_width(), decoder.get_height(), 0, color)
            .map_err(|e| anyhow::anyhow!("{name}: {e}"))?;
        let whole = read.load(Ordering::Relaxed);
        Ok(Self {
            name: name.to_owned(),
            path: path.map(Path::to_owned),
            decoder,
            layout,
            color: None,
            looped,
            frames: 0,
            read,
            whole,
        })
    }

    fn colored(mut self, color: Option<Color>) -> Self {
        self.color = color;
        self.layout = color.map_or(self.layout, |color| self.layout.with_color(color));
        self
    }

    fn next(&mut self) -> Result<Next> {
        match self.decoder.read_frame() {
            Ok(frame) => {
                self.frames += 1;
                self.whole = self.read.load(Ordering::Relaxed);
                let planes = [frame.get_y_plane(), frame.get_u_plane(), frame.get_v_plane()];
                let bytes = planes.concat();
                Ok(of_file(&self.name, Picture::Raw(self.layout, bytes)))
            }
            Err(y4m::Error::EOF) if self.read.load(Ordering::Relaxed) > self.whole => {
                bail!("{}: ends within frame {}", self.name, self.frames)
            }
            Err(y4m::Error::EOF) => match (&self.path, self.looped && self.frames > 0) {
                (Some(path), true) => {
                    let file = File::open(path)
                        .with_context(|| format!("{}: cannot read again", path.display()))?;
                    let again =
                        Self::new(&self.name, Some(path), Box::new(BufReader::new(file)), true)?;
                    *self = again.colored(self.color);
                    self.next()
                }
                _ => Ok(Next::End),
            },
            Err(e) => bail!("{}: frame {}: {}", self.name, self.frames, words(&e)),
        }
    }
}

fn of_file(name: &str, picture: Picture) -> Next {
    Next::Frame(TimedFrame { name: name.into(), picture, at: None })
}

/// The stream with a size in its header that can be computed with: the decoder multiplies whatever
/// stands there.
fn sized(mut reader: Box<dyn BufRead + Send>) -> vgg_edge::Result<Box<dyn BufRead + Send>> {
    let mut header = Vec::new();
    (&mut reader)
        .take(Y4M_HEADER)
        .read_until(b'\n', &mut header)
        .map_err(vgg_edge::Error::io("read", Path::new("header")))?;
    // What the decoder cannot read as a number it tells itself; of several it takes the last.
    let side = |name: u8| {
        let mut sides = header
            .trim_ascii_end()
            .split(|&b| b == b' ')
            .filter_map(|part| part.strip_prefix(&[name]));
        std::str::from_utf8(sides.next_back()?).ok()?.parse::<usize>().ok()
    };
    if let (Some(width), Some(height)) = (side(b'W'), side(b'H')) {
        vgg_edge::image::decode::check_size(width as u64, height as u64)?;
    }
    Ok(Box::new(io::Cursor::new(header).chain(reader)))
}

/// How the planes of a video lie one after the other.
fn format(colorspace: y4m::Colorspace, name: &str) -> Result<PixelFormat> {
    use y4m::Colorspace::{C420, C420jpeg, C420mpeg2, C420paldv, C422, C444, Cmono};
    Ok(match colorspace {
        C420 | C420jpeg | C420mpeg2 | C420paldv => PixelFormat::Yu12,
        C422 => PixelFormat::Yuv422p,
        C444 => PixelFormat::Yuv444p,
        Cmono => PixelFormat::Grey,
        other => {
            bail!("{name}: color space {other:?}; convert it to 4:2:0 (ffmpeg -pix_fmt yuv420p)")
        }
    })
}

fn words(error: &y4m::Error) -> String {
    match error {
        y4m::Error::EOF => "it ends early".into(),
        y4m::Error::BadInput => "its bytes are not those of a frame".into(),
        y4m::Error::UnknownColorspace => "unknown color space".into(),
        y4m::Error::OutOfMemory => "a frame is too large".into(),
        y4m::Error::ParseError(e) => format!("its header is damaged ({e})"),
        y4m::Error::IoError(e) => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use vgg_edge::Image;

    fn frame(next: Next) -> Result<Image> {
        match next {
            Next::Frame(stamped) => Ok(stamped.picture.with_pixels(vgg_edge::pixel::to_frame)?),
            Next::Unreadable(words) => bail!(words),
            _ => bail!("the end"),
        }
    }

    fn video(header: &str, frames: &[&[u8]]) -> Result<Vec<Image>> {
        let mut bytes = format!("{header}\n").into_bytes();
        for frame in frames {
            bytes.extend_from_slice(b"FRAME\n");
            bytes.extend_from_slice(frame);
        }
        let mut source = Source::from_reader("v", None, Box::new(io::Cursor::new(bytes)), false)?;
        let mut found = Vec::new();
        loop {
            match source.next()? {
                Next::End => return Ok(found),
                next => found.push(frame(next)?),
            }
        }
    }

    #[test]
    fn ranges_and_color_spaces() {
        let white = [235, 235, 235, 235, 128, 128];
        let limited = video("YUV4MPEG2 W2 H2 F1:1 C420jpeg", &[&white, &white]).unwrap();
        assert_eq!((limited.len(), limited[0].rgb()), (2, &[255; 12][..]));
        let full = video("YUV4MPEG2 W2 H2 F1:1 C420jpeg XCOLORRANGE=FULL", &[&white]).unwrap();
        assert_eq!(full[0].rgb(), [235; 12]);
        let grey = video("YUV4MPEG2 W2 H2 F1:1 Cmono XCOLORRANGE=FULL", &[&[7; 4]]).unwrap();
        assert_eq!(grey[0].rgb(), [7; 12]);
    }

    #[test]
    fn damage_is_told() {
        let cut = video("YUV4MPEG2 W2 H2 F1:1 C420jpeg", &[&[0; 6], &[1, 2]]).unwrap_err();
        assert_eq!(cut.to_string(), "v: ends within frame 1");
        assert!(video("YUV4MPEG2 W2 F1:1", &[]).is_err());
        assert!(video("YUV4MPEG2 W99999999 H99999999 F1:1", &[&[0; 8]]).is_err());
    }

    #[test]
    fn folders_are_read_in_order_and_looped() {
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
                next @ Next::Frame(_) => seen.push(frame(next).unwrap().rgb()[0]),
                Next::Unreadable(words) => {
                    assert!(words.contains("c.png"));
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
            "a loop over damage alone must not spin"
        );
    }
}
