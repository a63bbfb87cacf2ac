//! A folder of pictures: one sub-folder a class, perhaps split into training and validation.

pub mod folds;

use std::collections::HashMap;
use std::hash::Hash;
use std::path::{Path, PathBuf};

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use vgg_edge::Fingerprint;
use vgg_edge::image::decode::has_image_extension;

/// Names of the folder to train on, within a data folder.
const TRAIN: &[&str] = &["train", "training"];
/// Names of the folder to validate on, the first that exists is taken.
const VAL: &[&str] = &["val", "valid", "validation", "test"];

/// A picture file and the index of its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The file.
    pub path: PathBuf,
    /// Index into the classes.
    pub class: usize,
}

/// The pictures of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// Names of the classes, sorted.
    pub classes: Vec<String>,
    /// The pictures, by class and then by path.
    pub items: Vec<Item>,
    /// Files whose names are not those of pictures; they are not looked into.
    pub ignored: usize,
}

/// What keeps a folder from being a data set.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// It cannot be listed.
    #[error("{path}: cannot list: {source}")]
    Io {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It has no sub-folders.
    #[error(
        "{0}: no class folders; put the pictures of each class into a sub-folder that bears its name"
    )]
    NoClasses(PathBuf),
    /// It has one sub-folder.
    #[error("{path}: only one class ({class}); a classifier needs at least two")]
    OneClass {
        /// The folder.
        path: PathBuf,
        /// Its only class.
        class: String,
    },
    /// A sub-folder has no pictures.
    #[error("{0}: no pictures ({list}); add some or remove the folder", list = vgg_edge::image::decode::EXTENSIONS.join(", "))]
    EmptyClass(PathBuf),
    /// A validation folder has a class that the training folder has not.
    #[error("{path}: class {class} does not occur in training ({known})")]
    UnknownClass {
        /// The validation folder.
        path: PathBuf,
        /// The class.
        class: String,
        /// The classes of the training folder.
        known: String,
    },
    /// A folder is named as the part to train on, but others beside it hold pictures as classes do.
    #[error(
        "{path}: {name}/ is the name of the part to train on, but {class}/ beside it holds pictures; if {name} is a class, rename \
         its folder, else move {class}/ away"
    )]
    Ambiguous {
        /// The data folder.
        path: PathBuf,
        /// The folder named as a part.
        name: String,
        /// The other.
        class: String,
    },
    /// A name of a class cannot be written to a head.
    #[error("{0}: the name is not UTF-8; rename the folder")]
    Name(PathBuf),
    /// More classes than a head can have.
    #[error("{path}: {count} class folders; a head has at most {max}", max = vgg_edge::head::MAX_LABELS)]
    TooManyClasses {
        /// The folder.
        path: PathBuf,
        /// How many there are.
        count: usize,
    },
}

/// A data folder, resolved to what is trained and validated on.
#[derive(Debug)]
pub struct Splits {
    /// To train on: the whole folder if it is not split.
    pub train: Folder,
    /// To validate on, and its folder; `None` if the folder is not split.
    pub val: Option<(PathBuf, Folder)>,
}

impl Splits {
    /// The pictures of both parts in one list.
    pub fn pool(self) -> Pool {
        let mut pool = Pool { classes: self.train.classes, items: self.train.items, train: None };
        if let Some((_, val)) = self.val {
            pool.train = Some(pool.items.len());
            pool.items.extend(val.items);
        }
        pool
    }
}

/// The pictures to train and to validate on, in one list, so that their features are extracted
/// together.
pub struct Pool {
    /// Names of the classes.
    pub classes: Vec<String>,
    /// The pictures: first those to train on.
    pub items: Vec<Item>,
    /// How many are to train on; `None` if the folder is not split.
    pub train: Option<usize>,
}

impl Pool {
    /// The class of each of the items `kept` (ascending), those that could be read.
    pub fn classes_of(&self, kept: &[usize]) -> Vec<usize> {
        kept.iter().map(|&item| self.items[item].class).collect()
    }

    /// The rows of `kept`, which have these contents, to train on and those to validate on: as the
    /// folder is split, or [`split`] by `share` and `seed`.
    pub fn rows(
        &self,
        kept: &[usize],
        hashes: &[Fingerprint],
        share: f64,
        seed: u64,
    ) -> (Vec<usize>, Vec<usize>) {
        match self.train {
            Some(train) => (0..kept.len()).partition(|&row| kept[row] < train),
            None => split(&self.classes_of(kept), hashes, self.classes.len(), share, seed),
        }
    }
}

