//! Large data sets: features in a file instead of in memory are the same to the bit, and no
//! temporary file remains.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tests::{data_folder, fail, host, ndjson, root, succeed};

/// A limit that 150 images with 512 bytes of features exceed.
const BOUND: &str = "1000";
const VARIABLE: &str = "VGG_EDGE_FEATURES_IN_MEMORY";

/// Returns images in three classes, one of them a duplicate, and a file that is not an image.
fn data() -> &'static Path {
    static DATA: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = DATA.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        data_folder(&data, &[("red", 50), ("green", 50), ("blue", 50)]);
        fs::copy(data.join("red/7.bmp"), data.join("red/twin.bmp")).unwrap();
        fs::write(data.join("green/5.bmp"), "junk").unwrap();
        (dir, data)
    });
    path
}

fn on_data(command: &str, output: &Path, options: &str) -> Command {
    let mut program = host();
    program
        .args([command, "--json", "--size", "32"])
        .arg(data())
        .arg("-o")
        .arg(output)
        .args(options.split_whitespace());
    program
}

fn train(head: &Path) -> Command {
    on_data("train", head, "--units 16 --epochs 3")
}

fn count(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[test]
fn features_in_a_file_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (head, npz, cache, temporary) = (
        dir.path().join("head"),
        dir.path().join("npz"),
        dir.path().join("cache"),
        dir.path().join("temporary"),
    );
    fs::create_dir(&temporary).unwrap();
    // `host` with features in memory, or in a file.
    let bounded = |mut program: Command| {
        program.env(VARIABLE, BOUND).env("TMPDIR", &temporary);
        program
    };
    // The number of images from the cache, and the written files.
    let outcome = |mut program: Command, output: &Path| {
        let result = ndjson(&succeed(&mut program)).pop().unwrap();
        (result["cached"].as_u64().unwrap(), fs::read(output).unwrap())
    };
    let cached = |mut program: Command| {
        program.arg("--cache").arg(&cache);
        program
    };
    let in_memory = outcome(train(&head), &head);
    assert_eq!(in_memory.0, 0);
    let bytes = in_memory.1;
    assert!(
        outcome(bounded(train(&head)), &head) == (0, bytes.clone()),
        "a temporary file: other bytes"
    );
    // The first run fills the cache, the second reads everything from it.
    assert!(outcome(bounded(cached(train(&head))), &head).1 == bytes, "a new cache: other bytes");
    let mut program = bounded(cached(train(&head)));
    program.args(["--threads", "1"]);
    assert!(
        outcome(program, &head) == (150, bytes.clone()),
        "a full cache, one thread: other bytes"
    );
    assert!(
        outcome(cached(train(&head)), &head) == (150, bytes),
        "out of the cache into memory: other bytes"
    );
    // Features are stored once: at most 151 records of the feature map, a key of 32 bytes and a
    // checksum of 8.
    let file = fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
    assert!(count(&cache) == 1 && fs::metadata(file).unwrap().len() <= 52 + 151 * (512 + 40));

    // Folds and reports read all rows again.
    let folds = |mut program: Command| {
        program.args(["--folds", "3", "--pool", "max", "--report"]).arg(dir.path().join("report"));
        (outcome(program, &head), fs::read(dir.path().join("report/report.html")).unwrap())
    };
    assert!(folds(cached(train(&head))) == folds(bounded(cached(train(&head)))));

    let evaluate = || {
        let mut program = host();
        program.args(["evaluate", "--json", "--head"]).arg(&head).arg(data());
        program
    };
    assert_eq!(succeed(&mut cached(evaluate())), succeed(&mut bounded(evaluate())));

    let extract = |options: &str| on_data("extract", &npz, options);
    let in_memory = outcome(cached(extract("")), &npz).1;
    assert!(outcome(bounded(extract("")), &npz).1 == in_memory);
    let in_memory = outcome(cached(extract("--quantized")), &npz);
    assert!(outcome(bounded(cached(extract("--quantized"))), &npz) == in_memory);
    assert_eq!(count(&temporary), 0);
}

