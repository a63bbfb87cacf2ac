//! Streams, videos and collected frames of `edge run`.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use image::{DynamicImage, ImageFormat};
use serde_json::Value;
use tests::{Device, encode, host, ndjson, picture, root, run, small_head, succeed};

use super::{Live, answer, edge_run, piped, results, two_scenes};

/// Streams of raw frames, as `rpicam-vid --codec yuv420 -o -` writes them, and of JPEGs: `edge`
/// prints the same results as `host` for the same bytes.
#[test]
fn streams_on_stdin_give_the_results_of_host() {
    let folder = tempfile::tempdir().unwrap();
    let mut stream = Vec::new();
    let mut jpegs = Vec::new();
    let (mut raw_files, mut jpeg_files) = (Vec::new(), Vec::new());
    let fixtures = root().join("tests/fixtures/jpeg");
    let mut fixtures: Vec<_> =
        std::fs::read_dir(fixtures).unwrap().map(|e| e.unwrap().path()).collect();
    // One fixture has a single pixel, too few to crop.
    fixtures.retain(|path| {
        path.extension().is_some_and(|e| e == "jpg") && !path.ends_with("one-pixel.jpg")
    });
    fixtures.sort();
    for number in 0..6u32 {
        let frame: Vec<u8> =
            picture(96, 40, number).into_raw().into_iter().take(64 * 48 * 3 / 2).collect();
        stream.extend_from_slice(&frame);
        let path = folder.path().join(format!("{number}.yuv"));
        std::fs::write(&path, frame).unwrap();
        raw_files.push(path);
        let jpeg = &fixtures[number as usize * 3];
        jpegs.extend(std::fs::read(jpeg).unwrap());
        jpeg_files.push(jpeg.clone());
    }
    for (layout, stream, files) in
        [("yuv420:64x48", &stream, &raw_files), ("mjpeg", &jpegs, &jpeg_files)]
    {
        for view in [&[][..], &["--fit", "contain"], &["--crop", "3,5,21,17", "--fit", "cover"]] {
            let mut host = host();
            host.args(["classify", "--json", "--digest", "--head"]).arg(small_head()).args(view);
            if layout != "mjpeg" {
                host.args(["--raw", layout]);
            }
            let expected: Vec<String> =
                ndjson(&succeed(host.args(files))).iter().map(answer).collect();
            assert_eq!(
                expected.iter().collect::<BTreeSet<_>>().len(),
                files.len(),
                "the images differ"
            );
            let mut edge = edge_run();
            edge.args(["--source", "-", "--raw", layout, "--every-frame", "--json", "--digest"])
                .args(view);
            let output = piped(&mut edge, stream);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let found: Vec<String> =
                results(&String::from_utf8(output.stdout).unwrap()).iter().map(answer).collect();
            assert_eq!(found, expected, "{layout} {view:?}");
        }
    }
    let mut edge = edge_run();
    let cut = piped(
        edge.args(["--source", "-", "--raw", "yuv420:64x48", "--every-frame"]),
        &stream[..6000],
    );
    assert_eq!(cut.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&cut.stderr).contains("ends within frame 1"));
}

