//! Sharded extraction: the same bytes as on one machine, whatever is killed, drained, missing or
//! repeated, also on a real Slurm.

mod cluster;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use tests::{data_folder, fail, host, names, ndjson, run, succeed};

/// O_NONBLOCK: opening a FIFO to write fails while nobody reads.
const NONBLOCKING: i32 = 0o4000;

/// Writes images in three classes: one duplicate, some in subdirectories, behind links and with
/// names that are not UTF-8, and unreadable files.
fn fill(data: &Path) {
    data_folder(data, &[("red", 9), ("green", 6), ("blue", 5)]);
    fs::copy(data.join("red/7.bmp"), data.join("blue/twin.bmp")).unwrap();
    fs::write(data.join("green/5.bmp"), "junk").unwrap();
    fs::create_dir(data.join("red/deep")).unwrap();
    fs::rename(data.join("red/3.bmp"), data.join("red/deep/3.bmp")).unwrap();
    fs::rename(data.join("red/4.bmp"), data.join("red").join(OsStr::from_bytes(b"\xff\xfe 4.bmp")))
        .unwrap();
    std::os::unix::fs::symlink("2.bmp", data.join("blue/link.bmp")).unwrap();
    std::os::unix::fs::symlink("nowhere", data.join("blue/dangling.bmp")).unwrap();
    fs::write(data.join("blue/notes.txt"), "no picture").unwrap();
}

/// Returns the images of [`fill`] and the head that `host train` makes of them in one run.
fn single() -> &'static (PathBuf, Vec<u8>) {
    static SINGLE: OnceLock<(tempfile::TempDir, (PathBuf, Vec<u8>))> = OnceLock::new();
    let (_, single) = SINGLE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let (data, head) = (dir.path().join("data"), dir.path().join("head"));
        fill(&data);
        succeed(train(&head).arg(&data).args(["--size", "32"]));
        let bytes = fs::read(head).unwrap();
        (dir, (data, bytes))
    });
    single
}

fn train(head: &Path) -> Command {
    let mut program = host();
    program.args(["train", "--json", "--units", "16", "--epochs", "3", "-o"]).arg(head);
    program
}

fn extract(data: &Path, shard: &str, parts: &Path) -> Command {
    let mut program = host();
    program
        .args(["extract", "--json", "--size", "32", "--shard", shard])
        .arg(data)
        .arg("-o")
        .arg(parts);
    program
}

fn merge(parts: &Path, output: &Path) -> Command {
    let mut program = host();
    program.args(["merge", "--json"]).arg(parts).arg("-o").arg(output);
    program
}

fn trained(features: &Path, head: &Path) -> Vec<u8> {
    succeed(train(head).arg("--features").arg(features));
    fs::read(head).unwrap()
}

fn extract_all(data: &Path, count: u32, parts: &Path) {
    for index in 0..count {
        succeed(&mut extract(data, &format!("{index}/{count}"), parts));
    }
}

fn file(parts: &Path, index: u32, count: u32) -> PathBuf {
    parts.join(format!("part-{index:05}-of-{count:05}.features"))
}

/// Returns the index of the part that contains the image of this name.
fn part_of(parts: &Path, count: u32, name: &str) -> u32 {
    let holds = |index: &u32| {
        let mut inspect = host();
        inspect.args(["inspect", "--files", "--json"]).arg(file(parts, *index, count));
        ndjson(&succeed(&mut inspect)).iter().any(|line| line["file"] == name)
    };
    (0..count).find(holds).unwrap()
}

