//! Pictures to quantized feature maps, on all cores, in the order of the files whatever the number
//! of threads.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, mpsc};
use std::time::Instant;

use anyhow::{Context, Result};
use rayon::prelude::*;
use vgg_edge::head::Pool;
use vgg_edge::image::decode::{MAX_FILE_BYTES, decode};
use vgg_edge::preprocess::Preprocess;
use vgg_edge::{Backbone, Fingerprint};

use crate::PROGRAM;
use crate::cli::options::ExtractOptions;
use crate::dataset::Item;
use crate::features::cache::Cache;
use crate::features::table::{self, Draft, Table};
use crate::progress::Meter;
use crate::trainer::FeatureSource;

/// Feature maps of pictures, as u8 with a scale for each channel.
pub struct Features {
    /// `[len, h, w, channels]`, channels last.
    pub table: Table,
    /// Values of one picture.
    pub dim: usize,
    /// A feature is `q * scale`, with the scale of its channel.
    pub scales: Vec<f32>,
    /// For each row, which of the items it belongs to; ascending.
    pub items: Vec<usize>,
    /// SHA-256 of each row's picture file.
    pub hashes: Vec<Fingerprint>,
    /// Items that could not be read, and why.
    pub skipped: Vec<(PathBuf, String)>,
    /// How many rows came from the cache.
    pub cached: usize,
}

impl Features {
    /// One picture's quantized features.
    ///
    /// # Errors
    /// If they are in a file that cannot be read.
    pub fn row(&self, row: usize) -> vgg_edge::Result<Cow<'_, [u8]>> {
        self.table.row(row)
    }

    /// One hash over the pictures of all rows and their `classes`, whatever their names and order.
    pub fn fingerprint(&self, classes: &[usize]) -> Fingerprint {
        let pictures = self.hashes.iter().zip(classes);
        let mut parts: Vec<Vec<u8>> = pictures
            .map(|(hash, &class)| [&hash.0[..], &(class as u64).to_le_bytes()].concat())
            .collect();
        parts.sort();
        Fingerprint::of_parts(parts.iter().map(Vec::as_slice))
    }
}

/// Some rows of [`Features`], dequantized batch by batch: what the trainer reads.
pub struct Rows<'a> {
    /// The table.
    pub features: &'a Features,
    /// The rows.
    pub rows: &'a [usize],
    /// What the trainer sees of each map, in the arithmetic of the device.
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

/// Rows that are worth a thread's while.
const GATHER: usize = 4;

/// [`FeatureSource::gather`] of quantized maps that `map` gives, seen as `like` sees its own.
///
/// On all threads: rows that are not in the page cache are asked of the disk at the same time.
///
/// # Errors
/// Those of `map`.
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

/// Pictures that a worker runs together: as many as make the work of one of 256 px, if each worker
/// has some.
pub fn batch(size: u32, each: usize) -> usize {
    let fit = (256 / size.max(1)).pow(2) as usize;
    fit.min(each / 4).max(1)
}

/// Why a picture is left out that [`vgg_edge::durable_fs::read_limited`] does not read.
///
/// # Errors
/// With `fail_on_storage` the error itself, if it is not the file's fault: on another try, or
/// another machine, the picture could be read.
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

/// What a worker makes of one picture.
enum Done {
    Features {
        hash: Fingerprint,
        features: Vec<u8>,
        cached: bool,
    },
    Unreadable(String),
    /// The engine or the cache failed: nothing to do with the picture.
    Broken(vgg_edge::Error),
}

