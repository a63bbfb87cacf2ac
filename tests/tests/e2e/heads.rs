//! Head options, end to end: each trains on the samples at 32 px, and host and device agree on the
//! result.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use tests::{Device, data_folder, fail, host, ndjson, root, run, succeed};

/// Features of the samples are extracted once for all tests.
fn cache() -> &'static Path {
    static CACHE: OnceLock<tempfile::TempDir> = OnceLock::new();
    CACHE.get_or_init(|| tempfile::tempdir().unwrap()).path()
}

fn command(data: &Path, head: &Path, options: &str) -> Command {
    let mut host = host();
    host.args(["train", "--json"]).arg(data).arg("-o").arg(head).arg("--cache").arg(cache());
    if !options.contains("--size") {
        host.args(["--size", "32"]);
    }
    host.args(options.split_whitespace());
    host
}

/// Trains on the samples; returns the lines of the epochs and the result.
fn train(head: &Path, options: &str) -> (Vec<Value>, Value) {
    let mut lines = ndjson(&succeed(&mut command(&root().join("samples/surfaces"), head, options)));
    let result = lines.pop().unwrap();
    (lines, result)
}

fn inspect(head: &Path) -> Value {
    serde_json::from_str(&succeed(host().args(["inspect", "--json"]).arg(head))).unwrap()
}

/// Returns the results of `host` or `edge` for some samples, without timings.
fn answers(program: &mut Command, head: &Path) -> Vec<Value> {
    let pictures = ["brick/000", "grass/001", "gravel/002"]
        .map(|name| format!("samples/surfaces/val/{name}.jpg"));
    let mut lines =
        ndjson(&succeed(program.args(["classify", "--json", "--head"]).arg(head).args(pictures)));
    for line in &mut lines {
        for field in ["time", "latency_ms"] {
            line.as_object_mut().unwrap().remove(field);
        }
    }
    lines
}

#[test]
fn each_head_option_trains_and_agrees_on_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let head = folder.path().join("head");
    let cases = [
        ("--pool avg --size 64", "pool avg", 0.9),
        ("--pool max --size 64", "pool max", 0.9),
        ("--units 64,32", "64,32 units", 0.9),
        ("--units 64,32 --batch-norm", "batch normalisation", 0.9),
        ("--l2 0.001", "l2 0.001", 0.9),
        ("--class-weights balanced", "class weights balanced", 0.9),
        ("--class-weights grass=2,brick=0.5", "class weights grass=2 brick=0.5", 0.9),
        ("--lr-schedule cosine --epochs 12", "cosine schedule", 0.9),
        ("--lr-schedule step --lr-step 4", "a tenth of the rate every 4 epochs", 0.9),
        ("--lr-schedule plateau", "half of the rate after 5 epochs on a plateau", 0.9),
        ("--label-smoothing 0.1", "label smoothing 0.1", 0.9),
    ];
    for (options, words, least) in cases {
        let (epochs, result) = train(&head, options);
        assert!(result["val_accuracy"].as_f64().unwrap() >= least, "{options}: {result}");
        assert!(
            epochs.iter().all(|epoch| epoch["lr"].as_f64().is_some_and(|lr| lr > 0.0)),
            "{options}"
        );
        let settings = result["settings"].as_str().unwrap();
        assert!(settings.contains(words), "{words:?} is not in {settings}");
        let inspected = inspect(&head);
        assert_eq!(inspected["format"], 3);
        assert_eq!(inspected["training"]["settings"], settings);
        assert_eq!(
            answers(&mut host(), &head),
            answers(&mut Device::Native.edge(), &head),
            "{options}"
        );
        let bytes = std::fs::read(&head).unwrap();
        train(&head, &format!("{options} --threads 1"));
        assert!(
            std::fs::read(&head).unwrap() == bytes,
            "{options}: other bytes with another number of threads"
        );
    }
}

#[test]
fn pooled_head_sees_one_value_per_channel() {
    let folder = tempfile::tempdir().unwrap();
    let head = folder.path().join("head");
    for (pool, inputs) in [("avg", "512 -> 16"), ("max", "512 -> 16"), ("flatten", "2048 -> 16")] {
        let options = format!("--size 64 --units 16 --epochs 6 --no-calibration --pool {pool}");
        let (epochs, result) = train(&head, &options);
        assert_eq!(result["pool"], pool);
        // The trainer and the device see the same values: the first metric is computed by the
        // trainer, the second by the head's own code.
        let best = &epochs[result["best_epoch"].as_u64().unwrap() as usize - 1];
        assert_eq!(best["val_accuracy"], result["val_accuracy"]);
        let losses = [&best["val_loss"], &result["val_loss"]].map(|loss| loss.as_f64().unwrap());
        assert!((losses[0] - losses[1]).abs() < 1e-5 * losses[0].max(1.0), "{losses:?}");
        let inspected = inspect(&head);
        assert_eq!(inspected["pool"], pool);
        assert!(inspected["layers"][0].as_str().unwrap().starts_with(inputs), "{inspected}");
    }
}