#[test]
fn fine_tuning_from_a_file_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (data, head) = (dir.path().join("data"), dir.path().join("head"));
    data_folder(&data, &[("red", 12), ("green", 12)]);
    let tuned = |bound: Option<&str>| {
        let mut program = host();
        program.args([
            "train",
            "--size",
            "32",
            "--units",
            "16",
            "--epochs",
            "3",
            "--fine-tune",
            "block5_conv3",
        ]);
        program
            .args(["--fine-tune-epochs", "2", "--fine-tune-lr", "1e-4"])
            .arg(&data)
            .arg("-o")
            .arg(&head);
        program.env("TMPDIR", dir.path()).envs(bound.map(|bound| (VARIABLE, bound)));
        let words = succeed(&mut program);
        // The new base if it was better, or else the unchanged head.
        (words, fs::read(&head).unwrap(), fs::read(dir.path().join("head.onnx")).ok())
    };
    assert!(tuned(None) == tuned(Some(BOUND)));
}

#[test]
fn variants_from_a_file_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (data, head) = (dir.path().join("data"), dir.path().join("head"));
    data_folder(&data, &[("red", 8), ("green", 8)]);
    for options in ["--epochs 2 --augment", "--epochs 4 --augment --variants 2"] {
        let train = |bound: Option<&str>| {
            let mut program = host();
            program
                .args(["train", "--size", "32", "--units", "8"])
                .args(options.split_whitespace())
                .arg(&data);
            succeed(
                program
                    .arg("-o")
                    .arg(&head)
                    .env("TMPDIR", dir.path())
                    .envs(bound.map(|bound| (VARIABLE, bound))),
            );
            fs::read(&head).unwrap()
        };
        assert!(train(None) == train(Some(BOUND)), "{options}");
    }
}

#[test]
fn a_full_disk_is_one_line_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (temporary, cache, output) =
        (dir.path().join("temporary"), dir.path().join("cache"), dir.path().join("out"));
    fs::create_dir(&temporary).unwrap();
    fs::create_dir(&output).unwrap();
    // A file size limit simulates the full disk, as in bad_input.rs: 32 KiB of 75.
    let limited = |command: Command| {
        let mut limited = Command::new("bash");
        limited
            .args(["-c", "trap '' XFSZ; ulimit -f 32; exec \"$@\"", "bash"])
            .arg(command.get_program());
        limited
            .args(command.get_args())
            .current_dir(root())
            .env(VARIABLE, BOUND)
            .env("TMPDIR", &temporary);
        limited
    };
    let head = output.join("head");
    let errors = fail(&mut limited(train(&head)), 1, "the temporary file there takes");
    assert!(errors.contains("temporary: cannot write") && errors.contains("TMPDIR"), "{errors}");
    let mut program = train(&head);
    program.arg("--cache").arg(&cache);
    fail(&mut limited(program), 1, ".features: cannot write");
    assert_eq!((count(&temporary), count(&output)), (0, 0));
    // The entries of the cache are complete.
    let mut program = train(&head);
    program.arg("--cache").arg(&cache).env(VARIABLE, BOUND);
    succeed(&mut program);

    fail(
        train(&head).env(VARIABLE, BOUND).env("TMPDIR", "/nonexistent"),
        1,
        "/nonexistent: cannot write",
    );
    fail(
        train(&head).env(VARIABLE, "much"),
        2,
        "VGG_EDGE_FEATURES_IN_MEMORY must be a number of bytes, not much",
    );
}

#[test]
fn temporary_file_of_a_killed_process_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let temporary = dir.path().join("temporary");
    fs::create_dir(&temporary).unwrap();
    let mut program =
        on_data("train", &dir.path().join("head"), "--units 16 --epochs 100000 --patience 0");
    program.env(VARIABLE, BOUND).env("TMPDIR", &temporary);
    let mut child = program.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let descriptors = format!("/proc/{}/fd", child.id());
    let holds_it = || {
        let links = fs::read_dir(&descriptors)
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links.into_iter().any(|link| link.starts_with(&temporary))
    };
    while !holds_it() {
        assert!(child.try_wait().unwrap().is_none(), "it ended without a file");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(count(&temporary), 0, "the file has no name");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(count(&temporary), 0);
}
