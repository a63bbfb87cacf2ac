//! The choice of the running model: the installed one if it is valid, else the last good one.
//!
//! A thread checks the files, loads, verifies and tests new ones, and records them; the loop takes
//! the finished engine between two frames. So the loop never waits, and no frame sees half of a
//! change. The files are polled twice per second rather than watched by inotify: that costs a few
//! system calls, detects a rename, a copy, a mount and a changed link alike, on network file
//! systems too, and cannot lose an event. New files can be opened if they are in the directories
//! that the sandbox left accessible at the start.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use vgg_edge::Error;
use vgg_edge::signature::signature_path;

use crate::model::loader::{Model, ModelLoader};
use crate::model::store::{ModelId, Record};

/// Time between two checks of the files.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Time after which a failed read or write is retried: disks become free, and file systems come
/// back.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// The reason why a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// It is the installed one.
    #[default]
    InPlace,
    /// The installed one is not valid.
    LastGood,
    /// It was rolled back to.
    RolledBack,
}

/// Builds and tests the engine of a model.
pub type Make<T> = Box<dyn Fn(&Model) -> Result<T> + Send>;

/// The model to run.
pub struct ModelSpec<T> {
    /// The loader of the model.
    pub files: ModelLoader,
    /// Builds its engine.
    pub make: Make<T>,
    /// Whether models that are installed later are loaded.
    pub watch: bool,
}

/// A model to run from now on.
pub struct Swap<T> {
    /// The engine.
    pub made: T,
    /// The model.
    pub id: ModelId,
    /// The version of the head, if signatures are required.
    pub version: Option<u64>,
    /// The reason why this model runs.
    pub origin: Origin,
    /// The reason why the installed one does not run.
    pub why: Option<String>,
    /// The reason why it could not be stored, so that it is not available after a power cut.
    pub unkept: Option<String>,
}

impl<T> Swap<T> {
    /// Whether it is worth a warning, even at the start.
    pub fn is_odd(&self) -> bool {
        self.origin != Origin::InPlace || self.unkept.is_some()
    }
}

impl<T> fmt::Display for Swap<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            Origin::InPlace => write!(f, "running {}", self.id)?,
            Origin::LastGood => {
                write!(f, "running the last good {}, since the installed one cannot run", self.id)?
            }
            Origin::RolledBack => write!(f, "running the earlier {}", self.id)?,
        }
        if let Some(version) = self.version {
            write!(f, ", version {version}")?;
        }
        if let Some(why) = &self.why {
            write!(f, ": {why}")?;
        }
        if let Some(unkept) = &self.unkept {
            write!(f, "; it cannot be stored: {unkept}")?;
        }
        Ok(())
    }
}

/// An event of the model manager.
pub enum ModelEvent<T> {
    /// Another model is ready.
    Swap(Swap<T>),
    /// The result of [`ModelManager::reload`].
    Reloaded(Result<Swap<T>>),
    /// The installed model is not valid.
    Refused(anyhow::Error),
    /// One of head and base was installed, and does not match the other.
    Waiting(String),
    /// The installed model is the running one again.
    Settled,
}

/// Keeps the right model running, by a thread that loads models.
pub struct ModelManager<T> {
    specs: Sender<ModelSpec<T>>,
    events: Receiver<ModelEvent<T>>,
}

