//! `host base fetch`: the canonical weights from their public address.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use md5::Md5;
use sha2::{Digest, Sha256};
use vgg_edge_cli::terminal::{Interrupted, UsageError, interrupted, note, print_line};

use crate::PROGRAM;

/// File name of the convolutional base that Keras publishes.
const NAME: &str = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5";

/// Its address (`WEIGHTS_PATH_NO_TOP` of keras.applications.vgg16).
const URL: &str = "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5";

/// Its MD5, as keras.applications.vgg16 pins it. The weights in it are held against their SHA-256
/// too.
const MD5: &str = "6d6bbae143d832006294945121d1f1fc";

/// Largest download, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// Downloads the ImageNet weights of VGG16 (58.9 MB) from their public address
///
/// The file is held against a pinned hash. A download that was cut goes on where it ended, also in
/// a later run: what is there so far is kept beside the output as FILE.part.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  host base fetch && host base quantize \
    vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5 --calibrate photos -o int8.onnx")]
pub struct Args {
    /// Where the file goes
    #[arg(short, long, value_name = "FILE", default_value = NAME)]
    output: PathBuf,

    /// Another address; needs --sha256
    #[arg(long, value_name = "URL", requires = "sha256")]
    url: Option<String>,

    /// SHA-256 of the file at --url
    #[arg(long, value_name = "HEX", requires = "url")]
    sha256: Option<String>,

    /// Attempts in a row that bring nothing, before it gives up
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    tries: u32,
}

/// What the file must be.
enum Pin {
    /// Keras's file: its MD5, and the SHA-256 of the weights in it.
    Canonical,
    Sha256(String),
}