#[test]
fn label_events_and_the_motion_gate() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let collected = folder.path().join("collected");
    let with = |args: &[&str]| {
        let mut edge = edge_run();
        edge.args(["--json", "--source"]).arg(folder.path()).args(args);
        ndjson(&succeed(&mut edge))
    };
    let plain = with(&[]);
    let labels: Vec<&str> = plain.iter().map(|line| line["label"].as_str().unwrap()).collect();
    assert_eq!(
        labels.iter().collect::<BTreeSet<_>>().len(),
        2,
        "the head distinguishes the scenes: {labels:?}"
    );
    let changes = with(&["--events"]);
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!((&changes[0]["from"], &changes[0]["to"]), (&plain[0]["label"], &plain[7]["label"]));
    assert_eq!(changes[0]["frame"], 4);
    assert_eq!(with(&["--events", "--hold", "3"])[0]["frame"], 6);
    assert!(with(&["--events", "--hold", "5"]).is_empty());
    assert!(
        with(&["--threshold", "1"])
            .iter()
            .all(|line| line["label"] == "unknown" || line["score"] == 1.0)
    );
    // While nothing moves, the decision converges to the last result.
    for settings in
        [&["--hold", "3"][..], &["--smooth", "0.5"], &["--smooth", "0.5", "--hold", "2"]]
    {
        let changes = |gate: &[&str]| {
            let events = with(&[&["--events"][..], settings, gate].concat());
            events
                .iter()
                .map(|event| format!("{} {}", event["frame"], event["to"]))
                .collect::<Vec<_>>()
        };
        assert_eq!(changes(&["--on-motion"]), changes(&[]), "{settings:?}");
        assert_eq!(changes(&[]).len(), 1, "{settings:?}");
    }
    let still: Vec<bool> =
        with(&["--on-motion"]).iter().map(|line| line["still"] == true).collect();
    assert_eq!(still, [false, true, true, true, false, true, true, true]);
    with(&["--collect", collected.to_str().unwrap(), "--collect-below", "0"]);
    let lines = ndjson(&std::fs::read_to_string(collected.join("frames.ndjson")).unwrap());
    assert_eq!(lines.len(), 1, "the frame that changed the label");
    assert_eq!(lines[0]["reason"], "changed");
    let kept = collected.join(lines[0]["file"].as_str().unwrap());
    succeed(host().args(["classify", "--head"]).arg(small_head()).arg(kept));
}

