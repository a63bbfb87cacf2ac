//! The parts of a data set together: whether they are all there and belong together, and their
//! pictures in order.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ffi::OsStr;
use std::io::BufWriter;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rayon::prelude::*;
use vgg_edge::{Backbone, Error, Fingerprint};
use vgg_edge_cli::terminal::{Interrupted, interrupted, note};

use super::file::{FileError, Run, Writer};
use super::{Entry, ListBuilder, Manifest, Outcome, Part, Shard, ranges};
use crate::PROGRAM;
use crate::dataset::{Item, Pool};
use crate::features::cache::ARITHMETIC;
use crate::features::extraction::Features;
use crate::features::table::{Stretch, Table};

/// Memory for pieces of all parts together, in bytes.
const PIECES: usize = 64 << 20;
/// Pictures between two looks at whether Ctrl-C came.
const BREATH: u64 = 1 << 10;

/// Why parts are no data set.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A folder, or what is written.
    #[error(transparent)]
    Io(#[from] Error),
    /// Ctrl-C.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// No file is named as parts are.
    #[error(
        "{0}: no parts (part-....features); make them with host extract DATA --shard I/N -o {0}"
    )]
    Empty(PathBuf),
    /// Parts of different numbers of parts.
    #[error("{path}: parts of different runs: {counts}; remove those of all but one")]
    Counts {
        /// The folder.
        path: PathBuf,
        /// What is there of each.
        counts: String,
    },
    /// Parts are missing or damaged.
    #[error(
        "{path}: {problems}; make them with host extract DATA --shard I/{count} -o {path} (on Slurm: --array={array})"
    )]
    Incomplete {
        /// The folder.
        path: PathBuf,
        /// Which ones.
        problems: String,
        /// How many there must be.
        count: u32,
        /// Those to be made, as a scheduler takes them.
        array: String,
    },
    /// Parts of different runs.
    #[error(
        "{path}: parts do not belong together: {differences}; remove those that are not wanted, and make them again"
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Which ones, and in what they differ.
        differences: String,
    },
    /// Features that are no use for what is wanted.
    #[error("{path}: {differences}; extract them again, or name their base with --base")]
    Unfit {
        /// The file or folder.
        path: PathBuf,
        /// In what they differ.
        differences: String,
    },
    /// One part of several, alone.
    #[error("{path}: part {index} of {count}; name the folder of all parts, or merge them")]
    Alone {
        /// The file.
        path: PathBuf,
        /// Which part.
        index: u32,
        /// Of how many.
        count: u32,
    },
    /// The pictures of the parts are not those of the list: a defect, or a file that somebody made.
    #[error("{path}: {what}")]
    Pictures {
        /// The part.
        path: PathBuf,
        /// What is wrong with its pictures.
        what: String,
    },
}

/// What [`Set::merge`] wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// How many parts there were.
    pub parts: usize,
    /// Pictures in the list.
    pub pictures: u64,
    /// Those that have features.
    pub rows: u64,
}

/// All parts of a data set.
pub struct Set {
    path: PathBuf,
    /// By number.
    parts: Vec<Part>,
}

/// The parts in a folder, by their number of parts, as far as names tell.
pub(super) fn find(folder: &Path) -> vgg_edge::Result<BTreeMap<u32, Vec<u32>>> {
    let list = || Error::io("list", folder);
    let mut found: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(list())? {
        let name = entry.map_err(list())?.file_name();
        if let Some(Shard { index, count }) = name.to_str().and_then(Shard::from_file_name) {
            found.entry(count).or_default().push(index);
        }
    }
    found.values_mut().for_each(|indices| indices.sort_unstable());
    Ok(found)
}

/// Takes a picture: the index of its part, its entry, and its record.
type Each<'a> = dyn FnMut(usize, Entry, &[u8]) -> Result<(), SetError> + 'a;

