//! Live streams on standard input: raw frames, or one JPEG after the other; as
//! `rpicam-vid -o -` and `ffmpeg -f rawvideo -` write them.

use std::io::{ErrorKind, Read};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use vgg_edge::pixel::Layout;

use super::{LatestFrame, SourceState};
use crate::frame::Frame;

/// Most bytes of one JPEG: a longer one has lost its end marker.
const MAX_JPEG_BYTES: usize = 64 << 20;

/// The content of the stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StreamFormat {
    /// Raw frames.
    Raw(Layout),
    /// JPEG files.
    Jpeg,
}

/// Passes on the frames of a stream until it ends or is stopped.
///
/// # Errors
/// If the stream fails or ends within a frame.
pub fn run(mut input: impl Read, format: StreamFormat, latest: &LatestFrame) -> Result<()> {
    let name: Arc<str> = "stdin".into();
    let detail = match format {
        StreamFormat::Raw(layout) => layout.to_string(),
        StreamFormat::Jpeg => "JPEG".into(),
    };
    latest.report(SourceState::Opening, format!("waiting for {detail}"));
    let mut splitter = Splitter::default();
    let mut frames = 0u64;
    while !latest.stopped() {
        let mut buffer = latest.buffer();
        let frame = match format {
            StreamFormat::Raw(layout) => {
                buffer.resize(layout.frame_bytes(), 0);
                match read_full(&mut input, &mut buffer).context("stdin: cannot read")? {
                    0 => break,
                    n if n < buffer.len() => {
                        bail!("stdin: ends within frame {frames} ({n} of {} bytes)", buffer.len())
                    }
                    _ => Frame::Raw(layout, buffer),
                }
            }
            StreamFormat::Jpeg => match splitter.next(&mut input, &mut buffer)? {
                true => Frame::Jpeg(buffer),
                false => break,
            },
        };
        if frames == 0 {
            latest.report(SourceState::Streaming, &*detail);
        }
        frames += 1;
        latest.put(name.clone(), frame);
    }
    Ok(())
}

fn read_full(input: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Splits a stream of JPEG files.
#[derive(Default)]
pub struct Splitter {
    /// Bytes read beyond the last file.
    rest: Vec<u8>,
}

impl Splitter {
    /// Appends the next file to `out`; false at the end of the stream.
    ///
    /// # Errors
    /// A stream that fails, ends within a file, or is not one of JPEGs.
    pub fn next(&mut self, input: &mut impl Read, out: &mut Vec<u8>) -> Result<bool> {
        let mut data = std::mem::take(&mut self.rest);
        let mut scan = Scan::default();
        loop {
            // Bytes between files are skipped, as decoders do.
            if scan.at == 0 {
                let start = data.windows(2).position(|pair| pair == [0xff, 0xd8]);
                match start {
                    Some(start) => drop(data.drain(..start)),
                    None => data.drain(..data.len().saturating_sub(1)).for_each(drop),
                }
            }
            if let Some(end) = scan.end(&data) {
                self.rest = data.split_off(end);
                out.extend_from_slice(&data);
                return Ok(true);
            }
            if data.len() > MAX_JPEG_BYTES {
                bail!("stdin: a JPEG of over {MAX_JPEG_BYTES} bytes; is it Motion JPEG?");
            }
            let before = data.len();
            data.resize(before + 65536, 0);
            let read = loop {
                match input.read(&mut data[before..]) {
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    other => break other.context("stdin: cannot read")?,
                }
            };
            data.truncate(before + read);
            if read == 0 {
                if scan.at > 0 {
                    bail!("stdin: ends within a JPEG");
                }
                return Ok(false);
            }
        }
    }
}

/// The progress of the search for a file's end.
#[derive(Default)]
struct Scan {
    at: usize,
    in_scan: bool,
}

impl Scan {
    /// The end of the file that begins at 0, once it is there.
    ///
    /// Segments are skipped by their lengths, since a thumbnail has an end of its own; within a
    /// scan 0xff is escaped (ISO/IEC 10918-1, B.1.1.5).
    fn end(&mut self, data: &[u8]) -> Option<usize> {
        if self.at == 0 {
            if !data.starts_with(&[0xff, 0xd8]) {
                return None;
            }
            self.at = 2;
        }
        loop {
            let &[mark, kind] = data.get(self.at..self.at + 2)? else { return None };
            match (mark, kind) {
                (0xff, 0xd9) => return Some(self.at + 2),
                (0xff, 0xff) => self.at += 1,
                (0xff, 0x01 | 0xd0..=0xd8) => self.at += 2,
                (0xff, 0) if self.in_scan => self.at += 2,
                (0xff, _) => {
                    let &[high, low] = data.get(self.at + 2..self.at + 4)? else { return None };
                    self.in_scan = kind == 0xda;
                    self.at += 2 + usize::from(u16::from_be_bytes([high, low])).max(2);
                }
                _ => self.at += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a few bytes at a time.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let n = self.1.min(self.0.len()).min(buffer.len());
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn a_stream_of_jpegs_is_split_at_their_ends() {
        // A thumbnail's end within a segment, an escaped 0xff and a restart marker within the scan,
        // bytes between files.
        let first = [
            &[0xff, 0xd8, 0xff, 0xe1, 0, 6, 0xff, 0xd9, 7, 7, 0xff, 0xda, 0, 2][..],
            &[1, 0xff, 0, 0xff, 0xd0, 2, 0xff, 0xd9],
        ]
        .concat();
        let second = [0xff, 0xd8, 0xff, 0xda, 0, 3, 9, 0xff, 0xff, 0xd9];
        let stream = [&first[..], &[0, 0xff, 0], &second, &first].concat();
        for step in [1, 2, 3, 7, 1000] {
            let (mut input, mut splitter) = (Drip(&stream, step), Splitter::default());
            for wanted in [&first[..], &second, &first] {
                let mut found = Vec::new();
                assert!(splitter.next(&mut input, &mut found).unwrap());
                assert_eq!(found, wanted, "{step}");
            }
            assert!(!splitter.next(&mut input, &mut Vec::new()).unwrap());
        }
        let (mut cut, mut splitter) = (Drip(&first[..9], 4), Splitter::default());
        assert!(
            splitter
                .next(&mut cut, &mut Vec::new())
                .unwrap_err()
                .to_string()
                .contains("within a JPEG")
        );
    }
}
