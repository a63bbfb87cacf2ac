//! The images of all parts, in the order of their list.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rayon::prelude::*;
use vgg_edge_cli::terminal::CancelToken;

use super::error::PartSetError;
use super::file::FileError;
use super::set::PartSet;
use super::{Entry, ListBuilder, Manifest, Outcome, Part, Shard};

/// Number of images between two checks for cancellation.
pub(super) const CANCEL_INTERVAL: u64 = 1 << 10;

/// Callback for an image: the index of its part, its entry, and its record.
type Each<'a> = dyn FnMut(usize, Entry, &[u8]) -> Result<(), PartSetError> + 'a;

impl PartSet {
    /// Passes the images to `each` in the order of the list, with the index of their part and their
    /// record. That they are the images of the list, each once, each in its part, is only known at
    /// the end.
    pub(super) fn entries(
        &self,
        cancel: &CancelToken,
        each: &mut Each<'_>,
    ) -> Result<(), PartSetError> {
        let run = self.run();
        let mut indices: Vec<_> = self.parts.iter().map(|part| part.index(self.piece())).collect();
        let mut rows = vec![0; self.parts.len()];
        let mut list = ListBuilder::default();
        // The next image of each part; the one with the lowest position in the list comes first.
        let mut next = Vec::new();
        let mut order = BinaryHeap::new();
        for (part, index) in indices.iter_mut().enumerate() {
            let entry = index.next_entry()?;
            order.extend(entry.iter().map(|(entry, _)| Reverse((entry.item, part))));
            next.push(entry);
        }
        while let Some(Reverse((_, part))) = order.pop() {
            let Some((entry, record)) =
                std::mem::replace(&mut next[part], indices[part].next_entry()?)
            else {
                break;
            };
            order.extend(next[part].iter().map(|(entry, _)| Reverse((entry.item, part))));
            let Part { path, manifest, .. } = &self.parts[part];
            check_entry(&entry, list.pictures, manifest)
                .map_err(|what| PartSetError::Images { path: path.clone(), what })?;
            list.add(entry.class as usize, &entry.name);
            rows[part] += u64::from(matches!(entry.outcome, Outcome::Row(_)));
            if list.pictures.is_multiple_of(CANCEL_INTERVAL) {
                cancel.check()?;
            }
            each(part, entry, &record)?;
        }
        if let Some((part, rows)) =
            self.parts.iter().zip(&rows).find(|(part, rows)| part.manifest.rows != **rows)
        {
            let what = format!("{} rows announced, {rows} found", part.manifest.rows);
            return Err(PartSetError::Images { path: part.path.clone(), what });
        }
        if list.finish(run.data.classes.clone(), run.data.train) != run.data {
            let what = "its images are not those of the list that it names".into();
            return Err(PartSetError::Images { path: self.path.clone(), what });
        }
        Ok(())
    }

    /// If a part is damaged, or its images are not the expected ones, finds all parts whose bytes
    /// are not those that were written.
    pub(super) fn all_damaged(&self, error: PartSetError, cancel: &CancelToken) -> PartSetError {
        let is_content = matches!(
            error,
            PartSetError::File(FileError::Damaged { .. }) | PartSetError::Images { .. }
        );
        if !is_content || !self.path.is_dir() {
            return error;
        }
        let check = |part: &Part| -> Result<(), FileError> {
            let mut index = part.index(self.piece());
            while index.next_entry()?.is_some() && !cancel.is_canceled() {}
            part.verify_rows(self.piece(), || cancel.is_canceled())
        };
        let damaged: Vec<(u32, String)> = self
            .parts
            .par_iter()
            .filter_map(|part| match check(part) {
                Err(FileError::Damaged { what, .. }) => Some((part.manifest.shard.index, what)),
                _ => None,
            })
            .collect();
        if damaged.is_empty() {
            return error;
        }
        self.incomplete(self.parts.len() as u32, &[], &damaged)
    }
}

/// Checks the entry that comes at position `item` of the list.
///
/// # Errors
/// The problem, for [`PartSetError::Images`].
fn check_entry(entry: &Entry, item: u64, manifest: &Manifest) -> Result<(), String> {
    let name = String::from_utf8_lossy(&entry.name);
    if entry.item != item {
        return Err(format!("{name} is image {}, where image {item} comes next", entry.item));
    }
    if Shard::of(&entry.name, manifest.shard.count) != manifest.shard.index {
        return Err(format!("{name} belongs to another part"));
    }
    if entry.class as usize >= manifest.run.data.classes.len() {
        return Err(format!("{name} is of class {}, which does not exist", entry.class));
    }
    let path = Path::new(OsStr::from_bytes(&entry.name));
    if !path.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(format!("{name} is not a path within the data directory"));
    }
    Ok(())
}
