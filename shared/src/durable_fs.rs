//! Atomic writes: a file is either the old one or the new one, also after power loss.
//!
//! A temporary file is locked while it is written. One without a lock was left by a program that
//! died, and is removed by the next program that writes into the directory, so that such files do
//! not accumulate.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// Prefix and suffix of the names of temporary files.
const TEMPORARY: (&str, &str) = (".vgg-edge-", ".tmp");

/// Writes a file through a temporary file beside it: write, sync, rename, sync the directory.
///
/// `fill` writes the content. If it or the disk fails, `path` stays unchanged and the temporary
/// file is removed. A symbolic link is followed: its target is replaced.
///
/// # Errors
/// [`Error::Io`] for failures of the system, and if `path` exists but is not a regular file, since
/// renaming over a device or a pipe would remove it. The errors of `fill`.
pub fn write_atomic<E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let path = &resolve(path)?;
    let temporary = filled(path, fill)?;
    temporary.persist(path).map_err(|e| Error::io("rename to", path)(e.error))?;
    Ok(sync_directory(path)?)
}

/// Writes a file that must not exist yet, atomically as [`write_atomic`]. Returns whether it was
/// written; `false` if the file existed.
///
/// # Errors
/// [`Error::Io`].
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<bool> {
    let temporary =
        filled::<Error>(path, |file| file.write_all(bytes).map_err(Error::io("write", path)))?;
    match temporary.persist_noclobber(path) {
        Ok(_) => sync_directory(path).map(|()| true),
        Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Error::io("rename to", path)(e.error)),
    }
}

/// Returns a temporary file beside `path`, filled and synced.
fn filled<E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> std::result::Result<(), E>,
) -> std::result::Result<NamedTempFile, E> {
    let temporary = temporary(directory(path)).map_err(Error::io("write", path))?;
    {
        let mut writer = BufWriter::new(temporary.as_file());
        fill(&mut writer)?;
        writer.flush().map_err(Error::io("write", path))?;
    }
    temporary.as_file().sync_all().map_err(Error::io("sync", path))?;
    Ok(temporary)
}

/// Creates a temporary file in a directory, and locks it.
fn temporary(directory: &Path) -> io::Result<NamedTempFile> {
    sweep(directory);
    let (prefix, suffix) = TEMPORARY;
    loop {
        let mut builder = tempfile::Builder::new();
        let file = builder
            .prefix(prefix)
            .suffix(suffix)
            .permissions(permissions())
            .tempfile_in(directory)?;
        // On a file system without locks nothing is swept.
        let locked = file.as_file().lock().is_ok();
        // Another program may have removed it before it was locked.
        if !locked || file.as_file().metadata()?.nlink() > 0 {
            return Ok(file);
        }
    }
}

/// Removes the temporary files that programs left in a directory when they died; once per directory
/// and process, since it lists the directory.
///
/// Files that cannot be listed, locked or removed are left alone.
pub fn sweep(directory: &Path) {
    static SWEPT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    if !SWEPT.lock().unwrap_or_else(PoisonError::into_inner).insert(directory.to_owned()) {
        return;
    }
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_ours =
            name.to_str().is_some_and(|n| n.starts_with(TEMPORARY.0) && n.ends_with(TEMPORARY.1));
        if is_ours
            && entry.file_type().is_ok_and(|kind| kind.is_file())
            && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok())
        {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Appends a line to a log that is open for reading and appending, and syncs it: the whole line or
/// none of it.
///
/// A last line that was torn by power loss is ended first, so that it does not spoil this one too.
///
/// # Errors
/// The errors of the system.
pub fn append_line(mut log: &File, line: &str) -> io::Result<()> {
    let length = log.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        log.read_exact_at(&mut last, length - 1)?;
    }
    let start = if last == *b"\n" { "" } else { "\n" };
    let written =
        log.write_all(format!("{start}{line}\n").as_bytes()).and_then(|()| log.sync_data());
    if written.is_err() {
        let _ = log.set_len(length);
    }
    written
}

/// Writes `bytes` as [`write_atomic`] does.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |file| file.write_all(bytes).map_err(Error::io("write", path)))
}

/// Writes a new file that only its owner may read, for secrets; atomically.
///
/// # Errors
/// [`Error::Io`], also if the file exists: a secret is never overwritten.
pub fn create_private(path: &Path, bytes: &[u8]) -> Result<()> {
    // The default of `tempfile` is 0600, whatever the umask.
    let mut temporary = tempfile::Builder::new()
        .prefix(TEMPORARY.0)
        .suffix(TEMPORARY.1)
        .tempfile_in(directory(path))
        .map_err(Error::io("write", path))?;
    temporary.write_all(bytes).map_err(Error::io("write", path))?;
    temporary.as_file().sync_all().map_err(Error::io("sync", path))?;
    temporary.persist_noclobber(path).map_err(|e| Error::io("write", path)(e.error))?;
    sync_directory(path)
}

/// Renames a file that is synced already, and syncs the directory.
///
/// # Errors
/// [`Error::Io`].
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(Error::io("rename to", to))?;
    sync_directory(to)
}

/// Syncs the directory of a file: a name is on the disk only once its directory is.
///
/// # Errors
/// [`Error::Io`].
pub fn sync_directory(path: &Path) -> Result<()> {
    File::open(directory(path))
        .and_then(|directory| directory.sync_all())
        .map_err(Error::io("sync the directory of", path))
}

