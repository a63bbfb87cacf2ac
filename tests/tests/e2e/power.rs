//! Power loss: whatever was being written, a file is the old one or the new one, nothing else is
//! lost, and the program continues.
//!
//! Programs run under strace; `tests::disk` computes what the disk may contain if the power fails
//! after any of their calls. `VGG_EDGE_LOSSES` is the number of such disks that each test checks;
//! `docs/testing.md` lists the long run.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tests::disk::{Disk, Recording, Tree, plant, traced, tree};
use tests::{Device, data_folder, host, run, small_head, succeed, wrapped};

/// Returns the number of disks that each test checks.
fn losses() -> usize {
    std::env::var("VGG_EDGE_LOSSES").map_or(60, |count| count.parse().unwrap())
}

/// A watched directory, inside one that is not watched.
struct Scene {
    _folder: tempfile::TempDir,
    aside: PathBuf,
    root: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        let (aside, root) = (path.join("aside"), path.join("root"));
        std::fs::create_dir(&aside).unwrap();
        std::fs::create_dir(&root).unwrap();
        Self { _folder: folder, aside, root }
    }

    /// Runs a command under strace; `drive` gets its process while it runs.
    fn record(
        &self,
        command: &Command,
        drive: impl FnOnce(&mut std::process::Child),
    ) -> (Recording, Tree) {
        let before = tree(&self.root);
        let log = self.aside.join("strace");
        let mut child = traced(command, &log)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| {
                panic!("cannot run strace: {e}; run ./test, which installs what is needed");
            });
        drive(&mut child);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let recording = Recording::read(&log, &self.root, &before);
        assert!(!recording.is_empty());
        // Without a power loss, the model agrees with the real disk.
        assert_eq!(
            recording.after(recording.len(), Disk::Eager),
            tree(&self.root),
            "the model of the disk is wrong"
        );
        (recording, before)
    }

    /// Calls `check` with the disks that power losses leave, and the number of each: at every call
    /// the laziest and the most eager, then random ones. If `again` is given, some of them are
    /// written to the real disk and `again` runs there.
    fn lose_power(&self, recording: &Recording, check: &dyn Fn(&Tree), again: &dyn Fn(&Path)) {
        let calls = recording.len() + 1;
        let count = losses().max(2 * calls);
        let mut runs = 0;
        for number in 0..count {
            let (call, disk) = match number / calls {
                0 => (number, Disk::Lazy),
                1 => (number - calls, Disk::Eager),
                _ => (number * 7919 % calls, Disk::Random(number as u64)),
            };
            let found = recording.after(call, disk);
            let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                check(&found);
                // Programs are slow: an evenly spaced selection.
                if number % count.div_ceil(8) == calls % 5 {
                    std::fs::remove_dir_all(&self.root).unwrap();
                    std::fs::create_dir(&self.root).unwrap();
                    plant(&found, &self.root);
                    again(&self.root);
                    let litter: Vec<PathBuf> =
                        tree(&self.root).into_keys().filter(|path| is_temporary(path)).collect();
                    assert!(litter.is_empty(), "{litter:?}");
                    runs += 1;
                }
            }));
            let names: Vec<_> =
                found.iter().map(|(path, bytes)| (path, bytes.as_ref().map(Vec::len))).collect();
            assert!(told.is_ok(), "after {call} of {} calls, {disk:?}: {names:?}", calls - 1);
        }
        assert!(runs >= 4, "{runs} runs");
        println!(
            "{count} power losses within {} calls, {runs} of them followed by another run",
            calls - 1
        );
    }
}

fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".vgg-edge-"))
}

fn bytes<'a>(tree: &'a Tree, name: &str) -> Option<&'a Vec<u8>> {
    tree.get(Path::new(name)).and_then(Option::as_ref)
}

/// Everything that existed before and is not being written is unchanged.
fn untouched(before: &Tree, found: &Tree, at_stake: &[&str]) {
    for (name, content) in
        before.iter().filter(|(name, _)| !at_stake.contains(&name.to_str().unwrap()))
    {
        assert!(found.get(name) == Some(content), "{} has changed", name.display());
    }
}

