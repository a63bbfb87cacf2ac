//! `edge info`: the abilities of this device, and the installed model.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use vgg_edge::kernels::{Algorithm, Kernel};
use vgg_edge::signature::{SignatureInfo, SignedFile, TrustedKeys};
use vgg_edge::{Backbone, Head};
use vgg_edge_cli::options::BaseOptions;
use vgg_edge_cli::terminal::print_line;

use crate::model::store::{ModelStore, Record};
use crate::sandbox::{Needs, Sandbox, SandboxOptions};

/// Show CPU features, kernel, sandbox, base and head
///
/// The sandbox is the one that `edge run` and `edge classify` get on this device: full, partial or
/// none, with the version of landlock and what is missing.
#[derive(clap::Args)]
pub struct Args {
    /// Head to show as well
    #[arg(long, value_name = "FILE")]
    head: Option<PathBuf>,

    /// Public key that must have signed the head; can be repeated
    #[arg(long, value_name = "KEY.pub", requires = "head")]
    trust: Vec<PathBuf>,

    /// State directory of edge run, to show the models in it
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,

    #[command(flatten)]
    base: BaseOptions,

    #[command(flatten)]
    sandbox: SandboxOptions,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What the command shows.
struct Report {
    cpus: usize,
    sandbox: Sandbox,
    base: Backbone,
    head: Option<HeadInfo>,
    state: Option<Record>,
}

/// A head and its signature.
struct HeadInfo {
    head: Head,
    signed: Option<SignatureInfo>,
    /// Whether the signature was verified, rather than only read.
    verified: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    // Before the sandbox, which hides the CPU quota of a container.
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    // The command must not create a directory.
    let state = match &args.state {
        Some(directory) if !directory.is_dir() => {
            bail!("{}: no such state directory", directory.display())
        }
        Some(directory) => Some(ModelStore::open(directory)?),
        None => None,
    };
    let sandbox = args.sandbox.enter(&args.needs())?;
    let base = args.base.load()?;
    let head = args.head.as_deref().map(|path| HeadInfo::load(path, &args.trust, &base));
    let report = Report {
        cpus,
        sandbox,
        head: head.transpose()?,
        base,
        state: state.map(|state| state.read()).transpose()?,
    };
    if args.json { Ok(print_line(report.to_json())?) } else { report.print() }
}

impl Args {
    fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        if let Ok(base) = self.base.path() {
            needs.file(&base);
        }
        // With the signature beside it.
        self.head.iter().for_each(|head| needs.replaceable(head));
        self.trust.iter().chain(&self.state).for_each(|path| needs.file(path));
        needs
    }
}

impl HeadInfo {
    fn load(path: &Path, trust: &[PathBuf], base: &Backbone) -> Result<Self> {
        let file = SignedFile::read(path, vgg_edge::head::MAX_BYTES)?;
        let verified = !trust.is_empty();
        let signed = if verified {
            Some(TrustedKeys::load(trust)?.verify(&file)?)
        } else {
            file.unverified_info()
        };
        let head = Head::from_bytes(&file.bytes);
        let head =
            head.map_err(|source| vgg_edge::Error::HeadFile { path: path.to_owned(), source })?;
        head.check_base(base)?;
        Ok(Self { head, signed, verified })
    }

    fn to_json(&self) -> Value {
        let Self { head, signed, verified } = self;
        json!({
            "labels": head.labels,
            "version": signed.map(|signed| signed.version),
            "key": signed.map(|signed| signed.key.to_string()),
            "verified": verified,
            "size": head.preprocess.size,
            "preprocess": head.preprocess.to_string(),
            "date": head.training.date,
            "val_accuracy": head.training.metrics.val_accuracy,
        })
    }

