//! Init program of the machine that the camera tests boot under QEMU; `tests/src/machine.rs` is its
//! counterpart.
//!
//! It loads the virtual cameras, then executes the commands on the serial line: each line is a JSON
//! array of strings. It answers each with `@ok TEXT` or `@failed TEXT`; output of the programs it
//! runs is sent as `@out ID LINE`, `@err ID LINE` and `@exit ID STATUS`. Everything else on the
//! line comes from the kernel.

mod feeder;
mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;

use feeder::Feeder;
use node::Node;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, kill_process};
use rustix::system::{RebootCommand, finit_module, reboot};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

/// Parameters of the modules: vivid is a webcam (input 0) and an HDMI grabber (input 1) whose cable
/// leads to its output node; v4l2loopback provides one node, which is a camera while a program
/// writes to it.
const PARAMETERS: [(&str, &std::ffi::CStr); 2] = [
    ("vivid", c"node_types=0x101 num_inputs=2 input_types=0xc num_outputs=1 output_types=1"),
    ("v4l2loopback", c"devices=1 video_nr=20 exclusive_caps=1"),
];

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!(
            "guest: this is the init program of an emulated machine; cargo test --test e2e camera \
                starts it"
        );
        return ExitCode::from(2);
    }
    if let Err(e) = start().and_then(|()| serve()) {
        println!("@panic {e}");
    }
    // Pending output leaves by the serial line before the power goes off.
    let _ = rustix::termios::tcdrain(io::stdout());
    let failed = reboot(RebootCommand::PowerOff);
    println!("@panic cannot power off: {failed:?}");
    ExitCode::FAILURE
}

/// Mounts file systems, turns off the terminal's echo, and loads the modules in the order of their
/// names.
fn start() -> Result<(), Box<dyn Error>> {
    for (kind, folder) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(folder)?;
        mount(kind, folder, kind, MountFlags::empty(), None)
            .map_err(|e| format!("cannot mount {folder}: {e}"))?;
    }
    let mut terminal = tcgetattr(io::stdin())?;
    terminal.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
    tcsetattr(io::stdin(), OptionalActions::Now, &terminal)?;
    let mut modules: Vec<_> =
        fs::read_dir("/modules")?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    modules.sort();
    for path in modules {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = name.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-');
        let parameters =
            PARAMETERS.iter().find(|(module, _)| *module == name).map_or(c"", |(_, words)| words);
        finit_module(File::open(&path)?, parameters, 0)
            .map_err(|e| format!("cannot load {name}: {e}"))?;
    }
    // On a separate line: the text before may not end in a newline, and the mini UART of the Pi
    // starts with noise.
    println!("\n@ready");
    Ok(())
}

/// Executes the commands on the serial line until `poweroff`.
fn serve() -> Result<(), Box<dyn Error>> {
    let mut state = State::default();
    for line in io::stdin().lock().lines() {
        let words: Vec<String> = serde_json::from_str(&line?)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if words == ["poweroff"] {
            return Ok(());
        }
        match state.command(&words) {
            Ok(answer) => println!("@ok {answer}"),
            Err(e) => println!("@failed {e}"),
        }
    }
    Ok(())
}

/// Running programs, feeders and held nodes; ids are never reused.
#[derive(Default)]
struct State {
    next: u32,
    programs: BTreeMap<u32, Pid>,
    feeders: BTreeMap<u32, Feeder>,
    held: BTreeMap<u32, Node>,
}

