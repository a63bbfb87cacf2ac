//! `host merge`: all parts in one file.

use std::io::BufWriter;
use std::path::Path;

use vgg_edge_cli::terminal::CancelToken;

use super::entries::CANCEL_INTERVAL;
use super::error::PartSetError;
use super::file::Writer;
use super::set::PartSet;
use super::{Manifest, Outcome, Shard};

/// Result of [`PartSet::merge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Number of parts.
    pub parts: usize,
    /// Number of images in the list.
    pub images: u64,
    /// Number of images that have features.
    pub rows: u64,
}

impl PartSet {
    /// Writes all parts into one file: the part that `--shard 0/1` would make, byte for byte.
    /// Logs the images that could not be read.
    ///
    /// # Errors
    /// [`PartSetError`]; then `output` is left as it was.
    pub fn merge(&self, output: &Path, cancel: &CancelToken) -> Result<Merged, PartSetError> {
        let manifest = Manifest {
            run: self.run().clone(),
            shard: Shard::WHOLE,
            entries: self.sum(|part| part.entries),
            index_len: self.sum(|part| part.index_len),
            rows: self.sum(|part| part.rows),
        };
        let write = |file: &mut BufWriter<&std::fs::File>| -> Result<(), PartSetError> {
            let mut writer = Writer::new(file, output, &manifest)?;
            // Part of each row.
            let mut order: Vec<u16> = Vec::new();
            self.entries(cancel, &mut |part, entry, record| {
                match entry.outcome {
                    Outcome::Row(_) => order.push(part as u16),
                    Outcome::Unreadable(reason) => {
                        let name = String::from_utf8_lossy(&entry.name);
                        let part = self.parts[part].manifest.shard.index;
                        log::warn!("left out: {name}: {reason} (part {part})");
                    }
                }
                Ok(writer.bytes(record)?)
            })?;
            writer.seal()?;
            let mut rows: Vec<_> = self.parts.iter().map(|part| part.rows(self.piece())).collect();
            let dim = self.parts[0].dim();
            for (row, &part) in order.iter().enumerate() {
                if (row as u64).is_multiple_of(CANCEL_INTERVAL) {
                    cancel.check()?;
                }
                writer.bytes(rows[usize::from(part)].take(dim)?)?;
            }
            for rows in &mut rows {
                rows.finish()?;
            }
            Ok(writer.seal()?)
        };
        vgg_edge::durable_fs::write_atomic(output, write)
            .map_err(|e| self.all_damaged(e, cancel))?;
        Ok(Merged { parts: self.parts.len(), images: manifest.entries, rows: manifest.rows })
    }
}
