//! The state of a run and its main loop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use log::{info, warn};
use vgg_edge::Fingerprint;
use vgg_edge_cli::record::time;
use vgg_edge_cli::terminal::Signals;

use crate::collect::Collector;
use crate::events::{Event, EventSink, FanOut, ModelChange, ModelState, SourceChange};
use crate::model::manager::{ModelEvent, ModelManager, ModelSpec, Swap};
use crate::run::engine::Engine;
use crate::run::reload::Reload;
use crate::run::retry::Retried;
use crate::run::settings::RunSettings;
use crate::run::{input, output};
use crate::sandbox::Sandbox;
use crate::service::Service;
use crate::source::{FrameSource, Next, Report, SourceState};
use crate::status::{RunInfo, Status};
use crate::web::{Access, Server};

/// Longest wait for a frame before signals and the watchdog are checked.
const FRAME_WAIT: Duration = Duration::from_millis(200);

/// Counts of frames.
#[derive(Default)]
pub(super) struct FrameCounts {
    /// Frames so far: the number of the next one.
    pub(super) number: u64,
    /// Frames that could not be read.
    pub(super) unreadable: u64,
    /// Whether the last frame could not be read, and that was reported.
    pub(super) unreadable_reported: bool,
}

/// A run and its parts, in the order in which they are dropped.
pub(super) struct Run<'a> {
    pub(super) server: Retried<Server>,
    pub(super) collector: Retried<Collector>,
    pub(super) engine: Engine,
    pub(super) models: ModelManager<(Engine, RunInfo)>,
    pub(super) source: FrameSource,
    pub(super) events: FanOut,
    pub(super) service: Service,
    pub(super) status: Arc<Status>,
    pub(super) sandbox: Sandbox,
    pub(super) settings: RunSettings,
    pub(super) counts: FrameCounts,
    /// A reload that waits for its model.
    pub(super) pending: Option<Reload>,
    /// Identifier of the run, for the page.
    pub(super) id: String,
    pub(super) read_settings: &'a dyn Fn() -> Result<RunSettings>,
    signals: &'a Signals,
}

impl<'a> Run<'a> {
    /// Opens the source and loads the model.
    pub(super) fn start(
        settings: RunSettings,
        read_settings: &'a dyn Fn() -> Result<RunSettings>,
        signals: &'a Signals,
        sandbox: Sandbox,
    ) -> Result<Self> {
        let status = Arc::new(Status::new());
        status.set_sandbox(&sandbox);
        let id = Fingerprint::of(format!("{} {}", time(), std::process::id()).as_bytes()).short();
        let service = Service::new();
        // The source is opened first: its errors should not wait for the base.
        let mut source = input::open(&settings.source)?;
        source.start();
        let (swap, models) = ModelManager::start(model_spec(&settings, &id)?)?;
        let mut events = output::sinks(settings.output, source.is_live(), &status);
        if swap.is_odd() {
            events.emit(&Event::Model(ModelChange::swapped(&swap)))?;
        }
        let engine = install(swap, &status);
        let collector = Retried::open("collect", &status, || open_collector(&settings, &status))?;
        let server = Retried::open("page", &status, || start_server(access(&settings), &status))?;
        let run = Self {
            server,
            collector,
            engine,
            models,
            source,
            events,
            service,
            status,
            sandbox,
            settings,
            counts: FrameCounts::default(),
            pending: None,
            id,
            read_settings,
            signals,
        };
        run.show_source();
        run.service.ready();
        Ok(run)
    }

    /// Runs to the end.
    pub(super) fn run(mut self) -> Result<()> {
        while !self.signals.cancel.is_canceled() && !self.is_complete() {
            self.service.alive();
            if self.pending.is_none() && self.signals.take_hang_up() {
                self.begin_reload()?;
            }
            self.retry();
            // Between two frames: each frame is classified by one engine from start to end.
            while let Some(event) = self.models.news()? {
                self.on_model_event(event)?;
            }
            match self.source.next(FRAME_WAIT)? {
                Next::Frame(frame) => self.on_frame(frame)?,
                Next::Unreadable(reason) => {
                    self.counts.unreadable += 1;
                    self.counts.number += 1;
                    warn!("{reason}");
                }
                Next::Report(report) => self.on_source_report(report)?,
                Next::Idle => self.update_lost(),
                Next::End => {
                    self.status.update(|now| now.source.state = SourceState::Ended);
                    break;
                }
            }
        }
        self.finish()
    }

    fn is_complete(&self) -> bool {
        self.settings.frame_limit.is_some_and(|limit| self.counts.number >= limit)
    }

