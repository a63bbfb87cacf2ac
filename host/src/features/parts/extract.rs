//! `host extract --shard`: extracts a part, or finds that it exists.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::file::{FileError, Run, Writer};
use super::set::find;
use super::{Entry, ListBuilder, Manifest, Outcome, Part, Shard, ranges};
use crate::dataset::{self, Item, Walked};
use crate::features::extraction::{ExtractSettings, Features, extract, read_error};
use anyhow::{Result, bail};
use rayon::prelude::*;
use vgg_edge::image::decode::{MAX_FILE_BYTES, decode};
use vgg_edge::preprocess::Preprocess;
use vgg_edge::{Backbone, Fingerprint};
use vgg_edge_cli::terminal::CancelToken;

/// Bytes of a part that are read at once when it is verified.
const PIECE: usize = 1 << 20;

/// Which part is extracted, and where.
pub struct PartSettings {
    /// The data directory.
    pub data: PathBuf,
    /// The part.
    pub shard: Shard,
    /// Directory of the parts.
    pub directory: PathBuf,
    /// Extraction of the features.
    pub extract: ExtractSettings,
}

/// Result of [`extract_part`].
pub struct ExtractedPart {
    /// The file.
    pub path: PathBuf,
    /// Number of images, readable or not.
    pub images: u64,
    /// Number of images that have features.
    pub rows: u64,
    /// Number of features that came from the cache.
    pub cached: usize,
    /// Whether the part existed before.
    pub kept: bool,
}

/// Extracts a part of a data directory into a file, which is renamed into place whole.
///
/// If the part exists, with the same images to the byte and the same settings, it is left as it is.
///
/// # Errors
/// A path that is not a data directory; parts of another run in the directory of the parts; images
/// that changed since the part was made; a storage failure, in contrast to files that are not
/// images; the errors of [`extract`].
pub fn extract_part(
    base: &Backbone,
    preprocess: &Preprocess,
    settings: &PartSettings,
    cancel: &CancelToken,
) -> Result<ExtractedPart> {
    let PartSettings { data, shard, directory, extract: extract_settings } = settings;
    std::fs::create_dir_all(directory).map_err(vgg_edge::Error::io("create", directory))?;
    let path = directory.join(shard.file_name());
    vgg_edge::durable_fs::check_writable(&path)?;
    let (numbers, items, run) = list(base, preprocess, data, *shard)?;
    check_neighbors(directory, *shard, &run)?;
    let threads = rayon::ThreadPoolBuilder::new().num_threads(extract_settings.threads).build()?;
    if let Some(kept) = threads.install(|| existing(&path, settings, &run, &items, cancel))? {
        log::info!("{}: exists, with the same images", path.display());
        if extract_settings.strict && kept.rows < kept.images {
            bail!(
                "{}: {} images are left out of it (--strict)",
                path.display(),
                kept.images - kept.rows
            );
        }
        return Ok(kept);
    }

    let extract_settings = ExtractSettings { fail_on_storage: true, ..extract_settings.clone() };
    let features = extract(base, preprocess, &items, &extract_settings, cancel)?;
    let index = index_of(&numbers, &items, &features, data)?;
    // Another job may have started in the same directory meanwhile.
    check_neighbors(directory, *shard, &run)?;
    let manifest = Manifest {
        run,
        shard: *shard,
        entries: items.len() as u64,
        index_len: index.len() as u64,
        rows: features.items.len() as u64,
    };
    vgg_edge::durable_fs::write_atomic::<anyhow::Error>(&path, |file| {
        let mut writer = Writer::new(file, &path, &manifest)?;
        writer.bytes(&index)?;
        writer.seal()?;
        for row in 0..features.items.len() {
            writer.bytes(&features.row(row)?)?;
        }
        Ok(writer.seal()?)
    })?;
    let Manifest { entries: images, rows, .. } = manifest;
    Ok(ExtractedPart { path, images, rows, cached: features.cached, kept: false })
}

/// Returns the records of the items, whose positions in the list are `numbers`.
fn index_of(numbers: &[u64], items: &[Item], features: &Features, data: &Path) -> Result<Vec<u8>> {
    let mut unreadable: HashMap<&Path, &String> =
        features.skipped.iter().map(|(path, reason)| (&**path, reason)).collect();
    let mut index = Vec::new();
    let mut hashes = features.hashes.iter();
    for (number, Item { path, class }) in numbers.iter().zip(items) {
        let outcome = match unreadable.remove(&**path) {
            Some(reason) => Outcome::Unreadable(reason.clone()),
            None => match hashes.next() {
                Some(&hash) => Outcome::Row(hash),
                None => bail!("{}: internal error: neither read nor left out", path.display()),
            },
        };
        let name = relative(path, data).to_vec();
        Entry { item: *number, class: *class as u32, name, outcome }.append(&mut index)?;
    }
    Ok(index)
}

fn relative<'a>(path: &'a Path, data: &Path) -> &'a [u8] {
    path.strip_prefix(data).unwrap_or(path).as_os_str().as_bytes()
}