/// Checks that a file could be written: `path` does not exist or is a regular file, and its
/// directory is writable.
///
/// # Errors
/// [`Error::Io`] with the reason.
pub fn check_writable(path: &Path) -> Result<()> {
    let path = &resolve(path)?;
    let probe =
        tempfile::tempfile_in(directory(path)).and_then(|mut file| file.write_all(b"probe"));
    probe.map_err(Error::io("write", path))
}

/// Returns the file that a write to `path` replaces, with symbolic links resolved; an error if it
/// is not a regular file.
fn resolve(path: &Path) -> Result<PathBuf> {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let kind = match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => "it is a directory; name a file",
        Ok(metadata) if !metadata.is_file() => "it is not a regular file",
        _ => return Ok(path),
    };
    Err(Error::io("write", &path)(io::Error::new(io::ErrorKind::InvalidInput, kind)))
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}

/// Returns the permissions that `open` gives a new file, before the umask. The default of
/// `tempfile` is 0600, which would exclude the service that reads the head.
fn permissions() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o666)
}

/// Reads a whole file of at most `limit` bytes.
///
/// # Errors
/// [`Error::Io`], also if the file is longer than `limit`.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let file = File::open(path).map_err(Error::io("read", path))?;
    let wrong = Error::io("read", path);
    let read = || -> io::Result<Vec<u8>> {
        let most = usize::try_from(limit.saturating_add(1)).unwrap_or(usize::MAX);
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length.saturating_add(1).min(most))?;
        let mut file = file.take(most as u64);
        // A pipe or a device has no length; memory must not grow far beyond its content, nor beyond
        // the limit.
        loop {
            if bytes.len() == bytes.capacity() {
                bytes.try_reserve_exact(bytes.len().min(most - bytes.len()).max(1))?;
            }
            let room = (bytes.capacity() - bytes.len()) as u64;
            if file.by_ref().take(room).read_to_end(&mut bytes)? == 0 {
                return Ok(bytes);
            }
        }
    };
    let bytes = read().map_err(wrong)?;
    if bytes.len() as u64 > limit {
        let source =
            io::Error::new(io::ErrorKind::FileTooLarge, format!("over the limit of {limit} bytes"));
        return Err(Error::io("read", path)(source));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_atomic_write_leaves_the_old_file_and_no_temporary_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("head");
        write_atomic::<Error>(&path, |w| w.write_all(b"old").map_err(Error::io("write", "head")))
            .unwrap();
        let failed: Result<()> = write_atomic(&path, |w| {
            w.write_all(b"new, but").unwrap();
            Err(Error::Image("stop".into()))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        write_atomic::<Error>(&path, |w| w.write_all(b"new").map_err(Error::io("write", "head")))
            .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn temporary_files_of_dead_programs_only_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in [".vgg-edge-dead.tmp", ".vgg-edge-alive.tmp", ".other.tmp", ".vgg-edge-notes"] {
            std::fs::write(at(name), b"half").unwrap();
        }
        let alive = File::open(at(".vgg-edge-alive.tmp")).unwrap();
        alive.lock().unwrap();
        write_bytes(&at("head"), b"new").unwrap();
        let mut names: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, [".other.tmp", ".vgg-edge-alive.tmp", ".vgg-edge-notes", "head"]);
    }

    #[test]
    fn atomic_writes_may_be_concurrent() {
        let directory = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for byte in 0..8u8 {
                let path = directory.path().join("head");
                scope.spawn(move || {
                    for _ in 0..20 {
                        write_bytes(&path, &[byte; 5000]).unwrap();
                    }
                });
            }
        });
        let bytes = std::fs::read(directory.path().join("head")).unwrap();
        assert!(bytes.len() == 5000 && bytes.iter().all(|byte| *byte == bytes[0]));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(!write_new(&directory.path().join("head"), b"x").unwrap());
        assert!(write_new(&directory.path().join("other"), b"x").unwrap());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_torn_line_spoils_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let open = || File::options().read(true).append(true).create(true).open(&path).unwrap();
        append_line(&open(), "one").unwrap();
        append_line(&open(), "two").unwrap();
        open().set_len(6).unwrap();
        append_line(&open(), "three").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntw\nthree\n");
    }

    #[test]
    fn links_are_followed_and_devices_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        std::fs::write(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_atomic::<Error>(&link, |w| w.write_all(b"new").map_err(Error::io("write", "link")))
            .unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        let socket = directory.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let refused: Result<()> = write_atomic(&socket, |_| Ok(()));
        assert!(refused.unwrap_err().to_string().contains("not a regular file"));
        assert!(
            socket.exists() && check_writable(&socket).is_err() && check_writable(&file).is_ok()
        );
    }

    #[test]
    fn private_files_have_mode_0600_and_are_never_overwritten() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        create_private(&path, b"secret").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(create_private(&path, b"other").unwrap_err().to_string().contains("cannot write"));
        assert_eq!(std::fs::read(&path).unwrap(), b"secret");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_limit_of_read_limited_is_exact() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read_limited(&path, 5).unwrap(), b"12345");
        assert!(read_limited(&path, 4).unwrap_err().to_string().contains("limit of 4"));
    }
}