    fn print(&self) -> Result<()> {
        let Self { head, signed, verified } = self;
        print_line(format_args!(
            "head        {0}x{0}, labels {1}",
            head.preprocess.size,
            head.labels.join(", ")
        ))?;
        let text = if *verified { "verified" } else { "not verified; name the key with --trust" };
        match signed {
            Some(signed) => print_line(format_args!("            {signed}, {text}"))?,
            None => print_line("            not signed")?,
        }
        Ok(())
    }
}

impl Report {
    /// The layers of the base, each with its algorithm.
    fn algorithms(&self) -> Vec<(&str, &str)> {
        let names = self.base.layers().map(|layer| &*layer.name);
        names.zip(self.base.algorithms().map(Algorithm::name)).collect()
    }

    fn to_json(&self) -> Value {
        let Self { sandbox, base, .. } = self;
        let algorithms: Map<_, _> = self
            .algorithms()
            .into_iter()
            .map(|(layer, name)| (layer.to_owned(), name.into()))
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "arch": std::env::consts::ARCH,
            "cpu_features": cpu_features(),
            "cpus": self.cpus,
            "kernel": base.kernel().name(),
            "kernels": kernels(),
            "algorithms": algorithms,
            "sandbox": {
                "state": sandbox.state.name(),
                "landlock": sandbox.landlock,
                "seccomp": sandbox.seccomp,
                "missing": sandbox.missing,
            },
            "base": {
                "path": base.path(),
                "fingerprint": base.fingerprint().to_string(),
                "metadata": base.metadata(),
            },
            "head": self.head.as_ref().map(HeadInfo::to_json),
            "state": self.state,
        })
    }

    fn print(&self) -> Result<()> {
        let Self { cpus, sandbox, base, .. } = self;
        print_line(format_args!("edge        {}", env!("CARGO_PKG_VERSION")))?;
        print_line(format_args!(
            "cpu         {}, {cpus} cores, {}",
            std::env::consts::ARCH,
            cpu_features().join(" ")
        ))?;
        print_line(format_args!(
            "kernel      {} (of {})",
            base.kernel().name(),
            kernels().join(", ")
        ))?;
        for run in self.algorithms().chunk_by(|a, b| a.1 == b.1) {
            let (first, last) = (run[0].0, run[run.len() - 1].0);
            let layers =
                if first == last { first.to_owned() } else { format!("{first} to {last}") };
            print_line(format_args!("            {:<9} {layers}", run[0].1))?;
        }
        print_line(format_args!("sandbox     {sandbox}"))?;
        print_line(format_args!("base        {}", base.path().display()))?;
        print_line(format_args!("            {}", base.fingerprint()))?;
        let input = base.contract();
        print_line(format_args!(
            "input       {}, mean {:?}, std {:?}, sizes {} to {} in steps of {}",
            input.channel_order.name(),
            input.mean,
            input.std,
            input.size_min,
            input.size_max,
            input.size_multiple
        ))?;
        if let Some(head) = &self.head {
            head.print()?;
        }
        if let Some(state) = &self.state {
            let models =
                [("kept", state.current), ("before", state.previous), ("rejected", state.held)];
            for (name, model) in models {
                if let Some(model) = model {
                    print_line(format_args!("{name:<12}{model}"))?;
                }
            }
        }
        Ok(())
    }
}

/// Returns the names of the kernels that this CPU can run.
fn kernels() -> Vec<&'static str> {
    Kernel::available().map(Kernel::name).collect()
}

/// Returns the CPU features that kernels use, or could use.
fn cpu_features() -> Vec<&'static str> {
    #[allow(unused_mut, reason = "architectures without a list leave it empty")]
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! check {
            ($($name:tt),*) => {
                $(if std::arch::is_x86_feature_detected!($name) { found.push($name); })*
            };
        }
        check!("sse4.1", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vnni", "avxvnni");
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! check {
            ($($name:tt),*) => {
                $(if std::arch::is_aarch64_feature_detected!($name) { found.push($name); })*
            };
        }
        check!("neon", "dotprod", "i8mm", "fp16", "sve");
    }
    found
}
