//! Training set of each epoch: variants of the images, run through the frozen backbone.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::Instant;

use vgg_edge::Fingerprint;
use vgg_edge::image::decode::{MAX_FILE_BYTES, decode};
use vgg_edge::image::resize::Rect;
use vgg_edge::preprocess::Quantizer;
use vgg_edge_cli::terminal::{CancelToken, Interrupted, UsageError, shows_progress};

use super::Augmentation;
use crate::dataset::Item;
use crate::features::extraction::{Features, Rows, gather};
use crate::features::table::{self, FeatureTable, TableBuilder};
use crate::features::workers::{FeatureWorkers, Output, Prepared};
use crate::progress::Progress;
use crate::trainer::FeatureSource;

/// Bytes of resized images that are kept (87,000 images of 64 px, 7,000 of 224 px); the others are
/// decoded again in each epoch.
const KEPT_BYTES: usize = 1 << 30;

/// How a training is augmented.
#[derive(Clone, Debug)]
pub struct AugmentSettings {
    /// Ranges of the variants.
    pub augmentation: Augmentation,
    /// Number of sets of variants that take turns with the originals; `None` makes a new set for
    /// each epoch.
    pub variants: Option<u16>,
}

impl AugmentSettings {
    /// Returns the text of the training record; it starts with a comma.
    pub fn record(&self) -> String {
        let augmentation = &self.augmentation;
        match self.variants {
            None => format!(", {augmentation} anew in each epoch"),
            Some(k) => format!(", {augmentation} in {k} variants"),
        }
    }
}

/// Failure to make the variants of an epoch.
#[derive(Debug, thiserror::Error)]
pub enum VariantError {
    /// An image cannot be read again.
    #[error("{path}: {source}")]
    Image {
        /// The image file.
        path: PathBuf,
        /// The reason.
        source: vgg_edge::Error,
    },
    /// An image was replaced.
    #[error("{0}: changed since it was first read; start again")]
    Changed(PathBuf),
    /// The backbone or the feature table failed.
    #[error(transparent)]
    Engine(#[from] vgg_edge::Error),
    /// The bound of features in memory is not a number.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The training was canceled.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// An image at the size of the input, and where it lies within the square.
struct Resized {
    rgb: Vec<u8>,
    target: Rect,
}

/// Training set of the current epoch.
#[derive(Clone, Copy, PartialEq)]
enum Current {
    Originals,
    /// Index of a table.
    Table(usize),
}

/// Feature tables `[rows, dim]` of the sets of variants, and which one is in use.
struct Tables {
    current: Current,
    tables: Vec<Option<FeatureTable>>,
}

/// Rows of [`Features`] that are other variants of their images in each epoch.
pub struct Variants<'a> {
    settings: AugmentSettings,
    seed: u64,
    workers: FeatureWorkers<'a>,
    items: &'a [Item],
    originals: Rows<'a>,
    cancel: &'a CancelToken,
    /// Resized images by row, as far as there is room.
    images: Vec<OnceLock<Resized>>,
    kept_bytes: AtomicUsize,
    tables: RwLock<Tables>,
}

impl<'a> Variants<'a> {
    /// Creates the source without making variants yet. `originals` are the rows to train on, and
    /// `items` the images that their [`Features`] were extracted from.
    pub fn new(
        settings: AugmentSettings,
        seed: u64,
        workers: FeatureWorkers<'a>,
        items: &'a [Item],
        originals: Rows<'a>,
        cancel: &'a CancelToken,
    ) -> Self {
        let tables = (0..settings.variants.unwrap_or(1)).map(|_| None).collect();
        Self {
            settings,
            seed,
            workers,
            items,
            images: (0..originals.rows.len()).map(|_| OnceLock::new()).collect(),
            originals,
            cancel,
            kept_bytes: AtomicUsize::new(0),
            tables: RwLock::new(Tables { current: Current::Originals, tables }),
        }
    }

    fn features(&self) -> &'a Features {
        self.originals.features
    }