/// The model detects the losses of a program without syncs, and none for a program with them.
#[test]
fn disk_model_detects_missing_syncs() {
    let kinds = |script: &str| {
        let scene = Scene::new();
        std::fs::write(scene.root.join("head"), "old").unwrap();
        let mut python = Command::new("python3");
        python
            .args(["-c", &format!("import os; folder = os.open('.', os.O_RDONLY); {script}")])
            .current_dir(&scene.root);
        let (recording, _) = scene.record(&python, |_| ());
        let at = |number: u64| number as usize % (recording.len() + 1);
        let heads = (0..500).map(|number| recording.after(at(number), Disk::Random(number)));
        heads
            .map(|tree| bytes(&tree, "head").map(|head| String::from_utf8_lossy(head).into_owned()))
            .collect()
    };
    let old_or_new: BTreeSet<Option<String>> = [Some("old".into()), Some("new!".into())].into();
    let write = "file = os.open('t', os.O_CREAT | os.O_WRONLY); os.write(file, b'new!');";
    let whole: BTreeSet<_> = kinds(&format!(
        "{write} os.fsync(file); os.rename('t', 'head', src_dir_fd=folder, dst_dir_fd=folder); \
            os.fsync(folder)"
    ));
    assert_eq!(whole, old_or_new);
    let torn: BTreeSet<_> = kinds(&format!(
        "{write} os.rename('t', 'head', src_dir_fd=folder, dst_dir_fd=folder); os.fsync(folder)"
    ));
    assert!(torn.contains(&Some(String::new())) && torn.contains(&Some("ne".into())), "{torn:?}");
    let in_place: BTreeSet<_> = kinds(
        "file = os.open('head', os.O_WRONLY | os.O_TRUNC); os.write(file, b'new!'); os.fsync(file)",
    );
    assert!(in_place.contains(&Some(String::new())), "{in_place:?}");
}

/// Returns a small training that writes a checkpoint after each epoch.
fn training(epochs: &str) -> Command {
    let mut train = host();
    train.args([
        "train",
        "--size",
        "32",
        "--units",
        "8",
        "--threads",
        "1",
        "--checkpoint-every",
        "0",
    ]);
    train.args(["--epochs", epochs]);
    train
}

#[test]
fn training_leaves_the_old_head_or_the_new_one() {
    let scene = Scene::new();
    let data = scene.aside.join("data");
    data_folder(&data, &[("red", 4), ("green", 4)]);
    std::fs::copy(small_head(), scene.root.join("head")).unwrap();
    std::fs::write(scene.root.join("notes"), "mine").unwrap();
    let train = |root: &Path| {
        let mut train = training("4");
        train.arg(&data).arg("-o").arg(root.join("head"));
        train.arg("--cache").arg(root.join("cache")).arg("--report").arg(root.join("report"));
        train
    };
    let (recording, before) = scene.record(&train(&scene.root), |_| ());
    let after = tree(&scene.root);
    let (old, new) = (bytes(&before, "head").unwrap(), bytes(&after, "head").unwrap());
    assert!(old != new);
    let check = |found: &Tree| {
        untouched(&before, found, &["head"]);
        let head = bytes(found, "head").expect("there is a head");
        assert!(head == old || head == new, "neither head");
        for (name, content) in found {
            // Each file of the report is complete or missing; the cache detects incomplete entries
            // itself.
            let name_in_report = name.starts_with("report") && !is_temporary(name);
            assert!(!name_in_report || after.get(name) == Some(content), "{}", name.display());
        }
    };
    let again = |root: &Path| {
        // A remaining checkpoint is complete; the next training continues from it, or starts again,
        // and writes the same head.
        let resumes = root.join("head.checkpoint").exists();
        succeed(train(root).args(resumes.then_some("--resume")));
        assert!(std::fs::read(root.join("head")).unwrap() == *new, "the head differs");
        assert_eq!(std::fs::read(root.join("notes")).unwrap(), b"mine");
    };
    scene.lose_power(&recording, &check, &again);
}

