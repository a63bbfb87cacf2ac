//! The identity of a camera, by which it is found again under another node.

use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use v4l::v4l_sys::v4l2_capability;
use v4l::video::Capture;
use v4l::{Device, v4l2};

/// The names that a driver reports: its own, its camera's, and where that is plugged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The driver.
    pub driver: String,
    /// The camera.
    pub card: String,
    /// Its place on the bus.
    pub bus: String,
}

impl Identity {
    /// Queries the names of a node. Bytes that are not UTF-8 are replaced: the kernel truncates
    /// long names, even within a character.
    ///
    /// # Errors
    /// The system's error.
    pub fn of(device: &Device) -> io::Result<Self> {
        let mut capability = MaybeUninit::<v4l2_capability>::zeroed();
        // SAFETY: the request fills a structure of exactly this type. It consists of numbers, so
        // any bytes are valid, and zeros before that.
        let capability = unsafe {
            v4l2::ioctl(
                device.handle().fd(),
                v4l2::vidioc::VIDIOC_QUERYCAP,
                capability.as_mut_ptr().cast(),
            )?;
            capability.assume_init()
        };
        let v4l2_capability { driver, card, bus_info, .. } = capability;
        Ok(Self { driver: name_of(&driver), card: name_of(&card), bus: name_of(&bus_info) })
    }
}

/// The text before the first zero.
fn name_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Opens the node, or the one at which the same camera is now.
pub(super) fn find(path: &Path, identity: Option<&Identity>) -> Result<(Device, PathBuf)> {
    let opened =
        Device::with_path(path).with_context(|| format!("{}: cannot open", path.display()));
    let Some(identity) = identity else { return opened.map(|device| (device, path.to_owned())) };
    // Most cameras have a node for metadata too, with the same names.
    let is_same = |device: &Device| {
        Identity::of(device).is_ok_and(|found| found == *identity)
            && device.enum_formats().is_ok_and(|formats| !formats.is_empty())
    };
    if let Ok(device) = opened {
        // Another camera under the same node is not the requested one, unless the node is a link
        // to its identity.
        if path.is_symlink() || is_same(&device) {
            return Ok((device, path.to_owned()));
        }
    }
    for node in nodes() {
        let Ok(device) = Device::with_path(&node) else { continue };
        if is_same(&device) {
            return Ok((device, node));
        }
    }
    bail!("{}: the camera {} is not connected", path.display(), identity.card)
}

/// Nodes of video devices, in the order of their numbers.
pub fn nodes() -> Vec<PathBuf> {
    let number = |name: &str| name.strip_prefix("video").and_then(|rest| rest.parse::<u32>().ok());
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| Some((number(entry.file_name().to_str()?)?, entry.path())))
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_truncated_within_a_character() {
        assert_eq!(name_of(b"Cam\xc3\xa9ra\0\0junk"), "Cam\u{e9}ra");
        assert_eq!(name_of(b"Cam\xc3"), "Cam\u{fffd}");
        assert_eq!(name_of(b""), "");
    }
}