#[test]
fn learning_rates_follow_the_schedule() {
    let folder = tempfile::tempdir().unwrap();
    let head = folder.path().join("head");
    let rates = |options: &str| -> Vec<f64> {
        let (epochs, _) = train(&head, &format!("--patience 0 --units 8 --lr 0.001 {options}"));
        epochs.iter().map(|epoch| epoch["lr"].as_f64().unwrap()).collect()
    };
    assert_eq!(rates("--epochs 3"), [0.001; 3]);
    let cosine = rates("--epochs 5 --lr-schedule cosine");
    assert!(cosine.windows(2).all(|pair| pair[1] < pair[0]) && cosine[4] < 0.0001, "{cosine:?}");
    let steps = rates("--epochs 5 --lr-schedule step --lr-step 2");
    for (rate, wanted) in steps.iter().zip([1e-3, 1e-3, 1e-4, 1e-4, 1e-5]) {
        assert!((rate - wanted).abs() < 1e-12, "{steps:?}");
    }
}

#[test]
fn head_of_the_previous_format_is_still_read() {
    let head = root().join("shared/src/head/format2.postcard");
    assert_eq!(inspect(&head)["format"], 2);
    let pictures =
        ["brick", "grass", "gravel"].map(|name| format!("samples/surfaces/val/{name}/000.jpg"));
    for program in [&mut host(), &mut Device::Native.edge()] {
        let out = ndjson(&succeed(
            program.args(["classify", "--json", "--head"]).arg(&head).args(&pictures),
        ));
        // The output of `host classify` in the version that wrote the head.
        let scores: Vec<f64> = out.iter().map(|line| line["score"].as_f64().unwrap()).collect();
        assert_eq!(scores, [0.9993174, 0.9997278, 0.8948363]);
        assert_eq!(out[2]["scores"]["gravel"], 0.105163656);
    }
}

#[test]
fn cross_validation_precedes_the_final_head() {
    let folder = tempfile::tempdir().unwrap();
    let head = folder.path().join("head");
    let (lines, result) = train(&head, "--folds 3 --units 32 --epochs 12");
    let folds: Vec<&Value> = lines.iter().filter(|line| line["fold_accuracy"].is_f64()).collect();
    assert_eq!(folds.len(), 3);
    assert_eq!(folds.iter().map(|fold| fold["val"].as_u64().unwrap()).sum::<u64>(), 174);
    assert!(
        folds
            .iter()
            .all(|fold| fold["train"].as_u64().unwrap() + fold["val"].as_u64().unwrap() == 174)
    );
    let accuracies: Vec<f64> =
        folds.iter().map(|fold| fold["fold_accuracy"].as_f64().unwrap()).collect();
    let mean = accuracies.iter().sum::<f64>() / 3.0;
    let deviation = (accuracies.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / 2.0).sqrt();
    assert!(
        (result["folds_accuracy"].as_f64().unwrap() - mean).abs() < 1e-12 && mean > 0.8,
        "{result}"
    );
    assert!((result["folds_accuracy_deviation"].as_f64().unwrap() - deviation).abs() < 1e-12);
    let best = folds.iter().map(|fold| fold["best_epoch"].as_f64().unwrap()).sum::<f64>() / 3.0;
    assert_eq!(result["best_epoch"].as_f64().unwrap(), best.round());
    assert_eq!(result["epochs"], result["best_epoch"]);
    assert_eq!((&result["train"], &result["val"]), (&174.into(), &0.into()));
    assert!(result["val_accuracy"].is_null() && result["temperature"] != 1.0);
    let inspected = inspect(&head);
    assert!(
        inspected["training"]["settings"].as_str().unwrap().contains("without a validation set"),
        "{inspected}"
    );
    assert_eq!(inspected["training"]["train_counts"], serde_json::json!([58, 58, 58]));

    let bytes = std::fs::read(&head).unwrap();
    train(&head, "--folds 3 --units 32 --epochs 12 --threads 1");
    assert!(std::fs::read(&head).unwrap() == bytes, "other bytes with another number of threads");

    let data = folder.path().join("few");
    data_folder(&data, &[("many", 6), ("few", 3)]);
    fail(&mut command(&data, &head, "--folds 4"), 1, "class few has 3 different images");
    // A copy does not count as another image.
    std::fs::copy(data.join("few/0.bmp"), data.join("few/copy.bmp")).unwrap();
    fail(&mut command(&data, &head, "--folds 4"), 1, "class few has 3 different images");
    succeed(&mut command(&data, &head, "--folds 3 --epochs 2"));
}