/// The folder to train on within a data folder that is split; `None` if it is not.
pub fn training_folder(path: &Path) -> Option<PathBuf> {
    find_part(path, TRAIN, &[])
}

/// The first folder of these names that is there; one that is named as a class is no part.
fn find_part(path: &Path, names: &[&str], classes: &[String]) -> Option<PathBuf> {
    let parts = names.iter().filter(|name| !classes.iter().any(|class| class == *name));
    parts.map(|name| path.join(name)).find(|folder| folder.is_dir())
}

/// As [`training_folder`], if no folder beside it looks like that of a class: `train` may be one
/// too, and to train on what is in it alone would be a guess.
fn checked_training_folder(path: &Path) -> Result<Option<PathBuf>, DataError> {
    let Some(train) = training_folder(path) else { return Ok(None) };
    for (folder, is_folder) in entries(path)? {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        if is_folder && !TRAIN.iter().chain(VAL).any(|part| *part == name) {
            let pictures = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            if pictures.map(|entry| entry.path()).any(|entry| has_image_extension(&entry)) {
                let part = train.file_name().unwrap_or_default().to_string_lossy();
                return Err(DataError::Ambiguous {
                    path: path.to_owned(),
                    name: part.into(),
                    class: name.into(),
                });
            }
        }
    }
    Ok(Some(train))
}

/// Whether a folder of this name makes a data folder a split one.
pub fn is_training_name(name: &str) -> bool {
    TRAIN.contains(&name)
}

/// Lists a data folder: `DATA/class/...` or `DATA/train/class/...` and `DATA/val/class/...`.
///
/// # Errors
/// [`DataError`].
pub fn open(path: &Path) -> Result<Splits, DataError> {
    let Some(train_path) = checked_training_folder(path)? else {
        return Ok(Splits { train: list(path, None)?, val: None });
    };
    let train = list(&train_path, None)?;
    let val = match find_part(path, VAL, &[]) {
        Some(val_path) => {
            let folder = list(&val_path, Some(&train.classes))?;
            Some((val_path, folder))
        }
        None => None,
    };
    Ok(Splits { train, val })
}

/// Lists the pictures to evaluate on: `DATA/class/...`, or the named part of a split folder (by
/// default its validation part).
///
/// Returns the folder that was taken. `classes` are those of the head; a folder that is named as
/// one of them is no part.
///
/// # Errors
/// [`DataError`].
pub fn open_for_evaluation(
    path: &Path,
    part: Option<&str>,
    classes: &[String],
) -> Result<(PathBuf, Folder), DataError> {
    let folder = match (part, find_part(path, VAL, classes), find_part(path, TRAIN, classes)) {
        (Some(part), ..) => path.join(part),
        (None, Some(validation), _) => validation,
        (None, None, Some(_)) => return Err(DataError::NoClasses(path.join(VAL[0]))),
        (None, None, None) => path.to_owned(),
    };
    let listed = list(&folder, Some(classes))?;
    Ok((folder, listed))
}

/// Lists one folder of class folders. With `classes`, these are the classes, and not each needs
/// pictures.
///
/// # Errors
/// [`DataError`].
pub fn list(path: &Path, classes: Option<&[String]>) -> Result<Folder, DataError> {
    let mut items = Vec::new();
    let (classes, ignored) = visit(path, classes, &mut |item| items.push(item))?;
    // By class, whatever the order of the folders.
    items.sort_by(|a, b| (a.class, &a.path).cmp(&(b.class, &b.path)));
    Ok(Folder { classes, items, ignored })
}

/// What [`walk`] tells beside the pictures.
#[derive(Debug, PartialEq, Eq)]
pub struct Walked {
    /// Names of the classes, sorted.
    pub classes: Vec<String>,
    /// How many of the pictures are to train on; `None` if the folder is not split.
    pub train: Option<usize>,
    /// Files whose names are not those of pictures.
    pub ignored: usize,
}

