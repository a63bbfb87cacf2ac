//! Flags, settings files and reloads of `edge run`.

use std::path::Path;

use tests::{Device, fail, host, ndjson, run, small_head, succeed};

use super::{Live, edge_run, two_scenes};

#[test]
fn command_line_overrides_the_settings_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("edge.toml");
    let scenes = folder.path().join("scenes");
    std::fs::create_dir(&scenes).unwrap();
    two_scenes(&scenes);
    let write = |text: &str| std::fs::write(&config, text).unwrap();
    let edge = || {
        let mut edge = Device::Native.edge();
        edge.args(["run", "--config"]).arg(&config);
        edge
    };
    write(&format!(
        "head = {:?}\nsource = {:?}\njson = true\nframes = 3\nthreshold = 0.5\n",
        small_head(),
        scenes
    ));
    assert_eq!(ndjson(&succeed(&mut edge())).len(), 3);
    assert_eq!(ndjson(&succeed(edge().args(["--frames", "5"]))).len(), 5);
    write("haed = 1");
    fail(&mut edge(), 2, "no setting \"haed\"");
    write("head = ");
    fail(&mut edge(), 2, "edge.toml");
    std::fs::remove_file(&config).unwrap();
    fail(&mut edge(), 1, "edge.toml");
}

#[test]
fn conflicting_flags_are_refused() {
    for (args, words) in [
        (&["--source", "x", "--raw", "nv12:4x4"][..], "--source -"),
        (&["--source", "-", "--loop"], "--loop"),
        (&["--device", "/dev/video0", "--loop"], "--loop"),
        (&["--source", "-", "--fps", "5"], "--fps"),
        (&["--source", "x", "--http", "0.0.0.0:8080"], "needs an --http-token"),
    ] {
        fail(edge_run().args(args), 2, words);
    }
    let both = run(edge_run().args(["--source", "x", "--device", "/dev/video0"]));
    assert_eq!(both.status.code(), Some(2));
}

/// Counters continue when the source changes: they never decrease.
#[test]
fn metrics_counters_survive_a_change_of_source() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let config = folder.path().join("edge.toml");
    let write = |fps: u32| {
        let text = format!(
            "head = {:?}\nsource = {:?}\nloop = true\nfps = {fps}\n",
            small_head(),
            folder.path()
        );
        std::fs::write(&config, text).unwrap();
    };
    write(1000);
    let mut edge = Device::Native.edge();
    edge.args(["run", "--hold", "1000000", "--config"]).arg(&config);
    let live = Live::start(&mut edge);
    let dropped = "vgg_edge_frames_total{outcome=\"dropped\"}";
    live.until("/metrics", |_, _| live.metric(dropped) >= 20.0);
    let before = live.metric(dropped);
    write(1);
    live.signal("-HUP");
    live.log("reloaded");
    assert!(live.metric(dropped) >= before, "{} after {before}", live.metric(dropped));
    let words = live.stop();
    let last: f64 =
        words.split("unreadable, ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(last >= before, "{words}");
}

#[test]
fn reload_on_hangup_keeps_the_old_head_if_the_new_one_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let head = folder.path().join("head.postcard");
    std::fs::copy(small_head(), &head).unwrap();
    let mut edge = Device::Native.edge();
    // Labels that never change keep the log free for the awaited entries.
    edge.args(["run", "--loop", "--fps", "20", "--hold", "1000000", "--source"])
        .arg(folder.path())
        .arg("--head")
        .arg(&head);
    let live = Live::start(&mut edge);
    let first = live.info();
    std::fs::write(&head, b"VGGEHEADjunk").unwrap();
    live.signal("-HUP");
    assert!(live.log("keeping the old settings").contains("head"));
    assert_eq!(live.info(), first);

    let data = folder.path().join("data");
    tests::data_folder(&data, &[("red", 5), ("green", 5)]);
    succeed(
        host()
            .args(["train", "--size", "32", "--units", "8", "--epochs", "2"])
            .arg(&data)
            .arg("-o")
            .arg(&head),
    );
    live.signal("-HUP");
    live.log("reloaded");
    assert_ne!(live.info(), first);
    let classified = live.metric("vgg_edge_frames_total{outcome=\"classified\"}");
    live.until("/metrics", |_, _| {
        live.metric("vgg_edge_frames_total{outcome=\"classified\"}") > classified
    });
    let words = live.stop();
    assert!(words.contains("keeping the old settings"), "{words}");
}

/// A reload that fails half-way, at the directory for collected frames, keeps the old head, and the
/// page shows it.
#[test]
fn failed_reload_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let (config, data, head) = (
        folder.path().join("edge.toml"),
        folder.path().join("data"),
        folder.path().join("new.postcard"),
    );
    tests::data_folder(&data, &[("red", 5), ("green", 5)]);
    succeed(
        host()
            .args(["train", "--size", "32", "--units", "8", "--epochs", "2"])
            .arg(&data)
            .arg("-o")
            .arg(&head),
    );
    let write = |head: &Path, collect: &Path| {
        std::fs::write(&config, format!("head = {head:?}\ncollect = {collect:?}\n")).unwrap();
    };
    write(small_head(), &folder.path().join("kept"));
    let mut edge = Device::Native.edge();
    edge.args(["run", "--loop", "--fps", "20", "--hold", "1000000", "--source"]);
    edge.arg(folder.path()).arg("--config").arg(&config);
    let live = Live::start(&mut edge);
    let first = live.info();
    write(&head, &config);
    live.signal("-HUP");
    live.log("keeping the old settings");
    assert_eq!(live.info(), first);
    write(&head, &folder.path().join("kept"));
    live.signal("-HUP");
    live.log("reloaded");
    assert_ne!(live.info(), first);
    live.stop();
}
