//! The examples, run with the shipped backbone and the head of an older version.

#![allow(missing_docs, dead_code, reason = "examples are programs")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../examples/batch.rs"]
mod batch;
#[path = "../examples/classify_image.rs"]
mod classify_image;
#[path = "../examples/classify_raw_frames.rs"]
mod classify_raw_frames;
#[path = "../examples/features.rs"]
mod features;

use vgg_edge::{Backbone, Classifier, Error, Head, Image};

const BACKBONE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/vgg16-notop-int8.onnx");
const HEAD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/head/format2.postcard");
const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../samples/surfaces/val");

/// Two images of each class.
fn images() -> Vec<String> {
    ["brick", "grass", "gravel"]
        .iter()
        .flat_map(|class| {
            let directory = std::fs::read_dir(format!("{SAMPLES}/{class}")).unwrap();
            let mut paths: Vec<String> =
                directory.map(|entry| entry.unwrap().path().to_str().unwrap().to_owned()).collect();
            paths.sort();
            paths.truncate(2);
            paths
        })
        .collect()
}

#[test]
fn example_classify_image_and_example_batch_agree() {
    let images = images();
    let lines = classify_image::run(BACKBONE, HEAD, &images).unwrap();
    assert_eq!(lines.lines().count(), 6);
    for line in lines.lines() {
        let columns: Vec<&str> = line.split('\t').collect();
        assert!(["brick", "grass", "gravel"].contains(&columns[1]), "{line}");
        assert!((1.0 / 3.0..=1.0).contains(&columns[2].parse::<f32>().unwrap()), "{line}");
    }
    assert_eq!(batch::run(BACKBONE, HEAD, &images).unwrap(), lines);
}

#[test]
fn example_classify_raw_frames_reads_to_the_end() {
    let image = Image::open(&images()[0]).unwrap();
    let (width, height) = (image.width(), image.height());
    let frames = [image.rgb(), image.rgb(), &image.rgb()[..100]].concat();
    let mut lines = Vec::new();
    let layout = format!("rgb24:{width}x{height}");
    classify_raw_frames::run(BACKBONE, HEAD, &layout, &frames[..], |line| {
        lines.push(line.to_owned())
    })
    .unwrap();
    assert_eq!(lines.len(), 2);
    // The same pixels as an image file give the same result.
    let line = classify_image::run(BACKBONE, HEAD, &images()[..1]).unwrap();
    let result = line.trim_end().split_once('\t').unwrap().1;
    assert_eq!(lines[1], format!("1\t{result}"));
    let wrong = classify_raw_frames::run(BACKBONE, HEAD, "rgb24", &frames[..], |_| {});
    assert!(matches!(wrong.unwrap_err().downcast_ref(), Some(Error::Layout(_))));
}

#[test]
fn example_features_has_a_value_per_channel() {
    let images = images();
    let features = features::run(BACKBONE, 32, &images[..2]).unwrap();
    assert_eq!(features.len(), 2);
    assert!(features.iter().all(|f| f.len() == 512 && f.iter().all(|v| v.is_finite())));
    assert_ne!(features[0], features[1]);
    let error = features::run(BACKBONE, 33, &images).unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(Error::Size { size: 33, .. })));
}

#[test]
fn library_constructors_report_what_is_wrong() {
    assert!(matches!(Backbone::open("no/such.onnx"), Err(Error::Io { .. })));
    assert!(matches!(Backbone::open(HEAD), Err(Error::Base { .. })));
    assert!(matches!(Head::open(BACKBONE), Err(Error::HeadFile { .. })));
    assert!(matches!(Image::open(HEAD), Err(Error::Image(_))));
    let backbone = Backbone::open(BACKBONE).unwrap();
    let mut head = Head::open(HEAD).unwrap();
    head.base = vgg_edge::Fingerprint::of(b"another");
    assert!(matches!(Classifier::new(&backbone, head), Err(Error::WrongBase { .. })));
}
