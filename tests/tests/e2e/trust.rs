//! Signed heads, and heads and bases that are replaced while `edge run` runs.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use image::{DynamicImage, ImageFormat};
use serde_json::Value;
use tests::{
    Device, base, data_folder, encode, fail, host, ndjson, picture, root, run, small_head, succeed,
};
use vgg_edge::{Fingerprint, Head};

/// Two heads of the same base that share no label, and some pictures.
struct Scene {
    folder: tempfile::TempDir,
    pictures: PathBuf,
    /// `small_head`, and one of other classes.
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

/// A place for a head, a base, keys and a state folder.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// As a careful person replaces a file: copied beside it, synced by nobody, renamed.
    fn put(&self, name: &str, bytes: &[u8]) {
        let beside = self.path(&format!("{name}.new"));
        std::fs::write(&beside, bytes).unwrap();
        std::fs::rename(beside, self.path(name)).unwrap();
    }

    /// Puts a file in place with what lies beside it as its signature, if anything does.
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

    /// `edge run` over the pictures, round and round, with the head of this place.
    fn edge(&self, more: &[&str]) -> Command {
        let mut edge = Device::Native.edge();
        edge.args(["run", "--json", "--loop", "--source"]).arg(&scene().pictures);
        edge.arg("--head").arg(self.path("head")).arg("--state").arg(self.path("state")).args(more);
        edge
    }

    fn keygen(&self, name: &str) {
        succeed(host().args(["keygen", "-o"]).arg(self.path(name)));
    }

    /// A copy of a file under another name, signed.
    fn sign(&self, from: &Path, name: &str, key: &str, version: u64) -> PathBuf {
        let path = self.path(name);
        std::fs::copy(from, &path).unwrap();
        let key = self.path(&format!("{key}.key"));
        succeed(
            host().args(["sign", "--version", &version.to_string(), "--key"]).arg(key).arg(&path),
        );
        path
    }

    /// The base, signed, in this place.
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
                // A killed program may leave half a line.
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

    /// The next line; two minutes are for machines that are busy.
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

    /// The next event about head and base.
    fn model(&mut self) -> Value {
        loop {
            let line = self.line();
            if line["event"] == "model" {
                return line;
            }
        }
    }

    /// The next such event, which must be that one.
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

