//! Fuzz targets: functions that feed untrusted bytes to each parser.
//!
//! `tests/mutants.rs` runs each target on its corpus and on mutated copies of it, in every test
//! run; `fuzz/` runs the same functions under libFuzzer and AddressSanitizer, at length. What only
//! `host` reads (feature files, checkpoints, the requests of `host label`) is tested in its own
//! tests, by [`attack`]. A target returns whatever the bytes are; it panics if the code under test
//! panics, or if that returns an impossible result.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and this crate serves tests only"
)]

mod mutate;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use vgg_edge::image::resize::{Filter, Rect, resize};
use vgg_edge::kernels::Kernel;
use vgg_edge::pixel::{Color, Layout, PixelFormat, Pixels, RawFrame, to_frame};
use vgg_edge::signature::{SignedFile, TrustedKeys};
use vgg_edge::{Backbone, Fingerprint, Head};

use mutate::Mutator;

/// A target: its name, which is also the directory of its corpus, and the function.
pub type Target = (&'static str, fn(&[u8]));

/// All values.
pub const TARGETS: [Target; 10] = [
    ("base", base),
    ("config", config),
    ("head", head),
    ("http", http),
    ("image", image),
    ("import", import),
    ("mjpg", mjpg),
    ("pixels", pixels),
    ("signature", signature),
    ("y4m", y4m),
];

/// The token of the page in [`http`].
pub const TOKEN: &str = "0123456789abcdef";

/// The largest feature map and input that are computed with; larger ones exercise the same
/// arithmetic as other tests.
const SMALL: usize = 1 << 16;

/// Returns the files of a target's corpus, sorted by name.
///
/// # Panics
/// If the corpus is empty.
pub fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let entries =
        std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Runs a target on files, then on `cases` mutated copies of them, or on as many as
/// `VGG_EDGE_HOSTILE_CASES` says; the copies are the same in every run.
///
/// # Panics
/// If the target panics. The message says how to reproduce it.
pub fn attack(name: &str, files: &[(PathBuf, Vec<u8>)], cases: usize, target: impl Fn(&[u8])) {
    let attempt = |bytes: &[u8], what: &str| {
        if catch_unwind(AssertUnwindSafe(|| target(bytes))).is_err() {
            let path = std::env::temp_dir()
                .join(format!("hostile-{name}-{}", Fingerprint::of(bytes).short()));
            std::fs::write(&path, bytes).unwrap();
            panic!("{name}: {what}; the bytes are in {}", path.display());
        }
    };
    for (path, bytes) in files {
        attempt(bytes, &path.display().to_string());
    }
    let cases =
        std::env::var("VGG_EDGE_HOSTILE_CASES").map_or(cases, |cases| cases.parse().unwrap());
    for case in 0..cases {
        let mut mutator = Mutator::new(case as u64);
        let (one, other) = (mutator.below(files.len()), mutator.below(files.len()));
        attempt(&mutator.damaged(&files[one].1, &files[other].1), &format!("case {case}"));
    }
}

/// Parses a head file, as it is and with length and checksum corrected, so that mutations reach the
/// payload.
pub fn head(bytes: &[u8]) {
    const HEADER: usize = 20;
    read_head(bytes);
    let Some(payload) = bytes.get(HEADER..bytes.len().saturating_sub(32)) else { return };
    let mut sealed = bytes[..12].to_vec();
    sealed.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    sealed.extend_from_slice(payload);
    let checksum = Fingerprint::of(&sealed);
    sealed.extend_from_slice(&checksum.0);
    read_head(&sealed);
}

fn read_head(bytes: &[u8]) {
    let Ok(head) = Head::from_bytes(bytes) else { return };
    let written = head.to_bytes().unwrap();
    assert_eq!(Head::from_bytes(&written).unwrap().to_bytes().unwrap(), written);
    let features = head.preprocess.feature_len();
    if features <= SMALL {
        let scores = head.scores(&vec![3; features]);
        assert_eq!(scores.len(), head.labels.len());
        let (best, label) = head.decide(&scores, head.decision.threshold);
        assert!(
            best < head.labels.len()
                && (label == vgg_edge::head::UNKNOWN || head.labels[best] == label)
        );
    }
}

/// Parses an int8 base, and runs it if it is accepted.
pub fn base(bytes: &[u8]) {
    let kernel = Kernel::detect().unwrap_or(Kernel::PORTABLE);
    let Ok(base) = Backbone::from_bytes(Path::new("fuzzed"), bytes, kernel) else { return };
    let contract = base.contract();
    let size = contract.size_min;
    let work = base.layers().map(|layer| layer.outputs.max(layer.inputs)).max().unwrap_or(0);
    if size <= 64 && work <= 64 {
        let input = vec![90; 3 * (size * size) as usize];
        let features = base.runner(None).unwrap().features(&input, size).unwrap();
        let side = (size / contract.stride) as usize;
        assert_eq!(features.len(), side * side * contract.channels as usize);
    }
}

/// Imports weights of any supported program.
pub fn import(bytes: &[u8]) {
    // A directory without files, since ONNX may name files beside it.
    let _ = quant::import::import_bytes(Path::new("/nonexistent/fuzzed"), bytes.to_vec(), None);
}

/// Decodes an image file.
pub fn image(bytes: &[u8]) {
    if let Ok(frame) = vgg_edge::image::decode::decode(bytes) {
        vgg_edge::image::decode::check_size(frame.width() as u64, frame.height() as u64).unwrap();
        assert_eq!(frame.rgb().len(), 3 * frame.width() * frame.height());
        look(&frame);
    }
}

/// Converts a raw camera frame. Eight bytes choose format, size, padding, color and a part of the
/// image; the rest are the samples, repeated until they fill the frame if the eighth byte is odd.
pub fn pixels(bytes: &[u8]) {
    let Some((&[format, width, height, padding, color, x, y, flags], samples)) =
        bytes.split_first_chunk()
    else {
        return;
    };
    let format = PixelFormat::all()
        .nth(usize::from(format) % PixelFormat::all().count())
        .unwrap_or(PixelFormat::Grey);
    let color = Color::ALL[usize::from(color) % Color::ALL.len()];
    let (width, height) = (usize::from(width), usize::from(height));
    let stride = if flags & 2 == 0 { 0 } else { format.row_bytes(width) + usize::from(padding) };
    let Ok(layout) = Layout::new(format, width, height, stride, color) else { return };
    let filled: Vec<u8>;
    let samples = if flags & 1 == 1 && !samples.is_empty() {
        filled = samples.iter().copied().cycle().take(layout.frame_bytes()).collect();
        &filled
    } else {
        samples
    };
    let Ok(raw) = RawFrame::new(layout, samples) else { return };
    // Part of a row equals the same part of the whole image.
    let whole = to_frame(&raw);
    let (x, y) = (usize::from(x) % width, usize::from(y) % height);
    let n = width - x;
    let mut planes = [vec![-1; n], vec![-1; n], vec![-1; n]];
    let [r, g, b] = &mut planes;
    raw.row(y, x, [r, g, b]);
    for (at, pixel) in whole.rgb()[3 * (y * width + x)..][..3 * n].chunks_exact(3).enumerate() {
        assert_eq!(
            [0, 1, 2].map(|plane: usize| planes[plane][at]),
            [0, 1, 2].map(|plane| i16::from(pixel[plane]))
        );
    }
    for filter in [Filter::Bilinear, Filter::Nearest] {
        let rect = Rect { x, y, width: n, height: height - y };
        assert_eq!(resize(&raw, rect, 9, 7, filter), resize(&whole, rect, 9, 7, filter));
    }
}

/// Splits a stream of JPEGs; the first byte says how many bytes arrive at a time.
pub fn mjpg(bytes: &[u8]) {
    let Some((&step, bytes)) = bytes.split_first() else { return };
    let cut = |step: usize| {
        let mut files = Vec::new();
        let end = edge::fuzzing::jpegs(bytes, step, &mut |file, picture| {
            assert!(file.starts_with(&[0xff, 0xd8]) && file.ends_with(&[0xff, 0xd9]));
            if let Ok(pixels) = picture {
                look(pixels);
            }
            files.push(file.to_vec());
        });
        (files, end)
    };
    // The chunk size makes no difference.
    let whole = cut(usize::MAX);
    assert_eq!(cut(1 + usize::from(step)), whole);
}

/// Reads a stream on standard input: YUV4MPEG2, or an image.
pub fn y4m(bytes: &[u8]) {
    let _ = edge::fuzzing::stream(bytes.to_vec(), &mut |pixels| look(pixels));
}

/// Parses `edge.toml`.
pub fn config(bytes: &[u8]) {
    let _ = edge::fuzzing::config(&String::from_utf8_lossy(bytes));
}

/// Sends requests to the page, with and without a required token; only requests that present the
/// token or name a loopback host are served.
pub fn http(bytes: &[u8]) {
    let shows = |words: &[&str]| {
        let text = bytes.to_ascii_lowercase();
        words.iter().any(|word| text.windows(word.len()).any(|window| window == word.as_bytes()))
    };
    let served = |answers: &[u8]| {
        answers.windows(12).any(|window| window == b"HTTP/1.1 200" || window == b"HTTP/1.0 200")
    };
    let guarded = edge::fuzzing::http(bytes, Some(TOKEN)).unwrap();
    assert!(!served(&guarded) || shows(&[TOKEN]), "served without the token");
    let local = edge::fuzzing::http(bytes, None).unwrap();
    assert!(
        !served(&local) || shows(&["localhost", "127.", ":1", ":01", ":001", ":0001"]),
        "served to another host"
    );
}

/// Verifies a signature: the bytes are a public key, a signature and the signed file, separated by
/// zero bytes. The key in the corpus has signed only the text `test`.
pub fn signature(bytes: &[u8]) {
    let Some((key, file)) = signed(bytes) else { return };
    let claim = file.unverified_info();
    let Ok(keys) = TrustedKeys::parse(&file.path, key) else { return };
    if let Ok(signed) = keys.verify(&file) {
        assert_eq!(claim, Some(signed), "verified as something else than it claims");
        assert!(key != KEY.as_bytes() || file.bytes == b"test", "verified what was not signed");
    }
}

/// The key, and the file with its signature, in the bytes that [`signature`] takes.
pub fn signed(bytes: &[u8]) -> Option<(&[u8], SignedFile)> {
    let mut parts = bytes.splitn(3, |&byte| byte == 0);
    let (key, text, content) = (parts.next()?, parts.next()?, parts.next()?);
    let signature = String::from_utf8(text.to_vec()).ok();
    Some((
        key,
        SignedFile {
            path: "fuzzed".into(),
            bytes: content.to_vec(),
            digest: Fingerprint::of(content),
            signature,
        },
    ))
}

/// The key in the corpus of [`signature`], from the tests of minisign-verify.
const KEY: &str = "untrusted comment: minisign public key E7620F1842B4E81F\n\
                   RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n";

/// Resizes an image.
fn look(pixels: &dyn Pixels) {
    let rect = Rect { x: 0, y: 0, width: pixels.width(), height: pixels.height() };
    assert_eq!(resize(pixels, rect, 8, 8, Filter::Bilinear).len(), 192);
}
