//! Extraction of quantized feature maps from images, on all cores, in the order of the files
//! whatever the number of threads.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use vgg_edge::head::Pool;
use vgg_edge::image::decode::{MAX_FILE_BYTES, decode};
use vgg_edge::preprocess::{Preprocess, Quantizer};
use vgg_edge::{Backbone, Fingerprint};
use vgg_edge_cli::terminal::CancelToken;

use crate::dataset::Item;
use crate::features::cache::Cache;
use crate::features::table::{self, FeatureTable, TableBuilder};
use crate::features::workers::{FeatureWorkers, Output, Prepared};
use crate::progress::Progress;
use crate::trainer::FeatureSource;

/// How features are extracted.
#[derive(Clone, Debug)]
pub struct ExtractSettings {
    /// Number of threads.
    pub threads: usize,
    /// Directory of the feature cache.
    pub cache: Option<PathBuf>,
    /// An unreadable file is an error; otherwise it is left out.
    pub strict: bool,
    /// A storage failure is an error; otherwise images are left out that could be read on another
    /// try or another machine.
    pub fail_on_storage: bool,
}

/// Feature maps of images, as u8 with a scale per channel.
pub struct Features {
    /// Feature maps `[h, w, channels]`, channels last, one per row.
    pub table: FeatureTable,
    /// Number of values of an image.
    pub dim: usize,
    /// Scale of each channel: a feature is `q * scale`.
    pub scales: Vec<f32>,
    /// Index of each row's item; ascending.
    pub items: Vec<usize>,
    /// SHA-256 of each row's image file.
    pub hashes: Vec<Fingerprint>,
    /// Items that could not be read, and why.
    pub skipped: Vec<(PathBuf, String)>,
    /// Number of rows that came from the cache.
    pub cached: usize,
}

impl Features {
    /// Returns the quantized feature map of a row.
    ///
    /// # Errors
    /// [`vgg_edge::Error::Io`] if the row is in a file that cannot be read.
    pub fn row(&self, row: usize) -> vgg_edge::Result<Cow<'_, [u8]>> {
        self.table.row(row)
    }

    /// Returns a hash over the images of all rows and their `classes`, independent of file names
    /// and order.
    pub fn fingerprint(&self, classes: &[usize]) -> Fingerprint {
        let images = self.hashes.iter().zip(classes);
        let mut parts: Vec<Vec<u8>> = images
            .map(|(hash, &class)| [&hash.0[..], &(class as u64).to_le_bytes()].concat())
            .collect();
        parts.sort();
        Fingerprint::of_parts(parts.iter().map(Vec::as_slice))
    }
}

/// Some rows of [`Features`], dequantized batch by batch for the trainer.
pub struct Rows<'a> {
    /// The features.
    pub features: &'a Features,
    /// The rows.
    pub rows: &'a [usize],
    /// How the trainer sees each feature map, in the arithmetic of the device.
    pub pool: Pool,
}

impl FeatureSource for Rows<'_> {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn dim(&self) -> usize {
        match self.pool {
            Pool::Flatten => self.features.dim,
            Pool::Avg | Pool::Max => self.features.scales.len(),
        }
    }

    fn gather(&self, rows: &[usize], out: &mut [f32]) -> io::Result<()> {
        gather(rows, out, self, |row| self.features.row(self.rows[row]))
    }
}

/// Minimum number of rows for a thread.
const GATHER: usize = 4;

/// Implements [`FeatureSource::gather`] for the quantized feature maps that `map` returns, pooled
/// and scaled as those of `like`.
///
/// Runs on all threads: rows that are not in the page cache are read from the disk concurrently.
///
/// # Errors
/// The errors of `map`.
pub fn gather<'m>(
    rows: &[usize],
    out: &mut [f32],
    like: &Rows<'_>,
    map: impl Fn(usize) -> vgg_edge::Result<Cow<'m, [u8]>> + Sync,
) -> io::Result<()> {
    rows.par_iter()
        .with_min_len(GATHER)
        .zip(out.par_chunks_exact_mut(like.dim().max(1)))
        .try_for_each(|(&row, out)| {
            let map = map(row).map_err(io::Error::other)?;
            like.pool.features(&map, &like.features.scales, out);
            Ok(())
        })
}