    /// Ends it as systemd does, and gives its words.
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

/// The labels that a head knows, as they are in a line.
fn labels(line: &Value) -> Vec<&str> {
    line["scores"].as_object().unwrap().keys().map(String::as_str).collect()
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

fn digest(path: &Path) -> String {
    Fingerprint::of(&bytes(path)).to_string()
}

/// Another base with the same weights: a letter of its description differs.
fn other_base(path: &Path) {
    let mut bytes = bytes(&base());
    let at = bytes.windows(6).position(|window| window == b"Oxford").unwrap();
    bytes[at + 5] = b't';
    std::fs::write(path, bytes).unwrap();
}

/// That head for another base, with other names for its classes.
fn moved(head: &Path, base: &Path, prefix: &str, path: &Path) {
    let mut head = Head::load(head).unwrap();
    head.base = Fingerprint::of(&bytes(base));
    head.labels.iter_mut().for_each(|label| label.insert_str(0, prefix));
    head.save(path).unwrap();
}

#[test]
fn keys_are_private_and_never_shown() {
    let place = Place::new();
    let head = place.path("head");
    std::fs::copy(small_head(), &head).unwrap();
    std::fs::write(place.path("password"), "correct horse\n").unwrap();
    let said = RefCell::new(String::new());
    let tell = |command: &mut Command, code: i32| {
        let output = run(command);
        let words =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        assert_eq!(output.status.code(), Some(code), "{words}");
        said.borrow_mut().push_str(&words);
        words
    };
    tell(host().args(["keygen", "-o"]).arg(place.path("plain")), 0);
    let mut keygen = host();
    keygen
        .args(["keygen", "--json", "-o"])
        .arg(place.path("locked"))
        .arg("--password-file")
        .arg(place.path("password"));
    tell(&mut keygen, 0);
    for name in ["plain", "locked"] {
        let mode =
            std::fs::metadata(place.path(&format!("{name}.key"))).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
        let before = bytes(&place.path(&format!("{name}.key")));
        tell(host().args(["keygen", "-o"]).arg(place.path(name)), 1);
        assert_eq!(
            bytes(&place.path(&format!("{name}.key"))),
            before,
            "keys are never written over"
        );
        let mut sign = host();
        sign.args(["sign", "--key"]).arg(place.path(&format!("{name}.key"))).arg(&head);
        tell(sign.arg("--password-file").arg(place.path("password")), 0);
        tell(
            host().args(["verify", "--trust"]).arg(place.path(&format!("{name}.pub"))).arg(&head),
            0,
        );
    }
    let sign = |key: &str, password: &str| {
        let mut sign = host();
        sign.args(["sign", "--key"]).arg(place.path(key)).arg(&head);
        sign.arg("--password-file").arg(place.path(password));
        sign
    };
    let signature = bytes(&place.path("head.minisig"));
    std::fs::write(place.path("wrong"), "battery staple\n").unwrap();
    tell(&mut sign("locked.key", "wrong"), 1);
    // A public key, a head, nothing.
    for wrong in ["plain.pub", "head", "none"] {
        tell(&mut sign(wrong, "password"), 1);
    }
    assert_eq!(
        bytes(&place.path("head.minisig")),
        signature,
        "a failed signing leaves what was there"
    );
    tell(host().arg("inspect").arg(&head), 0);
    let words = tell(Device::Native.edge().args(["info", "--head"]).arg(&head), 0);
    assert!(words.contains("not verified"), "{words}");
    // No part of a secret in all that was said.
    for name in ["plain.key", "locked.key"] {
        let text = std::fs::read_to_string(place.path(name)).unwrap();
        let secret = text.lines().nth(1).unwrap();
        assert!(secret.len() > 150);
        for at in (60..secret.len() - 24).step_by(8) {
            assert!(!said.borrow().contains(&secret[at..at + 24]));
        }
    }
    std::fs::set_permissions(place.path("plain.key"), PermissionsExt::from_mode(0o644)).unwrap();
    assert!(tell(&mut sign("plain.key", "password"), 0).contains("others can read this key"));
}

#[test]
fn minisign_verifies_ours_and_we_verify_its() {
    let place = Place::new();
    place.keygen("ours");
    let minisign = |arguments: &[&str]| {
        let mut minisign = Command::new("minisign");
        minisign.args(arguments).current_dir(place.0.path()).stdin(Stdio::null());
        succeed(&mut minisign)
    };
    let head = place.sign(small_head(), "head", "ours", 7);
    let words = minisign(&["-Vm", "head", "-p", "ours.pub"]);
    assert!(words.contains("verified") && words.contains("version:7"), "{words}");
    // Its keys and signatures, whose version is the time.
    minisign(&["-G", "-W", "-p", "its.pub", "-s", "its.key"]);
    minisign(&["-S", "-s", "its.key", "-m", "head"]);
    let verified =
        succeed(host().args(["verify", "--json", "--trust"]).arg(place.path("its.pub")).arg(&head));
    let verified = &ndjson(&verified)[0];
    assert!(
        verified["version"].as_u64().unwrap() > 1_700_000_000 && verified["kind"] == "head",
        "{verified}"
    );
    // Its key with our program, ours with its.
    succeed(host().args(["sign", "--key"]).arg(place.path("its.key")).arg(&head));
    minisign(&["-Vm", "head", "-p", "its.pub"]);
    minisign(&["-S", "-s", "ours.key", "-m", "head"]);
    succeed(host().args(["verify", "--trust"]).arg(place.path("ours.pub")).arg(&head));
    // What is no head is not signed, and what is signed by another is not verified.
    std::fs::write(place.path("junk"), "junk").unwrap();
    fail(
        host().args(["sign", "--key"]).arg(place.path("ours.key")).arg(place.path("junk")),
        1,
        "junk",
    );
    fail(
        host().args(["verify", "--trust"]).arg(place.path("its.pub")).arg(&head),
        1,
        "files refused",
    );
}

/// Each way in which a file can be untrustworthy; `edge classify` and the start of `edge run` say
/// the same.
#[test]
fn what_is_not_signed_as_it_must_be_is_refused() {
    let place = Place::new();
    let scene = scene();
    place.keygen("old");
    place.keygen("new");
    place.keygen("stranger");
    let base = place.signed_base("old", 10);
    let first = place.sign(&scene.heads[0], "first", "old", 10);
    let trust = |edge: &mut Command, keys: &[&str]| {
        for key in keys {
            edge.arg("--trust").arg(place.path(&format!("{key}.pub")));
        }
    };
    let state = place.path("state");
    let classify = |keys: &[&str]| {
        let mut edge = Device::Native.edge();
        edge.arg("classify")
            .arg(scene.pictures.join("0.bmp"))
            .arg("--head")
            .arg(place.path("head"));
        trust(edge.arg("--base").arg(&base), keys);
        edge.arg("--state").arg(&state);
        edge
    };
    let refused = |keys: &[&str], words: &str| {
        fail(&mut classify(keys), 1, words);
        let mut edge = Device::Native.edge();
        edge.args(["run", "--frames", "1", "--source"])
            .arg(&scene.pictures)
            .arg("--head")
            .arg(place.path("head"));
        trust(edge.arg("--base").arg(&base), keys);
        // No pair was kept here, so there is nothing else to run.
        let copy = place.path("state-of-run");
        std::fs::create_dir_all(&copy).unwrap();
        if state.join("state.json").exists() {
            std::fs::copy(state.join("state.json"), copy.join("state.json")).unwrap();
        }
        fail(edge.arg("--state").arg(&copy), 1, words);
    };
    place.put_signed("head", &first);
    succeed(&mut classify(&["old"]));
    succeed(&mut classify(&["stranger", "old"]));
    refused(&["stranger"], "signed by key");

    // Unsigned, altered, signed for another file.
    place.put_signed("head", &scene.heads[0]);
    refused(&["old"], "it is not signed");
    let mut altered = Head::load(&scene.heads[0]).unwrap();
    altered.labels[0] = "altered".into();
    altered.save(&place.path("altered")).unwrap();
    place.put_signed("head", &first);
    place.put("head", &bytes(&place.path("altered")));
    refused(&["old"], "does not match");
    place.put_signed("head", &first);
    let comment = String::from_utf8(bytes(&place.path("head.minisig")))
        .unwrap()
        .replace("version:10", "version:11");
    place.put("head.minisig", comment.as_bytes());
    refused(&["old"], "does not match");

    // Older, and of the same version but another.
    let newer = place.sign(&scene.heads[1], "newer", "old", 11);
    place.put_signed("head", &newer);
    succeed(&mut classify(&["old"]));
    place.put_signed("head", &first);
    refused(&["old"], "version 10 is older than version 11");
    let twin = place.sign(&scene.heads[0], "twin", "old", 11);
    place.put_signed("head", &twin);
    refused(&["old"], "version 11 is that of another head");
    place.put_signed("head", &newer);
    succeed(&mut classify(&["old"]));

    // A new key: what the old one signed before is older for both; without the old one its versions
    // no longer count.
    let base_bytes = bytes(&base);
    let renewed = place.sign(&scene.heads[0], "renewed", "new", 12);
    place.put_signed("head", &renewed);
    succeed(&mut classify(&["old", "new"]));
    place.put_signed("head", &newer);
    refused(&["old", "new"], "version 11 is older than version 12");
    place.put_signed("head", &renewed);
    refused(&["new"], "signed by key");
    place.sign(&tests::base(), "base", "new", 3);
    succeed(&mut classify(&["new"]));

    // Bases likewise.
    std::fs::remove_file(place.path("base.minisig")).unwrap();
    refused(&["new"], "base: not trusted: it is not signed");
    place.sign(&tests::base(), "base", "new", 2);
    refused(&["new"], "version 2 is older than version 3");
    assert_eq!(bytes(&base), base_bytes);

    // Without a memory there is no trust.
    let mut edge = Device::Native.edge();
    edge.arg("classify").arg(scene.pictures.join("0.bmp")).arg("--head").arg(place.path("head"));
    trust(&mut edge, &["new"]);
    fail(&mut edge, 2, "--state DIR");
    place.sign(&tests::base(), "base", "new", 4);
    let mut limited = Command::new("bash");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$@\"", "bash"])
        .arg(Device::Native.edge_path());
    limited.args(classify(&["new"]).get_args()).current_dir(root());
    fail(&mut limited, 1, "state.json");
    let record = bytes(&state.join("state.json"));
    std::fs::write(state.join("state.json"), &record[..record.len() / 2]).unwrap();
    refused(&["new"], "state.json: damaged");
    std::fs::write(state.join("state.json"), &record).unwrap();
    succeed(&mut classify(&["new"]));
    fail(classify(&[]).arg("--trust").arg(place.path("head.minisig")), 1, "not a public key");
}

