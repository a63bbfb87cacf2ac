//! The training set of each epoch: variants of the pictures, run through the frozen base.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use vgg_edge::backbone::Runner;
use vgg_edge::image::decode::{MAX_FILE_BYTES, decode};
use vgg_edge::image::resize::Rect;
use vgg_edge::preprocess::{Preprocess, Quantizer};
use vgg_edge::{Backbone, Fingerprint};
use vgg_edge_cli::terminal::{interrupted, note, shows_progress};

use super::{AugmentOptions, Augmentation};
use crate::PROGRAM;
use crate::dataset::Item;
use crate::features::extraction::{Features, Rows, batch, gather};
use crate::features::table::{self, Draft, Table};
use crate::progress::Meter;
use crate::trainer::FeatureSource;

/// Resized pictures are kept up to so many bytes (87,000 of 64 px, 7,000 of 224 px); the others are
/// decoded again in each epoch.
const KEPT_BYTES: usize = 1 << 30;

/// Flags of augmentation that only training has.
#[derive(Clone, clap::Args)]
pub struct VariantsOptions {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would take it for the help of the command")]
    pub augment: AugmentOptions,

    /// Makes only K variants of each picture, once, and takes turns with them and the originals:
    /// later epochs need no base. Else each epoch has new ones
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub variants: Option<u16>,
}

impl VariantsOptions {
    /// What was asked for, checked.
    ///
    /// # Errors
    /// As [`AugmentOptions::resolve`], and for a number of variants of nothing.
    pub fn resolve(&self) -> anyhow::Result<Option<Augmentation>> {
        let augmentation = self.augment.resolve()?;
        if self.variants.is_some() && augmentation.is_none() {
            let words = "--variants says how many variants are made; add --augment or one of its parts, such as --rotation";
            anyhow::bail!(vgg_edge_cli::terminal::UsageError(words.into()));
        }
        Ok(augmentation)
    }

    /// What the record in the head says; empty if nothing was asked for.
    pub fn words(&self) -> String {
        match (self.augment.resolve(), self.variants) {
            (Ok(Some(augmentation)), None) => format!(", {augmentation} anew in each epoch"),
            (Ok(Some(augmentation)), Some(k)) => format!(", {augmentation} in {k} variants"),
            _ => String::new(),
        }
    }
}

/// A picture at the size of the input, and where in its square it lies.
struct Resized {
    rgb: Vec<u8>,
    target: Rect,
}

/// What an epoch is trained on.
#[derive(Clone, Copy, PartialEq)]
enum Current {
    Originals,
    /// A place among the tables.
    Table(usize),
}

/// Rows of [`Features`] that are other variants of their pictures in each epoch.
///
/// Each worker decodes, warps and runs the base on a batch of its own, as in
/// [`crate::features::extraction::extract`]: all cores are at work all the time, and the base is
/// most of it. Which worker takes which batch does not matter to the bits.
pub struct Variants<'a> {
    augmentation: Augmentation,
    /// How many sets of variants take turns with the originals; `None`: a new one for each epoch.
    count: Option<usize>,
    seed: u64,
    base: &'a Backbone,
    preprocess: &'a Preprocess,
    items: &'a [Item],
    originals: Rows<'a>,
    threads: usize,
    /// Resized pictures by row, those that there is room for.
    pictures: Vec<OnceLock<Resized>>,
    kept_bytes: AtomicUsize,
    /// They keep their memory from epoch to epoch.
    runners: Mutex<Vec<Runner>>,
    /// The quantized feature maps of each set of variants, `[rows, dim]`.
    tables: RwLock<(Current, Vec<Option<Table>>)>,
}

impl<'a> Variants<'a> {
    /// Nothing is made yet. `originals` are the rows to train on, `items` what their [`Features`]
    /// were extracted of.
    #[allow(clippy::too_many_arguments, reason = "all of it is needed to make a variant")]
    pub fn new(
        augmentation: Augmentation,
        count: Option<u16>,
        seed: u64,
        base: &'a Backbone,
        preprocess: &'a Preprocess,
        items: &'a [Item],
        originals: Rows<'a>,
        threads: usize,
    ) -> Self {
        let count = count.map(usize::from);
        let pictures = (0..originals.rows.len()).map(|_| OnceLock::new()).collect();
        let tables = (0..count.unwrap_or(1)).map(|_| None).collect();
        Self {
            augmentation,
            count,
            seed,
            base,
            preprocess,
            items,
            originals,
            threads,
            pictures,
            kept_bytes: AtomicUsize::new(0),
            runners: Mutex::default(),
            tables: RwLock::new((Current::Originals, tables)),
        }
    }

