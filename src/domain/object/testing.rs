//! What the property tests of this room share.

use proptest::prelude::*;
use serde_json::{Map, Value};

use super::shape::{ListKind, ListShape, Node};

/// Any JSON value of a few levels.
pub fn any_json() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-100_000..100_000i32).prop_map(|hundredths| Value::from(f64::from(hundredths) + 0.25)),
        ".{0,12}".prop_map(Value::from),
    ];
    scalar.prop_recursive(4, 48, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map("[a-z/~.]{0,8}", inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// `value` with every list whose order means nothing put into another order.
pub fn shuffled(mut value: Value, shape: &ListShape, mut seed: u64) -> Value {
    shuffle(&mut value, shape.root(), &mut seed);
    value
}

fn shuffle(value: &mut Value, node: &Node, seed: &mut u64) {
    match value {
        Value::Object(map) => {
            for (name, value) in map.iter_mut() {
                if let Some(node) = node.field(name) {
                    shuffle(value, node, seed);
                }
            }
        }
        Value::Array(items) => {
            if let Some(node) = node.items() {
                for item in items.iter_mut() {
                    shuffle(item, node, seed);
                }
            }
            if matches!(node.kind(), ListKind::Set | ListKind::Keyed(_)) {
                for last in (1..items.len()).rev() {
                    *seed = seed
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    items.swap(last, usize::try_from(*seed >> 33).unwrap() % (last + 1));
                }
            }
        }
        _ => {}
    }
}
