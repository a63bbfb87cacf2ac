//! Parts that a run can do without for a while: opened again while the reason may pass.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use anyhow::Result;
use log::{info, warn};

use crate::status::Status;

/// Time between two attempts.
const INTERVAL: Duration = Duration::from_secs(60);

/// Errors that may pass: a card that is full or that the kernel has remounted read-only, an
/// address that is not up yet.
const TRANSIENT: [ErrorKind; 4] = [
    ErrorKind::AddrNotAvailable,
    ErrorKind::QuotaExceeded,
    ErrorKind::ReadOnlyFilesystem,
    ErrorKind::StorageFull,
];

/// The value of a part, if it is configured and open, and the time of its next attempt.
///
/// A device that starts by itself should rather run without the part than not at all.
pub struct Retried<T> {
    /// Name in messages and in the timeline.
    component: &'static str,
    value: Option<T>,
    next: Option<Instant>,
}

impl<T> Retried<T> {
    /// Opens the part, or schedules another attempt if the failure may pass. `open` returns `None`
    /// if the part is not configured.
    ///
    /// # Errors
    /// A failure that does not pass by itself.
    pub fn open(
        component: &'static str,
        status: &Status,
        open: impl FnOnce() -> Result<Option<T>>,
    ) -> Result<Self> {
        match open() {
            Ok(value) => Ok(Self { component, value, next: None }),
            Err(e) if is_transient(&e) => {
                let text = format!("{component}: not available, trying again every minute: {e:#}");
                warn!("{text}");
                status.log(component, text, None);
                Ok(Self { component, value: None, next: Some(Instant::now() + INTERVAL) })
            }
            Err(e) => Err(e),
        }
    }

    /// Tries again if it is time; further failures are not reported.
    pub fn poll(&mut self, status: &Status, open: impl FnOnce() -> Result<Option<T>>) {
        if self.value.is_some() || self.next.is_none_or(|next| Instant::now() < next) {
            return;
        }
        match open() {
            Ok(value) => {
                let text = format!("{}: available again", self.component);
                info!("{text}");
                status.log(self.component, text, None);
                (self.value, self.next) = (value, None);
            }
            Err(_) => self.next = Some(Instant::now() + INTERVAL),
        }
    }

    /// The value.
    pub fn get(&self) -> Option<&T> {
        self.value.as_ref()
    }

    /// Replaces the value; attempts that are scheduled stay so, in case it has to be taken back.
    pub fn put(&mut self, value: Option<T>) {
        self.value = value;
    }

    /// Cancels further attempts.
    pub fn stop_retrying(&mut self) {
        self.next = None;
    }
}

fn is_transient(error: &anyhow::Error) -> bool {
    has_io_error(error, |e| TRANSIENT.contains(&e.kind()))
}

/// Whether an error or one of its causes is such an [`io::Error`].
pub fn has_io_error(error: &anyhow::Error, is_such: impl Fn(&io::Error) -> bool) -> bool {
    error.chain().any(|cause| cause.downcast_ref().is_some_and(&is_such))
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    fn full() -> Result<Option<u8>> {
        Err(io::Error::from(ErrorKind::StorageFull)).context("frames.ndjson")
    }

    #[test]
    fn retried_part_opens_when_the_disk_has_room_again() {
        let status = Status::new();
        let mut part = Retried::open("collect", &status, full).unwrap();
        assert_eq!(part.get(), None);
        part.poll(&status, || panic!("it is not time yet"));
        part.next = Some(Instant::now());
        part.poll(&status, full);
        assert!(part.get().is_none() && part.next > Some(Instant::now()));
        part.next = Some(Instant::now());
        part.poll(&status, || Ok(Some(1)));
        assert_eq!((part.get(), part.next), (Some(&1), None));
        assert_eq!(status.entries(0).len(), 2, "one entry each for the failure and its end");
    }

    #[test]
    fn retried_part_fails_for_other_reasons() {
        let status = Status::new();
        let denied = || Err(io::Error::from(ErrorKind::PermissionDenied).into());
        assert!(Retried::<u8>::open("page", &status, denied).is_err());
        assert!(Retried::<u8>::open("page", &status, || Err(anyhow!("no"))).is_err());
        assert!(Retried::<u8>::open("page", &status, || Ok(None)).unwrap().get().is_none());
    }
}
