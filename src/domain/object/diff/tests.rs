use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::domain::object::testing::{any_json, shuffled};

const KEY: FingerprintKey = FingerprintKey::new([9; 32]);

fn deployment(image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app.kubernetes.io/name": "web"}},
        "spec": {"replicas": 2, "template": {"spec": {
            "containers": [
                {"name": "app", "image": image, "env": [{"name": "A"}, {"name": "B"}], "args": ["a", "b"],
                 "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 90, "protocol": "TCP"}]},
                {"name": "side", "image": "side:1"}]}}}})
}

fn shape() -> ListShape {
    ListShape::builtin("apps", "Deployment").unwrap()
}

fn changes(old: &Value, new: &Value) -> Vec<FieldChange> {
    diff(Some(old), Some(new), &shape(), &KEY).changes
}

fn paths(old: &Value, new: &Value) -> Vec<String> {
    changes(old, new).into_iter().map(|change| change.path).collect()
}

#[test]
fn a_change_is_named_by_the_keys_of_its_list() {
    let change = changes(&deployment("web:1"), &deployment("web:2")).remove(0);
    assert_eq!(change.path, "spec.template.spec.containers[name=app].image");
    assert_eq!(
        (change.kind, change.old, change.new),
        (ChangeKind::Changed, Some(json!("web:1")), Some(json!("web:2")))
    );
}

#[test]
fn fields_that_come_and_go_are_additions_and_removals() {
    let old = deployment("web:1");
    let mut new = old.clone();
    new["metadata"]["labels"] = json!({});
    new["spec"]["template"]["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80, "protocol": "TCP"}]);
    new["spec"]["template"]["spec"]["containers"][0]["args"] = json!(["a", "b", "c"]);
    let found: Vec<_> = changes(&old, &new)
        .into_iter()
        .map(|change| (change.path, change.kind))
        .collect();
    assert_eq!(
        found,
        [
            (
                "metadata.labels[\"app.kubernetes.io/name\"]".to_owned(),
                ChangeKind::Removed
            ),
            (
                "spec.template.spec.containers[name=app].args[2]".to_owned(),
                ChangeKind::Added
            ),
            (
                "spec.template.spec.containers[name=app].ports[containerPort=90,protocol=TCP]".to_owned(),
                ChangeKind::Removed
            ),
        ]
    );
}

#[test]
fn an_order_that_is_content_is_a_change_of_its_list() {
    let old = deployment("web:1");
    let mut new = old.clone();
    new["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "B"}, {"name": "A"}]);
    assert_eq!(paths(&old, &new), ["spec.template.spec.containers[name=app].env"]);
}

#[test]
fn an_object_that_comes_or_goes_is_one_change() {
    let created = diff(None, Some(&deployment("web:1")), &shape(), &KEY).changes;
    assert_eq!(
        (created.len(), created[0].kind, created[0].path.as_str()),
        (1, ChangeKind::Added, "")
    );
    assert_eq!(
        diff(Some(&deployment("web:1")), None, &shape(), &KEY).changes[0].kind,
        ChangeKind::Removed
    );
}

fn secret(password: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db", "annotations": {"copy": "it is hunter2"}},
        "data": {"password": password, "user": "YWRh"}})
}

#[test]
fn secret_values_are_never_shown_not_even_those_rotated_away() {
    // "hunter2" is the value of the old state only; the annotation of the new one still holds it.
    let (old, mut new) = (secret("aHVudGVyMg=="), secret("bmV3"));
    new["metadata"]["annotations"]["note"] = json!("was hunter2");
    let found = diff(Some(&old), Some(&new), &ListShape::atomic(), &KEY);
    assert!(found.changes.iter().all(|change| change.hidden), "{found:?}");
    let paths: Vec<_> = found.changes.iter().map(|change| change.path.as_str()).collect();
    assert_eq!(paths, ["data.password", "metadata.annotations.note"]);
    let shown = serde_json::to_string(&found).unwrap()
        + &unified(Some(&old), Some(&new), &ListShape::atomic(), &KEY)
        + &unified(None, Some(&old), &ListShape::atomic(), &KEY);
    for value in ["hunter2", "aHVudGVyMg", "bmV3", "YWRh"] {
        assert!(!shown.contains(value), "{shown}");
    }
}

