//! Decisions: images moved, logged, and moved back.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::path::Path;

use serde_json::json;

use super::super::directory::{Directory, Placed};
use super::{Choice, LABELS, LabelSession, REJECTED, Status, Step, UserError};

impl LabelSession {
    /// Carries out a decision on an image that is not yet moved.
    ///
    /// # Errors
    /// [`UserError`]; unless it says otherwise, the image is where it was.
    pub fn decide(&mut self, id: usize, choice: Choice) -> Result<(), UserError> {
        let Some(item) = self.items.get(id).filter(|item| item.is_undecided()) else {
            return Err(UserError::AlreadyDecided);
        };
        let name = item.name.clone();
        let file = name.to_string_lossy().into_owned();
        let placed = match &choice {
            Choice::Skip => None,
            Choice::Class(class) if !self.classes.iter().any(|known| known.name == *class) => {
                return Err(UserError::UnknownClass(class.clone()));
            }
            Choice::Class(_) | Choice::Reject => match self.move_out(&name, &choice) {
                Ok(placed) => Some(placed),
                Err(_) if !self.inbox.has(&name) => {
                    self.remove_if_empty(&choice);
                    self.items[id].status = Status::Gone;
                    return Err(self.gone(&file));
                }
                Err(source) => {
                    self.remove_if_empty(&choice);
                    return Err(UserError::NotMoved { file, source });
                }
            },
        };
        if let Some(placed) = &placed
            && let Err(source) = self.log(id, &choice, placed, false)
        {
            let back = self.target(&choice).and_then(|to| self.inbox.take_back(&name, &to, placed));
            self.remove_if_empty(&choice);
            let directory = self.inbox.path().to_owned();
            return Err(match back {
                Ok(()) => UserError::NotLogged { file, directory, source },
                Err(back) => {
                    // The image is there, so it counts, and can be undone later.
                    self.record(id, choice, Some(placed.clone()));
                    UserError::NotMovedBack { file, directory, source, back }
                }
            });
        }
        self.record(id, choice, placed);
        Ok(())
    }

    /// Keeps a decision that was carried out.
    fn record(&mut self, id: usize, choice: Choice, placed: Option<Placed>) {
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

    /// Undoes the last step.
    ///
    /// # Errors
    /// [`UserError`].
    pub fn undo(&mut self) -> Result<(), UserError> {
        let Some(step) = self.steps.pop() else { return Err(UserError::NothingToUndo) };
        let Some(placed) = &step.placed else {
            self.items[step.item].status = Status::Open;
            return Ok(());
        };
        let name = self.items[step.item].name.clone();
        let file = name.to_string_lossy().into_owned();
        let back =
            self.target(&step.choice).and_then(|from| self.inbox.take_back(&name, &from, placed));
        match back {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // An image that has vanished must not block the steps before.
                self.items[step.item].status = Status::Gone;
                return Err(UserError::NotUndoable(file));
            }
            Err(error) => {
                self.steps.push(step);
                return Err(UserError::UndoFailed { file, reason: error.into() });
            }
        }
        if let (Choice::Class(class), Placed::Moved(_)) = (&step.choice, placed)
            && let Some(class) = self.classes.iter_mut().find(|known| known.name == *class)
        {
            class.count = class.count.saturating_sub(1);
        }
        self.remove_if_empty(&step.choice);
        self.items[step.item].status = Status::Open;
        self.log(step.item, &step.choice, placed, true)
            .map_err(|source| UserError::UndoNotLogged { file, source })
    }

    /// Offers the skipped images again.
    pub fn unskip(&mut self) {
        for item in self.items.iter_mut().filter(|item| item.status == Status::Skipped) {
            item.status = Status::Open;
        }
    }

    fn move_out(&mut self, name: &OsStr, choice: &Choice) -> io::Result<Placed> {
        let (to, created) = self.create_target(choice)?;
        if let Choice::Class(class) = choice
            && let Some(class) = self.classes.iter_mut().find(|known| known.name == *class)
        {
            class.created |= created;
        }
        self.inbox.put(name, &to)
    }

    fn create_target(&self, choice: &Choice) -> io::Result<(Directory, bool)> {
        let (parent, name) = self.place(choice)?;
        let named = |e: io::Error| {
            io::Error::new(e.kind(), format!("{}: {e}", parent.path().join(name).display()))
        };
        parent.create(name.as_ref()).map_err(named)
    }

    fn target(&self, choice: &Choice) -> io::Result<Directory> {
        let (parent, name) = self.place(choice)?;
        parent.subdirectory(name.as_ref())
    }

    /// The parent and the name of the directory that a choice moves to.
    fn place<'a>(&'a self, choice: &'a Choice) -> io::Result<(&'a Directory, &'a str)> {
        match choice {
            Choice::Class(class) => Ok((&self.data, class)),
            Choice::Reject => Ok((&self.inbox, REJECTED)),
            Choice::Skip => Err(ErrorKind::InvalidInput.into()),
        }
    }

    /// Removes a class directory that was created here and is empty again: `host train` refuses
    /// empty classes.
    fn remove_if_empty(&self, choice: &Choice) {
        match choice {
            Choice::Class(name)
                if self.classes.iter().any(|class| class.created && class.name == *name) =>
            {
                self.data.remove_empty(name.as_ref());
            }
            Choice::Reject => self.inbox.remove_empty(REJECTED.as_ref()),
            _ => {}
        }
    }

    /// Appends a decision to [`LABELS`].
    fn log(&self, id: usize, choice: &Choice, placed: &Placed, undone: bool) -> io::Result<()> {
        let item = &self.items[id];
        let (parent, directory) = self.place(choice)?;
        let (Placed::Moved(name) | Placed::Same(name, _)) = placed;
        let (here, there) =
            (self.inbox.path().join(&item.name), parent.path().join(directory).join(name));
        let (from, to) = if undone { (there, here) } else { (here, there) };
        // Relative paths stay true when the directory is moved as a whole.
        let relative = |path: &Path| {
            path.strip_prefix(self.inbox.path()).unwrap_or(path).to_string_lossy().into_owned()
        };
        let action = match choice {
            _ if undone => "undone",
            Choice::Reject => "rejected",
            _ => "sorted",
        };
        let line = json!({
            "time": vgg_edge_cli::record::time(),
            "action": action,
            "file": item.name.to_string_lossy(),
            "from": relative(&from),
            "to": relative(&to),
            "class": if let Choice::Class(class) = choice { Some(class) } else { None },
            "suggestion": self.suggestion(item),
        });
        self.inbox.append(LABELS.as_ref(), &line.to_string())
    }

    /// The error for an image that has vanished.
    pub(super) fn gone(&self, file: &str) -> UserError {
        UserError::Gone { file: file.to_owned(), directory: self.inbox.path().to_owned() }
    }
}