/// Returns the reason why an image is left out that [`vgg_edge::durable_fs::read_limited`] fails
/// to read.
///
/// # Errors
/// With `fail_on_storage` the error itself, unless the file is at fault: on another try, or another
/// machine, the image could be read.
pub fn read_error(error: vgg_edge::Error, fail_on_storage: bool) -> vgg_edge::Result<String> {
    use rustix::io::Errno;
    const OF_THE_FILE: [Errno; 9] = [
        Errno::NOENT,
        Errno::ACCESS,
        Errno::PERM,
        Errno::ISDIR,
        Errno::NOTDIR,
        Errno::LOOP,
        Errno::NAMETOOLONG,
        Errno::NXIO,
        Errno::NODEV,
    ];
    match &error {
        vgg_edge::Error::Io { source, .. } => match source.raw_os_error() {
            Some(code)
                if fail_on_storage
                    && !OF_THE_FILE.iter().any(|known| known.raw_os_error() == code) =>
            {
                Err(error)
            }
            _ => Ok(format!("cannot read: {source}")),
        },
        other => Ok(other.to_string()),
    }
}

/// Result of an image that needs no inference.
enum Done {
    /// Its features are in the cache.
    Cached { hash: Fingerprint, features: Vec<u8> },
    /// It cannot be read, and why.
    Unreadable(String),
    /// The storage or the cache failed: the image is not at fault.
    Failed(vgg_edge::Error),
}

/// An extraction in progress: what all workers read.
struct Source<'a> {
    items: &'a [Item],
    settings: &'a ExtractSettings,
    cache: Option<RwLock<Cache>>,
}

/// An extraction in progress: what the calling thread collects.
struct Collected {
    /// `None` if the rows stay in the cache, which writes them anyway.
    builder: Option<TableBuilder>,
    hashes: Vec<Option<Fingerprint>>,
    skipped: Vec<(PathBuf, String)>,
    cached: usize,
}

/// Extracts the features of `items`.
///
/// Files that cannot be read are left out, listed in [`Features::skipped`] and logged; with
/// `strict` the first one is an error.
///
/// # Errors
/// The first unreadable file with `strict`; a failure of the cache or the engine; cancellation.
pub fn extract(
    base: &Backbone,
    preprocess: &Preprocess,
    items: &[Item],
    settings: &ExtractSettings,
    cancel: &CancelToken,
) -> Result<Features> {
    let start = Instant::now();
    let limit = table::in_memory()?;
    let open = |directory| Cache::open(directory, base.fingerprint(), preprocess);
    let cache = settings.cache.as_deref().map(open).transpose()?.map(RwLock::new);
    let dim = preprocess.feature_len();
    let in_cache = cache.is_some() && !table::fits(dim, items.len(), limit);
    let mut collected = Collected {
        builder: (!in_cache).then(|| TableBuilder::new(dim, items.len(), limit)).transpose()?,
        hashes: vec![None; items.len()],
        skipped: Vec::new(),
        cached: 0,
    };
    let source = Source { items, settings, cache };
    let progress = Progress::new(items.len() as u64, "images");
    let workers = FeatureWorkers::new(base, preprocess, settings.threads);
    let outcome = workers.run(
        items.len(),
        &|quantizer, index| source.prepare(quantizer, index),
        &mut |index, output| -> Result<()> {
            progress.inc(1);
            cancel.check()?;
            collected.add(&source, &progress, index, output)
        },
    );
    drop(progress);
    // The cache stays whole if a worker panics: it holds records that are complete.
    let mut cache =
        source.cache.map(|cache| cache.into_inner().unwrap_or_else(PoisonError::into_inner));
    if let Some(cache) = &mut cache {
        // Keeps what was computed before a failure; the failure matters more than a second one
        // here.
        let flushed = cache.flush();
        outcome.as_ref().ok().map_or(Ok(()), |()| flushed)?;
    }
    outcome.context("extraction")?;

    let Collected { builder, hashes, mut skipped, cached } = collected;
    let rows: Vec<usize> = (0..items.len()).filter(|&i| hashes[i].is_some()).collect();
    let hashes: Vec<Fingerprint> = hashes.into_iter().flatten().collect();
    let table = match (builder, cache) {
        (Some(builder), _) => builder.finish(&rows),
        (None, Some(cache)) => cache.table(&hashes)?,
        (None, None) => bail!("internal error: features without storage"),
    };
    skipped.sort();
    let seconds = start.elapsed().as_secs_f64();
    log::info!(
        "{} images in {seconds:.2} s ({:.0} per second), {cached} from the cache, {} left out",
        rows.len(),
        rows.len() as f64 / seconds.max(1e-9),
        skipped.len()
    );
    let scales = base.feature_scales().to_vec();
    Ok(Features { table, dim, scales, items: rows, hashes, skipped, cached })
}