#[test]
fn a_fingerprinted_capture_equals_the_live_secret_that_was_not_rotated() {
    let mut captured = secret("aHVudGVyMg==");
    secret::fingerprint_values(captured.as_object_mut().unwrap(), &KEY);
    assert!(
        diff(
            Some(&captured),
            Some(&secret("aHVudGVyMg==")),
            &ListShape::atomic(),
            &KEY
        )
        .is_empty()
    );
    assert!(!diff(Some(&captured), Some(&secret("bmV3")), &ListShape::atomic(), &KEY).is_empty());
}

#[test]
fn an_annotation_that_held_a_value_at_the_capture_stays_hidden_after_a_rotation() {
    let mut captured = secret("aHVudGVyMg==");
    secret::fingerprint_values(captured.as_object_mut().unwrap(), &KEY);
    let live = secret("bmV3");
    let shown = serde_json::to_string(&diff(Some(&captured), Some(&live), &ListShape::atomic(), &KEY)).unwrap()
        + &unified(Some(&captured), Some(&live), &ListShape::atomic(), &KEY);
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn the_text_shows_changed_lines_with_their_surroundings() {
    let config = |mode: &str| json!({"data": {"conf": "a: 1\nb: 2\n", "mode": mode}, "kind": "ConfigMap", "list": [{"n": 1, "m": []}, "x"]});
    assert_eq!(
        unified(Some(&config("v2")), Some(&config("v1")), &ListShape::atomic(), &KEY),
        "@@ -2,7 +2,7 @@\n   conf: |\n     a: 1\n     b: 2\n-  mode: v2\n+  mode: v1\n kind: ConfigMap\n list:\n - m: []\n"
    );
}

#[test]
fn a_huge_rewrite_is_shown_whole_and_at_once() {
    let config = |sign: &str| json!({"data": (0..20_000).map(|line| format!("{sign}{line}")).collect::<Vec<_>>()});
    let text = unified(Some(&config("a")), Some(&config("b")), &ListShape::atomic(), &KEY);
    assert_eq!((text.lines().count(), text.lines().nth(1)), (40_001, Some("-- a0")));
}

proptest! {
    #[test]
    fn what_comes_or_goes_whole_is_shown_as_a_diff_with_nothing(state in any_json()) {
        let lines = text::yaml(&state);
        let diff = |old: &str, new: &str| TextDiff::from_lines(old, new).unified_diff().context_radius(CONTEXT).to_string();
        prop_assert_eq!(one_side("", &lines), diff("", &lines));
        prop_assert_eq!(one_side(&lines, ""), diff(&lines, ""));
    }

    #[test]
    fn order_without_a_meaning_is_no_difference(seed in any::<u64>()) {
        let old = deployment("web:1");
        let new = shuffled(old.clone(), &shape(), seed);
        prop_assert!(diff(Some(&old), Some(&new), &shape(), &KEY).is_empty());
        prop_assert_eq!(unified(Some(&old), Some(&new), &shape(), &KEY), "");
    }

    #[test]
    fn a_diff_is_empty_exactly_for_equal_states(old in any_json(), new in any_json()) {
        let shape = ListShape::atomic();
        prop_assert_eq!(diff(Some(&old), Some(&new), &shape, &KEY).is_empty(), old == new);
        prop_assert!(diff(Some(&old), Some(&old), &shape, &KEY).is_empty());
        prop_assert_eq!(unified(Some(&old), Some(&old), &shape, &KEY), "");
    }

    #[test]
    fn both_directions_find_the_same_paths(old in any_json(), new in any_json()) {
        let there = diff(Some(&old), Some(&new), &ListShape::atomic(), &KEY).changes;
        let back = diff(Some(&new), Some(&old), &ListShape::atomic(), &KEY).changes;
        prop_assert_eq!(there.iter().map(|c| &c.path).collect::<Vec<_>>(), back.iter().map(|c| &c.path).collect::<Vec<_>>());
    }
}
