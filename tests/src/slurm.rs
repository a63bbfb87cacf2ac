//! A Slurm cluster on this machine alone: munge, the controller and some nodes, in a directory of
//! its own. It uses the system's Slurm programs, but none of the system's configuration.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{run, succeed};

/// Longer than anything takes on a loaded machine; only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until `ready` returns a value; panics with `what` on timeout.
pub fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "timeout: {what}");
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// A running cluster; see the [module](self). Dropping it stops all jobs and daemons, which also
/// stop if the test process is killed.
pub struct Slurm {
    folder: tempfile::TempDir,
    /// Stopped in reverse order.
    daemons: Vec<Child>,
}

impl Slurm {
    /// Starts nodes `n1`, `n2`, ... with a core each, and waits until they are idle.
    pub fn start(nodes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // munge requires a socket that every user can reach.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut slurm = Self { folder, daemons: Vec::new() };
        let at = |name: &str| slurm.folder.path().join(name);
        // A secret: with it, one could run jobs as any user here.
        let mut key = Vec::new();
        fs::File::open("/dev/urandom").unwrap().take(64).read_to_end(&mut key).unwrap();
        fs::File::options()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(at("munge.key"))
            .unwrap()
            .write_all(&key)
            .unwrap();
        // The only cgroup plugin that does nothing unless asked; nothing here asks it.
        fs::write(at("cgroup.conf"), "CgroupPlugin=cgroup/v1\n").unwrap();
        fs::create_dir(at("state")).unwrap();
        let [user, host] = [["id", "-un"], ["uname", "-n"]]
            .map(|[name, flag]| succeed(Command::new(name).arg(flag)).trim().to_owned());
        // All at once, so that the ports differ.
        let listeners: Vec<TcpListener> =
            (0..=nodes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> =
            listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        let mut conf =
            include_str!("slurm.conf").replace("FOLDER", slurm.folder.path().to_str().unwrap());
        conf = conf
            .replace("USER", &user)
            .replace("HOST", &host)
            .replace("PORT", &ports[0].to_string());
        for (node, port) in ports.iter().enumerate().skip(1) {
            fs::create_dir(at(&format!("spool-n{node}"))).unwrap();
            conf += &format!(
                "NodeName=n{node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1\n"
            );
        }
        conf += &format!(
            "PartitionName=all Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP\n"
        );
        fs::write(at("slurm.conf"), conf).unwrap();
        drop(listeners);

        let path =
            |name: &str| slurm.folder.path().join(name).into_os_string().into_string().unwrap();
        let munged = [
            format!("--key-file={}", path("munge.key")),
            format!("--socket={}", path("munge.socket")),
            format!("--pid-file={}", path("munge.pid")),
            format!("--log-file={}", path("munge.log")),
            format!("--seed-file={}", path("munge.seed")),
        ];
        let conf = path("slurm.conf");
        slurm.daemon("munged", ["--foreground".to_owned()].iter().chain(&munged));
        wait_for("munge's socket", || {
            slurm.folder.path().join("munge.socket").exists().then_some(())
        });
        slurm.daemon("slurmctld", &["-D", "-i", "-f", &conf].map(str::to_owned));
        for node in 1..=nodes {
            slurm.daemon(
                "slurmd",
                &["-D", "-f", &conf, "-N", &format!("n{node}")].map(str::to_owned),
            );
        }
        wait_for("idle nodes", || {
            if let Some(status) =
                slurm.daemons.iter_mut().find_map(|daemon| daemon.try_wait().unwrap())
            {
                panic!("a Slurm daemon exited with {status}:\n{}", slurm.log());
            }
            let idle = run(slurm.command("sinfo").args(["--noheader", "--Node", "--states=idle"]));
            (String::from_utf8_lossy(&idle.stdout).lines().count() == nodes).then_some(())
        });
        slurm
    }

    fn daemon<'a>(&mut self, program: &str, arguments: impl IntoIterator<Item = &'a String>) {
        let log = fs::File::create(
            self.folder.path().join(format!("{program}-{}.out", self.daemons.len())),
        )
        .unwrap();
        // The kernel stops the daemon when the thread that started it exits.
        let mut command = self.command("setpriv");
        command.args(["--pdeathsig", "TERM", program]).args(arguments);
        let child =
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        self.daemons.push(
            child.unwrap_or_else(|e| panic!("cannot run {program}: {e}; ./test installs it")),
        );
    }

    /// Returns a command that uses this cluster.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .env("SLURM_CONF", self.folder.path().join("slurm.conf"));
        // Variables of a Slurm job that may be running the tests.
        for (name, _) in std::env::vars_os() {
            let name_text = name.to_string_lossy();
            if name_text.starts_with("SBATCH_")
                || (name_text.starts_with("SLURM_") && name_text != "SLURM_CONF")
            {
                command.env_remove(&name);
            }
        }
        command
    }

    /// Lists unfinished jobs as `ID STATE NODE`, with an entry for each task of an array.
    pub fn jobs(&self) -> Vec<String> {
        let listed =
            succeed(self.command("squeue").args(["--noheader", "--array", "--format=%i %T %N"]));
        listed.lines().map(str::to_owned).collect()
    }

    /// Waits until all jobs are finished.
    pub fn wait(&self) {
        wait_for("the end of all jobs", || self.jobs().is_empty().then_some(()));
    }

    /// Returns the output of the daemons, for the message of a failing test.
    pub fn log(&self) -> String {
        let is_log = |path: &PathBuf| {
            path.extension().is_some_and(|extension| extension == "out" || extension == "log")
        };
        let read = |path: PathBuf| {
            format!("{}:\n{}\n", path.display(), fs::read_to_string(&path).unwrap_or_default())
        };
        let entries = fs::read_dir(self.folder.path()).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_log).map(read).collect()
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        // This must not panic: the test may be failing already.
        let quiet = |command: &mut Command| {
            command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
        };
        let user =
            Command::new("id").arg("-un").output().map(|output| output.stdout).unwrap_or_default();
        quiet(self.command("scancel").args([
            "--signal=KILL",
            "--full",
            "--user",
            String::from_utf8_lossy(&user).trim(),
        ]));
        quiet(self.command("scancel").args(["--user", String::from_utf8_lossy(&user).trim()]));
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            match self.command("squeue").arg("--noheader").output() {
                Ok(output) if output.status.success() && output.stdout.is_empty() => break,
                Ok(output) if !output.status.success() => break,
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        while let Some(mut daemon) = self.daemons.pop() {
            quiet(Command::new("kill").arg(daemon.id().to_string()));
            let start = Instant::now();
            while matches!(daemon.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(10)
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
