//! `edge run --device` on an emulated machine with virtual cameras: exact results, and camera
//! failures.

use std::collections::BTreeSet;
use std::path::PathBuf;

use image::RgbImage;
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use serde_json::{Value, json};
use tests::machine::{Board, Machine, Program};
use tests::{Device, base, host, ndjson, picture, small_head, succeed};

const SIZE: &str = "640x480";
/// vivid: its camera, and the output node that feeds the HDMI input of the camera.
const CAMERA: &str = "/dev/video0";
const CABLE: &str = "/dev/video1";
/// v4l2loopback: a camera while a program writes to it.
const LOOPBACK: &str = "/dev/video20";

/// Files for a machine, in a temporary directory here.
struct Files {
    folder: tempfile::TempDir,
    list: Vec<(String, PathBuf)>,
}

/// Images on a machine in the format of a camera, and the results of `host` for them.
struct Pictures {
    format: &'static str,
    size: &'static str,
    files: Vec<String>,
    expected: Vec<Value>,
}

impl Files {
    /// Creates the files that `edge run` needs.
    fn new() -> Self {
        let list = vec![
            ("/edge".to_owned(), Device::Aarch64.edge_path()),
            ("/base.onnx".to_owned(), base()),
            ("/head.postcard".to_owned(), small_head().to_owned()),
        ];
        Self { folder: tempfile::tempdir().unwrap(), list }
    }

    fn add(&mut self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        self.list.push((format!("/{name}"), path.clone()));
        path
    }

    fn pictures(&mut self, format: &'static str, size: &'static str, count: u32) -> Pictures {
        let (width, height) = size.split_once('x').unwrap();
        let (width, height) = (width.parse().unwrap(), height.parse().unwrap());
        let names: Vec<String> =
            (0..count).map(|number| format!("{size}-{number}.{}", extension(format))).collect();
        let paths: Vec<PathBuf> = names
            .iter()
            .enumerate()
            .map(|(number, name)| {
                self.add(name, &frame(format, &picture(width, height, 1000 + number as u32)))
            })
            .collect();
        let expected = expected(format, size, &paths);
        let distinct: BTreeSet<String> = expected.iter().map(Value::to_string).collect();
        assert_eq!(distinct.len(), count as usize, "images with equal features prove little");
        Pictures {
            format,
            size,
            files: names.iter().map(|name| format!("/{name}")).collect(),
            expected,
        }
    }
}

fn extension(format: &str) -> String {
    // `host` also recognizes a JPEG file by its name.
    if format == "MJPG" { "jpg".to_owned() } else { format.to_lowercase() }
}

/// Converts an image to a camera frame. The exact color conversion does not matter here: both
/// programs read the same samples.
fn frame(format: &str, picture: &RgbImage) -> Vec<u8> {
    let (width, height) = picture.dimensions();
    let ycc = |x: u32, y: u32| {
        let [r, g, b] = picture.get_pixel(x, y).0.map(i32::from);
        let luma = (77 * r + 150 * g + 29 * b) >> 8;
        let chroma = |part: i32| (128 + (part - luma) / 2).clamp(0, 255) as u8;
        [luma as u8, chroma(b), chroma(r)]
    };
    let rows = |step: usize| (0..height).step_by(step);
    let columns = |step: usize| (0..width).step_by(step);
    let luma = || rows(1).flat_map(|y| columns(1).map(move |x| ycc(x, y)[0]));
    match format {
        "MJPG" => {
            let mut bytes = Vec::new();
            let mut encoder = Encoder::new(&mut bytes, 85);
            encoder.set_sampling_factor(SamplingFactor::R_4_2_2);
            encoder.encode(picture, width as u16, height as u16, ColorType::Rgb).unwrap();
            bytes
        }
        "RGB3" => picture.as_raw().clone(),
        "GREY" => luma().collect(),
        "YUYV" => rows(1)
            .flat_map(|y| columns(2).map(move |x| (x, y)))
            .flat_map(|(x, y)| [ycc(x, y)[0], ycc(x, y)[1], ycc(x + 1, y)[0], ycc(x, y)[2]])
            .collect(),
        "NV12" => luma()
            .chain(
                rows(2)
                    .flat_map(|y| columns(2).map(move |x| (x, y)))
                    .flat_map(|(x, y)| [ycc(x, y)[1], ycc(x, y)[2]]),
            )
            .collect(),
        _ => panic!("frames in {format} are not supported"),
    }
}