/// Gives `each` the pictures of a data folder in the order of [`Splits::pool`], and keeps no more
/// of them than the names in a folder.
///
/// # Errors
/// [`DataError`]; `each` may have had some pictures by then.
pub fn walk(path: &Path, each: &mut dyn FnMut(Item)) -> Result<Walked, DataError> {
    // Classes are numbered in the order of their folders, and folders within are sorted, so
    // pictures come in order.
    let Some(train_path) = checked_training_folder(path)? else {
        let (classes, ignored) = visit(path, None, each)?;
        return Ok(Walked { classes, train: None, ignored });
    };
    let mut count = 0;
    let (classes, mut ignored) = visit(&train_path, None, &mut |item| {
        count += 1;
        each(item);
    })?;
    let Some(val_path) = find_part(path, VAL, &[]) else {
        return Ok(Walked { classes, train: None, ignored });
    };
    ignored += visit(&val_path, Some(&classes), each)?.1;
    Ok(Walked { classes, train: Some(count), ignored })
}

/// Gives `each` the pictures of a folder of class folders, folder by folder; returns the classes
/// and the number of files that are none.
fn visit(
    path: &Path,
    classes: Option<&[String]>,
    each: &mut dyn FnMut(Item),
) -> Result<(Vec<String>, usize), DataError> {
    let folders: Vec<PathBuf> = entries(path)?
        .into_iter()
        .filter_map(|(entry, is_folder)| is_folder.then_some(entry))
        .collect();
    if folders.is_empty() {
        return Err(DataError::NoClasses(path.to_owned()));
    }
    let mut names = Vec::with_capacity(folders.len());
    for folder in &folders {
        let name = folder.file_name().and_then(|name| name.to_str());
        names.push(name.ok_or_else(|| DataError::Name(folder.clone()))?.to_owned());
    }
    match classes {
        None if names.len() == 1 => {
            return Err(DataError::OneClass { path: path.to_owned(), class: names.swap_remove(0) });
        }
        None if names.len() > vgg_edge::head::MAX_LABELS => {
            return Err(DataError::TooManyClasses { path: path.to_owned(), count: names.len() });
        }
        _ => {}
    }
    let classes = classes.map_or_else(|| names.clone(), <[String]>::to_vec);
    let mut ignored = 0;
    for (folder, name) in folders.iter().zip(names) {
        let Some(class) = classes.iter().position(|known| *known == name) else {
            let known = classes.join(", ");
            return Err(DataError::UnknownClass { path: path.to_owned(), class: name, known });
        };
        let mut count = 0;
        ignored += collect(folder, 0, &mut |path| {
            count += 1;
            each(Item { path, class });
        })?;
        if count == 0 {
            return Err(DataError::EmptyClass(folder.clone()));
        }
    }
    Ok((classes, ignored))
}

/// All pictures below a folder, sorted by path.
///
/// # Errors
/// [`DataError::Io`].
pub fn pictures(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut paths = Vec::new();
    collect(path, 0, &mut |path| paths.push(path))?;
    paths.sort();
    Ok(paths)
}

/// Gives `each` the pictures below a folder, in the order of their paths, and returns how many
/// files are none. Folders within a class folder belong to the class, as in Keras. The depth is
/// bounded against loops of links.
fn collect(folder: &Path, depth: u32, each: &mut dyn FnMut(PathBuf)) -> Result<usize, DataError> {
    let mut ignored = 0;
    for (path, is_folder) in entries(folder)? {
        if is_folder {
            if depth < 16 {
                ignored += collect(&path, depth + 1, each)?;
            }
        } else if has_image_extension(&path) {
            each(path);
        } else {
            ignored += 1;
        }
    }
    Ok(ignored)
}

/// The entries of a folder and whether they are folders or links to some, sorted by name, without
/// hidden ones.
///
/// Only links are asked for what they are: the folder itself tells of the others, which matters
/// where each question crosses a network.
fn entries(folder: &Path) -> Result<Vec<(PathBuf, bool)>, DataError> {
    let wrong = |source| DataError::Io { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            let path = entry.path();
            let is_folder = match entry.file_type() {
                Ok(kind) if !kind.is_symlink() => kind.is_dir(),
                _ => path.is_dir(),
            };
            paths.push((path, is_folder));
        }
    }
    paths.sort();
    Ok(paths)
}

/// The items of each key, keys in the order in which they appear.
pub fn group<K: Eq + Hash>(keys: impl Iterator<Item = K>) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut known = HashMap::new();
    for (item, key) in keys.enumerate() {
        let group = *known.entry(key).or_insert(groups.len());
        if group == groups.len() {
            groups.push(Vec::new());
        }
        groups[group].push(item);
    }
    groups
}