/// What was refused stays refused after a restart, and what ran before runs.
#[test]
fn a_replayed_head_is_refused_after_a_restart_and_the_last_good_one_runs() {
    let place = Place::new();
    let scene = scene();
    place.keygen("key");
    let base = place.signed_base("key", 1);
    let old = place.sign(&scene.heads[0], "old", "key", 1);
    let new = place.sign(&scene.heads[1], "new", "key", 2);
    let (public, base) = (place.path("key.pub"), base.to_str().unwrap().to_owned());
    let flags = ["--watch", "--trust", public.to_str().unwrap(), "--base", &base];
    place.put_signed("head", &old);
    let mut edge = Edge::start(&mut place.edge(&flags));
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    place.put_signed("head", &new);
    // The signature may come a moment after the head.
    let mut event = edge.model();
    if event["state"] == "refused" {
        event = edge.model();
    }
    assert_eq!((&event["state"], &event["version"]), (&"swapped".into(), &2.into()), "{event}");
    assert_eq!(labels(&edge.frame()), ["cat", "dog", "fox"]);
    let words = edge.stop();
    assert!(!words.contains("panicked"), "{words}");

    // Somebody puts the old one back while the device is off.
    place.put_signed("head", &old);
    let mut edge = Edge::start(&mut place.edge(&flags));
    edge.expect("last-good", "version 1 is older than version 2");
    assert_eq!(labels(&edge.frame()), ["cat", "dog", "fox"]);
    let words = edge.stop();
    assert!(
        words.contains("running the last good head")
            && words.contains("version 1 is older than version 2"),
        "{words}"
    );

    // An altered copy in the state folder is not believed either.
    let kept = place.path("state/kept").join(format!("head-{}.postcard", digest(&new)));
    let mut forged = Head::load(&kept).unwrap();
    forged.labels[0] = "forged".into();
    forged.save(&kept).unwrap();
    let mut edge = Edge::start(&mut place.edge(&flags));
    edge.expect("last-good", "version 1 is older than version 2");
    // The one before that is the old one: it had been accepted, and nothing else is left.
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    edge.stop();
}