/// Returns the fields that must be equal to the bit.
fn answer(line: &Value) -> Value {
    assert_eq!(line["features_sha256"].as_str().map(str::len), Some(64), "{line}");
    json!([line["features_sha256"], line["label"], line["score"], line["scores"]])
}

/// Returns the results of `host` for frames in a camera's format.
fn expected(format: &str, size: &str, files: &[PathBuf]) -> Vec<Value> {
    let mut command = host();
    command.args(["classify", "--json", "--digest", "--head"]).arg(small_head());
    if format != "MJPG" {
        command.arg("--raw").arg(format!("{format}:{size}"));
    }
    let lines = ndjson(&succeed(command.args(files)));
    assert_eq!(lines.len(), files.len());
    lines.iter().map(answer).collect()
}

/// `edge run` on the machine.
struct Edge {
    program: Program,
    /// Reported states that no test has waited for.
    states: Vec<Value>,
}

impl Edge {
    fn run(machine: &mut Machine, device: &str, options: &[&str]) -> Self {
        let fixed = [
            "/edge",
            "run",
            "--head",
            "/head.postcard",
            "--base",
            "/base.onnx",
            "--json",
            "--digest",
            "--frozen",
            "0",
            "--device",
        ];
        let program = machine.spawn(&[&fixed, &[device][..], options].concat());
        Self { program, states: Vec::new() }
    }

    /// Returns the next result.
    fn frame(&mut self, machine: &mut Machine) -> Value {
        loop {
            let line = machine.result(self.program);
            if line["event"].is_null() {
                return answer(&line);
            }
            self.states.push(line);
        }
    }

    /// Waits for a frame captured after this call. Of the next frames, one may already be in work
    /// and one may wait; the third is new.
    fn fresh(&mut self, machine: &mut Machine, mut check: impl FnMut(&Value)) {
        for line in machine.pending(self.program) {
            if line["event"].is_null() { check(&answer(&line)) } else { self.states.push(line) }
        }
        (0..3).for_each(|_| check(&self.frame(machine)));
    }

    /// Waits until a state is reported; returns its message. Results before it must pass `check`.
    fn state(
        &mut self,
        machine: &mut Machine,
        state: &str,
        mut check: impl FnMut(&Value),
    ) -> String {
        loop {
            let line = if self.states.is_empty() {
                machine.result(self.program)
            } else {
                self.states.remove(0)
            };
            if line["event"].is_null() {
                check(&answer(&line));
            } else if line["state"] == state {
                return line["detail"].as_str().unwrap_or_default().to_owned();
            }
        }
    }

    /// Stops it; returns its stderr.
    fn words(self, machine: &mut Machine) -> Vec<String> {
        machine.terminate(self.program).1
    }

    /// Stops it; the last results must pass `check`. Returns the last line of stderr.
    fn end(self, machine: &mut Machine, mut check: impl FnMut(&Value)) -> String {
        let (results, errors) = machine.terminate(self.program);
        for line in results.iter().filter(|line| line["event"].is_null()) {
            check(&answer(line));
        }
        errors.last().cloned().unwrap_or_default()
    }
}

/// Connects vivid's output to its camera, in the size and rate 640x480p60. A loop that scales would
/// crash the kernel.
fn plug_cable(machine: &mut Machine) {
    machine.call(&["input", CAMERA, "1"]);
    machine.call(&["timings", CAMERA]);
    machine.call(&["timings", CABLE]);
    // Linux 6.1 has the first control, 6.12 the second.
    if machine.attempt(&["control", CAMERA, "Loop Video", "1"]).is_err() {
        machine.control(CAMERA, "HDMI 000-0 Is Connected To", 2);
    }
    machine.control(CAMERA, "OSD Text Mode", 2);
    // 24 frames per second are enough; copying is expensive on an emulated machine.
    machine.control(CAMERA, "Percentage of Dropped Buffers", 60);
}

