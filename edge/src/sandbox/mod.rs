//! The sandbox that `edge` enters before it reads untrusted data: files, frames, requests.
//!
//! Landlock limits the files and ports that it can access, seccomp the system calls. Both apply to
//! the thread that enters and to those it starts later, so [`SandboxOptions::enter`] is called
//! before the first thread starts, and fails after that. Limits are never lifted: access that was
//! not requested at the start, such as to a head in another directory, needs a restart.

mod landlock;
mod seccomp;

use std::fmt;
use std::path::{Path, PathBuf};

use ::landlock::PathFd;
use anyhow::{Result, bail, ensure};

/// The protection that is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// All that the kernel supports; what it lacks is reported
    Auto,
    /// Full protection; edge does not start without it
    Require,
    /// No sandbox
    Off,
}

/// The flag of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args)]
pub struct SandboxOptions {
    /// Deny access to files, ports and system calls that edge does not need
    ///
    /// Uses landlock for files and ports and seccomp for system calls.
    #[arg(long = "sandbox", value_name = "MODE", value_enum, default_value_t = Mode::Auto)]
    pub mode: Mode,
}

/// The access that must remain in the sandbox. Computing it has no side effects.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Files, and directories with everything in them.
    read: Vec<PathBuf>,
    /// Directories with everything in them.
    write: Vec<PathBuf>,
    cameras: bool,
    port: Option<u16>,
    /// Talks to systemd.
    service: bool,
}

impl Needs {
    /// A file, as long as it stays the same one.
    pub fn file(&mut self, path: &Path) {
        self.read.push(path.to_owned());
    }

    /// A file that may be replaced: its directory, and the one that a link leads to now.
    pub fn replaceable(&mut self, path: &Path) {
        self.read.push(parent(path).to_owned());
        if let Ok(target) = std::fs::canonicalize(path) {
            self.read.push(parent(&target).to_owned());
        }
    }

    /// A directory, and the targets of links in it.
    pub fn directory(&mut self, path: &Path) {
        self.read.push(path.to_owned());
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        self.read
            .extend(entries.filter(|entry| entry.path().is_symlink()).map(|entry| entry.path()));
    }

    /// A directory in which files are created, replaced and removed. It must exist when the sandbox
    /// is entered.
    pub fn writable(&mut self, path: &Path) {
        self.write.push(path.to_owned());
    }

    /// A camera, which may come back under another node: this allows all of `/dev`.
    pub fn camera(&mut self, path: &Path) {
        self.read.push(path.to_owned());
        self.cameras = true;
    }

    /// A TCP port to listen at.
    pub fn listen(&mut self, port: u16) {
        self.port = Some(port);
    }

    /// The socket of systemd, if there is one.
    pub fn service(&mut self) {
        self.service = std::env::var_os("NOTIFY_SOCKET").is_some();
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// How much of the requested protection is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxState {
    /// All.
    Full,
    /// Some.
    Partial,
    /// Nothing, since the kernel supports nothing.
    None,
    /// Nothing, as requested.
    Off,
}

impl SandboxState {
    /// The name, as in messages and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Partial => "partial",
            Self::None => "none",
            Self::Off => "off",
        }
    }
}

/// The sandbox that was entered.
#[derive(Debug)]
pub struct Sandbox {
    /// How much is in force.
    pub state: SandboxState,
    /// Version of landlock's interface that is in force; 0 for none.
    pub landlock: i32,
    /// Whether system calls are filtered.
    pub seccomp: bool,
    /// Descriptions of limits that were requested and are not in force.
    pub missing: Vec<String>,
    /// The kernel drops the rule for `/proc/self` with the directory, which is kept open for that.
    _proc: Option<PathFd>,
}

impl SandboxOptions {
    /// Enters the sandbox, with this thread and those it starts later.
    ///
    /// # Errors
    /// With [`Mode::Require`], missing protection; a thread that runs already.
    pub fn enter(self, needs: &Needs) -> Result<Sandbox> {
        if self.mode == Mode::Off {
            return Ok(Sandbox {
                state: SandboxState::Off,
                landlock: 0,
                seccomp: false,
                missing: Vec::new(),
                _proc: None,
            });
        }
        // Without /proc, the order of the code must suffice. An emulator has its own threads, but
        // no sandbox either.
        let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
        let sandbox = restrict(needs);
        ensure!(
            threads == 1 || sandbox.state == SandboxState::None,
            "internal error: the sandbox is entered too late, {threads} threads run already"
        );
        if self.mode == Mode::Require && sandbox.state != SandboxState::Full {
            bail!(
                "--sandbox require: not available on this system: {}; \
                 --sandbox auto uses what is available",
                sandbox.missing()
            );
        }
        Ok(sandbox)
    }
}

