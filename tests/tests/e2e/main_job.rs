//! The main job on the samples: train, evaluate, classify, on host and device.

use std::path::Path;
use std::process::Stdio;

use tests::{Device, base, fail, host, ndjson, root, run, succeed};

fn train(head: &Path, extra: &[&str]) -> Vec<serde_json::Value> {
    let samples = root().join("samples/surfaces");
    ndjson(&succeed(host().args(["train", "--json"]).arg(samples).arg("-o").arg(head).args(extra)))
}

#[test]
fn samples_are_learnt_and_recognized_on_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let (head, cache) = (folder.path().join("head.postcard"), folder.path().join("cache"));
    let before = std::fs::read(base()).unwrap();
    let lines = train(&head, &["--cache", cache.to_str().unwrap()]);
    assert_eq!(std::fs::read(base()).unwrap(), before, "training changed the base");
    let (result, epochs) = lines.split_last().unwrap();
    assert!(result["val_accuracy"].as_f64().unwrap() >= 0.95, "{result}");
    for (index, epoch) in epochs.iter().enumerate() {
        assert_eq!(epoch["epoch"], index + 1);
        for field in ["loss", "accuracy", "val_loss", "val_accuracy"] {
            assert!(epoch[field].is_f64(), "{epoch}");
        }
    }

    // The evaluation agrees with the metrics of the kept epoch.
    let out = succeed(
        host()
            .args(["evaluate", "--json", "--head"])
            .arg(&head)
            .arg(root().join("samples/surfaces")),
    );
    let evaluation: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(evaluation["accuracy"], result["val_accuracy"]);
    assert_eq!(evaluation["loss"], result["val_loss"]);
    assert_eq!(evaluation["confusion"].as_array().unwrap().len(), 3);
    assert!(evaluation["per_class"]["gravel"]["f1"].as_f64().unwrap() > 0.9);

    // The moving samples: 15 frames of each surface.
    {
        let edge = &mut Device::Native.edge();
        let out = succeed(
            edge.args(["run", "--json", "--source", "samples/surfaces.y4m", "--head"]).arg(&head),
        );
        let frames = ndjson(&out);
        assert_eq!(frames.len(), 45);
        let surface = |i: usize| ["brick", "grass", "gravel"][i / 15];
        let right =
            frames.iter().enumerate().filter(|(i, frame)| frame["label"] == surface(*i)).count();
        assert!(right >= 43, "{right} of 45");
        let first = &frames[0];
        assert_eq!(first["frame"], 0);
        assert!(
            first["time"].as_str().unwrap().ends_with('Z')
                && first["latency_ms"].as_f64().unwrap() > 0.0
        );
        let scores: f64 =
            first["scores"].as_object().unwrap().values().map(|v| v.as_f64().unwrap()).sum();
        assert!((scores - 1.0).abs() < 1e-5);
    }

    // An emulated Pi knows them too; a frame takes seconds there, so a few must do.
    for surface in ["brick", "grass", "gravel"] {
        let pictures =
            ["003", "010"].map(|number| format!("samples/surfaces/val/{surface}/{number}.jpg"));
        let out = succeed(
            Device::Aarch64.edge().args(["classify", "--json", "--head"]).arg(&head).args(pictures),
        );
        assert!(ndjson(&out).iter().all(|line| line["label"] == surface), "{out}");
    }

    // A second run takes every image from the cache and writes the same file, on any number of
    // threads.
    let first = std::fs::read(&head).unwrap();
    let again = train(&head, &["--cache", cache.to_str().unwrap(), "--threads", "1"]);
    assert_eq!(std::fs::read(&head).unwrap(), first);
    assert_eq!(
        again.last().unwrap()["cached"],
        again.last().unwrap()["train"].as_u64().unwrap()
            + again.last().unwrap()["val"].as_u64().unwrap()
    );
    let other = folder.path().join("other.postcard");
    train(&other, &["--seed", "1", "--cache", cache.to_str().unwrap()]);
    assert_ne!(std::fs::read(&other).unwrap(), first, "the seed has no effect");

    let inspected = succeed(host().arg("inspect").arg(&head));
    assert!(
        inspected.contains("brick, grass, gravel") && inspected.contains("2023-11-14"),
        "{inspected}"
    );
    let classified = succeed(
        host().args(["classify", "--head"]).arg(&head).arg("samples/surfaces/val/grass/000.jpg"),
    );
    assert!(classified.starts_with("samples/surfaces/val/grass/000.jpg\tgrass\t"), "{classified}");
}

