//! Landlock: limits file and port access, by rules on files and directories that exist now.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

use super::Needs;

/// The requested version; newer ones add nothing that `edge` would need.
const REQUESTED: ABI = ABI::V6;

/// Later versions with the kernel that introduced each and what it limits, which older kernels do
/// not support.
const LATER: [(i32, &str, &str); 4] = [
    (3, "6.2", "on truncating files"),
    (4, "6.7", "on TCP ports"),
    (5, "6.10", "on device commands (ioctl)"),
    (6, "6.12", "on signals and abstract sockets"),
];

/// Files that are always readable: the processor's features (tract reads them) and temperature.
const SYSTEM_FILES: [&str; 3] =
    ["/proc/cpuinfo", "/sys/devices/system/cpu", "/sys/class/thermal/thermal_zone0"];

/// Restricts this thread; returns the version in force, 0 for none, and a descriptor to keep open.
/// Limits that are not in force are added to `missing`.
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

    // systemd may use an abstract socket.
    let notify =
        std::env::var("NOTIFY_SOCKET").is_ok_and(|name| needs.service && name.starts_with('@'));
    let scope = if notify { Scope::Signal.into() } else { Scope::from_all(REQUESTED) };
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(REQUESTED))?
        .handle_access(AccessNet::from_all(REQUESTED))?
        .scope(scope)?
        .create()?;
    for path in
        SYSTEM_FILES.map(Path::new).into_iter().chain(needs.read.iter().map(PathBuf::as_path))
    {
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
            missing.push("landlock: disabled in this kernel (boot parameter lsm=)".into());
            0
        }
        LandlockStatus::NotImplemented => {
            missing.push("landlock: not supported by this kernel".into());
            0
        }
    };
    if abi > 0 {
        for (since, kernel, what) in LATER {
            if abi < since {
                missing.push(format!("landlock: no limits {what} before Linux {kernel}"));
            }
        }
        if let Some(path) = needs
            .read
            .iter()
            .find(|path| std::fs::canonicalize(path).is_ok_and(|p| p == Path::new("/")))
        {
            missing.push(format!(
                "landlock: a file is in {} itself, so every file is readable",
                path.display()
            ));
        }
    }
    Ok((abi, proc))
}

/// Allows one kind of access to a file, or another to a directory and everything in it. A path that
/// does not exist needs no rule: opening it fails anyway.
fn allow(
    rules: &mut RulesetCreated,
    path: &Path,
    file: BitFlags<AccessFs>,
    directory: BitFlags<AccessFs>,
) -> Result<(), RulesetError> {
    let (Ok(metadata), Ok(opened)) = (std::fs::metadata(path), PathFd::new(path)) else {
        return Ok(());
    };
    let is_pipe = std::os::unix::fs::FileTypeExt::is_fifo(&metadata.file_type());
    let access = if metadata.is_dir() { directory } else { file };
    match rules.add_rule(PathBeneath::new(opened, access)) {
        Ok(_) => Ok(()),
        // An unnamed pipe, as shells create them for <(...), accepts no rule and needs none.
        Err(_) if is_pipe => Ok(()),
        Err(e) => Err(e),
    }
}

fn is_device(path: &Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|m| std::os::unix::fs::FileTypeExt::is_char_device(&m.file_type()))
}
