//! The state of labeling: the images, the classes, and the steps so far.

mod class_name;
mod decide;
mod error;
mod frames;
#[cfg(test)]
pub(super) mod tests;
mod view;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use vgg_edge::head::MAX_LABELS;
use vgg_edge::image::decode::has_image_extension;

use super::directory::{Directory, Placed};
use crate::dataset;

pub use class_name::check_class;
pub use error::UserError;
pub use frames::FRAMES;
use frames::{EdgePrediction, Frames};

/// The log of the decisions, beside the images.
pub const LABELS: &str = "labels.ndjson";
/// The directory of rejected images. It is outside the class directories, so that nothing trains
/// on it.
pub const REJECTED: &str = "_rejected";

/// The progress of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// Not yet decided on.
    Open,
    /// Left for later.
    Skipped,
    Sorted,
    Rejected,
    /// Moved or removed by another program.
    Gone,
}

struct Item {
    name: OsString,
    prediction: Option<EdgePrediction>,
    status: Status,
}

impl Item {
    /// Whether it is still among the images to label.
    fn is_undecided(&self) -> bool {
        matches!(self.status, Status::Open | Status::Skipped)
    }
}

struct Class {
    name: String,
    /// Number of images in its directory.
    count: usize,
    /// Whether its directory was created here, so that it may be removed again.
    created: bool,
}

/// A decision on an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Into the class.
    Class(String),
    /// Into [`REJECTED`], as useless.
    Reject,
    /// Left for later.
    Skip,
}

/// A step that can be undone.
struct Step {
    item: usize,
    choice: Choice,
    placed: Option<Placed>,
}

/// The images of a directory on their way into class directories.
pub struct LabelSession {
    inbox: Directory,
    data: Directory,
    classes: Vec<Class>,
    items: Vec<Item>,
    steps: Vec<Step>,
    /// Number of lines of [`FRAMES`] that could not be read.
    pub bad_lines: usize,
}

/// Adds the action and the path to an I/O error.
fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UserError {
    let path = path.to_owned();
    move |source| UserError::Io { action, path, source }
}

impl LabelSession {
    /// Opens the directory of images and the data directory, which is created if it does not
    /// exist.
    ///
    /// `data` is a subdirectory of `directory` if it is not given. `classes` are offered first,
    /// then those that have a directory. Without `classes`, the labels of edge's predictions are
    /// offered as well.
    ///
    /// # Errors
    /// A directory that cannot be opened or listed, or a layout in which training would use images
    /// that are not sorted.
    pub fn open(
        directory: &Path,
        data: Option<&Path>,
        classes: Option<&[String]>,
    ) -> Result<Self, UserError> {
        let (inbox, data) = open_directories(directory, data)?;
        let frames = Frames::read(&inbox).map_err(failed("read", &directory.join(FRAMES)))?;
        let items = list_images(&inbox, frames.predictions).map_err(failed("list", directory))?;
        let mut session = Self {
            inbox,
            data,
            classes: Vec::new(),
            items,
            steps: Vec::new(),
            bad_lines: frames.bad_lines,
        };
        session.offer(classes)?;
        vgg_edge::durable_fs::sweep(session.inbox.path());
        for class in &session.classes {
            vgg_edge::durable_fs::sweep(&session.data.path().join(&class.name));
        }
        Ok(session)
    }

    fn offer(&mut self, classes: Option<&[String]>) -> Result<(), UserError> {
        for class in classes.unwrap_or_default() {
            check_class(class)
                .map_err(|source| UserError::GivenClass { class: class.clone(), source })?;
            self.find_or_add(class);
        }
        let directories = list(self.data.path(), |entry| entry.is_dir())
            .map_err(failed("list", self.data.path()))?;
        for name in directories.iter().filter_map(|name| name.to_str()) {
            let class = self.find_or_add(name);
            let files =
                list(&self.data.path().join(name), |entry| entry.is_file()).unwrap_or_default();
            self.classes[class].count =
                files.iter().filter(|name| has_image_extension(Path::new(name))).count();
        }
        if classes.is_none() {
            let predictions = self.items.iter().filter_map(|item| item.prediction.as_ref());
            let mut labels: Vec<String> =
                predictions.flat_map(|p| p.scores.iter().map(|(label, _)| label.clone())).collect();
            labels.sort();
            labels.dedup();
            for label in labels.iter().filter(|label| check_class(label).is_ok()) {
                self.find_or_add(label);
            }
        }
        if self.classes.len() > MAX_LABELS {
            return Err(UserError::TooManyClasses(self.classes.len()));
        }
        Ok(())
    }

