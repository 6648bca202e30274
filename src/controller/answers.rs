//! What the API server answered to the writes of a rollback: the Snapshot after it need not read those objects again. The
//! answer to a write is the object at the `resourceVersion` that it names, so that where a list shows the same one, nothing changed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use serde_json::Value;

use crate::{
    api::snapshot::SecretsMode,
    capture::{Identity, WantedKind},
    domain::object::{Digest, SecretValues, normalise},
    repository::uid_mark,
};

/// Objects as they were answered, by kind and name. About a kibibyte an object: who owns which field; contents are not kept.
#[derive(Default)]
pub struct Answers(Mutex<HashMap<String, Kind>>);

struct Kind {
    /// As [`WantedKind::rules`].
    rules: String,
    objects: HashMap<String, Answer>,
}

struct Answer {
    uid: String,
    resource_version: String,
    answered: Answered,
}

/// What was answered of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Address of its normalised content.
    pub content: Digest,
    /// Bytes of its normalised content.
    pub size: u32,
    /// What is kept beside it: owners may be others than were captured.
    pub beside: Option<Bytes>,
}

impl Answers {
    /// Takes `object` in, where its content is the one that a list would show: in the version in which its kind is listed, by rules
    /// that are known.
    pub fn note(&self, kind: &WantedKind, object: Value) {
        let (Some(rules), true) = (&kind.rules, object["apiVersion"] == kind.info.api_version()) else {
            return;
        };
        // What is no object is read again, and is complained of there.
        let Ok(normal) = normalise(object, &kind.info, &kind.shape, SecretValues::Keep) else {
            return;
        };
        let answer = Answer {
            answered: Answered {
                content: normal.digest(),
                size: u32::try_from(normal.content.len()).unwrap_or(u32::MAX),
                beside: normal.beside.map(Into::into),
            },
            uid: uid_mark(&normal.uid),
            resource_version: normal.resource_version,
        };
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = kinds.entry(kind.display()).or_insert_with(|| Kind {
            rules: rules.clone(),
            objects: HashMap::new(),
        });
        // The definition changed in between: what was noted by the former rules is of no use.
        if of.rules != *rules {
            of.rules.clone_from(rules);
            of.objects.clear();
        }
        of.objects.insert(normal.name, answer);
    }

    /// How many objects of `kind` it holds for a Snapshot that does with Secrets as `secrets` says.
    pub fn holds(&self, kind: &WantedKind, secrets: SecretsMode) -> u64 {
        self.of(kind, secrets, |objects| objects.len() as u64).unwrap_or(0)
    }

    /// What is known of the same object at the same resource version.
    pub fn find(&self, kind: &WantedKind, secrets: SecretsMode, object: &Identity) -> Option<Answered> {
        let is_same = |answer: &&Answer| {
            answer.uid == uid_mark(&object.uid) && answer.resource_version == object.resource_version
        };
        self.of(kind, secrets, |objects| {
            objects
                .get(&object.name)
                .filter(is_same)
                .map(|answer| answer.answered.clone())
        })
        .flatten()
    }

    fn of<T>(
        &self,
        kind: &WantedKind,
        secrets: SecretsMode,
        look: impl FnOnce(&HashMap<String, Answer>) -> T,
    ) -> Option<T> {
        // Values were noted as they are.
        if kind.info.is_secret() && secrets != SecretsMode::Include {
            return None;
        }
        let kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = kinds.get(&kind.display())?;
        (kind.rules.as_ref() == Some(&of.rules)).then(|| look(&of.objects))
    }
}

/// Answers that wait for the capture of a Snapshot, by its namespace and name. They go with the execution that they are of.
#[derive(Default)]
pub struct Handover(Mutex<HashMap<(String, String), Weak<Answers>>>);

