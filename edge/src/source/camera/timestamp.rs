//! The time at which a frame was captured.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use v4l::buffer::{Flags, Metadata};

/// The greatest age that a driver's timestamp may give a frame: some drivers use another clock.
const MAX_AGE: Duration = Duration::from_secs(10);

/// When a frame that arrived just `now` was captured: by the driver's timestamp, if that is of the
/// monotonic clock and plausible, else now. `clock` is that clock, see [`monotonic`].
pub(super) fn captured(meta: &Metadata, now: Instant, clock: Option<u32>) -> Instant {
    let Some(clock) = clock.filter(|_| meta.flags.contains(Flags::TIMESTAMP_MONOTONIC)) else {
        return now;
    };
    let stamp = i128::from(meta.timestamp.sec) * 1_000_000 + i128::from(meta.timestamp.usec);
    // A timestamp in the future becomes a very old one.
    let age = Duration::from_micros(clock.wrapping_sub(stamp as u32).into());
    if age <= MAX_AGE { now.checked_sub(age).unwrap_or(now) } else { now }
}

/// The clock of the timestamps, which [`Instant`] uses too but does not reveal: microseconds modulo
/// 2^32, all that sd-notify's arithmetic leaves of them on 32-bit systems.
pub(super) fn monotonic() -> Option<u32> {
    match NotifyState::monotonic_usec_now() {
        Ok(NotifyState::MonotonicUsec(now)) => Some(now as u32),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use v4l::timestamp::Timestamp;

    #[test]
    fn timestamps_of_the_driver_count_if_they_are_plausible() {
        let now = Instant::now() + Duration::from_secs(100);
        let age = |flags, sec, usec, clock| {
            let meta =
                Metadata { flags, timestamp: Timestamp::new(sec, usec), ..Metadata::default() };
            now.duration_since(captured(&meta, now, clock)).as_micros()
        };
        let stamped = Flags::TIMESTAMP_MONOTONIC;
        assert_eq!(age(stamped, 1234, 500_000, Some(1_234_570_000)), 70_000);
        assert_eq!(
            age(stamped | Flags::TSTAMP_SRC_SOE, 1234, 500_000, Some(1_234_570_000)),
            70_000
        );
        // Over an hour after the start the sum of microseconds has passed 2^32.
        assert_eq!(age(stamped, 4294, 967_290, Some(4)), 10);
        for (flags, sec, clock) in [
            (Flags::TIMESTAMP_COPY, 1234, Some(1_234_570_000)),
            (Flags::TIMESTAMP_UNKNOWN, 1234, Some(1_234_570_000)),
            (stamped, 1235, Some(1_234_570_000)),
            (stamped, 1200, Some(1_234_570_000)),
            (stamped, 1234, None),
        ] {
            assert_eq!(age(flags, sec, 500_000, clock), 0, "{flags} {sec}");
        }
        // It is the clock of Instant, here in whole microseconds.
        let (at, before) = (Instant::now(), monotonic().unwrap());
        std::thread::sleep(Duration::from_millis(5));
        let passed = u128::from(monotonic().unwrap().wrapping_sub(before));
        assert!(passed >= 4999 && passed <= at.elapsed().as_micros() + 1, "{passed}");
    }
}
