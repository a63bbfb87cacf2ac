//! Files that are either the old one or the new one, never half of each.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::{Error, Result};

/// Writes a file through a temporary neighbour: write, sync, rename, sync the folder.
///
/// `fill` writes the content. When it or the disk fails, `path` is left as it was and the temporary file is removed.
///
/// # Errors
/// [`Error::Io`] for anything the system refuses; whatever `fill` returns.
pub fn write_atomic<E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if path.is_dir() {
        let source = std::io::Error::from(std::io::ErrorKind::IsADirectory);
        return Err(Error::io("write", path)(source).into());
    }
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
    // The name is on the disk only once the folder is.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync the folder of", path))?;
    Ok(())
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
    fn the_limit_of_a_read_is_exact() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read_limited(&path, 5).unwrap(), b"12345");
        assert!(read_limited(&path, 4).unwrap_err().to_string().contains("limit of 4"));
    }
}
