//! Everything that `edge run` reports: one type, its JSON schema, and the interface of what it is
//! written to.
//!
//! With `--json`, stdout carries one JSON object per line. A result of a frame
//! ([`FrameReport::record`]) has no key `event`; every other object has it, and its keys are in
//! alphabetical order. Without `--events` there is a result for each frame and no `label` event;
//! with `--events` it is the other way round. Keys that are marked optional are left out rather
//! than null. Times are RFC 3339 in UTC with milliseconds.

use std::io;

use serde::{Serialize, Serializer};
use vgg_edge_cli::record::{FrameResult, time};

use crate::model::manager::{Origin, Swap};
use crate::source::SourceState;

/// Something that a run reports.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event<'a> {
    /// The reported label changed.
    Label(LabelChange<'a>),
    /// The state of the source changed.
    Source(SourceChange<'a>),
    /// The running model changed, or a model was not taken.
    Model(ModelChange),
    /// SIGHUP was handled.
    Reload(Reloaded),
    /// A frame was classified, or found to be still.
    #[serde(untagged)]
    Frame(FrameReport<'a>),
}

/// A change of the reported label.
#[derive(Serialize)]
pub struct LabelChange<'a> {
    /// Time of the change.
    pub time: String,
    /// Number of the frame, from 0.
    pub frame: u64,
    /// The file, device or stream of the frame.
    pub source: &'a str,
    /// The label before.
    pub from: &'a str,
    /// The label from now on.
    pub to: &'a str,
    /// Score of the new label, averaged with `--smooth`, 0 to 1.
    pub score: f32,
    /// Optional: true if the new label is a background class of the head.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub background: bool,
}

/// A change of the source's state.
#[derive(Serialize)]
pub struct SourceChange<'a> {
    /// Time of the change.
    pub time: String,
    /// Name of the source; in text only.
    #[serde(skip)]
    pub name: &'a str,
    /// The new state: `opening`, `streaming`, `stalled`, `frozen`, `lost` or `ended`.
    pub state: SourceState,
    /// The format of the frames, or the reason for the change.
    pub detail: String,
}

/// The outcome for a model: a base with its head.
#[derive(Serialize)]
pub struct ModelChange {
    /// Time of the change.
    pub time: String,
    /// The outcome.
    pub state: ModelState,
    /// Optional: SHA-256 of the head file that runs from now on, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// Optional: SHA-256 of the base file that runs from now on, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Optional: version of the head from its verified signature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Optional: why another model than the one in place runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Optional: why the model could not be saved to the state directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unkept: Option<String>,
    /// The event for people.
    #[serde(skip)]
    pub text: String,
}

/// Outcomes for a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelState {
    /// The model in place runs from now on.
    Swapped,
    /// The model in place is not usable; the last good one runs.
    LastGood,
    /// `edge rollback` selected an earlier model, which runs from now on.
    RolledBack,
    /// A new model was refused; the running one stays.
    Refused,
    /// A new head or base does not fit the other file yet; the running model stays.
    Waiting,
    /// The files in place are those of the running model again.
    Settled,
}

impl From<Origin> for ModelState {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::InPlace => Self::Swapped,
            Origin::LastGood => Self::LastGood,
            Origin::RolledBack => Self::RolledBack,
        }
    }
}

impl ModelChange {
    /// The model of a swap runs from now on.
    pub fn swapped<T>(swap: &Swap<T>) -> Self {
        Self {
            time: time(),
            state: swap.origin.into(),
            head: Some(swap.id.head.to_string()),
            base: Some(swap.id.base.to_string()),
            version: swap.version,
            detail: swap.why.clone(),
            unkept: swap.unkept.clone(),
            text: swap.to_string(),
        }
    }

    /// A new model is [`ModelState::Refused`] or [`ModelState::Waiting`].
    pub fn not_taken(state: ModelState, reason: String) -> Self {
        let name = if state == ModelState::Waiting { "waiting" } else { "refused" };
        let text = format!("{name}, the running model stays: {reason}");
        Self { detail: Some(reason), ..Self::bare(state, text) }
    }

    /// The files in place are those of the running model again.
    pub fn settled() -> Self {
        let text = "the files in place are those of the running model again";
        Self::bare(ModelState::Settled, text.into())
    }