impl Set {
    /// Opens a file of `host merge`, or the parts in a folder, and reads their manifests.
    ///
    /// # Errors
    /// [`SetError`], which names every part that is missing, damaged as far as lengths show, or of
    /// another run.
    pub fn open(path: &Path) -> Result<Self, SetError> {
        if !path.is_dir() {
            let part = Part::open(path)?;
            let Shard { index, count } = part.manifest.shard;
            return match count {
                1 => Ok(Self { path: path.to_owned(), parts: vec![part] }),
                _ => Err(SetError::Alone { path: path.to_owned(), index, count }),
            };
        }
        let found = find(path)?;
        let count = match found.keys().copied().collect::<Vec<_>>()[..] {
            [] => return Err(SetError::Empty(path.to_owned())),
            [count] => count,
            _ => {
                let words = |(count, indices): (&u32, &Vec<u32>)| {
                    format!("{} of {count} ({})", indices.len(), ranges(indices, ", "))
                };
                let counts = found.iter().map(words).collect::<Vec<_>>().join("; ");
                return Err(SetError::Counts { path: path.to_owned(), counts });
            }
        };
        let (mut parts, mut missing, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..count {
            let shard = Shard { index, count };
            // Asked for by name, whatever the listing said: over a network a name may be newer than
            // the listing.
            match Part::open(&path.join(shard.file_name())) {
                Ok(part) if part.manifest.shard == shard => parts.push(part),
                Ok(part) => {
                    let Shard { index, count } = part.manifest.shard;
                    let what =
                        format!("its name is not that of what it is, part {index} of {count}");
                    return Err(SetError::Pictures { path: part.path, what });
                }
                Err(FileError::Io(Error::Io { source, .. }))
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    missing.push(index);
                }
                Err(FileError::Damaged { what, .. }) => damaged.push((index, what)),
                Err(FileError::Magic(_)) => {
                    damaged.push((index, "it is no file of features".into()))
                }
                Err(e) => return Err(e.into()),
            }
        }
        let set = Self { path: path.to_owned(), parts };
        if !missing.is_empty() || !damaged.is_empty() {
            return Err(set.incomplete(count, &missing, &damaged));
        }
        set.check_together()?;
        Ok(set)
    }

    fn incomplete(&self, count: u32, missing: &[u32], damaged: &[(u32, String)]) -> SetError {
        let mut problems = Vec::new();
        if !missing.is_empty() {
            problems.push(format!(
                "of {count} parts {} missing: {}",
                missing.len(),
                ranges(missing, ", ")
            ));
        }
        problems.extend(
            damaged.iter().map(|(index, what)| format!("part {index} is damaged ({what})")),
        );
        let mut array: Vec<u32> =
            missing.iter().copied().chain(damaged.iter().map(|&(index, _)| index)).collect();
        array.sort_unstable();
        SetError::Incomplete {
            path: self.path.clone(),
            problems: problems.join("; "),
            count,
            array: ranges(&array, ","),
        }
    }

    /// Whether all parts are of the same run. The others are held against the run that most of them
    /// are of.
    fn check_together(&self) -> Result<(), SetError> {
        let mut runs: Vec<(&Run, Vec<u32>)> = Vec::new();
        for part in &self.parts {
            let Manifest { run, shard, .. } = &part.manifest;
            match runs.iter_mut().find(|(known, _)| *known == run) {
                Some((_, indices)) => indices.push(shard.index),
                None => runs.push((run, vec![shard.index])),
            }
        }
        // The first of those that have most parts.
        runs.sort_by_key(|(_, indices)| Reverse(indices.len()));
        let [(most, _), others @ ..] = &runs[..] else { return Ok(()) };
        let words = others.iter().filter_map(|(run, indices)| {
            let [part, is] = if indices.len() == 1 { ["part", "is"] } else { ["parts", "are"] };
            Some(format!("{part} {} {is} {}", ranges(indices, ", "), run.difference(most)?))
        });
        let differences: Vec<String> = words.collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(SetError::Foreign { path: self.path.clone(), differences: differences.join("; ") })
    }