#[test]
fn interrupted_cross_validation_continues_after_the_last_complete_fold() {
    const OPTIONS: &str = "--folds 3 --units 512,256 --epochs 40 --patience 0";
    let folder = tempfile::tempdir().unwrap();
    let samples = root().join("samples/surfaces");
    let (whole, head) = (folder.path().join("whole"), folder.path().join("head"));
    let (lines, result) = train(&whole, OPTIONS);

    fail(&mut command(&samples, &head, &format!("{OPTIONS} --resume")), 1, "--resume");
    let mut child = command(&samples, &head, OPTIONS)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(seen.by_ref().any(|line| line.contains("\"fold\":2")));
    succeed(Command::new("kill").args(["-INT", &child.id().to_string()]));
    seen.for_each(drop);
    let output = child.wait_with_output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("there is no head yet; --resume continues from"), "{words}");
    assert!(!head.exists());

    fail(
        &mut command(&samples, &head, &format!("{OPTIONS} --resume").replace("40", "41")),
        1,
        "other settings",
    );
    let (rest, resumed) = train(&head, &format!("{OPTIONS} --resume"));
    assert!(rest.len() < lines.len() && lines.ends_with(&rest), "{rest:?}");
    assert_eq!(resumed["folds_accuracy"], result["folds_accuracy"]);
    assert!(
        std::fs::read(&head).unwrap() == std::fs::read(&whole).unwrap(),
        "going on gives other bytes"
    );
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        2,
        "a checkpoint of what is done stays"
    );
}

/// Starts a training, interrupts it after some epochs, and returns all of its lines.
fn interrupted(mut train: Command, epochs: usize) -> Vec<Value> {
    let mut child = train.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen: Vec<String> = lines.by_ref().take(epochs).map(Result::unwrap).collect();
    succeed(Command::new("kill").args(["-INT", &child.id().to_string()]));
    seen.extend(lines.map(Result::unwrap));
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("wrote the best head so far") && errors.contains("--resume"),
        "{errors}"
    );
    ndjson(&seen.join("\n"))
}

#[test]
fn interrupted_training_continues_to_the_same_bytes() {
    const OPTIONS: &str =
        "--units 512,256 --batch-norm --lr-schedule cosine --l2 0.0001 --epochs 80 --patience 0";
    let folder = tempfile::tempdir().unwrap();
    let samples = root().join("samples/surfaces");
    let (whole, head) = (folder.path().join("whole"), folder.path().join("head"));
    let checkpoint = folder.path().join("head.checkpoint");
    fail(&mut command(&samples, &head, &format!("{OPTIONS} --resume")), 1, "--resume");
    let (epochs, result) = train(&whole, OPTIONS);

    let mut lines = interrupted(command(&samples, &head, OPTIONS), 3);
    let partial = lines.pop().unwrap();
    assert!(lines.len() >= 3 && lines.len() < 80, "{}", lines.len());
    assert_eq!((&partial["interrupted"], &partial["epochs"]), (&true.into(), &lines.len().into()));
    // The output is a complete head: the best so far.
    assert_eq!(answers(&mut host(), &head).len(), 3);
    assert!(
        inspect(&head)["training"]["settings"]
            .as_str()
            .unwrap()
            .contains("interrupted after epoch")
    );
    assert!(checkpoint.exists());

    // The checkpoint belongs to this training only.
    for (options, words) in [
        (OPTIONS.replace("0.0001", "0.001"), "other settings"),
        (format!("{OPTIONS} --pool max"), "other settings"),
        (format!("{OPTIONS} --fit cover"), "other settings"),
    ] {
        fail(&mut command(&samples, &head, &format!("{options} --resume")), 1, words);
    }
    let other = folder.path().join("other");
    data_folder(&other, &[("brick", 3), ("grass", 3), ("gravel", 3)]);
    fail(&mut command(&other, &head, &format!("{OPTIONS} --resume")), 1, "other images");
    let good = std::fs::read(&checkpoint).unwrap();
    std::fs::write(&checkpoint, &good[..good.len() / 2]).unwrap();
    fail(&mut command(&samples, &head, &format!("{OPTIONS} --resume")), 1, "damaged");
    std::fs::write(&checkpoint, &good).unwrap();

    // Interrupted once more, then completed, with another number of threads.
    let mut more =
        interrupted(command(&samples, &head, &format!("{OPTIONS} --resume --threads 1")), 2);
    more.pop();
    lines.extend(more);
    let (rest, resumed) = train(&head, &format!("{OPTIONS} --resume"));
    lines.extend(rest);
    assert_eq!(lines, epochs);
    assert_eq!(resumed["best_epoch"], result["best_epoch"]);
    assert!(
        std::fs::read(&head).unwrap() == std::fs::read(&whole).unwrap(),
        "going on gives other bytes"
    );
    assert!(!checkpoint.exists(), "the checkpoint of a training that is done stays");
}