#[test]
fn features_are_readable_by_numpy() {
    let folder = tempfile::tempdir().unwrap();
    let npz = folder.path().join("features.npz");
    succeed(
        host()
            .args(["extract", "--size", "32"])
            .arg(root().join("samples/surfaces/val"))
            .arg("-o")
            .arg(&npz),
    );
    let script = "import numpy as np, sys\n\
                  f = np.load(sys.argv[1])\n\
                  assert f['features'].shape == (42, 1, 1, 512) and f['features'].dtype == \
                  np.float32, f['features'].shape\n\
                  assert list(f['class_names']) == ['brick', 'grass', 'gravel'], f['class_names']\n\
                  assert f['labels'].tolist() == [0] * 14 + [1] * 14 + [2] * 14\n\
                  assert f['file_names'][0] == 'brick/000.jpg', f['file_names'][0]\n\
                  assert (f['features'] >= 0).all() and f['features'].max() > 1\n";
    succeed(std::process::Command::new(tests::python()).args(["-c", script]).arg(&npz));
}

#[test]
fn summary_matches_keras() {
    let out = succeed(host().arg("summary"));
    for line in [
        "block1_conv1 (Conv2D)        (None, 64, 64, 64)              1,792",
        "Total params: 14,714,688",
    ] {
        assert!(out.contains(line), "{out}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&succeed(host().args(["summary", "--json", "--size", "224"])))
            .unwrap();
    assert_eq!(json["parameters"], 14_714_688);
    assert_eq!(json["macs"], 15_346_630_656u64);
    assert_eq!(json["layers"].as_array().unwrap().len(), 19);
}

#[test]
fn bench_measures_the_requested_input() {
    let out = succeed(Device::Native.edge().args([
        "bench",
        "--json",
        "--size",
        "32",
        "--runs",
        "3",
        "--threads",
        "2",
    ]));
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    for field in ["ms_per_image", "gmac_per_s", "startup_ms", "peak_rss_bytes"] {
        assert!(json[field].as_f64().unwrap() > 0.0, "{json}");
    }
    let macs = json["gmac_per_s"].as_f64().unwrap() * json["ms_per_image"].as_f64().unwrap();
    assert!((macs - 313.196_544).abs() < 0.5, "{json}");
}

#[test]
fn closed_pipe_of_a_reader_is_not_an_error() {
    let mut child = Device::Native
        .edge()
        .args(["run", "--loop", "--source", "samples/surfaces.y4m", "--head"])
        .arg(tests::small_head())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Reads a little and closes the pipe; a looped source would never end by itself.
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(child.stdout.take().unwrap()),
        &mut line,
    )
    .unwrap();
    assert!(line.contains("surfaces.y4m"));
    assert!(child.wait().unwrap().success());
}

/// A training continues if the reader of its output exits.
#[test]
fn training_continues_without_a_reader() {
    let dir = tempfile::tempdir().unwrap();
    let head = |name: &str| dir.path().join(name);
    let train = |name: &str| {
        let mut train = host();
        train.args([
            "train",
            "samples/surfaces",
            "--size",
            "32",
            "--epochs",
            "3",
            "--fine-tune-epochs",
            "1",
            "-o",
        ]);
        train.arg(head(name)).args(["--fine-tune", "block5_conv3"]).env("SOURCE_DATE_EPOCH", "0");
        train
    };
    succeed(&mut train("whole"));
    let mut child = train("left").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut words = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut words).unwrap();
    assert!(child.wait().unwrap().success(), "{words}");
    assert!(words.contains("fine-tun"), "the following steps run too: {words}");
    assert_eq!(std::fs::read(head("left")).unwrap(), std::fs::read(head("whole")).unwrap());
    // A full disk behind stdout is reported after the work is done.
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = train("full").stdout(full).output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && words.contains("standard output"), "{words}");
    assert_eq!(std::fs::read(head("full")).unwrap(), std::fs::read(head("whole")).unwrap());
}