/// Every frame is answered, in order, and by exactly the head that was announced before it.
#[test]
fn heads_change_between_two_frames() {
    let place = Place::new();
    let scene = scene();
    // What each head says of each picture.
    let expected: Vec<BTreeMap<String, Value>> = scene
        .heads
        .iter()
        .map(|head| {
            let mut host = host();
            host.args(["classify", "--json", "--head"]).arg(head);
            let lines = succeed(
                host.args((0..4).map(|number| scene.pictures.join(format!("{number}.bmp")))),
            );
            ndjson(&lines)
                .into_iter()
                .map(|line| (line["source"].to_string(), line["scores"].clone()))
                .collect()
        })
        .collect();
    let contents = scene.heads.each_ref().map(|head| bytes(head));
    place.put("head", &contents[0]);
    let mut edge = Edge::start(&mut place.edge(&["--watch"]));
    let (mut runs, mut number) = (0, 0);
    let check = |line: &Value, runs: usize, number: &mut u64| {
        assert_eq!(line["frame"], *number, "{line}");
        *number += 1;
        assert_eq!(
            expected[runs][&line["source"].to_string()],
            line["scores"],
            "head {runs}: {line}"
        );
    };
    check(&edge.line(), 0, &mut number);
    for round in 1..=6 {
        place.put("head", &contents[round % 2]);
        loop {
            let line = edge.line();
            if line["event"] == "model" {
                assert_eq!(line["state"], "swapped", "{line}");
                assert_eq!(line["head"], digest(&scene.heads[round % 2]));
                runs = round % 2;
                break;
            }
            check(&line, runs, &mut number);
        }
        for _ in 0..8 {
            check(&edge.line(), runs, &mut number);
        }
    }
    edge.stop();
}

