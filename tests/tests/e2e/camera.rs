//! `edge run --device` on an emulated machine with virtual cameras: the bits of the pictures, and
//! what cameras do wrong.

use std::collections::BTreeSet;
use std::path::PathBuf;

use image::RgbImage;
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use serde_json::{Value, json};
use tests::machine::{Board, Machine, Program};
use tests::{Device, base, host, ndjson, picture, small_head, succeed};

const SIZE: &str = "640x480";
/// vivid: its camera, and the node whose pictures the HDMI input of the camera can show.
const CAMERA: &str = "/dev/video0";
const CABLE: &str = "/dev/video1";
/// v4l2loopback: a camera while somebody writes.
const LOOPBACK: &str = "/dev/video20";

/// Files for a machine, made in a folder here.
struct Files {
    folder: tempfile::TempDir,
    list: Vec<(String, PathBuf)>,
}

/// Pictures on a machine, in the format of a camera, and what `host` says of them.
struct Pictures {
    format: &'static str,
    size: &'static str,
    files: Vec<String>,
    expected: Vec<Value>,
}

impl Files {
    /// What `edge run` needs.
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
        assert_eq!(
            distinct.len(),
            count as usize,
            "pictures that give the same features prove little"
        );
        Pictures {
            format,
            size,
            files: names.iter().map(|name| format!("/{name}")).collect(),
            expected,
        }
    }
}

fn extension(format: &str) -> String {
    // `host` knows a JPEG file by its name, too.
    if format == "MJPG" { "jpg".to_owned() } else { format.to_lowercase() }
}

/// A picture as a camera gives it. How exactly colors become samples does not matter here: both
/// sides read the same ones.
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
        _ => panic!("no pictures are made in {format}"),
    }
}

/// What must be equal to the bit.
fn answer(line: &Value) -> Value {
    assert_eq!(line["features_sha256"].as_str().map(str::len), Some(64), "{line}");
    json!([line["features_sha256"], line["label"], line["score"], line["scores"]])
}

/// What `host` says of frames in a camera's format.
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
    /// States that it told and nobody waited for.
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

    /// The next picture it classifies.
    fn frame(&mut self, machine: &mut Machine) -> Value {
        loop {
            let line = machine.result(self.program);
            if line["event"].is_null() {
                return answer(&line);
            }
            self.states.push(line);
        }
    }

    /// A picture that was taken after now. Of those that come from now on, one may be looked at
    /// already and one may wait; the third is new.
    fn fresh(&mut self, machine: &mut Machine, mut check: impl FnMut(&Value)) {
        for line in machine.pending(self.program) {
            if line["event"].is_null() { check(&answer(&line)) } else { self.states.push(line) }
        }
        (0..3).for_each(|_| check(&self.frame(machine)));
    }

    /// Waits until it tells a state; gives the state's words. Pictures before it must be as they
    /// should.
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

    /// Ends it, and gives all that it said on stderr.
    fn words(self, machine: &mut Machine) -> Vec<String> {
        machine.terminate(self.program).1
    }

    /// Ends it; what it classified last must be as it should. Gives its last words.
    fn end(self, machine: &mut Machine, mut check: impl FnMut(&Value)) -> String {
        let (results, errors) = machine.terminate(self.program);
        for line in results.iter().filter(|line| line["event"].is_null()) {
            check(&answer(line));
        }
        errors.last().cloned().unwrap_or_default()
    }
}

/// Leads vivid's output to its camera, in the size and rate 640x480p60. A loop that scales would
/// crash the kernel.
fn plug_cable(machine: &mut Machine) {
    machine.call(&["input", CAMERA, "1"]);
    machine.call(&["timings", CAMERA]);
    machine.call(&["timings", CABLE]);
    // Linux 6.1 has the first, 6.12 the second.
    if machine.attempt(&["control", CAMERA, "Loop Video", "1"]).is_err() {
        machine.control(CAMERA, "HDMI 000-0 Is Connected To", 2);
    }
    machine.control(CAMERA, "OSD Text Mode", 2);
    // 24 frames a second are enough; copying costs an emulated machine much.
    machine.control(CAMERA, "Percentage of Dropped Buffers", 60);
}

