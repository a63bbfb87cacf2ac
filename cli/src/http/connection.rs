//! The connections that are open, and which of them is closed to make room for another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;

/// The open connections of a server.
#[derive(Default)]
pub(super) struct ConnectionTable(Mutex<Entries>);

/// The connections by their numbers, each of which is used once.
#[derive(Default)]
struct Entries {
    next: u64,
    connections: BTreeMap<u64, Entry>,
}

struct Entry {
    /// Whether it has sent a request that was allowed.
    allowed: bool,
    /// When it last did, or was opened.
    last_used: Instant,
    /// Whether it is receiving events.
    streams: bool,
    task: Option<AbortHandle>,
}

impl ConnectionTable {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, id: u64, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.lock().connections.get_mut(&id) {
            change(entry);
        }
    }

    /// Closes a connection that receives no events: one that never sent an allowed request, else
    /// the one whose last allowed request is the oldest.
    pub(super) fn make_room(&self) {
        let entries = self.lock();
        let idle = entries.connections.values().filter(|entry| !entry.streams);
        let task = idle
            .min_by_key(|entry| (entry.allowed, entry.last_used))
            .and_then(|entry| entry.task.clone());
        drop(entries);
        if let Some(task) = task {
            task.abort();
        }
    }
}

/// A handle to an open connection, for the service that answers it.
#[derive(Clone)]
pub struct Connection {
    table: Arc<ConnectionTable>,
    id: u64,
}

impl Connection {
    /// Records an allowed request: from now on others are closed before this connection.
    pub fn mark_allowed(&self) {
        self.table.update(self.id, |entry| {
            (entry.allowed, entry.last_used) = (true, Instant::now());
        });
    }

    /// Keeps the connection from being closed to make room, until the guard is dropped.
    pub fn start_stream(&self) -> StreamGuard {
        self.table.update(self.id, |entry| entry.streams = true);
        StreamGuard(self.clone())
    }

    pub(super) fn set_task(&self, task: AbortHandle) {
        self.table.update(self.id, |entry| entry.task = Some(task));
    }
}

/// Marks a connection as one that receives events.
pub struct StreamGuard(Connection);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.table.update(self.0.id, |entry| entry.streams = false);
    }
}

/// The place of a connection in the table, free again when this is dropped.
pub(super) struct ConnectionSlot {
    pub(super) connection: Connection,
    _permit: Option<OwnedSemaphorePermit>,
}

impl ConnectionSlot {
    pub(super) fn new(table: &Arc<ConnectionTable>, permit: Option<OwnedSemaphorePermit>) -> Self {
        let mut entries = table.lock();
        let id = entries.next;
        entries.next += 1;
        let entry = Entry { allowed: false, last_used: Instant::now(), streams: false, task: None };
        entries.connections.insert(id, entry);
        Self { connection: Connection { table: table.clone(), id }, _permit: permit }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.connection.table.lock().connections.remove(&self.connection.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A task that never ends by itself.
    fn idle_task() -> tokio::task::JoinHandle<()> {
        tokio::spawn(std::future::pending())
    }

    #[test]
    fn connections_without_allowed_requests_are_closed_first_and_streams_never() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let table = Arc::<ConnectionTable>::default();
            let slots: Vec<_> = (0..3).map(|_| ConnectionSlot::new(&table, None)).collect();
            let tasks: Vec<_> = (0..3).map(|_| idle_task()).collect();
            for (slot, task) in slots.iter().zip(&tasks) {
                slot.connection.set_task(task.abort_handle());
            }
            let [stream, allowed, silent] = &slots[..] else { panic!("there are three") };
            let _guard = stream.connection.start_stream();
            allowed.connection.mark_allowed();
            let mut tasks = tasks.into_iter();
            let (stream_task, allowed_task, silent_task) =
                (tasks.next().unwrap(), tasks.next().unwrap(), tasks.next().unwrap());

            table.make_room();
            assert!(silent_task.await.unwrap_err().is_cancelled());
            assert!(!allowed_task.is_finished());
            table.lock().connections.remove(&silent.connection.id);

            table.make_room();
            assert!(allowed_task.await.unwrap_err().is_cancelled());
            table.lock().connections.remove(&allowed.connection.id);

            table.make_room();
            tokio::task::yield_now().await;
            assert!(!stream_task.is_finished());
        });
    }
}