/// Whoever hears of changes only must hear that another head says something else.
#[test]
fn a_label_that_changes_with_the_head_is_told() {
    let place = Place::new();
    let [first, other] = &scene().heads;
    place.put("head", &bytes(first));
    let one = scene().pictures.join("0.bmp");
    let mut edge = Device::Native.edge();
    edge.args(["run", "--json", "--events", "--loop", "--watch", "--source"])
        .arg(&one)
        .arg("--head");
    let mut edge =
        Edge::start(edge.arg(place.path("head")).arg("--state").arg(place.path("state")));
    // Written once the first head runs; the next one is looked at twice, half a second apart,
    // before it does.
    while !place.path("state/state.json").exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    place.put("head", &bytes(other));
    let swapped = edge.line();
    assert_eq!(
        (&swapped["event"], &swapped["state"]),
        (&"model".into(), &"swapped".into()),
        "{swapped}"
    );
    let change = edge.line();
    assert_eq!(change["event"], "label", "{change}");
    let labels = |head: &Path| Head::load(head).unwrap().labels;
    assert!(labels(first).iter().any(|label| change["from"] == **label), "{change}");
    assert!(labels(other).iter().any(|label| change["to"] == **label), "{change}");
    edge.stop();
}

#[test]
fn a_bad_head_is_told_once_and_changes_nothing() {
    let place = Place::new();
    let scene = scene();
    place.put("head", &bytes(&scene.heads[0]));
    let mut edge = Edge::start(&mut place.edge(&["--watch"]));
    edge.frame();
    let good = bytes(&scene.heads[1]);
    place.put("head", &good[..good.len() / 2]);
    edge.expect("refused", "is cut");
    // The same again is no news; the next event is that of another damage.
    place.put("head", &good[..good.len() / 2]);
    place.put("head", b"#!/bin/sh");
    edge.expect("refused", "not a head file");
    std::fs::remove_file(place.path("head")).unwrap();
    edge.expect("refused", "cannot read");
    // One whose numbers are fine by themselves, and overflow together.
    let mut huge = Head::load(&scene.heads[1]).unwrap();
    let last = huge.layers.last_mut().unwrap();
    last.kernel.fill(f32::MAX);
    last.bias.fill(f32::MAX);
    huge.layers[0].bias.fill(1e6);
    huge.save(&place.path("huge")).unwrap();
    place.put("head", &bytes(&place.path("huge")));
    edge.expect("refused", "do not add up to 1");
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    // What ran all the time is put in place again.
    place.put("head", &bytes(&scene.heads[0]));
    edge.expect("settled", "");
    place.put("head", &good);
    edge.expect("swapped", &digest(&scene.heads[1]));
    let words = edge.stop();
    assert_eq!(words.matches("refused, the running model stays").count(), 4, "{words}");
}

#[test]
fn a_base_and_its_head_are_taken_together() {
    let place = Place::new();
    let scene = scene();
    place.put("base", &bytes(&base()));
    place.put("head", &bytes(&scene.heads[0]));
    other_base(&place.path("base2"));
    moved(&scene.heads[0], &place.path("base2"), "new ", &place.path("head2"));
    let base_flag = place.path("base");
    let flags = ["--watch", "--base", base_flag.to_str().unwrap()];
    let mut edge = Edge::start(&mut place.edge(&flags));
    edge.frame();
    // The base first, as everybody should.
    place.put("base", &bytes(&place.path("base2")));
    edge.expect("waiting", "was trained on base");
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    place.put("head", &bytes(&place.path("head2")));
    let event = edge.expect("swapped", &digest(&place.path("head2")));
    assert_eq!(event["base"], digest(&place.path("base2")));
    assert_eq!(labels(&edge.frame()), ["new green", "new red"]);
    // Back, the head first.
    place.put("head", &bytes(&scene.heads[0]));
    edge.expect("waiting", "was trained on base");
    assert_eq!(labels(&edge.frame()), ["new green", "new red"]);
    place.put("base", &bytes(&base()));
    edge.expect("swapped", &digest(&base()));
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    // The power goes while only one of them has been replaced.
    place.put("base", &bytes(&place.path("base2")));
    edge.kill();
    let mut edge = Edge::start(&mut place.edge(&flags));
    edge.expect("last-good", "was trained on base");
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    place.put("head", &bytes(&place.path("head2")));
    edge.expect("swapped", &digest(&place.path("base2")));
    assert_eq!(labels(&edge.frame()), ["new green", "new red"]);
    edge.stop();
    let kept = std::fs::read_dir(place.path("state/kept")).unwrap().count();
    assert_eq!(kept, 4, "two pairs, and nothing of what was before");
}

