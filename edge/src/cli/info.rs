//! `edge info`: what this device can do and what is installed.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::json;
use vgg_edge::Head;
use vgg_edge::kernels::{Algorithm, Kernel};
use vgg_edge::signature::{SignedFile, TrustedKeys};
use vgg_edge_cli::options::BaseOptions;
use vgg_edge_cli::terminal::print_line;

use crate::model::store::ModelStore;
use crate::sandbox::{Needs, SandboxOptions};

/// Shows CPU features, the kernel that would run, the sandbox, the base, and a head
///
/// The sandbox is what `edge run` and `edge classify` have here: full, partial or none, with the
/// version of landlock, and what is missing.
#[derive(clap::Args)]
pub struct Args {
    /// A head to look at as well
    #[arg(long, value_name = "FILE")]
    head: Option<PathBuf>,

    /// A public key that must have signed the head; can be given more than once
    #[arg(long, value_name = "KEY.pub", requires = "head")]
    trust: Vec<PathBuf>,

    /// The state folder of an edge run, to see what was kept
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,

    #[command(flatten)]
    base: BaseOptions,

    #[command(flatten)]
    sandbox: SandboxOptions,

    /// Prints one object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    // It reads what the sandbox hides: the share of the processor that a container has.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut needs = Needs::default();
    if let Ok(base) = args.base.path() {
        needs.file(&base);
    }
    // With its signature beside it.
    args.head.iter().for_each(|head| needs.replaceable(head));
    args.trust.iter().chain(&args.state).for_each(|path| needs.file(path));
    // Looking must not make a folder.
    let state = match &args.state {
        Some(folder) if !folder.is_dir() => {
            bail!("{}: there is no such state folder", folder.display())
        }
        Some(folder) => Some(ModelStore::open(folder)?),
        None => None,
    };
    let sandbox = args.sandbox.enter(&needs)?;
    let base = args.base.load()?;
    let mut signed = None;
    let head = match &args.head {
        None => None,
        Some(path) => {
            let file = SignedFile::read(path, vgg_edge::head::MAX_BYTES)?;
            signed = if args.trust.is_empty() {
                file.unverified_info()
            } else {
                Some(TrustedKeys::load(&args.trust)?.verify(&file)?)
            };
            let head = Head::from_bytes(&file.bytes);
            let head =
                head.map_err(|source| vgg_edge::Error::HeadFile { path: path.clone(), source })?;
            head.check_base(&base)?;
            Some(head)
        }
    };
    let verified = !args.trust.is_empty();
    let kept = state.map(|state| state.read()).transpose()?;
    let kernels: Vec<&str> = Kernel::available().map(Kernel::name).collect();
    let contract = base.contract();
    let algorithms: Vec<(&str, &str)> = base
        .layers()
        .map(|layer| &*layer.name)
        .zip(base.algorithms().map(Algorithm::name))
        .collect();
    if args.json {
        print_line(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "arch": std::env::consts::ARCH,
            "cpu_features": cpu_features(),
            "cpus": threads,
            "kernel": base.kernel().name(),
            "kernels": kernels,
            "algorithms": algorithms.iter().map(|&(layer, name)| (layer.to_owned(), name.into())).collect::<serde_json::Map<_, _>>(),
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
            "head": head.as_ref().map(|head| json!({
                "labels": head.labels,
                "version": signed.map(|signed| signed.version),
                "key": signed.map(|signed| signed.key.to_string()),
                "verified": verified,
                "size": head.preprocess.size,
                "preprocess": head.preprocess.to_string(),
                "date": head.training.date,
                "val_accuracy": head.training.metrics.val_accuracy,
            })),
            "state": kept,
        }))?;
        return Ok(());
    }
    print_line(format_args!("edge        {}", env!("CARGO_PKG_VERSION")))?;
    print_line(format_args!(
        "cpu         {}, {threads} cores, {}",
        std::env::consts::ARCH,
        cpu_features().join(" ")
    ))?;
    print_line(format_args!("kernel      {} (of {})", base.kernel().name(), kernels.join(", ")))?;
    for run in algorithms.chunk_by(|a, b| a.1 == b.1) {
        let (first, last) = (run[0].0, run[run.len() - 1].0);
        let layers = if first == last { first.to_owned() } else { format!("{first} to {last}") };
        print_line(format_args!("            {:<9} {layers}", run[0].1))?;
    }
    print_line(format_args!("sandbox     {sandbox}"))?;
    print_line(format_args!("base        {}", base.path().display()))?;
    print_line(format_args!("            {}", base.fingerprint()))?;
    print_line(format_args!(
        "input       {}, mean {:?}, std {:?}, sizes {} to {} in steps of {}",
        contract.channel_order.name(),
        contract.mean,
        contract.std,
        contract.size_min,
        contract.size_max,
        contract.size_multiple
    ))?;
    if let Some(head) = head {
        print_line(format_args!(
            "head        {}x{1}, labels {2}",
            head.preprocess.size,
            head.preprocess.size,
            head.labels.join(", ")
        ))?;
        let words = if verified { "verified" } else { "not verified; name the key with --trust" };
        match signed {
            Some(signed) => print_line(format_args!("            {signed}, {words}"))?,
            None => print_line("            not signed")?,
        }
    }
    if let Some(kept) = kept {
        let pairs = [("kept", kept.current), ("before", kept.previous), ("held back", kept.held)];
        for (name, pair) in pairs.into_iter().filter_map(|(name, pair)| Some((name, pair?))) {
            print_line(format_args!("{name:<12}{pair}"))?;
        }
    }
    Ok(())
}

/// The features that kernels may use, present or to come.
fn cpu_features() -> Vec<&'static str> {
    #[allow(unused_mut, reason = "architectures without a list leave it empty")]
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! check {
            ($($name:tt),*) => { $(if std::arch::is_x86_feature_detected!($name) { found.push($name); })* };
        }
        check!("sse4.1", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vnni", "avxvnni");
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! check {
            ($($name:tt),*) => { $(if std::arch::is_aarch64_feature_detected!($name) { found.push($name); })* };
        }
        check!("neon", "dotprod", "i8mm", "fp16", "sve");
    }
    found
}
