//! A source in a thread of its own.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Result, anyhow};

use super::{LatestFrame, Lost};

/// A source in a thread of its own; dropping it stops the thread.
pub struct SourceThread {
    pub(super) latest: Arc<LatestFrame>,
    name: &'static str,
    /// The body of the thread, until it is started.
    run: Option<Run>,
    thread: Option<JoinHandle<()>>,
    /// Whether the thread may block in a read that nothing interrupts.
    may_block: bool,
}

type Run = Box<dyn FnOnce(&LatestFrame) -> Result<()> + Send>;

impl SourceThread {
    /// A source that, once started, passes on frames until it is stopped or has no more.
    pub fn new(
        name: &'static str,
        every_frame: bool,
        may_block: bool,
        run: impl FnOnce(&LatestFrame) -> Result<()> + Send + 'static,
    ) -> Self {
        let latest = Arc::new(LatestFrame::new(every_frame));
        Self { latest, name, run: Some(Box::new(run)), thread: None, may_block }
    }

    /// Starts the thread. Whatever ends it, a panic included, closes the exchange: nobody waits for
    /// a thread that is gone.
    pub(super) fn start(&mut self) {
        let Some(run) = self.run.take() else { return };
        let (latest, name) = (self.latest.clone(), self.name);
        let body = move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| run(&latest)));
            latest.close(outcome.unwrap_or_else(|panic| {
                Err(anyhow!("{name}: panicked: {}", panic_message(&*panic)))
            }));
        };
        match std::thread::Builder::new().name(name.into()).spawn(body) {
            Ok(thread) => self.thread = Some(thread),
            Err(e) => self.latest.close(Err(
                anyhow::Error::from(e).context(format!("{name}: cannot start a thread"))
            )),
        }
    }

    /// Stops the thread; returns the frames lost, including those that still wait.
    pub(super) fn stop(&mut self) -> Lost {
        self.latest.stop();
        if let Some(thread) = self.thread.take()
            && !self.may_block
        {
            // Panics are caught within.
            let _ = thread.join();
        }
        self.latest.lost_with_waiting()
    }
}

impl Drop for SourceThread {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The message of a panic.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let message = panic.downcast_ref::<&str>().copied();
    message
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