impl<T: Send + 'static> ModelManager<T> {
    /// Returns the first model to run, and starts the thread.
    ///
    /// # Errors
    /// If neither the installed nor a stored model can run, or another process uses the state
    /// directory.
    pub fn start(spec: ModelSpec<T>) -> Result<(Swap<T>, Self)> {
        let claim = claim(&spec.files, None)?;
        let (files, record) = (ModelStamps::of_installed(&spec), FileStamp::of_record(&spec));
        let loaded = guarded(|| spec.files.load(None));
        let (swap, model) = choose(&spec, loaded, None, true)?.parts();
        let worker = Worker {
            running: model,
            origin: swap.origin,
            reported: swap.why.clone(),
            loaded: files.clone(),
            checked: files,
            unsettled: None,
            record,
            retry_at: None,
            claim,
            spec,
        };
        let (specs, jobs) = mpsc::channel();
        let (sender, events) = mpsc::channel();
        std::thread::Builder::new()
            .name("manager".into())
            .spawn(move || worker.run(&jobs, &sender))?;
        Ok((swap, Self { specs, events }))
    }

    /// Loads everything again for another specification; [`ModelEvent::Reloaded`] follows.
    ///
    /// # Errors
    /// If the thread has ended.
    pub fn reload(&self, spec: ModelSpec<T>) -> Result<()> {
        self.specs.send(spec).map_err(|_| ended())
    }

    /// Returns the next event, if there is one; never waits.
    ///
    /// # Errors
    /// If the thread has ended, so that no new model would ever be loaded.
    pub fn news(&self) -> Result<Option<ModelEvent<T>>> {
        match self.events.try_recv() {
            Ok(event) => Ok(Some(event)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(ended()),
        }
    }
}

fn ended() -> anyhow::Error {
    anyhow!("internal error: the thread that loads models has ended")
}

/// The properties of a file that change when it is replaced or written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileStamp {
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    fn of_record<T>(spec: &ModelSpec<T>) -> Option<Self> {
        Self::of(&spec.files.state()?.record_path())
    }
}

/// The stamps of head and base, each with that of its signature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ModelStamps([[Option<FileStamp>; 2]; 2]);

impl ModelStamps {
    fn of_installed<T>(spec: &ModelSpec<T>) -> Self {
        if !spec.watch {
            return Self::default();
        }
        Self(
            spec.files
                .paths()
                .map(|path| [FileStamp::of(path), FileStamp::of(&signature_path(path))]),
        )
    }
}

/// A model that can run.
struct Candidate<T> {
    made: T,
    model: Model,
    origin: Origin,
    why: Option<String>,
    unkept: Option<String>,
}

impl<T> Candidate<T> {
    fn parts(self) -> (Swap<T>, Model) {
        let Self { made, model, origin, why, unkept } = self;
        let version = model.head_signed.map(|signed| signed.version);
        (Swap { made, id: model.id, version, origin, why, unkept }, model)
    }
}

/// Chooses the installed model, as it was `loaded`; or a stored one, if that is not valid and
/// another may run, or if it was rolled back from.
fn choose<T>(
    spec: &ModelSpec<T>,
    loaded: Result<Model>,
    running: Option<&Model>,
    fall_back: bool,
) -> Result<Candidate<T>> {
    let record = spec.files.record()?;
    let refused = match loaded {
        Ok(model) if record.held == Some(model.id) => {
            return choose_rolled_back(spec, model, running, &record);
        }
        Ok(model) => match installed(spec, model) {
            Ok(candidate) => return Ok(candidate),
            Err(e) => e,
        },
        Err(e) => e,
    };
    let nothing_stored = record.current.is_none() && record.previous.is_none();
    if !fall_back || nothing_stored {
        return Err(refused);
    }
    let why = format!("{refused:#}");
    for id in [record.current, record.previous] {
        if let Ok(candidate) = stored(spec, id, running, Origin::LastGood, why.clone()) {
            return Ok(candidate);
        }
    }
    Err(refused.context("the last good model cannot run either"))
}

/// Chooses the model that was rolled back to; the installed one, which was rolled back from, only
/// if there is nothing else.
fn choose_rolled_back<T>(
    spec: &ModelSpec<T>,
    model: Model,
    running: Option<&Model>,
    record: &Record,
) -> Result<Candidate<T>> {
    let why = format!("the installed {} was rolled back from", model.id);
    match stored(spec, record.current, running, Origin::RolledBack, why) {
        Ok(candidate) => Ok(candidate),
        // The model that was rolled back to may be the one that runs, from memory.
        Err(e) if running.is_some_and(|running| Some(running.id) == record.current) => Err(e
            .context(format!(
                "{} was rolled back from, and the copy of the running model is damaged",
                model.id
            ))),
        // Better the one that was rolled back from than none.
        Err(e) => {
            let mut candidate = installed(spec, model)?;
            let reason = format!("the model that was rolled back to cannot run: {e:#}");
            candidate.unkept.get_or_insert(reason);
            Ok(candidate)
        }
    }
}

