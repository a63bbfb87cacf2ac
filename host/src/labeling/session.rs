//! What is sorted, into what, and what was done so far.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use vgg_edge::image::decode::has_image_extension;

use super::directory::{Folder, Placed};
use crate::dataset;

/// What `edge run --collect` writes beside its pictures.
pub const FRAMES: &str = "frames.ndjson";
/// Where each decision is noted, beside the pictures.
pub const LABELS: &str = "labels.ndjson";
/// Where pictures go that are of no use. It is beside the class folders, so that nothing trains on
/// it.
pub const REJECTED: &str = "_rejected";
/// The longest name of a class, in bytes: file systems take 255.
const LONGEST: usize = 120;
/// Most bytes of [`FRAMES`] that are read.
const MOST_BYTES: u64 = 256 << 20;
/// Most scores of a picture that are shown.
const MOST_SCORES: usize = 100;

/// What edge said of a picture.
#[derive(Debug, Default, PartialEq)]
struct Said {
    label: String,
    /// Labels and scores, the best first.
    scores: Vec<(String, f64)>,
    time: String,
    source: String,
    reason: String,
}

impl Said {
    /// The difference between the best two scores: the smaller, the less sure.
    fn margin(&self) -> f64 {
        match self.scores[..] {
            [(_, best), (_, next), ..] => best - next,
            _ => f64::INFINITY,
        }
    }
}

/// Where a picture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// Not yet decided on.
    Open,
    /// Put off.
    Skipped,
    Sorted,
    Rejected,
    /// Somebody else has moved or removed it.
    Gone,
}

struct Item {
    name: OsString,
    said: Option<Said>,
    status: Status,
}

struct Class {
    name: String,
    /// Pictures in it.
    count: usize,
    /// Whether its folder was made here, so that it can go again.
    made: bool,
}

/// What is done with a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Into the class.
    Class(String),
    /// Put away as of no use.
    Reject,
    /// Put off.
    Skip,
}

/// A step that can be undone.
struct Step {
    item: usize,
    choice: Choice,
    placed: Option<Placed>,
}

/// What went wrong, in a sentence for people.
pub type Trouble = String;

/// The pictures of a folder, on their way into class folders.
pub struct Desk {
    inbox: Folder,
    data: Folder,
    classes: Vec<Class>,
    items: Vec<Item>,
    steps: Vec<Step>,
    /// Lines of [`FRAMES`] that could not be read.
    pub bad_lines: usize,
}

/// Whether a class may be called so.
///
/// # Errors
/// A sentence on what is wrong.
pub fn check_class(name: &str) -> Result<(), Trouble> {
    let wrong = if name.trim().is_empty() {
        "a class needs a name"
    } else if name.trim() != name {
        "the name of a class must not begin or end with a space"
    } else if name.starts_with('.') {
        "the name of a class must not begin with a dot: such folders are hidden"
    } else if name.contains(['/', '\\']) || name.chars().any(char::is_control) {
        "the name of a class must be that of a folder, without slashes and control characters"
    } else if name.len() > LONGEST {
        return Err(format!("the name of a class has at most {LONGEST} bytes"));
    } else if dataset::is_training_name(name) {
        return Err(format!(
            "a class cannot be called {name}: host train takes such a folder for one half of the data"
        ));
    } else {
        return Ok(());
    };
    Err(wrong.into())
}

