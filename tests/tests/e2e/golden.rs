//! Golden values: hashes of files and results that no change of the program may alter.
//!
//! Features and scores are exact on every CPU. Trained heads are exact on one class of CPUs only,
//! since a matrix product sums in an order that depends on the width of its vectors and on the
//! cache sizes. `fixtures/golden.json` therefore records the heads for each class of CPUs.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tests::{Device, base, host, ndjson, python, root, succeed};

/// Directory of the sample images, relative to the root of the repository, where programs run.
const SAMPLES: &str = "samples/surfaces";

/// Trainings whose heads are recorded: the name in the fixture and the options.
const TRAININGS: [(&str, &[&str]); 3] = [
    ("default", &[]),
    ("seed recipe", &["--recipe", "seed", "--epochs", "3"]),
    ("no hidden layer", &["--units", "0"]),
];

fn golden() -> Value {
    let path = root().join("tests/fixtures/golden.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn sha256(path: &Path) -> String {
    hex(&Sha256::digest(std::fs::read(path).unwrap()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The class of this machine's CPU, such as `x86_64 AuthenticAMD family 25 model 1`.
fn cpu_class() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let field = |name: &str| {
        info.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == name)
            .map_or("unknown", |(_, value)| value.trim())
    };
    let arch = std::env::consts::ARCH;
    match arch {
        "x86_64" => {
            let (family, model) = (field("cpu family"), field("model"));
            format!("{arch} {} family {family} model {model}", field("vendor_id"))
        }
        _ => format!("{arch} implementer {} part {}", field("CPU implementer"), field("CPU part")),
    }
}

#[test]
fn the_shipped_base_is_the_golden_one() {
    assert_eq!(golden()["base_sha256"], sha256(&base()));
}

#[test]
fn features_of_the_samples_are_golden() {
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("features.npz");
    succeed(host().args(["extract", "--quantized", "--size", "64", SAMPLES, "-o"]).arg(&archive));
    // The members alone: a ZIP file also has times.
    let script = "import hashlib, json, sys, zipfile\n\
                  archive = zipfile.ZipFile(sys.argv[1])\n\
                  digest = lambda name: hashlib.sha256(archive.read(name + '.npy')).hexdigest()\n\
                  print(json.dumps({name: digest(name) for name in ('features', 'scale')}))\n";
    let found = succeed(Command::new(python()).args(["-c", script]).arg(&archive));
    assert_eq!(serde_json::from_str::<Value>(&found).unwrap(), golden()["features_sha256"]);
}

/// The head is a fixture, so the scores are the same on every CPU.
#[test]
fn scores_of_a_recorded_head_are_golden() {
    let golden = golden();
    for device in Device::ALL {
        let mut edge = device.edge();
        edge.args(["classify", "--json", "--head", "tests/fixtures/golden/head.postcard"]);
        for image in golden["scores"].as_object().unwrap().keys() {
            edge.arg(image);
        }
        let found: BTreeMap<String, Value> = ndjson(&succeed(&mut edge))
            .into_iter()
            .map(|line| (line["source"].as_str().unwrap().to_owned(), line["scores"].clone()))
            .collect();
        assert_eq!(json!(found), golden["scores"], "{device:?}");
    }
}

/// Trains a head; returns its hash, and the validation accuracy with each wrong decision.
fn train(head: &Path, options: &[&str]) -> (String, Value) {
    let mut train = host();
    train.args(["train", SAMPLES, "--seed", "0", "--json", "-o"]).arg(head).args(options);
    let lines = ndjson(&succeed(&mut train));
    let accuracy = &lines.last().unwrap()["val_accuracy"];

    let mut images = Vec::new();
    for class in tests::names(&root().join(SAMPLES).join("val")) {
        let directory = format!("{SAMPLES}/val/{class}");
        let names = tests::names(&root().join(&directory));
        images.extend(names.iter().map(|name| (format!("{directory}/{name}"), class.clone())));
    }
    let mut classify = host();
    classify.args(["classify", "--json", "--head"]).arg(head);
    let decisions = ndjson(&succeed(classify.args(images.iter().map(|(path, _)| path))));
    assert_eq!(decisions.len(), images.len());
    let wrong: BTreeMap<&str, &Value> = images
        .iter()
        .zip(&decisions)
        .filter(|((_, class), line)| line["label"] != **class)
        .map(|((path, _), line)| (path.as_str(), &line["label"]))
        .collect();
    (sha256(head), json!({ "val_accuracy": accuracy, "wrong": wrong }))
}

#[test]
fn heads_trained_on_the_samples_are_golden() {
    let directory = tempfile::tempdir().unwrap();
    let (golden, cpu) = (golden(), cpu_class());
    let mut hashes = BTreeMap::new();
    for (name, options) in TRAININGS {
        let (hash, results) = train(&directory.path().join("head.postcard"), options);
        assert_eq!(results, golden["results"][name], "{name}: {hash}");
        hashes.insert(name, hash);
    }
    match golden["heads_sha256"].get(&cpu) {
        Some(recorded) => assert_eq!(json!(hashes), *recorded, "{cpu}"),
        None => eprintln!(
            "No heads are recorded for this CPU, so only decisions and accuracy were compared. \
             Entry for heads_sha256 in tests/fixtures/golden.json:\n{}",
            serde_json::to_string_pretty(&json!({ cpu: hashes })).unwrap()
        ),
    }
}
