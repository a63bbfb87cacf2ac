//! Simulation of power loss: the system calls of a real run, replayed on a model of a disk.
//!
//! A program runs under strace, which records every call that changes a file. The model replays the
//! calls up to some point and then cuts the power: whatever was synced survives; of everything else
//! any part may survive. Each write since the last sync of its file may be missing, torn, or a hole
//! of zeros; each change of a name since the last sync of its directory may be missing, in any
//! combination. A rename is atomic, within a directory and between two, as on every journaling file
//! system. Nothing else is assumed, so the disk may write in the worst possible order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use fastrand::Rng;

/// System calls that change files, and those that define a descriptor.
const CALLS: &str = "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,lseek,ftruncate,\
     truncate,fallocate,\
     copy_file_range,sendfile,fsync,fdatasync,rename,renameat,renameat2,link,linkat,symlink,\
     symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,close,dup,dup2,dup3,fcntl,mmap,close_range";

/// Files below a directory by relative path; a directory has no content.
pub type Tree = BTreeMap<PathBuf, Option<Vec<u8>>>;

type Inode = usize;

/// A change of a file or a name.
#[derive(Clone, Debug)]
enum Change {
    /// Bytes at an offset.
    Write(Inode, u64, Vec<u8>),
    /// A new length.
    Resize(Inode, u64),
    /// A sync of a file's content.
    SyncFile(Inode),
    /// A sync of a directory's names.
    SyncFolder(PathBuf),
    /// A name is added, removed, or both, atomically. The inode is `None` for a directory.
    Name { from: Option<PathBuf>, to: Option<PathBuf>, inode: Option<Inode> },
}

/// How much unsynced data survives.
#[derive(Clone, Copy, Debug)]
pub enum Disk {
    /// Only synced data survives.
    Lazy,
    /// Everything survives: the program was killed, but the power stayed on.
    Eager,
    /// A random part of the unsynced data survives, determined by the seed.
    Random(u64),
}

/// The recorded changes of a run.
pub struct Recording {
    /// Contents before the run.
    initial: Vec<Vec<u8>>,
    /// Names before the run; `None` for a directory.
    names: BTreeMap<PathBuf, Option<Inode>>,
    changes: Vec<Change>,
}

/// Returns a command that runs another one under strace, which writes to `log`.
pub fn traced(command: &Command, log: &Path) -> Command {
    let mut strace = Command::new("strace");
    strace.args([
        "-f",
        "--seccomp-bpf",
        "-y",
        "-xx",
        "-s",
        "1000000000",
        "-e",
        "signal=none",
        "-e",
    ]);
    strace.arg(format!("trace={CALLS}")).arg("-o").arg(log).arg("--");
    crate::wrapped(strace, command)
}

/// Reads everything below a directory.
pub fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_owned();
            if path.is_dir() {
                found.insert(name, None);
                folders.push(path);
            } else {
                found.insert(name, Some(std::fs::read(&path).unwrap()));
            }
        }
    }
    found
}

/// Writes a tree into an empty directory.
pub fn plant(tree: &Tree, root: &Path) {
    for (name, content) in tree {
        match content {
            None => std::fs::create_dir_all(root.join(name)).unwrap(),
            Some(bytes) => std::fs::write(root.join(name), bytes).unwrap(),
        }
    }
}

impl Recording {
    /// Parses strace's log of a run that used files in `root` (a path without links), which
    /// contained `before`.
    ///
    /// # Panics
    /// If a call changes a file in a way that the model does not support.
    pub fn read(log: &Path, root: &Path, before: &Tree) -> Self {
        let mut reader = Reader {
            root: root.to_owned(),
            recording: Self { initial: Vec::new(), names: BTreeMap::new(), changes: Vec::new() },
            contents: Vec::new(),
            names: BTreeMap::new(),
            open: BTreeMap::new(),
        };
        for (name, content) in before {
            let inode = content.as_ref().map(|bytes| reader.inode(bytes.clone()));
            reader.recording.names.insert(name.clone(), inode);
        }
        reader.recording.initial = reader.contents.clone();
        reader.names = reader.recording.names.clone();
        // Calls of several threads overlap: a call takes effect when it returns.
        let mut unfinished: BTreeMap<String, String> = BTreeMap::new();
        for line in std::fs::read_to_string(log).unwrap().lines() {
            let (thread, rest) = line.split_once(' ').unwrap();
            let rest = rest.trim_start();
            if let Some(start) = rest.strip_suffix(" <unfinished ...>") {
                unfinished.insert(thread.to_owned(), start.to_owned());
            } else if let Some(end) = rest.strip_prefix("<... ") {
                let end = end.split_once(" resumed>").unwrap().1;
                let start = unfinished.remove(thread).unwrap();
                reader.call(&format!("{start}{end}"));
            } else if !rest.starts_with("+++") && !rest.starts_with("---") {
                reader.call(rest);
            }
        }
        reader.recording
    }

