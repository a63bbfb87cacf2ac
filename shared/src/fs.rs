//! Files that are either the old one or the new one, never half of each.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Writes a file through a temporary neighbour: write, sync, rename, sync the folder.
///
/// `fill` writes the content. When it or the disk fails, `path` is left as it was and the temporary file is removed. A link
/// is followed: its target is replaced.
///
/// # Errors
/// [`Error::Io`] for anything the system refuses, and for a path that is there and no regular file: renaming over a
/// device or a pipe would remove it. Whatever `fill` returns.
pub fn write_atomic<E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let path = &resolve(path)?;
    let folder = folder(path);
    let temporary = tempfile::Builder::new()
        .prefix(".vgg-edge-")
        .suffix(".tmp")
        .permissions(permissions())
        .tempfile_in(folder)
        .map_err(Error::io("write", path))?;
    {
        let mut writer = BufWriter::new(temporary.as_file());
        fill(&mut writer)?;
        writer.flush().map_err(Error::io("write", path))?;
    }
    temporary.as_file().sync_all().map_err(Error::io("sync", path))?;
    temporary.persist(path).map_err(|e| Error::io("rename to", path)(e.error))?;
    Ok(sync_folder(path)?)
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

/// A name is on the disk only once its folder is.
fn sync_folder(path: &Path) -> Result<()> {
    File::open(folder(path)).and_then(|folder| folder.sync_all()).map_err(Error::io("sync the folder of", path))
}

/// Whether a file could be put there: nothing or a regular file is at `path`, and its folder lets itself be written to.
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
    Err(Error::io("write", &path)(std::io::Error::new(std::io::ErrorKind::InvalidInput, kind)))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// What `open` would give a new file, less the umask: `tempfile` defaults to 0600, which would lock out the service
/// that reads the head.
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
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let mut bytes = Vec::with_capacity(usize::try_from(length.min(limit)).unwrap_or(0));
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > limit {
        let source = std::io::Error::new(std::io::ErrorKind::FileTooLarge, format!("over the limit of {limit} bytes"));
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
        write_atomic::<Error>(&path, |w| w.write_all(b"old").map_err(Error::io("write", "head"))).unwrap();
        let failed: Result<()> = write_atomic(&path, |w| {
            w.write_all(b"new, but").unwrap();
            Err(Error::Picture("stop".into()))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        write_atomic::<Error>(&path, |w| w.write_all(b"new").map_err(Error::io("write", "head"))).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn links_are_followed_and_devices_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_atomic::<Error>(&link, |w| w.write_all(b"new").map_err(Error::io("write", "link"))).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let refused: Result<()> = write_atomic(&socket, |_| Ok(()));
        assert!(refused.unwrap_err().to_string().contains("not a regular file"));
        assert!(socket.exists() && check_writable(&socket).is_err() && check_writable(&file).is_ok());
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