    /// What all parts have in common.
    pub fn run(&self) -> &Run {
        &self.parts[0].manifest.run
    }

    /// Whether a head may be trained on them with this base and this program.
    ///
    /// # Errors
    /// [`SetError::Unfit`].
    pub fn check_base(&self, base: &Backbone) -> Result<(), SetError> {
        let run = self.run();
        let differences = if run.arithmetic != ARITHMETIC {
            format!(
                "features of {} (arithmetic {}), not of arithmetic {ARITHMETIC}",
                run.program, run.arithmetic
            )
        } else if run.base != base.fingerprint() || run.preprocess.base != *base.contract() {
            format!(
                "features of base {}, but {} is base {}",
                run.base,
                base.path().display(),
                base.fingerprint()
            )
        } else if run.scales != base.feature_scales() {
            "features with other scales than those of their base".into()
        } else {
            return Ok(());
        };
        Err(SetError::Unfit { path: self.path.clone(), differences })
    }

    fn sum(&self, of: impl Fn(&Manifest) -> u64) -> u64 {
        self.parts.iter().map(|part| of(&part.manifest)).fold(0, u64::saturating_add)
    }

    /// Bytes that are read of a part at once.
    fn piece(&self) -> usize {
        (PIECES / self.parts.len()).clamp(16 << 10, 1 << 20)
    }

    /// Gives `each` the pictures in the order of the list, with the index of their part and their
    /// record. That they are the pictures of the list, each once, each in its part, is known only
    /// at the end.
    fn entries(&self, each: &mut Each) -> Result<(), SetError> {
        let run = self.run();
        let mut indices: Vec<_> = self.parts.iter().map(|part| part.index(self.piece())).collect();
        let mut rows = vec![0; self.parts.len()];
        let mut list = ListBuilder::default();
        // The next picture of each part; the one with the lowest place in the list comes first.
        let mut next = Vec::new();
        let mut order = BinaryHeap::new();
        for (part, index) in indices.iter_mut().enumerate() {
            let entry = index.next_entry()?;
            order.extend(entry.iter().map(|(entry, _)| Reverse((entry.item, part))));
            next.push(entry);
        }
        while let Some(Reverse((item, part))) = order.pop() {
            let Part { path, manifest, .. } = &self.parts[part];
            let Some((entry, record)) =
                std::mem::replace(&mut next[part], indices[part].next_entry()?)
            else {
                break;
            };
            order.extend(next[part].iter().map(|(entry, _)| Reverse((entry.item, part))));
            let name = || String::from_utf8_lossy(&entry.name);
            let wrong = |what: String| Err(SetError::Pictures { path: path.clone(), what });
            if item != list.pictures {
                return wrong(format!(
                    "{} is picture {item}, where picture {} comes next",
                    name(),
                    list.pictures
                ));
            }
            if Shard::of(&entry.name, manifest.shard.count) != manifest.shard.index {
                return wrong(format!("{} belongs to another part", name()));
            }
            if entry.class as usize >= run.data.classes.len() {
                return wrong(format!(
                    "{} is of class {}, which is not there",
                    name(),
                    entry.class
                ));
            }
            if !Path::new(OsStr::from_bytes(&entry.name))
                .components()
                .all(|part| matches!(part, Component::Normal(_)))
            {
                return wrong(format!("{} is no path within the data folder", name()));
            }
            list.add(entry.class as usize, &entry.name);
            rows[part] += u64::from(matches!(entry.outcome, Outcome::Row(_)));
            if list.pictures.is_multiple_of(BREATH) && interrupted() {
                return Err(Interrupted.into());
            }
            each(part, entry, &record)?;
        }
        if let Some(part) =
            self.parts.iter().zip(&rows).find(|(part, rows)| part.manifest.rows != **rows)
        {
            let what = format!("{} rows announced, {} there", part.0.manifest.rows, part.1);
            return Err(SetError::Pictures { path: part.0.path.clone(), what });
        }
        if list.finish(run.data.classes.clone(), run.data.train) != run.data {
            let what = "its pictures are not those of the list that it names".into();
            return Err(SetError::Pictures { path: self.path.clone(), what });
        }
        Ok(())
    }