    /// Returns the quantized input of a row's variant.
    fn input(
        &self,
        quantizer: &Quantizer,
        row: usize,
        number: u64,
    ) -> Result<Vec<u8>, VariantError> {
        let table_row = self.originals.rows[row];
        let content = &self.features().hashes[table_row];
        let read;
        let image = match self.images[row].get() {
            Some(image) => image,
            None => {
                let path = &self.items[self.features().items[table_row]].path;
                let new = self.read(quantizer, path, content)?;
                let bytes = new.rgb.len();
                if self.kept_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= KEPT_BYTES {
                    self.images[row].get_or_init(|| new)
                } else {
                    self.kept_bytes.fetch_sub(bytes, Ordering::Relaxed);
                    read = new;
                    &read
                }
            }
        };
        let variant = self.settings.augmentation.variant(
            self.seed,
            number,
            content,
            &image.rgb,
            image.target.width,
        );
        Ok(quantizer.quantize_resized(&variant, image.target))
    }

    fn read(
        &self,
        quantizer: &Quantizer,
        path: &Path,
        content: &Fingerprint,
    ) -> Result<Resized, VariantError> {
        let unreadable =
            |source: vgg_edge::Error| VariantError::Image { path: path.to_owned(), source };
        let bytes = vgg_edge::durable_fs::read_limited(path, MAX_FILE_BYTES).map_err(unreadable)?;
        if Fingerprint::of(&bytes) != *content {
            return Err(VariantError::Changed(path.to_owned()));
        }
        let (rgb, target) = quantizer.resized(&decode(&bytes).map_err(unreadable)?);
        Ok(Resized { rgb, target })
    }

    /// Makes the feature maps of set `number` of variants.
    fn make(&self, number: u64, epoch: usize) -> Result<FeatureTable, VariantError> {
        let start = Instant::now();
        let (rows, dim) = (self.images.len(), self.features().dim);
        let progress = Progress::new(rows as u64, "variants");
        progress.message(format!("epoch {epoch}"));
        // All tables together are within the bound.
        let limit = table::in_memory()? / u64::from(self.settings.variants.unwrap_or(1));
        let mut builder = TableBuilder::new(dim, rows, limit)?;
        self.workers.run(
            rows,
            &|quantizer, row| match self.input(quantizer, row, number) {
                Ok(input) => Prepared::Input { key: (), input },
                Err(e) => Prepared::Done(e),
            },
            &mut |row, output| {
                self.cancel.check()?;
                match output {
                    Output::Map { map, .. } => builder.set(row, &map)?,
                    Output::Done(e) => return Err(e),
                }
                progress.inc(1);
                Ok(())
            },
        )?;
        drop(progress);
        self.cancel.check()?;
        if !shows_progress() {
            let seconds = start.elapsed().as_secs_f64();
            let rate = rows as f64 / seconds.max(1e-9);
            log::info!("epoch {epoch}: {rows} variants in {seconds:.2} s ({rate:.0} per second)");
        }
        Ok(builder.finish(&(0..rows).collect::<Vec<_>>()))
    }

    /// Makes the training set of an epoch current.
    fn prepare_epoch(&self, epoch: usize) -> Result<(), VariantError> {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let (index, number) = match self.settings.variants {
            None => (0, epoch as u64),
            // The originals come first.
            Some(count) => match (epoch - 1) % (usize::from(count) + 1) {
                0 => {
                    tables.current = Current::Originals;
                    return Ok(self.cancel.check()?);
                }
                number => (number - 1, number as u64),
            },
        };
        if self.settings.variants.is_none() {
            // Before the next one is made, so that there is never more than one in memory.
            tables.tables[index] = None;
        }
        if tables.tables[index].is_none() {
            tables.tables[index] = Some(self.make(number, epoch)?);
        }
        tables.current = Current::Table(index);
        Ok(())
    }
}

impl FeatureSource for Variants<'_> {
    fn prepare(&self, epoch: usize) -> Result<ControlFlow<()>, String> {
        match self.prepare_epoch(epoch) {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(VariantError::Interrupted(_)) => Ok(ControlFlow::Break(())),
            Err(e) => Err(e.to_string()),
        }
    }

    fn len(&self) -> usize {
        self.originals.len()
    }

    fn dim(&self) -> usize {
        self.originals.dim()
    }

    fn gather(&self, rows: &[usize], out: &mut [f32]) -> io::Result<()> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let table = match tables.current {
            Current::Originals => None,
            Current::Table(index) => tables.tables[index].as_ref(),
        };
        let Some(table) = table else { return self.originals.gather(rows, out) };
        gather(rows, out, &self.originals, |row| table.row(row))
    }
}