/// Extracts the features of `items`.
///
/// Files that cannot be read are left out, listed in [`Features::skipped`] and told on stderr; with
/// `strict` the first one is an error.
///
/// # Errors
/// The first unreadable file with `strict`, trouble with the cache or the engine, Ctrl-C.
pub fn extract(
    base: &Backbone,
    preprocess: &Preprocess,
    items: &[Item],
    options: &ExtractOptions,
) -> Result<Features> {
    let start = Instant::now();
    let limit = table::in_memory()?;
    let cache = match &options.cache {
        Some(folder) => Some(RwLock::new(Cache::open(folder, base.fingerprint(), preprocess)?)),
        None => None,
    };
    let dim = preprocess.feature_len();
    // Many rows are left to the cache, which writes them anyway.
    let mut draft = match &cache {
        Some(_) if !table::fits(dim, items.len(), limit) => None,
        _ => Some(Draft::new(dim, items.len(), limit)?),
    };
    let mut hashes: Vec<Option<Fingerprint>> = vec![None; items.len()];
    let mut skipped = Vec::new();
    let mut cached_count = 0;
    let threads = options.threads().min(items.len()).max(1);
    let batch = batch(preprocess.size, items.len() / threads);
    let bar = Meter::new(items.len() as u64, "pictures");
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let outcome: Result<()> = std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::sync_channel::<(usize, Done)>(2 * threads);
        for _ in 0..threads {
            let (sender, next, stop, cache) = (sender.clone(), &next, &stop, cache.as_ref());
            let mut runner = base.runner(None)?;
            let quantizer = preprocess.quantizer();
            scope.spawn(move || {
                // The quantized input, or what there is to say without the base.
                let prepare = |item: &Item| -> Result<(Fingerprint, Vec<u8>), Done> {
                    let bytes = match vgg_edge::durable_fs::read_limited(&item.path, MAX_FILE_BYTES)
                    {
                        Ok(bytes) => bytes,
                        Err(e) => {
                            return Err(read_error(e, options.fail_on_storage)
                                .map_or_else(Done::Broken, Done::Unreadable));
                        }
                    };
                    let hash = Fingerprint::of(&bytes);
                    if let Some(cache) = cache {
                        match cache.read().unwrap_or_else(PoisonError::into_inner).get(&hash) {
                            Ok(Some(features)) => {
                                return Err(Done::Features { hash, features, cached: true });
                            }
                            Ok(None) => {}
                            Err(e) => return Err(Done::Broken(e)),
                        }
                    }
                    let frame = match decode(&bytes) {
                        Ok(frame) => frame,
                        Err(e) => return Err(Done::Unreadable(e.to_string())),
                    };
                    Ok((hash, quantizer.quantize(&frame)))
                };
                let mut inputs = Vec::new();
                let mut waiting: Vec<(usize, Fingerprint)> = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let item = items.get(index).filter(|_| !stop.load(Ordering::Relaxed));
                    match item.map(prepare) {
                        Some(Ok((hash, input))) => {
                            inputs.extend(input);
                            waiting.push((index, hash));
                        }
                        // The receiver is gone after a failure: there is nobody to work for.
                        Some(Err(done)) => {
                            let Ok(()) = sender.send((index, done)) else { return };
                        }
                        None => {}
                    }
                    if waiting.len() == batch || (item.is_none() && !waiting.is_empty()) {
                        let maps = match runner.batch(&inputs, waiting.len(), preprocess.size) {
                            Ok(maps) => maps,
                            Err(e) => {
                                // It ends the extraction, so nobody misses an answer.
                                let _ = sender.send((waiting[0].0, Done::Broken(e)));
                                return;
                            }
                        };
                        inputs.clear();
                        for ((index, hash), map) in waiting.drain(..).zip(maps.chunks_exact(dim)) {
                            let done =
                                Done::Features { hash, features: map.to_vec(), cached: false };
                            let Ok(()) = sender.send((index, done)) else { return };
                        }
                    }
                    if item.is_none() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut finish = || -> Result<()> {
            for (index, done) in &receiver {
                bar.inc(1);
                if vgg_edge_cli::terminal::interrupted() {
                    return Err(vgg_edge_cli::terminal::Interrupted.into());
                }
                match done {
                    Done::Features { hash, features, cached } => {
                        if let Some(draft) = &mut draft {
                            draft.set(index, &features)?;
                        }
                        hashes[index] = Some(hash);
                        cached_count += usize::from(cached);
                        if let (Some(cache), false) = (&cache, cached) {
                            cache
                                .write()
                                .unwrap_or_else(PoisonError::into_inner)
                                .put(&hash, &features)?;
                        }
                    }
                    Done::Unreadable(reason) if options.strict => {
                        anyhow::bail!("{}: {reason} (--strict)", items[index].path.display());
                    }
                    Done::Unreadable(reason) => {
                        let path = items[index].path.clone();
                        bar.suspend(|| {
                            vgg_edge_cli::terminal::note(
                                PROGRAM,
                                format_args!("left out: {}: {reason}", path.display()),
                            )
                        });
                        skipped.push((path, reason));
                    }
                    Done::Broken(e) => return Err(e.into()),
                }
            }
            Ok(())
        };
        let outcome = finish();
        // Lets workers go that wait for room in the channel or would take up another picture.
        stop.store(true, Ordering::Relaxed);
        drop(receiver);
        outcome
    });
    drop(bar);
    // The cache stays whole if a worker panics: it holds records that are complete.
    let mut cache = cache.map(|cache| cache.into_inner().unwrap_or_else(PoisonError::into_inner));
    if let Some(cache) = &mut cache {
        // What was computed before a failure is kept; the failure matters more than a second one
        // here.
        let flushed = cache.flush();
        outcome.as_ref().ok().map_or(Ok(()), |()| flushed)?;
    }
    outcome.context("extraction")?;

    let rows: Vec<usize> = (0..items.len()).filter(|&i| hashes[i].is_some()).collect();
    let hashes: Vec<Fingerprint> = hashes.into_iter().flatten().collect();
    let table = match (draft, cache) {
        (Some(draft), _) => draft.table(&rows),
        (None, Some(cache)) => cache.table(&hashes)?,
        (None, None) => anyhow::bail!("features have no place"),
    };
    skipped.sort();
    let seconds = start.elapsed().as_secs_f64();
    vgg_edge_cli::terminal::note(
        PROGRAM,
        format_args!(
            "{} pictures in {seconds:.2} s ({:.0} a second), {cached_count} from the cache, {} left out",
            rows.len(),
            rows.len() as f64 / seconds.max(1e-9),
            skipped.len()
        ),
    );
    Ok(Features {
        table,
        dim,
        scales: base.feature_scales().to_vec(),
        items: rows,
        hashes,
        skipped,
        cached: cached_count,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_that_fails_is_not_the_pictures_fault() {
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
        // Over the limit of bytes.
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("large"), b"123").unwrap();
        let error =
            vgg_edge::durable_fs::read_limited(&folder.path().join("large"), 2).unwrap_err();
        assert!(read_error(error, true).unwrap().contains("limit"));
    }
}
