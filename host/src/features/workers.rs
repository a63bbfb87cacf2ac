//! Worker threads that prepare images and run them through the backbone, batch by batch.
//!
//! Extraction and the epochs of augmented training share them. Each worker decodes, resizes and
//! runs the backbone on a batch of its own, so that all cores are busy all the time; most of the
//! time goes into the backbone. Which worker takes which image does not change the bits.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vgg_edge::Backbone;
use vgg_edge::backbone::Runner;
use vgg_edge::preprocess::{Preprocess, Quantizer};

/// An item after its preparation.
pub enum Prepared<K, D> {
    /// Quantized input for the backbone, and a key that is returned with its feature map.
    Input {
        /// The key.
        key: K,
        /// The input.
        input: Vec<u8>,
    },
    /// Result that needs no inference.
    Done(D),
}

/// Result of an item.
pub enum Output<K, D> {
    /// Feature map of [`Prepared::Input`].
    Map {
        /// The key.
        key: K,
        /// The feature map.
        map: Vec<u8>,
    },
    /// Result of [`Prepared::Done`].
    Done(D),
}

/// Index of an item, and its result unless the backbone failed.
type Message<K, D> = (usize, vgg_edge::Result<Output<K, D>>);

/// Worker threads for one backbone and one preprocessing.
pub struct FeatureWorkers<'a> {
    base: &'a Backbone,
    preprocess: &'a Preprocess,
    threads: usize,
    /// Idle runners, which keep their memory from run to run.
    runners: Mutex<Vec<Runner>>,
}

/// Indices that no worker has taken yet.
struct Queue {
    next: AtomicUsize,
    count: usize,
    stop: AtomicBool,
    /// Number of inputs that a worker runs together.
    batch: usize,
}

impl Queue {
    fn take(&self) -> Option<usize> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        (index < self.count && !self.stop.load(Ordering::Relaxed)).then_some(index)
    }
}

impl<'a> FeatureWorkers<'a> {
    /// Describes up to `threads` workers; threads are started by [`FeatureWorkers::run`].
    pub fn new(base: &'a Backbone, preprocess: &'a Preprocess, threads: usize) -> Self {
        Self { base, preprocess, threads, runners: Mutex::default() }
    }

    /// Calls `prepare` for the items `0..count` on the workers, runs the inputs through the
    /// backbone, and passes each result to `receive` on the calling thread, in the order in which
    /// results are ready.
    ///
    /// # Errors
    /// The first error of `receive` or of the backbone. Workers then stop after the batch in
    /// progress.
    pub fn run<K: Send, D: Send, E: From<vgg_edge::Error>>(
        &self,
        count: usize,
        prepare: &(impl Fn(&Quantizer, usize) -> Prepared<K, D> + Sync),
        receive: &mut impl FnMut(usize, Output<K, D>) -> Result<(), E>,
    ) -> Result<(), E> {
        let threads = self.threads.min(count).max(1);
        let queue = Queue {
            next: AtomicUsize::new(0),
            count,
            stop: AtomicBool::new(false),
            batch: batch_len(self.preprocess.size, count / threads),
        };
        std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel(2 * threads);
            for _ in 0..threads {
                let (sender, queue) = (sender.clone(), &queue);
                let idle = lock(&self.runners).pop();
                let mut runner = idle.map_or_else(|| self.base.runner(None), Ok)?;
                scope.spawn(move || {
                    // `None` if the receiver has gone after a failure.
                    let _ = self.work(queue, &mut runner, prepare, &sender);
                    lock(&self.runners).push(runner);
                });
            }
            drop(sender);
            let outcome = receiver.iter().try_for_each(|(index, output)| receive(index, output?));
            // Releases workers that wait for room in the channel or would take another item.
            queue.stop.store(true, Ordering::Relaxed);
            drop(receiver);
            outcome
        })
    }

    /// Works on items until there are none left.
    fn work<K, D>(
        &self,
        queue: &Queue,
        runner: &mut Runner,
        prepare: &impl Fn(&Quantizer, usize) -> Prepared<K, D>,
        sender: &SyncSender<Message<K, D>>,
    ) -> Option<()> {
        let (quantizer, dim) = (self.preprocess.quantizer(), self.preprocess.feature_len());
        let mut inputs = Vec::new();
        let mut waiting = Vec::new();
        loop {
            let taken = queue.take();
            match taken.map(|index| (index, prepare(&quantizer, index))) {
                Some((index, Prepared::Input { key, input })) => {
                    inputs.extend(input);
                    waiting.push((index, key));
                }
                Some((index, Prepared::Done(done))) => {
                    sender.send((index, Ok(Output::Done(done)))).ok()?;
                }
                None => {}
            }
            if waiting.len() == queue.batch || (taken.is_none() && !waiting.is_empty()) {
                let maps = match runner.batch(&inputs, waiting.len(), self.preprocess.size) {
                    Ok(maps) => maps,
                    Err(e) => {
                        // It ends the run, so the other inputs need no answer.
                        let _ = sender.send((waiting[0].0, Err(e)));
                        return None;
                    }
                };
                inputs.clear();
                for ((index, key), map) in waiting.drain(..).zip(maps.chunks_exact(dim)) {
                    let output = Output::Map { key, map: map.to_vec() };
                    sender.send((index, Ok(output))).ok()?;
                }
            }
            taken?;
        }
    }
}

/// Number of images that a worker runs together: as many as take the time of one image of 256 px,
/// if each worker gets `each` of them.
fn batch_len(size: u32, each: usize) -> usize {
    let fit = (256 / size.max(1)).pow(2) as usize;
    fit.min(each / 4).max(1)
}

/// Locks a mutex whose content is whole between two operations, so that a panic elsewhere does no
/// harm.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
