//! Files that are either the old one or the new one, never half of each, also after power loss.
//!
//! A temporary file is locked for as long as it is written. One that nobody has locked was left
//! behind by a program that died, and is removed by the next that writes into the folder, so that
//! they do not gather.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// How the names of temporary files begin and end.
const TEMPORARY: (&str, &str) = (".vgg-edge-", ".tmp");

/// Writes a file through a temporary neighbor: write, sync, rename, sync the folder.
///
/// `fill` writes the content. When it or the disk fails, `path` is left as it was and the temporary
/// file is removed. A link is followed: its target is replaced.
///
/// # Errors
/// [`Error::Io`] for anything the system refuses, and for a path that is there and no regular file:
/// renaming over a device or a pipe would remove it. Whatever `fill` returns.
pub fn write_atomic<E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let path = &resolve(path)?;
    let temporary = filled(path, fill)?;
    temporary.persist(path).map_err(|e| Error::io("rename to", path)(e.error))?;
    Ok(sync_folder(path)?)
}

/// Writes a file that must not be there yet, as whole as [`write_atomic`] does; whether it was not.
///
/// # Errors
/// [`Error::Io`].
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<bool> {
    let temporary =
        filled::<Error>(path, |file| file.write_all(bytes).map_err(Error::io("write", path)))?;
    match temporary.persist_noclobber(path) {
        Ok(_) => sync_folder(path).map(|()| true),
        Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Error::io("rename to", path)(e.error)),
    }
}

/// A temporary neighbor of `path` that is filled and synced.
fn filled<E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> std::result::Result<(), E>,
) -> std::result::Result<NamedTempFile, E> {
    let temporary = temporary(folder(path)).map_err(Error::io("write", path))?;
    {
        let mut writer = BufWriter::new(temporary.as_file());
        fill(&mut writer)?;
        writer.flush().map_err(Error::io("write", path))?;
    }
    temporary.as_file().sync_all().map_err(Error::io("sync", path))?;
    Ok(temporary)
}

/// A temporary file that is locked and has its name.
fn temporary(folder: &Path) -> io::Result<NamedTempFile> {
    sweep(folder);
    let (prefix, suffix) = TEMPORARY;
    loop {
        let mut builder = tempfile::Builder::new();
        let file =
            builder.prefix(prefix).suffix(suffix).permissions(permissions()).tempfile_in(folder)?;
        // A file system without locks has no sweeping either.
        let locked = file.as_file().lock().is_ok();
        // Another program may have swept it away in the moment before it was locked.
        if !locked || file.as_file().metadata()?.nlink() > 0 {
            return Ok(file);
        }
    }
}

/// Removes the temporary files that programs left in a folder when they died; once for each folder,
/// since it lists it.
///
/// What cannot be listed, locked or removed stays where it is.
pub fn sweep(folder: &Path) {
    static SWEPT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    if !SWEPT.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.to_owned()) {
        return;
    }
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
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

/// Adds a line to a log that is open to read and to append: the whole line or nothing of it, and it
/// is on the disk.
///
/// A last line that power loss has torn is ended first, so that it does not spoil this one too.
///
/// # Errors
/// What the system says.
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

/// As [`write_atomic`], for content that is at hand.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |file| file.write_all(bytes).map_err(Error::io("write", path)))
}

/// Writes a new file that only its owner may read, for secrets; whole, or not at all.
///
/// # Errors
/// [`Error::Io`], also if there is a file already: a secret is never written over.
pub fn create_private(path: &Path, bytes: &[u8]) -> Result<()> {
    // The default of `tempfile` is 0600, whatever the umask.
    let mut temporary = tempfile::Builder::new()
        .prefix(".vgg-edge-")
        .suffix(".tmp")
        .tempfile_in(folder(path))
        .map_err(Error::io("write", path))?;
    temporary.write_all(bytes).map_err(Error::io("write", path))?;
    temporary.as_file().sync_all().map_err(Error::io("sync", path))?;
    temporary.persist_noclobber(path).map_err(|e| Error::io("write", path)(e.error))?;
    sync_folder(path)
}

/// Renames a file that is synced, and syncs the folder.
///
/// # Errors
/// [`Error::Io`].
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(Error::io("rename to", to))?;
    sync_folder(to)
}

