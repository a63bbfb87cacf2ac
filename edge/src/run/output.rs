//! Where the events of a run go: stdout, the page's status, and the service manager.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use log::log;
use serde_json::{Map, json};
use vgg_edge_cli::terminal::print_line;

use crate::events::{Event, EventSink, FanOut, FrameReport, ModelState, SourceChange};
use crate::run::settings::OutputSettings;
use crate::service::ServiceStatus;
use crate::source::SourceState;
use crate::status::{Snapshot, Status};

/// Moves to the start of the line and clears it.
const CLEAR_LINE: &str = "\r\x1b[K";

/// Returns the sinks of a run. The status is first: whoever reads an event on stdout finds it on
/// the page.
pub fn sinks(settings: OutputSettings, is_live: bool, status: &Arc<Status>) -> FanOut {
    FanOut(vec![
        Box::new(StatusSink(status.clone())),
        Box::new(StdoutSink::new(settings, is_live)),
        Box::new(ServiceSink(ServiceStatus::default())),
    ])
}

/// Results or events on stdout; events on stderr if stdout carries results as text.
struct StdoutSink {
    json: bool,
    events: bool,
    /// Whether results overwrite each other in one line: live on a terminal.
    status_line: bool,
}

impl StdoutSink {
    fn new(OutputSettings { json, events, .. }: OutputSettings, is_live: bool) -> Self {
        let status_line = is_live && !json && !events && io::stdout().is_terminal();
        Self { json, events, status_line }
    }

    fn frame(&self, frame: &FrameReport<'_>, event: &Event<'_>) -> io::Result<()> {
        if self.json {
            return print_line(event.to_json());
        }
        if !self.status_line {
            return print_line(&frame.record);
        }
        let FrameReport { record, latency_ms, age_ms, dropped, .. } = frame;
        let age = age_ms.unwrap_or_default();
        let still = if record.still { "  still" } else { "" };
        let mut out = io::stdout().lock();
        write!(
            out,
            "{CLEAR_LINE}{}  {:.3}  {latency_ms:.1} ms, age {age:.0} ms, frame {}, \
             {dropped} dropped{still}",
            record.label, record.score, record.frame
        )?;
        out.flush()
    }
}

impl EventSink for StdoutSink {
    fn emit(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Frame(_) if self.events => return Ok(()),
            Event::Frame(frame) => return self.frame(frame, event),
            Event::Label(_) if !self.events => return Ok(()),
            _ => {}
        }
        self.finish();
        let is_stdout = self.json || self.events;
        if !is_stdout || event.needs_attention() {
            log!(event.level(), "{}", event.to_text());
        }
        match (self.json, self.events) {
            (true, _) => print_line(event.to_json()),
            (false, true) => print_line(event.to_text()),
            (false, false) => Ok(()),
        }
    }

    fn finish(&mut self) {
        if self.status_line {
            // A terminal that is gone has no line to clear.
            let _ = write!(io::stdout(), "{CLEAR_LINE}");
        }
    }
}

/// The snapshot and the timeline of the page.
struct StatusSink(Arc<Status>);

impl StatusSink {
    fn frame(&self, frame: &FrameReport<'_>) {
        let record = &frame.record;
        let change = |now: &mut Snapshot| {
            now.label = Some(record.label.to_owned());
            now.score = Some(record.score);
            let scores = record.scores.labels.iter().zip(record.scores.scores);
            let scores = scores.map(|(label, score)| (label.clone(), json!(score)));
            now.scores = Some(scores.collect::<Map<_, _>>());
            now.threshold = frame.threshold;
            now.still = record.still;
            now.skipped += u64::from(record.still);
            now.age_ms = frame.age_ms;
            now.frames = record.frame + 1;
        };
        if record.still {
            self.0.still(change);
        } else {
            self.0.classified(frame.latency_ms, change);
        }
    }

    fn source(&self, change: &SourceChange<'_>) {
        use SourceState::{Frozen, Lost, Stalled};
        self.0.update(|now| {
            now.source.state = change.state;
            now.source.detail.clone_from(&change.detail);
            if matches!(change.state, Lost | Stalled | Frozen) {
                now.source.lost += 1;
                now.fps = 0.0;
            }
        });
        self.0.log("source", change.summary(), None);
    }

    fn model(&self, state: ModelState, text: &str) {
        self.0.update(|now| match state {
            ModelState::LastGood => now.model.refused += 1,
            ModelState::Refused | ModelState::Waiting => {
                now.model.note = Some(text.to_owned());
                now.model.refused += u64::from(state == ModelState::Refused);
            }
            ModelState::Settled => now.model.note = None,
            ModelState::Swapped | ModelState::RolledBack => {}
        });
        self.0.log("model", text.to_owned(), None);
    }
}

impl EventSink for StatusSink {
    fn emit(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Frame(frame) => self.frame(frame),
            Event::Label(change) => {
                let text = format!("{} \u{2192} {}", change.from, change.to);
                self.0.log("label", text, Some(change.score));
            }
            Event::Source(change) => self.source(change),
            Event::Model(change) => self.model(change.state, &change.text),
            Event::Reload(_) => self.0.log("reload", event.to_text(), None),
        }
        Ok(())
    }
}

/// The status of the service shows the state of the source.
struct ServiceSink(ServiceStatus);

impl EventSink for ServiceSink {
    fn emit(&mut self, event: &Event<'_>) -> io::Result<()> {
        if let Event::Source(_) = event {
            self.0.set(&event.to_text());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::ModelChange;

    #[test]
    fn status_sink_counts_refused_models_and_lost_sources() {
        let status = Arc::new(Status::new());
        let mut sink = StatusSink(status.clone());
        let refused = ModelChange::not_taken(ModelState::Refused, "not signed".into());
        let mut emit = |event| sink.emit(&event).unwrap();
        emit(Event::Model(refused));
        emit(Event::Model(ModelChange::not_taken(ModelState::Waiting, "other base".into())));
        for state in [SourceState::Streaming, SourceState::Lost] {
            let (time, detail) = (String::new(), "x".to_owned());
            emit(Event::Source(SourceChange { time, name: "camera", state, detail }));
        }
        status.update(|now| {
            assert_eq!((now.model.refused, now.source.lost), (1, 1));
            assert_eq!(now.source.state, SourceState::Lost);
            assert!(now.model.note.as_ref().unwrap().contains("other base"));
        });
        emit(Event::Model(ModelChange::settled()));
        status.update(|now| assert_eq!(now.model.note, None));
        assert_eq!(status.entries(0).len(), 5);
    }
}
