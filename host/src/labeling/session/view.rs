//! The state of a session as JSON, for the page and for the summary.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Choice, Item, LabelSession, Status, UserError};

/// The maximum number of scores of an image that are shown.
const MAX_SCORES: usize = 100;

impl LabelSession {
    /// Returns what the page shows, with an error if an image has vanished in the meantime.
    pub fn state(&mut self) -> (Value, Option<UserError>) {
        let (open, vanished) = self.next_images();
        let classes: Vec<Value> =
            self.classes.iter().map(|c| json!({ "name": c.name, "count": c.count })).collect();
        let state = json!({
            "folder": self.inbox.path().to_string_lossy(),
            "data": self.data.path().to_string_lossy(),
            "total": self.items.len(),
            "open": self.count(&[Status::Open]),
            "sorted": self.count(&[Status::Sorted]),
            "rejected": self.count(&[Status::Rejected]),
            "skipped": self.count(&[Status::Skipped]),
            "gone": self.count(&[Status::Gone]),
            "steps": self.steps.len(),
            "classes": classes,
            "item": open.first().map(|&id| self.describe(id)),
            "next": open.get(1),
        });
        (state, vanished)
    }

    /// The next two images to label; those that have vanished are marked.
    fn next_images(&mut self) -> (Vec<usize>, Option<UserError>) {
        let mut vanished = None;
        let mut open = Vec::new();
        for id in 0..self.items.len() {
            let item = &self.items[id];
            if item.status != Status::Open {
                continue;
            }
            if !self.inbox.has(&item.name) {
                vanished = Some(self.gone(&item.name.to_string_lossy()));
                self.items[id].status = Status::Gone;
                continue;
            }
            open.push(id);
            if open.len() == 2 {
                break;
            }
        }
        (open, vanished)
    }

    fn count(&self, wanted: &[Status]) -> usize {
        self.items.iter().filter(|item| wanted.contains(&item.status)).count()
    }

    fn describe(&self, id: usize) -> Value {
        let item = &self.items[id];
        let mut value = json!({
            "id": id,
            "file": item.name.to_string_lossy(),
            "suggestion": self.suggestion(item),
        });
        if let Some(prediction) = &item.prediction {
            let scores: Map<String, Value> = prediction
                .scores
                .iter()
                .take(MAX_SCORES)
                .map(|(label, score)| (label.clone(), json!(score)))
                .collect();
            value["label"] = json!(prediction.label);
            value["scores"] = scores.into();
            value["time"] = json!(prediction.time);
            value["source"] = json!(prediction.source);
            value["reason"] = json!(prediction.reason);
        }
        value
    }

    /// The class that edge predicted, or would have predicted without a threshold.
    pub(super) fn suggestion<'a>(&self, item: &'a Item) -> Option<&'a str> {
        let prediction = item.prediction.as_ref()?;
        let is_class = |label: &str| self.classes.iter().any(|class| class.name == label);
        let best = prediction.scores.first().map(|(label, _)| label);
        let mut labels = std::iter::once(&prediction.label).chain(best);
        labels.find(|label| is_class(label)).map(String::as_str)
    }

    /// Returns how many images of this run went where, and how many are left.
    pub fn summary(&self) -> Value {
        let mut classes = BTreeMap::new();
        for step in &self.steps {
            if let Choice::Class(class) = &step.choice {
                *classes.entry(class.as_str()).or_insert(0) += 1;
            }
        }
        json!({
            "sorted": self.count(&[Status::Sorted]),
            "rejected": self.count(&[Status::Rejected]),
            "left": self.count(&[Status::Open, Status::Skipped]),
            "classes": classes,
        })
    }
}