impl Desk {
    /// Opens the folder of pictures and that of the class folders, which is made if it is not
    /// there.
    ///
    /// `data` is a sub-folder of `folder` if it is not given. `classes` are offered first, then
    /// those that have a folder. Without `classes` the labels that edge knew are offered as well.
    ///
    /// # Errors
    /// A sentence, if a folder cannot be opened or listed, or both are laid out so that training
    /// would take pictures that are not sorted.
    pub fn open(
        folder: &Path,
        data: Option<&Path>,
        classes: Option<&[String]>,
    ) -> Result<Self, Trouble> {
        let said = |what: &str, path: &Path| {
            let (what, path) = (what.to_owned(), path.display().to_string());
            move |error: io::Error| format!("{path}: cannot {what}: {error}")
        };
        let inbox = Folder::open(folder).map_err(said("open the folder", folder))?;
        let root = match data {
            Some(data) => {
                std::fs::create_dir_all(data).map_err(said("make the folder", data))?;
                Folder::open(data).map_err(said("open the folder", data))?
            }
            // A link here could have come with the pictures.
            None => {
                inbox
                    .make("sorted".as_ref())
                    .map_err(said("make the folder", &folder.join("sorted")))?
                    .0
            }
        };
        if inbox.path().starts_with(root.path()) {
            return Err(format!(
                "{} lies in {}, where host train would take it for a class; name another folder with --to",
                folder.display(),
                root.path().display()
            ));
        }
        let data = match dataset::training_directory(root.path()) {
            Some(path) => Folder::open(&path).map_err(said("open the folder", &path))?,
            None => root,
        };
        let mut desk = Self {
            inbox,
            data,
            classes: Vec::new(),
            items: Vec::new(),
            steps: Vec::new(),
            bad_lines: 0,
        };
        let mut notes = desk.frames().map_err(said("read", &folder.join(FRAMES)))?;
        desk.items = list(desk.inbox.path(), |entry| entry.is_file())
            .map_err(said("list", folder))?
            .into_iter()
            .filter(|name| has_image_extension(Path::new(name)))
            .map(|name| {
                let said = name.to_str().and_then(|name| notes.remove(name));
                Item { name, said, status: Status::Open }
            })
            .collect();
        // The least sure first; those of which nothing was said last, by name.
        let margin = |item: &Item| item.said.as_ref().map_or(f64::INFINITY, Said::margin);
        desk.items
            .sort_by(|a, b| margin(a).total_cmp(&margin(b)).then_with(|| a.name.cmp(&b.name)));
        desk.offer(classes)?;
        vgg_edge::durable_fs::sweep(desk.inbox.path());
        for class in &desk.classes {
            vgg_edge::durable_fs::sweep(&desk.data.path().join(&class.name));
        }
        Ok(desk)
    }

    fn offer(&mut self, classes: Option<&[String]>) -> Result<(), Trouble> {
        for name in classes.unwrap_or_default() {
            check_class(name).map_err(|words| format!("class {name:?}: {words}"))?;
            self.find_or_add(name);
        }
        let folders = list(self.data.path(), |entry| entry.is_dir());
        let folders =
            folders.map_err(|e| format!("{}: cannot list: {e}", self.data.path().display()))?;
        for folder in folders.iter().filter_map(|name| name.to_str()) {
            let class = self.find_or_add(folder);
            let files =
                list(&self.data.path().join(folder), |entry| entry.is_file()).unwrap_or_default();
            self.classes[class].count =
                files.iter().filter(|name| has_image_extension(Path::new(name))).count();
        }
        if classes.is_none() {
            let said = self.items.iter().filter_map(|item| item.said.as_ref());
            let mut labels: Vec<String> =
                said.flat_map(|said| said.scores.iter().map(|(label, _)| label.clone())).collect();
            labels.sort();
            labels.dedup();
            for label in labels.iter().filter(|label| check_class(label).is_ok()) {
                self.find_or_add(label);
            }
        }
        if self.classes.len() > vgg_edge::head::MAX_LABELS {
            return Err(format!(
                "{} classes; a head has at most {}",
                self.classes.len(),
                vgg_edge::head::MAX_LABELS
            ));
        }
        Ok(())
    }

    fn find_or_add(&mut self, name: &str) -> usize {
        self.classes.iter().position(|class| class.name == name).unwrap_or_else(|| {
            self.classes.push(Class { name: name.to_owned(), count: 0, made: false });
            self.classes.len() - 1
        })
    }