/// As [`SandboxOptions::enter`], without checking for other threads.
fn restrict(needs: &Needs) -> Sandbox {
    let mut missing = Vec::new();
    // Landlock first: seccomp does not allow its system calls.
    let (landlock, proc) = match landlock::restrict(needs, &mut missing) {
        Ok((abi, proc)) => (abi, proc),
        Err(e) => {
            missing.push(format!("landlock: {e}"));
            (0, None)
        }
    };
    let seccomp = match seccomp::restrict(needs) {
        Ok(()) => true,
        Err(e) => {
            missing.push(format!("seccomp: {e}"));
            false
        }
    };
    let state = match (landlock > 0, seccomp) {
        (false, false) => SandboxState::None,
        _ if missing.is_empty() => SandboxState::Full,
        _ => SandboxState::Partial,
    };
    Sandbox { state, landlock, seccomp, missing, _proc: proc }
}

impl Sandbox {
    fn missing(&self) -> String {
        self.missing.join("; ")
    }

    /// Adds to an access error that the sandbox may be the cause.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let is_denied = |e: &std::io::Error| e.kind() == std::io::ErrorKind::PermissionDenied;
        let denied = error.chain().any(|cause| cause.downcast_ref().is_some_and(is_denied));
        if denied && matches!(self.state, SandboxState::Full | SandboxState::Partial) {
            error.context(
                "the sandbox limits edge to the directories, sources and port it was started with; \
                 restart edge",
            )
        } else {
            error
        }
    }
}