    fn bare(state: ModelState, text: String) -> Self {
        Self {
            time: time(),
            state,
            head: None,
            base: None,
            version: None,
            detail: None,
            unkept: None,
            text,
        }
    }

    fn needs_attention(&self) -> bool {
        !matches!(self.state, ModelState::Swapped | ModelState::Settled) || self.unkept.is_some()
    }
}

/// The outcome of a reload.
#[derive(Serialize)]
pub struct Reloaded {
    /// Time of the outcome.
    pub time: String,
    /// Whether the new settings are in use.
    pub ok: bool,
    /// Optional: why the old settings stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A frame's result.
///
/// As JSON it is [`FrameReport::record`], whose fields [`FrameResult`] documents.
pub struct FrameReport<'a> {
    /// The result as it is written.
    pub record: FrameResult<'a>,
    /// Time from the decoded frame to the result in milliseconds, not rounded.
    pub latency_ms: f64,
    /// Time from the capture to the result in milliseconds, not rounded; live sources only.
    pub age_ms: Option<f64>,
    /// The threshold that applied.
    pub threshold: f32,
    /// Frames dropped so far.
    pub dropped: u64,
}

impl Serialize for FrameReport<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.record.serialize(serializer)
    }
}

impl Event<'_> {
    /// The event as one line of JSON, without the line end.
    pub fn to_json(&self) -> String {
        match self {
            Self::Frame(frame) => frame.record.to_json(),
            // A `Value` sorts the keys. Strings, numbers and flags cannot fail to serialize.
            event => serde_json::to_value(event).unwrap_or_default().to_string(),
        }
    }

    /// The event as one line for people, without the line end.
    pub fn to_text(&self) -> String {
        match self {
            Self::Label(LabelChange { source, from, to, score, .. }) => {
                format!("{source}\t{from}\t{to}\t{score:.3}")
            }
            Self::Source(change) => format!("{}: {}", change.name, change.summary()),
            Self::Model(change) => change.text.clone(),
            Self::Reload(Reloaded { detail: None, .. }) => "reloaded".into(),
            Self::Reload(Reloaded { detail: Some(detail), .. }) => {
                format!("reload failed, keeping the old settings: {detail}")
            }
            Self::Frame(frame) => frame.record.to_string(),
        }
    }

    /// The level of the event in the log.
    pub fn level(&self) -> log::Level {
        use SourceState::{Frozen, Lost, Stalled};
        let failing = matches!(self, Self::Source(change)
            if matches!(change.state, Lost | Stalled | Frozen));
        if failing || self.needs_attention() { log::Level::Warn } else { log::Level::Info }
    }

    /// Whether the event belongs on stderr too when stdout carries events: somebody has to act.
    pub fn needs_attention(&self) -> bool {
        match self {
            Self::Model(change) => change.needs_attention(),
            Self::Reload(reload) => !reload.ok,
            _ => false,
        }
    }
}

impl SourceChange<'_> {
    /// The state and the detail, without the name.
    pub fn summary(&self) -> String {
        format!("{}: {}", format!("{:?}", self.state).to_lowercase(), self.detail)
    }
}

/// Where events are written to: stdout, the page's status, the service manager.
pub trait EventSink {
    /// Writes an event.
    ///
    /// # Errors
    /// If what it is written to has failed, which ends the run.
    fn emit(&mut self, event: &Event<'_>) -> io::Result<()>;

    /// Ends the output.
    fn finish(&mut self) {}
}

/// Passes each event to several sinks, in their order.
pub struct FanOut(pub Vec<Box<dyn EventSink>>);

impl EventSink for FanOut {
    fn emit(&mut self, event: &Event<'_>) -> io::Result<()> {
        self.0.iter_mut().try_for_each(|sink| sink.emit(event))
    }

    fn finish(&mut self) {
        self.0.iter_mut().for_each(|sink| sink.finish());
    }
}

#[cfg(test)]
mod tests {
    use vgg_edge::classifier::Classification;

    use super::*;

    const TIME: &str = "2026-11-24T10:00:00.000Z";

    fn check(event: &Event<'_>, json: &str, text: &str) {
        assert_eq!(event.to_json(), json);
        assert_eq!(event.to_text(), text);
    }

