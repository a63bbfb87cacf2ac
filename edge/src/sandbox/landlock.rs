//! Landlock: the files and ports that are left, by rules on files and folders that are there now.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

use super::Needs;

/// What is asked for; a newer kernel has nothing that `edge` would need.
const WANTED: ABI = ABI::V6;

/// What came after the first version, which parts of the request older kernels do not know.
const LATER: [(i32, &str, &str); 4] = [
    (3, "6.2", "against cutting files short"),
    (4, "6.7", "on TCP ports"),
    (5, "6.10", "on commands to devices"),
    (6, "6.12", "on signals and abstract sockets"),
];

/// What everyone may read: what is known of the processor (tract looks for it) and its temperature.
const FACTS: [&str; 3] =
    ["/proc/cpuinfo", "/sys/devices/system/cpu", "/sys/class/thermal/thermal_zone0"];

/// Restricts this thread; gives the version in force, 0 for none, and a descriptor to keep. What is
/// not in force is added to `missing`.
pub fn restrict(
    needs: &Needs,
    missing: &mut Vec<String>,
) -> Result<(i32, Option<PathFd>), RulesetError> {
    let file: BitFlags<AccessFs> = AccessFs::ReadFile.into();
    let read = file | AccessFs::ReadDir;
    let write = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::Refer;
    let device = file | AccessFs::WriteFile | AccessFs::IoctlDev;

    // systemd may have given the name of an abstract socket.
    let notify =
        std::env::var("NOTIFY_SOCKET").is_ok_and(|name| needs.service && name.starts_with('@'));
    let scope = if notify { Scope::Signal.into() } else { Scope::from_all(WANTED) };
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(WANTED))?
        .handle_access(AccessNet::from_all(WANTED))?
        .scope(scope)?
        .create()?;
    for path in FACTS.map(Path::new).into_iter().chain(needs.read.iter().map(PathBuf::as_path)) {
        allow(&mut rules, path, file, read)?;
    }
    for path in &needs.write {
        allow(&mut rules, path, file, write)?;
    }
    let proc = PathFd::new("/proc/self").ok();
    if let Some(proc) = &proc {
        (&mut rules).add_rule(PathBeneath::new(proc, read))?;
    }
    if needs.cameras {
        allow(&mut rules, Path::new("/dev"), device, device | AccessFs::ReadDir)?;
        for path in &needs.read {
            if is_device(path) {
                allow(&mut rules, path, device, read)?;
            }
        }
    }
    if let Some(port) = needs.port {
        (&mut rules).add_rule(NetPort::new(port, AccessNet::BindTcp))?;
    }
    let abi = match rules.restrict_self()?.landlock {
        LandlockStatus::Available { effective_abi, .. } => effective_abi as i32,
        LandlockStatus::NotEnabled => {
            missing.push("landlock: this kernel has it, but it is not switched on (lsm=)".into());
            0
        }
        LandlockStatus::NotImplemented => {
            missing.push("landlock: this kernel does not have it".into());
            0
        }
    };
    if abi > 0 {
        for (since, kernel, words) in LATER {
            if abi < since {
                missing.push(format!("landlock: no limits {words} before Linux {kernel}"));
            }
        }
        if let Some(path) = needs
            .read
            .iter()
            .find(|path| std::fs::canonicalize(path).is_ok_and(|p| p == Path::new("/")))
        {
            missing.push(format!(
                "landlock: a file lies in {} itself, so all can be read",
                path.display()
            ));
        }
    }
    Ok((abi, proc))
}

/// Allows one kind of access to a file, or another to a folder and all in it. What is not there
/// needs no rule: to open it fails anyway.
fn allow(
    rules: &mut RulesetCreated,
    path: &Path,
    file: BitFlags<AccessFs>,
    folder: BitFlags<AccessFs>,
) -> Result<(), RulesetError> {
    let (Ok(metadata), Ok(opened)) = (std::fs::metadata(path), PathFd::new(path)) else {
        return Ok(());
    };
    let is_pipe = std::os::unix::fs::FileTypeExt::is_fifo(&metadata.file_type());
    let access = if metadata.is_dir() { folder } else { file };
    match rules.add_rule(PathBeneath::new(opened, access)) {
        Ok(_) => Ok(()),
        // A pipe without a name, as shells make them for <(...), takes no rule and needs none.
        Err(_) if is_pipe => Ok(()),
        Err(e) => Err(e),
    }
}

fn is_device(path: &Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|m| std::os::unix::fs::FileTypeExt::is_char_device(&m.file_type()))
}
