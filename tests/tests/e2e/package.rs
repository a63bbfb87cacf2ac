//! The Debian packages: built twice, installed, upgraded, removed and purged by Debian's own dpkg
//! in a small ARM system under qemu-user, and the program run from there.
//!
//! `scripts/package-root.sh` prepares the systems; proot enters them, which needs neither root nor
//! binfmt_misc.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::{Device, ndjson, root, run, small_head, succeed};

/// The installed settings file.
const SETTINGS: &str = "etc/vgg-edge/edge.toml";

/// The link that `systemctl enable` creates.
const ENABLED: &str = "etc/systemd/system/multi-user.target.wants/vgg-edge.service";

/// Builds a package for `arch` in `folder` and returns its path.
fn package(arch: &str, revision: u32, folder: &Path) -> PathBuf {
    let device = if arch == "arm64" { Device::Aarch64 } else { Device::Armv7 };
    // Built as in all other tests, so that a test run builds each program once.
    let program = device.edge_path();
    let mut make = Command::new(root().join("scripts/package.sh"));
    make.arg(arch).args(["--revision", &revision.to_string()]).arg("--program").arg(program);
    make.arg("--output").arg(folder);
    make.env_remove("DEBEMAIL").env_remove("DEBFULLNAME");
    if !root().join(".git").exists() {
        make.env("SOURCE_DATE_EPOCH", "1700000000");
    }
    PathBuf::from(succeed(&mut make).trim())
}

/// A Debian system of another architecture, in a temporary directory.
struct System {
    folder: tempfile::TempDir,
    emulator: &'static str,
}

impl System {
    /// Copies the system that `scripts/package-root.sh` made.
    fn new(arch: &str) -> Self {
        let made = root().join("target/package").join(format!("root-{arch}"));
        assert!(made.exists(), "{} is missing; run ./test, which furnishes it", made.display());
        let folder = tempfile::tempdir().unwrap();
        succeed(Command::new("cp").arg("--archive").arg(made.join(".")).arg(folder.path()));
        Self {
            folder,
            emulator: if arch == "arm64" { "qemu-aarch64-static" } else { "qemu-arm-static" },
        }
    }

