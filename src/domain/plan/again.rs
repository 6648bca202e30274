//! An item whose write met something else than was planned against: what is there now decides.

use serde_json::Value;

use super::{
    Action, Content, Item, LiveState,
    desired::add_what_only_live_knows,
    json,
    write::{is_unfinished, state},
};
use crate::domain::object::{Digest, canonical};

/// An object as it is now.
#[derive(Clone, Copy)]
pub struct Now<'a> {
    /// Its canonical content.
    pub content: &'a Value,
    /// As the server gave it.
    pub raw: &'a Value,
}

impl Now<'_> {
    fn text(&self, field: &str) -> &str {
        json::text(self.raw, &["metadata", field]).unwrap_or_default()
    }
}

/// What is left to do about an item.
#[derive(Clone, Debug, PartialEq)]
pub enum Again {
    /// Nothing: it is as it should be.
    Reached,
    /// The same, against the object as it is now.
    Planned(Box<Item>),
    /// Wait: what was there is being deleted.
    Leaving,
    /// It is neither as planned nor as it should be, and how.
    Moved(&'static str),
}

impl Item {
    /// Compares what is there now (`None`: nothing) with what the item was planned against and with what it is to become.
    pub fn again(&self, now: Option<Now<'_>>) -> Again {
        let Some(now) = now else {
            return match self.action {
                Action::Create => Again::Planned(Box::new(self.clone())),
                Action::Delete => Again::Reached,
                _ => Again::Moved("it was deleted meanwhile"),
            };
        };
        if json::at(now.raw, &["metadata", "deletionTimestamp"]).is_some_and(|time| !time.is_null()) {
            return match self.action {
                Action::Create => Again::Leaving,
                Action::Delete => Again::Reached,
                _ => Again::Moved("it is being deleted"),
            };
        }
        let masked = |content: &Value| match &self.desired {
            Some(wanted) => canonical::digest(&wanted.masked(content)),
            None => canonical::digest(content),
        };
        let digest = masked(now.content);
        let owners = json::list(now.raw, &["metadata", "managedFields"]);
        let unfinished = is_unfinished(&owners.cloned().collect::<Vec<_>>());
        if matches!(self.action, Action::Create | Action::Update) && Some(digest) == self.target_digest {
            return if unfinished {
                Again::Planned(Box::new(self.against(now)))
            } else {
                Again::Reached
            };
        }
        let Some(live) = &self.live else {
            return Again::Moved("it was created meanwhile");
        };
        if now.text("uid") != live.uid {
            return Again::Moved("it was deleted and created again meanwhile");
        }
        if digest == live.digest || self.is_scaled_only(now.content, live.digest) {
            return Again::Planned(Box::new(self.against(now)));
        }
        Again::Moved("it was changed meanwhile")
    }

    /// Of an object that goes, what an autoscaler does is no change.
    fn is_scaled_only(&self, content: &Value, planned: Digest) -> bool {
        if self.desired.is_some() {
            return false;
        }
        let mut content = content.clone();
        json::put(&mut content, &["spec", "replicas"], None);
        canonical::digest(&content) == planned
    }

    /// The same item with what only the live object knows as it is now.
    fn against(&self, now: Now<'_>) -> Self {
        let mut item = self.clone();
        item.live = Some(LiveState {
            uid: now.text("uid").to_owned(),
            resource_version: now.text("resourceVersion").to_owned(),
            digest: self
                .live
                .as_ref()
                .map_or_else(|| canonical::digest(now.content), |live| live.digest),
            content: Content(now.content.clone()),
            managed_fields: json::list(now.raw, &["metadata", "managedFields"]).cloned().collect(),
            state: state(now.raw),
        });
        if item.action == Action::Create {
            // It was created, and is to be finished.
            item.action = Action::Update;
        }
        if let Some(wanted) = &mut item.desired {
            add_what_only_live_knows(&item.id, &mut wanted.object.0, now.raw);
            for path in wanted.masked_paths() {
                json::put(&mut wanted.content.0, path, json::at(now.content, path).cloned());
                json::put(&mut wanted.object.0, path, json::at(now.raw, path).cloned());
            }
        }
        item
    }
}
