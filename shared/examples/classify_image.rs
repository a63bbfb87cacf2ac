//! Classifies image files.
//!
//! `cargo run -p vgg-edge --example classify_image -- BACKBONE HEAD IMAGE...`

use std::error::Error;

use vgg_edge::{Backbone, Classifier, Head, Image};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [backbone, head, images @ ..] = &args[..] else {
        return Err("usage: classify_image BACKBONE HEAD IMAGE...".into());
    };
    print!("{}", run(backbone, head, images)?);
    Ok(())
}

/// Returns a line for each image: the file, the label and its score.
pub fn run(backbone: &str, head: &str, images: &[String]) -> Result<String, Box<dyn Error>> {
    let backbone = Backbone::open(backbone)?;
    let mut classifier = Classifier::new(&backbone, Head::open(head)?)?;

    let mut lines = String::new();
    for path in images {
        let image = Image::open(path)?;
        let result = classifier.classify(&image)?;
        lines += &format!("{path}\t{}\t{:.3}\n", result.label, result.score);
    }
    Ok(lines)
}
