//! Detection of frozen cameras.

use std::time::{Duration, Instant};

/// Detects a camera that keeps counting frames but shows the same image: sensors have noise, so no
/// two images of one are equal.
///
/// A source that is as still as that but alive (a test image, darkness that a driver clips to
/// black) is reopened at intervals that double.
pub struct Freeze {
    first: Duration,
    timeout: Duration,
    digest: Option<u64>,
    since: Instant,
}

impl Freeze {
    /// The longest interval.
    const LONGEST: Duration = Duration::from_secs(3600);

    /// Detects a freeze after `timeout`; zero for never.
    pub fn new(timeout: Duration) -> Self {
        Self { first: timeout, timeout, digest: None, since: Instant::now() }
    }

    /// Takes a frame; if it has been the same one for too long, returns for how long.
    pub fn check(&mut self, frame: &[u8], now: Instant) -> Option<Duration> {
        if self.first.is_zero() {
            return None;
        }
        let digest = Self::digest(frame);
        if self.digest.replace(digest) != Some(digest) {
            (self.since, self.timeout) = (now, self.first);
            return None;
        }
        let timeout = self.timeout;
        if now.duration_since(self.since) < timeout {
            return None;
        }
        self.since = now;
        self.timeout = (2 * timeout).min(Self::LONGEST).max(self.first);
        Some(timeout)
    }

    /// FNV-1a over every seventh 8-byte word and the length: an image that does not change there
    /// does not change at all, or it would have no noise.
    fn digest(frame: &[u8]) -> u64 {
        let words = frame.as_chunks().0.iter().step_by(7).map(|&word| u64::from_le_bytes(word));
        words.fold(0xcbf2_9ce4_8422_2325 ^ frame.len() as u64, |hash, word| {
            (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_is_found_at_intervals_that_double() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut freeze = Freeze::new(Duration::from_secs(10));
        let (still, mut other) = (vec![7u8; 4096], vec![7u8; 4096]);
        other[8 * 7 * 20 + 3] = 8;
        let mut found = Vec::new();
        for second in 0..75 {
            found.extend(freeze.check(&still, at(second)).map(|time| (second, time.as_secs())));
        }
        assert_eq!(found, [(10, 10), (30, 20), (70, 40)]);
        assert_eq!(freeze.check(&other, at(75)), None);
        assert_eq!(freeze.check(&still, at(84)), None, "another image in between");
        assert_eq!(freeze.check(&still, at(94)), Some(Duration::from_secs(10)));
        let mut never = Freeze::new(Duration::ZERO);
        assert!((0..100).all(|second| never.check(&still, at(second * 1000)).is_none()));
    }
}