    fn find_or_add(&mut self, name: &str) -> usize {
        self.classes.iter().position(|class| class.name == name).unwrap_or_else(|| {
            self.classes.push(Class { name: name.to_owned(), count: 0, created: false });
            self.classes.len() - 1
        })
    }

    /// The data directory, which has the class directories.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// The number of images to label.
    pub fn total(&self) -> usize {
        self.items.len()
    }

    /// Opens an image that is not yet moved, by its number.
    pub fn picture(&self, id: usize) -> Option<(io::Result<File>, PathBuf)> {
        let item = self.items.get(id).filter(|item| item.is_undecided())?;
        Some((self.inbox.file(&item.name), self.inbox.path().join(&item.name)))
    }

    /// Offers another class.
    ///
    /// # Errors
    /// A name that is not possible or too similar, too many classes.
    pub fn add_class(&mut self, name: &str) -> Result<(), UserError> {
        check_class(name)?;
        let similar = self
            .classes
            .iter()
            .find(|known| known.name.to_lowercase() == name.to_lowercase() && known.name != name);
        if let Some(similar) = similar {
            return Err(UserError::SimilarClass(similar.name.clone()));
        }
        if self.classes.len() >= MAX_LABELS {
            return Err(UserError::TooManyClasses(self.classes.len() + 1));
        }
        self.find_or_add(name);
        Ok(())
    }
}

impl Drop for LabelSession {
    fn drop(&mut self) {
        // The data directory that was created is removed again if nothing was sorted.
        if let (Some(parent), Some(name)) =
            (self.data.path().parent(), self.data.path().file_name())
            && parent == self.inbox.path()
        {
            self.inbox.remove_empty(name);
        }
    }
}

/// Opens the directory of images and the data directory, see [`LabelSession::open`].
fn open_directories(
    directory: &Path,
    data: Option<&Path>,
) -> Result<(Directory, Directory), UserError> {
    const OPEN: &str = "open the directory";
    const CREATE: &str = "create the directory";
    let inbox = Directory::open(directory).map_err(failed(OPEN, directory))?;
    let root = match data {
        Some(data) => {
            std::fs::create_dir_all(data).map_err(failed(CREATE, data))?;
            Directory::open(data).map_err(failed(OPEN, data))?
        }
        // A link here could have come with the images.
        None => {
            let path = directory.join("sorted");
            inbox.create("sorted".as_ref()).map_err(failed(CREATE, &path))?.0
        }
    };
    if inbox.path().starts_with(root.path()) {
        return Err(UserError::InsideData {
            directory: directory.to_owned(),
            data: root.path().to_owned(),
        });
    }
    let data = match dataset::training_directory(root.path()) {
        Some(path) => Directory::open(&path).map_err(failed(OPEN, &path))?,
        None => root,
    };
    Ok((inbox, data))
}

/// Lists the images, the least certain first; those without a prediction last, by name.
fn list_images(
    inbox: &Directory,
    mut predictions: std::collections::HashMap<String, EdgePrediction>,
) -> io::Result<Vec<Item>> {
    let mut items: Vec<Item> = list(inbox.path(), |entry| entry.is_file())?
        .into_iter()
        .filter(|name| has_image_extension(Path::new(name)))
        .map(|name| {
            let prediction = name.to_str().and_then(|name| predictions.remove(name));
            Item { name, prediction, status: Status::Open }
        })
        .collect();
    let margin =
        |item: &Item| item.prediction.as_ref().map_or(f64::INFINITY, EdgePrediction::margin);
    items.sort_by(|a, b| margin(a).total_cmp(&margin(b)).then_with(|| a.name.cmp(&b.name)));
    Ok(items)
}

/// Lists the names in a directory, sorted, without hidden ones; `wanted` gets the type of the
/// entry itself, not of the target of a link.
fn list(
    directory: &Path,
    wanted: impl Fn(&std::fs::FileType) -> bool,
) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(b".") && wanted(&entry.file_type()?) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
