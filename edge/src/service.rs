//! Notifications to systemd (sd_notify(3)); without systemd they do nothing.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The readiness and the watchdog of a service.
pub struct Service {
    /// Half of the watchdog's timeout, if there is a watchdog.
    interval: Option<Duration>,
    last: Instant,
}

impl Service {
    /// Reads the watchdog's timeout from the environment.
    pub fn new() -> Self {
        let interval = sd_notify::watchdog_enabled().map(|time| time / 2);
        Self { interval, last: Instant::now() }
    }

    /// Reports that everything is loaded.
    pub fn ready(&self) {
        notify(&[NotifyState::Ready]);
    }

    /// Reports that settings are read again; [`Service::ready`] follows.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
    }

    /// Reports that the service is stopping.
    pub fn stopping(&self) {
        notify(&[NotifyState::Stopping]);
    }

    /// Feeds the watchdog; to be called often, from the loop that must not hang.
    pub fn alive(&mut self) {
        if let Some(interval) = self.interval
            && self.last.elapsed() >= interval / 2
        {
            self.last = Instant::now();
            notify(&[NotifyState::Watchdog]);
        }
    }
}

/// The line in `systemctl status`.
#[derive(Default)]
pub struct ServiceStatus {
    last: String,
}

impl ServiceStatus {
    /// Sets the line.
    pub fn set(&mut self, text: &str) {
        if self.last != text {
            text.clone_into(&mut self.last);
            notify(&[NotifyState::Status(text)]);
        }
    }
}

/// Sends a notification. Errors are ignored: a manager that misses the watchdog restarts the
/// service by itself.
fn notify(state: &[NotifyState]) {
    let socket = std::env::var_os("NOTIFY_SOCKET").unwrap_or_default();
    let _ = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => notify_abstract(name, state),
        None => sd_notify::notify(state),
    };
}

/// Sends it to an abstract socket, which sd-notify 0.5 takes for a path.
fn notify_abstract(name: &[u8], state: &[NotifyState]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    let lines: String = state.iter().map(|state| format!("{state}\n")).collect();
    socket.send(lines.as_bytes()).map(drop)
}
