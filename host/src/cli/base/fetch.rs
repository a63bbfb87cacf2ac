//! `host base fetch`: downloads the published weights.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use indicatif::ProgressBar;
use md5::Md5;
use sha2::{Digest, Sha256};
use ureq::http::Response;
use ureq::{Agent, Body};
use vgg_edge_cli::terminal::{CancelToken, UsageError, print_line};

/// File name of the convolutional base that Keras publishes.
const NAME: &str = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5";

/// Its address (`WEIGHTS_PATH_NO_TOP` of keras.applications.vgg16).
const URL: &str = concat!(
    "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/",
    "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
);

/// Its MD5, as keras.applications.vgg16 pins it. The SHA-256 of the weights in it is checked too.
const MD5: &str = "6d6bbae143d832006294945121d1f1fc";

/// Maximum size of the download, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// Download the ImageNet weights of VGG16 (58.9 MB)
///
/// The file is checked against a pinned hash. An interrupted download is resumed, also by a later
/// run: the bytes so far are kept beside the output as FILE.part.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  host base fetch && host base quantize \
    vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5 --calibrate photos -o int8.onnx")]
pub struct Args {
    /// Output file
    #[arg(short, long, value_name = "FILE", default_value = NAME)]
    output: PathBuf,

    /// Other URL; needs --sha256
    #[arg(long, value_name = "URL", requires = "sha256")]
    url: Option<String>,

    /// SHA-256 of the file at --url
    #[arg(long, value_name = "HEX", requires = "url")]
    sha256: Option<String>,

    /// Maximum number of successive attempts without progress
    #[arg(
        long,
        value_name = "N",
        default_value_t = 4,
        value_parser = clap::value_parser!(u32).range(1..=100)
    )]
    tries: u32,
}

/// The resolved [`Args`].
struct Settings {
    output: PathBuf,
    url: String,
    pin: Pin,
    tries: u32,
}

impl Args {
    fn resolve(self) -> Result<Settings, UsageError> {
        let (url, pin) = match (self.url, self.sha256) {
            (Some(url), Some(hex)) => {
                let hex = hex.to_ascii_lowercase();
                if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(UsageError(format!(
                        "--sha256 {hex}: expected 64 hexadecimal digits"
                    )));
                }
                (url, Pin::Sha256(hex))
            }
            _ => (URL.to_owned(), Pin::Canonical),
        };
        Ok(Settings { output: self.output, url, pin, tries: self.tries })
    }
}

/// The expected content of the file.
enum Pin {
    /// Keras's file: its MD5, and the SHA-256 of the weights in it.
    Canonical,
    Sha256(String),
}

/// A file with other content than expected.
#[derive(Debug, thiserror::Error)]
enum Mismatch {
    #[error("its hash is {found}, not {expected}")]
    Hash { found: String, expected: String },
    #[error("the weights in it are not the published ones")]
    Weights,
}

impl Pin {
    /// Compares the file with what is expected.
    fn check(&self, path: &Path) -> Result<Result<(), Mismatch>> {
        let (found, expected) = match self {
            Self::Canonical => (digest::<Md5>(path)?, MD5),
            Self::Sha256(expected) => (digest::<Sha256>(path)?, expected.as_str()),
        };
        if found != expected {
            return Ok(Err(Mismatch::Hash { found, expected: expected.to_owned() }));
        }
        if matches!(self, Self::Canonical) && !quant::import::import(path, None)?.is_canonical() {
            return Ok(Err(Mismatch::Weights));
        }
        Ok(Ok(()))
    }
}

fn digest<D: Digest>(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(vgg_edge::Error::io("read", path))?;
    let mut hash = D::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer).map_err(vgg_edge::Error::io("read", path))? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Runs the command.
pub fn run(args: Args, cancel: &CancelToken) -> Result<()> {
    let Settings { output, url, pin, tries } = args.resolve()?;
    vgg_edge::durable_fs::check_writable(&output)?;
    if output.exists() {
        if let Err(mismatch) = pin.check(&output)? {
            bail!("{}: the file exists, but {mismatch}; move it away first", output.display());
        }
        print_line(format_args!("{}: already downloaded", output.display()))?;
        return Ok(());
    }
    let (path, mut file) = open_part(&output)?;
    let resumed = file.metadata().map_err(vgg_edge::Error::io("read", &path))?.len() > 0;
    let mut part = Part { url: &url, file: &mut file, path: &path };
    part.download(tries, cancel)?;
    if resumed && let Err(mismatch) = pin.check(&path)? {
        // A power loss may have torn the part.
        log::warn!(
            "{}: the part from an earlier run is damaged ({mismatch}); downloading all of it",
            path.display()
        );
        part.file.set_len(0).map_err(vgg_edge::Error::io("write", &path))?;
        part.download(tries, cancel)?;
    }
    file.sync_all().map_err(vgg_edge::Error::io("sync", &path))?;
    if let Err(mismatch) = pin.check(&path)? {
        std::fs::remove_file(&path).map_err(vgg_edge::Error::io("remove", &path))?;
        bail!("{url}: not the expected file: {mismatch}; it was deleted");
    }
    vgg_edge::durable_fs::rename(&path, &output)?;
    print_line(format_args!("wrote {}", output.display()))?;
    Ok(())
}

/// Opens and locks FILE.part.
fn open_part(output: &Path) -> Result<(PathBuf, File)> {
    let mut name = output.to_owned().into_os_string();
    name.push(".part");
    let path = PathBuf::from(name);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(vgg_edge::Error::io("write", &path))?;
    if file.try_lock().is_err() {
        bail!("{}: in use by another download", path.display());
    }
    Ok((path, file))
}