    /// If a part is damaged, or its pictures are not what they should be, looks which parts have
    /// other bytes than were written.
    fn all_damaged(&self, error: SetError) -> SetError {
        let is_content =
            matches!(error, SetError::File(FileError::Damaged { .. }) | SetError::Pictures { .. });
        if !is_content || !self.path.is_dir() {
            return error;
        }
        let check = |part: &Part| -> Result<(), FileError> {
            let mut index = part.index(self.piece());
            while index.next_entry()?.is_some() && !interrupted() {}
            part.verify_rows(self.piece(), interrupted)
        };
        let damaged: Vec<(u32, String)> = self
            .parts
            .par_iter()
            .filter_map(|part| match check(part) {
                Err(FileError::Damaged { what, .. }) => Some((part.manifest.shard.index, what)),
                _ => None,
            })
            .collect();
        if damaged.is_empty() {
            return error;
        }
        self.incomplete(self.parts.len() as u32, &[], &damaged)
    }

    /// Writes all parts into one file: the part that `--shard 0/1` would make, byte for byte.
    /// Pictures that could not be read are told on stderr.
    ///
    /// # Errors
    /// [`SetError`]; then `output` is left as it was.
    pub fn merge(&self, output: &Path) -> Result<Merged, SetError> {
        let manifest = Manifest {
            run: self.run().clone(),
            shard: Shard::WHOLE,
            entries: self.sum(|part| part.entries),
            index_len: self.sum(|part| part.index_len),
            rows: self.sum(|part| part.rows),
        };
        let write = |file: &mut BufWriter<&std::fs::File>| -> Result<(), SetError> {
            let mut writer = Writer::new(file, output, &manifest)?;
            // The part of each row.
            let mut order: Vec<u16> = Vec::new();
            self.entries(&mut |part, entry, record| {
                match entry.outcome {
                    Outcome::Row(_) => order.push(part as u16),
                    Outcome::Unreadable(reason) => {
                        let name = String::from_utf8_lossy(&entry.name);
                        let part = self.parts[part].manifest.shard.index;
                        note(PROGRAM, format_args!("left out: {name}: {reason} (part {part})"));
                    }
                }
                Ok(writer.bytes(record)?)
            })?;
            writer.seal()?;
            let mut rows: Vec<_> = self.parts.iter().map(|part| part.rows(self.piece())).collect();
            let dim = self.parts[0].dim();
            for (row, &part) in order.iter().enumerate() {
                if (row as u64).is_multiple_of(BREATH) && interrupted() {
                    return Err(Interrupted.into());
                }
                writer.bytes(rows[usize::from(part)].take(dim)?)?;
            }
            for rows in &mut rows {
                rows.finish()?;
            }
            Ok(writer.seal()?)
        };
        vgg_edge::durable_fs::write_atomic(output, write).map_err(|e| self.all_damaged(e))?;
        Ok(Merged { parts: self.parts.len(), pictures: manifest.entries, rows: manifest.rows })
    }

    /// The pictures and their features, which are read from the files from now on. Checksums are
    /// looked at now, once.
    ///
    /// `root` is the data folder that names of pictures are joined to; without `names`, pictures
    /// have none, which saves memory.
    ///
    /// # Errors
    /// [`SetError`].
    pub fn features(&self, root: &Path, names: bool) -> Result<(Pool, Features), SetError> {
        self.load(root, names).map_err(|e| self.all_damaged(e))
    }

