//! `host label`: from frames that edge has collected, by HTTP and by keyboard in Chromium, to a
//! head.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use image::{DynamicImage, ImageFormat};
use serde_json::{Value, json};
use tests::browser::{Page, browse};
use tests::{Device, encode, fail, host, ndjson, picture, run, small_head, succeed};

/// `host label`, running.
struct Label {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// What it said at the start.
    hello: Value,
    token: String,
}

impl Label {
    fn start(args: &[&str], dir: &Path) -> Self {
        let mut host = host();
        host.args(["label", "--json"])
            .args(args)
            .arg(dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut child = host.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let hello =
            serde_json::from_str(&lines.next().expect("host label has ended").unwrap()).unwrap();
        let mut label = Self { child, lines, hello, token: String::new() };
        let page = label.ask("GET / HTTP/1.1", "", "");
        let token = page.1.split("name=\"token\" content=\"").nth(1).unwrap();
        label.token = token.split('"').next().unwrap().to_owned();
        label
    }

    fn url(&self) -> &str {
        self.hello["url"].as_str().unwrap()
    }

    fn address(&self) -> &str {
        self.url().trim_start_matches("http://").trim_end_matches('/')
    }

    /// Sends a request, by default under the right host; gives the head and the body of the answer.
    fn ask(&self, request: &str, headers: &str, body: &str) -> (String, String) {
        let host = if headers.contains("Host:") {
            String::new()
        } else {
            format!("Host: {}\r\n", self.address())
        };
        let mut stream = TcpStream::connect(self.address()).unwrap();
        let length = if body.is_empty() {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        write!(stream, "{request}\r\n{host}{headers}{length}Connection: close\r\n\r\n{body}")
            .unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let answer = String::from_utf8_lossy(&bytes);
        let (head, body) =
            answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{request}: {answer}"));
        (head.to_owned(), body.to_owned())
    }

    fn get(&self, path: &str) -> (String, String) {
        self.ask(&format!("GET {path} HTTP/1.1"), "", "")
    }

    /// Gives an order as the page does.
    fn order(&self, order: Value) -> Value {
        let headers =
            format!("Content-Type: application/json\r\nX-Vgg-Edge-Token: {}\r\n", self.token);
        let (head, body) = self.ask("POST /do HTTP/1.1", &headers, &order.to_string());
        assert!(head.starts_with("HTTP/1.1 200"), "{head} {body}");
        serde_json::from_str(&body).unwrap()
    }

    fn state(&self) -> Value {
        serde_json::from_str::<Value>(&self.get("/state").1).unwrap()["state"].take()
    }

    /// Ctrl-C; gives the summary.
    fn stop(mut self) -> Value {
        succeed(Command::new("kill").args(["-INT", &self.child.id().to_string()]));
        let summary = self.lines.next().expect("a summary").unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        serde_json::from_str(&summary).unwrap()
    }
}

impl Drop for Label {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The names in a folder, none if it is not there.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn jpegs(folder: &Path) -> BTreeSet<String> {
    names(folder).into_iter().filter(|name| name.ends_with(".jpg")).collect()
}

/// A folder with pictures of different content, `0.png` and so on.
fn pictures(folder: &Path, count: u32) {
    std::fs::create_dir_all(folder).unwrap();
    for number in 0..count {
        let bytes = encode(&DynamicImage::ImageRgb8(picture(48, 36, number)), ImageFormat::Png);
        std::fs::write(folder.join(format!("{number}.png")), bytes).unwrap();
    }
}

#[test]
fn collected_frames_are_sorted_by_keyboard_and_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let (head, dir) = (folder.path().join("head.postcard"), folder.path().join("collected"));
    succeed(
        host()
            .args(["train", "samples/surfaces", "--size", "32", "--epochs", "4", "-o"])
            .arg(&head),
    );
    let mut edge = Device::Native.edge();
    // Not live, so that no frame is dropped, however slow the disk.
    edge.args(["run", "--source", "samples/surfaces.y4m", "--collect-below", "1", "--head"])
        .arg(&head);
    succeed(edge.arg("--collect").arg(&dir));
    let collected = jpegs(&dir);
    assert!(collected.len() >= 7, "{collected:?}");
    let frames = std::fs::read(dir.join("frames.ndjson")).unwrap();

    let label = Label::start(&[], &dir);
    assert_eq!(label.hello["pictures"], collected.len());
    let state = label.state();
    let classes: Vec<_> =
        state["classes"].as_array().unwrap().iter().map(|class| &class["name"]).collect();
    assert_eq!(classes, ["brick", "grass", "gravel"], "the labels that edge knew");
    let item = &state["item"];
    assert_eq!(item["suggestion"], item["label"]);
    // The first is the one of which edge was least sure.
    let margin = |scores: &Value| {
        let mut scores: Vec<f64> =
            scores.as_object().unwrap().values().map(|v| v.as_f64().unwrap()).collect();
        scores.sort_by(f64::total_cmp);
        scores[scores.len() - 1] - scores[scores.len() - 2]
    };
    let lines = ndjson(std::str::from_utf8(&frames).unwrap());
    let least = lines.iter().map(|line| margin(&line["scores"])).fold(f64::INFINITY, f64::min);
    assert_eq!(margin(&item["scores"]), least);

    let total = collected.len();
    let left = |count: usize| {
        format!(
            "until state && state.open + state.skipped === {count} && seen === (state.item?.id ?? null)"
        )
    };
    let mut steps = vec![left(total)];
    for (name, size) in [("phone", "390 844"), ("desktop", "1280 800")] {
        for scheme in ["light", "dark"] {
            steps.push(format!("scheme {scheme}"));
            steps.push(format!("size {size}"));
            steps.push(format!("screenshot target/screenshots/label-{name}-{scheme}.png"));
        }
    }
    let mut add = |new: &[&str]| steps.extend(new.iter().map(|step| (*step).to_owned()));
    // A class by its digit, the suggestion by space, undone and done again, a new class, one of no
    // use, one put off.
    add(&["key 1", &left(total - 1), "key 2", &left(total - 2), "key Space", &left(total - 3)]);
    add(&["key u", &left(total - 2), "key Enter", &left(total - 3)]);
    add(&[
        "key n",
        "until $('dialog').open",
        "type a/b",
        "key Enter",
        "until $('wrong').textContent.includes('slashes')",
    ]);
    add(&["screenshot target/screenshots/label-new.png"]);
    add(&[
        "eval $('name').value = ''",
        "type wet sand",
        "key Enter",
        "until !$('dialog').open",
        &left(total - 4),
    ]);
    add(&[
        "key x",
        &left(total - 5),
        "key s",
        "until state.skipped === 1",
        "click skip",
        "until state.skipped === 2",
    ]);
    // After a click the space bar is not the button's.
    add(&[
        "eval document.activeElement === document.body",
        "until seen === (state.item?.id ?? null)",
        "key u",
    ]);
    add(&["until state.skipped === 1", "until seen === state.item.id"]);
    for count in (0..total - 5).rev().filter(|&count| count > 0) {
        add(&["until seen === state.item.id", "key Space", &left(count)]);
    }
    add(&[
        "until !$('again').hidden",
        "screenshot target/screenshots/label-skipped.png",
        "key Enter",
    ]);
    add(&["until state.item && seen === state.item.id", "key 3", &left(0)]);
    add(&["size 390 844", "screenshot target/screenshots/label-done.png", "calm"]);
    let found = browse(label.url(), &steps);
    assert!(found.contains(&"true".to_owned()));

    let summary = label.stop();
    assert_eq!(
        (&summary["sorted"], &summary["rejected"], &summary["left"]),
        (&json!(total - 1), &json!(1), &json!(0))
    );
    assert_eq!(summary["classes"]["wet sand"], 1);
    assert!(jpegs(&dir).is_empty());
    assert_eq!(std::fs::read(dir.join("frames.ndjson")).unwrap(), frames);
    let rejected = jpegs(&dir.join("_rejected"));
    let mut all = rejected.clone();
    let sorted = dir.join("sorted");
    for class in names(&sorted) {
        all.extend(jpegs(&sorted.join(class)));
    }
    assert_eq!((rejected.len(), all), (1, collected), "each picture is somewhere, once");
    // The log tells the same: what was done, less what was undone.
    let log = ndjson(&std::fs::read_to_string(dir.join("labels.ndjson")).unwrap());
    assert_eq!(log.iter().filter(|line| line["action"] == "undone").count(), 1);
    assert_eq!(log.len(), total + 2);
    for line in &log {
        let to = dir.join(line["to"].as_str().unwrap());
        assert!(line["action"] == "undone" || to.is_file(), "{line}");
    }

    // What was sorted is a data folder, whatever a class is called; `_rejected` is none of it.
    let again = folder.path().join("again.postcard");
    succeed(host().args(["train", "--size", "32", "--epochs", "1", "-o"]).arg(&again).arg(&sorted));
    let inspected: Value =
        serde_json::from_str(&succeed(host().arg("inspect").arg(&again).arg("--json"))).unwrap();
    let classes: BTreeSet<_> =
        inspected["labels"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    assert_eq!(classes, names(&sorted).iter().map(String::as_str).collect());
    assert!(classes.contains("wet sand"));
}

#[test]
fn other_sites_and_other_files_are_out_of_reach() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("in");
    pictures(&dir, 3);
    std::fs::write(folder.path().join("secret.png"), "secret").unwrap();
    symlink(folder.path().join("secret.png"), dir.join("link.png")).unwrap();
    std::fs::create_dir(folder.path().join("elsewhere")).unwrap();
    let hostile = json!({ "file": "../secret.png", "label": "../../elsewhere", "scores": { "../../elsewhere": 1.0 } });
    let name = "<img src=x onerror=alert(1)>.png";
    std::fs::copy(dir.join("0.png"), dir.join(name)).unwrap();
    let odd = json!({ "file": name, "label": "<b>\u{202e}", "scores": { "<b>\u{202e}": 0.9, "c": 0.1 }, "time": "never", "source": 5 });
    std::fs::write(dir.join("frames.ndjson"), format!("{hostile}\nnot json\n{odd}\n")).unwrap();
    std::fs::create_dir(dir.join("sorted")).unwrap();
    symlink(folder.path().join("elsewhere"), dir.join("sorted/trap")).unwrap();
    let label = Label::start(&["--classes", "a,trap"], &dir);
    assert_eq!(label.hello["pictures"], 4, "links are no pictures");

    // Names and numbers that are none.
    for path in [
        "/picture/4",
        "/picture/-1",
        "/picture/..%2fsecret.png",
        "/picture/../secret.png",
        "/../secret.png",
        "/in",
    ] {
        let (head, body) = label.get(path);
        assert!(
            head.starts_with("HTTP/1.1 404") && !body.contains("secret\n") && body != "secret",
            "{path}: {head}"
        );
    }
    let (head, _) = label.get("/picture/0");
    for line in [
        "content-type: image/png",
        "x-content-type-options: nosniff",
        "cross-origin-resource-policy: same-origin",
    ] {
        assert!(head.contains(line), "{head}");
    }
    assert!(label.get("/").0.contains("default-src 'none'"));
    for class in ["../../elsewhere", "..", "", "none", "/tmp"] {
        let answer = label.order(json!({ "sort": { "id": 0, "class": class } }));
        assert!(answer["trouble"].as_str().unwrap().contains("no class"), "{answer}");
    }
    for class in ["../../elsewhere", "a/b", ".hidden", "", "train"] {
        let answer = label.order(json!({ "new": { "id": 0, "class": class } }));
        assert!(!answer["trouble"].is_null(), "{answer}");
    }
    // A class folder that is a link.
    let answer = label.order(json!({ "sort": { "id": 0, "class": "trap" } }));
    assert!(answer["trouble"].as_str().unwrap().contains("stays where it was"), "{answer}");

    // Other sites, other names, no token.
    let json = "Content-Type: application/json\r\n";
    let token = format!("X-Vgg-Edge-Token: {}\r\n", label.token);
    let order = r#"{"reject":{"id":0}}"#;
    let own = format!("Origin: http://{}\r\n", label.address());
    for (headers, code) in [
        (format!("{json}{token}Host: example.com\r\n"), 403),
        (format!("{json}{token}Origin: http://example.com\r\n"), 403),
        (format!("{json}{token}Origin: null\r\n"), 403),
        (format!("{json}{token}Sec-Fetch-Site: cross-site\r\n"), 403),
        (format!("{json}{token}Sec-Fetch-Site: same-site\r\n{own}"), 403),
        (format!("{json}{own}Sec-Fetch-Site: same-origin\r\n"), 403),
        (format!("{json}X-Vgg-Edge-Token: {}\r\n", "0".repeat(32)), 403),
        (format!("Content-Type: text/plain\r\n{token}"), 415),
    ] {
        let (head, _) = label.ask("POST /do HTTP/1.1", &headers, order);
        assert!(head.starts_with(&format!("HTTP/1.1 {code}")), "{headers}: {head}");
    }
    let (head, _) = label.ask(
        "GET /picture/0 HTTP/1.1",
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n",
        "",
    );
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    let (head, _) = label.ask(
        "GET / HTTP/1.1",
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n",
        "",
    );
    assert!(head.starts_with("HTTP/1.1 200"), "a link may lead here: {head}");
    let (head, _) = label.ask("POST /do HTTP/1.1", &format!("{json}{token}"), &" ".repeat(5000));
    assert!(head.starts_with("HTTP/1.1 413"), "{head}");
    let (head, _) = label.ask("POST /do HTTP/1.1", &format!("{json}{token}"), "{");
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    let (head, _) = label.ask("DELETE /picture/0 HTTP/1.1", "", "");
    assert!(head.starts_with("HTTP/1.1 405"), "{head}");
    assert_eq!(label.state()["open"], 4, "nothing was moved");

    // Odd names are shown as text, and no browser runs them.
    let until = "until state && seen === state.item.id".to_owned();
    let shown = "eval [$('file').textContent, document.images.length]".to_owned();
    let found = browse(label.url(), &[until, shown, "calm".to_owned()]);
    assert_eq!(serde_json::from_str::<Value>(&found[1]).unwrap(), json!([name, 1]));

    // Clients that never finish hold up nobody.
    let held: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = TcpStream::connect(label.address()).unwrap();
            stream.write_all(b"POST /do HTTP/1.1\r\nHo").unwrap();
            stream
        })
        .collect();
    let answer = label.order(serde_json::from_str(order).unwrap());
    assert_eq!((&answer["trouble"], &answer["state"]["rejected"]), (&Value::Null, &json!(1)));
    drop(held);
    label.stop();
    assert_eq!(names(&folder.path().join("elsewhere")).len(), 0);
    assert_eq!(std::fs::read(folder.path().join("secret.png")).unwrap(), b"secret");
    assert!(dir.join("link.png").is_symlink());
}