#[test]
fn parts_give_the_bytes_of_one_machine() {
    let (data, head) = single();
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("head");
    let mut whole: Option<Vec<u8>> = None;
    for count in [1, 4, 16] {
        let (parts, merged) = (
            dir.path().join(format!("parts-{count}")),
            dir.path().join(format!("{count}.features")),
        );
        extract_all(data, count, &parts);
        let output = run(&mut merge(&parts, &merged));
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{errors}");
        let result = &ndjson(&String::from_utf8(output.stdout).unwrap())[0];
        assert_eq!(
            [&result["parts"], &result["pictures"], &result["skipped"]],
            [count, 23, 2],
            "{result}"
        );
        // Unreadable files are reported again, whichever machine found them.
        for words in ["left out: green/5.bmp: ", "left out: blue/dangling.bmp: cannot read: "] {
            assert!(errors.contains(words), "{errors}");
        }
        let bytes = fs::read(&merged).unwrap();
        assert!(
            whole.get_or_insert_with(|| bytes.clone()) == &bytes,
            "{count} parts: the features differ"
        );
        assert!(trained(&merged, &new) == *head, "{count} parts, merged: the head differs");
        assert!(trained(&parts, &new) == *head, "{count} parts, unmerged: the head differs");
    }
    // The merged file equals the only part of a single shard.
    assert!(fs::read(file(&dir.path().join("parts-1"), 0, 1)).unwrap() == whole.unwrap());

    // With more parts than images, some parts are empty.
    let parts = dir.path().join("parts-16");
    let empty = (0..16)
        .filter(|&index| {
            succeed(host().arg("inspect").arg(file(&parts, index, 16))).contains(" 0 of 0 ")
        })
        .count();
    assert!(empty > 0, "no part of 16 is empty");

    // Images listed in another order, from another directory, with other threads, give the same
    // parts.
    let other = dir.path().join("other");
    let mut copy = Command::new("bash");
    copy.args([
        "-c",
        "mkdir \"$1\" && (cd \"$0\" && find . -mindepth 1 | sort -r | tar -c --no-recursion -T -) \
            | tar -xC \"$1\"",
    ]);
    succeed(copy.arg(data).arg(&other));
    for index in [0, 3] {
        let again = dir.path().join("again");
        succeed(extract(&other, &format!("{index}/4"), &again).args(["--threads", "1"]));
        assert!(
            fs::read(file(&again, index, 4)).unwrap()
                == fs::read(file(&dir.path().join("parts-4"), index, 4)).unwrap()
        );
    }

    // Folds and pooling also read all rows; a report names the images.
    let (merged, report) = (dir.path().join("4.features"), dir.path().join("report"));
    let folds = |program: &mut Command| {
        succeed(program.args(["--folds", "2", "--pool", "max"]));
        fs::read(&new).unwrap()
    };
    let ours = folds(train(&new).arg(data).args(["--size", "32"]));
    assert!(ours == folds(train(&new).arg("--features").arg(&merged).arg("--report").arg(&report)));
    let page = fs::read_to_string(report.join("report.html")).unwrap();
    assert!(
        ["red/", "green/", "blue/"].iter().any(|class| page.contains(class)),
        "no image is named"
    );
}

#[test]
fn parts_of_split_data_sets_and_options_that_need_images() {
    let dir = tempfile::tempdir().unwrap();
    let (data, parts, head) =
        (dir.path().join("data"), dir.path().join("parts"), dir.path().join("head"));
    data_folder(&data.join("train"), &[("a", 4), ("b", 5), ("c", 4)]);
    data_folder(&data.join("val"), &[("b", 3), ("c", 2)]);
    extract_all(&data, 3, &parts);
    let single = |options: &[&str]| {
        let line = ndjson(&succeed(train(&head).arg(&data).args(["--size", "32"]).args(options)))
            .pop()
            .unwrap();
        (line["train"].clone(), line["val"].clone(), fs::read(&head).unwrap())
    };
    let from_parts = |options: &[&str]| {
        let line = ndjson(&succeed(train(&head).arg("--features").arg(&parts).args(options)))
            .pop()
            .unwrap();
        (line["train"].clone(), line["val"].clone(), fs::read(&head).unwrap())
    };
    let whole = single(&[]);
    assert!(whole.0 == 13 && whole.1 == 5);
    assert!(from_parts(&[]) == whole);
    let folder = data.to_str().unwrap();
    assert!(from_parts(&[folder, "--augment"]) == single(&["--augment"]));

    let with = |options: &[&str]| {
        let mut program = train(&head);
        program.arg("--features").arg(&parts).args(options);
        program
    };
    fail(&mut with(&["--augment"]), 2, "augmentation needs the images themselves");
    fail(&mut with(&["--fine-tune", "block5"]), 2, "--fine-tune needs the images themselves");
    for conflict in ["--size=64", "--fit=cover", "--resize=nearest", "--cache=x", "--strict"] {
        fail(&mut with(&[conflict]), 2, "cannot be used with");
    }
    fail(&mut train(&head), 2, "required");
    fail(
        &mut with(&["--fine-tune=block5", dir.path().to_str().unwrap()]),
        1,
        "images changed since",
    );
    // Another base: the shipped one with additional documentation (field 6 of ONNX's ModelProto).
    let base = dir.path().join("base.onnx");
    fs::write(&base, [fs::read(tests::base()).unwrap(), b"\x32\x01x".to_vec()].concat()).unwrap();
    fail(with(&[]).arg("--base").arg(&base), 1, "parts: features of base ");
    fail(extract(&data, "0/3", &parts).arg("--base").arg(&base), 1, "of base ");
}