/// Shows images one after the other; `edge` must report each exactly, in the order in which they
/// are shown, and nothing else.
///
/// The next image is shown with each result, while `edge` processes the one before. If `edge` was
/// too slow to see an image, it is shown again.
fn check_pictures(machine: &mut Machine, source: &str, camera: &str, pictures: &Pictures) {
    let Pictures { format, size, files, expected } = pictures;
    let feeder = machine.feed(source, format, size, files);
    let mut edge = Edge::run(machine, camera, &["--format", format, "--capture", SIZE]);
    let detail =
        edge.state(machine, "streaming", |found| assert_eq!(*found, expected[0], "{format}"));
    assert!(detail.contains(format) && detail.contains(size), "{detail}");
    // The images shown so far, and the position of `edge` among them.
    let (mut shown, mut at) = (vec![0], 0);
    let mut unseen: BTreeSet<usize> = (0..expected.len()).collect();
    let mut check = |shown: &[usize], found: &Value| {
        let ahead = shown[at..].iter().position(|&index| expected[index] == *found);
        at += ahead.unwrap_or_else(|| {
            panic!("{format}, after {:?}: {found} is none of {expected:#?}", &shown[at..])
        });
        shown[at]
    };
    loop {
        let found = edge.frame(machine);
        unseen.remove(&check(&shown, &found));
        let last = shown[shown.len() - 1];
        let Some(&next) = unseen.range(last + 1..).next().or(unseen.first()) else { break };
        if next != last {
            shown.push(next);
            machine.show(&feeder, next);
        }
    }
    let words = edge.end(machine, |found| _ = check(&shown, found));
    assert_eq!(count(&words, "corrupt"), 0, "{words}");
    machine.end(feeder);
}