    fn features(&self) -> &'a Features {
        self.originals.features
    }

    /// The quantized input of a row's variant.
    fn input(&self, quantizer: &Quantizer, row: usize, number: u64) -> Result<Vec<u8>, String> {
        let table_row = self.originals.rows[row];
        let content = &self.features().hashes[table_row];
        let read;
        let picture = match self.pictures[row].get() {
            Some(picture) => picture,
            None => {
                let path = &self.items[self.features().items[table_row]].path;
                let new = self
                    .read(quantizer, path, content)
                    .map_err(|e| format!("{}: {e}", path.display()))?;
                let bytes = new.rgb.len();
                if self.kept_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= KEPT_BYTES {
                    self.pictures[row].get_or_init(|| new)
                } else {
                    self.kept_bytes.fetch_sub(bytes, Ordering::Relaxed);
                    read = new;
                    &read
                }
            }
        };
        let variant = self.augmentation.variant(
            self.seed,
            number,
            content,
            &picture.rgb,
            picture.target.width,
        );
        Ok(quantizer.quantize_resized(&variant, picture.target))
    }

    fn read(
        &self,
        quantizer: &Quantizer,
        path: &Path,
        content: &Fingerprint,
    ) -> Result<Resized, String> {
        let bytes =
            vgg_edge::durable_fs::read_limited(path, MAX_FILE_BYTES).map_err(|e| e.to_string())?;
        if Fingerprint::of(&bytes) != *content {
            return Err("it has changed since it was first read; start again".into());
        }
        let (rgb, target) = quantizer.resized(&decode(&bytes).map_err(|e| e.to_string())?);
        Ok(Resized { rgb, target })
    }

    /// The feature maps of set `number` of variants; `None` after Ctrl-C.
    fn make(&self, number: u64, epoch: usize) -> Result<Option<Table>, String> {
        let start = Instant::now();
        let (rows, dim) = (self.pictures.len(), self.features().dim);
        let threads = self.threads.min(rows).max(1);
        let batch = batch(self.preprocess.size, rows / threads);
        let bar = Meter::new(rows as u64, "variants");
        bar.message(format!("epoch {epoch}"));
        // All tables together are within the bound.
        let limit = table::in_memory().map_err(|e| e.to_string())? / self.count.unwrap_or(1) as u64;
        let draft = Mutex::new(Draft::new(dim, rows, limit).map_err(|e| e.to_string())?);
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<String>> = Mutex::new(None);
        let work = || -> Result<(), String> {
            let runner = lock(&self.runners).pop();
            let mut runner = match runner {
                Some(runner) => runner,
                None => self.base.runner(None).map_err(|e| e.to_string())?,
            };
            let quantizer = self.preprocess.quantizer();
            let mut inputs = Vec::new();
            while !interrupted() && lock(&failed).is_none() {
                let first = next.fetch_add(batch, Ordering::Relaxed);
                if first >= rows {
                    break;
                }
                inputs.clear();
                let count = batch.min(rows - first);
                for row in first..first + count {
                    inputs.extend(self.input(&quantizer, row, number)?);
                }
                let maps = runner
                    .batch(&inputs, count, self.preprocess.size)
                    .map_err(|e| e.to_string())?;
                for (row, map) in (first..).zip(maps.chunks_exact(dim)) {
                    lock(&draft).set(row, map).map_err(|e| e.to_string())?;
                }
                bar.inc(count as u64);
            }
            lock(&self.runners).push(runner);
            Ok(())
        };
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    if let Err(e) = work() {
                        lock(&failed).get_or_insert(e);
                    }
                });
            }
        });
        drop(bar);
        if interrupted() {
            return Ok(None);
        }
        if let Some(e) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(e);
        }
        if !shows_progress() {
            let seconds = start.elapsed().as_secs_f64();
            let rate = rows as f64 / seconds.max(1e-9);
            note(
                PROGRAM,
                format_args!(
                    "epoch {epoch}: {rows} variants in {seconds:.2} s ({rate:.0} a second)"
                ),
            );
        }
        let draft = draft.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Some(draft.table(&(0..rows).collect::<Vec<_>>())))
    }
}

impl FeatureSource for Variants<'_> {
    fn prepare(&self, epoch: usize) -> Result<ControlFlow<()>, String> {
        let (place, number) = match self.count {
            None => (0, epoch as u64),
            // The originals come first.
            Some(count) => match (epoch - 1) % (count + 1) {
                0 => {
                    self.tables.write().unwrap_or_else(PoisonError::into_inner).0 =
                        Current::Originals;
                    return Ok(if interrupted() {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    });
                }
                number => (number - 1, number as u64),
            },
        };
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        if self.count.is_none() {
            // Before the next one is made: there is never more than one in memory.
            tables.1[place] = None;
        }
        if tables.1[place].is_none() {
            match self.make(number, epoch)? {
                Some(table) => tables.1[place] = Some(table),
                None => return Ok(ControlFlow::Break(())),
            }
        }
        tables.0 = Current::Table(place);
        Ok(ControlFlow::Continue(()))
    }

    fn len(&self) -> usize {
        self.originals.len()
    }

    fn dim(&self) -> usize {
        self.originals.dim()
    }

    fn gather(&self, rows: &[usize], out: &mut [f32]) -> io::Result<()> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let table = match tables.0 {
            Current::Originals => None,
            Current::Table(place) => tables.1[place].as_ref(),
        };
        let Some(table) = table else { return self.originals.gather(rows, out) };
        gather(rows, out, &self.originals, |row| table.row(row))
    }
}

/// What the locks hold is whole between two operations, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