/// Shows pictures one after the other; edge must see each, in the order in which they are shown, to
/// the bit, and nothing else.
///
/// The next picture is shown with each result that comes, while edge looks at the one before.
/// Should edge have been too slow to see one, it is shown again.
fn check_pictures(machine: &mut Machine, source: &str, camera: &str, pictures: &Pictures) {
    let Pictures { format, size, files, expected } = pictures;
    let feeder = machine.feed(source, format, size, files);
    let mut edge = Edge::run(machine, camera, &["--format", format, "--capture", SIZE]);
    let detail =
        edge.state(machine, "streaming", |found| assert_eq!(*found, expected[0], "{format}"));
    assert!(detail.contains(format) && detail.contains(size), "{detail}");
    // What has been shown, and where in it edge is.
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

/// A figure in the last words of `edge run`, such as "12 frames, 3 corrupt".
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
fn pictures_of_every_format_give_the_bits_of_the_host() {
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

/// How often the driver goes and comes back: 20 times, or as `VGG_EDGE_TEST_REBINDS` says.
fn rebinds() -> u32 {
    std::env::var("VGG_EDGE_TEST_REBINDS").map_or(20, |count| count.parse().unwrap())
}

/// A camera that fails in every way which vivid can imitate. Its picture never changes, so each
/// result is known.
#[test]
fn a_camera_that_fails_is_survived() {
    const ERROR: &str = "Inject V4L2_BUF_FLAG_ERROR";
    let options = ["--format", "YUYV", "--capture", SIZE, "--fps", "25", "--stall", "1"];
    let files = Files::new();
    let mut machine = Machine::boot(Board::Virt, &files.list);
    let machine = &mut machine;
    machine.control(CAMERA, "OSD Text Mode", 2);
    check_devices(machine);
    let mut edge = Edge::run(machine, CAMERA, &options);
    edge.state(machine, "streaming", |_| panic!("a picture before the stream"));
    let picture = edge.frame(machine);
    let same = |found: &Value| assert_eq!(*found, picture);

    // Unplugged and plugged again.
    for _ in 0..3 {
        machine.control(CAMERA, "Disconnect", 1);
        edge.state(machine, "lost", same);
        edge.state(machine, "streaming", same);
        same(&edge.frame(machine));
    }
    // No pictures come any more, then they do.
    machine.control(CAMERA, "Percentage of Dropped Buffers", 100);
    edge.state(machine, "stalled", same);
    machine.control(CAMERA, "Percentage of Dropped Buffers", 50);
    same(&edge.frame(machine));
    machine.control(CAMERA, "Percentage of Dropped Buffers", 0);
    same(&edge.frame(machine));
    // Damaged pictures, each before a whole one: two orders would be one to a camera that is asked
    // for its next picture.
    for _ in 0..5 {
        machine.control(CAMERA, ERROR, 1);
        edge.fresh(machine, same);
    }
    // The stream breaks, and what was to start it again fails too; meanwhile somebody else changes
    // the format.
    for error in ["VIDIOC_REQBUFS", "VIDIOC_QBUF", "VIDIOC_STREAMON"] {
        machine.control(CAMERA, &format!("Inject {error} Error"), 1);
        // QBUF may fail, and the stream with it, before we break it: then there is nothing to
        // break.
        let _ = machine.attempt(&["control", CAMERA, "Inject Fatal Streaming Error", "1"]);
        edge.state(machine, "lost", same);
        let _ = machine.attempt(&["format", CAMERA, "NV12", "1280x720"]);
        edge.state(machine, "streaming", same);
        same(&edge.frame(machine));
    }
    let words = edge.end(machine, same);
    assert_eq!(count(&words, "corrupt"), 5, "{words}");

    // What others leave behind does not matter to the next run.
    assert_eq!(machine.call(&["format", CAMERA, "NV12", "1280x720"]), "NV12 1280x720");
    let mut edge = Edge::run(machine, CAMERA, &options);
    same(&edge.frame(machine));
    edge.end(machine, same);

    // Behind the fence, with all that it must let by: more threads, the page, a folder to write to.
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
    // Debian's kernel has both; its landlock may be older than what edge asks for, which edge says
    // then.
    assert_eq!(machine.fence(edge.program), "NoNewPrivs: 1 Seccomp: 2");
    same(&edge.frame(machine));
    let words = edge.words(machine);
    let fence = words.iter().find(|line| line.contains("sandbox")).unwrap();
    assert!(fence.contains(": landlock ") && fence.contains(", seccomp"), "{fence}");
    assert!(!words.iter().any(|line| line.contains("cannot")), "{words:?}");

    // A picture that never changes is one of a camera that hangs.
    let mut edge = Edge::run(machine, CAMERA, &[&options[..], &["--frozen", "1"]].concat());
    for seconds in ["1", "2"] {
        let words = edge.state(machine, "frozen", same);
        assert_eq!(words, format!("the same image, byte for byte, for {seconds} s"));
        edge.state(machine, "streaming", same);
    }
    edge.end(machine, same);
    let mut edge = Edge::run(machine, CAMERA, &options);
    same(&edge.frame(machine));

    // The driver goes and comes back, and with it the text in its picture.
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
    // One set of buffers that was not unmapped would be 2.4 MB.
    assert!(after.resident < before.resident + 2048, "{before:?}, then {after:?}");

    // It comes back under another node, since somebody keeps the old one.
    let held = machine.hold(CAMERA);
    machine.call(&["write", "/sys/bus/platform/drivers/vivid/unbind", "vivid.0"]);
    edge.state(machine, "lost", |_| ());
    machine.call(&["write", "/sys/bus/platform/drivers/vivid/bind", "vivid.0"]);
    let words = edge.state(machine, "streaming", |_| ());
    let (_, node) =
        words.split_once("now at ").unwrap_or_else(|| panic!("no other node in {words:?}"));
    assert!(node.starts_with("/dev/video") && node != CAMERA, "{words}");
    edge.frame(machine);
    machine.release(held);
    edge.end(machine, |_| ());
}

/// `edge devices`: the camera with what it offers; nodes that capture nothing are left out.
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
        "it has formats that nobody reads"
    );
}

/// A camera that sends what is no picture, and JPEG without the tables that every decoder knows.
#[test]
fn damaged_jpegs_are_counted_and_left_out() {
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
    // The node gives pictures all the time, but none that can be decoded: that is no stream.
    machine.show(&feeder, 1);
    let whole = |found: &Value| assert!(jpeg.expected.contains(found), "{found}");
    let words = edge.state(machine, "stalled", whole);
    assert_eq!(words, "no decodable frame for 1 s");
    // It is opened anew, but that does not make it one; nor is it told of again and again.
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
    // Half a JPEG file is found out by the decoder, noise before.
    assert!(count(&words, "corrupt") > 0 && count(&words, "unreadable") > 0, "{words}");
    machine.end(feeder);
}

/// A JPEG file as cameras make them that leave out the Huffman tables: marked `AVI1`, the usual
/// tables go without saying.
fn without_tables(jpeg: &[u8]) -> Vec<u8> {
    let mut bytes = [&jpeg[..2], b"\xff\xe0\x00\x10AVI1\0\0\0\0\0\0\0\0\0\0"].concat();
    let mut at = 2;
    loop {
        let (marker, length) =
            (jpeg[at + 1], usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]])));
        match marker {
            // Start of scan: the rest is the picture.
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