#[test]
fn existing_parts_are_kept_and_changed_images_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (data, parts, merged) =
        (dir.path().join("data"), dir.path().join("parts"), dir.path().join("merged"));
    fill(&data);
    extract_all(&data, 2, &parts);
    let index = part_of(&parts, 2, "red/1.bmp");
    let shard = format!("{index}/2");
    let before = fs::read(file(&parts, index, 2)).unwrap();
    let again = |kept: bool| {
        let line = &ndjson(&succeed(&mut extract(&data, &shard, &parts)))[0];
        assert_eq!(line["kept"], kept, "{line}");
        assert!(fs::read(file(&parts, index, 2)).unwrap() == before);
    };
    again(true);
    fs::remove_file(file(&parts, index, 2)).unwrap();
    fail(
        &mut merge(&parts, &merged),
        1,
        &format!("of 2 parts 1 missing: {index}; make them with host extract DATA --shard I/2"),
    );
    fail(train(&merged).arg("--features").arg(&parts), 1, &format!("missing: {index}"));
    again(false);
    // A damaged copy is made again, and reported.
    fs::write(file(&parts, index, 2), &before[..before.len() - 9]).unwrap();
    fail(&mut merge(&parts, &merged), 1, &format!("part {index} is damaged"));
    again(false);
    let mut bytes = before.clone();
    let last = bytes.len() - 40;
    bytes[last] ^= 1;
    fs::write(file(&parts, index, 2), &bytes).unwrap();
    fail(
        &mut merge(&parts, &merged),
        1,
        &format!("part {index} is damaged (its checksum does not match)"),
    );
    fail(
        train(&merged).arg("--features").arg(&parts),
        1,
        &format!("part {index} is damaged (its checksum does not match)"),
    );
    again(false);
    fail(
        extract(&data, &format!("{}/2", part_of(&parts, 2, "green/5.bmp")), &parts).arg("--strict"),
        1,
        "(--strict)",
    );

    // Another image under the same name, one that has become readable, another list, other
    // settings, another number of parts.
    let original = fs::read(data.join("red/1.bmp")).unwrap();
    fs::copy(data.join("red/2.bmp"), data.join("red/1.bmp")).unwrap();
    fail(
        &mut extract(&data, &shard, &parts),
        1,
        "red/1.bmp has changed since the part was made; remove it to make it again",
    );
    fs::write(data.join("red/1.bmp"), &original).unwrap();
    again(true);
    let junk = format!("{}/2", part_of(&parts, 2, "green/5.bmp"));
    fs::write(data.join("green/5.bmp"), &original).unwrap();
    fail(&mut extract(&data, &junk, &parts), 1, "green/5.bmp has changed");
    fs::write(data.join("green/5.bmp"), "junk").unwrap();
    fs::write(data.join("red/new.bmp"), &original).unwrap();
    fail(&mut extract(&data, &shard, &parts), 1, "of 23 images (list ");
    fs::remove_file(data.join("red/new.bmp")).unwrap();
    fail(
        extract(&data, &shard, &parts).args(["--fit", "cover"]),
        1,
        "of the contract 32x32 BGR, stretch",
    );
    fail(&mut extract(&data, "0/3", &parts), 1, "there are parts of 2 (0, 1), not of 3");
    fail(&mut extract(&data, "2/2", &parts), 2, "counted from 0 to 1");
    fail(
        extract(&data, "auto", &parts)
            .env_remove("SLURM_ARRAY_TASK_ID")
            .env_remove("JOB_COMPLETION_INDEX"),
        2,
        "neither",
    );
    succeed(extract(&data, "auto/2", &parts).env("JOB_COMPLETION_INDEX", "1"));

    // A part with other settings among the others.
    let other = dir.path().join("other");
    succeed(extract(&data, &shard, &other).args(["--fit", "cover"]));
    fs::copy(file(&other, index, 2), file(&parts, index, 2)).unwrap();
    let errors = fail(&mut merge(&parts, &merged), 1, "parts do not belong together: part ");
    assert!(errors.contains("of the contract 32x32 BGR"), "{errors}");
    fs::rename(file(&parts, index, 2), dir.path().join("alone")).unwrap();
    fail(&mut merge(&dir.path().join("nothing"), &merged), 1, "nothing: cannot read");
    fail(&mut merge(dir.path(), &merged), 1, "no parts");
    fail(
        train(&merged).arg("--features").arg(dir.path().join("alone")),
        1,
        &format!("part {index} of 2; name the directory"),
    );
    fail(train(&merged).arg("--features").arg(data.join("red/1.bmp")), 1, "not a file of features");
    assert!(!merged.exists());
    assert_eq!(names(&parts), [format!("part-{:05}-of-00002.features", 1 - index)]);
}

