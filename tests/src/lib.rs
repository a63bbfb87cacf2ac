//! Helpers of the end-to-end tests: the built programs, temporary directories, images, QEMU.
//!
//! Cargo builds a program when a test first asks for it. A missing tool fails the test with the
//! name of the tool; no test is silently skipped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and this crate serves tests only"
)]

pub mod browser;
pub mod disk;
pub mod machine;
pub mod slurm;

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, OnceLock};

use image::{DynamicImage, ImageFormat, RgbImage};

/// Root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The shipped base.
pub fn base() -> PathBuf {
    root().join("models/vgg16-notop-int8.onnx")
}

/// The platform `edge` runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Device {
    /// This machine.
    Native,
    /// 64-bit ARM, static musl, under qemu-user.
    Aarch64,
    /// 32-bit ARM, static glibc, under qemu-user.
    Armv7,
}

impl Device {
    /// All values.
    pub const ALL: [Self; 3] = [Self::Native, Self::Aarch64, Self::Armv7];

    fn target(self) -> Option<&'static str> {
        match self {
            Self::Native => None,
            Self::Aarch64 => Some("aarch64-unknown-linux-musl"),
            Self::Armv7 => Some("armv7-unknown-linux-gnueabihf"),
        }
    }

    fn emulator(self) -> Option<&'static str> {
        match self {
            Self::Native => None,
            Self::Aarch64 => Some("qemu-aarch64-static"),
            Self::Armv7 => Some("qemu-arm-static"),
        }
    }

    /// Returns the path of `edge` for this device.
    pub fn edge_path(self) -> PathBuf {
        build("edge", self.target())
    }

    /// Returns a command that runs `edge` on this device.
    pub fn edge(self) -> Command {
        let program = self.edge_path();
        let mut command = match self.emulator() {
            None => Command::new(program),
            Some(emulator) => {
                let mut command = Command::new(emulator);
                command.arg(program);
                command
            }
        };
        quiet(&mut command);
        command
    }
}

/// Returns a command that runs `host`.
pub fn host() -> Command {
    let mut command = Command::new(build("host", None));
    quiet(&mut command);
    command
}

/// The Python interpreter that `scripts/setup.sh test` installs with NumPy, ONNX and ONNX Runtime.
pub fn python() -> PathBuf {
    let python = root().join("target/python/bin/python3");
    assert!(python.exists(), "{} is missing; run ./test, which installs it", python.display());
    python
}

/// Removes environment variables that the tests must not inherit.
fn quiet(command: &mut Command) {
    command
        .env_remove("VGG_EDGE_FEATURES_IN_MEMORY")
        .env_remove("VGG_EDGE_BASE")
        .env_remove("VGG_EDGE_KERNEL")
        .env_remove("VGG_EDGE_HTTP_TOKEN")
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID")
        .env("SOURCE_DATE_EPOCH", "1700000000");
    command.current_dir(root()).stdin(Stdio::null());
}

/// Returns `cargo` with the environment of a shell. Cargo sets variables that describe the package
/// under test; build scripts of dependencies would see them change and run again, and everything
/// that depends on them would be rebuilt.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        }) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Builds a package once per target and returns the path of its program.
///
/// ARM builds are release builds, as users get them; the native build has the profile of the tests.
fn build(package: &str, target: Option<&str>) -> PathBuf {
    static BUILT: OnceLock<Mutex<BTreeMap<String, PathBuf>>> = OnceLock::new();
    let mut built = BUILT.get_or_init(Mutex::default).lock().unwrap();
    built
        .entry(format!("{package} {target:?}"))
        .or_insert_with(|| {
            let mut cargo = cargo();
            cargo.args(["build", "--quiet", "--locked", "--message-format=json"]);
            match target {
                // The whole workspace, as `cargo test` builds it: another set of packages has other
                // features and would rebuild everything.
                None => cargo.args(["--workspace", "--bins"]),
                Some(target) => cargo.args(["--package", package, "--release", "--target", target]),
            };
            if target.is_none() && !cfg!(debug_assertions) {
                cargo.arg("--release");
            }
            let output = cargo.stderr(Stdio::inherit()).output().expect("cargo runs");
            assert!(
                output.status.success(),
                "cannot build {package} for {target:?}; run ./test, which installs what is needed"
            );
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
                .filter(|message| message["target"]["name"] == package)
                .find_map(|message| message["executable"].as_str().map(PathBuf::from))
                .expect("cargo names the program")
        })
        .clone()
}

/// Returns `outer` with the program, arguments, environment and directory of `inner` appended.
pub fn wrapped(mut outer: Command, inner: &Command) -> Command {
    outer.arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
    for (key, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(key, value),
            None => outer.env_remove(key),
        };
    }
    if let Some(folder) = inner.get_current_dir() {
        outer.current_dir(folder);
    }
    outer
}