    /// Returns the number of changes; the power can fail before, between and after them.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Returns whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Returns the files that exist if the power fails after `count` changes.
    pub fn after(&self, count: usize, disk: Disk) -> Tree {
        let changes = &self.changes[..count];
        let mut contents = self.initial.clone();
        let mut names = self.names.clone();
        let seed = match disk {
            Disk::Random(seed) => seed,
            Disk::Lazy | Disk::Eager => 0,
        };
        let mut random = Rng::with_seed(seed);
        // The odds that an unsynced change is kept differ between power losses.
        let odds = 1 + random.usize(..8);
        let mut keeps = |synced: bool| match disk {
            Disk::Lazy => synced,
            Disk::Eager => true,
            Disk::Random(_) => synced || random.usize(..9) < odds,
        };
        let mut torn = Rng::with_seed(!seed);
        for (at, change) in changes.iter().enumerate() {
            let later = &changes[at + 1..];
            match change {
                Change::Write(inode, start, bytes) => {
                    let synced = later
                        .iter()
                        .any(|c| matches!(c, Change::SyncFile(other) if other == inode));
                    if keeps(synced) {
                        let tears =
                            !synced && matches!(disk, Disk::Random(_)) && torn.usize(..3) == 0;
                        let length = if tears { torn.usize(..=bytes.len()) } else { bytes.len() };
                        put(&mut contents, *inode, *start, &bytes[..length]);
                    }
                }
                Change::Resize(inode, length) => {
                    if keeps(
                        later
                            .iter()
                            .any(|c| matches!(c, Change::SyncFile(other) if other == inode)),
                    ) {
                        content(&mut contents, *inode).resize(*length as usize, 0);
                    }
                }
                Change::Name { from, to, inode } => {
                    // A new name is durable once its new directory is synced; the removal of the
                    // old name goes with it.
                    let folder =
                        to.as_ref().or(from.as_ref()).and_then(|path| path.parent()).unwrap();
                    if keeps(
                        later
                            .iter()
                            .any(|c| matches!(c, Change::SyncFolder(other) if other == folder)),
                    ) {
                        if let Some(from) = from
                            && names.get(from) == Some(inode)
                        {
                            names.remove(from);
                        }
                        if let Some(to) = to {
                            names.insert(to.clone(), *inode);
                        }
                    }
                }
                Change::SyncFile(_) | Change::SyncFolder(_) => {}
            }
        }
        let mut found = Tree::new();
        for (path, inode) in &names {
            // A file whose directory was lost is unreachable.
            let reached = path
                .ancestors()
                .skip(1)
                .all(|folder| folder == Path::new("") || names.get(folder) == Some(&None));
            if reached {
                found
                    .insert(path.clone(), inode.map(|inode| content(&mut contents, inode).clone()));
            }
        }
        found
    }
}

fn content(contents: &mut Vec<Vec<u8>>, inode: Inode) -> &mut Vec<u8> {
    if contents.len() <= inode {
        contents.resize(inode + 1, Vec::new());
    }
    &mut contents[inode]
}

fn put(contents: &mut Vec<Vec<u8>>, inode: Inode, start: u64, bytes: &[u8]) {
    let (file, start) = (content(contents, inode), start as usize);
    if file.len() < start + bytes.len() {
        file.resize(start + bytes.len(), 0);
    }
    file[start..start + bytes.len()].copy_from_slice(bytes);
}

/// The meaning of a descriptor.
#[derive(Clone)]
enum Open {
    Folder(PathBuf),
    File { inode: Inode, at: u64, appends: bool },
}

/// Converts calls into changes; tracks the files as the program sees them.
struct Reader {
    root: PathBuf,
    recording: Recording,
    contents: Vec<Vec<u8>>,
    names: BTreeMap<PathBuf, Option<Inode>>,
    open: BTreeMap<i64, Open>,
}

impl Reader {
    fn inode(&mut self, content: Vec<u8>) -> Inode {
        self.contents.push(content);
        self.contents.len() - 1
    }