impl State {
    fn command(&mut self, words: &[&str]) -> Result<String, Box<dyn Error>> {
        Ok(match words {
            ["spawn", program, arguments @ ..] => self.spawn(program, arguments)?.to_string(),
            ["terminate", id] => {
                kill_process(self.program(id)?, Signal::TERM)?;
                String::new()
            }
            ["usage", id] => usage(self.program(id)?)?,
            ["fence", id] => fence(self.program(id)?)?,
            ["feed", path, fourcc, size, files @ ..] => {
                let pictures = files.iter().map(fs::read).collect::<io::Result<_>>()?;
                let (width, height) = parse_size(size)?;
                let feeder = Feeder::start(path, &node::fourcc(fourcc)?, width, height, pictures)?;
                self.next += 1;
                self.feeders.insert(self.next, feeder);
                self.next.to_string()
            }
            ["show", id, index] => {
                self.feeders.get(&id.parse()?).ok_or("no such feeder")?.show(index.parse()?)?;
                String::new()
            }
            ["played", id] => {
                self.feeders.get(&id.parse()?).ok_or("no such feeder")?.played().to_string()
            }
            ["end", id] => {
                self.feeders.remove(&id.parse()?).ok_or("no such feeder")?.end()?;
                String::new()
            }
            ["hold", path] => {
                self.next += 1;
                self.held.insert(self.next, Node::open(path)?);
                self.next.to_string()
            }
            ["release", id] => {
                self.held.remove(&id.parse()?).ok_or("no such held node")?;
                String::new()
            }
            ["control", path, name, value] => {
                Node::open(path)?.set_control(name, value.parse()?)?;
                String::new()
            }
            ["input", path, index] => {
                Node::open(path)?.set_input(index.parse()?)?;
                String::new()
            }
            ["timings", path] => {
                Node::open(path)?.set_timings()?;
                String::new()
            }
            ["format", path, fourcc, size] => {
                let (width, height) = parse_size(size)?;
                Node::open(path)?.set_format(
                    node::CAPTURE,
                    &node::fourcc(fourcc)?,
                    width,
                    height,
                )?
            }
            ["write", path, text] => {
                fs::write(path, text)?;
                String::new()
            }
            _ => return Err(format!("unknown command {words:?}").into()),
        })
    }

    fn program(&self, id: &str) -> Result<Pid, Box<dyn Error>> {
        Ok(*self.programs.get(&id.parse()?).ok_or("no such program")?)
    }

    fn spawn(&mut self, program: &str, arguments: &[&str]) -> Result<u32, Box<dyn Error>> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        self.next += 1;
        let id = self.next;
        self.programs.insert(id, Pid::from_child(&child));
        thread::spawn(move || follow(id, &mut child));
        Ok(id)
    }
}

/// Forwards the output of a program, then its exit status.
fn follow(id: u32, child: &mut Child) {
    thread::scope(|scope| {
        if let Some(errors) = child.stderr.take() {
            scope.spawn(move || pass_on("err", id, errors));
        }
        if let Some(results) = child.stdout.take() {
            pass_on("out", id, results);
        }
    });
    match child.wait() {
        Ok(status) => match status.signal() {
            None => println!("@exit {id} {}", status.code().unwrap_or(-1)),
            Some(signal) => println!("@exit {id} signal {signal}"),
        },
        Err(e) => println!("@exit {id} {e}"),
    }
}

fn pass_on(kind: &str, id: u32, stream: impl Read) {
    for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
        println!("@{kind} {id} {}", String::from_utf8_lossy(&line));
    }
}

/// Returns the number of open descriptors and the kilobytes of resident memory.
fn usage(pid: Pid) -> Result<String, Box<dyn Error>> {
    let pid = pid.as_raw_nonzero();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
        .ok_or("the program has exited")?;
    Ok(format!("{descriptors} {resident}"))
}

/// Returns the sandbox state of a program's threads, each distinct state once.
fn fence(pid: Pid) -> Result<String, Box<dyn Error>> {
    let mut ways = BTreeSet::new();
    for task in fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let lines = status
            .lines()
            .filter(|line| line.starts_with("NoNewPrivs:") || line.starts_with("Seccomp:"));
        ways.insert(lines.map(|line| line.replace('\t', " ")).collect::<Vec<_>>().join(" "));
    }
    Ok(ways.into_iter().collect::<Vec<_>>().join(", "))
}

fn parse_size(words: &str) -> Result<(u32, u32), Box<dyn Error>> {
    let (width, height) = words.split_once('x').ok_or("a size is WIDTHxHEIGHT")?;
    Ok((width.parse()?, height.parse()?))
}
