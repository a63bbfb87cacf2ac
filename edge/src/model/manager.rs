//! Which head and base run: what was put in place if it is good, else the last good pair.
//!
//! A thread looks at the files, loads, verifies and tries what is new, and writes it down; the loop
//! takes the finished engine between two frames. So it never waits, and no frame sees half of a
//! change. The files are looked at twice a second rather than watched by inotify: that costs a few
//! system calls, sees a rename, a copy, a mount and a changed link alike, on network file systems
//! too, and cannot lose an event. What it sees it can open within the folders that the sandbox left
//! open at the start.

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

/// Time between two looks at the files.
const POLL: Duration = Duration::from_millis(500);

/// Time after which what could not be read or written down is tried again: disks become free, and
/// file systems come back.
const AGAIN: Duration = Duration::from_secs(60);

/// Why that pair runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// It is what was put in place.
    #[default]
    InPlace,
    /// What was put in place is bad.
    LastGood,
    /// Somebody went back to it.
    RolledBack,
}

/// What makes an engine of a pair, and tries it.
pub type Make<T> = Box<dyn Fn(&Model) -> Result<T> + Send>;

/// What is to run.
pub struct ModelSpec<T> {
    /// Where the pair is.
    pub files: ModelLoader,
    /// What becomes of it.
    pub make: Make<T>,
    /// Whether what is put in place later is taken.
    pub watch: bool,
}

/// Something to run from now on.
pub struct Swap<T> {
    /// What was made of the pair.
    pub made: T,
    /// The pair.
    pub id: ModelId,
    /// The version of the head, if signatures are demanded.
    pub version: Option<u64>,
    /// Why it is that one.
    pub origin: Origin,
    /// Why it is not the one in place.
    pub why: Option<String>,
    /// Why it could not be kept, so that it is not there after a power cut.
    pub unkept: Option<String>,
}

impl<T> Swap<T> {
    /// Whether somebody should hear of it, even at the start.
    pub fn is_odd(&self) -> bool {
        self.origin != Origin::InPlace || self.unkept.is_some()
    }
}

impl<T> fmt::Display for Swap<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            Origin::InPlace => write!(f, "runs {} now", self.id)?,
            Origin::LastGood => {
                write!(f, "runs the last good {}, since what is in place cannot run", self.id)?
            }
            Origin::RolledBack => write!(f, "runs {} again", self.id)?,
        }
        if let Some(version) = self.version {
            write!(f, ", version {version}")?;
        }
        if let Some(why) = &self.why {
            write!(f, ": {why}")?;
        }
        if let Some(unkept) = &self.unkept {
            write!(f, "; it cannot be kept: {unkept}")?;
        }
        Ok(())
    }
}

/// What the thread tells.
pub enum ModelEvent<T> {
    /// Another pair is ready.
    Swap(Swap<T>),
    /// The answer to [`ModelManager::reload`].
    Reloaded(Result<Swap<T>>),
    /// What was put in place is bad.
    Refused(anyhow::Error),
    /// One of head and base was put in place, and belongs to another.
    Waiting(String),
    /// What is in place is again what runs.
    Settled,
}

/// The loop's side of the thread.
pub struct ModelManager<T> {
    plans: Sender<ModelSpec<T>>,
    news: Receiver<ModelEvent<T>>,
}

impl<T: Send + 'static> ModelManager<T> {
    /// Gives what to run at first, and starts the thread.
    ///
    /// # Errors
    /// If neither what is in place nor what was kept can run, or another process uses the state
    /// folder.
    pub fn start(plan: ModelSpec<T>) -> Result<(Swap<T>, Self)> {
        let claim = claim(&plan.files, None)?;
        let (places, record) = (Stamps::of_places(&plan), Stamp::of_record(&plan));
        let loaded = guarded(|| plan.files.load(None));
        let (swap, pair) = choose(&plan, loaded, None, true)?.parts();
        let worker = Worker {
            running: pair,
            origin: swap.origin,
            told: swap.why.clone(),
            loaded: places.clone(),
            places,
            unsettled: None,
            record,
            again: None,
            claim,
            plan,
        };
        let (plans, jobs) = mpsc::channel();
        let (sender, news) = mpsc::channel();
        std::thread::Builder::new()
            .name("manager".into())
            .spawn(move || worker.run(&jobs, &sender))?;
        Ok((swap, Self { plans, news }))
    }

    /// Has everything loaded again for another plan; [`ModelEvent::Reloaded`] is the answer.
    ///
    /// # Errors
    /// If the thread has ended.
    pub fn reload(&self, plan: ModelSpec<T>) -> Result<()> {
        self.plans.send(plan).map_err(|_| ended())
    }

    /// What there is to tell; never waits.
    ///
    /// # Errors
    /// If the thread has ended, so that nothing new would ever be taken.
    pub fn news(&self) -> Result<Option<ModelEvent<T>>> {
        match self.news.try_recv() {
            Ok(news) => Ok(Some(news)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(ended()),
        }
    }
}