    fn finish(mut self) -> Result<()> {
        self.service.stopping();
        self.events.finish();
        let FrameCounts { number, unreadable, .. } = self.counts;
        let mut summary = format!("{number} frames, {unreadable} unreadable");
        if self.source.is_live() {
            let lost = self.source.lost();
            summary += &format!(", {} dropped, {} corrupt", lost.dropped, lost.corrupt);
        }
        info!("{summary}");
        if unreadable > 0 && unreadable == number {
            bail!("{}: no frame could be read", self.settings.source.name);
        }
        Ok(())
    }

    /// Opens again what failed for a reason that may have passed.
    fn retry(&mut self) {
        let Self { settings, status, .. } = self;
        self.collector.poll(status, || open_collector(settings, status));
        self.server.poll(status, || start_server(access(settings), status));
    }

    fn on_model_event(&mut self, event: ModelEvent<(Engine, RunInfo)>) -> Result<()> {
        match event {
            ModelEvent::Swap(swap) => {
                self.report(&Event::Model(ModelChange::swapped(&swap)))?;
                self.status.update(|now| now.model.swaps += 1);
                self.install(swap);
                Ok(())
            }
            ModelEvent::Reloaded(outcome) => self.end_reload(outcome),
            ModelEvent::Refused(error) => {
                let reason = format!("{:#}", self.sandbox.explain(error));
                self.report(&Event::Model(ModelChange::not_taken(ModelState::Refused, reason)))
            }
            ModelEvent::Waiting(reason) => {
                self.report(&Event::Model(ModelChange::not_taken(ModelState::Waiting, reason)))
            }
            ModelEvent::Settled => self.report(&Event::Model(ModelChange::settled())),
        }
    }

    fn on_source_report(&mut self, Report { state, detail }: Report) -> Result<()> {
        let name = &self.settings.source.name;
        self.events.emit(&Event::Source(SourceChange { time: time(), name, state, detail }))?;
        Ok(())
    }

    pub(super) fn report(&mut self, event: &Event<'_>) -> Result<()> {
        Ok(self.events.emit(event)?)
    }

    /// Puts the engine of a model in place of the running one.
    pub(super) fn install(&mut self, swap: Swap<(Engine, RunInfo)>) {
        let before = std::mem::replace(&mut self.engine, install(swap, &self.status));
        self.engine.inherit(before);
    }

    /// Shows the source on the page.
    pub(super) fn show_source(&self) {
        self.status.update(|now| {
            now.source.name.clone_from(&self.settings.source.name);
            if !self.source.is_live() {
                now.source.state = SourceState::Streaming;
                now.source.detail = "files".into();
            }
        });
    }

    /// Shows the counts of lost frames on the page.
    pub(super) fn update_lost(&self) {
        self.status.set_lost(self.source.lost(), self.counts.unreadable);
    }
}

/// Shows a model on the page, and returns its engine.
fn install(swap: Swap<(Engine, RunInfo)>, status: &Status) -> Engine {
    let note = swap.is_odd().then(|| swap.to_string());
    let (engine, info) = swap.made;
    status.set_run_info(info);
    status.update(|now| (now.model.origin, now.model.note) = (swap.origin, note));
    engine
}

/// Returns where the model is and how its engine is made.
pub(super) fn model_spec(
    settings: &RunSettings,
    run: &str,
) -> Result<ModelSpec<(Engine, RunInfo)>> {
    let files = settings.model.loader()?;
    let watch = settings.model.watch;
    let (settings, run) = (settings.clone(), run.to_owned());
    Ok(ModelSpec { files, make: Box::new(move |model| Engine::new(&settings, model, &run)), watch })
}

/// Returns the address and the token of the page.
pub(super) fn access(settings: &RunSettings) -> Option<Access> {
    settings.web.as_ref().map(|web| web.access.clone())
}

/// Opens the directory of collected frames, if there is one.
pub(super) fn open_collector(
    settings: &RunSettings,
    status: &Arc<Status>,
) -> Result<Option<Collector>> {
    let collect = settings.collect.as_ref();
    collect.map(|collect| Collector::new(&collect.options, status)).transpose()
}

/// Starts the server of the page, if it is served.
pub(super) fn start_server(access: Option<Access>, status: &Arc<Status>) -> Result<Option<Server>> {
    let Some(access) = access else { return Ok(None) };
    let server = Server::start(access, status.clone())?;
    info!("page at http://{}/", server.address());
    Ok(Some(server))
}
