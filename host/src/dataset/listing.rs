//! Listing of a data directory: one subdirectory per class, perhaps split into training and
//! validation.

use std::path::{Path, PathBuf};

use vgg_edge::Fingerprint;
use vgg_edge::image::decode::has_image_extension;

use super::split::split;

/// Names of the training directory within a data directory.
const TRAIN: &[&str] = &["train", "training"];
/// Names of the validation directory; the first that exists is taken.
const VAL: &[&str] = &["val", "valid", "validation", "test"];

/// An image file and the index of its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The file.
    pub path: PathBuf,
    /// Index of the class.
    pub class: usize,
}

/// The images of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Names of the classes, sorted.
    pub classes: Vec<String>,
    /// The images, by class and then by path.
    pub items: Vec<Item>,
    /// Number of files without an image extension; they are not read.
    pub ignored: usize,
}

/// Reason why a directory is not a data set.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// It cannot be listed.
    #[error("{path}: cannot list: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It has no subdirectories.
    #[error(
        "{0}: no class directories; put the images of each class into a subdirectory named after it"
    )]
    NoClasses(PathBuf),
    /// It has one subdirectory.
    #[error("{path}: only one class ({class}); a classifier needs at least two")]
    OneClass {
        /// The directory.
        path: PathBuf,
        /// The class.
        class: String,
    },
    /// A subdirectory has no images.
    #[error(
        "{0}: no images ({list}); add some or remove the directory",
        list = vgg_edge::image::decode::EXTENSIONS.join(", ")
    )]
    EmptyClass(PathBuf),
    /// A validation directory has a class that the training directory lacks.
    #[error("{path}: class {class} does not occur in training ({known})")]
    UnknownClass {
        /// The validation directory.
        path: PathBuf,
        /// The class.
        class: String,
        /// The classes of the training directory.
        known: String,
    },
    /// A directory has the name of the training directory, but others beside it hold images as
    /// classes do.
    #[error(
        "{path}: {name}/ is the name of a training directory, but {class}/ beside it holds images; \
         if {name} is a class, rename its directory, otherwise move {class}/ away"
    )]
    Ambiguous {
        /// The data directory.
        path: PathBuf,
        /// Name of the training directory.
        name: String,
        /// Name of the other directory.
        class: String,
    },
    /// The name of a class cannot be written to a head.
    #[error("{0}: the name is not UTF-8; rename the directory")]
    Name(PathBuf),
    /// More classes than a head can have.
    #[error(
        "{path}: {count} class directories; a head has at most {max}",
        max = vgg_edge::head::MAX_LABELS
    )]
    TooManyClasses {
        /// The directory.
        path: PathBuf,
        /// Their number.
        count: usize,
    },
}

/// Training and validation images of a data directory.
#[derive(Debug)]
pub struct Splits {
    /// Training images: the whole directory if it is not split.
    pub train: Listing,
    /// Validation directory and its images; `None` if the directory is not split.
    pub val: Option<(PathBuf, Listing)>,
}

impl Splits {
    /// Joins both lists into one.
    pub fn pool(self) -> Pool {
        let mut pool = Pool { classes: self.train.classes, items: self.train.items, train: None };
        if let Some((_, val)) = self.val {
            pool.train = Some(pool.items.len());
            pool.items.extend(val.items);
        }
        pool
    }
}

/// Training and validation images in one list, so that their features are extracted together.
pub struct Pool {
    /// Names of the classes.
    pub classes: Vec<String>,
    /// The images, training images first.
    pub items: Vec<Item>,
    /// Number of training images; `None` if the directory is not split.
    pub train: Option<usize>,
}

impl Pool {
    /// Returns the classes of the items `kept`, those that could be read, in ascending order.
    pub fn classes_of(&self, kept: &[usize]) -> Vec<usize> {
        kept.iter().map(|&item| self.items[item].class).collect()
    }

    /// Returns the training rows and the validation rows of the items `kept`, whose contents have
    /// these hashes: as the directory is split, or by [`split`] with `fraction` and `seed`.
    pub fn rows(
        &self,
        kept: &[usize],
        hashes: &[Fingerprint],
        fraction: f64,
        seed: u64,
    ) -> (Vec<usize>, Vec<usize>) {
        match self.train {
            Some(train) => (0..kept.len()).partition(|&row| kept[row] < train),
            None => split(&self.classes_of(kept), hashes, self.classes.len(), fraction, seed),
        }
    }
}

/// Returns the training directory within a data directory; `None` if that is not split.
pub fn training_directory(path: &Path) -> Option<PathBuf> {
    find_part(path, TRAIN, &[])
}

/// Returns the first existing directory of these names that is not named like a class.
fn find_part(path: &Path, names: &[&str], classes: &[String]) -> Option<PathBuf> {
    let parts = names.iter().filter(|name| !classes.iter().any(|class| class == *name));
    parts.map(|name| path.join(name)).find(|directory| directory.is_dir())
}