#[test]
fn checkpoints_are_written_during_training() {
    let folder = tempfile::tempdir().unwrap();
    let head = folder.path().join("head");
    let mut train =
        command(&root().join("samples/surfaces"), &head, "--units 64 --epochs 4000 --patience 0");
    let mut child = train.args(["--checkpoint-every", "0"]).stdout(Stdio::piped()).spawn().unwrap();
    // The third epoch is reported after the checkpoint of the second is written.
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.take(3).map(Result::unwrap).count(), 3);
    // Simulates a power failure.
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!head.exists() && folder.path().join("head.checkpoint").exists());
    let resumed = interrupted(
        command(
            &root().join("samples/surfaces"),
            &head,
            "--units 64 --epochs 4000 --patience 0 --resume",
        ),
        1,
    );
    assert!(resumed[0]["epoch"].as_u64().unwrap() > 2, "{}", resumed[0]);
}

#[test]
fn background_classes_are_marked() {
    let folder = tempfile::tempdir().unwrap();
    let (data, head) = (folder.path().join("data"), folder.path().join("head"));
    data_folder(&data, &[("None", 6), ("thing", 6)]);
    succeed(&mut command(&data, &head, "--units 16 --epochs 20"));
    assert_eq!(inspect(&head)["background"], serde_json::json!(["None"]));
    let pictures = ["None/0.bmp", "thing/0.bmp"].map(|name| data.join(name));
    let classify = |program: &mut Command| {
        ndjson(&succeed(program.args(["classify", "--json", "--head"]).arg(&head).args(&pictures)))
    };
    for lines in [classify(&mut host()), classify(&mut Device::Native.edge())] {
        assert_eq!((&lines[0]["label"], &lines[0]["background"]), (&"None".into(), &true.into()));
        assert_eq!(lines[1]["label"], "thing");
        assert!(lines[1].get("background").is_none(), "{}", lines[1]);
    }
    let frames = ndjson(&succeed(
        Device::Native
            .edge()
            .args(["run", "--json", "--head"])
            .arg(&head)
            .arg("--source")
            .arg(data.join("None")),
    ));
    assert_eq!(frames.len(), 6);
    for frame in frames {
        assert_eq!(frame.get("background").is_some(), frame["label"] == "None", "{frame}");
    }

    // An object appears, leaves, and appears again: its appearance is collected and reported; its
    // absence is reported as background.
    let film = folder.path().join("film");
    std::fs::create_dir(&film).unwrap();
    for (number, name) in
        ["None/0", "thing/0", "thing/0", "None/0", "thing/0", "None/0"].iter().enumerate()
    {
        std::fs::copy(data.join(format!("{name}.bmp")), film.join(format!("{number}.bmp")))
            .unwrap();
    }
    let kept = folder.path().join("kept");
    let mut edge = Device::Native.edge();
    edge.args(["run", "--json", "--events", "--collect-below", "0", "--head"]).arg(&head);
    let events = ndjson(&succeed(edge.arg("--source").arg(&film).arg("--collect").arg(&kept)));
    let changes: Vec<(&str, bool)> = events
        .iter()
        .filter(|event| event["event"] == "label")
        .map(|event| (event["to"].as_str().unwrap(), event.get("background").is_some()))
        .collect();
    assert_eq!(changes, [("thing", false), ("None", true), ("thing", false), ("None", true)]);
    let collected = ndjson(&std::fs::read_to_string(kept.join("frames.ndjson")).unwrap());
    assert_eq!(collected.len(), 2, "{collected:?}");
    assert!(
        collected.iter().all(|frame| frame["label"] == "thing" && frame["reason"] == "changed"),
        "{collected:?}"
    );
}

#[test]
fn invalid_head_flags_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let head = folder.path().join("head");
    let samples = root().join("samples/surfaces");
    for (options, words) in [
        ("--units 64,0", "--units 0"),
        ("--l2=-1", "`l2` must be at least 0"),
        ("--label-smoothing 1", "label_smoothing"),
        ("--batch-norm --batch-size 1", "batch_size"),
        ("--class-weights grass", "NAME=WEIGHT"),
        ("--class-weights moss=2", "unknown class moss (known classes: brick, grass, gravel)"),
        ("--pool min", "possible values: flatten, avg, max"),
        ("--folds 1", "2..=100"),
        ("--lr-schedule step --lr-step 0", "--lr-step"),
        ("--lr-step 5", "--lr-schedule step"),
        ("--fine-tune-epochs 5", "--fine-tune"),
        ("--units 2000000", "use --pool avg, fewer --units"),
    ] {
        let output = run(&mut command(&samples, &head, options));
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{options}: {errors}");
        assert!(errors.contains(words), "{options}: {errors}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
