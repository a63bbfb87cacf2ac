//! An emulated machine with virtual cameras: QEMU boots the kernel that `scripts/guest.sh` installs
//! and the crate `guest`, which executes commands sent over the serial line.
//!
//! Nothing is timed: each wait ends when the awaited event happens, or fails the test after
//! [`PATIENCE`].

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{build, root};

/// How long the machine may stay silent during a wait.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The emulated board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Board {
    /// QEMU's own board with two Cortex-A72, the cores of the Raspberry Pi 4.
    Virt,
    /// Raspberry Pi 3B. Four Cortex-A53.
    Pi3,
}

/// A running machine; dropping it kills it.
pub struct Machine {
    qemu: Child,
    input: ChildStdin,
    serial: Receiver<String>,
    /// All lines, each with its time in seconds since boot.
    transcript: Vec<String>,
    booted: Instant,
    programs: BTreeMap<u32, Said>,
    _files: tempfile::TempDir,
}

/// Unread output of a program on the machine.
#[derive(Default)]
struct Said {
    out: VecDeque<String>,
    errors: Vec<String>,
    status: Option<String>,
}

/// Open descriptors and resident memory of a program.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Open descriptors.
    pub descriptors: u64,
    /// Kilobytes of resident memory.
    pub resident: u64,
}

/// A program on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program(u32);

/// A feeder on the machine, which shows images on a video node.
#[derive(Debug, PartialEq, Eq)]
pub struct Feeder(u32);

/// A video node that is held open on the machine.
#[derive(Debug, PartialEq, Eq)]
pub struct Held(u32);

