//! Building blocks of the schemas: bounded texts, durations, digests, conditions, selectors.
//!
//! One mechanism: bounds are schemars attributes or one of these functions (`schema_with`), rules are kube's
//! `validation` attributes, and [`super::crd`] writes what no attribute can say.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::json;

/// DNS label (RFC 1123): names of lineages, policies and stages.
pub const DNS_LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// Name of most objects: DNS labels joined by dots.
pub const DNS_SUBDOMAIN: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// Root rule: rules under `.status` do not run when status is removed as a whole, so the latches need this one on top.
pub const STATUS_STAYS: &str = "!has(oldSelf.status) || has(self.status)";
/// A content digest.
pub const DIGEST: &str = "^sha256:[a-f0-9]{64}$";
/// A tag: what may follow the prefix of a label, as tags are given by label too.
pub const TAG: &str = "^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";
/// A duration, see [`super::duration`].
pub const DURATION: &str = "^([0-9]+(ms|s|m|h))+$";

/// A DNS label, 1 to 63 characters.
pub fn dns_label(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 63, "pattern": DNS_LABEL})
}

/// A DNS label of at most 63 characters, without a minimum: for fields whose stored objects never held an empty one.
pub fn dns_label_short(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 63, "pattern": DNS_LABEL})
}

/// Name of an object, 1 to 253 characters.
pub fn object_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 253, "pattern": DNS_SUBDOMAIN})
}

/// `sha256:` and 64 hexadecimal digits.
pub fn digest(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 71, "pattern": DIGEST})
}

/// Up to 64 digests.
pub fn digests(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": 64, "x-kubernetes-list-type": "set",
        "items": {"type": "string", "maxLength": 71, "pattern": DIGEST},
    })
}

/// A duration longer than zero, at most `HOURS`.
///
/// Long runs of digits are refused before the text is read as a duration: an overflow would hide the reason.
pub fn duration<const HOURS: u32>(_: &mut SchemaGenerator) -> Schema {
    let rule = format!(
        "!self.matches('[0-9]{{6,}}h|[0-9]{{8,}}m([0-9]|$)|[0-9]{{10,}}s|[0-9]{{13,}}ms') && \
         duration(self) > duration('0s') && duration(self) <= duration('{HOURS}h')"
    );
    json_schema!({
        "type": "string", "minLength": 2, "maxLength": 32, "pattern": DURATION,
        "x-kubernetes-validations": [{
            "rule": rule,
            "message": format!("must be longer than zero and at most {HOURS}h, e.g. 30s, 10m or 1h30m"),
        }],
    })
}

/// A tag, 1 to 63 characters.
pub fn tag(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 63, "pattern": TAG})
}

/// Up to 16 tags, none twice.
pub fn tags(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": 16, "x-kubernetes-list-type": "set",
        "items": {"type": "string", "minLength": 1, "maxLength": 63, "pattern": TAG},
    })
}

/// Conditions as kstatus reads them, one of each type.
pub fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": 16,
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason"],
            "properties": {
                "type": {"type": "string", "maxLength": 316},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                "observedGeneration": {"type": "integer", "format": "int64"},
                "lastTransitionTime": {"type": "string", "format": "date-time"},
                "reason": {"type": "string", "maxLength": 1024},
                "message": {"type": "string", "maxLength": 32768},
            },
        },
    })
}

/// A label selector that selects by something.
pub fn selector(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = LabelSelector::json_schema(generator);
    bound_selector(&mut schema);
    schema.insert(
        "x-kubernetes-validations".into(),
        json!([{
            "rule": "(has(self.matchLabels) && self.matchLabels.size() > 0) || \
                     (has(self.matchExpressions) && self.matchExpressions.size() > 0)",
            "message": "an empty selector selects everything; leave selector out to say so",
        }]),
    );
    schema
}

fn bound_selector(schema: &mut Schema) {
    let text = |max: u32| json!({"type": "string", "maxLength": max});
    schema.insert(
        "properties".into(),
        json!({
            "matchLabels": {
                "description": "Labels and the values they must have.",
                "type": "object", "maxProperties": 32, "additionalProperties": text(63),
            },
            "matchExpressions": {
                "description": "Requirements that must all hold.",
                "type": "array", "maxItems": 32, "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {"description": "Label key.", "type": "string", "maxLength": 317},
                        "operator": {
                            "description": "How the label is compared.",
                            "type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                        },
                        "values": {
                            "description": "Values for `In` and `NotIn`.",
                            "type": "array", "maxItems": 64, "x-kubernetes-list-type": "atomic", "items": text(63),
                        },
                    },
                    "x-kubernetes-validations": [{
                        "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
                        "message": "In and NotIn need values; Exists and DoesNotExist take none",
                    }],
                },
            },
        }),
    );
}

/// A pod template as the API server of the day understands it; read again, and checked, where it is used.
pub fn pod_template(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// The default `true` of a schema.
pub fn yes() -> bool {
    true
}