impl Source<'_> {
    /// Returns the quantized input of an item, or a result that needs no inference.
    fn prepare(&self, quantizer: &Quantizer, index: usize) -> Prepared<Fingerprint, Done> {
        let path = &self.items[index].path;
        let bytes = match vgg_edge::durable_fs::read_limited(path, MAX_FILE_BYTES) {
            Ok(bytes) => bytes,
            Err(e) => {
                let reason = read_error(e, self.settings.fail_on_storage);
                return Prepared::Done(reason.map_or_else(Done::Failed, Done::Unreadable));
            }
        };
        let hash = Fingerprint::of(&bytes);
        if let Some(cache) = &self.cache {
            match cache.read().unwrap_or_else(PoisonError::into_inner).get(&hash) {
                Ok(Some(features)) => return Prepared::Done(Done::Cached { hash, features }),
                Ok(None) => {}
                Err(e) => return Prepared::Done(Done::Failed(e)),
            }
        }
        match decode(&bytes) {
            Ok(frame) => Prepared::Input { key: hash, input: quantizer.quantize(&frame) },
            Err(e) => Prepared::Done(Done::Unreadable(e.to_string())),
        }
    }
}

impl Collected {
    /// Adds the result of an item.
    fn add(
        &mut self,
        source: &Source<'_>,
        progress: &Progress,
        index: usize,
        output: Output<Fingerprint, Done>,
    ) -> Result<()> {
        let (hash, features, cached) = match output {
            Output::Map { key, map } => (key, map, false),
            Output::Done(Done::Cached { hash, features }) => (hash, features, true),
            Output::Done(Done::Failed(e)) => return Err(e.into()),
            Output::Done(Done::Unreadable(reason)) => {
                let path = &source.items[index].path;
                if source.settings.strict {
                    bail!("{}: {reason} (--strict)", path.display());
                }
                progress.suspend(|| log::warn!("left out: {}: {reason}", path.display()));
                self.skipped.push((path.clone(), reason));
                return Ok(());
            }
        };
        if let Some(builder) = &mut self.builder {
            builder.set(index, &features)?;
        }
        self.hashes[index] = Some(hash);
        self.cached += usize::from(cached);
        if let (Some(cache), false) = (&source.cache, cached) {
            cache.write().unwrap_or_else(PoisonError::into_inner).put(&hash, &features)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_failure_is_not_the_fault_of_the_image() {
        use rustix::io::Errno;
        let error = |errno: Errno| vgg_edge::Error::io("read", "cat.jpg")(errno.into());
        for errno in
            [Errno::IO, Errno::STALE, Errno::TIMEDOUT, Errno::NOMEM, Errno::MFILE, Errno::HOSTDOWN]
        {
            assert!(read_error(error(errno), true).is_err());
            assert!(read_error(error(errno), false).unwrap().starts_with("cannot read: "));
        }
        for errno in [Errno::NOENT, Errno::ACCESS, Errno::LOOP] {
            assert!(read_error(error(errno), true).unwrap().starts_with("cannot read: "));
        }
        // Over the size limit.
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("large"), b"123").unwrap();
        let error =
            vgg_edge::durable_fs::read_limited(&directory.path().join("large"), 2).unwrap_err();
        assert!(read_error(error, true).unwrap().contains("limit"));
    }
}