impl Pin {
    /// `Err` with what was found instead.
    fn check(&self, path: &Path) -> Result<Result<(), String>> {
        let found = match self {
            Self::Canonical => digest::<Md5>(path)?,
            Self::Sha256(_) => digest::<Sha256>(path)?,
        };
        let wanted = match self {
            Self::Canonical => MD5,
            Self::Sha256(wanted) => wanted,
        };
        if found != wanted {
            return Ok(Err(format!("its hash is {found}, not {wanted}")));
        }
        if matches!(self, Self::Canonical) && !quant::import::import(path, None)?.is_canonical() {
            return Ok(Err("the weights in it are not the published ones".into()));
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
pub fn run(args: Args) -> Result<()> {
    let (url, pin) = match (args.url, args.sha256) {
        (Some(url), Some(hex)) => {
            let hex = hex.to_ascii_lowercase();
            if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(UsageError(format!(
                    "--sha256 {hex}: 64 hexadecimal digits are expected"
                ))
                .into());
            }
            (url, Pin::Sha256(hex))
        }
        _ => (URL.to_owned(), Pin::Canonical),
    };
    vgg_edge::durable_fs::check_writable(&args.output)?;
    if args.output.exists() {
        if let Err(why) = pin.check(&args.output)? {
            bail!("{}: it is there already, but {why}; move it away first", args.output.display());
        }
        print_line(format_args!("{}: already there, and right", args.output.display()))?;
        return Ok(());
    }
    let mut name = args.output.clone().into_os_string();
    name.push(".part");
    let part = PathBuf::from(name);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&part)
        .map_err(vgg_edge::Error::io("write", &part))?;
    if file.try_lock().is_err() {
        bail!("{}: another download is at work on it", part.display());
    }
    let resumed = file.metadata().map_err(vgg_edge::Error::io("read", &part))?.len() > 0;
    download(&url, &mut file, &part, args.tries)?;
    if resumed && let Err(why) = pin.check(&part)? {
        // Power loss may have torn what was there.
        note(
            PROGRAM,
            format_args!(
                "{}: what was resumed is damaged ({why}); downloading all of it",
                part.display()
            ),
        );
        file.set_len(0).map_err(vgg_edge::Error::io("write", &part))?;
        download(&url, &mut file, &part, args.tries)?;
    }
    file.sync_all().map_err(vgg_edge::Error::io("sync", &part))?;
    if let Err(why) = pin.check(&part)? {
        std::fs::remove_file(&part).map_err(vgg_edge::Error::io("remove", &part))?;
        bail!("{url}: not the file that was expected: {why}; it was thrown away");
    }
    vgg_edge::durable_fs::rename(&part, &args.output)?;
    print_line(format_args!("wrote {}", args.output.display()))?;
    Ok(())
}

/// How an attempt ended that did not bring the file to its end.
enum Trouble {
    /// It may be better the next time.
    Passing(String),
    /// It will not.
    Final(anyhow::Error),
}

fn download(url: &str, file: &mut File, part: &Path, tries: u32) -> Result<()> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(15)))
        .timeout_recv_response(Some(Duration::from_secs(30)))
        // Of the body too: a connection that is lost without a word would never end.
        .timeout_per_read(Some(Duration::from_secs(30)))
        .build()
        .into();
    let bar =
        crate::progress::bar(0, "{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left");
    let mut failures = 0;
    loop {
        let before = file.metadata().map_err(vgg_edge::Error::io("read", part))?.len();
        match attempt(&agent, url, file, part, &bar) {
            Ok(()) => break,
            Err(Trouble::Final(error)) => return Err(error),
            Err(Trouble::Passing(why)) => {
                let now = file.metadata().map_err(vgg_edge::Error::io("read", part))?.len();
                failures = if now > before { 0 } else { failures + 1 };
                if failures >= tries {
                    bail!(
                        "cannot download {url}: {why}. By hand: download it with a browser or another machine, put it here, and go on \
                         with host base quantize; {now} bytes are kept in {} for the next run",
                        part.display()
                    );
                }
                bar.suspend(|| note(PROGRAM, format_args!("{why}; trying again from byte {now}")));
                pause(Duration::from_millis(if now > before {
                    200
                } else {
                    500 << failures.min(5)
                }))?;
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Waits, but not for one who has pressed Ctrl-C.
fn pause(time: Duration) -> Result<()> {
    for _ in 0..time.as_millis() / 100 {
        if interrupted() {
            return Err(Interrupted.into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn attempt(
    agent: &ureq::Agent,
    url: &str,
    file: &mut File,
    part: &Path,
    bar: &ProgressBar,
) -> Result<(), Trouble> {
    let io = |action| move |e| Trouble::Final(vgg_edge::Error::io(action, part)(e).into());
    let start = file.seek(SeekFrom::End(0)).map_err(io("read"))?;
    let mut request = agent.get(url).header("Accept-Encoding", "identity");
    if start > 0 {
        request = request.header("Range", format!("bytes={start}-"));
    }
    let response = request.call().map_err(|e| match e {
        ureq::Error::BadUri(why) => Trouble::Final(UsageError(format!("--url: {why}")).into()),
        e => Trouble::Passing(e.to_string()),
    })?;
    let header =
        |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let status = response.status().as_u16();
    let at = match status {
        200 => 0,
        206 => {
            let range = header("content-range").unwrap_or_default();
            if !range.starts_with(&format!("bytes {start}-")) {
                return Err(Trouble::Final(anyhow::anyhow!(
                    "{url}: asked for bytes from {start}, got {range:?}"
                )));
            }
            start
        }
        // Nothing lies beyond what is there: the hash will tell whether that is all.
        416 if start > 0 => return Ok(()),
        408 | 425 | 429 | 500.. => {
            return Err(Trouble::Passing(format!("the server answers with status {status}")));
        }
        _ => {
            return Err(Trouble::Final(anyhow::anyhow!(
                "{url}: the server answers with status {status}"
            )));
        }
    };
    let length = header("content-length").and_then(|v| v.parse::<u64>().ok());
    if at + length.unwrap_or(0) > MAX_BYTES {
        return Err(Trouble::Final(anyhow::anyhow!("{url}: larger than {MAX_BYTES} bytes")));
    }
    // A server that does not resume sends all of it again.
    file.set_len(at).map_err(io("write"))?;
    file.seek(SeekFrom::Start(at)).map_err(io("write"))?;
    bar.set_length(length.map_or(0, |length| at + length));
    bar.set_position(at);
    let mut body = response.into_body().into_reader().take(MAX_BYTES - at + 1);
    let mut buffer = vec![0; 64 << 10];
    let mut got = 0;
    loop {
        if interrupted() {
            return Err(Trouble::Final(Interrupted.into()));
        }
        match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                file.write_all(&buffer[..n]).map_err(io("write"))?;
                got += n as u64;
                bar.inc(n as u64);
                if at + got > MAX_BYTES {
                    return Err(Trouble::Final(anyhow::anyhow!(
                        "{url}: larger than {MAX_BYTES} bytes"
                    )));
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => {
                return Err(Trouble::Passing(format!(
                    "the connection broke after {} bytes ({e})",
                    at + got
                )));
            }
        }
    }
    match length {
        Some(length) if got < length => Err(Trouble::Passing(format!(
            "the connection ended after {} of {} bytes",
            at + got,
            at + length
        ))),
        _ => Ok(()),
    }
}
