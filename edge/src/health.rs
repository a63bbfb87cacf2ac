//! The health of a run, for `/healthz`.

use std::time::Duration;

use crate::source::SourceState;
use crate::status::SourceStatus;

/// Longest time without a result while the source delivers frames.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Returns `ok` if results arrive and `ended` if the source has ended. `since_result` is the time
/// since the last result, or since the start.
///
/// # Errors
/// The reason why the run is not healthy.
pub fn health(source: &SourceStatus, since_result: Duration) -> Result<&'static str, String> {
    match source.state {
        SourceState::Ended => Ok("ended"),
        SourceState::Streaming if since_result < TIMEOUT => Ok("ok"),
        SourceState::Streaming => Err(format!("no result for {} seconds", TIMEOUT.as_secs())),
        state => Err(format!("{state:?}: {}", source.detail).to_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_follows_the_source() {
        let source = |state, detail: &str| SourceStatus {
            state,
            detail: detail.into(),
            ..SourceStatus::default()
        };
        let soon = Duration::from_secs(20);
        assert!(health(&SourceStatus::default(), soon).is_err());
        assert_eq!(health(&source(SourceState::Streaming, "YUYV"), soon), Ok("ok"));
        assert_eq!(health(&source(SourceState::Ended, ""), TIMEOUT), Ok("ended"));
        let lost = health(&source(SourceState::Lost, "the camera was unplugged"), soon);
        assert_eq!(lost, Err("lost: the camera was unplugged".into()));
        assert!(health(&source(SourceState::Streaming, "YUYV"), TIMEOUT).is_err());
    }
}
