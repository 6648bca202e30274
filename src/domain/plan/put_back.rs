//! Fields that the server puts back whatever is written, through admission or its defaults: learned from a dry run, they are no
//! difference that a rollback could ever bring about.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Item, KeptField,
    desired::{Desired, KeptReason},
    json,
};
use crate::domain::object::ObjectId;

/// What the server decides, by object.
pub type PutBack = BTreeMap<ObjectId, Vec<ServerField>>;

/// One field of a canonical content as the server makes it. A list is one field.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerField {
    /// Names from the root.
    path: Vec<String>,
    /// Its value; absent where the server takes it away. Never shown: it may be a Secret's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<Value>,
}

impl fmt::Debug for ServerField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerField").field(&self.path).finish()
    }
}

/// Two lists of what the server decides, as documents hold them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Of this object.
    pub object: ObjectId,
    /// These fields.
    pub fields: Vec<ServerField>,
}

/// As documents hold it.
pub fn to_entries(put_back: PutBack) -> Vec<Entry> {
    let entry = |(object, fields)| Entry { object, fields };
    put_back.into_iter().map(entry).collect()
}

/// As plans are made with it.
pub fn from_entries(entries: Vec<Entry>) -> PutBack {
    entries.into_iter().map(|entry| (entry.object, entry.fields)).collect()
}

impl Item {
    /// Where `answer`, the canonical content that the server answered a dry run of this item with, is not what was asked for.
    pub fn put_back(&self, answer: &Value) -> Vec<ServerField> {
        let mut fields = Vec::new();
        if let Some(wanted) = &self.desired {
            compare(&mut Vec::new(), Some(&*wanted.content), Some(answer), &mut fields);
            fields.retain(|field| wanted.yields(field));
        }
        fields
    }
}

fn compare(path: &mut Vec<String>, asked: Option<&Value>, answer: Option<&Value>, fields: &mut Vec<ServerField>) {
    if let (Some(Value::Object(asked)), Some(Value::Object(answer))) = (asked, answer) {
        let names: std::collections::BTreeSet<&String> = asked.keys().chain(answer.keys()).collect();
        for name in names {
            path.push(name.clone());
            compare(path, asked.get(name), answer.get(name), fields);
            path.pop();
        }
    } else if asked != answer {
        fields.push(ServerField {
            path: path.clone(),
            value: answer.cloned(),
        });
    }
}

impl Desired {
    /// Whether the server may have its way with `field`: not where live wins anyway, and not with owners, which a dry run leaves out
    /// where they are still to come.
    fn yields(&self, field: &ServerField) -> bool {
        let path: Vec<&str> = field.path.iter().map(String::as_str).collect();
        let within = |other: &[&str]| path.starts_with(other) || other.starts_with(&path);
        !within(&["metadata", "ownerReferences"]) && !self.masked.iter().any(|masked| within(masked))
    }

    /// Takes what the server makes of it for what is wanted. What is sent stays as it was captured: what the server adds by itself
    /// stays nobody's.
    pub(super) fn accept(&mut self, fields: &[ServerField]) {
        for field in fields {
            let path: Vec<&str> = field.path.iter().map(String::as_str).collect();
            if !self.yields(field) || json::at(&self.content, &path) == field.value.as_ref() {
                continue;
            }
            json::put(self.content.edit(), &path, field.value.clone());
            self.kept.push(KeptField {
                path: field.path.join("."),
                reason: KeptReason::KeptByServer,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::plan::{
        Action, KeepReason, Note,
        testing::{World, autoscaler, config_map, deployment, everything, facts, id},
    };

    fn cfg() -> ObjectId {
        id("", "ConfigMap", "cfg")
    }

    fn of(data: &str, team: Option<&str>) -> World {
        let mut world = World::default();
        world.put(&cfg(), config_map(data));
        if let Some(team) = team {
            world.set(&cfg(), &["metadata", "labels"], json!({"team": team}));
        }
        world.aged()
    }

    /// What a server that puts the label `team` on everything answers the item of a first plan with.
    fn learned(now: &World, then: &World) -> PutBack {
        let plan = now.plan(then, &everything()).unwrap();
        let item = plan.items().iter().find(|item| item.id == cfg()).unwrap();
        let mut answer = item.desired.as_ref().unwrap().content.clone().into_value();
        json::put(&mut answer, &["metadata", "labels"], Some(json!({"team": "shop"})));
        PutBack::from([(cfg(), item.put_back(&answer))])
    }

    #[test]
    fn an_object_that_differs_only_in_what_the_server_puts_back_is_kept() {
        let (now, then) = (of("a", Some("shop")), of("a", None));
        let facts = super::super::Facts {
            put_back: learned(&now, &then),
            ..facts(&then)
        };
        let plan = now.plan_with(&then, &everything(), &facts).unwrap();
        assert_eq!(plan.items()[0].action, Action::Keep(KeepReason::KeptByServer));
        let told = plan.items()[0].notes[0].to_string();
        assert!(
            matches!(plan.items()[0].notes[0], Note::Kept(_)) && told.contains("metadata.labels"),
            "{told}"
        );
        assert!(plan.is_empty());
    }

    #[test]
    fn what_the_server_puts_back_is_part_of_the_target_but_not_of_what_is_sent() {
        let (now, then) = (of("b", None), of("a", None));
        let facts = super::super::Facts {
            put_back: learned(&now, &then),
            ..facts(&then)
        };
        let plan = now.plan_with(&then, &everything(), &facts).unwrap();
        let item = &plan.items()[0];
        let wanted = item.desired.as_ref().unwrap();
        assert_eq!(item.action, Action::Update);
        assert_eq!(wanted.content["metadata"]["labels"]["team"], "shop");
        assert_eq!(wanted.object["metadata"]["labels"], Value::Null);
        assert_eq!(wanted.content["data"], wanted.object["data"]);
    }

    #[test]
    fn a_server_that_does_what_it_is_asked_teaches_nothing() {
        let (now, then) = (of("b", None), of("a", None));
        let plan = now.plan(&then, &everything()).unwrap();
        let item = &plan.items()[0];
        assert_eq!(item.put_back(&item.desired.as_ref().unwrap().content), Vec::new());
    }

    #[test]
    fn where_live_wins_nothing_is_learned() {
        let (web, hpa) = (
            id("apps", "Deployment", "web"),
            id("autoscaling", "HorizontalPodAutoscaler", "web"),
        );
        let world = |image: &str| {
            let mut world = World::default();
            world.put(&web, deployment(image, 3));
            world.put(&hpa, autoscaler("web"));
            world.aged()
        };
        let plan = world("web:2").plan(&world("web:1"), &everything()).unwrap();
        let item = plan.items().iter().find(|item| item.id == web).unwrap();
        let mut answer = item.desired.as_ref().unwrap().content.clone().into_value();
        json::put(&mut answer, &["spec", "replicas"], Some(json!(7)));
        assert_eq!(item.put_back(&answer), Vec::new());
        json::put(&mut answer, &["spec", "paused"], Some(json!(true)));
        assert_eq!(item.put_back(&answer).len(), 1);
    }

    #[test]
    fn no_value_is_in_a_debug_text() {
        let field = ServerField {
            path: vec!["data".into(), "password".into()],
            value: Some(json!("c2VjcmV0")),
        };
        assert!(!format!("{field:?}").contains("c2VjcmV0"));
    }
}
