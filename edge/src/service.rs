//! What systemd is told, if it asked (sd_notify(3)); without it, nothing happens.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The service's side of the conversation.
pub struct Service {
    /// Half of the watchdog's time, if there is a watchdog.
    every: Option<Duration>,
    last: Instant,
    status: String,
}

impl Service {
    /// Asks the environment.
    pub fn new() -> Self {
        let every = sd_notify::watchdog_enabled().map(|time| time / 2);
        Self { every, last: Instant::now(), status: String::new() }
    }

    /// Everything is loaded.
    pub fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// Settings are read again; [`Service::ready`] follows.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(_) => tell(&[NotifyState::Reloading]),
        }
    }

    /// The end has come.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// Alive; to be called often, from the loop that must not hang.
    pub fn alive(&mut self) {
        if let Some(every) = self.every
            && self.last.elapsed() >= every / 2
        {
            self.last = Instant::now();
            tell(&[NotifyState::Watchdog]);
        }
    }

    /// One line for `systemctl status`.
    pub fn status(&mut self, words: &str) {
        if self.status != words {
            words.clone_into(&mut self.status);
            tell(&[NotifyState::Status(words)]);
        }
    }
}

/// A manager that cannot be told restarts the service by itself; nothing better could be done here.
fn tell(state: &[NotifyState]) {
    let socket = std::env::var_os("NOTIFY_SOCKET").unwrap_or_default();
    let _ = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => tell_abstract(name, state),
        None => sd_notify::notify(state),
    };
}

/// Tells it at an abstract socket, which sd-notify 0.5 takes for a path.
fn tell_abstract(name: &[u8], state: &[NotifyState]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    let lines: String = state.iter().map(|state| format!("{state}\n")).collect();
    socket.send(lines.as_bytes()).map(drop)
}