/// The installed model: tested, then stored, then run.
fn installed<T>(spec: &ModelSpec<T>, mut model: Model) -> Result<Candidate<T>> {
    let made = guarded(|| (spec.make)(&model))?;
    let unkept = match spec.files.accept(&model) {
        Ok(()) => None,
        // Without a record of it, an older one could be installed again.
        Err(e) if spec.files.is_trusting() => {
            return Err(e.context("cannot record it in the state directory"));
        }
        Err(e) => Some(format!("{e:#}")),
    };
    model.forget_bytes();
    Ok(Candidate { made, model, origin: Origin::InPlace, why: None, unkept })
}

/// A stored model.
fn stored<T>(
    spec: &ModelSpec<T>,
    id: Option<ModelId>,
    running: Option<&Model>,
    origin: Origin,
    why: String,
) -> Result<Candidate<T>> {
    let id = id.context("no model is stored")?;
    let mut model = guarded(|| spec.files.load_kept(id, running))?;
    let made = guarded(|| (spec.make)(&model))?;
    model.forget_bytes();
    Ok(Candidate { made, model, origin, why: Some(why), unkept: None })
}

/// Turns a panic into an error: a file that a parser panics on is not valid, and must not end the
/// program.
fn guarded<R>(work: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(anyhow!("internal error while loading the model")))
}

/// Claims the state directory for this process, unless it has the claim already.
fn claim(files: &ModelLoader, before: Option<&(PathBuf, File)>) -> Result<Option<(PathBuf, File)>> {
    match files.state() {
        Some(state) if before.is_none_or(|(directory, _)| directory != state.directory()) => {
            Ok(Some((state.directory().to_owned(), state.claim()?)))
        }
        _ => Ok(None),
    }
}

/// The thread.
struct Worker<T> {
    spec: ModelSpec<T>,
    running: Model,
    origin: Origin,
    /// The lock of the state directory.
    claim: Option<(PathBuf, File)>,
    /// The files when the running model was loaded.
    loaded: ModelStamps,
    /// The files at the last check that had a result.
    checked: ModelStamps,
    /// Other files that were found at the last check, and may still be changing.
    unsettled: Option<ModelStamps>,
    record: Option<FileStamp>,
    /// When to retry files that were refused for a transient reason.
    retry_at: Option<Instant>,
    /// The last message about the installed model, so that it is reported once.
    reported: Option<String>,
}

