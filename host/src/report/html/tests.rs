//! Tests of the page.

use std::path::{Path, PathBuf};

use vgg_edge::Fingerprint;
use vgg_edge::head::{Activation, Decision, Dense, Head, Output, Pool, TrainingRecord};
use vgg_edge::image::resize::Filter;
use vgg_edge::preprocess::{ChannelOrder, Fit, InputSpec, Preprocess};

use super::super::history::{Column, History};
use super::super::{FloatPredictions, Prediction, plots};
use super::*;
use crate::metrics::Evaluation;

fn head(labels: &[&str]) -> Head {
    let base = InputSpec {
        channel_order: ChannelOrder::Bgr,
        mean: [0.0; 3],
        std: [1.0; 3],
        scale: 1.0,
        zero_point: 0,
        resize: Filter::Bilinear,
        channels: 4,
        stride: 32,
        size_multiple: 32,
        size_min: 32,
        size_max: 64,
    };
    let outputs = labels.len() as u32;
    let layer = Dense {
        inputs: 4,
        outputs,
        activation: Activation::Linear,
        kernel: vec![0.0; 4 * labels.len()],
        bias: vec![0.0; labels.len()],
    };
    Head {
        base: Fingerprint::of(b"base"),
        preprocess: Preprocess::new(base, 32, Fit::Stretch, Filter::Bilinear).unwrap(),
        feature_scales: vec![1.0; 4],
        labels: labels.iter().map(ToString::to_string).collect(),
        layers: vec![layer],
        output: Output::Softmax,
        decision: Decision { temperature: 1.5, threshold: 0.5 },
        pool: Pool::Flatten,
        background: vec![],
        training: TrainingRecord {
            settings: "<i>settings</i>".into(),
            program: "<b>host</b>".into(),
            best_epoch: 1,
            ..TrainingRecord::default()
        },
    }
}

/// Writes the page of images given as `(file, content, class, split, predicted, score)`.
fn render(
    head: &Head,
    predictions: &[(&str, u8, usize, usize, usize, f32)],
    skipped: &[(PathBuf, String)],
) -> String {
    let predictions: Vec<Prediction> = predictions
        .iter()
        .map(|&(file, content, class, split, predicted, score)| Prediction {
            file: file.into(),
            split,
            class,
            hash: Fingerprint::of(&[content]),
            top: vec![(predicted, score), (2, 0.01)],
            label_score: if predicted == class { score } else { 0.001 },
            raw_score: score.into(),
        })
        .collect();
    let mut confusion = vec![vec![0; head.labels.len()]; head.labels.len()];
    let measured: Vec<_> = predictions.iter().filter(|p| p.split == 1).collect();
    for prediction in &measured {
        confusion[prediction.class][prediction.predicted()] += 1;
    }
    let correct = measured.iter().filter(|p| p.is_correct()).count();
    let float = FloatPredictions {
        path: "<f32>".into(),
        predicted: measured.iter().map(|p| Some(p.class)).collect(),
    };
    let column = |name: &str| Column { name: name.into(), values: vec![Some(0.5), None] };
    let history = History { columns: vec![column("loss"), column("<img>")] };
    let results = || measured.iter().map(|p| (f64::from(p.score()), p.is_correct()));
    let after = Reliability::of(results());
    let charts = Charts {
        curves: plots::curves(&history, Some(1)),
        confusion: plots::confusion(&head.labels, &confusion),
        reliability: plots::reliability(Some(&after), &after, 1.5),
        uncalibrated: Some(after),
        calibrated: after,
    };
    let accuracy = correct as f64 / measured.len() as f64;
    let report = Report {
        title: "<script>title</script>".into(),
        data: Path::new("data"),
        head,
        fingerprint: Fingerprint::of(b"head"),
        history: Some(history),
        splits: vec!["training".into(), "validation\" onload=\"x".into()],
        measured: 1,
        evaluation: Evaluation { accuracy, loss: 0.5, confusion },
        predictions,
        skipped,
        float: Some(float),
    };
    page(&report, &charts)
}