    /// What edge said, by file name; the last line of a file holds.
    fn frames(&mut self) -> io::Result<HashMap<String, Said>> {
        use std::io::Read;
        let mut bytes = Vec::new();
        match self.inbox.file(FRAMES.as_ref()) {
            Ok(file) => file.take(MOST_BYTES).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(HashMap::new()),
            Err(error) => return Err(error),
        };
        let mut found = HashMap::new();
        for line in bytes.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
            let value: Value = serde_json::from_slice(line).unwrap_or_default();
            let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
            let Some(name) = value["file"].as_str() else {
                self.bad_lines += 1;
                continue;
            };
            let scores = value["scores"].as_object().into_iter().flatten();
            let mut scores: Vec<(String, f64)> = scores
                .filter_map(|(label, score)| Some((label.clone(), score.as_f64()?)))
                .collect();
            scores.sort_by(|a, b| b.1.total_cmp(&a.1));
            let said = Said {
                label: text("label"),
                scores,
                time: text("time"),
                source: text("source"),
                reason: text("reason"),
            };
            found.insert(name.to_owned(), said);
        }
        Ok(found)
    }

    /// The folder of the class folders.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// How many pictures there are to sort.
    pub fn total(&self) -> usize {
        self.items.len()
    }

    /// Pictures that are not yet moved, by number.
    pub fn picture(&self, id: usize) -> Option<(io::Result<File>, PathBuf)> {
        let item = self
            .items
            .get(id)
            .filter(|item| matches!(item.status, Status::Open | Status::Skipped))?;
        Some((self.inbox.file(&item.name), self.inbox.path().join(&item.name)))
    }

    /// Does something with a picture that is not yet moved.
    ///
    /// # Errors
    /// A sentence on what is wrong; the picture is then where it was.
    pub fn decide(&mut self, id: usize, choice: Choice) -> Result<(), Trouble> {
        let Some(item) =
            self.items.get(id).filter(|item| matches!(item.status, Status::Open | Status::Skipped))
        else {
            return Err(
                "this picture has been dealt with already, perhaps in another window".into()
            );
        };
        let name = item.name.clone();
        let shown = name.to_string_lossy().into_owned();
        let placed = match &choice {
            Choice::Skip => None,
            Choice::Class(class) if !self.classes.iter().any(|known| known.name == *class) => {
                return Err(format!("there is no class {class}"));
            }
            Choice::Class(_) | Choice::Reject => match self.move_out(&name, &choice) {
                Ok(placed) => Some(placed),
                Err(_) if !self.inbox.has(&name) => {
                    self.tidy(&choice);
                    self.items[id].status = Status::Gone;
                    return Err(self.gone(&shown));
                }
                Err(error) => {
                    self.tidy(&choice);
                    return Err(format!(
                        "{shown} could not be moved and stays where it was: {error}"
                    ));
                }
            },
        };
        if let Some(placed) = &placed
            && let Err(error) = self.note(id, &choice, placed, false)
        {
            let back = self.target(&choice).and_then(|to| self.inbox.take_back(&name, &to, placed));
            self.tidy(&choice);
            let words =
                format!("{LABELS} in {} cannot be written: {error}", self.inbox.path().display());
            return match back {
                Ok(()) => Err(format!("{words}; {shown} stays where it was")),
                Err(again) => {
                    // It is there, so it counts, and can be undone later.
                    self.done(id, choice, Some(placed.clone()));
                    Err(format!(
                        "{words}; {shown} is moved all the same, and cannot be moved back: {again}"
                    ))
                }
            };
        }
        self.done(id, choice, placed);
        Ok(())
    }

    fn done(&mut self, id: usize, choice: Choice, placed: Option<Placed>) {
        self.items[id].status = match &choice {
            Choice::Skip => Status::Skipped,
            Choice::Reject => Status::Rejected,
            Choice::Class(name) => {
                let class = self.find_or_add(name);
                self.classes[class].count += usize::from(matches!(placed, Some(Placed::Moved(_))));
                Status::Sorted
            }
        };
        self.steps.push(Step { item: id, choice, placed });
    }

    /// Takes the last step back.
    ///
    /// # Errors
    /// A sentence on what is wrong.
    pub fn undo(&mut self) -> Result<(), Trouble> {
        let Some(step) = self.steps.pop() else { return Err("there is nothing to undo".into()) };
        let name = self.items[step.item].name.clone();
        let shown = name.to_string_lossy().into_owned();
        if let Some(placed) = &step.placed {
            let back = self
                .target(&step.choice)
                .and_then(|from| self.inbox.take_back(&name, &from, placed));
            match back {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    // What has gone cannot stand in the way of the steps before.
                    self.items[step.item].status = Status::Gone;
                    return Err(format!(
                        "{shown} is no longer where it was put, so this step cannot be undone"
                    ));
                }
                Err(error) => {
                    self.steps.push(step);
                    let error = match error.kind() {
                        ErrorKind::AlreadyExists => "there is a new file of this name".into(),
                        _ => error.to_string(),
                    };
                    return Err(format!("{shown} could not be moved back: {error}"));
                }
            }
            if let Choice::Class(class) = &step.choice
                && let Placed::Moved(_) = placed
                && let Some(class) = self.classes.iter_mut().find(|known| known.name == *class)
            {
                class.count = class.count.saturating_sub(1);
            }
            self.tidy(&step.choice);
            self.items[step.item].status = Status::Open;
            if let Err(error) = self.note(step.item, &step.choice, placed, true) {
                return Err(format!("{shown} is back, but {LABELS} cannot be written: {error}"));
            }
        }
        self.items[step.item].status = Status::Open;
        Ok(())
    }

    /// Offers another class.
    ///
    /// # Errors
    /// A sentence, if it may not be called so.
    pub fn add_class(&mut self, name: &str) -> Result<(), Trouble> {
        check_class(name)?;
        let known = self.classes.iter().map(|class| &class.name);
        if let Some(other) = known
            .clone()
            .find(|known| known.to_lowercase() == name.to_lowercase() && *known != name)
        {
            return Err(format!("there is a class {other}, which would be easily mistaken for it"));
        }
        if known.len() >= vgg_edge::head::MAX_LABELS {
            return Err(format!("a head has at most {} classes", vgg_edge::head::MAX_LABELS));
        }
        self.find_or_add(name);
        Ok(())
    }

    /// Takes up again what was skipped.
    pub fn again(&mut self) {
        for item in self.items.iter_mut().filter(|item| item.status == Status::Skipped) {
            item.status = Status::Open;
        }
    }

    fn move_out(&mut self, name: &OsStr, choice: &Choice) -> io::Result<Placed> {
        let (to, made) = self.make_target(choice)?;
        if let Choice::Class(class) = choice
            && let Some(class) = self.classes.iter_mut().find(|known| known.name == *class)
        {
            class.made |= made;
        }
        self.inbox.put(name, &to)
    }

    fn make_target(&self, choice: &Choice) -> io::Result<(Folder, bool)> {
        let (parent, name) = self.place(choice)?;
        let named = |e: io::Error| {
            io::Error::new(e.kind(), format!("{}: {e}", parent.path().join(name).display()))
        };
        parent.make(name.as_ref()).map_err(named)
    }

    fn target(&self, choice: &Choice) -> io::Result<Folder> {
        let (parent, name) = self.place(choice)?;
        parent.folder(name.as_ref())
    }

    fn place<'a>(&'a self, choice: &'a Choice) -> io::Result<(&'a Folder, &'a str)> {
        match choice {
            Choice::Class(class) => Ok((&self.data, class)),
            Choice::Reject => Ok((&self.inbox, REJECTED)),
            Choice::Skip => Err(ErrorKind::InvalidInput.into()),
        }
    }

    /// Removes a class folder that was made here and is empty again: `host train` refuses empty
    /// classes.
    fn tidy(&self, choice: &Choice) {
        match choice {
            Choice::Class(name)
                if self.classes.iter().any(|class| class.made && class.name == *name) =>
            {
                self.data.remove_empty(name.as_ref());
            }
            Choice::Reject => self.inbox.remove_empty(REJECTED.as_ref()),
            _ => {}
        }
    }

    /// Notes a decision.
    fn note(&self, id: usize, choice: &Choice, placed: &Placed, undone: bool) -> io::Result<()> {
        let item = &self.items[id];
        let (parent, folder) = self.place(choice)?;
        let (Placed::Moved(name) | Placed::Same(name, _)) = placed;
        let (here, there) =
            (self.inbox.path().join(&item.name), parent.path().join(folder).join(name));
        let (from, to) = if undone { (there, here) } else { (here, there) };
        // Paths within the folder stay true when it is moved as a whole.
        let relative = |path: &Path| {
            path.strip_prefix(self.inbox.path()).unwrap_or(path).to_string_lossy().into_owned()
        };
        let line = json!({
            "time": vgg_edge_cli::record::time(),
            "action": if undone { "undone" } else if *choice == Choice::Reject { "rejected" } else { "sorted" },
            "file": item.name.to_string_lossy(),
            "from": relative(&from),
            "to": relative(&to),
            "class": if let Choice::Class(class) = choice { Some(class) } else { None },
            "suggestion": self.suggestion(item),
        });
        self.inbox.append(LABELS.as_ref(), &line.to_string())
    }

    /// What edge said, or would have said without a threshold.
    fn suggestion<'a>(&self, item: &'a Item) -> Option<&'a str> {
        let said = item.said.as_ref()?;
        let is_class = |label: &str| self.classes.iter().any(|class| class.name == label);
        let mut labels =
            std::iter::once(&said.label).chain(said.scores.first().map(|(label, _)| label));
        labels.find(|label| is_class(label)).map(String::as_str)
    }

    fn gone(&self, name: &str) -> String {
        format!(
            "{name} is no longer in {}: something else has moved or removed it",
            self.inbox.path().display()
        )
    }

    /// What the page shows, with a sentence if a picture has vanished in the meantime.
    pub fn state(&mut self) -> (Value, Option<Trouble>) {
        let mut trouble = None;
        let mut open = Vec::new();
        for id in 0..self.items.len() {
            let item = &self.items[id];
            if item.status != Status::Open {
                continue;
            }
            if !self.inbox.has(&item.name) {
                trouble = Some(self.gone(&item.name.to_string_lossy()));
                self.items[id].status = Status::Gone;
                continue;
            }
            open.push(id);
            if open.len() == 2 {
                break;
            }
        }
        let count = |status| self.items.iter().filter(|item| item.status == status).count();
        let classes: Vec<Value> =
            self.classes.iter().map(|c| json!({ "name": c.name, "count": c.count })).collect();
        let state = json!({
            "folder": self.inbox.path().to_string_lossy(),
            "data": self.data.path().to_string_lossy(),
            "total": self.items.len(),
            "open": count(Status::Open),
            "sorted": count(Status::Sorted),
            "rejected": count(Status::Rejected),
            "skipped": count(Status::Skipped),
            "gone": count(Status::Gone),
            "steps": self.steps.len(),
            "classes": classes,
            "item": open.first().map(|&id| self.describe(id)),
            "next": open.get(1),
        });
        (state, trouble)
    }

    fn describe(&self, id: usize) -> Value {
        let item = &self.items[id];
        let mut value = json!({
            "id": id,
            "file": item.name.to_string_lossy(),
            "suggestion": self.suggestion(item),
        });
        if let Some(said) = &item.said {
            let scores: Map<String, Value> = said
                .scores
                .iter()
                .take(MOST_SCORES)
                .map(|(label, score)| (label.clone(), json!(score)))
                .collect();
            value["label"] = json!(said.label);
            value["scores"] = scores.into();
            value["time"] = json!(said.time);
            value["source"] = json!(said.source);
            value["reason"] = json!(said.reason);
        }
        value
    }

    /// How many pictures of this run went where, and how many are left.
    pub fn summary(&self) -> Value {
        let mut classes = BTreeMap::new();
        for step in &self.steps {
            if let Choice::Class(class) = &step.choice {
                *classes.entry(class.as_str()).or_insert(0) += 1;
            }
        }
        let count = |wanted: &[Status]| {
            self.items.iter().filter(|item| wanted.contains(&item.status)).count()
        };
        json!({
            "sorted": count(&[Status::Sorted]),
            "rejected": count(&[Status::Rejected]),
            "left": count(&[Status::Open, Status::Skipped]),
            "classes": classes,
        })
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        // Nothing was sorted: the folder that was made goes again.
        if let (Some(parent), Some(name)) =
            (self.data.path().parent(), self.data.path().file_name())
            && parent == self.inbox.path()
        {
            self.inbox.remove_empty(name);
        }
    }
}