fn ended() -> anyhow::Error {
    anyhow!("the thread that loads heads has ended")
}

/// What a file system says of a file that changes when it is replaced or written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
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

    fn of_record<T>(plan: &ModelSpec<T>) -> Option<Self> {
        Self::of(&plan.files.state()?.record_path())
    }
}

/// Head and base, each with its signature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stamps([[Option<Stamp>; 2]; 2]);

impl Stamps {
    fn of_places<T>(plan: &ModelSpec<T>) -> Self {
        if !plan.watch {
            return Self::default();
        }
        Self(plan.files.paths().map(|path| [Stamp::of(path), Stamp::of(&signature_path(path))]))
    }
}

/// A pair that can run.
struct Candidate<T> {
    made: T,
    pair: Model,
    origin: Origin,
    why: Option<String>,
    unkept: Option<String>,
}

impl<T> Candidate<T> {
    fn parts(self) -> (Swap<T>, Model) {
        let Self { made, pair, origin, why, unkept } = self;
        let version = pair.head_signed.map(|signed| signed.version);
        (Swap { made, id: pair.id, version, origin, why, unkept }, pair)
    }
}

/// What is in place, as it was `loaded`; or what was kept, if that is bad and something else may
/// run, or if it was rolled back from.
fn choose<T>(
    plan: &ModelSpec<T>,
    loaded: Result<Model>,
    running: Option<&Model>,
    fall_back: bool,
) -> Result<Candidate<T>> {
    let record = plan.files.record()?;
    let refused = match loaded {
        Ok(pair) if record.held == Some(pair.id) => {
            let why = format!("{} is in place, but was rolled back from", pair.id);
            match kept(plan, record.current, running, Origin::RolledBack, why) {
                Ok(choice) => return Ok(choice),
                // What was gone back to may be the one that runs, from memory.
                Err(e) if running.is_some_and(|running| Some(running.id) == record.current) => {
                    return Err(e.context(format!(
                        "{} was rolled back from, and what runs was kept badly",
                        pair.id
                    )));
                }
                // Better the one that was rolled back from than none.
                Err(e) => {
                    let mut choice = in_place(plan, pair)?;
                    choice.unkept.get_or_insert(format!("what was gone back to cannot run: {e:#}"));
                    return Ok(choice);
                }
            }
        }
        Ok(pair) => match in_place(plan, pair) {
            Ok(choice) => return Ok(choice),
            Err(e) => e,
        },
        Err(e) => e,
    };
    let nothing_kept = record.current.is_none() && record.previous.is_none();
    if !fall_back || nothing_kept {
        return Err(refused);
    }
    let why = format!("{refused:#}");
    for id in [record.current, record.previous] {
        if let Ok(choice) = kept(plan, id, running, Origin::LastGood, why.clone()) {
            return Ok(choice);
        }
    }
    Err(refused.context("the last good pair cannot run either"))
}

/// The pair in place: tried, then kept, then run.
fn in_place<T>(plan: &ModelSpec<T>, mut pair: Model) -> Result<Candidate<T>> {
    let made = guarded(|| (plan.make)(&pair))?;
    let unkept = match plan.files.accept(&pair) {
        Ok(()) => None,
        // What is not written down could be played in again.
        Err(e) if plan.files.is_trusting() => {
            return Err(e.context("the state folder cannot take it"));
        }
        Err(e) => Some(format!("{e:#}")),
    };
    pair.forget_bytes();
    Ok(Candidate { made, pair, origin: Origin::InPlace, why: None, unkept })
}

/// A pair that was kept.
fn kept<T>(
    plan: &ModelSpec<T>,
    id: Option<ModelId>,
    running: Option<&Model>,
    origin: Origin,
    why: String,
) -> Result<Candidate<T>> {
    let id = id.context("nothing was kept")?;
    let mut pair = guarded(|| plan.files.load_kept(id, running))?;
    let made = guarded(|| (plan.make)(&pair))?;
    pair.forget_bytes();
    Ok(Candidate { made, pair, origin, why: Some(why), unkept: None })
}

/// A file that brings a parser down is a bad file, and must not bring down what runs.
fn guarded<R>(work: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(anyhow!("loading it failed in an unforeseen way")))
}

/// Takes the state folder for this process, unless that was done before.
fn claim(files: &ModelLoader, before: Option<&(PathBuf, File)>) -> Result<Option<(PathBuf, File)>> {
    match files.state() {
        Some(state) if before.is_none_or(|(folder, _)| folder != state.folder()) => {
            Ok(Some((state.folder().to_owned(), state.claim()?)))
        }
        _ => Ok(None),
    }
}

/// The thread.
struct Worker<T> {
    plan: ModelSpec<T>,
    running: Model,
    origin: Origin,
    /// The lock of the state folder.
    claim: Option<(PathBuf, File)>,
    /// What was there when the pair was loaded that runs.
    loaded: Stamps,
    /// What was there at the last look that led to something.
    places: Stamps,
    /// Something else that is there since the last look, and may still be in the making.
    unsettled: Option<Stamps>,
    record: Option<Stamp>,
    /// When to look again at what was refused for a reason that may pass.
    again: Option<Instant>,
    /// What was told last of what is in place, so that it is told once.
    told: Option<String>,
}