#[test]
fn collected_frames_keep_their_lines_and_lines_their_frames() {
    let scene = Scene::new();
    let pictures = scene.aside.join("pictures");
    data_folder(&pictures, &[("red", 2), ("green", 2)]);
    for (class, number) in [("red", 0), ("green", 0), ("red", 1), ("green", 1)] {
        let to = pictures.join(format!("{number}{class}.bmp"));
        std::fs::rename(pictures.join(class).join(format!("{number}.bmp")), to).unwrap();
    }
    let collect = |root: &Path| {
        let mut edge = Device::Native.edge();
        edge.args(["run", "--head"]).arg(small_head()).arg("--source").arg(&pictures);
        edge.args(["--collect-below", "1", "--collect"]).arg(root.join("kept"));
        edge
    };
    succeed(&mut collect(&scene.root));
    let (recording, before) = scene.record(&collect(&scene.root), |_| ());
    let after = tree(&scene.root);
    assert!(after.len() > before.len());
    let index = Path::new("kept/frames.ndjson");
    let old = before[index].clone().unwrap();
    let check = |found: &Tree| {
        untouched(&before, found, &["kept/frames.ndjson"]);
        let text = found[index].as_ref().expect("an index");
        assert!(text.starts_with(&old), "lines of before are lost");
        for line in text.split(|&byte| byte == b'\n') {
            if let Ok(line) = serde_json::from_slice::<Value>(line) {
                let name = format!("kept/{}", line["file"].as_str().unwrap());
                assert!(bytes(found, &name).is_some(), "{name} is named and not there");
            }
        }
        for (name, content) in
            found.iter().filter(|(name, _)| *name != index && !is_temporary(name))
        {
            assert!(after.get(name) == Some(content), "{} is not whole", name.display());
        }
    };
    let again = |root: &Path| {
        let path = root.join(index);
        let whole = |text: &[u8]| {
            let lines = text.split(|&byte| byte == b'\n').map(serde_json::from_slice::<Value>);
            lines.flatten().map(|line| line.to_string()).collect::<BTreeSet<_>>()
        };
        let known = whole(&std::fs::read(&path).unwrap());
        succeed(&mut collect(root));
        let now = whole(&std::fs::read(&path).unwrap());
        assert!(now.is_superset(&known) && now.len() > known.len(), "{known:?}, then {now:?}");
    };
    scene.lose_power(&recording, &check, &again);
}

#[test]
fn other_outputs_are_the_old_ones_or_the_new_ones() {
    let scene = Scene::new();
    let data = scene.aside.join("data");
    data_folder(&data, &[("red", 2), ("green", 2)]);
    std::fs::write(scene.root.join("out"), "old").unwrap();
    let commands: [&[&str]; 2] = [&["extract", "--size", "32"], &["augment"]];
    for arguments in commands {
        let input = if arguments == ["augment"] { data.join("red/0.bmp") } else { data.clone() };
        let command = |root: &Path| {
            let mut host = host();
            host.args(arguments).arg(&input).arg("-o").arg(root.join("out"));
            host
        };
        let (recording, before) = scene.record(&command(&scene.root), |_| ());
        let after = tree(&scene.root);
        let check = |found: &Tree| {
            let out = bytes(found, "out").unwrap();
            assert!(out == bytes(&before, "out").unwrap() || out == bytes(&after, "out").unwrap());
        };
        let again = |root: &Path| {
            succeed(&mut command(root));
            assert!(tree(root) == after);
        };
        scene.lose_power(&recording, &check, &again);
    }
}