/// Returns a count from the last line of `edge run`, such as "12 frames, 3 corrupt".
fn count(words: &str, what: &str) -> u32 {
    let before = words.split(&format!(" {what}")).next().unwrap();
    before
        .rsplit(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap_or_else(|_| panic!("no count of {what} in {words:?}"))
}

#[test]
fn camera_formats_give_the_results_of_host() {
    let mut files = Files::new();
    let raw = ["YUYV", "NV12", "RGB3", "GREY"].map(|format| files.pictures(format, SIZE, 20));
    let jpeg = files.pictures("MJPG", SIZE, 20);
    let mut machine = Machine::boot(Board::Virt, &files.list);
    plug_cable(&mut machine);
    for pictures in &raw {
        check_pictures(&mut machine, CABLE, CAMERA, pictures);
    }
    check_pictures(&mut machine, LOOPBACK, LOOPBACK, &jpeg);
    machine.power_off();
}

#[test]
fn a_raspberry_pi_3_gives_the_bits_of_the_host() {
    let mut files = Files::new();
    let pictures = files.pictures("YUYV", SIZE, 4);
    let mut machine = Machine::boot(Board::Pi3, &files.list);
    plug_cable(&mut machine);
    check_pictures(&mut machine, CABLE, CAMERA, &pictures);
    machine.power_off();
}

/// How often the driver is unbound and bound: 20 times, or `VGG_EDGE_TEST_REBINDS`.
fn rebinds() -> u32 {
    std::env::var("VGG_EDGE_TEST_REBINDS").map_or(20, |count| count.parse().unwrap())
}

/// A camera with every failure that vivid can simulate. Its image never changes, so each result is
/// known.
#[test]
fn camera_failures_are_survived() {
    const ERROR: &str = "Inject V4L2_BUF_FLAG_ERROR";
    let options = ["--format", "YUYV", "--capture", SIZE, "--fps", "25", "--stall", "1"];
    let files = Files::new();
    let mut machine = Machine::boot(Board::Virt, &files.list);
    let machine = &mut machine;
    machine.control(CAMERA, "OSD Text Mode", 2);
    check_devices(machine);
    let mut edge = Edge::run(machine, CAMERA, &options);
    edge.state(machine, "streaming", |_| panic!("a frame before the stream"));
    let picture = edge.frame(machine);
    let same = |found: &Value| assert_eq!(*found, picture);

    // Unplugged and plugged again.
    for _ in 0..3 {
        machine.control(CAMERA, "Disconnect", 1);
        edge.state(machine, "lost", same);
        edge.state(machine, "streaming", same);
        same(&edge.frame(machine));
    }
    // Frames stop, then resume.
    machine.control(CAMERA, "Percentage of Dropped Buffers", 100);
    edge.state(machine, "stalled", same);
    machine.control(CAMERA, "Percentage of Dropped Buffers", 50);
    same(&edge.frame(machine));
    machine.control(CAMERA, "Percentage of Dropped Buffers", 0);
    same(&edge.frame(machine));
    // Damaged frames, each followed by an intact one: two commands in a row would count as one for
    // a camera that is waiting for its next frame.
    for _ in 0..5 {
        machine.control(CAMERA, ERROR, 1);
        edge.fresh(machine, same);
    }
    // The stream breaks, and so does the attempt to restart it; meanwhile another program changes
    // the format.
    for error in ["VIDIOC_REQBUFS", "VIDIOC_QBUF", "VIDIOC_STREAMON"] {
        machine.control(CAMERA, &format!("Inject {error} Error"), 1);
        // QBUF may fail, and the stream with it, before the break: then there is nothing left to
        // break.
        let _ = machine.attempt(&["control", CAMERA, "Inject Fatal Streaming Error", "1"]);
        edge.state(machine, "lost", same);
        let _ = machine.attempt(&["format", CAMERA, "NV12", "1280x720"]);
        edge.state(machine, "streaming", same);
        same(&edge.frame(machine));
    }
    let words = edge.end(machine, same);
    assert_eq!(count(&words, "corrupt"), 5, "{words}");

    // Settings left by others do not affect the next run.
    assert_eq!(machine.call(&["format", CAMERA, "NV12", "1280x720"]), "NV12 1280x720");
    let mut edge = Edge::run(machine, CAMERA, &options);
    same(&edge.frame(machine));
    edge.end(machine, same);

    // In the sandbox, with everything that it must allow: more threads, the page, a writable
    // directory.
    let token = "0123456789abcdef";
    let all = [
        "--threads",
        "2",
        "--http",
        "0.0.0.0:8080",
        "--http-token",
        token,
        "--collect",
        "/kept",
        "--collect-below",
        "1",
    ];
    let mut edge = Edge::run(machine, CAMERA, &[&options[..], &all].concat());
    same(&edge.frame(machine));
    // Debian's kernel supports both; its landlock may be older than the version `edge` asks for,
    // which `edge` then reports.
    assert_eq!(machine.fence(edge.program), "NoNewPrivs: 1 Seccomp: 2");
    same(&edge.frame(machine));
    let words = edge.words(machine);
    let fence = words.iter().find(|line| line.contains("sandbox")).unwrap();
    assert!(fence.contains(": landlock ") && fence.contains(", seccomp"), "{fence}");
    assert!(!words.iter().any(|line| line.contains("cannot")), "{words:?}");

    // An image that never changes is treated as a frozen camera.
    let mut edge = Edge::run(machine, CAMERA, &[&options[..], &["--frozen", "1"]].concat());
    for seconds in ["1", "2"] {
        let words = edge.state(machine, "frozen", same);
        assert_eq!(words, format!("the same image, byte for byte, for {seconds} s"));
        edge.state(machine, "streaming", same);
    }
    edge.end(machine, same);
    let mut edge = Edge::run(machine, CAMERA, &options);
    same(&edge.frame(machine));

    // The driver is unbound and bound, which resets the text in its image.
    let mut before = None;
    for round in 0..rebinds() {
        machine.call(&["write", "/sys/bus/platform/drivers/vivid/unbind", "vivid.0"]);
        edge.state(machine, "lost", |_| ());
        machine.call(&["write", "/sys/bus/platform/drivers/vivid/bind", "vivid.0"]);
        edge.state(machine, "streaming", |_| ());
        edge.frame(machine);
        if round == 2 {
            before = Some(machine.usage(edge.program));
        }
    }
    let (before, after) = (before.unwrap(), machine.usage(edge.program));
    assert_eq!(before.descriptors, after.descriptors);
    // A leaked set of buffers would be 2.4 MB.
    assert!(after.resident < before.resident + 2048, "{before:?}, then {after:?}");

    // It returns under another node, since a program holds the old one open.
    let held = machine.hold(CAMERA);
    machine.call(&["write", "/sys/bus/platform/drivers/vivid/unbind", "vivid.0"]);
    edge.state(machine, "lost", |_| ());
    machine.call(&["write", "/sys/bus/platform/drivers/vivid/bind", "vivid.0"]);
    let words = edge.state(machine, "streaming", |_| ());
    let (_, node) =
        words.split_once("now at ").unwrap_or_else(|| panic!("no new node in {words:?}"));
    assert!(node.starts_with("/dev/video") && node != CAMERA, "{words}");
    edge.frame(machine);
    machine.release(held);
    edge.end(machine, |_| ());
}

/// `edge devices` lists the camera with its formats; nodes that do not capture are omitted.
fn check_devices(machine: &mut Machine) {
    let program = machine.spawn(&["/edge", "devices", "--json"]);
    let (devices, errors) = machine.finish(program);
    let nodes: Vec<&str> =
        devices.iter().map(|device| device["device"].as_str().unwrap()).collect();
    assert!(nodes.contains(&CAMERA) && !nodes.contains(&CABLE), "{nodes:?}, {errors:?}");
    let camera = devices.iter().find(|device| device["device"] == CAMERA).unwrap();
    assert_eq!((&camera["driver"], &camera["card"]), (&json!("vivid"), &json!("vivid")));
    assert!(camera["bus"].as_str().unwrap().contains("vivid"), "{camera}");
    let formats = camera["formats"].as_array().unwrap();
    let yuyv = formats.iter().find(|format| format["fourcc"] == "YUYV").unwrap();
    assert_eq!(yuyv["understood"], true);
    let size = yuyv["sizes"].as_array().unwrap().iter().find(|size| size["size"] == SIZE).unwrap();
    assert!(size["fps"].as_array().unwrap().contains(&json!(25.0)), "{size}");
    assert!(
        formats.iter().any(|format| format["understood"] == false),
        "it has formats that edge does not read"
    );
}

/// A camera that sends frames that are not images, and JPEG without the standard tables.
#[test]
fn damaged_jpegs_are_counted_and_skipped() {
    let mut files = Files::new();
    let jpeg = files.pictures("MJPG", SIZE, 2);
    let whole = std::fs::read(files.folder.path().join("640x480-1.jpg")).unwrap();
    files.add("half.jpg", &whole[..whole.len() / 2]);
    files.add("noise.jpg", picture(40, 40, 1).as_raw());
    files.add("bare.jpg", &without_tables(&whole));
    let mut machine = Machine::boot(Board::Virt, &files.list);
    let machine = &mut machine;
    let options = ["--capture", SIZE, "--stall", "1", "--format"];

    let feeder = machine.feed(
        LOOPBACK,
        "MJPG",
        SIZE,
        &["/640x480-0.jpg", "/half.jpg", "/noise.jpg", "/bare.jpg"].map(str::to_owned),
    );
    let mut edge = Edge::run(machine, LOOPBACK, &[&options[..], &["MJPG"]].concat());
    assert_eq!(edge.frame(machine), jpeg.expected[0]);
    // The node delivers frames, but none can be decoded: that is not a stream.
    machine.show(&feeder, 1);
    let whole = |found: &Value| assert!(jpeg.expected.contains(found), "{found}");
    let words = edge.state(machine, "stalled", whole);
    assert_eq!(words, "no decodable frame for 1 s");
    // It is opened again, which does not make it a stream; nor is it reported repeatedly.
    machine.play(&feeder, 100);
    machine.show(&feeder, 2);
    machine.play(&feeder, 50);
    let told: Vec<Value> =
        machine.pending(edge.program).into_iter().filter(|line| !line["event"].is_null()).collect();
    assert!(told.len() <= 1 && told.iter().all(|line| line["state"] == "stalled"), "{told:?}");
    machine.show(&feeder, 3);
    edge.state(machine, "streaming", whole);
    while edge.frame(machine) != jpeg.expected[1] {}
    let words = edge.end(machine, whole);
    // The decoder detects half a JPEG file; noise is detected before decoding.
    assert!(count(&words, "corrupt") > 0 && count(&words, "unreadable") > 0, "{words}");
    machine.end(feeder);
}

/// Returns a JPEG file without Huffman tables, as some cameras send it: the mark `AVI1` implies the
/// standard tables.
fn without_tables(jpeg: &[u8]) -> Vec<u8> {
    let mut bytes = [&jpeg[..2], b"\xff\xe0\x00\x10AVI1\0\0\0\0\0\0\0\0\0\0"].concat();
    let mut at = 2;
    loop {
        let (marker, length) =
            (jpeg[at + 1], usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]])));
        match marker {
            // Start of scan: the rest is image data.
            0xda => {
                bytes.extend(&jpeg[at..]);
                return bytes;
            }
            // Huffman tables, and the mark of JFIF.
            0xc4 | 0xe0 => (),
            _ => bytes.extend(&jpeg[at..at + 2 + length]),
        }
        at += 2 + length;
    }
}