/// The directory of collected frames stays within its size limit, `edge` reports once that it is
/// full, and a live source does not fill it with similar frames.
#[test]
fn collected_frames_are_bounded_in_bytes_and_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let scenes = folder.path().join("scenes");
    std::fs::create_dir(&scenes).unwrap();
    for number in 0..8 {
        let scene = DynamicImage::ImageRgb8(picture(640, 480, number));
        std::fs::write(scenes.join(format!("{number}.bmp")), encode(&scene, ImageFormat::Bmp))
            .unwrap();
    }
    let collect = |name: &str, args: &[&str]| {
        let kept = folder.path().join(name);
        let mut edge = edge_run();
        edge.arg("--source")
            .arg(&scenes)
            .arg("--collect")
            .arg(&kept)
            .args(["--collect-below", "1"])
            .args(args);
        let output = run(&mut edge);
        assert!(output.status.success());
        let lines = ndjson(&std::fs::read_to_string(kept.join("frames.ndjson")).unwrap());
        let bytes = |line: &Value| {
            std::fs::metadata(kept.join(line["file"].as_str().unwrap())).unwrap().len()
        };
        (
            lines.len(),
            lines.iter().map(bytes).sum::<u64>(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (count, bytes, words) = collect("all", &[]);
    assert_eq!(count, 8, "each image of a directory: {words}");
    assert!(bytes > 1_000_000 && !words.contains("full ("), "{bytes}: {words}");
    let (count, bytes, words) = collect("few", &["--collect-megabytes", "1"]);
    assert!((1..8).contains(&count) && bytes <= 1_000_000, "{count} images, {bytes} bytes");
    assert_eq!(words.matches("full (").count(), 1, "{words}");
    let (count, ..) =
        collect("live", &["--fps", "100", "--loop", "--frames", "40", "--collect-every", "3600"]);
    assert!(
        (1..=2).contains(&count),
        "one uncertain frame, and maybe one that changed the label: {count}"
    );
}

/// Stdin can be read only once: a reload may change only settings that do not affect it.
#[test]
fn stream_on_stdin_survives_a_reload() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("edge.toml");
    let write =
        |more: &str| std::fs::write(&config, format!("head = {:?}\n{more}", small_head())).unwrap();
    write("");
    let mut edge = Device::Native.edge();
    edge.args(["run", "--source", "-", "--hold", "1000000", "--config"])
        .arg(&config)
        .stdin(Stdio::piped());
    let mut live = Live::start(&mut edge);
    let mut stdin = live.child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let frame = [&b"FRAME\n"[..], &[90; 48 * 32 * 3 / 2]].concat();
        let mut written = stdin.write_all(b"YUV4MPEG2 W48 H32 F25:1 C420jpeg\n");
        while written.is_ok() {
            written = stdin.write_all(&frame);
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let classified = "vgg_edge_frames_total{outcome=\"classified\"}";
    let goes_on = |live: &Live| {
        let before = live.metric(classified);
        live.until("/metrics", |_, _| live.metric(classified) > before + 20.0);
    };
    goes_on(&live);
    write("color = \"bt709\"\n");
    live.signal("-HUP");
    live.log("cannot change how stdin is decoded");
    goes_on(&live);
    // Camera settings, which do not affect stdin. The old names of these keys still work.
    write("stall = 9\nfrozen = 5\ncapture = \"320x240\"\nthreshold = 0.4\n");
    live.signal("-HUP");
    live.log("reloaded");
    goes_on(&live);
    let words = live.stop();
    assert!(words.contains(" 0 unreadable"), "{words}");
    writer.join().unwrap();
}

#[test]
fn color_of_a_video_can_be_set() {
    let folder = tempfile::tempdir().unwrap();
    let video = folder.path().join("a.y4m");
    let frame: Vec<u8> = picture(48, 32, 3).into_raw().into_iter().take(48 * 32 * 3 / 2).collect();
    let stream = [&b"YUV4MPEG2 W48 H32 F25:1 C420jpeg\nFRAME\n"[..], &frame].concat();
    std::fs::write(&video, &stream).unwrap();
    let scores = |args: &[&str]| {
        let mut edge = edge_run();
        let lines =
            ndjson(&succeed(edge.args(["--json", "--digest", "--source"]).arg(&video).args(args)));
        answer(&lines[0])
    };
    let raw = |color: &str| {
        let mut edge = edge_run();
        edge.args([
            "--json",
            "--digest",
            "--every-frame",
            "--source",
            "-",
            "--raw",
            "yuv420:48x32",
            "--color",
            color,
        ]);
        answer(&results(&String::from_utf8(piped(&mut edge, &frame).stdout).unwrap())[0])
    };
    for color in ["bt709", "bt601-full"] {
        assert_eq!(scores(&["--color", color]), raw(color), "{color}");
    }
    assert_ne!(scores(&[]), scores(&["--color", "bt709"]));
}

/// With a camera at 30 frames per second and a far slower classifier, the classified frame is
/// always recent.
#[test]
fn slow_classifier_takes_the_newest_frame() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let head = folder.path().join("slow.postcard");
    let data = folder.path().join("data");
    tests::data_folder(&data, &[("red", 3), ("green", 3)]);
    succeed(
        host()
            .args(["train", "--size", "224", "--units", "4", "--epochs", "1"])
            .arg(&data)
            .arg("-o")
            .arg(&head),
    );
    let mut edge = Device::Native.edge();
    edge.args([
        "run", "--json", "--loop", "--fps", "30", "--frames", "6", "--kernel", "portable", "--head",
    ])
    .arg(&head);
    let output = run(edge.arg("--source").arg(folder.path()));
    let lines = results(&String::from_utf8(output.stdout).unwrap());
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(lines.len(), 6, "{words}");
    // The age of a frame at the start of inference is its waiting time: below one frame's 33 ms on
    // an idle machine. A busy machine adds to that, but a frame that is one behind the newest would
    // always wait for almost a whole inference, and each queued frame for another.
    let (mut waited, mut took) = (Vec::new(), 0.0);
    for line in &lines[1..] {
        let (age, latency) =
            (line["age_ms"].as_f64().unwrap(), line["latency_ms"].as_f64().unwrap());
        waited.push(age - latency);
        took += latency;
    }
    waited.sort_by(f64::total_cmp);
    let dropped: f64 =
        words.split("unreadable, ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(dropped >= took / 1000.0 * 30.0 * 0.5, "{dropped} dropped in {took} ms");
    let inference = took / waited.len() as f64;
    assert!(waited[waited.len() / 2] < inference / 3.0, "{waited:?} of {inference}");
}