    fn load(&self, root: &Path, names: bool) -> Result<(Pool, Features), SetError> {
        let data = &self.run().data;
        let mut pool = Pool {
            classes: data.classes.clone(),
            items: Vec::new(),
            train: data.train.map(|train| train as usize),
        };
        let (mut rows, mut hashes, mut skipped): (_, Vec<Fingerprint>, _) =
            (Vec::new(), Vec::new(), Vec::new());
        // The part of each row, and which one of it.
        let mut places: Vec<[u32; 2]> = Vec::new();
        let mut counts = vec![0; self.parts.len()];
        self.entries(&mut |part, entry, _| {
            let name = Path::new(OsStr::from_bytes(&entry.name));
            match entry.outcome {
                Outcome::Row(hash) => {
                    rows.push(pool.items.len());
                    hashes.push(hash);
                    places.push([part as u32, counts[part]]);
                    counts[part] += 1;
                }
                Outcome::Unreadable(reason) => skipped.push((root.join(name), reason)),
            }
            let path = if names { root.join(name) } else { PathBuf::new() };
            pool.items.push(Item { path, class: entry.class as usize });
            Ok(())
        })?;
        self.parts.par_iter().try_for_each(|part| part.verify_rows(self.piece(), interrupted))?;
        if interrupted() {
            return Err(Interrupted.into());
        }
        let stretches = self.parts.iter().map(|part| (part.path.clone(), part.rows_at())).collect();
        let dim = self.parts[0].dim();
        skipped.sort();
        let features = Features {
            table: Table::in_stretches(dim, Stretch::open_all(stretches)?, places),
            dim,
            scales: self.run().scales.clone(),
            items: rows,
            hashes,
            skipped,
            cached: 0,
        };
        Ok((pool, features))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use proptest::prelude::*;
    use vgg_edge::image::resize::Filter;
    use vgg_edge::preprocess::{ChannelOrder, Fit, InputSpec, Preprocess};

    use super::*;

    const CHANNELS: u32 = 4;

    /// Pictures in the order of their list: class, path, and a row if they can be read.
    type Pictures = Vec<(u32, String, Option<[u8; CHANNELS as usize]>)>;

    fn run(pictures: &Pictures) -> Run {
        let base = InputSpec {
            channel_order: ChannelOrder::Bgr,
            mean: [0.0; 3],
            std: [1.0; 3],
            scale: 1.0,
            zero_point: 0,
            resize: Filter::Bilinear,
            channels: CHANNELS,
            stride: 32,
            size_multiple: 32,
            size_min: 32,
            size_max: 64,
        };
        let mut list = ListBuilder::default();
        pictures.iter().for_each(|(class, name, _)| list.add(*class as usize, name.as_bytes()));
        Run {
            program: "host 0".into(),
            arithmetic: ARITHMETIC,
            base: Fingerprint::of(b"base"),
            preprocess: Preprocess::new(base, 32, Fit::Stretch, Filter::Bilinear).unwrap(),
            scales: vec![1.0; CHANNELS as usize],
            data: list.finish(vec!["a".into(), "b".into()], Some(1)),
        }
    }

    /// Writes those pictures that `of` says are in the part, in the plainest way.
    fn write(path: &Path, run: &Run, pictures: &Pictures, shard: Shard, of: impl Fn(&str) -> bool) {
        let (mut index, mut rows, mut entries) = (Vec::new(), Vec::new(), 0);
        for (item, (class, name, row)) in
            pictures.iter().enumerate().filter(|(_, (_, name, _))| of(name))
        {
            let outcome = match row {
                Some(row) => Outcome::Row(Fingerprint::of(row)),
                None => Outcome::Unreadable("no picture".into()),
            };
            Entry { item: item as u64, class: *class, name: name.as_bytes().to_vec(), outcome }
                .append(&mut index)
                .unwrap();
            rows.extend(row.iter().flatten());
            entries += 1;
        }
        let (index_len, count) = (index.len() as u64, rows.len() as u64 / u64::from(CHANNELS));
        let manifest = Manifest { run: run.clone(), shard, entries, index_len, rows: count };
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, path, &manifest).unwrap();
        for bytes in [index, rows] {
            writer.bytes(&bytes).unwrap();
            writer.seal().unwrap();
        }
        fs::write(path, file).unwrap();
    }