/// The answer to a request of the page's server.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn rolling_back_holds_until_something_else_is_put_in_place() {
    let place = Place::new();
    let scene = scene();
    let rollback = || {
        let mut edge = Device::Native.edge();
        edge.args(["rollback", "--json", "--state"]).arg(place.path("state"));
        edge
    };
    fail(&mut rollback(), 1, "no such state directory");
    place.put("head", &bytes(&scene.heads[0]));
    // A port that is free; another program may take it meanwhile, which then fails loudly.
    let address =
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let flags = ["--watch", "--http", &address];
    let mut edge = Edge::start(&mut place.edge(&flags));
    edge.frame();
    fail(&mut rollback(), 1, "no earlier model to roll back to");
    place.put("head", &bytes(&scene.heads[1]));
    edge.expect("swapped", "");
    let answer = &ndjson(&succeed(&mut rollback()))[0];
    assert_eq!(
        (&answer["head"], &answer["running"]),
        (&digest(&scene.heads[0]).into(), &true.into())
    );
    edge.expect("rolled-back", "was rolled back from");
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    let metrics = get(&address, "/metrics");
    for line in ["vgg_edge_last_good 1", "vgg_edge_swaps_total{outcome=\"done\"} 2"] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in {metrics}");
    }
    // It holds over restarts, however they come, and over reloads.
    edge.kill();
    let mut edge = Edge::start(&mut place.edge(&flags));
    edge.expect("rolled-back", "was rolled back from");
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    succeed(Command::new("kill").args(["-HUP", &edge.child.id().to_string()]));
    edge.expect("rolled-back", "");
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    // There and back.
    succeed(&mut rollback());
    edge.expect("swapped", &digest(&scene.heads[1]));
    assert_eq!(labels(&edge.frame()), ["cat", "dog", "fox"]);
    assert!(get(&address, "/metrics").contains("vgg_edge_last_good 0"));
    succeed(&mut rollback());
    edge.expect("rolled-back", "");
    edge.stop();
    // When nothing runs, the next start does it.
    let answer = &ndjson(&succeed(&mut rollback()))[0];
    assert_eq!(
        (&answer["head"], &answer["running"]),
        (&digest(&scene.heads[1]).into(), &false.into())
    );
    succeed(&mut rollback());
    // Something else that is put in place ends it.
    moved(&scene.heads[0], &base(), "third ", &place.path("third"));
    place.put("head", &bytes(&place.path("third")));
    let mut edge = Edge::start(&mut place.edge(&flags));
    assert_eq!(labels(&edge.frame()), ["third green", "third red"]);
    // One folder, one run.
    fail(&mut place.edge(&["--frames", "1"]), 1, "another edge run");
    let info = succeed(Device::Native.edge().args(["info", "--state"]).arg(place.path("state")));
    assert!(info.contains("kept ") && !info.contains("rejected"), "{info}");
    edge.stop();
}

/// The process is killed at any moment of a swap, many times (`VGG_EDGE_KILLS`); what starts then
/// runs a whole pair.
#[test]
fn killed_at_any_moment_it_starts_with_a_good_pair() {
    let kills: u32 = std::env::var("VGG_EDGE_KILLS").map_or(10, |text| text.parse().unwrap());
    let place = Place::new();
    let scene = scene();
    place.put("base1", &bytes(&base()));
    other_base(&place.path("base2"));
    let base_path = place.path("base");
    let flags = ["--watch", "--base", base_path.to_str().unwrap()];
    // Two pairs that have nothing in common.
    std::fs::copy(&scene.heads[0], place.path("head1")).unwrap();
    moved(&scene.heads[1], &place.path("base2"), "2 ", &place.path("head2"));
    let known = [vec!["green", "red"], vec!["2 cat", "2 dog", "2 fox"]];
    place.put("base", &bytes(&place.path("base1")));
    place.put("head", &bytes(&place.path("head1")));
    let mut random = 1u32;
    let mut seen = [0, 0];
    for round in 0..kills {
        let mut edge = Edge::start(&mut place.edge(&flags));
        edge.frame();
        let which = 1 + (round + 1) % 2;
        place.put("base", &bytes(&place.path(&format!("base{which}"))));
        let head = bytes(&place.path(&format!("head{which}")));
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if random >> 30 == 0 {
            // Copied over what was there rather than renamed, and cut off by the power.
            std::fs::write(place.path("head"), &head[..head.len() / 3]).unwrap();
        } else {
            place.put("head", &head);
        }
        // Over the time in which it notices, loads, tries, keeps and swaps.
        std::thread::sleep(Duration::from_millis(u64::from(random >> 8) % 2500));
        edge.kill();
        let output = run(&mut place.edge(&[&flags[..], &["--frames", "1"]].concat()));
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && !words.contains("panicked"), "round {round}: {words}");
        let lines = ndjson(&String::from_utf8(output.stdout).unwrap());
        let frame = lines.iter().find(|line| line.get("scores").is_some()).expect("a frame");
        let pair =
            known.iter().position(|known| *known == labels(frame)).expect("a head that was there");
        seen[pair] += 1;
    }
    println!(
        "{kills} kills: started with the first pair {} times, with the second {}",
        seen[0], seen[1]
    );
    assert_eq!(seen[0] + seen[1], kills);
    // Nothing that was half written stays.
    let names = std::fs::read_dir(place.path("state/kept"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.to_string_lossy().ends_with(".tmp")));
}