#[test]
fn what_goes_wrong_is_told_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("in");
    pictures(&dir, 5);
    std::fs::write(dir.join("5.png"), "no picture").unwrap();
    std::fs::write(
        dir.join("6.bmp"),
        encode(&DynamicImage::ImageRgb8(picture(9, 9, 1)), ImageFormat::Bmp),
    )
    .unwrap();
    let data = folder.path().join("data");
    // A name that is taken by another picture, and one by the same.
    for (number, other) in [(0, 4), (1, 1)] {
        std::fs::create_dir_all(data.join("red")).unwrap();
        std::fs::copy(dir.join(format!("{other}.png")), data.join(format!("red/{number}.png")))
            .unwrap();
    }
    let before = std::fs::read(dir.join("0.png")).unwrap();
    let label = Label::start(
        &["--to", data.to_str().unwrap(), "--head", small_head().to_str().unwrap()],
        &dir,
    );
    let classes = label.state()["classes"].clone();
    assert_eq!(classes, json!([{ "name": "green", "count": 0 }, { "name": "red", "count": 2 }]));
    for id in [0, 1] {
        assert_eq!(
            label.order(json!({ "sort": { "id": id, "class": "red" } }))["trouble"],
            Value::Null
        );
    }
    let red = names(&data.join("red"));
    assert_eq!(
        (red.len(), red.contains("0.png"), red.contains("1.png")),
        (3, true, true),
        "{red:?}"
    );
    let new = red.iter().find(|name| name.starts_with("0-")).unwrap();
    assert_eq!(std::fs::read(data.join("red").join(new)).unwrap(), before);
    // The same order again, as by a second window.
    let answer = label.order(json!({ "sort": { "id": 0, "class": "red" } }));
    assert!(answer["trouble"].as_str().unwrap().contains("already"), "{answer}");

    // Formats: what browsers do not know comes as JPEG, what is no picture is said to be none.
    assert!(label.get("/picture/6").0.contains("content-type: image/jpeg"));
    let (head, words) = label.get("/picture/5");
    assert!(head.starts_with("HTTP/1.1 415") && words.contains("5.png"), "{head} {words}");

    // A picture that has gone.
    std::fs::remove_file(dir.join("2.png")).unwrap();
    let answer = label.order(json!({ "sort": { "id": 2, "class": "green" } }));
    assert!(answer["trouble"].as_str().unwrap().contains("no longer"), "{answer}");
    assert_eq!(
        (&answer["state"]["gone"], &answer["state"]["item"]["file"]),
        (&json!(1), &json!("3.png"))
    );

    // A class folder that cannot be written to: for root, that is no folder at all.
    std::fs::write(data.join("green"), "").unwrap();
    let answer = label.order(json!({ "sort": { "id": 3, "class": "green" } }));
    assert!(answer["trouble"].as_str().unwrap().contains("stays where it was"), "{answer}");
    std::fs::remove_file(data.join("green")).unwrap();
    std::fs::create_dir(data.join("green")).unwrap();
    std::fs::set_permissions(data.join("green"), PermissionsExt::from_mode(0o500)).unwrap();
    let answer = label.order(json!({ "sort": { "id": 3, "class": "green" } }));
    let refused = !dir.join("3.png").exists();
    assert_eq!(
        refused,
        answer["trouble"].is_null(),
        "root may write anywhere, others may not: {answer}"
    );
    std::fs::set_permissions(data.join("green"), PermissionsExt::from_mode(0o700)).unwrap();

    // No `calm` at the end: the browser complains of the picture that is none. The page says so
    // too, and lets what cannot be shown be rejected.
    std::fs::remove_file(dir.join("4.png")).unwrap();
    let mut steps = vec![
        "until state && !$('notice').hidden && $('notice').textContent.includes('4.png is no longer')",
    ];
    if !refused {
        steps.extend(["until seen === 3", "key 1"]);
    }
    steps.extend(["until seen === 5 && $('veil-title').textContent.includes('cannot be shown')"]);
    steps.extend(["screenshot target/screenshots/label-broken.png", "key x", "until seen === 6"]);
    let steps: Vec<String> = steps.into_iter().map(str::to_owned).collect();
    browse(label.url(), &steps);
    assert_eq!(names(&dir.join("_rejected")), BTreeSet::from(["5.png".to_owned()]));

    // All that can be undone, is; the file of the same content comes back as well.
    while label.state()["steps"] != 0 {
        assert_eq!(label.order(json!({ "undo": {} }))["trouble"], Value::Null);
    }
    assert!(!dir.join("_rejected").exists());
    let left: BTreeSet<String> =
        ["0.png", "1.png", "3.png", "5.png", "6.bmp", "labels.ndjson"].map(str::to_owned).into();
    assert_eq!(names(&dir), left);
    assert_eq!(std::fs::read(dir.join("0.png")).unwrap(), before);
    assert_eq!(names(&data.join("red")).len(), 2);
    let summary = label.stop();
    assert_eq!(summary, json!({ "sorted": 0, "rejected": 0, "left": 5, "classes": {} }));
}