const HOSTILE: [&str; 3] =
    ["</title><script>alert(1)</script>", "\" onerror='x' \u{202e}\u{0}", "]]><!-- &amp; 猫"];

#[test]
fn names_from_outside_never_become_markup() {
    let head = head(&HOSTILE);
    let skipped =
        [(PathBuf::from("data/<svg onload=x>.jpg"), "<iframe src='x'>\u{1b}[2J".to_owned())];
    let out = render(
        &head,
        &[
            ("data/<img src=x onerror=alert(1)>.jpg", 1, 0, 1, 1, 0.95),
            ("data/\"><script>.jpg", 1, 1, 0, 0, 0.9),
            ("data/ok.jpg", 2, 2, 1, 2, 0.9),
        ],
        &skipped,
    );
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(&out, options).unwrap();
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        let name = node.tag_name().name();
        assert!(!["script", "iframe", "object", "i", "f32"].contains(&name), "{name}");
        assert!(
            name != "img" || node.attribute("src").unwrap().starts_with("data:image/jpeg;base64,")
        );
        for attribute in node.attributes() {
            assert!(
                !attribute.name().starts_with("on") && attribute.name() != "style",
                "{attribute:?}"
            );
        }
        assert!(node.attribute("href").is_none_or(|href| href.starts_with('#')));
    }
    let shown: String =
        document.descendants().filter_map(|n| if n.is_text() { n.text() } else { None }).collect();
    for text in [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>.jpg",
        "\\u{202e}\\u{0}",
        "<iframe",
        "<i>settings",
    ] {
        assert!(shown.contains(text), "{text} is not shown");
    }
    // Each id occurs once, and each link within the page has its target.
    let mut ids: Vec<_> = document.descendants().filter_map(|n| n.attribute("id")).collect();
    for link in document.descendants().filter_map(|n| n.attribute("href")) {
        assert!(ids.contains(&&link[1..]), "{link}");
    }
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all);
}

#[test]
fn policy_allows_the_style_sheet_and_nothing_else() {
    let out = render(&head(&["a", "b", "c"]), &[("x", 0, 0, 1, 0, 0.9)], &[]);
    let style = out.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
    let hash = STANDARD.encode(Sha256::digest(style.as_bytes()));
    assert!(
        out.contains(&format!("default-src 'none'; img-src data:; style-src 'sha256-{hash}';"))
    );
    assert!(!style.contains("url(") && !style.contains('<') && !style.contains("@import"));
    assert_eq!(out.matches("<style").count(), 1);
}

#[test]
fn problems_of_the_data_are_listed() {
    let clean =
        render(&head(&["a", "b", "c"]), &[("x", 0, 0, 1, 0, 0.9), ("y", 1, 0, 0, 0, 0.9)], &[]);
    assert!(!clean.contains("Check these") && clean.contains("no two files have the same bytes"));
    let odd = render(
        &head(&["a", "b", "c"]),
        &[
            ("data/x", 0, 0, 1, 1, 0.9),
            ("data/y", 0, 1, 0, 1, 0.9),
            ("data/z", 7, 2, 0, 2, 0.9),
            ("data/w", 7, 2, 0, 2, 0.9),
        ],
        &[(PathBuf::from("data/a/broken.jpg"), "the file is empty".to_owned())],
    );
    for text in [
        "label conflict",
        "in training and validation",
        "within training",
        "1 image</a> has more than one label",
        "1 image</a> is in both training and validation",
        "1 file</a> could not be read",
        "1 label</a> may be wrong",
        "<bdi>a/broken.jpg</bdi></td><td class=\"l wrap\">the file is empty",
        "of these, correct on f32 only</th><td>1</td><td>100.00 %",
    ] {
        assert!(odd.contains(text), "{text} is not in the page");
    }
}