/// As [`training_directory`], provided that no directory beside it looks like a class: `train` may
/// be a class too, and training on its images alone would be a guess.
fn checked_training_directory(path: &Path) -> Result<Option<PathBuf>, DataError> {
    let Some(train) = training_directory(path) else { return Ok(None) };
    for (directory, is_directory) in entries(path)? {
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        if is_directory && !TRAIN.iter().chain(VAL).any(|part| *part == name) {
            let images = std::fs::read_dir(&directory).into_iter().flatten().flatten();
            if images.map(|entry| entry.path()).any(|entry| has_image_extension(&entry)) {
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

/// Whether a subdirectory of this name makes a data directory a split one.
pub fn is_training_name(name: &str) -> bool {
    TRAIN.contains(&name)
}

/// Lists a data directory: `DATA/class/...` or `DATA/train/class/...` and `DATA/val/class/...`.
///
/// # Errors
/// [`DataError`].
pub fn open(path: &Path) -> Result<Splits, DataError> {
    let Some(train_path) = checked_training_directory(path)? else {
        return Ok(Splits { train: list(path, None)?, val: None });
    };
    let train = list(&train_path, None)?;
    let val = match find_part(path, VAL, &[]) {
        Some(val_path) => {
            let directory = list(&val_path, Some(&train.classes))?;
            Some((val_path, directory))
        }
        None => None,
    };
    Ok(Splits { train, val })
}

/// Lists the images to evaluate on: `DATA/class/...`, or the named part of a split directory (by
/// default its validation part).
///
/// Returns the directory that was listed, too. `classes` are those of the head; a directory that is
/// named like one of them is not a part.
///
/// # Errors
/// [`DataError`].
pub fn open_for_evaluation(
    path: &Path,
    part: Option<&str>,
    classes: &[String],
) -> Result<(PathBuf, Listing), DataError> {
    let directory = match (part, find_part(path, VAL, classes), find_part(path, TRAIN, classes)) {
        (Some(part), ..) => path.join(part),
        (None, Some(validation), _) => validation,
        (None, None, Some(_)) => return Err(DataError::NoClasses(path.join(VAL[0]))),
        (None, None, None) => path.to_owned(),
    };
    let listed = list(&directory, Some(classes))?;
    Ok((directory, listed))
}

/// Lists one directory of class directories. With `classes`, these are the classes, and some may
/// have no images.
///
/// # Errors
/// [`DataError`].
pub fn list(path: &Path, classes: Option<&[String]>) -> Result<Listing, DataError> {
    let mut items = Vec::new();
    let (classes, ignored) = visit(path, classes, &mut |item| items.push(item))?;
    // By class, whatever the order of the directories.
    items.sort_by(|a, b| (a.class, &a.path).cmp(&(b.class, &b.path)));
    Ok(Listing { classes, items, ignored })
}

/// Result of [`walk`], beside the images.
#[derive(Debug, PartialEq, Eq)]
pub struct Walked {
    /// Names of the classes, sorted.
    pub classes: Vec<String>,
    /// Number of training images; `None` if the directory is not split.
    pub train: Option<usize>,
    /// Number of files without an image extension.
    pub ignored: usize,
}

/// Passes the images of a data directory to `each` in the order of [`Splits::pool`], and keeps only
/// the names of one directory in memory.
///
/// # Errors
/// [`DataError`]; `each` may have been called for some images by then.
pub fn walk(path: &Path, each: &mut dyn FnMut(Item)) -> Result<Walked, DataError> {
    // Classes are numbered in the order of their directories, and directories within are sorted, so
    // images are visited in order.
    let Some(train_path) = checked_training_directory(path)? else {
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

/// Passes the images of a directory of class directories to `each`, directory by directory; returns
/// the classes and the number of files that are not images.
fn visit(
    path: &Path,
    classes: Option<&[String]>,
    each: &mut dyn FnMut(Item),
) -> Result<(Vec<String>, usize), DataError> {
    let directories: Vec<PathBuf> = entries(path)?
        .into_iter()
        .filter_map(|(entry, is_directory)| is_directory.then_some(entry))
        .collect();
    if directories.is_empty() {
        return Err(DataError::NoClasses(path.to_owned()));
    }
    let mut names = Vec::with_capacity(directories.len());
    for directory in &directories {
        let name = directory.file_name().and_then(|name| name.to_str());
        names.push(name.ok_or_else(|| DataError::Name(directory.clone()))?.to_owned());
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
    for (directory, name) in directories.iter().zip(names) {
        let Some(class) = classes.iter().position(|known| *known == name) else {
            let known = classes.join(", ");
            return Err(DataError::UnknownClass { path: path.to_owned(), class: name, known });
        };
        let mut count = 0;
        ignored += collect(directory, 0, &mut |path| {
            count += 1;
            each(Item { path, class });
        })?;
        if count == 0 {
            return Err(DataError::EmptyClass(directory.clone()));
        }
    }
    Ok((classes, ignored))
}

/// Returns all images below a directory, sorted by path.
///
/// # Errors
/// [`DataError::Io`].
pub fn images(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut paths = Vec::new();
    collect(path, 0, &mut |path| paths.push(path))?;
    paths.sort();
    Ok(paths)
}

/// Passes the images below a directory to `each`, in the order of their paths, and returns the
/// number of files that are not images. Directories within a class directory belong to the class,
/// as in Keras. The depth is bounded against loops of links.
fn collect(
    directory: &Path,
    depth: u32,
    each: &mut dyn FnMut(PathBuf),
) -> Result<usize, DataError> {
    let mut ignored = 0;
    for (path, is_directory) in entries(directory)? {
        if is_directory {
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

/// Returns the entries of a directory and whether they are directories or links to directories,
/// sorted by name, without hidden ones.
///
/// Only links need a system call of their own: the type of the others is in the directory, which
/// matters where each call crosses a network.
fn entries(directory: &Path) -> Result<Vec<(PathBuf, bool)>, DataError> {
    let wrong = |source| DataError::Io { path: directory.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            let path = entry.path();
            let is_directory = match entry.file_type() {
                Ok(kind) if !kind.is_symlink() => kind.is_dir(),
                _ => path.is_dir(),
            };
            paths.push((path, is_directory));
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests;
