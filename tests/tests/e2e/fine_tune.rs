//! Fine-tuning end to end: one command writes a new int8 base and its head.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tests::{Device, base, fail, host, ndjson, root, run, succeed};
use vgg_edge::kernels::Kernel;
use vgg_edge::{Backbone, Fingerprint};

/// Returns a training on the samples with fine-tuning of the last layer. Few images and a high rate
/// make it quick and effective.
fn train(head: &Path, options: &str) -> Command {
    let mut host = host();
    // An untrained head, so that fine-tuning improves it on every machine.
    host.args([
        "train", "--json", "--size", "32", "--units", "64", "--epochs", "1", "--lr", "1e-7",
    ]);
    for (flag, value) in [
        ("--fine-tune", "block5_conv3"),
        ("--fine-tune-lr", "0.00005"),
        ("--fine-tune-epochs", "3"),
    ] {
        if !options.contains(&format!("{flag} ")) {
            host.args([flag, value]);
        }
    }
    host.args(options.split_whitespace());
    host.arg(root().join("samples/surfaces")).arg("-o").arg(head);
    host
}

fn load(path: &Path) -> Backbone {
    Backbone::load(path, Kernel::detect().unwrap()).unwrap()
}

/// Returns a program's results for some samples, without timings.
fn answers(program: &mut Command, head: &Path, base: &Path) -> Vec<Value> {
    let pictures = ["brick/000", "grass/001", "gravel/002"]
        .map(|name| format!("samples/surfaces/val/{name}.jpg"));
    let fixed = ["classify", "--json", "--digest", "--head"];
    let mut lines =
        ndjson(&succeed(program.args(fixed).arg(head).arg("--base").arg(base).args(pictures)));
    for line in &mut lines {
        for field in ["time", "latency_ms"] {
            line.as_object_mut().unwrap().remove(field);
        }
    }
    assert_eq!(lines.len(), 3);
    lines
}

#[test]
fn a_tuned_base_and_its_head_belong_together() {
    let folder = tempfile::tempdir().unwrap();
    let (head, tuned) = (folder.path().join("head.postcard"), folder.path().join("head.onnx"));
    let lines = ndjson(&succeed(&mut train(&head, "")));
    let stage = |line: &&Value| line["fine_tune"] == true;
    assert_eq!(lines.iter().filter(stage).count(), 4, "the state before and three epochs");
    let result = lines.last().unwrap();
    assert!(
        result["settings"].as_str().unwrap().contains("fine-tuned from block5_conv3"),
        "{result}"
    );
    assert!(result["val_accuracy"].as_f64().unwrap() > 0.6, "{result}");

    // The frozen layers are unchanged, in their integers and in their output.
    let (old, new) = (load(&base()), load(&tuned));
    assert_ne!(old.fingerprint(), new.fingerprint());
    assert_eq!(new.metadata()["vgg_edge.fine_tuned_from"], old.fingerprint().to_string());
    let same = |(a, b): (&vgg_edge::kernels::ConvLayer, &vgg_edge::kernels::ConvLayer)| {
        (&a.weights, &a.bias, &a.multipliers) == (&b.weights, &b.bias, &b.multipliers)
    };
    let (before, after) = (old.layers_with_weights(), new.layers_with_weights());
    let layers: Vec<bool> = before.iter().zip(&after).map(same).collect();
    assert_eq!(layers, [vec![true; 12], vec![false]].concat());
    let input: Vec<u8> =
        (0..3 * 32 * 32u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let frozen =
        |base: &Backbone| base.prefix(12).runner(None).unwrap().features(&input, 32).unwrap();
    let whole = |base: &Backbone| base.runner(None).unwrap().features(&input, 32).unwrap();
    assert_eq!(frozen(&old), frozen(&new));
    assert_ne!(whole(&old), whole(&new));

    // Host and device agree on the model, and neither accepts a mismatched base.
    let found = answers(&mut host(), &head, &tuned);
    assert_eq!(found, answers(&mut Device::Native.edge(), &head, &tuned));
    for program in [&mut host(), &mut Device::Native.edge()] {
        fail(
            program
                .args(["classify", "--head"])
                .arg(&head)
                .arg("samples/surfaces/val/brick/000.jpg"),
            1,
            "base",
        );
    }

    // The same bytes with any number of threads.
    let again = folder.path().join("again.postcard");
    succeed(&mut train(&again, "--threads 1"));
    let bytes = |path: &Path| Fingerprint::of(&std::fs::read(path).unwrap());
    assert_eq!(bytes(&tuned), bytes(&folder.path().join("again.onnx")));
    assert_eq!(bytes(&head), bytes(&again));
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "{left:?}");
}