#[test]
fn parallel_jobs_share_one_directory() {
    let (data, head) = single();
    let dir = tempfile::tempdir().unwrap();
    let (parts, merged) = (dir.path().join("parts"), dir.path().join("merged"));
    let spawn = |shard: &str, options: &[&str]| -> Child {
        extract(data, shard, &parts)
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    // The same job twice: each part is made by both jobs, or found by one.
    let jobs: Vec<Child> =
        (0..6).map(|n| spawn(&format!("{}/3", n % 3), &["--threads", "1"])).collect();
    for mut job in jobs {
        assert!(job.wait().unwrap().success());
    }
    assert_eq!(names(&parts).len(), 3);
    succeed(&mut merge(&parts, &merged));
    assert!(trained(&merged, &dir.path().join("head")) == *head);

    // Two different jobs: whichever parts exist at the end, an incomplete set is never accepted.
    for file in fs::read_dir(&parts).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    fs::remove_file(&merged).unwrap();
    let jobs: Vec<Child> = ["stretch", "cover"]
        .iter()
        .flat_map(|fit| (0..2).map(|n| spawn(&format!("{n}/2"), &["--fit", fit])))
        .collect();
    let ended: Vec<bool> = jobs.into_iter().map(|mut job| job.wait().unwrap().success()).collect();
    let output = run(&mut merge(&parts, &merged));
    let errors = String::from_utf8(output.stderr).unwrap();
    let settings: Vec<String> = names(&parts)
        .iter()
        .map(|name| {
            let line =
                &ndjson(&succeed(host().args(["inspect", "--json"]).arg(parts.join(name))))[0];
            line["preprocess"].as_str().unwrap().to_owned()
        })
        .collect();
    assert!(ended.iter().any(|&done| done), "{errors}");
    let whole = settings.len() == 2 && settings[0] == settings[1];
    assert_eq!(output.status.success(), whole, "{settings:?}: {errors}");
    assert!(
        whole || errors.contains("do not belong together") || errors.contains("missing: "),
        "{errors}"
    );
}