#[test]
fn the_page_says_when_the_program_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    pictures(folder.path(), 2);
    let label = Label::start(&["--classes", "a,b"], folder.path());
    let mut page = Page::open(label.url());
    page.step("until seen === state.item.id");
    page.step("down");
    label.stop();
    page.step("key 1");
    page.step("until $('notice').textContent.includes('cannot be reached')");
    page.close();
    assert_eq!(
        names(folder.path()),
        BTreeSet::from(["0.png".to_owned(), "1.png".to_owned()]),
        "no folder is left"
    );
}

#[test]
fn command_lines_that_make_no_sense() {
    let folder = tempfile::tempdir().unwrap();
    let dir: PathBuf = folder.path().join("in");
    let label = |args: &[&str]| {
        let mut host = host();
        host.arg("label").arg(&dir).args(args);
        host
    };
    fail(&mut label(&[]), 1, "cannot open the directory");
    std::fs::create_dir(&dir).unwrap();
    fail(&mut label(&[]), 1, "no images to label");
    assert_eq!(names(&dir).len(), 0, "no folder is left");
    pictures(&dir, 1);
    for address in ["0.0.0.0:0", "192.168.1.2:80", "[::]:0"] {
        fail(&mut label(&["--http", address]), 2, "other machines");
    }
    fail(&mut label(&["--classes", "a,x/b"]), 2, "slashes");
    fail(&mut label(&["--to", dir.to_str().unwrap()]), 1, "--to");
    fail(&mut label(&["--head", "samples/README.md"]), 1, "samples/README.md");
    let both = run(&mut label(&["--classes", "a", "--head", "x"]));
    assert_eq!(both.status.code(), Some(2));
    assert_eq!(run(&mut label(&["--http", "nowhere"])).status.code(), Some(2));
    assert_eq!(names(&dir), BTreeSet::from(["0.png".to_owned()]));
}
