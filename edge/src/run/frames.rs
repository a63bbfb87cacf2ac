//! The way of a frame: decoded, classified, reported, collected, shown.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use log::warn;
use vgg_edge_cli::record::{FrameResult, time};

use crate::collect::{Collected, Reason};
use crate::events::{Event, EventSink, FrameReport, LabelChange};
use crate::frame::Frame;
use crate::run::engine::Outcome;
use crate::run::main_loop::Run;
use crate::smoothing::label;
use crate::source::TimedFrame;

impl Run<'_> {
    /// Handles a frame.
    pub(super) fn on_frame(&mut self, frame: TimedFrame) -> Result<()> {
        let unreadable = self.classify(frame)?;
        let counts = &mut self.counts;
        let reported = std::mem::replace(&mut counts.unreadable_reported, unreadable.is_some());
        if let Some(reason) = unreadable {
            counts.unreadable += 1;
            // A camera that delivers nothing but faulty frames must not fill the log.
            if !(self.source.is_live() && reported) {
                warn!("{reason}");
            }
        }
        self.update_lost();
        self.counts.number += 1;
        Ok(())
    }

    /// Classifies a frame and reports the result; returns the reason if it cannot be read.
    fn classify(&mut self, frame: TimedFrame) -> Result<Option<String>> {
        let TimedFrame { name, frame, at } = frame;
        let frame = frame.decoded();
        self.source.judge(frame.is_ok());
        let frame = match frame {
            Ok(frame) => frame,
            Err(e) => return Ok(Some(format!("{name}: {e}"))),
        };
        let (mut result, decision, still) = match self.engine.classify(&frame)? {
            Outcome::Classified { result, decision, still } => (result, decision, still),
            Outcome::Unreadable(reason) => return Ok(Some(format!("{name}: {reason}"))),
        };
        let age_ms = at.map(|at| at.elapsed().as_secs_f64() * 1e3);
        let (best, latency_ms) = (result.score, result.latency_ms);
        let threshold = self.engine.classifier.threshold();
        let head = self.engine.classifier.head();
        let labels = &head.labels;
        // The decision over the frames so far; with neither --smooth nor --min-frames it is that
        // of this frame, bit for bit.
        result.label = label(labels, decision.label).to_owned();
        result.score = decision.score;
        result.scores = self.engine.scores().to_vec();
        let background = head.is_background(&result.label);

        let mut record = FrameResult::new(self.counts.number, &name, labels, &result);
        record.age_ms = age_ms.map(|age| (age * 1e3).round() / 1e3);
        record.still = still;
        record.background = background;
        let dropped = self.source.lost().dropped;
        let report = FrameReport { record, latency_ms, age_ms, threshold, dropped };
        self.events.emit(&Event::Frame(report))?;

        // The first label of all is not a change.
        let before = self.engine.reported.replace(result.label.clone());
        let before = before.filter(|before| *before != result.label);
        if let Some(from) = &before {
            self.events.emit(&Event::Label(LabelChange {
                time: time(),
                frame: self.counts.number,
                source: &name,
                from,
                to: &result.label,
                score: result.score,
                background,
            }))?;
        }

        let threshold = self
            .settings
            .collect
            .as_ref()
            .map_or(threshold, |collect| collect.threshold.max(threshold));
        // A frame without anything of interest is not one to train on.
        let reason = if before.is_some() && !background {
            Some(Reason::Changed)
        } else {
            (!still && best < threshold).then_some(Reason::Unsure)
        };
        let collected = reason.filter(|reason| self.is_collecting(*reason, at)).map(|reason| {
            let labels = labels.iter().cloned();
            (reason, result.label, labels.zip(result.scores).collect())
        });
        let frame = Arc::new(frame);
        if let Some((reason, label, scores)) = collected
            && let Some(collector) = self.collector.get()
        {
            let (frame, time, source) = (frame.clone(), time(), name);
            collector.keep(Collected { frame, at, time, source, reason, label, scores });
        }
        self.show(frame);
        Ok(None)
    }

    fn is_collecting(&self, reason: Reason, at: Option<Instant>) -> bool {
        self.collector.get().is_some_and(|collector| collector.is_due(reason, at))
    }

    /// Shows an image on the page if somebody requests images; buffers that are not shown go back
    /// to the source.
    fn show(&self, frame: Arc<Frame>) {
        let unused =
            if self.status.wants_picture() { self.status.show(frame) } else { Some(frame) };
        if let Some(frame) = unused.and_then(Arc::into_inner) {
            self.source.recycle(frame);
        }
    }
}