impl Machine {
    /// Boots a machine with these files, given as absolute paths there and paths here.
    pub fn boot(board: Board, files: &[(String, PathBuf)]) -> Self {
        let furniture = root().join("target/guest");
        assert!(
            furniture.join("recipe").exists(),
            "{} is missing; run ./test, which installs it",
            furniture.display()
        );
        let folder = tempfile::tempdir().unwrap();
        let initramfs = folder.path().join("initramfs.cpio");
        let mut archive = Archive::default();
        archive.program(
            "init",
            &fs::read(build("guest", Some("aarch64-unknown-linux-musl"))).unwrap(),
        );
        for entry in fs::read_dir(furniture.join("modules")).unwrap() {
            let entry = entry.unwrap();
            archive.file(
                &format!("modules/{}", entry.file_name().display()),
                &fs::read(entry.path()).unwrap(),
            );
        }
        for (name, path) in files {
            archive.program(name.trim_start_matches('/'), &fs::read(path).unwrap());
        }
        fs::write(&initramfs, archive.finish()).unwrap();

        let mut command = Command::new("qemu-system-aarch64");
        let console = match board {
            Board::Virt => {
                command.args(["-M", "virt", "-cpu", "cortex-a72", "-smp", "2", "-m", "768"]);
                "ttyAMA0"
            }
            Board::Pi3 => {
                command.args(["-M", "raspi3b", "-dtb"]).arg(furniture.join("bcm2837-rpi-3-b.dtb"));
                // The first serial line belongs to Bluetooth, which swallows the input; the second
                // is the mini UART.
                command.args(["-serial", "null"]);
                "ttyS1,115200"
            }
        };
        command.arg("-kernel").arg(furniture.join("vmlinuz")).arg("-initrd").arg(&initramfs);
        command
            .arg("-append")
            .arg(format!("quiet loglevel=3 panic=-1 oops=panic console={console}"));
        command.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]);
        let mut qemu =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap_or_else(|e| {
                panic!("cannot run qemu-system-aarch64: {e}; run ./test, which installs it")
            });
        let (sender, serial) = channel();
        let output = BufReader::new(qemu.stdout.take().unwrap());
        thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let input = qemu.stdin.take().unwrap();
        let mut machine = Self {
            qemu,
            input,
            serial,
            transcript: Vec::new(),
            booted: Instant::now(),
            programs: BTreeMap::new(),
            _files: folder,
        };
        while machine.hear() != "@ready" {}
        machine
    }

    /// Reads the next line of the serial line, and queues it if it is output of a program.
    fn hear(&mut self) -> String {
        let Ok(line) = self.serial.recv_timeout(PATIENCE) else {
            panic!("the emulated machine is silent");
        };
        self.transcript.push(format!("{:8.3} {line}", self.booted.elapsed().as_secs_f32()));
        assert!(!line.starts_with("@panic"), "{line}");
        let mut words = line.splitn(3, ' ');
        if let (Some(kind @ ("@out" | "@err" | "@exit")), Some(id)) = (words.next(), words.next()) {
            let said = self.programs.entry(id.parse().unwrap()).or_default();
            let rest = words.next().unwrap_or_default().to_owned();
            match kind {
                "@out" => said.out.push_back(rest),
                "@err" => said.errors.push(rest),
                _ => said.status = Some(rest),
            }
        }
        line
    }

    /// Executes a command that may fail.
    pub fn attempt(&mut self, words: &[&str]) -> Result<String, String> {
        let command = serde_json::to_string(words).unwrap();
        self.transcript.push(format!("{:8.3} {command}", self.booted.elapsed().as_secs_f32()));
        writeln!(self.input, "{command}").unwrap();
        loop {
            let line = self.hear();
            if let Some(answer) = line.strip_prefix("@ok") {
                return Ok(answer.trim().to_owned());
            }
            if let Some(answer) = line.strip_prefix("@failed") {
                return Err(answer.trim().to_owned());
            }
        }
    }

    /// Executes a command.
    pub fn call(&mut self, words: &[&str]) -> String {
        self.attempt(words).unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    /// Starts a program.
    pub fn spawn(&mut self, arguments: &[&str]) -> Program {
        Program(self.call(&[&["spawn"], arguments].concat()).parse().unwrap())
    }

    /// Returns the next line of a program's stdout, as JSON.
    pub fn result(&mut self, program: Program) -> Value {
        loop {
            let said = self.programs.entry(program.0).or_default();
            if let Some(line) = said.out.pop_front() {
                return serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            }
            if let Some(status) = said.status.take() {
                panic!("the program exited with {status}");
            }
            self.hear();
        }
    }

    /// Returns the unread results of a program, including everything printed until now.
    pub fn pending(&mut self, program: Program) -> Vec<Value> {
        // The serial line keeps the order: everything printed before the answer arrives before it.
        self.usage(program);
        let said = self.programs.entry(program.0).or_default();
        said.out
            .drain(..)
            .map(|line| serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    /// Stops a program by SIGTERM; it must exit with code 0. Returns the unread results, and
    /// stderr.
    pub fn terminate(&mut self, program: Program) -> (Vec<Value>, Vec<String>) {
        self.call(&["terminate", &program.0.to_string()]);
        self.finish(program)
    }

    /// Waits until a program exits, which must be with code 0. Returns the unread results, and
    /// stderr.
    pub fn finish(&mut self, program: Program) -> (Vec<Value>, Vec<String>) {
        while self.programs.entry(program.0).or_default().status.is_none() {
            self.hear();
        }
        let said = self.programs.remove(&program.0).unwrap();
        if said.status.as_deref() != Some("0") {
            panic!("the program exited with {:?}", said.status);
        }
        (said.out.iter().map(|line| serde_json::from_str(line).unwrap()).collect(), said.errors)
    }

    /// Returns the resource usage of a program.
    pub fn usage(&mut self, program: Program) -> Usage {
        let answer = self.call(&["usage", &program.0.to_string()]);
        let (descriptors, resident) = answer.split_once(' ').unwrap();
        Usage { descriptors: descriptors.parse().unwrap(), resident: resident.parse().unwrap() }
    }

    /// Returns the sandbox state of a program's threads from `/proc`, each distinct state once.
    pub fn fence(&mut self, program: Program) -> String {
        self.call(&["fence", &program.0.to_string()])
    }

    /// Shows the first of some image files on a node, in a format such as `YUYV`.
    pub fn feed(&mut self, node: &str, format: &str, size: &str, files: &[String]) -> Feeder {
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        Feeder(
            self.call(&[&["feed", node, format, size], files.as_slice()].concat()).parse().unwrap(),
        )
    }

    /// Shows another of a feeder's images.
    pub fn show(&mut self, feeder: &Feeder, index: usize) {
        self.call(&["show", &feeder.0.to_string(), &index.to_string()]);
    }

    /// Waits until the current image has been shown `times` times.
    pub fn play(&mut self, feeder: &Feeder, times: u32) {
        while self.call(&["played", &feeder.0.to_string()]).parse::<u32>().unwrap() < times {
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops a feeder.
    pub fn end(&mut self, feeder: Feeder) {
        self.call(&["end", &feeder.0.to_string()]);
    }

    /// Holds a node open, so that its number is not given to another.
    pub fn hold(&mut self, node: &str) -> Held {
        Held(self.call(&["hold", node]).parse().unwrap())
    }

    /// Closes a held node.
    pub fn release(&mut self, held: Held) {
        self.call(&["release", &held.0.to_string()]);
    }

    /// Sets a control, or presses a button.
    pub fn control(&mut self, node: &str, name: &str, value: i32) {
        self.call(&["control", node, name, &value.to_string()]);
    }

    /// Powers the machine off.
    pub fn power_off(mut self) {
        writeln!(self.input, "[\"poweroff\"]").unwrap();
        // Reads the remaining output, so that the line does not fill up.
        while let Ok(line) = self.serial.recv_timeout(PATIENCE) {
            self.transcript.push(line);
        }
        let status = self.qemu.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() {
            let tail = self.transcript.len().saturating_sub(60);
            eprintln!("the last lines of the serial line:\n{}", self.transcript[tail..].join("\n"));
        }
        // Both fail if QEMU has exited by itself.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// A builder of an initramfs: a cpio archive in the format "newc".
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    folders: Vec<PathBuf>,
}

impl Archive {
    const FOLDER: u32 = 0o040_755;
    const FILE: u32 = 0o100_644;
    const PROGRAM: u32 = 0o100_755;

    fn file(&mut self, name: &str, content: &[u8]) {
        self.parents(name);
        self.entry(name, Self::FILE, content);
    }

    fn program(&mut self, name: &str, content: &[u8]) {
        self.parents(name);
        self.entry(name, Self::PROGRAM, content);
    }

    /// The kernel does not create the parent directories of a file.
    fn parents(&mut self, name: &str) {
        let folder = Path::new(name).parent().unwrap().to_owned();
        if folder != Path::new("") && !self.folders.contains(&folder) {
            let name = folder.to_str().unwrap().to_owned();
            self.parents(&name);
            self.entry(&name, Self::FOLDER, &[]);
            self.folders.push(folder);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), length of the
        // name, checksum
        let inode = self.bytes.len() as u32;
        let fields =
            [inode, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