    fn change(&mut self, change: Change) {
        match &change {
            Change::Write(inode, start, bytes) => put(&mut self.contents, *inode, *start, bytes),
            Change::Resize(inode, length) => self.contents[*inode].resize(*length as usize, 0),
            Change::Name { from, to, inode } => {
                if let Some(from) = from {
                    self.names.remove(from);
                }
                if let Some(to) = to {
                    self.names.insert(to.clone(), *inode);
                }
            }
            Change::SyncFile(_) | Change::SyncFolder(_) => {}
        }
        self.recording.changes.push(change);
    }

    /// Returns a path relative to the watched directory, if it is inside.
    fn path(&self, folder: Option<&str>, path: &str) -> Option<PathBuf> {
        let path = PathBuf::from(String::from_utf8(unescape(path)).unwrap());
        let path = match folder {
            // Either `AT_FDCWD</here>` or `5</there>`.
            Some(folder) => Path::new(&decorated(folder)?).join(path),
            None => path,
        };
        path.strip_prefix(&self.root).ok().map(Path::to_owned)
    }

    fn call(&mut self, line: &str) {
        let (call, result) =
            line.rsplit_once(" = ").unwrap_or_else(|| panic!("cannot parse: {line}"));
        let result = result.trim();
        // The result may be an address, or `?` if the program exited during the call.
        let result =
            result.split(['<', ' ']).next().map_or(-1, |number| match number.strip_prefix("0x") {
                Some(_) => 0,
                None => number.parse::<i64>().unwrap_or(-1),
            });
        if result < 0 {
            return;
        }
        let (name, arguments) = call.split_once('(').unwrap();
        let arguments = arguments.trim_end().strip_suffix(')').unwrap();
        let arguments = split(arguments);
        let argument = |index: usize| arguments[index].as_str();
        let descriptor =
            |index: usize| arguments[index].split('<').next().unwrap().parse::<i64>().unwrap_or(-1);
        match name {
            "open" => self.opened(self.path(None, argument(0)), argument(1), result),
            "openat" => self.opened(self.path(Some(argument(0)), argument(1)), argument(2), result),
            "creat" => self.opened(self.path(None, argument(0)), "O_CREAT|O_TRUNC", result),
            "close" => drop(self.open.remove(&descriptor(0))),
            "close_range" => {
                self.open.retain(|number, _| *number < descriptor(0) || *number > descriptor(1))
            }
            "dup" | "dup2" | "dup3" => self.duplicate(descriptor(0), result),
            "fcntl" if argument(1).starts_with("F_DUPFD") => self.duplicate(descriptor(0), result),
            "fcntl" => {}
            "lseek" => {
                if let Some(Open::File { at, .. }) = self.open.get_mut(&descriptor(0)) {
                    *at = result as u64;
                }
            }
            "write" | "writev" => {
                if let Some(Open::File { inode, at, appends }) =
                    self.open.get(&descriptor(0)).cloned()
                {
                    let bytes = data(argument(1), result);
                    let start = if appends { self.contents[inode].len() as u64 } else { at };
                    self.change(Change::Write(inode, start, bytes));
                    self.open.insert(
                        descriptor(0),
                        Open::File { inode, at: start + result as u64, appends },
                    );
                }
            }
            "pwrite64" => {
                if let Some(Open::File { inode, .. }) = self.open.get(&descriptor(0)).cloned() {
                    self.change(Change::Write(
                        inode,
                        argument(3).parse().unwrap(),
                        data(argument(1), result),
                    ));
                }
            }
            "ftruncate" => {
                if let Some(Open::File { inode, .. }) = self.open.get(&descriptor(0)).cloned() {
                    self.change(Change::Resize(inode, argument(1).parse().unwrap()));
                }
            }
            "fsync" | "fdatasync" => match self.open.get(&descriptor(0)).cloned() {
                Some(Open::File { inode, .. }) => self.change(Change::SyncFile(inode)),
                Some(Open::Folder(path)) => self.change(Change::SyncFolder(path)),
                None => {}
            },
            "rename" => self.renamed(self.path(None, argument(0)), self.path(None, argument(1))),
            "renameat" | "renameat2" => {
                self.renamed(
                    self.path(Some(argument(0)), argument(1)),
                    self.path(Some(argument(2)), argument(3)),
                );
            }
            "link" => self.linked(self.path(None, argument(0)), self.path(None, argument(1))),
            "linkat" => {
                self.linked(
                    self.path(Some(argument(0)), argument(1)),
                    self.path(Some(argument(2)), argument(3)),
                );
            }
            "unlink" | "rmdir" => self.removed(self.path(None, argument(0))),
            "unlinkat" => self.removed(self.path(Some(argument(0)), argument(1))),
            "mkdir" => self.made(self.path(None, argument(0))),
            "mkdirat" => self.made(self.path(Some(argument(0)), argument(1))),
            "mmap" => {
                let writes =
                    argument(2).contains("PROT_WRITE") && argument(3).contains("MAP_SHARED");
                assert!(
                    !writes || !self.open.contains_key(&descriptor(4)),
                    "a file is written through a memory map: {line}"
                );
            }
            _ => {
                let inside = |text: &String| {
                    decorated(text).is_some_and(|path| Path::new(&path).starts_with(&self.root))
                };
                assert!(!arguments.iter().any(inside), "the model does not support {line}");
            }
        }
    }

