//! `host extract --shard`: makes a part, or finds that it is there.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use rayon::prelude::*;
use vgg_edge::image::decode::{MAX_FILE_BYTES, decode};
use vgg_edge::preprocess::Preprocess;
use vgg_edge::{Backbone, Fingerprint};
use vgg_edge_cli::terminal::{Interrupted, interrupted, note};

use super::file::{FileError, Run, Writer};
use super::set::find;
use super::{Entry, ListBuilder, Manifest, Outcome, Part, Shard, ranges};
use crate::PROGRAM;
use crate::cli::options::ExtractOptions;
use crate::dataset::{self, Item, Walked};
use crate::features::extraction::{extract, read_error};

/// Bytes of a part that are read at once when it is checked.
const PIECE: usize = 1 << 20;

/// A part that is there now.
pub struct Made {
    /// Its file.
    pub path: PathBuf,
    /// Its pictures, readable or not.
    pub pictures: u64,
    /// Those that have features.
    pub rows: u64,
    /// How many of them came from the cache.
    pub cached: usize,
    /// Whether it was there already.
    pub kept: bool,
}

/// Extracts a part of the data folder into a file in `folder`, which appears there whole.
///
/// If the part is there already, of the same pictures to the byte and with the same settings, it is
/// left as it is.
///
/// # Errors
/// What is no data folder; parts of another run in `folder`; pictures that have changed since the
/// part was made; a storage that fails, in contrast to files that are no pictures; what [`extract`]
/// fails with.
pub fn extract_part(
    base: &Backbone,
    preprocess: &Preprocess,
    data: &Path,
    shard: Shard,
    folder: &Path,
    options: &ExtractOptions,
) -> Result<Made> {
    std::fs::create_dir_all(folder).map_err(vgg_edge::Error::io("make", folder))?;
    let path = folder.join(shard.file_name());
    vgg_edge::durable_fs::check_writable(&path)?;
    let (numbers, items, run) = list(base, preprocess, data, shard)?;
    check_neighbors(folder, shard, &run)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads()).build()?;
    if let Some(kept) = pool.install(|| existing(&path, shard, &run, data, &items))? {
        note(PROGRAM, format_args!("{}: it is there, of the same pictures", path.display()));
        if options.strict && kept.rows < kept.pictures {
            bail!(
                "{}: {} pictures are left out of it (--strict)",
                path.display(),
                kept.pictures - kept.rows
            );
        }
        return Ok(kept);
    }

    let options = ExtractOptions { fail_on_storage: true, ..options.clone() };
    let features = extract(base, preprocess, &items, &options)?;
    let mut unreadable: HashMap<&Path, &String> =
        features.skipped.iter().map(|(path, reason)| (&**path, reason)).collect();
    let mut index = Vec::new();
    let mut hashes = features.hashes.iter();
    for (number, Item { path, class }) in numbers.iter().zip(&items) {
        let outcome = match unreadable.remove(&**path) {
            Some(reason) => Outcome::Unreadable(reason.clone()),
            None => match hashes.next() {
                Some(&hash) => Outcome::Row(hash),
                None => bail!("{}: neither read nor left out", path.display()),
            },
        };
        let name = relative(path, data).to_vec();
        Entry { item: *number, class: *class as u32, name, outcome }.append(&mut index)?;
    }
    // Another job may have begun in the same folder meanwhile.
    check_neighbors(folder, shard, &run)?;
    let manifest = Manifest {
        run,
        shard,
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
    Ok(Made {
        path,
        pictures: manifest.entries,
        rows: manifest.rows,
        cached: features.cached,
        kept: false,
    })
}

fn relative<'a>(path: &'a Path, data: &Path) -> &'a [u8] {
    path.strip_prefix(data).unwrap_or(path).as_os_str().as_bytes()
}

/// The pictures of the part with their places in the list, and what the parts have in common.
fn list(
    base: &Backbone,
    preprocess: &Preprocess,
    data: &Path,
    shard: Shard,
) -> Result<(Vec<u64>, Vec<Item>, Run)> {
    let mut builder = ListBuilder::default();
    let (mut numbers, mut items) = (Vec::new(), Vec::new());
    // Of the other parts' pictures nothing is kept: there may be many, and a part on each core.
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
        note(
            PROGRAM,
            format_args!("{ignored} files without the name of a picture are not looked at"),
        );
    }
    let Shard { index, count } = shard;
    note(
        PROGRAM,
        format_args!("part {index} of {count}: {} of {} pictures", items.len(), set.pictures),
    );
    Ok((numbers, items, Run::new(base, preprocess, set)))
}

/// Whether the parts in the folder are of the same run, as far as this one and the first of the
/// others show: better told now than by the merge, and a part of another job is not written over.
fn check_neighbors(folder: &Path, shard: Shard, run: &Run) -> Result<()> {
    let found = find(folder)?;
    if let Some((count, indices)) = found.iter().find(|(count, _)| **count != shard.count) {
        bail!(
            "{}: there are parts of {count} ({}), not of {}; name another folder, or remove them",
            folder.display(),
            ranges(indices, ", "),
            shard.count
        );
    }
    let (own, others): (Vec<u32>, Vec<u32>) =
        found.values().flatten().partition(|&&index| index == shard.index);
    for index in own.into_iter().chain(others.into_iter().take(1)) {
        let path = folder.join(Shard { index, ..shard }.file_name());
        // The merge tells of one that is damaged.
        if let Ok(part) = Part::open(&path)
            && let Some(difference) = part.manifest.run.difference(run)
        {
            bail!(
                "{}: it is {difference}; name another folder, or remove its part",
                path.display()
            );
        }
    }
    Ok(())
}

/// The part that is there, if it is whole and of the same pictures; `None` if it is to be made.
fn existing(
    path: &Path,
    shard: Shard,
    run: &Run,
    data: &Path,
    items: &[Item],
) -> Result<Option<Made>> {
    let anew = |e: FileError| match e {
        FileError::Damaged { .. } => {
            note(PROGRAM, format_args!("{e}; it is made anew"));
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
        Err(e) => return anew(e),
    };
    let advice = "remove it to make it anew, or name another folder";
    if let Some(difference) = part.manifest.run.difference(run) {
        bail!("{}: it is {difference}; {advice}", path.display());
    }
    let mut entries = Vec::new();
    let mut index = part.index(PIECE);
    loop {
        match index.next_entry() {
            Ok(Some((entry, _))) => entries.push(entry),
            Ok(None) => break,
            Err(e) => return anew(e),
        }
    }
    if let Err(e) = part.verify_rows(PIECE, interrupted) {
        return anew(e);
    }
    let same = |(entry, item): (&Entry, &Item)| relative(&item.path, data) == entry.name;
    if part.manifest.shard != shard
        || entries.len() != items.len()
        || !entries.iter().zip(items).all(same)
    {
        bail!("{}: it is another part than its name says; {advice}", path.display());
    }
    // The same bytes are the same features; what could not be read must still be so.
    let changed = entries.par_iter().zip(items).find_map_first(|(entry, item)| {
        if interrupted() {
            return Some(Err(Interrupted.into()));
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
    let Manifest { entries, rows, .. } = part.manifest;
    Ok(Some(Made { path: path.to_owned(), pictures: entries, rows, cached: 0, kept: true }))
}

/// What would come of a picture now; whether it can be decoded is only asked if it could not,
/// `before`.
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