/// Why an attempt did not complete the file.
enum AttemptError {
    /// Another attempt may succeed.
    Transient(String),
    /// Another attempt would fail too.
    Fatal(anyhow::Error),
}

impl AttemptError {
    fn fatal(error: impl Into<anyhow::Error>) -> Self {
        Self::Fatal(error.into())
    }
}

/// A partial download.
struct Part<'a> {
    url: &'a str,
    file: &'a mut File,
    path: &'a Path,
}

impl Part<'_> {
    /// Downloads the rest of the file.
    fn download(&mut self, tries: u32, cancel: &CancelToken) -> Result<()> {
        let agent: Agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            // Of the body too: a connection that is lost silently would never end.
            .timeout_per_read(Some(Duration::from_secs(30)))
            .build()
            .into();
        let bar =
            crate::progress::bar(0, "{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left");
        let mut failures = 0;
        loop {
            let before = self.len()?;
            let reason = match self.attempt(&agent, &bar, cancel) {
                Ok(()) => break,
                Err(AttemptError::Fatal(error)) => return Err(error),
                Err(AttemptError::Transient(reason)) => reason,
            };
            let now = self.len()?;
            failures = if now > before { 0 } else { failures + 1 };
            if failures >= tries {
                bail!(
                    "cannot download {}: {reason}. By hand: download it with a browser or on \
                     another machine, copy it here, and continue with host base quantize; {now} \
                     bytes are kept in {} for the next run",
                    self.url,
                    self.path.display()
                );
            }
            bar.suspend(|| log::warn!("{reason}; trying again from byte {now}"));
            let milliseconds = if now > before { 200 } else { 500 << failures.min(5) };
            pause(Duration::from_millis(milliseconds), cancel)?;
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(vgg_edge::Error::io("read", self.path))?.len())
    }

    fn io_error(&self, action: &'static str) -> impl Fn(std::io::Error) -> AttemptError + use<> {
        let path = self.path.to_owned();
        move |error| AttemptError::fatal(vgg_edge::Error::io(action, &path)(error))
    }

    fn attempt(
        &mut self,
        agent: &Agent,
        bar: &ProgressBar,
        cancel: &CancelToken,
    ) -> Result<(), AttemptError> {
        let start = self.file.seek(SeekFrom::End(0)).map_err(self.io_error("read"))?;
        let mut request = agent.get(self.url).header("Accept-Encoding", "identity");
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
        }
        let response = request.call().map_err(|e| match e {
            ureq::Error::BadUri(reason) => {
                AttemptError::fatal(UsageError(format!("--url: {reason}")))
            }
            e => AttemptError::Transient(e.to_string()),
        })?;
        let Some(at) = self.offset(&response, start)? else { return Ok(()) };
        let length = header(&response, "content-length").and_then(|v| v.parse::<u64>().ok());
        if at + length.unwrap_or(0) > MAX_BYTES {
            return Err(self.too_large());
        }
        // A server that does not resume sends all of the file again.
        self.file.set_len(at).map_err(self.io_error("write"))?;
        self.file.seek(SeekFrom::Start(at)).map_err(self.io_error("write"))?;
        bar.set_length(length.map_or(0, |length| at + length));
        bar.set_position(at);
        let end = self.copy_body(response, at, bar, cancel)?;
        match length {
            Some(length) if end < at + length => Err(AttemptError::Transient(format!(
                "the connection ended after {end} of {} bytes",
                at + length
            ))),
            _ => Ok(()),
        }
    }

    /// Returns the offset of the body in the file; `None` if there is nothing more to download.
    fn offset(&self, response: &Response<Body>, start: u64) -> Result<Option<u64>, AttemptError> {
        let url = self.url;
        match response.status().as_u16() {
            200 => Ok(Some(0)),
            206 => {
                let range = header(response, "content-range").unwrap_or_default();
                if range.starts_with(&format!("bytes {start}-")) {
                    return Ok(Some(start));
                }
                Err(AttemptError::Fatal(anyhow!(
                    "{url}: requested bytes from {start}, got {range:?}"
                )))
            }
            // No bytes follow: the hash decides whether the file is complete.
            416 if start > 0 => Ok(None),
            status @ (408 | 425 | 429 | 500..) => {
                Err(AttemptError::Transient(format!("the server responded with status {status}")))
            }
            status => Err(AttemptError::Fatal(anyhow!(
                "{url}: the server responded with status {status}"
            ))),
        }
    }

    /// Appends the body to the file at `at`, and returns where it ends.
    fn copy_body(
        &mut self,
        response: Response<Body>,
        at: u64,
        bar: &ProgressBar,
        cancel: &CancelToken,
    ) -> Result<u64, AttemptError> {
        let mut body = response.into_body().into_reader().take(MAX_BYTES - at + 1);
        let mut buffer = vec![0; 64 << 10];
        let mut end = at;
        loop {
            cancel.check().map_err(AttemptError::fatal)?;
            match body.read(&mut buffer) {
                Ok(0) => return Ok(end),
                Ok(n) => {
                    self.file.write_all(&buffer[..n]).map_err(self.io_error("write"))?;
                    end += n as u64;
                    bar.inc(n as u64);
                    if end > MAX_BYTES {
                        return Err(self.too_large());
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(AttemptError::Transient(format!(
                        "the connection broke after {end} bytes ({e})"
                    )));
                }
            }
        }
    }

    fn too_large(&self) -> AttemptError {
        AttemptError::Fatal(anyhow!("{}: larger than {MAX_BYTES} bytes", self.url))
    }
}

fn header(response: &Response<Body>, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

/// Waits, unless the run is canceled.
fn pause(time: Duration, cancel: &CancelToken) -> Result<()> {
    for _ in 0..time.as_millis() / 100 {
        cancel.check()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
