//! Killed tasks, Slurm and Kubernetes.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use tests::slurm::{Slurm, wait_for};
use tests::{fail, host, names, ndjson, python, root, run, succeed};

use super::{NONBLOCKING, extract, extract_all, file, fill, merge, part_of, single, trained};

/// Replaces an image with a FIFO, which blocks its readers. Returns the bytes of the image.
fn block(picture: &Path) -> Vec<u8> {
    let bytes = fs::read(picture).unwrap();
    fs::remove_file(picture).unwrap();
    succeed(Command::new("mkfifo").arg(picture));
    bytes
}

/// Waits until a process reads the FIFO, and blocks it until the returned file is dropped.
fn reader(fifo: &Path) -> fs::File {
    let open = || fs::OpenOptions::new().write(true).custom_flags(NONBLOCKING).open(fifo).ok();
    wait_for("a reader of the image", open)
}

/// Puts the image back, for processes that open it from now on.
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
    // Records the process id of each task.
    let wrapper = dir.path().join("host");
    let program = host().get_program().to_owned();
    let words = format!(
        "#!/bin/sh\n[ \"$1\" != extract ] || echo $$ >'{}/pid-'\"$SLURM_ARRAY_TASK_ID\"\nexec \
            '{}' \"$@\"\n",
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
        // The output is: extract ARRAY, then merge and train JOB; logs in ...
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

    // A task is canceled while it runs: the merge names its part.
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

    // Only this part again: its node is drained and its process killed; it is repeated on another
    // node.
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
        "the head differs: {}",
        train_log(&job)
    );
    let merged = fs::read(out.join("photos.features")).unwrap();

    // The node of a task goes down: Slurm requeues the task. All other parts exist and are kept.
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
        "the features differ: {}",
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
    // The validator rejects invalid manifests.
    let dir = tempfile::tempdir().unwrap();
    for (right, wrong) in
        [("completions: 16", "completion: 16"), ("parallelism: 16", "parallelism: many")]
    {
        let text = fs::read_to_string(&manifests[0]).unwrap().replace(right, wrong);
        let path = dir.path().join("wrong.yaml");
        fs::write(&path, text).unwrap();
        assert!(!run(validate().arg(&path)).status.success(), "{wrong} is valid");
    }

    // The commands of the containers, with this machine's directories.
    let (data, features) = (dir.path().join("photos"), dir.path().join("features"));
    fill(&data);
    let script = "import json, sys, yaml; print(json.dumps([yaml.safe_load(open(path)) for path \
        in sys.argv[1:]]))";
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