    /// Returns the path of a file of the system, given without the leading slash.
    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// Returns a command that runs in the system as its root, with nothing of this machine but /dev
    /// and /proc.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("proot");
        command.args(["-0", "-w", "/", "-b", "/dev", "-b", "/proc", "-q", self.emulator, "-r"]);
        command.arg(self.folder.path()).arg(program).current_dir("/").stdin(Stdio::null());
        let path = std::env::var_os("PATH").unwrap_or_default();
        // proot searches the emulator in the `PATH` of this machine, and the program in the same
        // `PATH` inside the system.
        command
            .env_clear()
            .env("PATH", path)
            .env("HOME", "/root")
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        // SAFETY: between fork and exec only prctl is called, which is a plain system call.
        unsafe { command.pre_exec(without_new_calls) };
        command
    }

    /// Runs dpkg, which must succeed and report no error and no failed script; returns its output.
    fn dpkg(&self, args: &[&str]) -> String {
        let output = run(self.command("dpkg").args(args));
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "dpkg {args:?} ended with {}: {errors}", output.status);
        for line in errors.lines() {
            // Directories of other packages, which a real system has in its database, stay.
            assert!(line.ends_with("not empty so not removed"), "dpkg {args:?}: {errors}");
        }
        String::from_utf8(output.stdout).unwrap()
    }

    /// Installs or upgrades.
    fn install(&self, package: &Path) -> String {
        let name = package.file_name().unwrap().to_str().unwrap();
        std::fs::copy(package, self.path("tmp").join(name)).unwrap();
        self.dpkg(&["--force-confdef", "--force-confold", "--install", &format!("/tmp/{name}")])
    }

    /// Returns the package's status in dpkg's database, if it has one.
    fn status(&self) -> Option<String> {
        let mut query = self.command("dpkg-query");
        let output = run(query.args([
            "--show",
            "--showformat",
            "${db:Status-Abbrev}${Version}",
            "vgg-edge",
        ]));
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    /// Simulates a running systemd for the maintainer scripts, and records their requests.
    fn with_systemd(&self) {
        std::fs::create_dir_all(self.path("run/systemd/system")).unwrap();
        let systemctl = self.path("usr/bin/systemctl");
        std::fs::write(&systemctl, "#!/bin/sh\necho \"$*\" >>/tmp/asked\n").unwrap();
        std::fs::set_permissions(&systemctl, PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// Returns the scripts' requests to systemd since the last call.
    fn asked(&self) -> Vec<String> {
        let path = self.path("tmp/asked");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let _ = std::fs::remove_file(path);
        text.lines().map(str::to_owned).collect()
    }
}

/// Denies this process and its children the path-based system calls that are newer than Debian's
/// proot: it would pass them untranslated, to files of this machine. Every program falls back to
/// older calls.
fn without_new_calls() -> std::io::Result<()> {
    /// An instruction of the filter, `struct sock_filter`.
    #[repr(C)]
    struct Filter(u16, u8, u8, u32);
    /// The filter, `struct sock_fprog`.
    #[repr(C)]
    struct Program(u16, *const Filter);
    unsafe extern "C" {
        fn prctl(option: i32, ...) -> i32;
    }

    // renameat2, execveat, statx, openat2, faccessat2
    const CALLS: [u32; 5] = if cfg!(target_arch = "x86_64") {
        [316, 322, 332, 437, 439]
    } else {
        [276, 281, 291, 437, 439]
    };
    const ENOSYS: u32 = 38;
    let [a, b, c, d, e] = CALLS;
    let filter = [
        // Load the number of the call; jump to the end on a match.
        Filter(0x20, 0, 0, 0),
        Filter(0x15, 5, 0, a),
        Filter(0x15, 4, 0, b),
        Filter(0x15, 3, 0, c),
        Filter(0x15, 2, 0, d),
        Filter(0x15, 1, 0, e),
        // SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
        Filter(0x06, 0, 0, 0x7fff_0000),
        Filter(0x06, 0, 0, 0x0005_0000 | ENOSYS),
    ];
    let program = Program(filter.len() as u16, filter.as_ptr());
    let (zero, one) = (0usize, 1usize);
    // SAFETY: PR_SET_NO_NEW_PRIVS takes numbers; PR_SET_SECCOMP with SECCOMP_MODE_FILTER reads
    // `program` during the call.
    let denied = unsafe {
        prctl(38, one, zero, zero, zero) != 0 || prctl(22, 2usize, &raw const program) != 0
    };
    if denied { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Tests the life cycle of a package, from installation to purge.
fn lives(arch: &str) {
    let device = if arch == "arm64" { Device::Aarch64 } else { Device::Armv7 };
    let made = tempfile::tempdir().unwrap();
    let (first, second) = (package(arch, 1, made.path()), package(arch, 2, made.path()));
    let system = System::new(arch);

    // Without systemd, as when an image is built.
    let words = system.install(&first);
    assert!(
        words.contains("there is no head yet. Copy one to /etc/vgg-edge/head.postcard"),
        "{words}"
    );
    assert!(system.status().unwrap().starts_with("ii "), "{:?}", system.status());
    assert_eq!(system.dpkg(&["--print-architecture"]).trim(), arch);
    // Check the files against their md5sums.
    assert_eq!(system.dpkg(&["--verify", "vgg-edge"]), "");
    let mut expected = BTreeMap::from([
        ("usr/bin/edge", 0o755),
        ("usr/share/vgg-edge/vgg16-notop-int8.onnx", 0o644),
        ("usr/lib/systemd/system/vgg-edge.service", 0o644),
        (SETTINGS, 0o644),
        ("usr/share/doc/vgg-edge/copyright", 0o644),
        ("usr/share/doc/vgg-edge/README.Debian", 0o644),
        ("usr/share/doc/vgg-edge/changelog.gz", 0o644),
        ("usr/share/doc/vgg-edge/changelog.Debian.gz", 0o644),
        ("usr/share/doc/vgg-edge/third-party.txt.gz", 0o644),
        ("usr/share/doc/vgg-edge/examples/http.conf", 0o644),
        ("usr/share/lintian/overrides/vgg-edge", 0o644),
    ]);
    if arch == "armhf" {
        expected.insert("usr/lib/systemd/system/vgg-edge.service.d/armhf.conf", 0o644);
    }
    let listed = system.dpkg(&["--listfiles", "vgg-edge"]);
    let files: BTreeMap<&str, u32> = listed
        .lines()
        .map(|line| line.trim_start_matches('/'))
        .filter(|path| system.path(path).is_file())
        .map(|path| (path, system.path(path).metadata().unwrap().permissions().mode() & 0o7777))
        .collect();
    assert_eq!(files, expected);
    assert!(
        system.path(ENABLED).symlink_metadata().is_err(),
        "a service without a head must not be enabled"
    );

    // Run the installed program.
    let version = format!("edge {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(succeed(system.command("edge").arg("--version")), version);
    let info = succeed(system.command("edge").args([
        "info",
        "--base",
        "/usr/share/vgg-edge/vgg16-notop-int8.onnx",
    ]));
    assert!(info.contains("/usr/share/vgg-edge/vgg16-notop-int8.onnx"), "{info}");
    std::fs::copy(small_head(), system.path("etc/vgg-edge/head.postcard")).unwrap();
    let samples = "samples/surfaces/val";
    succeed(
        Command::new("cp")
            .arg("--recursive")
            .arg(root().join(samples))
            .arg(system.path("tmp/pictures")),
    );
    // Names relative to the image directory, whose path differs between the two sides.
    let pictures = system.path("tmp/pictures");
    let found = succeed(
        Command::new("find").current_dir(&pictures).args(["-name", "*.jpg", "-printf", "%P\\n"]),
    );
    let mut names: Vec<&str> = found.lines().collect();
    names.sort_unstable();
    assert!(names.len() >= 10, "{names:?}");
    names.truncate(10);
    let arguments = |folder: &str, base: &str, head: &str| -> Vec<String> {
        let options = ["classify", "--json", "--base", base, "--head", head].map(str::to_owned);
        options.into_iter().chain(names.iter().map(|name| format!("{folder}/{name}"))).collect()
    };
    // Time and latency differ between runs.
    let results =
        |mut command: Command, folder: &str, arguments: Vec<String>| -> Vec<[String; 3]> {
            let lines = ndjson(&succeed(command.args(arguments)).replace(folder, ""));
            lines
                .iter()
                .map(|line| ["source", "label", "scores"].map(|key| line[key].to_string()))
                .collect()
        };
    let (folder, base) = (pictures.to_str().unwrap(), tests::base());
    let native = arguments(folder, base.to_str().unwrap(), small_head().to_str().unwrap());
    let native = results(Device::Native.edge(), folder, native);
    let installed = arguments(
        "/tmp/pictures",
        "/usr/share/vgg-edge/vgg16-notop-int8.onnx",
        "/etc/vgg-edge/head.postcard",
    );
    let installed = results(system.command("edge"), "/tmp/pictures", installed);
    assert_eq!(native.len(), names.len());
    assert!(native.iter().flatten().all(|value| value != "null"), "{native:?}");
    assert_eq!(native, installed, "{device:?}");

    // An upgrade keeps changed settings, and restarts a running service.
    system.with_systemd();
    let mut settings = std::fs::read_to_string(system.path(SETTINGS)).unwrap();
    settings.push_str("threads = 3\n");
    std::fs::write(system.path(SETTINGS), &settings).unwrap();
    let words = system.install(&second);
    assert!(!words.contains("no head"), "{words}");
    assert!(system.status().unwrap().ends_with("-2"), "{:?}", system.status());
    assert_eq!(std::fs::read_to_string(system.path(SETTINGS)).unwrap(), settings);
    let asked = system.asked();
    assert_eq!(asked, ["--system daemon-reload", "try-restart vgg-edge.service"]);

    // A policy that forbids starting services, as image builders set it, is respected.
    let policy = system.path("usr/sbin/policy-rc.d");
    std::fs::write(&policy, "#!/bin/sh\nexit 101\n").unwrap();
    std::fs::set_permissions(&policy, PermissionsExt::from_mode(0o755)).unwrap();
    succeed(system.command("sh").args([
        "/var/lib/dpkg/info/vgg-edge.postinst",
        "configure",
        "0.1.0-1",
    ]));
    assert_eq!(system.asked(), ["--system daemon-reload"]);
    std::fs::remove_file(policy).unwrap();

    // Removal stops the service, and keeps settings and state.
    for link in [ENABLED, "var/lib/vgg-edge"] {
        std::fs::create_dir_all(system.path(link).parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/nowhere", system.path(link)).unwrap();
    }
    std::fs::create_dir_all(system.path("var/lib/private/vgg-edge/collected")).unwrap();
    system.dpkg(&["--remove", "vgg-edge"]);
    assert!(system.status().unwrap().starts_with("rc "), "{:?}", system.status());
    assert_eq!(system.asked(), ["stop vgg-edge.service", "--system daemon-reload"]);
    for (path, kept) in [("usr/bin/edge", false), ("usr/share/vgg-edge", false), (SETTINGS, true)] {
        assert_eq!(system.path(path).exists(), kept, "{path}");
    }
    assert!(system.path("var/lib/private/vgg-edge/collected").exists());

    // A purge deletes everything but the head, which does not belong to the package.
    system.dpkg(&["--purge", "vgg-edge"]);
    assert_eq!(system.status(), None);
    let left = succeed(Command::new("find").arg(system.folder.path()).args([
        "-name",
        "*vgg-edge*",
        "-not",
        "-name",
        "*.deb",
    ]));
    assert_eq!(left.trim(), system.path("etc/vgg-edge").to_str().unwrap());
    assert!(!system.path(SETTINGS).exists());
    assert!(system.path("etc/vgg-edge/head.postcard").exists());
}

#[test]
fn arm64_package_installs_upgrades_and_purges() {
    lives("arm64");
}

#[test]
fn armhf_package_installs_upgrades_and_purges() {
    lives("armhf");
}

#[test]
fn the_same_commit_gives_the_same_package() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let packages = folders.each_ref().map(|folder| package("arm64", 1, folder.path()));
    assert_eq!(packages[0].file_name(), packages[1].file_name());
    let [once, again] = packages.map(|path| std::fs::read(path).unwrap());
    assert!(once == again, "the package differs from build to build");
}

#[test]
fn a_package_of_a_wrong_program_is_refused() {
    let mut make = Command::new(root().join("scripts/package.sh"));
    let output = run(make
        .args(["arm64", "--program"])
        .arg(Device::Armv7.edge_path())
        .env("SOURCE_DATE_EPOCH", "1700000000"));
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is not a program for arm64"));
}

#[test]
fn systemd_unit_is_valid_and_confined() {
    let units = tempfile::tempdir().unwrap();
    let (packaging, unit) = (root().join("packaging"), units.path().join("vgg-edge.service"));
    // Verification requires that the program exists.
    let text = std::fs::read_to_string(packaging.join("vgg-edge.service")).unwrap();
    let program = Device::Native.edge_path();
    std::fs::write(&unit, text.replace("/usr/bin/edge", program.to_str().unwrap())).unwrap();
    let additions = units.path().join("vgg-edge.service.d");
    std::fs::create_dir(&additions).unwrap();
    for name in ["http.conf", "armhf.conf"] {
        std::fs::copy(packaging.join(name), additions.join(name)).unwrap();
    }
    let verify = run(Command::new("systemd-analyze")
        .args(["verify", "--recursive-errors=no", "--man=no"])
        .arg(&unit));
    let errors = String::from_utf8(verify.stderr).unwrap();
    // systemd-analyze ignores unknown settings with a warning and exit code 0. Warnings about other
    // units of this machine do not count.
    assert!(verify.status.success() && !errors.contains("vgg-edge"), "{errors}");
    // Exposure in tenths, from 0 (closed) to 100.
    let mut security = Command::new("systemd-analyze");
    succeed(
        security
            .args(["security", "--no-pager", "--offline=true", "--threshold=5"])
            .arg(packaging.join("vgg-edge.service")),
    );
}

#[test]
fn every_key_of_the_settings_is_an_option() {
    let help = succeed(Device::Native.edge().args(["run", "--help"]));
    let options: BTreeSet<&str> = help
        .split(|c: char| c.is_whitespace() || "[]=,.;:()".contains(c))
        .filter_map(|word| word.strip_prefix("--"))
        .collect();
    let settings = std::fs::read_to_string(root().join("packaging/edge.toml")).unwrap();
    let keys: Vec<&str> = settings
        .lines()
        .filter_map(|line| line.trim_start_matches("# ").split_once(" = "))
        .map(|(key, _)| key)
        .filter(|key| key.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
        .collect();
    assert!(keys.len() >= 20, "{keys:?}");
    for key in keys {
        assert!(options.contains(key), "edge run has no --{key}, which packaging/edge.toml names");
    }
}