    fn write_all(folder: &Path, run: &Run, pictures: &Pictures, count: u32) {
        for index in 0..count {
            let shard = Shard { index, count };
            write(&folder.join(shard.file_name()), run, pictures, shard, |name| {
                Shard::of(name.as_bytes(), count) == index
            });
        }
    }

    fn merged(folder: &Path) -> Result<Vec<u8>, SetError> {
        let output = folder.join("merged");
        Set::open(folder)?.merge(&output)?;
        Ok(fs::read(output).unwrap())
    }

    fn some(count: u32) -> Pictures {
        (0..count)
            .map(|n| (n % 2, format!("{n}.png"), (n % 5 > 0).then_some([n as u8; 4])))
            .collect()
    }

    fn pictures() -> impl Strategy<Value = Pictures> {
        prop::collection::btree_map(
            "[a-c]{1,2}(/[a-c]{1,2})?",
            (0u32..2, prop::option::of(any::<[u8; 4]>())),
            0..40,
        )
        .prop_map(|map| map.into_iter().map(|(name, (class, row))| (class, name, row)).collect())
    }

    proptest! {
        #[test]
        fn parts_are_the_whole(pictures in pictures(), count in 1u32..50) {
            let folder = tempfile::tempdir().unwrap();
            let run = run(&pictures);
            write_all(folder.path(), &run, &pictures, count);
            let whole = folder.path().join("whole");
            write(&whole, &run, &pictures, Shard::WHOLE, |_| true);
            prop_assert_eq!(merged(folder.path()).unwrap(), fs::read(&whole).unwrap());
            // Read as parts and as a whole, they are what was put in.
            for path in [folder.path(), &whole] {
                let (pool, features) = Set::open(path).unwrap().features(Path::new("data"), true).unwrap();
                let expected: Vec<Item> = pictures.iter().map(|(class, name, _)| Item { path: Path::new("data").join(name), class: *class as usize }).collect();
                prop_assert_eq!((&pool.classes, &pool.items, pool.train), (&run.data.classes, &expected, Some(1)));
                let readable: Vec<usize> = (0..pictures.len()).filter(|&item| pictures[item].2.is_some()).collect();
                prop_assert_eq!(&features.items, &readable);
                prop_assert_eq!(features.skipped.len(), pictures.len() - readable.len());
                for (row, &item) in readable.iter().enumerate() {
                    let wanted = pictures[item].2.unwrap();
                    prop_assert_eq!(&*features.row(row).unwrap(), &wanted);
                    prop_assert_eq!(features.hashes[row], Fingerprint::of(&wanted));
                }
            }
        }

        #[test]
        fn no_changed_byte_goes_unseen(part in 0u32..4, at: prop::sample::Index, change in 1u8.., cut: bool) {
            let folder = tempfile::tempdir().unwrap();
            let pictures = some(24);
            write_all(folder.path(), &run(&pictures), &pictures, 4);
            let path = folder.path().join(Shard { index: part, count: 4 }.file_name());
            let mut bytes = fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= change }
            fs::write(&path, bytes).unwrap();
            let error = merged(folder.path()).unwrap_err().to_string();
            // Named as damaged; if the manifest was hit, perhaps as one of another run, or of
            // another name.
            let name = format!("part-0000{part}-of");
            prop_assert!(error.contains(&format!("part {part} ")) || error.contains(&name) || (error.contains("parts do not belong") || error.contains(&format!("missing: {part}"))), "{}", error);
            prop_assert!(!folder.path().join("merged").exists());
            prop_assert!(Set::open(folder.path()).and_then(|set| set.features(Path::new(""), false)).is_err());
        }
    }

    #[test]
    fn what_is_missing_or_damaged_is_named_all_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let pictures = some(60);
        write_all(folder.path(), &run(&pictures), &pictures, 12);
        let file = |index| folder.path().join(Shard { index, count: 12 }.file_name());
        // The last byte is of the checksum of the rows.
        let hurt = |index| {
            let mut bytes = fs::read(file(index)).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(file(index), bytes).unwrap();
        };
        [4, 9].into_iter().for_each(hurt);
        let error = merged(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("part 4 is damaged (its checksum does not match); part 9 is damaged"),
            "{error}"
        );
        assert!(error.contains("--array=4,9"), "{error}");
        let read = Set::open(folder.path())
            .unwrap()
            .features(Path::new(""), false)
            .err()
            .unwrap()
            .to_string();
        assert_eq!(read, error);
        for index in [0, 6, 7, 8] {
            fs::remove_file(file(index)).unwrap();
        }
        fs::write(file(3), b"VGGEROWS").unwrap();
        let error = merged(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("of 12 parts 4 missing: 0, 6-8; part 3 is damaged (it is truncated)"),
            "{error}"
        );
        assert!(error.contains("--array=0,3,6-8"), "{error}");
        assert!(!folder.path().join("merged").exists());
    }

    #[test]
    fn what_does_not_belong_together_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Set::open(folder.path()), Err(SetError::Empty(_))));
        let pictures = some(30);
        let ours = run(&pictures);
        let file = |index| folder.path().join(Shard { index, count: 4 }.file_name());
        let other = |run: &Run, index: u32| {
            let shard = Shard { index, count: 4 };
            write(&file(index), run, &pictures, shard, |name| {
                Shard::of(name.as_bytes(), 4) == index
            });
        };
        let fails = |change: &dyn Fn(&mut Run), words: &str| {
            write_all(folder.path(), &ours, &pictures, 4);
            let mut theirs = ours.clone();
            change(&mut theirs);
            [0, 2].into_iter().for_each(|index| other(&theirs, index));
            // With as many of each, the first run is held to be the right one.
            let error = merged(folder.path()).unwrap_err().to_string();
            assert!(
                error.contains(words)
                    && error.contains("parts 1, 3 ")
                    && error.contains("do not belong"),
                "{error}"
            );
            other(&ours, 2);
            let error = merged(folder.path()).unwrap_err().to_string();
            assert!(error.contains("part 0 "), "{error}");
        };
        fails(
            &|run| run.program = "host 1".into(),
            "made by host 0 (arithmetic 1), not by host 1 (arithmetic 1)",
        );
        fails(&|run| run.arithmetic = 7, "(arithmetic 7)");
        fails(&|run| run.base = Fingerprint::of(b"other"), "of base ");
        fails(&|run| run.preprocess.fit = Fit::Cover, "stretch, bilinear");
        fails(&|run| run.data.classes[1] = "c".into(), "of classes a, b, not of a, c");
        fails(&|run| run.data.list = Fingerprint::of(b"other"), "of 30 pictures (list ");

        write_all(folder.path(), &ours, &pictures, 4);
        write_all(folder.path(), &ours, &pictures, 2);
        let error = merged(folder.path()).unwrap_err().to_string();
        assert!(error.contains("parts of different runs: 2 of 2 (0, 1); 4 of 4 (0-3)"), "{error}");
        for index in 0..2 {
            fs::remove_file(folder.path().join(Shard { index, count: 2 }.file_name())).unwrap();
        }
        fs::copy(file(1), file(3)).unwrap();
        let error = merged(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains(
                "part-00003-of-00004.features: its name is not that of what it is, part 1 of 4"
            ),
            "{error}"
        );
        let alone = Set::open(&file(1)).err().unwrap().to_string();
        assert!(alone.contains("part 1 of 4; name the folder"), "{alone}");
    }

    #[test]
    fn pictures_that_are_in_no_part_or_in_two_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let pictures = some(30);
        let run = run(&pictures);
        let part = |index, of: &dyn Fn(&str) -> bool| {
            let shard = Shard { index, count: 2 };
            write(&folder.path().join(shard.file_name()), &run, &pictures, shard, of);
        };
        let first = |name: &str| Shard::of(name.as_bytes(), 2) == 0;
        part(1, &|name| !first(name));
        let lost = pictures.iter().map(|(_, name, _)| name).find(|name| first(name)).unwrap();
        part(0, &|name| first(name) && name != lost);
        let error = merged(folder.path()).unwrap_err().to_string();
        assert!(error.contains("comes next"), "{error}");
        part(0, &|_| true);
        assert!(merged(folder.path()).unwrap_err().to_string().contains("belongs to another part"));
        part(0, &first);
        part(1, &|_| true);
        let error = merged(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("comes next") || error.contains("belongs to another part"),
            "{error}"
        );
        part(1, &|name| !first(name));
        merged(folder.path()).unwrap();
    }

    /// The same bytes with lengths and checksums that hold, which lets damage through to what is
    /// behind them; `None` without a manifest.
    fn sealed(bytes: &[u8]) -> Option<Vec<u8>> {
        let (header, rest) = bytes.split_at_checked(20)?;
        let len = u64::from_le_bytes(*header.last_chunk()?);
        let (manifest, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        let mut manifest: Manifest = postcard::from_bytes(manifest).ok()?;
        let rows = usize::try_from(manifest.rows).ok()?.checked_mul(CHANNELS as usize)?;
        let index = rest.len().checked_sub(rows)?.checked_sub(64)?;
        manifest.index_len = index as u64;
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, Path::new("sealed"), &manifest).unwrap();
        for bytes in [&rest[..index], &rest[index + 32..][..rows]] {
            writer.bytes(bytes).unwrap();
            writer.seal().unwrap();
        }
        Some(file)
    }

    #[test]
    fn files_that_somebody_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("features");
        let good = [1, 7, 40].map(|count| {
            let pictures = some(count);
            write(&path, &run(&pictures), &pictures, Shard::WHOLE, |_| true);
            assert_eq!(sealed(&fs::read(&path).unwrap()), Some(fs::read(&path).unwrap()));
            (format!("{count} pictures").into(), fs::read(&path).unwrap())
        });
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let Ok((pool, features)) =
                Set::open(&path).and_then(|set| set.features(Path::new("data"), true))
            else {
                return false;
            };
            assert!(
                pool.items
                    .iter()
                    .all(|item| item.path.starts_with("data") && item.class < pool.classes.len())
            );
            assert_eq!(pool.items.len(), features.items.len() + features.skipped.len());
            (0..features.items.len())
                .for_each(|row| assert_eq!(features.row(row).unwrap().len(), features.dim));
            true
        };
        let (taken, seen) = (Cell::new(0), Cell::new(0));
        fuzz_targets::attack("features", &good, 1_000, |bytes| {
            let as_it_is = read(bytes);
            assert!(!as_it_is || good.iter().any(|(_, good)| good == bytes), "damage is not seen");
            if let Some(bytes) = sealed(bytes) {
                seen.set(seen.get() + 1);
                taken.set(taken.get() + u32::from(read(&bytes)));
            }
        });
        // Most reach what is behind the checksums, and some are as good as what `host extract`
        // could have made.
        assert!(seen.get() > 300 && taken.get() > 30, "{seen:?} {taken:?}");
    }

    #[test]
    fn names_that_lead_out_of_the_data_folder_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("features");
        for name in ["/etc/passwd", "../a.png", "a/../../b.png"] {
            let pictures = vec![(0, name.to_owned(), Some([1; 4]))];
            write(&path, &run(&pictures), &pictures, Shard::WHOLE, |_| true);
            let error = Set::open(&path)
                .unwrap()
                .features(Path::new("data"), true)
                .err()
                .unwrap()
                .to_string();
            assert!(error.contains("no path within the data folder"), "{error}");
        }
    }
}
