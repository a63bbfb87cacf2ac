//! `edge run` as a service: streams, decisions, settings, signals, the web server, collected
//! frames.

mod sandbox;
mod service;
mod settings;
mod streams;
mod web;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use image::{DynamicImage, ImageFormat};
use serde_json::Value;
use tests::{Device, encode, ndjson, picture, small_head, succeed};

fn edge_run() -> Command {
    let mut edge = Device::Native.edge();
    edge.args(["run", "--head"]).arg(small_head());
    edge
}

/// Runs a command with bytes on standard input.
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
        // A program that exits early closes the pipe.
        let _ = stdin.write_all(&bytes);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// Returns the lines that are results, not events.
fn results(text: &str) -> Vec<Value> {
    ndjson(text)
        .into_iter()
        .filter(|line| line.get("frame").is_some() && line.get("event").is_none())
        .collect()
}

fn answer(line: &Value) -> String {
    format!("{} {} {}", line["label"], line["scores"], line["features_sha256"])
}

/// Writes four images of each of the head's two classes.
fn two_scenes(folder: &Path) {
    for number in 0..8u32 {
        let mut scene = picture(40, 40, 7);
        let channel = usize::from(number >= 4);
        scene.pixels_mut().for_each(|pixel| pixel.0[channel] = 255 - pixel.0[channel] / 8);
        let bytes = encode(&DynamicImage::ImageRgb8(scene), ImageFormat::Bmp);
        std::fs::write(folder.join(format!("{number}.bmp")), bytes).unwrap();
    }
}

/// Waits until a program exits.
fn ended(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < end, "the program does not exit");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A request for the event stream.
const EVENTS: &str = "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Timeout for expected events, long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A background `edge run` with a page.
struct Live {
    child: Child,
    address: String,
    /// The sandbox state that it logged.
    sandbox: String,
    /// Lines of stderr from then on.
    words: Receiver<String>,
}

impl Live {
    fn start(edge: &mut Command) -> Self {
        edge.args(["--http", "127.0.0.1:0"]);
        let mut child = edge.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let (sender, words) = channel();
        // Stderr is read to its end, so that the program never blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(|line| _ = sender.send(line)));
        let mut live = Self { child, address: String::new(), sandbox: String::new(), words };
        live.find_page();
        live
    }

    /// Waits until the program logs the address of the page.
    fn find_page(&mut self) {
        self.address = loop {
            let line = self.words.recv_timeout(PATIENCE).expect("the address of the page");
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

    /// Opens a connection and sends a request.
    fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// Sends a request that closes the connection; returns the whole response.
    fn ask(&self, request: &str) -> String {
        let mut bytes = Vec::new();
        self.send(request).read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns the lines of the event stream.
    fn events(&self) -> impl Iterator<Item = String> {
        BufReader::new(self.send(EVENTS)).lines().map(Result::unwrap)
    }

    /// Waits for a log entry, which must not be displaced from the last 50 entries.
    fn log(&self, wanted: &str) -> String {
        let end = Instant::now() + PATIENCE;
        let mut lines =
            self.events().inspect(|line| assert!(Instant::now() < end, "no {wanted:?}: {line}"));
        lines.find(|line| line.starts_with("data:") && line.contains(wanted)).unwrap()
    }

    /// Returns the running model from the metrics.
    fn info(&self) -> String {
        let (_, text) = self.get("/metrics", "");
        text.lines().find(|line| line.starts_with("vgg_edge_info")).unwrap().to_owned()
    }

    /// Sends one request; returns the status and the whole response.
    fn get(&self, path: &str, headers: &str) -> (u16, String) {
        let text = self.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
        ));
        (text.split(' ').nth(1).unwrap().parse().unwrap(), text)
    }

    /// Repeats a request until the response is as wanted.
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

    /// Returns whether landlock and seccomp are reported as active; log and metrics must agree.
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

    /// Stops the program as systemd does; returns the rest of stderr.
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