/// A full disk: without keys the new head runs, but is told to be lost after a power cut; with keys
/// nothing new is taken.
#[test]
fn what_cannot_be_kept_is_told() {
    let place = Place::new();
    let scene = scene();
    place.put("head", &bytes(&scene.heads[0]));
    let mut edge = Edge::start(&mut place.edge(&["--watch"]));
    edge.frame();
    edge.stop();
    let limited = |flags: &[&str]| {
        let mut limited = Command::new("bash");
        limited
            .args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$@\"", "bash"])
            .arg(Device::Native.edge_path());
        limited.args(place.edge(flags).get_args()).current_dir(root()).stdin(Stdio::null());
        limited
    };
    let mut edge = Edge::start(&mut limited(&["--watch"]));
    place.put("head", &bytes(&scene.heads[1]));
    let event = edge.expect("swapped", "cannot write");
    assert!(event["unkept"].is_string(), "{event}");
    assert_eq!(labels(&edge.frame()), ["cat", "dog", "fox"]);
    edge.stop();

    place.keygen("key");
    let base = place.signed_base("key", 1);
    let one = place.sign(&scene.heads[0], "one", "key", 1);
    let two = place.sign(&scene.heads[1], "two", "key", 2);
    let public = place.path("key.pub");
    let flags = ["--watch", "--trust", public.to_str().unwrap(), "--base", base.to_str().unwrap()];
    place.put_signed("head", &one);
    let mut edge = Edge::start(&mut place.edge(&flags));
    edge.frame();
    edge.stop();
    // What was accepted before needs nothing written.
    let mut edge = Edge::start(&mut limited(&flags));
    edge.frame();
    place.put_signed("head", &two);
    let mut event = edge.model();
    if event.to_string().contains("does not match") {
        event = edge.model();
    }
    assert!(
        event["state"] == "refused"
            && event.to_string().contains("cannot record it in the state directory"),
        "{event}"
    );
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    edge.stop();
}

#[test]
fn settings_name_keys_and_a_state_folder() {
    let place = Place::new();
    let scene = scene();
    place.keygen("a");
    place.keygen("b");
    let base = place.signed_base("b", 1);
    let head = place.sign(&scene.heads[0], "head", "a", 1);
    let config = place.path("edge.toml");
    let text = format!(
        "head = {head:?}\nbase = {base:?}\nsource = {:?}\njson = true\nframes = 2\nwatch = true\ntrust = [{:?}, {:?}]\nstate = {:?}\n",
        scene.pictures,
        place.path("a.pub"),
        place.path("b.pub"),
        place.path("state")
    );
    std::fs::write(&config, &text).unwrap();
    let edge = || {
        let mut edge = Device::Native.edge();
        edge.args(["run", "--config"]).arg(&config);
        edge
    };
    assert_eq!(ndjson(&succeed(&mut edge())).len(), 2);
    fail(
        Device::Native.edge().args(["rollback", "--config"]).arg(&config),
        1,
        "no earlier model to roll back to",
    );
    std::fs::write(&config, text.replace(&format!(", {:?}]", place.path("b.pub")), "]")).unwrap();
    // Neither what is in place nor what was kept is signed by the only key that is left.
    fail(&mut edge(), 1, "base: not trusted: it is signed by key");
    std::fs::write(&config, "head = \"h\"\n").unwrap();
    fail(
        Device::Native.edge().args(["rollback", "--config"]).arg(&config),
        1,
        "no state directory",
    );
    assert!(scene.folder.path().exists());
}
