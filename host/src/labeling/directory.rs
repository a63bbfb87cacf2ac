//! Files moved between directories that are held open, so that no name, link or directory put in
//! their place leads elsewhere.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, mkdirat, openat, renameat_with, statat,
    unlinkat,
};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use vgg_edge::Fingerprint;

/// An open directory.
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

/// The outcome of moving a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Placed {
    /// It was moved, and has this name now.
    Moved(OsString),
    /// A file with the same content was there under this name; the moved file was removed.
    Same(OsString, Fingerprint),
}

impl Directory {
    /// Opens a directory; links are followed.
    ///
    /// # Errors
    /// An I/O error, for instance if it does not exist or is not a directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let fd = openat(
            CWD,
            &path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Self { fd, path })
    }

    /// The path when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a subdirectory, which must not be a link, and creates it if it does not exist; also
    /// returns whether it was created.
    ///
    /// # Errors
    /// An I/O error, for instance if something else has the name.
    pub fn create(&self, name: &OsStr) -> io::Result<(Self, bool)> {
        let created = match mkdirat(&self.fd, component(name)?, Mode::from_raw_mode(0o777)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        // Before anything is moved into it: a file in a directory that a power loss removes would
        // be lost.
        if created {
            self.sync();
        }
        Ok((self.subdirectory(name)?, created))
    }

    /// Opens a subdirectory, which must not be a link.
    ///
    /// # Errors
    /// An I/O error, for instance if something else has the name.
    pub fn subdirectory(&self, name: &OsStr) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.fd, component(name)?, flags, Mode::empty())?;
        Ok(Self { fd, path: self.path.join(name) })
    }

    /// Removes a subdirectory if it is empty.
    pub fn remove_empty(&self, name: &OsStr) {
        // Otherwise, or without the permission, it stays.
        let _ = component(name).and_then(|name| Ok(unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?));
    }

    /// Whether anything has this name.
    pub fn has(&self, name: &OsStr) -> bool {
        !matches!(statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT))
    }

    /// Opens a regular file, which must not be a link, for reading.
    ///
    /// # Errors
    /// An I/O error, for instance if it is not a regular file.
    pub fn file(&self, name: &OsStr) -> io::Result<File> {
        // Without NONBLOCK, opening a pipe would block.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(&self.fd, component(name)?, flags, Mode::empty())?);
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::Error::other("not a regular file"))
        }
    }

    /// Appends a line to a file, which is created if it does not exist: all of the line or nothing.
    ///
    /// # Errors
    /// An I/O error.
    pub fn append(&self, name: &OsStr, line: &str) -> io::Result<()> {
        let flags =
            OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let is_new = !self.has(name);
        let file =
            File::from(openat(&self.fd, component(name)?, flags, Mode::from_raw_mode(0o666))?);
        vgg_edge::durable_fs::append_line(&file, line)?;
        if is_new {
            self.sync();
        }
        Ok(())
    }

    /// Moves a file into another directory, under its name or, if another file has that, with the
    /// hash of its content appended.
    ///
    /// # Errors
    /// An I/O error; the file is then where it was.
    pub fn put(&self, name: &OsStr, to: &Self) -> io::Result<Placed> {
        let file = self.file(name)?;
        match self.rename(name, to, name) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            done => return done.map(|()| Placed::Moved(name.to_owned())),
        }
        let metadata = file.metadata()?;
        let hash = fingerprint(file)?;
        for candidate in [
            name.to_owned(),
            with_suffix(name, &hash.short()),
            with_suffix(name, &hash.to_string()),
        ] {
            match self.rename(name, to, &candidate) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                done => return done.map(|()| Placed::Moved(candidate)),
            }
            // Anything that cannot be read, or is not a file, is something else.
            let Ok(there) = to.file(&candidate) else { continue };
            let theirs = there.metadata()?;
            if theirs.len() != metadata.len() || fingerprint(there)? != hash {
                continue;
            }
            if (theirs.dev(), theirs.ino()) == (metadata.dev(), metadata.ino())
                && theirs.nlink() < 2
            {
                return Err(io::Error::other("both directories are the same"));
            }
            unlinkat(&self.fd, name, AtFlags::empty())?;
            self.sync();
            return Ok(Placed::Same(candidate, hash));
        }
        Err(io::Error::new(ErrorKind::AlreadyExists, "all possible names are taken there"))
    }

    /// Reverts [`put`](Self::put).
    ///
    /// # Errors
    /// An I/O error, for instance if the name is taken again, or the file has vanished or changed;
    /// all files are then where they were.
    pub fn take_back(&self, name: &OsStr, from: &Self, placed: &Placed) -> io::Result<()> {
        match placed {
            Placed::Moved(there) => {
                from.file(there)?;
                from.rename(there, self, name)
            }
            Placed::Same(there, hash) => {
                if fingerprint(from.file(there)?)? != *hash {
                    return Err(io::Error::other("the file with the same content has changed"));
                }
                from.copy(there, self, name)
            }
        }
    }

    /// Renames without ever replacing a file; copies between file systems.
    fn rename(&self, name: &OsStr, to: &Self, target: &OsStr) -> io::Result<()> {
        let (name, target) = (component(name)?, component(target)?);
        match renameat_with(&self.fd, name, &to.fd, target, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::XDEV) => {
                self.copy(name, to, target)?;
                unlinkat(&self.fd, name, AtFlags::empty())?;
            }
            // NFS, and old FUSE, cannot do it in one step.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                linkat(&self.fd, name, &to.fd, target, AtFlags::empty())?;
                unlinkat(&self.fd, name, AtFlags::empty())?;
            }
            Err(error) => return Err(error.into()),
        }
        to.sync();
        self.sync();
        Ok(())
    }

    /// Copies a file, under a hidden name until it is on disk.
    fn copy(&self, name: &OsStr, to: &Self, target: &OsStr) -> io::Result<()> {
        let mut source = self.file(name)?;
        if to.has(target) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let temporary = format!(".vgg-edge-label-{}.tmp", std::process::id());
        let temporary = OsStr::new(&temporary);
        // The rest of a process with the same id that died.
        let _ = unlinkat(&to.fd, temporary, AtFlags::empty());
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&to.fd, temporary, flags, Mode::from_raw_mode(0o666))?);
        // So that no other process takes it for the rest of a dead one
        // (`vgg_edge::durable_fs::sweep`).
        let _ = file.lock();
        let written = io::copy(&mut source, &mut file).and_then(|_| {
            file.set_modified(source.metadata()?.modified()?)?;
            file.sync_all()?;
            to.rename(temporary, to, target)
        });
        if written.is_err() {
            let _ = unlinkat(&to.fd, temporary, AtFlags::empty());
        }
        written
    }

    /// Flushes the directory: only then are its names on disk. An error is ignored, because the
    /// move has happened.
    fn sync(&self) {
        let _ = rustix::fs::fsync(&self.fd);
    }
}