    fn opened(&mut self, path: Option<PathBuf>, flags: &str, number: i64) {
        self.open.remove(&number);
        let Some(path) = path else { return };
        let flags: BTreeSet<&str> = flags.split('|').collect();
        if flags.contains("O_TMPFILE") {
            let inode = self.inode(Vec::new());
            self.open.insert(number, Open::File { inode, at: 0, appends: false });
            return;
        }
        let root = path.as_os_str().is_empty();
        let open = match self.names.get(&path).copied() {
            _ if root => Open::Folder(path),
            Some(None) => Open::Folder(path),
            Some(Some(inode)) => {
                if flags.contains("O_TRUNC") {
                    self.change(Change::Resize(inode, 0));
                }
                Open::File { inode, at: 0, appends: flags.contains("O_APPEND") }
            }
            None => {
                assert!(flags.contains("O_CREAT"), "{} was never created", path.display());
                let inode = self.inode(Vec::new());
                self.change(Change::Name { from: None, to: Some(path), inode: Some(inode) });
                Open::File { inode, at: 0, appends: flags.contains("O_APPEND") }
            }
        };
        self.open.insert(number, open);
    }

    fn duplicate(&mut self, from: i64, to: i64) {
        // A file offset shared by both descriptors is not modeled; nothing here relies on it.
        match self.open.get(&from).cloned() {
            Some(open) => self.open.insert(to, open),
            None => self.open.remove(&to),
        };
    }

    fn renamed(&mut self, from: Option<PathBuf>, to: Option<PathBuf>) {
        match (from, to) {
            (Some(from), Some(to)) => {
                let inode = self.names[&from];
                assert!(
                    inode.is_some(),
                    "the model does not rename directories: {}",
                    from.display()
                );
                self.change(Change::Name { from: Some(from), to: Some(to), inode });
            }
            (None, None) => {}
            (from, to) => panic!("a rename that leaves the watched directory: {from:?} to {to:?}"),
        }
    }

    fn linked(&mut self, from: Option<PathBuf>, to: Option<PathBuf>) {
        if let Some(to) = to {
            let inode = self.names[&from.expect("a link within the watched directory")];
            self.change(Change::Name { from: None, to: Some(to), inode });
        }
    }

    fn removed(&mut self, path: Option<PathBuf>) {
        if let Some(path) = path {
            let inode = self.names[&path];
            self.change(Change::Name { from: Some(path), to: None, inode });
        }
    }

    fn made(&mut self, path: Option<PathBuf>) {
        if let Some(path) = path {
            self.change(Change::Name { from: None, to: Some(path), inode: None });
        }
    }
}

/// Splits arguments at commas outside brackets; strings are hexadecimal and contain no commas.
fn split(text: &str) -> Vec<String> {
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for letter in text.chars() {
        match letter {
            '[' | '{' => depth += 1,
            ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().unwrap().push(letter);
    }
    parts.iter().map(|part| part.trim().to_owned()).collect()
}

/// Decodes `"\x41\x42"`, with or without quotes.
fn unescape(text: &str) -> Vec<u8> {
    text.trim_matches('"')
        .split("\\x")
        .skip(1)
        .map(|hex| u8::from_str_radix(hex, 16).unwrap())
        .collect()
}

/// Returns the path of a descriptor such as `5<\x2f\x74>`.
fn decorated(text: &str) -> Option<String> {
    let (_, path) = text.split_once('<')?;
    String::from_utf8(unescape(path.split('>').next()?)).ok()
}

/// Returns the bytes of a write from one or several buffers, as many as were written.
fn data(text: &str, count: i64) -> Vec<u8> {
    let mut bytes: Vec<u8> = text.split('"').skip(1).step_by(2).flat_map(unescape).collect();
    assert!(bytes.len() >= count as usize, "strace truncated the written bytes");
    bytes.truncate(count as usize);
    bytes
}