#[test]
fn evaluation_on_training_images_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (head, data) = (dir.path().join("head"), dir.path().join("data"));
    tests::data_folder(&data, &[("red", 6), ("green", 6)]);
    succeed(host().args(["train", "--size", "32", "--epochs", "2", "-o"]).arg(&head).arg(&data));
    let evaluate = || {
        let output = run(host().args(["evaluate", "--head"]).arg(&head).arg(&data));
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(evaluate().contains("trained on these images"));
    std::fs::remove_file(data.join("red/0.bmp")).unwrap();
    assert!(!evaluate().contains("trained on these images"));
    // Copies on both sides of a directory that is split.
    let split = dir.path().join("split");
    for part in ["train", "val"] {
        std::fs::create_dir_all(split.join(part)).unwrap();
        succeed(
            std::process::Command::new("cp")
                .arg("-r")
                .args([data.join("red"), data.join("green")])
                .arg(split.join(part)),
        );
    }
    let output =
        run(host().args(["train", "--size", "32", "--epochs", "2", "-o"]).arg(&head).arg(&split));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && words.contains("11 validation images are copies"),
        "{words}"
    );
}

/// Starts a command, waits for the first line of stdout or stderr, sends a signal, and returns the
/// exit code.
fn interrupt(command: &mut std::process::Command, signal: &str, on_stdout: bool) -> Option<i32> {
    use std::io::{BufRead, BufReader, Read};
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (first, other): (Box<dyn Read + Send>, Box<dyn Read + Send>) = if on_stdout {
        (Box::new(stdout), Box::new(stderr))
    } else {
        (Box::new(stderr), Box::new(stdout))
    };
    // Both are read to the end, so that the program never blocks on a full pipe.
    let drain =
        std::thread::spawn(move || std::io::copy(&mut BufReader::new(other), &mut std::io::sink()));
    let mut first = BufReader::new(first);
    first.read_line(&mut String::new()).unwrap();
    succeed(std::process::Command::new("kill").args([signal, &child.id().to_string()]));
    std::io::copy(&mut first, &mut std::io::sink()).unwrap();
    drain.join().unwrap().unwrap();
    child.wait().unwrap().code()
}

#[test]
fn interrupted_programs_exit_cleanly() {
    for signal in ["-INT", "-TERM"] {
        let mut edge = Device::Native.edge();
        edge.args(["run", "--loop", "--source", "samples/surfaces.y4m", "--head"])
            .arg(tests::small_head());
        assert_eq!(interrupt(&mut edge, signal, true), Some(0), "edge run exits on a signal");
    }
    let dir = tempfile::tempdir().unwrap();
    let head = dir.path().join("head.postcard");
    let mut train = host();
    train.args(["train", "--size", "512", "samples/surfaces", "-o"]).arg(&head);
    assert_eq!(interrupt(&mut train, "-INT", false), Some(1));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was written");
}

#[test]
fn usage_errors_exit_with_code_2() {
    for args in [
        &["train"][..],
        &["train", "samples/surfaces", "-o", "x", "--optimizer", "magic"],
        &["nothing"],
    ] {
        assert_eq!(run(host().args(args)).status.code(), Some(2), "{args:?}");
    }
    fail(host().args(["train", "samples/surfaces", "-o", "x", "--dropout", "1"]), 2, "dropout");
    fail(
        host().args(["train", "samples/surfaces", "-o", "x", "--val-split", "1"]),
        2,
        "--val-split",
    );
    let help = succeed(host().args(["train", "--help"]));
    assert!(help.contains("Examples:"));
}