/// Runs a command and returns its output; panics if it cannot be started.
pub fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| {
        panic!(
            "cannot run {:?}: {e}; run ./test, which installs what is needed",
            command.get_program()
        )
    })
}

/// Runs a command that must succeed, and returns its stdout.
pub fn succeed(command: &mut Command) -> String {
    let output = run(command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} exited with {}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must exit with `code`, print one error line that contains `text`, and not
/// panic. Returns stderr.
pub fn fail(command: &mut Command, code: i32, text: &str) -> String {
    let output = run(command);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    assert!(errors.contains(text), "{text:?} is not in: {errors}");
    assert_eq!(errors.lines().filter(|line| line.contains("error: ")).count(), 1, "{errors}");
    errors
}

/// Parses NDJSON.
pub fn ndjson(text: &str) -> Vec<serde_json::Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

/// Returns an image of shapes and noise, determined by its seed.
pub fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    // Its own generator: the thresholds of tests with small heads depend on these pixels.
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state >> 8
    };
    let (cx, cy, tone) = (next() % width.max(1), next() % height.max(1), next());
    let radius = 1 + next() % width.max(height);
    RgbImage::from_fn(width, height, |x, y| {
        let inside = x.abs_diff(cx).pow(2) + y.abs_diff(cy).pow(2) < radius.pow(2) / 4;
        let noise = next() % 48;
        let base = if inside { tone } else { tone >> 8 };
        let shade = |shift: u32| ((((base >> shift) + x * 3 + y * 2) % 208) + noise) as u8;
        image::Rgb([shade(0), shade(3), shade(5)])
    })
}

/// Encodes an image.
pub fn encode(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Returns the sorted names in a directory, including hidden ones.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Writes a data set: some BMP images for each class, in a color per class with noise.
pub fn data_folder(root: &Path, classes: &[(&str, u32)]) {
    for (index, (class, count)) in classes.iter().enumerate() {
        let folder = root.join(class);
        std::fs::create_dir_all(&folder).unwrap();
        for number in 0..*count {
            let mut image = picture(40, 40, number + 100 * index as u32);
            for pixel in image.pixels_mut() {
                pixel.0[index % 3] = 255 - pixel.0[index % 3] / 8;
            }
            let bytes = encode(&DynamicImage::ImageRgb8(image), ImageFormat::Bmp);
            std::fs::write(folder.join(format!("{number}.bmp")), bytes).unwrap();
        }
    }
}

/// Returns a head for two classes at 32 px, trained once for all tests of the program.
pub fn small_head() -> &'static Path {
    static HEAD: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = HEAD.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        data_folder(&data, &[("red", 6), ("green", 6)]);
        let head = dir.path().join("small.postcard");
        succeed(
            host()
                .args(["train", "--size", "32", "--units", "16", "--epochs", "3"])
                .arg(&data)
                .arg("-o")
                .arg(&head),
        );
        (dir, head)
    });
    path
}

/// Index in torchvision's model, input channels and output channels of each convolution of VGG16.
const LAYERS: [(usize, usize, usize); 13] = [
    (0, 3, 64),
    (2, 64, 64),
    (5, 64, 128),
    (7, 128, 128),
    (10, 128, 256),
    (12, 256, 256),
    (14, 256, 256),
    (17, 256, 512),
    (19, 512, 512),
    (21, 512, 512),
    (24, 512, 512),
    (26, 512, 512),
    (28, 512, 512),
];

/// Writes a VGG16 with random weights in the layout of torchvision's safetensors file.
pub fn weights(path: &Path) {
    let (mut header, mut data) = (String::from("{"), Vec::new());
    let mut random = fastrand::Rng::with_seed(1);
    for (place, inputs, outputs) in LAYERS {
        // He initialization keeps the scale of the activations.
        let size = (6.0 / (9.0 * inputs as f32)).sqrt();
        for (name, shape, count) in [
            ("weight", format!("[{outputs},{inputs},3,3]"), 9 * inputs * outputs),
            ("bias", format!("[{outputs}]"), outputs),
        ] {
            let start = data.len();
            for _ in 0..count {
                let value = size * (2.0 * random.f32() - 1.0);
                data.extend(value.to_le_bytes());
            }
            let comma = if header.len() > 1 { "," } else { "" };
            header +=
                &format!(r#"{comma}"features.{place}.{name}":{{"dtype":"F32","shape":{shape},"#);
            header += &format!(r#""data_offsets":[{start},{}]}}"#, data.len());
        }
    }
    header.push('}');
    while header.len() % 8 > 0 {
        header.push(' ');
    }
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.write_all(&data).unwrap();
}
