//! An item whose write met something else than was planned against: what is there now decides.

use serde_json::Value;

use super::{
    Action, Item, LiveState,
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
            content: now.content.clone().into(),
            managed_fields: json::list(now.raw, &["metadata", "managedFields"]).cloned().collect(),
            state: state(now.raw),
        });
        if item.action == Action::Create {
            // It was created, and is to be finished.
            item.action = Action::Update;
        }
        if let Some(wanted) = &mut item.desired {
            add_what_only_live_knows(&item.id, wanted.object.edit(), now.raw);
            for path in wanted.masked_paths() {
                json::put(wanted.content.edit(), path, json::at(now.content, path).cloned());
                json::put(wanted.object.edit(), path, json::at(now.raw, path).cloned());
            }
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::{
        object::{KindInfo, ListShape, ObjectId, SecretValues, normalise},
        plan::testing::{World, autoscaler, config_map, deployment, everything, id},
    };

    fn cfg() -> ObjectId {
        id("", "ConfigMap", "cfg")
    }

    fn of(data: &str) -> World {
        let mut world = World::default();
        world.put(&cfg(), config_map(data));
        world.aged()
    }

    fn item(now: &World, then: &World, object: &ObjectId) -> Item {
        let plan = now.plan(then, &everything()).unwrap();
        plan.items().iter().find(|item| item.id == *object).unwrap().clone()
    }

    /// What `item` makes of the object as `world` holds it.
    fn again(item: &Item, world: &World) -> Again {
        let Some(raw) = world.objects.get(&item.id) else {
            return item.again(None);
        };
        let shape = ListShape::builtin(&item.id.group, &item.id.kind).unwrap();
        let kind = KindInfo::new(item.id.group.as_str(), "v1", item.id.kind.as_str());
        let normal = normalise(raw.clone(), &kind, &shape, SecretValues::Keep).unwrap();
        let content = serde_json::from_slice(&normal.content).unwrap();
        item.again(Some(Now { content: &content, raw }))
    }

    #[test]
    fn an_object_that_is_as_planned_is_written_at_its_new_resource_version() {
        let (mut now, then) = (of("new"), of("old"));
        let update = item(&now, &then, &cfg());
        now.set(&cfg(), &["metadata", "resourceVersion"], json!("9"));
        let Again::Planned(next) = again(&update, &now) else {
            unreachable!("{:?}", again(&update, &now))
        };
        assert_eq!(next.live.as_ref().unwrap().resource_version, "9");
        assert_eq!(
            next.desired.as_ref().unwrap().object["metadata"]["resourceVersion"],
            "9"
        );
        assert_eq!(next.desired.as_ref().unwrap().content, update.desired.unwrap().content);
    }

    #[test]
    fn an_object_that_somebody_changed_replaced_or_deleted_has_moved() {
        let (mut now, then) = (of("new"), of("old"));
        let update = item(&now, &then, &cfg());
        assert_eq!(again(&update, &then), Again::Reached, "it is what it is to become");
        assert!(matches!(again(&update, &of("third")), Again::Moved(_)));
        assert!(matches!(again(&update, &World::default()), Again::Moved(_)));
        now.set(&cfg(), &["metadata", "uid"], json!("another"));
        assert!(matches!(again(&update, &now), Again::Moved(_)));
    }

    #[test]
    fn what_is_to_come_back_may_have_appeared_or_be_still_going() {
        let then = of("old");
        let create = item(&World::default(), &then, &cfg());
        assert!(matches!(again(&create, &World::default()), Again::Planned(_)));
        assert_eq!(again(&create, &then), Again::Reached);
        assert!(matches!(again(&create, &of("another")), Again::Moved(_)));
        let mut going = then.clone();
        going.set(
            &cfg(),
            &["metadata", "deletionTimestamp"],
            json!("2026-01-05T00:00:00Z"),
        );
        assert_eq!(again(&create, &going), Again::Leaving);
    }

    #[test]
    fn a_create_that_was_cut_short_before_its_owners_came_back_is_finished() {
        let then = of("old");
        let create = item(&World::default(), &then, &cfg());
        let mut cut = then.clone();
        let owners = json!([{"manager": "backstep-restoring", "operation": "Update", "fieldsV1": {"f:data": {}}}]);
        cut.set(&cfg(), &["metadata", "managedFields"], owners);
        let Again::Planned(next) = again(&create, &cut) else {
            unreachable!("{:?}", again(&create, &cut))
        };
        assert_eq!(next.action, Action::Update);
        assert!(next.live.unwrap().is_unfinished());
    }

    #[test]
    fn what_an_autoscaler_does_meanwhile_is_kept_and_moves_nothing() {
        let (web, hpa) = (
            id("apps", "Deployment", "web"),
            id("autoscaling", "HorizontalPodAutoscaler", "web"),
        );
        let world = |image: &str, replicas: u32| {
            let mut world = World::default();
            world.put(&web, deployment(image, replicas));
            world.put(&hpa, autoscaler("web"));
            world.aged()
        };
        let update = item(&world("web:2", 3), &world("web:1", 3), &web);
        let Again::Planned(next) = again(&update, &world("web:2", 7)) else {
            unreachable!("{:?}", again(&update, &world("web:2", 7)))
        };
        assert_eq!(next.desired.unwrap().object["spec"]["replicas"], 7);
    }

    #[test]
    fn what_goes_may_be_gone_already_but_not_have_changed() {
        let (mut now, then) = (World::default(), World::default());
        now.put(&cfg(), config_map("new"));
        let delete = item(&now, &then, &cfg());
        assert_eq!(delete.action, Action::Delete);
        assert_eq!(again(&delete, &then), Again::Reached);
        assert!(matches!(again(&delete, &now), Again::Planned(_)));
        now.set(&cfg(), &["data"], json!({"mode": "third"}));
        assert!(matches!(again(&delete, &now), Again::Moved(_)));
    }
}
