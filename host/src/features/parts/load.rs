//! The features of all parts, for training.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use vgg_edge::Fingerprint;
use vgg_edge_cli::terminal::CancelToken;

use super::Outcome;
use super::error::PartSetError;
use super::set::PartSet;
use crate::dataset::{Item, Pool};
use crate::features::extraction::Features;
use crate::features::table::{FeatureTable, Segment};

impl PartSet {
    /// Returns the images and their features, which are read from the files from now on. Checksums
    /// are verified now, once.
    ///
    /// `root` is the data directory that the names of images are relative to; without `names`,
    /// images have no paths, which saves memory.
    ///
    /// # Errors
    /// [`PartSetError`].
    pub fn features(
        &self,
        root: &Path,
        names: bool,
        cancel: &CancelToken,
    ) -> Result<(Pool, Features), PartSetError> {
        self.load(root, names, cancel).map_err(|e| self.all_damaged(e, cancel))
    }

    fn load(
        &self,
        root: &Path,
        names: bool,
        cancel: &CancelToken,
    ) -> Result<(Pool, Features), PartSetError> {
        let data = &self.run().data;
        let mut pool = Pool {
            classes: data.classes.clone(),
            items: Vec::new(),
            train: data.train.map(|train| train as usize),
        };
        let (mut rows, mut hashes, mut skipped): (_, Vec<Fingerprint>, _) =
            (Vec::new(), Vec::new(), Vec::new());
        // Part of each row, and its index there.
        let mut positions: Vec<[u32; 2]> = Vec::new();
        let mut counts = vec![0; self.parts.len()];
        self.entries(cancel, &mut |part, entry, _| {
            let name = Path::new(OsStr::from_bytes(&entry.name));
            match entry.outcome {
                Outcome::Row(hash) => {
                    rows.push(pool.items.len());
                    hashes.push(hash);
                    positions.push([part as u32, counts[part]]);
                    counts[part] += 1;
                }
                Outcome::Unreadable(reason) => skipped.push((root.join(name), reason)),
            }
            let path = if names { root.join(name) } else { PathBuf::new() };
            pool.items.push(Item { path, class: entry.class as usize });
            Ok(())
        })?;
        self.parts
            .par_iter()
            .try_for_each(|part| part.verify_rows(self.piece(), || cancel.is_canceled()))?;
        cancel.check()?;
        let segments = self.parts.iter().map(|part| (part.path.clone(), part.rows_at())).collect();
        let dim = self.parts[0].dim();
        skipped.sort();
        let features = Features {
            table: FeatureTable::in_segments(dim, Segment::open_all(segments)?, positions),
            dim,
            scales: self.run().scales.clone(),
            items: rows,
            hashes,
            skipped,
            cached: 0,
        };
        Ok((pool, features))
    }
}
