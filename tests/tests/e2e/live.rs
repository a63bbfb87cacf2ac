//! `edge run` as a service: pipes, decisions, configuration, signals, the web server, collected
//! frames.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use image::{DynamicImage, ImageFormat};
use serde_json::Value;
use tests::{Device, encode, fail, host, ndjson, picture, root, run, small_head, succeed};

fn edge_run() -> Command {
    let mut edge = Device::Native.edge();
    edge.args(["run", "--head"]).arg(small_head());
    edge
}

/// Runs with bytes on standard input.
fn piped(command: &mut Command, bytes: &[u8]) -> std::process::Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || {
        // A program that ends early closes the pipe.
        let _ = stdin.write_all(&bytes);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// The lines that are results, not events.
fn results(text: &str) -> Vec<Value> {
    ndjson(text)
        .into_iter()
        .filter(|line| line.get("frame").is_some() && line.get("event").is_none())
        .collect()
}

fn answer(line: &Value) -> String {
    format!("{} {} {}", line["label"], line["scores"], line["features_sha256"])
}

/// A pipe of raw frames, as `rpicam-vid --codec yuv420 -o -` writes it, and one of JPEGs: what
/// `host` says of the same bytes.
#[test]
fn pipes_give_what_host_says_of_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut stream = Vec::new();
    let mut jpegs = Vec::new();
    let (mut raw_files, mut jpeg_files) = (Vec::new(), Vec::new());
    let fixtures = root().join("tests/fixtures/jpeg");
    let mut fixtures: Vec<_> =
        std::fs::read_dir(fixtures).unwrap().map(|e| e.unwrap().path()).collect();
    // A crop needs more than the one pixel of one of them.
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
                "the pictures differ"
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

/// A folder with the two classes of the head in turn.
fn two_scenes(folder: &Path) {
    for number in 0..8u32 {
        let mut scene = picture(40, 40, 7);
        let channel = usize::from(number >= 4);
        scene.pixels_mut().for_each(|pixel| pixel.0[channel] = 255 - pixel.0[channel] / 8);
        let bytes = encode(&DynamicImage::ImageRgb8(scene), ImageFormat::Bmp);
        std::fs::write(folder.join(format!("{number}.bmp")), bytes).unwrap();
    }
}

#[test]
fn labels_change_once_and_still_scenes_are_skipped() {
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
        "the head tells the scenes apart: {labels:?}"
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
    // While nothing moves, the decision goes on to where the last answer leads.
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

/// The folder stays within its bytes, says that it is full, and a live source does not fill it with
/// what looks the same.
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
    assert_eq!(count, 8, "each picture of a folder: {words}");
    assert!(bytes > 1_000_000 && !words.contains("full ("), "{bytes}: {words}");
    let (count, bytes, words) = collect("few", &["--collect-megabytes", "1"]);
    assert!((1..8).contains(&count) && bytes <= 1_000_000, "{count} pictures, {bytes} bytes");
    assert_eq!(words.matches("full (").count(), 1, "{words}");
    let (count, ..) =
        collect("live", &["--fps", "100", "--loop", "--frames", "40", "--collect-every", "3600"]);
    assert!(
        (1..=2).contains(&count),
        "one that was unsure, and maybe one that changed the label: {count}"
    );
}

/// Runs a command at a terminal. Its shell says its number first.
fn at_a_terminal(edge: &Command) -> (Child, BufReader<std::process::ChildStdout>) {
    let words = std::iter::once(edge.get_program()).chain(edge.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &format!("echo $$; exec {}", words.join(" ")), "/dev/null"]);
    script.current_dir(root()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = script.spawn().expect("script (bsdutils)");
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

#[test]
fn a_terminal_has_a_status_line_and_ends_it_by_hanging_up() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let mut edge = edge_run();
    edge.args(["--loop", "--fps", "50", "--source"]).arg(folder.path());
    let (mut child, mut output) = at_a_terminal(&edge);
    let mut id = String::new();
    output.read_line(&mut id).unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(" dropped") {
        assert!(
            output.read_until(b'd', &mut seen).unwrap() > 0,
            "{}",
            String::from_utf8_lossy(&seen)
        );
    }
    assert!(String::from_utf8_lossy(&seen).contains("\r\x1b[K"), "a line that is written over");
    succeed(Command::new("kill").args(["-HUP", id.trim()]));
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(ended(&mut child).success(), "{rest}");
    assert!(rest.contains("frames, 0 unreadable") && !rest.contains("reloaded"), "{rest}");

    // Elsewhere, a line a frame.
    let text = succeed(edge_run().arg("--source").arg(folder.path().join("0.bmp")));
    let parts: Vec<&str> = text.trim_end().split('\t').collect();
    let score: f32 = parts[2].parse().unwrap();
    assert!(
        parts.len() == 3 && parts[0].ends_with("0.bmp") && (0.0..=1.0).contains(&score),
        "{text:?}"
    );
}

/// Waits until a program has ended.
fn ended(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < end, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a service manager hears; and what it looks like when it does not.
#[test]
fn a_service_manager_is_told() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut edge = edge_run();
    edge.args(["--loop", "--fps", "20", "--source"]).arg(folder.path());
    let live = Live::start(edge.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000"));
    let hear = |wanted: &str| {
        let mut heard = Vec::new();
        loop {
            let mut bytes = [0; 4096];
            let length = socket
                .recv(&mut bytes)
                .unwrap_or_else(|e| panic!("no {wanted} but {heard:?}: {e}"));
            let message = String::from_utf8_lossy(&bytes[..length]).into_owned();
            if message.lines().any(|line| line.starts_with(wanted)) {
                return message;
            }
            heard.push(message);
        }
    };
    hear("READY=1");
    hear("STATUS=");
    (0..3).for_each(|_| _ = hear("WATCHDOG=1"));
    live.signal("-HUP");
    assert!(hear("RELOADING=1").contains("MONOTONIC_USEC="));
    hear("READY=1");
    hear("WATCHDOG=1");
    live.stop();
    hear("STOPPING=1");
}

/// The end comes while a camera that is not there is waited for, too.
#[test]
fn a_camera_that_is_not_there_is_told_and_does_not_hold_up_the_end() {
    let live = Live::start(edge_run().args(["--device", "/dev/no-such-camera"]));
    live.log("cannot open");
    let health = live.until("/healthz", |status, _| status == 503);
    assert!(health.contains("lost"), "{health}");
    live.stop();
}

#[test]
fn settings_come_from_a_file_and_the_command_line_has_the_last_word() {
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
fn flags_that_do_not_go_together() {
    for (args, words) in [
        (&["--source", "x", "--raw", "nv12:4x4"][..], "--source -"),
        (&["--source", "-", "--loop"], "--loop"),
        (&["--device", "/dev/video0", "--loop"], "--loop"),
        (&["--source", "-", "--fps", "5"], "--fps"),
        (&["--source", "x", "--http", "0.0.0.0:8080"], "wants a --http-token"),
    ] {
        fail(edge_run().args(args), 2, words);
    }
    let both = run(edge_run().args(["--source", "x", "--device", "/dev/video0"]));
    assert_eq!(both.status.code(), Some(2));
}

/// The request of a stream of events.
const EVENTS: &str = "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// How long is waited for what must come: for machines that are busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// `edge run` in the background, with a page.
struct Live {
    child: Child,
    address: String,
    /// The sandbox, as it tells it.
    sandbox: String,
    /// What it says on stderr from then on.
    words: Receiver<String>,
}

impl Live {
    fn start(edge: &mut Command) -> Self {
        edge.args(["--http", "127.0.0.1:0"]);
        let mut child = edge.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let (sender, words) = channel();
        // It is read to its end, so that nobody writes into a full pipe.
        std::thread::spawn(move || lines.for_each(|line| _ = sender.send(line)));
        let mut live = Self { child, address: String::new(), sandbox: String::new(), words };
        live.find_page();
        live
    }

    /// Waits until it says where the page is.
    fn find_page(&mut self) {
        self.address = loop {
            let line = self.words.recv_timeout(PATIENCE).expect("it says where the page is");
            if let Some(words) = line.strip_prefix("edge: sandbox ") {
                words.clone_into(&mut self.sandbox);
            }
            if let Some((_, url)) = line.split_once("http://") {
                break url.trim_end_matches('/').to_owned();
            }
        };
    }

    fn signal(&self, name: &str) {
        succeed(Command::new("kill").args([name, &self.child.id().to_string()]));
    }

    /// A connection on which a request was sent.
    fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// All that comes to a request that closes the connection.
    fn ask(&self, request: &str) -> String {
        let mut bytes = Vec::new();
        self.send(request).read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The lines of the stream of events.
    fn events(&self) -> impl Iterator<Item = String> {
        BufReader::new(self.send(EVENTS)).lines().map(Result::unwrap)
    }

    /// Waits for an entry of the timeline, which must not be crowded out of its last 50.
    fn log(&self, wanted: &str) -> String {
        let end = Instant::now() + PATIENCE;
        let mut lines =
            self.events().inspect(|line| assert!(Instant::now() < end, "no {wanted:?}: {line}"));
        lines.find(|line| line.starts_with("data:") && line.contains(wanted)).unwrap()
    }

    /// What runs, as the metrics tell it.
    fn info(&self) -> String {
        let (_, text) = self.get("/metrics", "");
        text.lines().find(|line| line.starts_with("vgg_edge_info")).unwrap().to_owned()
    }

    /// One request; status and all that came.
    fn get(&self, path: &str, headers: &str) -> (u16, String) {
        let text = self.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
        ));
        (text.split(' ').nth(1).unwrap().parse().unwrap(), text)
    }

    /// Asks until the answer is as wanted.
    fn until(&self, path: &str, wanted: impl Fn(u16, &str) -> bool) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let (status, text) = self.get(path, "");
            if wanted(status, &text) {
                return text;
            }
            assert!(Instant::now() < end, "{path}: {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics", "");
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("{name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Whether landlock and seccomp are said to be in force; the words and the metrics must agree.
    fn fence(&self) -> (bool, bool) {
        let (_, text) = self.get("/metrics", "");
        let line = text.lines().find(|line| line.starts_with("vgg_edge_sandbox{")).unwrap();
        let (state, rest) = self.sandbox.split_once([':', ';']).unwrap_or((&self.sandbox, ""));
        let (parts, _) = rest.split_once(';').unwrap_or((rest, ""));
        let (landlock, seccomp) = (parts.contains("landlock "), parts.contains("seccomp"));
        assert!(line.contains(&format!("state=\"{state}\"")), "{line}: {}", self.sandbox);
        assert_eq!(line.contains("landlock=\"0\""), !landlock, "{line}: {}", self.sandbox);
        assert_eq!(line.contains("seccomp=\"true\""), seccomp, "{line}: {}", self.sandbox);
        (landlock, seccomp)
    }

    /// Ends it as systemd does, and gives its last words.
    fn stop(mut self) -> String {
        self.signal("-TERM");
        assert!(ended(&mut self.child).success());
        self.words.iter().map(|line| line + "\n").collect()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_web_server_answers_and_nobody_can_hold_it_up() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let live =
        Live::start(edge_run().args(["--loop", "--fps", "50", "--source"]).arg(folder.path()));
    live.until("/healthz", |status, _| status == 200);
    let (status, page) = live.get("/", "");
    assert!(status == 200 && page.contains("<!doctype html>") || page.contains("<!DOCTYPE html>"));
    assert!(page.to_lowercase().contains("content-security-policy: default-src 'none'"), "{page}");
    for (path, kind) in
        [("/page.css", "text/css"), ("/page.js", "text/javascript"), ("/metrics", "text/plain")]
    {
        let (status, text) = live.get(path, "");
        assert!(status == 200 && text.contains(kind), "{path}: {text}");
    }
    let picture = live.until("/frame.jpg", |status, _| status == 200);
    assert!(picture.contains("image/jpeg"));
    assert_eq!(live.get("/nothing", "").0, 404);
    // Another site that has its name point here.
    let text = live.ask("GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 403"), "{text}");
    let text = live.ask(
        "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    );
    assert!(text.starts_with("HTTP/1.1 405"), "{text}");

    // Clients that open streams and read nothing, and some that never finish a request; frames are
    // classified all the same.
    let held: Vec<TcpStream> = (0..40)
        .map(|number| live.send(if number < 10 { EVENTS } else { "GET / HTTP/1.1\r\nHo" }))
        .collect();
    let before = live.metric("vgg_edge_frames_total{outcome=\"classified\"}");
    live.until("/metrics", |_, text| {
        let line =
            text.lines().find(|line| line.contains("outcome=\"classified\"")).unwrap_or_default();
        line.rsplit(' ')
            .next()
            .and_then(|v| v.parse::<f64>().ok())
            .is_some_and(|count| count >= before + 20.0)
    });
    drop(held);
    // A stream of events, as a browser takes it.
    let mut seen = BTreeSet::new();
    for line in live.events() {
        if let Some(name) = line.strip_prefix("event: ") {
            seen.insert(name.to_owned());
        }
        if seen.len() == 3 {
            break;
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["hello", "log", "state"]);
    let words = live.stop();
    assert!(words.contains("frames, 0 unreadable"), "{words}");
}

#[test]
fn other_machines_must_show_the_token() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let token = "0123456789abcdef-X";
    let file = folder.path().join("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let mut edge = edge_run();
    edge.args(["--loop", "--fps", "20", "--source"])
        .arg(folder.path())
        .arg("--http-token-file")
        .arg(&file);
    let live = Live::start(&mut edge);
    for path in ["/", "/events", "/frame.jpg", "/metrics", "/healthz", "/?token=wrong", "/nothing"]
    {
        assert_eq!(live.get(path, "").0, 401, "{path}");
    }
    assert_eq!(live.get("/metrics", &format!("Authorization: Bearer {token}\r\n")).0, 200);
    assert_eq!(live.get(&format!("/metrics?token={token}"), "").0, 200);
    let (status, text) = live.get(&format!("/?token={token}"), "");
    let cookie = text.lines().find_map(|line| {
        line.to_lowercase().starts_with("set-cookie: ").then(|| line[12..].to_owned())
    });
    let cookie = cookie.unwrap();
    assert!(
        status == 303 && cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"),
        "{text}"
    );
    let pair = cookie.split(';').next().unwrap();
    assert_eq!(live.get("/", &format!("Cookie: {pair}\r\n")).0, 200);
    live.stop();
}

/// A token that was changed in its file is in force after a reload, the old one no more; a file
/// that has gone changes nothing.
#[test]
fn a_new_token_comes_with_a_reload() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let file = folder.path().join("token");
    let (old, new) = ("0123456789abcdef", "fedcba9876543210");
    let mut edge = edge_run();
    edge.args(["--loop", "--fps", "20", "--source"])
        .arg(folder.path())
        .arg("--http-token-file")
        .arg(&file);
    std::fs::write(&file, old).unwrap();
    let mut live = Live::start(&mut edge);
    let status = |live: &Live, token: &str| {
        live.get("/metrics", &format!("Authorization: Bearer {token}\r\n")).0
    };
    assert_eq!((status(&live, old), status(&live, new)), (200, 401));
    std::fs::remove_file(&file).unwrap();
    live.signal("-HUP");
    while !live.words.recv_timeout(PATIENCE).unwrap().contains("keeping the old settings") {}
    assert_eq!((status(&live, old), status(&live, new)), (200, 401));
    std::fs::write(&file, new).unwrap();
    live.signal("-HUP");
    live.find_page();
    assert_eq!((status(&live, old), status(&live, new)), (401, 200));
    live.stop();
}

/// Another source goes on from the counts of the one before: counters only ever rise.
#[test]
fn counters_outlive_their_source() {
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
fn hanging_up_reloads_and_a_bad_head_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let head = folder.path().join("head.postcard");
    std::fs::copy(small_head(), &head).unwrap();
    let mut edge = Device::Native.edge();
    // Labels that never change leave the timeline to what is waited for.
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

/// A reload that fails half way, at the folder for collected frames, leaves the old head in place
/// and in the page.
#[test]
fn a_reload_that_fails_half_way_changes_nothing() {
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

/// What comes on stdin comes once: a reload may change what does not touch it, and nothing else.
#[test]
fn a_stream_on_stdin_outlives_a_reload() {
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
    // Of a camera, which there is none of.
    write("stall = 9\nfrozen = 5\ncapture = \"320x240\"\nthreshold = 0.4\n");
    live.signal("-HUP");
    live.log("reloaded");
    goes_on(&live);
    let words = live.stop();
    assert!(words.contains(" 0 unreadable"), "{words}");
    writer.join().unwrap();
}

/// An address that is not up yet keeps nobody from classifying.
#[test]
fn it_goes_on_without_a_page_until_there_is_an_address() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let mut edge = edge_run();
    // Of no machine (RFC 5737).
    edge.args(["--json", "--http", "192.0.2.1:0", "--http-token", "0123456789abcdef", "--source"])
        .arg(folder.path());
    let output = run(&mut edge);
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && words.contains("page: not available, trying again"),
        "{words}"
    );
    assert_eq!(results(&String::from_utf8(output.stdout).unwrap()).len(), 8);
    // What does not pass is an error still.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    fail(edge_run().args(["--http", &address, "--source"]).arg(folder.path()), 1, "cannot listen");
}

#[test]
fn a_video_has_the_color_that_was_asked_for() {
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

/// A camera at 30 frames a second and a classifier that is far slower: the frame that is classified
/// is always a fresh one.
#[test]
fn a_slow_classifier_takes_the_newest_frame() {
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
    // The age when inference begins is what was waited for: below a frame's 33 ms on a machine at
    // leisure. A busy one adds to that, but a frame that is one behind the newest would always wait
    // nearly a whole inference, and each one in a queue another.
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

/// A number of `/proc/PID/status`.
fn status(path: &Path, name: &str) -> u32 {
    let text = std::fs::read_to_string(path.join("status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn every_thread_is_behind_the_fence_that_is_told() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let mut edge = edge_run();
    edge.args(["--loop", "--fps", "50", "--threads", "2", "--collect"])
        .arg(folder.path().join("kept"));
    let live = Live::start(edge.arg("--source").arg(folder.path()));
    // The thread that encodes pictures starts with the first.
    live.until("/frame.jpg", |status, _| status == 200);
    let (landlock, seccomp) = live.fence();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", live.child.id())).unwrap();
    let mut names = BTreeSet::new();
    for task in tasks.map(|task| task.unwrap().path()) {
        // This process may have filters of its own, in a container.
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
    // What `edge info` says of this machine is what a run has.
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
fn a_head_elsewhere_is_out_of_reach_until_a_restart() {
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
            // What was foreseen is still read.
            write(small_head());
            live.signal("-HUP");
        }
        live.log("reloaded");
        std::fs::write(&config, format!("head = {head:?}\nsandbox = \"require\"\n")).unwrap();
        live.signal("-HUP");
        live.log("the sandbox cannot change");
        live.stop();
    }
}

#[test]
fn all_of_the_sandbox_or_nothing_runs() {
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
    // Under qemu-user there is neither landlock nor seccomp, and it says so.
    let mut edge = Device::Aarch64.edge();
    edge.args(["classify", "--head"]).arg(small_head()).arg(folder.path().join("0.bmp"));
    let words = String::from_utf8(run(&mut edge).stderr).unwrap();
    assert!(words.contains("sandbox none; missing: landlock: "), "{words}");
    fail(edge.args(["--sandbox", "require"]), 1, "not available on this system");
}

/// Pipes, which have no names, and links that lead out of the folder.
#[test]
fn what_was_named_is_read_wherever_it_is() {
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

/// What systemd hears from behind the fence, at a socket with a path and at one without.
#[test]
fn systemd_is_told_from_behind_the_fence() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let path = folder.path().join("notify");
    let name = format!("vgg-edge-test-{}", std::process::id());
    let sockets = [
        (path.to_str().unwrap().to_owned(), UnixDatagram::bind(&path).unwrap()),
        (
            format!("@{name}"),
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
        ),
    ];
    for (address, socket) in sockets {
        // Taken at once, as systemd does: whoever sends to a full socket waits.
        let (sender, told) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok(length) = socket.recv(&mut buffer) {
                if sender.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).is_err() {
                    break;
                }
            }
        });
        let mut edge = edge_run();
        edge.args(["--loop", "--fps", "20", "--source"]).arg(folder.path());
        edge.env("NOTIFY_SOCKET", &address).env("WATCHDOG_USEC", "400000");
        let live = Live::start(&mut edge);
        let hear = |wanted: &str| {
            let next = || {
                told.recv_timeout(Duration::from_secs(60))
                    .unwrap_or_else(|e| panic!("{wanted}: {e}"))
            };
            while !next().contains(wanted) {}
        };
        for wanted in ["READY=1", "WATCHDOG=1"] {
            hear(wanted);
        }
        live.signal("-HUP");
        for wanted in ["RELOADING=1", "READY=1"] {
            hear(wanted);
        }
        live.stop();
        hear("STOPPING=1");
    }
}

/// Requests that are wrong, each in another way.
const MALFORMED: [&[u8]; 12] = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\0\0\0\0\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"GET  /  HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"G\xc3\xa9T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

#[test]
fn malformed_requests_get_an_error_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let live =
        Live::start(edge_run().args(["--loop", "--fps", "50", "--source"]).arg(folder.path()));
    let long = |part: &str, times: usize| {
        format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", part.repeat(times))
    };
    let long = [
        long("A: b\r\n", 100).into_bytes(),
        long(&format!("A: {}\r\n", "b".repeat(1000)), 40).into_bytes(),
        format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(100_000)).into_bytes(),
    ];
    for request in MALFORMED.into_iter().chain(long.iter().map(Vec::as_slice)) {
        let mut stream = TcpStream::connect(&live.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // A request that is refused early may not be taken whole.
        let _ = stream.write_all(request);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{}: {answer}",
            request.escape_ascii()
        );
    }
    // The first frame may come after all of that.
    live.until("/healthz", |status, _| status == 200);
    live.stop();
}

/// Clients that dawdle in every way keep nobody out, hold up no frame, and leave nothing behind.
#[test]
fn two_hundred_slow_clients_keep_nobody_out() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let live =
        Live::start(edge_run().args(["--loop", "--fps", "50", "--source"]).arg(folder.path()));
    live.until("/frame.jpg", |status, _| status == 200);
    let before = live.descriptors();
    // Pictures are asked for and not taken.
    let greedy = "GET /frame.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    let slow: [&[u8]; 6] = [
        b"",
        b"G",
        b"GET / HTTP/1.1\r\nHo",
        EVENTS.as_bytes(),
        greedy.as_bytes(),
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n",
    ];
    let requests: Vec<&[u8]> = slow.into_iter().chain(MALFORMED).collect();
    let mut held = Vec::new();
    for round in 0..3 {
        for number in 0..200 {
            let mut stream = TcpStream::connect(&live.address).unwrap();
            // It may have had to make room for the next already.
            let _ = stream.write_all(requests[(number + round) % requests.len()]);
            held.push(stream);
        }
        let classified = live.metric("vgg_edge_frames_total{outcome=\"classified\"}");
        for path in ["/", "/page.js", "/metrics", "/frame.jpg", "/healthz"] {
            assert_eq!(live.get(path, "").0, 200, "{path}");
        }
        // 64 connections, and one that is let in for another.
        let now = live.descriptors();
        assert!(now <= before + 65, "{now} descriptors, {before} before");
        live.until("/metrics", |_, _| {
            live.metric("vgg_edge_frames_total{outcome=\"classified\"}") >= classified + 20.0
        });
    }
    drop(held);
    let end = Instant::now() + Duration::from_secs(60);
    while live.descriptors() > before {
        assert!(Instant::now() < end, "{} descriptors, {before} before", live.descriptors());
        std::thread::sleep(Duration::from_millis(20));
    }
    // A page that is opened now gets its events.
    live.until("/frame.jpg", |status, _| status == 200);
    live.stop();
}
