//! The sandbox of `edge run`.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use tests::{Device, fail, ndjson, run, small_head, succeed};

use super::{Live, answer, edge_run, piped, two_scenes};

/// Returns a number from `/proc/PID/status`.
fn status(path: &Path, name: &str) -> u32 {
    let text = std::fs::read_to_string(path.join("status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn every_thread_is_in_the_reported_sandbox() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let mut edge = edge_run();
    edge.args(["--loop", "--fps", "50", "--threads", "2", "--collect"])
        .arg(folder.path().join("kept"));
    let live = Live::start(edge.arg("--source").arg(folder.path()));
    // The thread that encodes images starts with the first request.
    live.until("/frame.jpg", |status, _| status == 200);
    let (landlock, seccomp) = live.fence();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", live.child.id())).unwrap();
    let mut names = BTreeSet::new();
    for task in tasks.map(|task| task.unwrap().path()) {
        // This process may already have filters, in a container.
        let own = status(Path::new("/proc/self"), "Seccomp_filters");
        assert_eq!(
            status(&task, "Seccomp_filters"),
            if seccomp { own + 2 } else { own },
            "{task:?}"
        );
        assert_eq!(status(&task, "Seccomp") == 2, seccomp || own > 0, "{task:?}");
        assert_eq!(status(&task, "NoNewPrivs") == 1, landlock || seccomp, "{task:?}");
        names.insert(std::fs::read_to_string(task.join("comm")).unwrap().trim().to_owned());
    }
    for name in ["edge", "player", "base-0", "base-1", "collect", "http"] {
        assert!(names.contains(name), "{name} is not in {names:?}");
    }
    // `edge info` reports the same sandbox as a run has.
    let info = succeed(Device::Native.edge().args(["info", "--json"]));
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(live.sandbox.split([':', ';']).next(), info["sandbox"]["state"].as_str());
    assert_eq!(
        (info["sandbox"]["landlock"] != 0, info["sandbox"]["seccomp"] == true),
        (landlock, seccomp)
    );
    live.stop();
}

#[test]
fn sandbox_hides_a_head_in_a_new_directory_until_a_restart() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    two_scenes(folder.path());
    let (config, head) = (folder.path().join("edge.toml"), elsewhere.path().join("head.postcard"));
    std::fs::copy(small_head(), &head).unwrap();
    for sandbox in ["auto", "off"] {
        let write = |head: &Path| {
            std::fs::write(
                &config,
                format!("head = {head:?}\nsandbox = {sandbox:?}\nthreshold = 0.5\n"),
            )
            .unwrap();
        };
        write(small_head());
        let mut edge = Device::Native.edge();
        edge.args(["run", "--loop", "--fps", "20", "--source"])
            .arg(folder.path())
            .arg("--config")
            .arg(&config);
        let live = Live::start(&mut edge);
        let (landlock, _) = live.fence();
        assert!(sandbox == "auto" || !landlock);
        write(&head);
        live.signal("-HUP");
        if landlock {
            let line = live.log("keeping the old settings");
            assert!(
                line.contains("the sandbox limits edge to the directories")
                    && line.contains("restart"),
                "{line}"
            );
            // Paths known at the start can still be read.
            write(small_head());
            live.signal("-HUP");
        }
        live.log("reloaded");
        std::fs::write(&config, format!("head = {head:?}\nsandbox = \"require\"\n")).unwrap();
        live.signal("-HUP");
        live.log("cannot change the sandbox");
        live.stop();
    }
}

#[test]
fn required_sandbox_is_complete_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let info = succeed(Device::Native.edge().args(["info", "--json"]));
    let full = serde_json::from_str::<Value>(&info).unwrap()["sandbox"]["state"] == "full";
    for mut edge in [edge_run(), Device::Native.edge()] {
        if edge.get_args().next().is_none() {
            edge.args(["classify", "--head"]).arg(small_head()).arg(folder.path().join("0.bmp"));
        } else {
            edge.arg("--source").arg(folder.path());
        }
        edge.args(["--sandbox", "require"]);
        if full {
            drop(succeed(&mut edge))
        } else {
            drop(fail(&mut edge, 1, "not available on this system"))
        }
    }
    // qemu-user supports neither landlock nor seccomp, and `edge` reports that.
    let mut edge = Device::Aarch64.edge();
    edge.args(["classify", "--head"]).arg(small_head()).arg(folder.path().join("0.bmp"));
    let words = String::from_utf8(run(&mut edge).stderr).unwrap();
    assert!(words.contains("sandbox none; missing: landlock: "), "{words}");
    fail(edge.args(["--sandbox", "require"]), 1, "not available on this system");
}

/// Unnamed pipes, and links that lead out of the directory.
#[test]
fn sandbox_allows_pipes_and_symbolic_links() {
    let (folder, links) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    two_scenes(folder.path());
    let picture = folder.path().join("0.bmp");
    let classify = |path: &str| {
        let mut edge = Device::Native.edge();
        edge.args(["classify", "--json", "--digest", "--head"]).arg(small_head()).arg(path);
        edge
    };
    let expected = answer(&ndjson(&succeed(&mut classify(picture.to_str().unwrap())))[0]);
    let output = piped(&mut classify("/dev/stdin"), &std::fs::read(&picture).unwrap());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(answer(&ndjson(&String::from_utf8(output.stdout).unwrap())[0]), expected);
    std::os::unix::fs::symlink(&picture, links.path().join("link.bmp")).unwrap();
    let found = succeed(edge_run().args(["--json", "--digest", "--source"]).arg(links.path()));
    assert_eq!(ndjson(&found).iter().map(answer).collect::<Vec<_>>(), [expected]);
}
