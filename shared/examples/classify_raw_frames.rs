//! Classifies raw frames, as a camera or `ffmpeg -f rawvideo` writes them one after the other.
//!
//! `ffmpeg -i VIDEO -f rawvideo -pix_fmt yuv420p - |
//! cargo run -p vgg-edge --example classify_raw_frames -- BACKBONE HEAD yuv420p:640x480`

use std::error::Error;
use std::io::{self, Read};

use vgg_edge::pixel::{RawFrame, parse_layout};
use vgg_edge::{Backbone, Classifier, Head};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [backbone, head, layout] = &args[..] else {
        return Err("usage: classify_raw_frames BACKBONE HEAD FORMAT:WIDTHxHEIGHT < FRAMES".into());
    };
    run(backbone, head, layout, io::stdin().lock(), |line| println!("{line}"))
}

/// Classifies frames until `frames` ends, and passes a line for each to `print`.
pub fn run(
    backbone: &str,
    head: &str,
    layout: &str,
    mut frames: impl Read,
    mut print: impl FnMut(&str),
) -> Result<(), Box<dyn Error>> {
    let backbone = Backbone::open(backbone)?;
    let mut classifier = Classifier::new(&backbone, Head::open(head)?)?;
    // Only the rows and columns that the input needs are converted to RGB.
    let layout = parse_layout(layout)?;

    let mut bytes = vec![0; layout.frame_bytes()];
    for number in 0.. {
        match frames.read_exact(&mut bytes) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
            result => result?,
        }
        let result = classifier.classify(&RawFrame::new(layout, &bytes)?)?;
        print(&format!("{number}\t{}\t{:.3}", result.label, result.score));
    }
    Ok(())
}