#[test]
fn interrupted_fine_tuning_continues_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.postcard");
    const OPTIONS: &str = "--fine-tune-epochs 4 --fine-tune-patience 0";
    let lines = ndjson(&succeed(&mut train(&whole, OPTIONS)));
    let is_tuned = |line: &Value| line["fine_tune"] == true;
    let bytes = |path: &Path| {
        let read = |ending| std::fs::read(path.with_extension(ending)).unwrap();
        ["postcard", "onnx"].map(|ending| Fingerprint::of(&read(ending)))
    };

    // Ctrl-C while the outputs of the frozen part are computed, while the block is trained, and
    // during quantization.
    let tuned =
        |epoch: u64| move |line: &Value| line["fine_tune"] == true && line["epoch"] == epoch;
    type HasCome<'a> = &'a dyn Fn(&Value) -> bool;
    let moments: [(&str, HasCome); 3] = [
        ("frozen", &|line: &Value| line["head"].is_string()),
        ("tuning", &tuned(2)),
        ("quantized", &tuned(4)),
    ];
    for (step, has_come) in moments {
        let head = folder.path().join(format!("{step}.postcard"));
        let mut child =
            train(&head, OPTIONS).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut seen = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(
            seen.by_ref().any(|line| has_come(&serde_json::from_str(&line).unwrap())),
            "{step} does not come"
        );
        succeed(Command::new("kill").args(["-INT", &child.id().to_string()]));
        seen.for_each(drop);
        let output = child.wait_with_output().unwrap();
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{step}: {words}");
        for part in ["interrupted while fine-tuning", "is written", "--resume continues from"] {
            assert!(words.contains(part), "{step}: {words}");
        }
        // Until then, the output is the head of the frozen base.
        answers(&mut host(), &head, &base());
        assert!(!head.with_extension("onnx").exists());

        fail(&mut train(&head, &format!("{OPTIONS} --pool max --resume")), 1, "other settings");
        let rest = ndjson(&succeed(&mut train(&head, &format!("{OPTIONS} --resume"))));
        let mut result = lines.last().unwrap().clone();
        result["head"] = head.to_str().unwrap().into();
        assert_eq!(rest.last().unwrap(), &result);
        let tuned: Vec<&Value> = rest.iter().filter(|line| is_tuned(line)).collect();
        let all: Vec<&Value> = lines.iter().filter(|line| is_tuned(line)).collect();
        assert!(all.ends_with(&tuned), "{step}: {tuned:?}");
        assert!(step != "quantized" || tuned.is_empty(), "epochs are done again: {tuned:?}");
        assert_eq!(bytes(&whole), bytes(&head), "{step}");
    }
    let left = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(
        !left.into_iter().any(|name| name.contains("checkpoint")),
        "a checkpoint of what is done stays"
    );
}

#[test]
fn fine_tuning_without_improvement_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (head, tuned) = (folder.path().join("head.postcard"), folder.path().join("head.onnx"));
    std::fs::write(&tuned, "of an earlier training").unwrap();
    // A rate at which no weight moves.
    let output = run(&mut train(&head, "--fine-tune-lr 1e-30 --fine-tune-epochs 1"));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{words}");
    assert!(words.contains("no improvement") && words.contains("does not belong to it"), "{words}");
    answers(&mut host(), &head, &base());
    assert_eq!(std::fs::read(&tuned).unwrap(), b"of an earlier training");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn invalid_fine_tuning_is_refused_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let head = folder.path().join("head.postcard");
    fail(&mut train(&head, "--fine-tune block7"), 2, "block7");
    fail(&mut train(&head, "--fine-tune block1"), 2, "not a block or layer after the first");
    fail(&mut train(&head, "--folds 3"), 2, "--folds");
    fail(&mut train(&head, "--fine-tune-lr -1"), 2, "optimizer.lr");
    fail(train(&head, "").arg("--tuned-base").arg(&head), 2, "already used by this run");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