impl Handover {
    /// Leaves `answers` for the Snapshot `name`.
    pub fn leave(&self, namespace: &str, name: &str, answers: &Arc<Answers>) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, answers| answers.strong_count() > 0);
        waiting.insert((namespace.to_owned(), name.to_owned()), Arc::downgrade(answers));
    }

    /// What was left for the Snapshot `name`.
    pub fn of(&self, namespace: &str, name: &str) -> Option<Arc<Answers>> {
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.get(&(namespace.to_owned(), name.to_owned()))?.upgrade()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        api::snapshot::Component,
        domain::{
            object::{KindInfo, ListShape},
            snapshot::KindRule,
        },
    };

    fn wanted(group: &str, kind: &str, plural: &str, rules: Option<&str>) -> WantedKind {
        WantedKind {
            info: KindInfo::new(group, "v1", kind),
            plural: plural.into(),
            component: Component::Configuration,
            rule: KindRule {
                group: group.into(),
                kind: kind.into(),
                image_evidence: false,
            },
            shape: Arc::new(ListShape::atomic()),
            rules: rules.map(ToOwned::to_owned),
        }
    }

    fn secret(version: &str, value: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "s", "uid": "1-2", "resourceVersion": version, "managedFields": [{"manager": "helm"}]},
            "data": {"password": value},
        })
    }

    fn identity(uid: &str, version: &str) -> Identity {
        Identity {
            target: 0,
            name: "s".into(),
            uid: uid.into(),
            resource_version: version.into(),
        }
    }

    #[test]
    fn an_answer_stands_for_the_same_object_at_the_same_version_and_for_nothing_else() {
        let (answers, kind) = (Answers::default(), wanted("", "Secret", "secrets", Some("1")));
        answers.note(&kind, secret("7", "b2xk"));
        answers.note(&kind, secret("9", "bmV3"));
        let find = |uid: &str, version: &str| answers.find(&kind, SecretsMode::Include, &identity(uid, version));
        let content = br#"{"apiVersion":"v1","data":{"password":"bmV3"},"kind":"Secret","metadata":{"name":"s"}}"#;
        assert_eq!(find("1-2", "9").map(|known| known.content), Some(Digest::of(content)));
        assert!(find("1-2", "9").is_some_and(|known| known.beside.is_some() && known.size as usize == content.len()));
        assert_eq!(find("1-2", "7"), None, "it was written again since");
        assert_eq!(find("3-4", "9"), None, "another object of the name");
        assert_eq!(answers.holds(&kind, SecretsMode::Include), 1);
    }

    #[test]
    fn values_of_secrets_stand_for_no_fingerprints_and_other_rules_for_nothing() {
        let (answers, kind) = (Answers::default(), wanted("", "Secret", "secrets", Some("1")));
        answers.note(&kind, secret("7", "b2xk"));
        assert_eq!(answers.holds(&kind, SecretsMode::Fingerprint), 0);
        assert_eq!(
            answers.holds(&wanted("", "Secret", "secrets", Some("2")), SecretsMode::Include),
            0
        );
        let unknown = wanted("", "Secret", "secrets", None);
        answers.note(&unknown, secret("8", "b2xk"));
        assert_eq!(answers.find(&kind, SecretsMode::Include, &identity("1-2", "8")), None);
    }

    #[test]
    fn what_was_answered_in_another_version_than_the_listed_one_is_read_again() {
        let (answers, kind) = (Answers::default(), wanted("apps", "Thing", "things", Some("1")));
        let object = json!({"apiVersion": "apps/v1beta1", "kind": "Thing", "metadata": {"name": "s", "uid": "1", "resourceVersion": "7"}});
        answers.note(&kind, object);
        assert_eq!(answers.holds(&kind, SecretsMode::Include), 0);
    }

    #[test]
    fn answers_go_with_the_execution_that_they_are_of() {
        let (handover, answers) = (Handover::default(), Arc::new(Answers::default()));
        handover.leave("shop", "after", &answers);
        assert!(handover.of("shop", "after").is_some());
        assert!(handover.of("shop", "other").is_none());
        drop(answers);
        assert!(handover.of("shop", "after").is_none());
    }
}