/// Returns the images of the part, their positions in the list, and what the parts have in common.
fn list(
    base: &Backbone,
    preprocess: &Preprocess,
    data: &Path,
    shard: Shard,
) -> Result<(Vec<u64>, Vec<Item>, Run)> {
    let mut builder = ListBuilder::default();
    let (mut numbers, mut items) = (Vec::new(), Vec::new());
    // Nothing of the images of other parts is kept: there may be many, and a part on each core.
    let Walked { classes, train, ignored } = dataset::walk(data, &mut |item| {
        let name = relative(&item.path, data);
        let number = builder.pictures;
        builder.add(item.class, name);
        if Shard::of(name, shard.count) == shard.index {
            numbers.push(number);
            items.push(item);
        }
    })?;
    let set = builder.finish(classes, train.map(|train| train as u64));
    if ignored > 0 {
        log::info!("{ignored} files without an image extension are ignored");
    }
    let Shard { index, count } = shard;
    log::info!("part {index} of {count}: {} of {} images", items.len(), set.pictures);
    Ok((numbers, items, Run::new(base, preprocess, set)))
}

/// Checks that the parts in the directory are of the same run, as far as this one and the first of
/// the others show: better now than at the merge, and a part of another job is not overwritten.
fn check_neighbors(directory: &Path, shard: Shard, run: &Run) -> Result<()> {
    let found = find(directory)?;
    if let Some((count, indices)) = found.iter().find(|(count, _)| **count != shard.count) {
        bail!(
            "{}: there are parts of {count} ({}), not of {}; name another directory, or remove \
             them",
            directory.display(),
            ranges(indices, ", "),
            shard.count
        );
    }
    let (own, others): (Vec<u32>, Vec<u32>) =
        found.values().flatten().partition(|&&index| index == shard.index);
    for index in own.into_iter().chain(others.into_iter().take(1)) {
        let path = directory.join(Shard { index, ..shard }.file_name());
        // The merge reports damaged parts.
        if let Ok(part) = Part::open(&path)
            && let Some(difference) = part.manifest.run.difference(run)
        {
            bail!(
                "{}: it is {difference}; name another directory, or remove its part",
                path.display()
            );
        }
    }
    Ok(())
}

/// Returns the existing part, if it is whole and of the same images; `None` if it must be made.
fn existing(
    path: &Path,
    settings: &PartSettings,
    run: &Run,
    items: &[Item],
    cancel: &CancelToken,
) -> Result<Option<ExtractedPart>> {
    let data = &settings.data;
    let remade = |e: FileError| match e {
        FileError::Damaged { .. } => {
            log::warn!("{e}; it is made again");
            Ok(None)
        }
        FileError::Io(vgg_edge::Error::Io { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(None)
        }
        e => Err(e.into()),
    };
    let part = match Part::open(path) {
        Ok(part) => part,
        Err(e) => return remade(e),
    };
    let advice = "remove it to make it again, or name another directory";
    if let Some(difference) = part.manifest.run.difference(run) {
        bail!("{}: it is {difference}; {advice}", path.display());
    }
    let mut entries = Vec::new();
    let mut index = part.index(PIECE);
    loop {
        match index.next_entry() {
            Ok(Some((entry, _))) => entries.push(entry),
            Ok(None) => break,
            Err(e) => return remade(e),
        }
    }
    if let Err(e) = part.verify_rows(PIECE, || cancel.is_canceled()) {
        return remade(e);
    }
    let same = |(entry, item): (&Entry, &Item)| relative(&item.path, data) == entry.name;
    if part.manifest.shard != settings.shard
        || entries.len() != items.len()
        || !entries.iter().zip(items).all(same)
    {
        bail!("{}: its name does not match its content; {advice}", path.display());
    }
    // The same bytes give the same features; unreadable images must still be unreadable.
    let changed = entries.par_iter().zip(items).find_map_first(|(entry, item)| {
        if let Err(e) = cancel.check() {
            return Some(Err(e.into()));
        }
        match outcome(item, &entry.outcome) {
            Ok(outcome) if outcome == entry.outcome => None,
            Ok(_) => Some(Ok(&item.path)),
            Err(e) => Some(Err(anyhow::Error::from(e))),
        }
    });
    if let Some(changed) = changed.transpose()? {
        let changed = changed.display();
        bail!("{}: {changed} has changed since the part was made; {advice}", path.display());
    }
    let Manifest { entries: images, rows, .. } = part.manifest;
    Ok(Some(ExtractedPart { path: path.to_owned(), images, rows, cached: 0, kept: true }))
}

/// Returns the outcome of an image now; it is only decoded if it could not be, `before`.
fn outcome(item: &Item, before: &Outcome) -> vgg_edge::Result<Outcome> {
    let bytes = match vgg_edge::durable_fs::read_limited(&item.path, MAX_FILE_BYTES) {
        Ok(bytes) => bytes,
        Err(e) => return Ok(Outcome::Unreadable(read_error(e, true)?)),
    };
    let hash = Fingerprint::of(&bytes);
    Ok(match before {
        Outcome::Row(_) => Outcome::Row(hash),
        Outcome::Unreadable(_) => match decode(&bytes) {
            Ok(_) => Outcome::Row(hash),
            Err(e) => Outcome::Unreadable(e.to_string()),
        },
    })
}