impl fmt::Display for Sandbox {
    /// `full: landlock 7, seccomp`, or what is missing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.state.name())?;
        let mut parts = Vec::new();
        if self.landlock > 0 {
            parts.push(format!("landlock {}", self.landlock));
        }
        if self.seccomp {
            parts.push("seccomp".to_owned());
        }
        if !parts.is_empty() {
            write!(f, ": {}", parts.join(", "))?;
        }
        if self.missing.is_empty() { Ok(()) } else { write!(f, "; missing: {}", self.missing()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::process::Command;

    use super::*;

    /// Runs `inside` in a sandboxed thread; the sandbox ends with the thread.
    fn sandboxed(needs: Needs, inside: impl FnOnce(&Sandbox) + Send) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || inside(&restrict(&needs)));
            assert!(thread.join().is_ok());
        });
    }

    fn refused<T>(outcome: std::io::Result<T>) {
        let kind = outcome.err().map(|e| e.kind());
        assert_eq!(kind, Some(ErrorKind::PermissionDenied));
    }

    /// The reported protection is in force: without landlock or seccomp in the kernel the report
    /// must be weaker, not the test.
    #[test]
    fn landlock_and_seccomp_are_in_force_as_reported() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for name in ["in", "kept", "out"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        for name in ["in/a", "out/b", "out/c", "kept/d"] {
            std::fs::write(path(name), name).unwrap();
        }
        std::os::unix::fs::symlink("../out/c", path("in/c")).unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut needs = Needs::default();
        needs.directory(&path("in"));
        needs.writable(&path("kept"));
        needs.listen(port);
        sandboxed(needs, |sandbox| {
            if sandbox.landlock > 0 {
                refused(std::fs::read(path("out/b")));
                refused(std::fs::read_dir(path("out")));
                refused(std::fs::read("/etc/passwd"));
                refused(std::fs::write(path("in/a"), "new"));
                refused(std::fs::remove_file(path("in/a")));
                refused(std::fs::rename(path("kept/d"), path("in/d")));
            }
            if sandbox.landlock >= 4 {
                refused(TcpListener::bind("127.0.0.1:0"));
            }
            if sandbox.seccomp {
                let error = Command::new("/bin/true").status().unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
                refused(TcpStream::connect(taken.local_addr().unwrap()));
                refused(UdpSocket::bind("127.0.0.1:0"));
                refused(std::os::unix::net::UnixDatagram::unbound());
                refused(std::os::unix::fs::symlink("x", path("kept/link")));
                refused(
                    rustix::fs::memfd_create("code", rustix::fs::MemfdFlags::empty())
                        .map_err(Into::into),
                );
            }
            // Requested access works.
            assert_eq!(std::fs::read(path("in/a")).unwrap(), b"in/a");
            assert_eq!(std::fs::read(path("in/c")).unwrap(), b"out/c");
            std::fs::write(path("in/../kept/e"), "new").unwrap();
            vgg_edge::durable_fs::write_bytes(&path("kept/d"), b"newer").unwrap();
            vgg_edge::durable_fs::check_writable(&path("kept/f")).unwrap();
            std::fs::remove_file(path("kept/e")).unwrap();
            let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
            assert_eq!(listener.local_addr().unwrap().port(), port);
            assert!(std::fs::read_to_string("/proc/self/status").unwrap().contains("Threads:"));
            let sum = std::thread::Builder::new()
                .name("inner".into())
                .spawn(|| (1..5).sum::<u32>())
                .unwrap();
            assert_eq!(sum.join().unwrap(), 10);

            let all = sandbox.landlock >= 6 && sandbox.seccomp;
            assert_eq!(sandbox.state == SandboxState::Full, all, "{sandbox}");
            assert_eq!(sandbox.missing.is_empty(), all, "{sandbox}");
        });
        // The other threads of this process are not restricted.
        assert!(std::fs::read(path("out/b")).is_ok());
    }

    #[test]
    fn without_writable_directories_no_file_opens_for_writing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut needs = Needs::default();
        needs.file(file.path());
        sandboxed(needs, |sandbox| {
            assert!(std::fs::read(file.path()).is_ok());
            if sandbox.seccomp || sandbox.landlock > 0 {
                refused(std::fs::OpenOptions::new().write(true).open(file.path()));
                refused(std::fs::OpenOptions::new().append(true).open(file.path()));
            }
            if sandbox.seccomp {
                refused(TcpListener::bind("127.0.0.1:0"));
                // For writing, whichever file: the filter does not see which one it is.
                refused(std::fs::OpenOptions::new().write(true).open("/dev/null"));
            }
        });
    }

    #[test]
    fn a_file_in_the_root_makes_everything_readable_and_is_reported() {
        let mut needs = Needs::default();
        needs.replaceable(Path::new("/head.postcard"));
        sandboxed(needs, |sandbox| {
            assert_ne!(sandbox.state, SandboxState::Full);
            assert_eq!(sandbox.landlock > 0, sandbox.missing().contains("/ itself"), "{sandbox}");
            assert!(std::fs::read("/etc/passwd").is_ok());
        });
    }

    #[test]
    fn the_sandbox_refuses_to_start_late() {
        // The other thread is the test's own.
        let thread =
            std::thread::spawn(|| SandboxOptions { mode: Mode::Auto }.enter(&Needs::default()));
        match thread.join().unwrap() {
            Ok(sandbox) => assert_eq!(sandbox.state, SandboxState::None),
            Err(error) => assert!(error.to_string().contains("too late"), "{error}"),
        }
        assert_eq!(
            SandboxOptions { mode: Mode::Off }.enter(&Needs::default()).unwrap().state,
            SandboxState::Off
        );
    }

    #[test]
    fn access_errors_name_the_sandbox() {
        let mut sandbox = Sandbox {
            state: SandboxState::Full,
            landlock: 7,
            seccomp: true,
            missing: Vec::new(),
            _proc: None,
        };
        assert_eq!(sandbox.to_string(), "full: landlock 7, seccomp");
        let denied = || {
            anyhow::Error::from(std::io::Error::from(ErrorKind::PermissionDenied)).context("head")
        };
        assert!(format!("{:#}", sandbox.explain(denied())).starts_with("the sandbox limits"));
        assert_eq!(sandbox.explain(anyhow::anyhow!("other")).to_string(), "other");
        sandbox.state = SandboxState::Off;
        assert_eq!(sandbox.explain(denied()).to_string(), "head");
    }
}
