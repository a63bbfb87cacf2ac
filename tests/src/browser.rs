//! Chromium, driven by `browser.py`.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::root;

/// A page in Chromium.
pub struct Page {
    child: Child,
    steps: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Page {
    /// Opens a URL.
    pub fn open(url: &str) -> Self {
        let mut python = Command::new("python3");
        python.arg(root().join("tests/browser.py")).args([url, "--steps"]).current_dir(root());
        let spawned = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.expect("python3 is missing; run ./test, which installs it");
        let steps = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut page = Self { child, steps, answers };
        assert_eq!(page.answer("open"), "ready");
        page
    }

    fn answer(&mut self, step: &str) -> String {
        let line =
            self.answers.next().unwrap_or_else(|| panic!("browser.py exited at {step}")).unwrap();
        let found = line.strip_prefix("ok").unwrap_or_else(|| panic!("{step}: {line}"));
        found.trim().to_owned()
    }

    /// Runs a step of `browser.py`, which must succeed; returns its result.
    pub fn step(&mut self, step: &str) -> String {
        writeln!(self.steps.as_mut().unwrap(), "{step}").unwrap();
        self.answer(step)
    }

    /// Saves a screenshot for manual inspection.
    pub fn screenshot(&mut self, name: &str) {
        self.step(&format!("screenshot target/screenshots/{name}.png"));
    }

    /// Closes the page, which must succeed. A step `calm` before it checks that the browser
    /// reported no errors.
    pub fn close(mut self) {
        self.steps = None;
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // The script exits, and the browser with it, when its stdin is closed.
        self.steps = None;
        let _ = self.child.wait();
    }
}

/// Opens a page, runs steps, all of which must succeed, and closes it; returns the result of each
/// step.
pub fn browse(url: &str, steps: &[String]) -> Vec<String> {
    let mut page = Page::open(url);
    let found = steps.iter().map(|step| page.step(step)).collect();
    page.close();
    found
}
