//! The page of `edge run --http` in a browser.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use tests::browser::Page;
use tests::{Device, host, succeed};

/// A running `edge run` with its page.
struct Edge {
    child: Child,
    /// The logged address of the page.
    url: String,
}

impl Edge {
    /// Starts `edge` on one photograph in a loop.
    fn start(head: &Path, photo: &str, address: &str) -> Self {
        let mut edge = Device::Native.edge();
        edge.args([
            "run", "--json", "--loop", "--fps", "10", "--source", photo, "--http", address,
            "--head",
        ])
        .arg(head);
        let mut child = edge.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut said = Vec::new();
        let url = loop {
            let line = lines.next().unwrap_or_else(|| panic!("edge has ended: {said:?}"));
            if let Some((_, url)) = line.split_once("page at ") {
                break url.trim().to_owned();
            }
            said.push(line);
        };
        // The rest is read so that the program never blocks on a full pipe.
        std::thread::spawn(move || lines.count());
        Self { child, url }
    }

    /// Returns the address, for another instance on the same port.
    fn address(&self) -> String {
        self.url.trim_start_matches("http://").trim_end_matches('/').to_owned()
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        // Like a device that loses power: connections are not closed properly.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn page_shows_the_label_and_reconnects() {
    let folder = tempfile::tempdir().unwrap();
    let head = folder.path().join("head.postcard");
    succeed(host().args(["train", "samples/surfaces", "-o"]).arg(&head));
    let edge = Edge::start(&head, "samples/surfaces/val/grass/000.jpg", "127.0.0.1:0");
    let address = edge.address();

    let mut page = Page::open(&edge.url);
    page.step("live");
    page.step("source streaming");
    page.step("label grass");
    assert_eq!(page.step("picture"), "96", "the width of the photograph");
    assert_eq!(page.step("eval document.querySelectorAll('#bars li').length"), "3");
    for scheme in ["light", "dark"] {
        page.step(&format!("scheme {scheme}"));
        for (name, size) in [("phone", "390 844"), ("desktop", "1440 900")] {
            page.step(&format!("size {size}"));
            page.screenshot(&format!("{name}-{scheme}"));
        }
    }
    page.step("calm");

    page.step("down");
    drop(edge);
    page.step("lost");
    page.screenshot("desktop-lost");

    // Another instance on the same port, with another photograph, so that stale content is
    // detected.
    let edge = Edge::start(&head, "samples/surfaces/val/brick/001.jpg", &address);
    assert_eq!(edge.address(), address);
    page.step("live");
    page.step("label brick");
    page.step("picture");
    page.step("up");
    page.step("calm");
    page.close();
}