/// Shuffles the members of a class, with a stream for each class: a picture more in one leaves the
/// others as they are.
pub fn shuffle<T>(members: &mut [T], seed: u64, class: usize) {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(
        seed ^ (class as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    );
    // Fisher-Yates; the bias of the remainder is below 2^-40 for any folder that fits a disk.
    for i in (1..members.len()).rev() {
        members.swap(i, (random.next_u64() % (i as u64 + 1)) as usize);
    }
}

/// Chooses validation items out of each class: `share` of it, rounded, at least one and never all.
///
/// `classes` and `hashes` give the class and the content of each item. Items of a class with the
/// same content stay together, or those to validate on would be known from training; where they are
/// many, the share may be missed. Returns the indices of the training and of the validation items,
/// ascending. The choice depends on the seed and on the order of the items within their class only.
pub fn split(
    classes: &[usize],
    hashes: &[Fingerprint],
    count: usize,
    share: f64,
    seed: u64,
) -> (Vec<usize>, Vec<usize>) {
    let mut is_val = vec![false; classes.len()];
    // Of each class, the items of each content.
    let mut members: Vec<Vec<Vec<usize>>> = vec![Vec::new(); count];
    group(classes.iter().zip(hashes))
        .into_iter()
        .for_each(|items| members[classes[items[0]]].push(items));
    for (class, mut members) in members.into_iter().enumerate() {
        if members.len() < 2 {
            continue;
        }
        let items: usize = members.iter().map(Vec::len).sum();
        shuffle(&mut members, seed, class);
        let mut wanted = ((share * items as f64).round() as usize).clamp(1, items - 1);
        let smallest = members.iter().map(Vec::len).min().unwrap_or_default();
        // At least one content goes to either side.
        let (mut chosen, most) = (0, members.len() - 1);
        for group in members {
            let fits = group.len() <= wanted
                || (chosen == 0 && group.len() == smallest && wanted < smallest);
            if fits && chosen < most {
                chosen += 1;
                wanted = wanted.saturating_sub(group.len());
                group.into_iter().for_each(|item| is_val[item] = true);
            }
        }
    }
    (0..classes.len()).partition(|&i| !is_val[i])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn touch(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
    }

    #[test]
    fn classes_are_sorted_and_nested_pictures_found() {
        let dir = tempfile::tempdir().unwrap();
        touch(
            dir.path(),
            &[
                "b/2.png",
                "b/1.JPG",
                "b/deep/3.bmp",
                "a/x.jpeg",
                "a/notes.txt",
                "a/.hidden.png",
                ".git/c.png",
                "top.png",
            ],
        );
        let splits = open(dir.path()).unwrap();
        assert_eq!(splits.train.classes, ["a", "b"]);
        let names: Vec<_> = splits
            .train
            .items
            .iter()
            .map(|i| i.path.strip_prefix(dir.path()).unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["a/x.jpeg", "b/1.JPG", "b/2.png", "b/deep/3.bmp"]);
        assert_eq!(splits.train.ignored, 1);
        assert!(splits.val.is_none());
    }

    /// What a walk gives, as a pool.
    fn walked(path: &Path) -> Pool {
        let mut items = Vec::new();
        let Walked { classes, train, .. } = walk(path, &mut |item| items.push(item)).unwrap();
        Pool { classes, items, train }
    }

    #[test]
    fn a_walk_gives_the_pictures_in_the_order_of_the_pool() {
        let dir = tempfile::tempdir().unwrap();
        touch(
            dir.path(),
            &[
                "b.c/1.png",
                "b/2.png",
                "b/d/3.png",
                "b/d.e/4.png",
                "b/d!/5.png",
                "B/6.png",
                "b/notes.txt",
            ],
        );
        std::os::unix::fs::symlink(dir.path().join("B"), dir.path().join("b/z")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("b/dangling.png")).unwrap();
        let same = || {
            let (pool, walked) = (open(dir.path()).unwrap().pool(), walked(dir.path()));
            assert_eq!(
                (&pool.classes, &pool.items, pool.train),
                (&walked.classes, &walked.items, walked.train)
            );
            pool
        };
        let pool = same();
        assert_eq!((pool.classes.len(), pool.items.len(), pool.train), (3, 8, None));
        touch(dir.path(), &["train/a/1.png", "train/b/1.png", "train/c/1.png"]);
        for ambiguous in [open(dir.path()).map(drop), walk(dir.path(), &mut |_| {}).map(drop)] {
            let words = ambiguous.unwrap_err().to_string();
            assert!(
                words.contains("train/ is the name of the part") && words.contains("B/ beside it"),
                "{words}"
            );
        }
        for class in ["b", "b.c", "B"] {
            fs::remove_dir_all(dir.path().join(class)).unwrap();
        }
        // What holds no pictures is no class.
        touch(dir.path(), &["notes/readme.txt", "notes/deep/1.png"]);
        assert_eq!((same().items.len(), same().train), (3, None));
        touch(dir.path(), &["test/c/1.png", "test/b/7.png"]);
        assert_eq!((same().items.len(), same().train), (5, Some(3)));
    }

    #[test]
    fn validation_may_lack_a_class_but_not_have_another() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["train/a/1.png", "train/b/1.png", "validation/b/1.png"]);
        let val = open(dir.path()).unwrap().val.unwrap().1;
        assert_eq!((val.classes.len(), val.items[0].class), (2, 1));
        touch(dir.path(), &["validation/c/1.png"]);
        assert!(matches!(open(dir.path()), Err(DataError::UnknownClass { .. })));
    }

    #[test]
    fn what_is_no_data_set_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(open(dir.path()), Err(DataError::NoClasses(_))));
        assert!(matches!(open(&dir.path().join("none")), Err(DataError::Io { .. })));
        touch(dir.path(), &["a/1.png"]);
        assert!(matches!(open(dir.path()), Err(DataError::OneClass { .. })));
        touch(dir.path(), &["b/readme.md"]);
        assert!(matches!(open(dir.path()), Err(DataError::EmptyClass(_))));
    }

    #[test]
    fn a_class_may_be_named_as_a_part() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["valid/1.png", "invalid/1.png", "test/1.png"]);
        let classes = open(dir.path()).unwrap().train.classes;
        assert_eq!(classes, ["invalid", "test", "valid"]);
        let (folder, listed) = open_for_evaluation(dir.path(), None, &classes).unwrap();
        assert_eq!((folder.as_path(), listed.items.len()), (dir.path(), 3));
        let classes = ["a", "b"].map(str::to_owned);
        touch(dir.path(), &["val/a/1.png"]);
        assert!(open_for_evaluation(dir.path(), None, &classes).unwrap().0.ends_with("val"));
    }

    /// Each item of its own content.
    fn different(count: usize) -> Vec<Fingerprint> {
        (0..count).map(|item| Fingerprint::of(&item.to_le_bytes())).collect()
    }

    proptest! {
        #[test]
        fn copies_stay_together(contents in prop::collection::vec(0u8..12, 0..60), share in 0.0f64..1.0, seed: u64) {
            let classes: Vec<usize> = (0..contents.len()).map(|item| item % 3).collect();
            let hashes: Vec<Fingerprint> = contents.iter().map(|&content| Fingerprint::of(&[content])).collect();
            let (train, val) = split(&classes, &hashes, 3, share, seed);
            prop_assert_eq!(train.len() + val.len(), classes.len());
            let keys = |rows: &[usize], class: usize| -> BTreeSet<u8> {
                rows.iter().filter(|&&row| classes[row] == class).map(|&row| contents[row]).collect()
            };
            for class in 0..3 {
                let (train, val) = (keys(&train, class), keys(&val, class));
                prop_assert!(train.is_disjoint(&val));
                prop_assert_eq!(val.is_empty(), train.len() + val.len() < 2);
                prop_assert_eq!(train.is_empty(), train.len() + val.len() == 0);
            }
        }

        #[test]
        fn splits_are_stratified_and_repeatable(counts in prop::collection::vec(0usize..40, 1..5), share in 0.0f64..1.0, seed: u64) {
            let classes: Vec<usize> = counts.iter().enumerate().flat_map(|(c, &n)| vec![c; n]).collect();
            let hashes = different(classes.len());
            let (train, val) = split(&classes, &hashes, counts.len(), share, seed);
            prop_assert_eq!(train.len() + val.len(), classes.len());
            prop_assert_eq!(split(&classes, &hashes, counts.len(), share, seed), (train, val.clone()));
            for (class, &n) in counts.iter().enumerate() {
                let chosen = val.iter().filter(|&&i| classes[i] == class).count();
                let wanted = if n < 2 { 0 } else { ((share * n as f64).round() as usize).clamp(1, n - 1) };
                prop_assert_eq!(chosen, wanted);
            }
        }
    }
}