    #[test]
    fn label_event_schema() {
        for (background, start) in [(false, "{"), (true, r#"{"background":true,"#)] {
            let change = LabelChange {
                time: TIME.into(),
                frame: 7,
                source: "a.jpg",
                from: "cat",
                to: "dog",
                score: 0.75,
                background,
            };
            let json = start.to_owned()
                + r#""event":"label","frame":7,"from":"cat","score":0.75,"#
                + &format!(r#""source":"a.jpg","time":"{TIME}","to":"dog"}}"#);
            check(&Event::Label(change), &json, "a.jpg\tcat\tdog\t0.750");
        }
    }

    #[test]
    fn source_event_schema() {
        let event = Event::Source(SourceChange {
            time: TIME.into(),
            name: "/dev/video0",
            state: SourceState::Lost,
            detail: "the camera was unplugged".into(),
        });
        let json = r#"{"detail":"the camera was unplugged","event":"source","state":"lost","#
            .to_owned()
            + &format!(r#""time":"{TIME}"}}"#);
        check(&event, &json, "/dev/video0: lost: the camera was unplugged");
        assert_eq!((event.level(), event.needs_attention()), (log::Level::Warn, false));
    }

    #[test]
    fn model_event_schema() {
        let swapped = ModelChange {
            time: TIME.into(),
            state: ModelState::LastGood,
            head: Some("aa".into()),
            base: Some("bb".into()),
            version: Some(3),
            detail: Some("damaged".into()),
            unkept: Some("disk full".into()),
            text: "runs aa".into(),
        };
        let json = r#"{"base":"bb","detail":"damaged","event":"model","head":"aa","#.to_owned()
            + &format!(r#""state":"last-good","time":"{TIME}","unkept":"disk full","version":3}}"#);
        let event = Event::Model(swapped);
        check(&event, &json, "runs aa");
        assert!(event.needs_attention());

        let at = |change: ModelChange| Event::Model(ModelChange { time: TIME.into(), ..change });
        let refused = at(ModelChange::not_taken(ModelState::Refused, "not signed".into()));
        let json = format!(
            r#"{{"detail":"not signed","event":"model","state":"refused","time":"{TIME}"}}"#
        );
        check(&refused, &json, "refused, the running model stays: not signed");
        assert!(refused.needs_attention());
        let settled = at(ModelChange::settled());
        let json = format!(r#"{{"event":"model","state":"settled","time":"{TIME}"}}"#);
        check(&settled, &json, "the files in place are those of the running model again");
        assert!(!settled.needs_attention());
        let names = [
            (ModelState::Swapped, "swapped"),
            (ModelState::RolledBack, "rolled-back"),
            (ModelState::Waiting, "waiting"),
        ];
        for (state, name) in names {
            assert_eq!(serde_json::json!(state), name);
        }
    }

    #[test]
    fn reload_event_schema() {
        let event = |detail: Option<&str>| {
            let detail = detail.map(str::to_owned);
            Event::Reload(Reloaded { time: TIME.into(), ok: detail.is_none(), detail })
        };
        let json = format!(r#"{{"event":"reload","ok":true,"time":"{TIME}"}}"#);
        check(&event(None), &json, "reloaded");
        let json = format!(r#"{{"detail":"no head","event":"reload","ok":false,"time":"{TIME}"}}"#);
        let text = "reload failed, keeping the old settings: no head";
        check(&event(Some("no head")), &json, text);
        assert!(event(Some("no head")).needs_attention() && !event(None).needs_attention());
    }

    #[test]
    fn frame_schema_has_no_event_key() {
        let labels = ["b".to_owned(), "a".to_owned()];
        let result = Classification {
            label: "b".into(),
            score: 0.75,
            scores: vec![0.75, 0.25],
            latency_ms: 1.5,
            digest: None,
        };
        let mut record = FrameResult::new(2, "x.jpg", &labels, &result);
        record.time = TIME.into();
        let frame =
            FrameReport { record, latency_ms: 1.5, age_ms: None, threshold: 0.5, dropped: 0 };
        let json =
            format!(r#"{{"frame":2,"source":"x.jpg","time":"{TIME}","label":"b","score":0.75,"#)
                + r#""scores":{"b":0.75,"a":0.25},"latency_ms":1.5}"#;
        let event = Event::Frame(frame);
        check(&event, &json, "x.jpg\tb\t0.750");
        assert_eq!(serde_json::to_string(&event).unwrap(), json);
    }
}