/// Names within a folder, sorted, without hidden ones; `wanted` looks at the entry itself, not at
/// what a link leads to.
fn list(folder: &Path, wanted: impl Fn(&std::fs::FileType) -> bool) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(b".") && wanted(&entry.file_type()?) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    /// All files below a folder with their content, without the log.
    pub fn tree(root: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.file_name().unwrap() != LABELS {
                    let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                    found.insert(name, fs::read(path).unwrap());
                }
            }
        }
        found
    }

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (name, content) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    fn open(root: &Path) -> Desk {
        Desk::open(&root.join("in"), Some(&root.join("data")), Some(&["a".into(), "b".into()]))
            .unwrap()
    }

    #[test]
    fn the_least_sure_come_first_and_labels_become_classes() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[("1.jpg", ""), ("2.jpg", ""), ("3.jpg", ""), ("note.txt", ""), (".4.jpg", "")],
        );
        let line = |file: &str, label: &str, x: f64| {
            json!({ "file": file, "label": label, "scores": { "x": x, "y": 1.0 - x, "../up": 0.0 } }).to_string()
        };
        let lines = [
            line("2.jpg", "x", 0.9),
            line("3.jpg", "unknown", 0.4),
            line("../up.jpg", "x", 0.5),
            "{".into(),
        ];
        fs::write(root.path().join(FRAMES), lines.join("\n")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("5.jpg")).unwrap();
        let mut desk = Desk::open(root.path(), None, None).unwrap();
        assert_eq!((desk.total(), desk.bad_lines), (3, 1));
        let (state, trouble) = desk.state();
        assert_eq!(
            (&state["item"]["file"], &state["item"]["suggestion"]),
            (&json!("3.jpg"), &json!("y"))
        );
        assert_eq!(
            state["classes"],
            json!([{ "name": "x", "count": 0 }, { "name": "y", "count": 0 }])
        );
        assert_eq!(trouble, None);
        desk.decide(0, Choice::Class("y".into())).unwrap();
        assert_eq!(desk.state().0["item"]["file"], "2.jpg");
        desk.decide(1, Choice::Skip).unwrap();
        assert_eq!(desk.state().0["item"]["file"], "1.jpg");
        // A picture that has gone is told of once.
        fs::remove_file(root.path().join("1.jpg")).unwrap();
        assert!(desk.decide(2, Choice::Reject).unwrap_err().contains("no longer"));
        let (state, trouble) = desk.state();
        assert_eq!((&state["item"], &state["gone"], trouble), (&Value::Null, &json!(1), None));
        let log = fs::read_to_string(root.path().join(LABELS)).unwrap();
        let log: Value = serde_json::from_str(&log).unwrap();
        let wanted = json!({ "time": log["time"], "action": "sorted", "file": "3.jpg", "from": "3.jpg",
            "to": "sorted/y/3.jpg", "class": "y", "suggestion": "y" });
        assert_eq!(log, wanted);
    }

    #[test]
    fn names_of_classes() {
        let long = "x".repeat(LONGEST + 1);
        for bad in ["train", "", " ", " a", "a/b", "..", ".a", "a\\b", "a\nb", "\0", &long] {
            assert!(check_class(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "brown bear", "Fußgänger", "_x", "&<b>", &long[1..]] {
            assert!(check_class(good).is_ok(), "{good:?}");
        }
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &[("in/1.png", "")]);
        let mut desk = open(root.path());
        assert!(desk.add_class("train").unwrap_err().contains("half of the data"));
        assert!(desk.add_class("A").is_err());
        desk.add_class("a").unwrap();
        desk.add_class("c").unwrap();
        assert_eq!(desk.classes.len(), 3);
        assert!(desk.decide(0, Choice::Class("d".into())).unwrap_err().contains("no class"));
        desk.decide(0, Choice::Class("c".into())).unwrap();
        assert!(root.path().join("data/c").is_dir());
        desk.undo().unwrap();
        assert!(
            !root.path().join("data/c").exists(),
            "an empty class folder would end the training"
        );
        assert!(desk.undo().is_err());
    }

    #[test]
    fn a_log_that_cannot_be_written_leaves_the_picture_where_it_was() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &[("in/1.png", "1")]);
        fs::create_dir(root.path().join("in").join(LABELS)).unwrap();
        let mut desk = open(root.path());
        for choice in [Choice::Class("a".into()), Choice::Reject] {
            let words = desk.decide(0, choice).unwrap_err();
            assert!(words.contains(LABELS) && words.contains("stays where it was"), "{words}");
        }
        assert_eq!(tree(root.path()).into_keys().collect::<Vec<_>>(), ["in/1.png"]);
        // As does a class folder that is none.
        write(root.path(), &[("data/b", "")]);
        let words = desk.decide(0, Choice::Class("b".into())).unwrap_err();
        assert!(words.contains("stays where it was") && words.contains("data/b"), "{words}");
        assert_eq!(desk.state().0["open"], 1);
    }

    #[test]
    fn folders_that_training_would_mix_up_are_refused() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[("in/1.png", "1"), ("split/train/a/1.png", "1"), ("split/val/a/1.png", "1")],
        );
        for data in ["in", "."] {
            let refused = Desk::open(&root.path().join("in"), Some(&root.path().join(data)), None)
                .err()
                .unwrap();
            assert!(refused.contains("--to"), "{refused}");
        }
        let mut desk =
            Desk::open(&root.path().join("in"), Some(&root.path().join("split")), None).unwrap();
        assert!(desk.data().ends_with("split/train"));
        assert_eq!(desk.state().0["classes"], json!([{ "name": "a", "count": 1 }]));
        // A link in the place of the default folder is not followed.
        std::os::unix::fs::symlink(root.path().join("split"), root.path().join("in/sorted"))
            .unwrap();
        assert!(Desk::open(&root.path().join("in"), None, None).is_err());
    }

    #[derive(Clone, Debug)]
    enum Act {
        Decide(usize, Choice),
        Undo,
        Again,
    }

    fn act() -> impl Strategy<Value = Act> {
        let choice = prop_oneof![
            4 => prop::sample::select(vec!["a", "b"]).prop_map(|class| Choice::Class(class.to_owned())),
            2 => Just(Choice::Reject),
            1 => Just(Choice::Skip),
        ];
        prop_oneof![
            6 => (0usize..5, choice).prop_map(|(item, choice)| Act::Decide(item, choice)),
            3 => Just(Act::Undo),
            1 => Just(Act::Again),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// A model that keeps a whole picture of the disk for each step, and knows files by content
        /// alone.
        #[test]
        fn any_order_of_steps_ends_where_a_naive_model_says(
            inbox in prop::collection::vec(0u8..3, 5),
            there in prop::collection::vec(prop::option::of(0u8..3), 10),
            acts in prop::collection::vec(act(), 0..24),
        ) {
            let root = tempfile::tempdir().unwrap();
            let content = |c: u8| ["zero", "one!", "two!"][usize::from(c)];
            let name = |i: usize| format!("{i}.png");
            for (i, &c) in inbox.iter().enumerate() {
                write(root.path(), &[(&format!("in/{}", name(i)), content(c))]);
            }
            // Names that are taken already, by the same content or by another.
            for (i, c) in there.iter().enumerate().filter_map(|(i, c)| Some((i, (*c)?))) {
                write(root.path(), &[(&format!("data/{}/{}", ["a", "b"][i / 5], name(i % 5)), content(c))]);
            }
            let mut desk = open(root.path());
            let mut disk = tree(root.path());
            let mut past = Vec::new();
            for act in acts {
                match act {
                    Act::Decide(id, choice) => {
                        let from = format!("in/{}", name(id));
                        let Some(bytes) = disk.get(&from).cloned() else {
                            prop_assert!(desk.decide(id, choice).is_err());
                            continue;
                        };
                        past.push(disk.clone());
                        desk.decide(id, choice.clone()).unwrap();
                        let folder = match &choice {
                            Choice::Skip => continue,
                            Choice::Reject => format!("in/{REJECTED}"),
                            Choice::Class(class) => format!("data/{class}"),
                        };
                        let hash = vgg_edge::Fingerprint::of(&bytes).short();
                        let wanted = [format!("{folder}/{}", name(id)), format!("{folder}/{id}-{hash}.png")];
                        let free = wanted.into_iter().find(|to| disk.get(to).is_none_or(|there| *there == bytes));
                        disk.remove(&from);
                        disk.insert(free.unwrap(), bytes);
                    }
                    Act::Undo => match past.pop() {
                        Some(before) => {
                            desk.undo().unwrap();
                            disk = before;
                        }
                        None => prop_assert!(desk.undo().is_err()),
                    },
                    Act::Again => desk.again(),
                }
                prop_assert_eq!(&tree(root.path()), &disk);
                let (state, trouble) = desk.state();
                prop_assert_eq!(trouble, None);
                let left = disk.keys().filter(|name| name.starts_with("in/") && !name.contains(REJECTED)).count();
                prop_assert_eq!(state["open"].as_u64().unwrap() + state["skipped"].as_u64().unwrap(), left as u64);
            }
            while let Some(before) = past.pop() {
                desk.undo().unwrap();
                disk = before;
                prop_assert_eq!(&tree(root.path()), &disk);
            }
        }
    }
}