impl<T> Worker<T> {
    fn run(mut self, jobs: &Receiver<ModelSpec<T>>, news: &Sender<ModelEvent<T>>) {
        loop {
            // With nothing to look at it sleeps.
            let idle = !self.plan.watch && self.plan.files.state().is_none();
            let told = match jobs.recv_timeout(if idle { Duration::MAX } else { POLL }) {
                Ok(plan) => Some(ModelEvent::Reloaded(self.reload(plan))),
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Some(told) = told
                && news.send(told).is_err()
            {
                return;
            }
        }
    }

    fn take(&mut self, choice: Candidate<T>, places: Stamps) -> Swap<T> {
        let (swap, pair) = choice.parts();
        (self.running, self.origin, self.told) = (pair, swap.origin, swap.why.clone());
        (self.loaded, self.places, self.unsettled, self.again) =
            (places.clone(), places, None, None);
        swap
    }

    fn reload(&mut self, plan: ModelSpec<T>) -> Result<Swap<T>> {
        let claim = claim(&plan.files, self.claim.as_ref())?;
        let places = Stamps::of_places(&plan);
        // Settings can be changed while what is in place is as bad as before.
        let loaded = guarded(|| plan.files.load(Some(&self.running)));
        let choice = choose(&plan, loaded, Some(&self.running), self.origin == Origin::LastGood)?;
        self.plan = plan;
        if claim.is_some() || self.plan.files.state().is_none() {
            self.claim = claim;
        }
        Ok(self.take(choice, places))
    }

    /// Looks whether there is something new.
    fn look(&mut self) -> Option<ModelEvent<T>> {
        let record = Stamp::of_record(&self.plan);
        // One that cannot be read just now is looked at again.
        if record != self.record
            && let Ok(found) = self.plan.files.record()
        {
            self.record = record;
            if let Some(swap) = self.rolled_back(&found) {
                return Some(swap);
            }
        }
        let places = Stamps::of_places(&self.plan);
        let again = self.again.is_some_and(|at| Instant::now() >= at);
        if places == self.places && !again {
            self.unsettled = None;
            return None;
        }
        // A copy grows, and a base comes before its head: what still changes is looked at when it
        // has come to rest.
        if places != self.places && self.unsettled.as_ref() != Some(&places) {
            self.unsettled = Some(places);
            return None;
        }
        (self.unsettled, self.again) = (None, None);
        self.places = places.clone();
        let loaded = guarded(|| self.plan.files.load(Some(&self.running)));
        if self.origin == Origin::InPlace
            && loaded.as_ref().is_ok_and(|pair| pair.is_same(&self.running))
        {
            self.loaded = places;
            return self.told.take().map(|_| ModelEvent::Settled);
        }
        match choose(&self.plan, loaded, Some(&self.running), false) {
            // The one that is held back was put in place once more.
            Ok(choice)
                if choice.origin == Origin::RolledBack && choice.pair.is_same(&self.running) =>
            {
                None
            }
            Ok(choice) => Some(ModelEvent::Swap(self.take(choice, places))),
            Err(e) => {
                self.again =
                    e.chain().any(|cause| cause.is::<io::Error>()).then(|| Instant::now() + AGAIN);
                let words = format!("{e:#}");
                if self.told.as_ref() == Some(&words) {
                    return None;
                }
                self.told = Some(words.clone());
                let replaced = places
                    .0
                    .iter()
                    .zip(&self.loaded.0)
                    .filter(|(now, before)| now != before)
                    .count();
                let misfit = matches!(e.downcast_ref(), Some(Error::WrongBase { .. }));
                Some(if misfit && replaced == 1 {
                    ModelEvent::Waiting(words)
                } else {
                    ModelEvent::Refused(e)
                })
            }
        }
    }

    /// The pair that somebody went back to since, by `edge rollback`.
    fn rolled_back(&mut self, record: &Record) -> Option<ModelEvent<T>> {
        let &Record { current, held, .. } = record;
        if held != Some(self.running.id) || current.is_none_or(|current| current == self.running.id)
        {
            return None;
        }
        let places = Stamps::of_places(&self.plan);
        // Going back twice leads to what is in place.
        let back = guarded(|| self.plan.files.load(Some(&self.running)))
            .ok()
            .filter(|pair| current == Some(pair.id));
        let choice = match back {
            Some(pair) => in_place(&self.plan, pair),
            None => {
                let why = format!("{} was rolled back from", self.running.id);
                kept(&self.plan, current, Some(&self.running), Origin::RolledBack, why)
            }
        };
        Some(match choice {
            Ok(choice) => ModelEvent::Swap(self.take(choice, places)),
            Err(e) => ModelEvent::Refused(e.context("cannot go back")),
        })
    }
}