/// Returns the name if it is a name and not a path.
fn component(name: &OsStr) -> io::Result<&OsStr> {
    let mut parts = Path::new(name).components();
    let first = parts
        .next()
        .filter(|part| matches!(part, std::path::Component::Normal(part) if *part == name));
    match (first, parts.next()) {
        (Some(_), None) => Ok(name),
        _ => Err(io::Error::new(ErrorKind::InvalidInput, "not a file name")),
    }
}

/// Appends a suffix to the name, before its extension.
fn with_suffix(name: &OsStr, suffix: &str) -> OsString {
    let path = Path::new(name);
    let mut new = path.file_stem().unwrap_or(name).to_owned();
    new.push(format!("-{suffix}"));
    if let Some(extension) = path.extension() {
        new.push(".");
        new.push(extension);
    }
    new
}

fn fingerprint(mut file: File) -> io::Result<Fingerprint> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Fingerprint(hash.finalize().into())),
            count => hash.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn pair() -> (tempfile::TempDir, Directory, Directory) {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::open(root.path()).unwrap();
        let (a, _) = directory.create("a".as_ref()).unwrap();
        let (b, _) = directory.create("b".as_ref()).unwrap();
        (root, a, b)
    }

    #[test]
    fn names_that_are_paths_are_refused() {
        let (root, a, b) = pair();
        fs::write(root.path().join("secret"), b"1").unwrap();
        for name in ["../secret", "..", ".", "", "/etc/passwd", "x/../../secret", "./x", "x/"] {
            let name = OsStr::new(name);
            assert!(a.file(name).is_err() && a.put(name, &b).is_err(), "{name:?}");
            assert!(
                a.create(name).is_err()
                    && a.subdirectory(name).is_err()
                    && a.append(name, "").is_err(),
                "{name:?}"
            );
            assert!(a.take_back("x".as_ref(), &b, &Placed::Moved(name.to_owned())).is_err());
        }
        assert_eq!(names(root.path()), ["a", "b", "secret"]);
    }

    #[test]
    fn links_and_pipes_are_left_alone() {
        let (root, a, b) = pair();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret.png"), b"1").unwrap();
        symlink(outside.join("secret.png"), a.path().join("link.png")).unwrap();
        symlink(&outside, a.path().join("class")).unwrap();
        symlink(outside.join("log"), a.path().join("labels.ndjson")).unwrap();
        let _pipe = std::os::unix::net::UnixListener::bind(a.path().join("socket.png")).unwrap();
        for name in ["link.png", "socket.png", "class"] {
            assert!(a.put(name.as_ref(), &b).is_err(), "{name}");
        }
        assert!(
            a.create("class".as_ref()).is_err() && a.append("labels.ndjson".as_ref(), "x").is_err()
        );
        // A link that has the name is neither replaced nor followed.
        fs::write(a.path().join("x.png"), b"1").unwrap();
        symlink(outside.join("secret.png"), b.path().join("x.png")).unwrap();
        let placed = a.put("x.png".as_ref(), &b).unwrap();
        assert!(matches!(&placed, Placed::Moved(name) if name != "x.png"), "{placed:?}");
        assert_eq!(names(&outside), ["secret.png"]);
        assert!(b.path().join("x.png").is_symlink());
    }

    #[test]
    fn files_of_the_same_content_count_as_moved_and_can_be_taken_back() {
        let (_root, a, b) = pair();
        fs::write(a.path().join("x.jpg"), b"same").unwrap();
        fs::write(b.path().join("x.jpg"), b"same").unwrap();
        let placed = a.put("x.jpg".as_ref(), &b).unwrap();
        assert!(matches!(placed, Placed::Same(..)));
        assert!(names(a.path()).is_empty());
        a.take_back("x.jpg".as_ref(), &b, &placed).unwrap();
        assert_eq!(fs::read(a.path().join("x.jpg")).unwrap(), b"same");
        assert_eq!((names(a.path()).len(), names(b.path()).len()), (1, 1));
        // A file with a single link, found in both, must not be removed.
        let again = Directory::open(b.path()).unwrap();
        assert!(b.put("x.jpg".as_ref(), &again).is_err());
        assert_eq!(fs::read(b.path().join("x.jpg")).unwrap(), b"same");
    }

    #[test]
    fn between_file_systems_files_are_copied() {
        // Memory and disk, where both are there.
        let Ok(other) = tempfile::tempdir_in("/dev/shm") else { return };
        let (_root, a, _) = pair();
        let other = Directory::open(other.path()).unwrap();
        fs::write(a.path().join("x.jpg"), b"1").unwrap();
        let placed = a.put("x.jpg".as_ref(), &other).unwrap();
        assert_eq!((names(a.path()).len(), names(other.path())), (0, vec!["x.jpg".to_owned()]));
        fs::write(a.path().join("x.jpg"), b"2").unwrap();
        assert!(a.take_back("x.jpg".as_ref(), &other, &placed).is_err(), "the name is taken");
        let second = a.put("x.jpg".as_ref(), &other).unwrap();
        assert_eq!(names(other.path()).len(), 2);
        a.take_back("x.jpg".as_ref(), &other, &second).unwrap();
        assert_eq!(fs::read(a.path().join("x.jpg")).unwrap(), b"2");
        assert_eq!(names(other.path()), ["x.jpg"]);
    }
}
