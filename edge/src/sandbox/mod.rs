//! The fence that `edge` puts around itself before it looks at what others made: files, frames,
//! requests.
//!
//! Landlock says which files and ports there are for it, seccomp which system calls. Both hold for
//! the thread that asks for them and for those it starts later, so [`SandboxOptions::enter`] comes
//! before the first thread, and fails after it. Nothing is ever given back: what was not foreseen
//! at the start, such as a head in another folder, needs a new start.

mod landlock;
mod seccomp;

use std::fmt;
use std::path::{Path, PathBuf};

use ::landlock::PathFd;
use anyhow::{Result, bail, ensure};

/// How much is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// What the kernel can do; what it cannot is told
    Auto,
    /// All of it, or edge does not start
    Require,
    /// None
    Off,
}

/// The flag.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args)]
pub struct SandboxOptions {
    /// Shuts edge off from files, ports and system calls that it does not need (landlock, seccomp)
    #[arg(long = "sandbox", value_name = "MODE", value_enum, default_value_t = Mode::Auto)]
    pub mode: Mode,
}

/// What must go on working behind the fence.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// ModelLoader, and folders with all that is in them.
    read: Vec<PathBuf>,
    /// Folders with all that is in them.
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

    /// A file that may be replaced: its folder, and the one that a link leads to now.
    pub fn replaceable(&mut self, path: &Path) {
        self.read.push(folder(path).to_owned());
        if let Ok(target) = std::fs::canonicalize(path) {
            self.read.push(folder(&target).to_owned());
        }
    }

    /// A folder, and what links in it lead to now.
    pub fn folder(&mut self, path: &Path) {
        self.read.push(path.to_owned());
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        self.read
            .extend(entries.filter(|entry| entry.path().is_symlink()).map(|entry| entry.path()));
    }

    /// A folder in which files are made, replaced and removed. It must be there.
    pub fn writable(&mut self, path: &Path) {
        self.write.push(path.to_owned());
    }

    /// A camera, which may come back under another node: that is all of `/dev`.
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

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// How much of what is asked for is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxState {
    /// All.
    Full,
    /// Some.
    Partial,
    /// Nothing, since the kernel has nothing.
    None,
    /// Nothing, as was asked for.
    Off,
}

impl SandboxState {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Partial => "partial",
            Self::None => "none",
            Self::Off => "off",
        }
    }
}

/// The fence as it stands.
#[derive(Debug)]
pub struct Sandbox {
    /// How much is in force.
    pub state: SandboxState,
    /// Version of landlock's interface that is in force; 0 if it is not.
    pub landlock: i32,
    /// Whether system calls are filtered.
    pub seccomp: bool,
    /// What was asked for and is not in force, in words.
    pub missing: Vec<String>,
    /// The kernel forgets the rule for `/proc/self` when it forgets the folder, so that is held.
    _proc: Option<PathFd>,
}

impl SandboxOptions {
    /// Puts up the fence, for this thread and all to come.
    ///
    /// # Errors
    /// With [`Mode::Require`] what is missing; a thread that runs already.
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
        // Where there is no /proc, the order of the code has to do. An emulator has threads of its
        // own, but no sandbox either.
        let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
        let sandbox = fence(needs);
        ensure!(
            threads == 1 || sandbox.state == SandboxState::None,
            "the sandbox comes too late: {threads} threads run already"
        );
        if self.mode == Mode::Require && sandbox.state != SandboxState::Full {
            bail!(
                "--sandbox require: not to be had here: {}; --sandbox auto takes what there is",
                sandbox.lacks()
            );
        }
        Ok(sandbox)
    }
}

/// As [`SandboxOptions::enter`], whatever threads there are.
fn fence(needs: &Needs) -> Sandbox {
    let mut missing = Vec::new();
    // Landlock first: its own calls are none of those that seccomp leaves.
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
    fn lacks(&self) -> String {
        self.missing.join("; ")
    }

    /// Says of an error of access that the fence may be why.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let is_denied = |e: &std::io::Error| e.kind() == std::io::ErrorKind::PermissionDenied;
        let denied = error.chain().any(|cause| cause.downcast_ref().is_some_and(is_denied));
        if denied && matches!(self.state, SandboxState::Full | SandboxState::Partial) {
            error.context("the sandbox holds edge to the folders, sources and port it was started with; restart it")
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
        if self.missing.is_empty() { Ok(()) } else { write!(f, "; missing: {}", self.lacks()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::process::Command;

    use super::*;

    /// Runs `inside` in a thread behind the fence; it ends with the thread.
    fn behind(needs: Needs, inside: impl FnOnce(&Sandbox) + Send) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || inside(&fence(&needs)));
            assert!(thread.join().is_ok());
        });
    }

    fn refused<T>(outcome: std::io::Result<T>) {
        let kind = outcome.err().map(|e| e.kind());
        assert_eq!(kind, Some(ErrorKind::PermissionDenied));
    }

    /// What is claimed is in force: without landlock or seccomp in the kernel the claim must be
    /// less, not the test.
    #[test]
    fn what_is_claimed_is_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
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
        needs.folder(&path("in"));
        needs.writable(&path("kept"));
        needs.listen(port);
        behind(needs, |sandbox| {
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
            // What is needed works.
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
        // The other threads of this process are as they were.
        assert!(std::fs::read(path("out/b")).is_ok());
    }

    #[test]
    fn without_anything_to_write_nothing_is_opened_for_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut needs = Needs::default();
        needs.file(file.path());
        behind(needs, |sandbox| {
            assert!(std::fs::read(file.path()).is_ok());
            if sandbox.seccomp || sandbox.landlock > 0 {
                refused(std::fs::OpenOptions::new().write(true).open(file.path()));
                refused(std::fs::OpenOptions::new().append(true).open(file.path()));
            }
            if sandbox.seccomp {
                refused(TcpListener::bind("127.0.0.1:0"));
                // For writing, whichever file: the filter does not know which one it is.
                refused(std::fs::OpenOptions::new().write(true).open("/dev/null"));
            }
        });
    }

    #[test]
    fn a_file_in_the_root_opens_everything_and_says_so() {
        let mut needs = Needs::default();
        needs.replaceable(Path::new("/head.postcard"));
        behind(needs, |sandbox| {
            assert_ne!(sandbox.state, SandboxState::Full);
            assert_eq!(sandbox.landlock > 0, sandbox.lacks().contains("/ itself"), "{sandbox}");
            assert!(std::fs::read("/etc/passwd").is_ok());
        });
    }

    #[test]
    fn it_never_comes_late() {
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
    fn errors_of_access_are_explained() {
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
        assert!(format!("{:#}", sandbox.explain(denied())).starts_with("the sandbox holds"));
        assert_eq!(sandbox.explain(anyhow::anyhow!("other")).to_string(), "other");
        sandbox.state = SandboxState::Off;
        assert_eq!(sandbox.explain(denied()).to_string(), "head");
    }
}