impl<T> Worker<T> {
    fn run(mut self, jobs: &Receiver<ModelSpec<T>>, events: &Sender<ModelEvent<T>>) {
        loop {
            // With nothing to check it sleeps.
            let idle = !self.spec.watch && self.spec.files.state().is_none();
            let event = match jobs.recv_timeout(if idle { Duration::MAX } else { POLL_INTERVAL }) {
                Ok(spec) => Some(ModelEvent::Reloaded(self.reload(spec))),
                Err(RecvTimeoutError::Timeout) => self.check(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Some(event) = event
                && events.send(event).is_err()
            {
                return;
            }
        }
    }

    /// Makes a candidate the running model; `files` are those that were there before it was loaded.
    fn take(&mut self, candidate: Candidate<T>, files: ModelStamps) -> Swap<T> {
        let (swap, model) = candidate.parts();
        (self.running, self.origin, self.reported) = (model, swap.origin, swap.why.clone());
        (self.loaded, self.checked) = (files.clone(), files);
        (self.unsettled, self.retry_at) = (None, None);
        swap
    }

    fn reload(&mut self, spec: ModelSpec<T>) -> Result<Swap<T>> {
        let claim = claim(&spec.files, self.claim.as_ref())?;
        let files = ModelStamps::of_installed(&spec);
        // Settings can be changed while the installed model is as invalid as before.
        let loaded = guarded(|| spec.files.load(Some(&self.running)));
        let fall_back = self.origin == Origin::LastGood;
        let candidate = choose(&spec, loaded, Some(&self.running), fall_back)?;
        self.spec = spec;
        if claim.is_some() || self.spec.files.state().is_none() {
            self.claim = claim;
        }
        Ok(self.take(candidate, files))
    }

    /// Checks for a rollback and for installed files.
    fn check(&mut self) -> Option<ModelEvent<T>> {
        let record = FileStamp::of_record(&self.spec);
        // A record that cannot be read at the moment is read again at the next check.
        if record != self.record
            && let Ok(found) = self.spec.files.record()
        {
            self.record = record;
            if let Some(event) = self.rolled_back(&found) {
                return Some(event);
            }
        }
        let files = ModelStamps::of_installed(&self.spec);
        let retry = self.retry_at.is_some_and(|at| Instant::now() >= at);
        if files == self.checked && !retry {
            self.unsettled = None;
            return None;
        }
        // A copy grows, and a base comes before its head: files that still change are loaded once
        // they have settled.
        if files != self.checked && self.unsettled.as_ref() != Some(&files) {
            self.unsettled = Some(files);
            return None;
        }
        (self.unsettled, self.retry_at) = (None, None);
        self.checked = files.clone();
        self.load(files)
    }

    /// Loads the installed files.
    fn load(&mut self, files: ModelStamps) -> Option<ModelEvent<T>> {
        let loaded = guarded(|| self.spec.files.load(Some(&self.running)));
        if self.origin == Origin::InPlace
            && loaded.as_ref().is_ok_and(|model| model.is_same(&self.running))
        {
            self.loaded = files;
            return self.reported.take().map(|_| ModelEvent::Settled);
        }
        match choose(&self.spec, loaded, Some(&self.running), false) {
            // The model that is held back was installed once more.
            Ok(candidate)
                if candidate.origin == Origin::RolledBack
                    && candidate.model.is_same(&self.running) =>
            {
                None
            }
            Ok(candidate) => Some(ModelEvent::Swap(self.take(candidate, files))),
            Err(e) => self.refuse(e, &files),
        }
    }

    /// Reports an installed model that cannot run, once.
    fn refuse(&mut self, error: anyhow::Error, files: &ModelStamps) -> Option<ModelEvent<T>> {
        let is_transient = error.chain().any(|cause| cause.is::<io::Error>());
        self.retry_at = is_transient.then(|| Instant::now() + RETRY_INTERVAL);
        let message = format!("{error:#}");
        if self.reported.as_ref() == Some(&message) {
            return None;
        }
        self.reported = Some(message.clone());
        let stamps = files.0.iter().zip(&self.loaded.0);
        let replaced = stamps.filter(|(now, before)| now != before).count();
        let misfit = matches!(error.downcast_ref(), Some(Error::WrongBase { .. }));
        Some(if misfit && replaced == 1 {
            ModelEvent::Waiting(message)
        } else {
            ModelEvent::Refused(error)
        })
    }

    /// Loads the model that `edge rollback` went back to since the last check, if any.
    fn rolled_back(&mut self, record: &Record) -> Option<ModelEvent<T>> {
        let &Record { current, held, .. } = record;
        if held != Some(self.running.id) || current.is_none_or(|current| current == self.running.id)
        {
            return None;
        }
        let files = ModelStamps::of_installed(&self.spec);
        // Going back twice leads to the installed model.
        let back = guarded(|| self.spec.files.load(Some(&self.running)))
            .ok()
            .filter(|model| current == Some(model.id));
        let candidate = match back {
            Some(model) => installed(&self.spec, model),
            None => {
                let why = format!("{} was rolled back from", self.running.id);
                stored(&self.spec, current, Some(&self.running), Origin::RolledBack, why)
            }
        };
        Some(match candidate {
            Ok(candidate) => ModelEvent::Swap(self.take(candidate, files)),
            Err(e) => ModelEvent::Refused(e.context("cannot roll back")),
        })
    }
}
