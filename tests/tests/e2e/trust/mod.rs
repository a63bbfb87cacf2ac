//! Signed models, and models that are replaced while `edge run` runs.

mod signatures;
mod updates;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use image::{DynamicImage, ImageFormat};
use serde_json::Value;
use tests::{Device, base, data_folder, encode, host, picture, small_head, succeed};
use vgg_edge::{Fingerprint, Head};

/// Two heads of the same base without a common label, and some images.
struct Scene {
    folder: tempfile::TempDir,
    pictures: PathBuf,
    /// [`small_head`], and one with other classes.
    heads: [PathBuf; 2],
}

fn scene() -> &'static Scene {
    static SCENE: OnceLock<Scene> = OnceLock::new();
    SCENE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let (pictures, data) = (folder.path().join("pictures"), folder.path().join("data"));
        std::fs::create_dir(&pictures).unwrap();
        for number in 0..4 {
            let bytes = encode(&DynamicImage::ImageRgb8(picture(40, 40, number)), ImageFormat::Bmp);
            std::fs::write(pictures.join(format!("{number}.bmp")), bytes).unwrap();
        }
        data_folder(&data, &[("cat", 5), ("dog", 5), ("fox", 5)]);
        let other = folder.path().join("other.postcard");
        succeed(
            host()
                .args(["train", "--size", "32", "--units", "8", "--epochs", "2"])
                .arg(&data)
                .arg("-o")
                .arg(&other),
        );
        Scene { pictures, heads: [small_head().to_owned(), other], folder }
    })
}

/// A directory for a head, a base, keys and a state directory.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Replaces a file atomically: copied beside it, then renamed.
    fn put(&self, name: &str, bytes: &[u8]) {
        let beside = self.path(&format!("{name}.new"));
        std::fs::write(&beside, bytes).unwrap();
        std::fs::rename(beside, self.path(name)).unwrap();
    }

    /// Replaces a file, together with its signature if it has one.
    fn put_signed(&self, name: &str, from: &Path) {
        self.put(name, &std::fs::read(from).unwrap());
        let beside = vgg_edge::signature::signature_path(from);
        match std::fs::read(beside) {
            Ok(bytes) => self.put(&format!("{name}.minisig"), &bytes),
            Err(_) => {
                std::fs::remove_file(self.path(&format!("{name}.minisig"))).unwrap_or_default()
            }
        }
    }

    /// Returns `edge run` looping over the images, with the head of this directory.
    fn edge(&self, more: &[&str]) -> Command {
        let mut edge = Device::Native.edge();
        edge.args(["run", "--json", "--loop", "--source"]).arg(&scene().pictures);
        edge.arg("--head").arg(self.path("head")).arg("--state").arg(self.path("state")).args(more);
        edge
    }

    fn keygen(&self, name: &str) {
        succeed(host().args(["keygen", "-o"]).arg(self.path(name)));
    }

    /// Signs a copy of a file.
    fn sign(&self, from: &Path, name: &str, key: &str, version: u64) -> PathBuf {
        let path = self.path(name);
        std::fs::copy(from, &path).unwrap();
        let key = self.path(&format!("{key}.key"));
        succeed(
            host().args(["sign", "--version", &version.to_string(), "--key"]).arg(key).arg(&path),
        );
        path
    }

    /// Signs a copy of the base.
    fn signed_base(&self, key: &str, version: u64) -> PathBuf {
        self.sign(&base(), "base", key, version)
    }
}

/// A running `edge run`.
struct Edge {
    child: Child,
    lines: Receiver<Value>,
    words: Option<std::thread::JoinHandle<String>>,
}

impl Edge {
    fn start(edge: &mut Command) -> Self {
        let mut child = edge.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                // A killed program may leave a partial line.
                let Ok(line) = serde_json::from_str(&line) else { return };
                let _ = sender.send(line);
            }
        });
        let mut err = child.stderr.take().unwrap();
        let words = std::thread::spawn(move || {
            let mut text = String::new();
            err.read_to_string(&mut text).unwrap();
            text
        });
        Self { child, lines, words: Some(words) }
    }

    /// Returns the next line; the timeout of two minutes is for busy machines.
    fn line(&mut self) -> Value {
        match self.lines.recv_timeout(Duration::from_secs(120)) {
            Ok(line) => line,
            Err(e) => {
                let _ = self.child.kill();
                panic!("{e}: {}", self.words.take().unwrap().join().unwrap())
            }
        }
    }

    fn frame(&mut self) -> Value {
        loop {
            let line = self.line();
            if line.get("scores").is_some() {
                return line;
            }
        }
    }

    /// Returns the next model event.
    fn model(&mut self) -> Value {
        loop {
            let line = self.line();
            if line["event"] == "model" {
                return line;
            }
        }
    }

    /// Returns the next model event, which must have this state and contain this text.
    fn expect(&mut self, state: &str, words: &str) -> Value {
        let event = self.model();
        assert_eq!(event["state"], state, "{event}");
        assert!(event.to_string().contains(words), "{words:?} is not in {event}");
        event
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops the program as systemd does; returns its stderr.
    fn stop(mut self) -> String {
        succeed(Command::new("kill").args(["-TERM", &self.child.id().to_string()]));
        assert!(self.child.wait().unwrap().success());
        self.words.take().unwrap().join().unwrap()
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the labels in a result.
fn labels(line: &Value) -> Vec<&str> {
    line["scores"].as_object().unwrap().keys().map(String::as_str).collect()
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

fn digest(path: &Path) -> String {
    Fingerprint::of(&bytes(path)).to_string()
}

/// Writes another base with the same weights: a letter of its description differs.
fn other_base(path: &Path) {
    let mut bytes = bytes(&base());
    let at = bytes.windows(6).position(|window| window == b"Oxford").unwrap();
    bytes[at + 5] = b't';
    std::fs::write(path, bytes).unwrap();
}

/// Writes a copy of a head for another base, with a prefix to its labels.
fn moved(head: &Path, base: &Path, prefix: &str, path: &Path) {
    let mut head = Head::open(head).unwrap();
    head.base = Fingerprint::of(&bytes(base));
    head.labels.iter_mut().for_each(|label| label.insert_str(0, prefix));
    head.save(path).unwrap();
}
