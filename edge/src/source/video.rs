//! YUV4MPEG2 video.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use vgg_edge::image::decode::{MAX_PIXELS, check_size};
use vgg_edge::pixel::{Color, Layout, PixelFormat, Range};

use super::Next;
use super::files::frame_of;
use crate::frame::Frame;

/// The first bytes of YUV4MPEG2.
pub(super) const MAGIC: &[u8] = b"YUV4MPEG2 ";

/// The longest header that the decoder reads, in bytes.
const MAX_HEADER_BYTES: u64 = 1024;

/// A YUV4MPEG2 video.
pub struct Video {
    name: String,
    path: Option<PathBuf>,
    decoder: y4m::Decoder<CountingReader>,
    layout: Layout,
    /// The requested color encoding.
    color: Option<Color>,
    looped: bool,
    frames: u64,
    /// Bytes read so far, and at the end of the last complete frame: the decoder reports a
    /// truncated frame as the end too.
    read: Arc<AtomicU64>,
    complete: u64,
}

/// A reader that counts bytes.
struct CountingReader {
    reader: Box<dyn BufRead + Send>,
    read: Arc<AtomicU64>,
}

impl Read for CountingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Video {
    pub(super) fn new(
        name: &str,
        path: Option<&Path>,
        reader: Box<dyn BufRead + Send>,
        looped: bool,
    ) -> Result<Self> {
        // The decoder's own limit is on what it allocates: three planes of at most MAX_PIXELS
        // samples, and a little.
        let limits = y4m::Limits { bytes: 3 * MAX_PIXELS as usize + 4096 };
        let read = Arc::new(AtomicU64::new(0));
        let reader = check_header(reader).map_err(|e| anyhow!("{name}: {e}"))?;
        let counted = CountingReader { reader, read: read.clone() };
        let decoder = y4m::Decoder::new_with_limits(counted, limits)
            .map_err(|e| anyhow!("{name}: not a readable YUV4MPEG2 stream: {}", message(&e)))?;
        if decoder.get_bit_depth() != 8 {
            bail!(
                "{name}: {} bits per sample; convert it to 8 (ffmpeg -pix_fmt yuv420p)",
                decoder.get_bit_depth()
            );
        }
        let parameters = decoder.get_raw_params();
        let full = parameters.split(|&b| b == b' ').any(|p| p == b"XCOLORRANGE=FULL");
        let range = if full { Range::Full } else { Range::Limited };
        let format = pixel_format(decoder.get_colorspace(), name)?;
        let color = Color { range, ..Color::VIDEO };
        let layout = Layout::new(format, decoder.get_width(), decoder.get_height(), 0, color)
            .map_err(|e| anyhow!("{name}: {e}"))?;
        let complete = read.load(Ordering::Relaxed);
        Ok(Self {
            name: name.to_owned(),
            path: path.map(Path::to_owned),
            decoder,
            layout,
            color: None,
            looped,
            frames: 0,
            read,
            complete,
        })
    }

    pub(super) fn colored(mut self, color: Option<Color>) -> Self {
        self.color = color;
        self.layout = color.map_or(self.layout, |color| self.layout.with_color(color));
        self
    }

    pub(super) fn next(&mut self) -> Result<Next> {
        match self.decoder.read_frame() {
            Ok(frame) => {
                self.frames += 1;
                self.complete = self.read.load(Ordering::Relaxed);
                let planes = [frame.get_y_plane(), frame.get_u_plane(), frame.get_v_plane()];
                Ok(frame_of(&self.name, Frame::Raw(self.layout, planes.concat())))
            }
            Err(y4m::Error::EOF) if self.read.load(Ordering::Relaxed) > self.complete => {
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
            Err(e) => bail!("{}: frame {}: {}", self.name, self.frames, message(&e)),
        }
    }
}

/// Returns the stream unread, once the size in its header is known to be safe to compute with: the
/// decoder multiplies whatever it finds there.
fn check_header(mut reader: Box<dyn BufRead + Send>) -> vgg_edge::Result<Box<dyn BufRead + Send>> {
    let mut header = Vec::new();
    (&mut reader)
        .take(MAX_HEADER_BYTES)
        .read_until(b'\n', &mut header)
        .map_err(vgg_edge::Error::io("read", Path::new("header")))?;
    // The decoder itself reports what it cannot read as a number; of several it takes the last.
    let side = |name: u8| {
        let mut sides = header
            .trim_ascii_end()
            .split(|&b| b == b' ')
            .filter_map(|part| part.strip_prefix(&[name]));
        std::str::from_utf8(sides.next_back()?).ok()?.parse::<usize>().ok()
    };
    if let (Some(width), Some(height)) = (side(b'W'), side(b'H')) {
        check_size(width as u64, height as u64)?;
    }
    Ok(Box::new(io::Cursor::new(header).chain(reader)))
}

/// The layout of a video's planes.
fn pixel_format(colorspace: y4m::Colorspace, name: &str) -> Result<PixelFormat> {
    use y4m::Colorspace::{C420, C420jpeg, C420mpeg2, C420paldv, C422, C444, Cmono};
    Ok(match colorspace {
        C420 | C420jpeg | C420mpeg2 | C420paldv => PixelFormat::Yu12,
        C422 => PixelFormat::Yuv422p,
        C444 => PixelFormat::Yuv444p,
        Cmono => PixelFormat::Grey,
        other => bail!(
            "{name}: unsupported color space {other:?}; \
             convert it to 4:2:0 (ffmpeg -pix_fmt yuv420p)"
        ),
    })
}

/// The message for an error of the decoder, whose own are terse.
fn message(error: &y4m::Error) -> String {
    match error {
        y4m::Error::EOF => "it ends early".into(),
        y4m::Error::BadInput => "invalid frame".into(),
        y4m::Error::UnknownColorspace => "unknown color space".into(),
        y4m::Error::OutOfMemory => "the frame size is too large".into(),
        y4m::Error::ParseError(e) => format!("invalid header ({e})"),
        y4m::Error::IoError(e) => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use vgg_edge::Image;

    use super::super::files::Source;
    use super::*;

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
                Next::Frame(timed) => {
                    found.push(timed.frame.with_pixels(vgg_edge::pixel::to_frame)?)
                }
                _ => panic!("videos have nothing but frames"),
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
    fn truncated_and_invalid_videos_are_errors() {
        let cut = video("YUV4MPEG2 W2 H2 F1:1 C420jpeg", &[&[0; 6], &[1, 2]]).unwrap_err();
        assert_eq!(cut.to_string(), "v: ends within frame 1");
        assert!(video("YUV4MPEG2 W2 F1:1", &[]).is_err());
        assert!(video("YUV4MPEG2 W99999999 H99999999 F1:1", &[&[0; 8]]).is_err());
    }
}
