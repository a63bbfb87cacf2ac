//! Extraction in parts: the same bytes as on one machine, whatever is killed, drained, missing or
//! done twice; on a real Slurm too.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use tests::slurm::{Slurm, wait_for};
use tests::{data_folder, fail, host, names, ndjson, python, root, run, succeed};

/// O_NONBLOCK: opening a FIFO to write fails while nobody reads.
const NONBLOCKING: i32 = 0o4000;

/// Pictures in three classes: one twice, some in folders within, behind links and under names that
/// are not UTF-8, and files that cannot be read.
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

/// The pictures of [`fill`], and the head that `host train` makes of them at once.
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

/// The part that holds the picture of this name.
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
        // What could not be read is told again here, whichever machine it was.
        for words in ["left out: green/5.bmp: ", "left out: blue/dangling.bmp: cannot read: "] {
            assert!(errors.contains(words), "{errors}");
        }
        let bytes = fs::read(&merged).unwrap();
        assert!(
            whole.get_or_insert_with(|| bytes.clone()) == &bytes,
            "{count} parts: other features"
        );
        assert!(trained(&merged, &new) == *head, "{count} parts, merged: another head");
        assert!(trained(&parts, &new) == *head, "{count} parts, as they are: another head");
    }
    // The whole is the one part of one.
    assert!(fs::read(file(&dir.path().join("parts-1"), 0, 1)).unwrap() == whole.unwrap());

    // With more parts than pictures, some are empty.
    let parts = dir.path().join("parts-16");
    let empty = (0..16)
        .filter(|&index| {
            succeed(host().arg("inspect").arg(file(&parts, index, 16))).contains(" 0 of 0 ")
        })
        .count();
    assert!(empty > 0, "no part of 16 is empty");

    // Pictures found in another order, elsewhere, by other threads: the same parts.
    let other = dir.path().join("other");
    let mut copy = Command::new("bash");
    copy.args([
        "-c",
        "mkdir \"$1\" && (cd \"$0\" && find . -mindepth 1 | sort -r | tar -c --no-recursion -T -) | tar -xC \"$1\"",
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

    // Folds and pooling read all rows too; a report names the pictures.
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
        "no picture is named"
    );
}

#[test]
fn split_folders_and_what_needs_the_pictures() {
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
    // Another base: the same one with a word of documentation more (field 6 of ONNX's ModelProto).
    let base = dir.path().join("base.onnx");
    fs::write(&base, [fs::read(tests::base()).unwrap(), b"\x32\x01x".to_vec()].concat()).unwrap();
    fail(with(&[]).arg("--base").arg(&base), 1, "parts: features of base ");
    fail(extract(&data, "0/3", &parts).arg("--base").arg(&base), 1, "of base ");
}