#[test]
fn labeled_images_are_in_one_directory_or_the_other() {
    let scene = Scene::new();
    let inbox = scene.root.join("inbox");
    data_folder(&scene.root, &[("inbox", 6)]);
    // An image that is there already, and one with the same name but other content.
    std::fs::create_dir_all(scene.root.join("photos/a")).unwrap();
    std::fs::copy(inbox.join("1.bmp"), scene.root.join("photos/a/1.bmp")).unwrap();
    std::fs::write(scene.root.join("photos/a/2.bmp"), "another").unwrap();
    let mut command = host();
    command
        .args(["label", "--json", "--to"])
        .arg(scene.root.join("photos"))
        .args(["--classes", "a,b"])
        .arg(&inbox);
    let orders = |child: &mut std::process::Child| {
        let mut hello = Vec::new();
        let mut stdout = child.stdout.take().unwrap();
        let mut byte = [0];
        while hello.last() != Some(&b'\n') {
            assert_eq!(stdout.read(&mut byte).unwrap(), 1, "host label has ended");
            hello.push(byte[0]);
        }
        let hello: Value = serde_json::from_slice(&hello).unwrap();
        let address = hello["url"]
            .as_str()
            .unwrap()
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned();
        let ask = |request: &str, headers: &str, body: &str| {
            let mut stream = TcpStream::connect(&address).unwrap();
            let length = body.len();
            write!(
                stream,
                "{request} HTTP/1.1\r\nHost: {address}\r\n{headers}Content-Length: \
                {length}\r\nConnection: close\r\n\r\n{body}"
            )
            .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        let page = ask("GET /", "", "");
        let token = page
            .split("name=\"token\" content=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap()
            .to_owned();
        let headers = format!("Content-Type: application/json\r\nX-Vgg-Edge-Token: {token}\r\n");
        for order in ["a", "b", "a", "", "a", "undo"] {
            let state = ask("GET /state", "", "");
            let state: Value =
                serde_json::from_str(state.split("\r\n\r\n").nth(1).unwrap()).unwrap();
            let id = &state["state"]["item"]["id"];
            let order = match order {
                "undo" => json!({ "undo": {} }),
                "" => json!({ "reject": { "id": id } }),
                class => json!({ "sort": { "id": id, "class": class } }),
            };
            let answer = ask("POST /do", &headers, &order.to_string());
            assert!(
                answer.starts_with("HTTP/1.1 200") && answer.contains("\"trouble\":null"),
                "{order}: {answer}"
            );
        }
        // strace does not forward the signal, so its child is signaled.
        let host =
            std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
        succeed(Command::new("kill").args(["-INT", host.trim()]));
        stdout.read_to_end(&mut Vec::new()).unwrap();
    };
    let (recording, before) = scene.record(&command, orders);
    let pictures = |tree: &Tree| -> BTreeSet<Vec<u8>> {
        let is_picture = |path: &Path| path.extension().is_some_and(|ending| ending == "bmp");
        tree.iter()
            .filter(|(path, _)| is_picture(path))
            .filter_map(|(_, bytes)| bytes.clone())
            .collect()
    };
    let wanted = pictures(&before);
    assert_eq!(pictures(&tree(&scene.root)), wanted);
    let check = |found: &Tree| {
        assert!(pictures(found) == wanted, "an image is lost or changed");
        let log = bytes(found, "inbox/labels.ndjson").map_or(&[][..], |log| log);
        let lines: Vec<&[u8]> = log.split(|&byte| byte == b'\n').collect();
        assert!(
            lines[..lines.len() - 1]
                .iter()
                .all(|line| serde_json::from_slice::<Value>(line).is_ok()),
            "{lines:?}"
        );
    };
    let again = |root: &Path| {
        // The session opens, and lists the remaining images.
        let mut label = host();
        label.args(["label", "--json", "--to"]).arg(root.join("photos")).arg(root.join("inbox"));
        let mut child = label.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut byte = [0];
        assert_eq!(
            child.stdout.as_mut().unwrap().read(&mut byte).unwrap(),
            1,
            "it says where it is"
        );
        succeed(Command::new("kill").args(["-INT", &child.id().to_string()]));
        // Without remaining images there is no session to open.
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    scene.lose_power(&recording, &check, &again);
}

/// The process is killed at one call after another, without a power loss.
#[test]
fn killed_training_leaves_a_complete_head_and_few_temporary_files() {
    let scene = Scene::new();
    let data = scene.aside.join("data");
    data_folder(&data, &[("red", 3), ("green", 3)]);
    let head = scene.root.join("head");
    std::fs::copy(small_head(), &head).unwrap();
    let old = std::fs::read(&head).unwrap();
    let train = || {
        let mut train = training("2");
        train.arg(&data).arg("-o").arg(&head);
        train
    };
    succeed(&mut train());
    let new = std::fs::read(&head).unwrap();
    std::fs::write(&head, &old).unwrap();
    let mut kills = 0;
    for call in ["fsync", "rename,renameat,renameat2", "unlink,unlinkat", "write"] {
        for number in 1.. {
            let mut strace = Command::new("strace");
            strace.args(["-f", "-o"]).arg(scene.aside.join("strace"));
            strace.arg(format!("-einject={call}:signal=KILL:when={number}")).arg("--");
            let output = run(&mut wrapped(strace, &train()));
            let found = std::fs::read(&head).unwrap();
            assert!(found == old || found == new, "neither head: {call} {number}");
            let left = tree(&scene.root).into_keys().filter(|path| is_temporary(path)).count();
            assert!(left <= 1, "{left} files are left behind: {call} {number}");
            if output.status.success() || kills >= losses() / 3 {
                break;
            }
            kills += 1;
            std::fs::write(&head, &old).unwrap();
        }
    }
    succeed(&mut train());
    assert!(std::fs::read(&head).unwrap() == new);
    let left: Vec<PathBuf> = tree(&scene.root).into_keys().collect();
    assert_eq!(left, [PathBuf::from("head")]);
    println!("killed {kills} times");
}