/// Syncs the folder of a file: a name is on the disk only once its folder is.
///
/// # Errors
/// [`Error::Io`].
pub fn sync_folder(path: &Path) -> Result<()> {
    File::open(folder(path))
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io("sync the folder of", path))
}

/// Whether a file could be put there: nothing or a regular file is at `path`, and its folder lets
/// itself be written to.
///
/// # Errors
/// [`Error::Io`] that says what is in the way.
pub fn check_writable(path: &Path) -> Result<()> {
    let path = &resolve(path)?;
    let probe = tempfile::tempfile_in(folder(path)).and_then(|mut file| file.write_all(b"probe"));
    probe.map_err(Error::io("write", path))
}

/// The file that a write to `path` replaces, links followed; an error if something else is there.
fn resolve(path: &Path) -> Result<PathBuf> {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let kind = match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => "it is a folder; name a file",
        Ok(metadata) if !metadata.is_file() => "it is not a regular file",
        _ => return Ok(path),
    };
    Err(Error::io("write", &path)(io::Error::new(io::ErrorKind::InvalidInput, kind)))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// What `open` would give a new file, less the umask: `tempfile` defaults to 0600, which would lock
/// out the service that reads the head.
fn permissions() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o666)
}

/// Reads a whole file of at most `limit` bytes.
///
/// # Errors
/// [`Error::Io`], also when the file is longer than `limit`.
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
        // A pipe or a device says nothing of its length; memory must not run far beyond what it
        // gives, nor beyond the limit.
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
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("head");
        write_atomic::<Error>(&path, |w| w.write_all(b"old").map_err(Error::io("write", "head")))
            .unwrap();
        let failed: Result<()> = write_atomic(&path, |w| {
            w.write_all(b"new, but").unwrap();
            Err(Error::Picture("stop".into()))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        write_atomic::<Error>(&path, |w| w.write_all(b"new").map_err(Error::io("write", "head")))
            .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn what_a_dead_program_left_is_removed_and_what_a_living_one_writes_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in [".vgg-edge-dead.tmp", ".vgg-edge-alive.tmp", ".other.tmp", ".vgg-edge-notes"] {
            std::fs::write(at(name), b"half").unwrap();
        }
        let alive = File::open(at(".vgg-edge-alive.tmp")).unwrap();
        alive.lock().unwrap();
        write_bytes(&at("head"), b"new").unwrap();
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, [".other.tmp", ".vgg-edge-alive.tmp", ".vgg-edge-notes", "head"]);
    }

    #[test]
    fn many_may_write_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for byte in 0..8u8 {
                let path = folder.path().join("head");
                scope.spawn(move || {
                    for _ in 0..20 {
                        write_bytes(&path, &[byte; 5000]).unwrap();
                    }
                });
            }
        });
        let bytes = std::fs::read(folder.path().join("head")).unwrap();
        assert!(bytes.len() == 5000 && bytes.iter().all(|byte| *byte == bytes[0]));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(!write_new(&folder.path().join("head"), b"x").unwrap());
        assert!(write_new(&folder.path().join("other"), b"x").unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_torn_line_spoils_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let open = || File::options().read(true).append(true).create(true).open(&path).unwrap();
        append_line(&open(), "one").unwrap();
        append_line(&open(), "two").unwrap();
        open().set_len(6).unwrap();
        append_line(&open(), "three").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntw\nthree\n");
    }

    #[test]
    fn links_are_followed_and_devices_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_atomic::<Error>(&link, |w| w.write_all(b"new").map_err(Error::io("write", "link")))
            .unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let refused: Result<()> = write_atomic(&socket, |_| Ok(()));
        assert!(refused.unwrap_err().to_string().contains("not a regular file"));
        assert!(
            socket.exists() && check_writable(&socket).is_err() && check_writable(&file).is_ok()
        );
    }

    #[test]
    fn secrets_are_for_their_owner_and_never_written_over() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        create_private(&path, b"secret").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(create_private(&path, b"other").unwrap_err().to_string().contains("cannot write"));
        assert_eq!(std::fs::read(&path).unwrap(), b"secret");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_limit_of_a_read_is_exact() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read_limited(&path, 5).unwrap(), b"12345");
        assert!(read_limited(&path, 4).unwrap_err().to_string().contains("limit of 4"));
    }
}