#[test]
fn what_is_there_is_kept_and_what_has_changed_is_refused() {
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
    // A copy that went wrong is made anew, and told.
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

    // Another picture under the same name, one that can be read by now, another list, other
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

    // A part of other settings that has come to lie among the others.
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
fn jobs_at_once_in_one_folder() {
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
    // The same job twice: each part is made by both, or found by one.
    let jobs: Vec<Child> =
        (0..6).map(|n| spawn(&format!("{}/3", n % 3), &["--threads", "1"])).collect();
    for mut job in jobs {
        assert!(job.wait().unwrap().success());
    }
    assert_eq!(names(&parts).len(), 3);
    succeed(&mut merge(&parts, &merged));
    assert!(trained(&merged, &dir.path().join("head")) == *head);

    // Two jobs that differ: whichever parts there are then, nothing passes for a whole that is
    // none.
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

/// Puts a FIFO in the place of a picture: whoever reads it waits. Gives the bytes of the picture.
fn block(picture: &Path) -> Vec<u8> {
    let bytes = fs::read(picture).unwrap();
    fs::remove_file(picture).unwrap();
    succeed(Command::new("mkfifo").arg(picture));
    bytes
}

/// Waits until somebody reads the FIFO, and keeps them waiting as long as the file that it gives is
/// there.
fn reader(fifo: &Path) -> fs::File {
    let open = || fs::OpenOptions::new().write(true).custom_flags(NONBLOCKING).open(fifo).ok();
    wait_for("somebody who reads the picture", open)
}

/// Puts the picture back, for those who open it from now on.
fn unblock(picture: &Path, bytes: &[u8]) {
    let new = picture.with_extension("new");
    fs::write(&new, bytes).unwrap();
    fs::rename(new, picture).unwrap();
}

#[test]
fn a_killed_task_leaves_nothing_and_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let (data, parts, merged) =
        (dir.path().join("data"), dir.path().join("parts"), dir.path().join("merged"));
    fill(&data);
    let blocked = data.join("red/1.bmp");
    let bytes = block(&blocked);
    let mut command = extract(&data, "0/1", &parts);
    command.arg("--cache").arg(dir.path().join("cache"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let held = reader(&blocked);
    child.kill().unwrap();
    child.wait().unwrap();
    drop(held);
    assert_eq!(names(&parts), [""; 0]);
    fail(&mut merge(&parts, &merged), 1, "no parts");
    unblock(&blocked, &bytes);
    succeed(&mut command);
    succeed(&mut merge(&parts, &merged));
    assert!(trained(&merged, &dir.path().join("head")) == single().1);
}

#[test]
fn a_slurm_cluster_with_killed_tasks_and_drained_nodes() {
    let (_, head) = single();
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("out"));
    fill(&data);
    // Tells who runs a part.
    let wrapper = dir.path().join("host");
    let program = host().get_program().to_owned();
    let words = format!(
        "#!/bin/sh\n[ \"$1\" != extract ] || echo $$ >'{}/pid-'\"$SLURM_ARRAY_TASK_ID\"\nexec '{}' \"$@\"\n",
        dir.path().display(),
        Path::new(&program).display()
    );
    fs::write(&wrapper, words).unwrap();
    succeed(Command::new("chmod").arg("+x").arg(&wrapper));

    let slurm = Slurm::start(3);
    let submit = |array: Option<&str>| {
        let mut command = slurm.command("bash");
        command
            .arg(root().join("deploy/slurm/submit.sh"))
            .arg(&data)
            .arg(&out)
            .args(["4", "--units", "16", "--epochs", "3", "--json"]);
        command
            .env("HOST", &wrapper)
            .env("EXTRACT", "--size 32")
            .env("CPUS", "1")
            .env("SOURCE_DATE_EPOCH", "1700000000");
        command
            .env("VGG_EDGE_BASE", tests::base())
            .env_remove("VGG_EDGE_KERNEL")
            .envs(array.map(|array| ("ARRAY", array)));
        // extract ARRAY, then merge and train JOB; logs in ...
        let said = succeed(&mut command);
        let ids: Vec<String> = said
            .split([' ', ',', ';'])
            .filter(|word| word.parse::<u32>().is_ok())
            .map(str::to_owned)
            .collect();
        <[String; 2]>::try_from(ids).unwrap_or_else(|_| panic!("{said}"))
    };
    let log = |name: String| {
        fs::read_to_string(out.join("log").join(&name))
            .unwrap_or_else(|e| panic!("{name}: {e}\n{}", slurm.log()))
    };
    let extract_log = |id: &str, part: u32| log(format!("extract-{id}_{part}.log"));
    let train_log = |id: &str| log(format!("train-{id}.log"));
    let parts = dir.path().join("probe");
    extract_all(&data, 4, &parts);
    let part = part_of(&parts, 4, "red/1.bmp");
    let blocked = data.join("red/1.bmp");

    // A task is canceled mid-way: the merge names its part.
    let bytes = block(&blocked);
    let [array, job] = submit(None);
    let held = reader(&blocked);
    succeed(slurm.command("scancel").arg(format!("{array}_{part}")));
    slurm.wait();
    drop(held);
    let words = train_log(&job);
    assert!(
        words.contains(&format!("of 4 parts 1 missing: {part}; "))
            && words.contains(&format!("--array={part})")),
        "{words}"
    );
    assert!(!out.join("photos.features").exists() && !out.join("head.postcard").exists());
    assert_eq!(names(&out.join("parts")).len(), 3);

    // Only this part again: its node is drained and its program killed; it is done on another node.
    let [array, job] = submit(Some(&part.to_string()));
    let held = reader(&blocked);
    let line = wait_for("the node of the task", || {
        slurm.jobs().into_iter().find(|line| line.starts_with(&format!("{array}_{part} RUNNING n")))
    });
    let node = line.split(' ').next_back().unwrap();
    succeed(slurm.command("scontrol").args([
        "update",
        &format!("NodeName={node}"),
        "State=DRAIN",
        "Reason=test",
    ]));
    unblock(&blocked, &bytes);
    let pid = fs::read_to_string(dir.path().join(format!("pid-{part}"))).unwrap();
    succeed(Command::new("kill").args(["-KILL", pid.trim()]));
    slurm.wait();
    drop(held);
    let words = extract_log(&array, part);
    let attempts: Vec<&str> = words.lines().filter(|line| line.starts_with("part ")).collect();
    assert!(
        attempts.len() == 2 && attempts[0].contains(&format!("on {node}, attempt 1")),
        "{words}"
    );
    assert!(
        attempts[1].ends_with("attempt 2") && !attempts[1].contains(&format!("on {node},")),
        "{words}"
    );
    assert!(
        fs::read(out.join("head.postcard")).unwrap() == *head,
        "another head: {}",
        train_log(&job)
    );
    let merged = fs::read(out.join("photos.features")).unwrap();

    // A node goes down under a task: Slurm puts that into the queue again. All else is there and is
    // kept.
    fs::remove_file(file(&out.join("parts"), part, 4)).unwrap();
    fs::remove_file(out.join("photos.features")).unwrap();
    let bytes = block(&blocked);
    let [array, job] = submit(None);
    let held = reader(&blocked);
    let line = wait_for("the node of the task", || {
        slurm.jobs().into_iter().find(|line| line.starts_with(&format!("{array}_{part} RUNNING n")))
    });
    let node = line.split(' ').next_back().unwrap();
    unblock(&blocked, &bytes);
    succeed(slurm.command("scontrol").args([
        "update",
        &format!("NodeName={node}"),
        "State=DOWN",
        "Reason=test",
    ]));
    slurm.wait();
    drop(held);
    let words = extract_log(&array, part);
    assert!(
        words.contains("attempt 2") && !words.contains(&format!("on {node}, attempt 2")),
        "{words}"
    );
    let others: Vec<String> =
        (0..4).filter(|&other| other != part).map(|other| extract_log(&array, other)).collect();
    assert!(
        others.iter().all(|words| words.contains("exists, with the same images")),
        "{others:?}"
    );
    assert!(
        fs::read(out.join("photos.features")).unwrap() == merged,
        "other features: {}",
        train_log(&job)
    );
}

#[test]
fn the_manifests_of_kubernetes_are_valid_and_their_commands_run() {
    let folder = root().join("deploy/kubernetes");
    let manifests = ["extract.yaml", "train.yaml"].map(|name| folder.join(name));
    let validate = || {
        let mut program = Command::new(python().with_file_name("kubernetes-validate"));
        program.args(["--strict", "--kubernetes-version", "1.33"]);
        program
    };
    succeed(validate().args(&manifests));
    // The validator does look.
    let dir = tempfile::tempdir().unwrap();
    for (right, wrong) in
        [("completions: 16", "completion: 16"), ("parallelism: 16", "parallelism: many")]
    {
        let text = fs::read_to_string(&manifests[0]).unwrap().replace(right, wrong);
        let path = dir.path().join("wrong.yaml");
        fs::write(&path, text).unwrap();
        assert!(!run(validate().arg(&path)).status.success(), "{wrong} is valid");
    }

    // The commands of the containers, on this machine's folders.
    let (data, features) = (dir.path().join("photos"), dir.path().join("features"));
    fill(&data);
    let script = "import json, sys, yaml; print(json.dumps([yaml.safe_load(open(path)) for path in sys.argv[1:]]))";
    let jobs = &ndjson(&succeed(Command::new(python()).args(["-c", script]).args(&manifests)))[0];
    let command = |container: &serde_json::Value| {
        let mut program = host();
        for word in container["args"].as_array().unwrap() {
            let word = word.as_str().unwrap_or_else(|| panic!("not a string: {word}"));
            let word = word
                .replace("/photos.features", "/PHOTOS")
                .replace("/photos", data.to_str().unwrap());
            program.arg(
                word.replace("/features", features.to_str().unwrap())
                    .replace("/PHOTOS", "/photos.features"),
            );
        }
        program
    };
    let completions = jobs[0]["spec"]["completions"].as_u64().unwrap();
    let extract = &jobs[0]["spec"]["template"]["spec"]["containers"][0];
    for index in 0..completions {
        succeed(
            command(extract)
                .env("JOB_COMPLETION_INDEX", index.to_string())
                .env_remove("SLURM_ARRAY_TASK_ID"),
        );
    }
    let train = &jobs[1]["spec"]["template"]["spec"];
    succeed(&mut command(&train["initContainers"][0]));
    succeed(command(&train["containers"][0]).args(["--units", "16", "--epochs", "3"]));
    let head = dir.path().join("head");
    succeed(
        host()
            .args(["train", "--units", "16", "--epochs", "3", "--size", "64"])
            .arg(&data)
            .arg("-o")
            .arg(&head),
    );
    assert!(fs::read(features.join("head.postcard")).unwrap() == fs::read(head).unwrap());
}
