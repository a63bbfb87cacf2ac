//! A reload of settings and model, as one transaction: all of it takes effect, or nothing.
//!
//! Everything that is quick is prepared at once. The model is loaded by the thread of the
//! [`ModelManager`](crate::model::manager::ModelManager), while frames are classified as before.

use anyhow::{Result, bail};
use vgg_edge_cli::record::time;

use crate::collect::Collector;
use crate::events::{Event, ModelChange, Reloaded};
use crate::model::manager::Swap;
use crate::run::engine::Engine;
use crate::run::main_loop::{Run, access, model_spec, open_collector, start_server};
use crate::run::settings::RunSettings;
use crate::run::{input, output};
use crate::source::FrameSource;
use crate::status::RunInfo;
use crate::web::Access;

/// A reload that waits for its model.
pub(super) struct Reload {
    settings: RunSettings,
    /// Replaces the collector, if its settings have changed.
    collector: Option<Option<Collector>>,
    /// Replaces the source, if its settings have changed.
    source: Option<FrameSource>,
    /// The access of the old server, if the new one runs already: the port must be released before
    /// it can be bound again.
    old_access: Option<Option<Access>>,
}

impl Run<'_> {
    /// Begins a reload; [`Run::end_reload`] follows, unless it fails at once.
    pub(super) fn begin_reload(&mut self) -> Result<()> {
        self.service.reloading();
        match self.prepare_reload() {
            Ok(reload) => self.pending = Some(reload),
            Err(error) => self.reload_failed(error)?,
        }
        Ok(())
    }

    /// Prepares everything but the model, and orders that; on an error nothing has changed.
    fn prepare_reload(&mut self) -> Result<Reload> {
        let settings = (self.read_settings)()?;
        if settings.sandbox != self.settings.sandbox {
            bail!("cannot change the sandbox while running; restart edge");
        }
        let sources = [&settings.source, &self.settings.source];
        let is_same_source = sources[0] == sources[1];
        if sources.iter().all(|source| source.is_stdin()) && !is_same_source {
            bail!("cannot change how stdin is decoded while running; restart edge");
        }
        let spec = model_spec(&settings, &self.id)?;
        let options = settings.collect.as_ref().map(|collect| &collect.options);
        let collector = if options == self.collector.get().map(Collector::options) {
            None
        } else {
            Some(open_collector(&settings, &self.status)?)
        };
        let source = if is_same_source { None } else { Some(input::open(&settings.source)?) };
        let new_access = access(&settings);
        let old_access = self.server.get().map(|server| server.access().clone());
        let is_same_access = new_access == old_access;
        if !is_same_access {
            self.replace_server(new_access, old_access.clone())?;
        }
        let old_access = (!is_same_access).then_some(old_access);
        let reload = Reload { settings, collector, source, old_access };
        if let Err(error) = self.models.reload(spec) {
            self.abandon_reload(reload)?;
            return Err(error);
        }
        Ok(reload)
    }

    /// Ends the pending reload with the outcome for the model.
    pub(super) fn end_reload(&mut self, outcome: Result<Swap<(Engine, RunInfo)>>) -> Result<()> {
        let Some(reload) = self.pending.take() else { return Ok(()) };
        match outcome {
            Ok(swap) => self.finish_reload(reload, swap),
            Err(error) => {
                self.abandon_reload(reload)?;
                self.reload_failed(error)
            }
        }
    }

    fn finish_reload(&mut self, reload: Reload, swap: Swap<(Engine, RunInfo)>) -> Result<()> {
        if let Some(collector) = reload.collector {
            self.collector.put(collector);
        }
        if let Some(source) = reload.source {
            self.source.replace(source);
        }
        self.settings = reload.settings;
        // Both are open, or the reload would have failed.
        self.collector.stop_retrying();
        self.server.stop_retrying();
        self.events = output::sinks(self.settings.output, self.source.is_live(), &self.status);
        self.show_source();
        if swap.is_odd() {
            self.report(&Event::Model(ModelChange::swapped(&swap)))?;
        }
        self.install(swap);
        self.report(&Event::Reload(Reloaded { time: time(), ok: true, detail: None }))?;
        self.service.ready();
        Ok(())
    }

    /// Restores what [`Run::prepare_reload`] has replaced.
    fn abandon_reload(&mut self, reload: Reload) -> Result<()> {
        if let Some(access) = reload.old_access {
            self.server.put(None);
            self.server.put(start_server(access, &self.status)?);
        }
        Ok(())
    }

    fn reload_failed(&mut self, error: anyhow::Error) -> Result<()> {
        let detail = Some(format!("{:#}", self.sandbox.explain(error)));
        self.report(&Event::Reload(Reloaded { time: time(), ok: false, detail }))?;
        self.service.ready();
        Ok(())
    }

    /// Starts a server in place of the running one, or the old one again if that fails.
    fn replace_server(&mut self, access: Option<Access>, old: Option<Access>) -> Result<()> {
        self.server.put(None);
        match start_server(access, &self.status) {
            Ok(server) => {
                self.server.put(server);
                Ok(())
            }
            Err(error) => {
                self.server.put(start_server(old, &self.status)?);
                Err(error)
            }
        }
    }
}
