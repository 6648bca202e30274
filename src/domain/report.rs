//! The whole of a plan that is longer than its object may be, and how long the repository keeps what belongs to a request.

use serde::{Deserialize, Serialize};

use crate::{
    api::{RollbackPlanSpec, rollback_plan::PlanItem},
    domain::object::Digest,
};

/// Length of a SHA-256 in hexadecimal digits.
const HEX: usize = 64;
/// End of the name of a part.
const PART: &str = "-part";

/// A whole plan: everything but its items, and where those are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    /// Namespace of the request.
    pub namespace: String,
    /// Name of the `RollbackPlan`.
    pub name: String,
    /// The plan without its items; not truncated.
    pub spec: RollbackPlanSpec,
    /// How many items there are.
    pub items: u64,
    /// Names of the documents that hold them, in order.
    pub parts: Vec<String>,
}

/// Some items of a whole plan, in order, each with its whole difference; values of Secrets are fingerprints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The items.
    pub items: Vec<PlanItem>,
}

/// Name of what belongs to the plan `digest` of the request `uid`: of the items it is bound to, and of its whole.
pub fn name(uid: &str, digest: Digest) -> String {
    format!("{uid}-{}", digest.to_hex())
}

/// Name of the part whose items have this digest: two writers of one plan never mix their parts.
pub fn part(uid: &str, digest: Digest) -> String {
    format!("{}{PART}", name(uid, digest))
}

/// Whether it is the name of a part.
pub fn is_part(name: &str) -> bool {
    name.ends_with(PART)
}

/// UID of the request that the document `name` belongs to.
pub fn owner(name: &str) -> Option<&str> {
    let (uid, digest) = name.strip_suffix(PART).unwrap_or(name).rsplit_once('-')?;
    (digest.len() == HEX && !uid.is_empty()).then_some(uid)
}

/// Where the request of a document stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// It is not over: a plan of it may be approved, executed or taken back.
    Working,
    /// It is over, and there.
    Over,
    /// It is gone; a record tells of it.
    Recorded,
    /// It is gone, and nothing tells of it: it never ran.
    Gone,
}

/// Whether the items that a plan is bound to may still be asked for: by the gate, by an execution that goes on, by a way back. The
/// execution of a request keeps it from going, so that one that is gone asks for nothing.
pub const fn needs_bound_items(stand: Stand) -> bool {
    matches!(stand, Stand::Working)
}

/// Whether people may still ask for the whole of a plan; `is_last`: it is the plan that the request ended with.
pub const fn needs_whole_plan(stand: Stand, is_last: bool) -> bool {
    match stand {
        Stand::Working => true,
        Stand::Over | Stand::Recorded => is_last,
        Stand::Gone => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "5f8c2f5e-2f0e-4a55-9d1f-5b8a3d1c7e11";

    #[test]
    fn a_name_tells_whose_document_it_is() {
        let digest = Digest::of(b"plan");
        assert_eq!(owner(&name(UID, digest)), Some(UID));
        assert_eq!(owner(&part(UID, digest)), Some(UID));
        assert!(is_part(&part(UID, digest)) && !is_part(&name(UID, digest)));
        for text in ["", "abc", UID, "-part", &digest.to_hex()] {
            assert_eq!(owner(text), None, "{text}");
        }
    }

    #[test]
    fn what_an_approval_is_bound_to_goes_with_the_end_and_the_whole_plan_stays_with_the_record() {
        for (stand, bound, last, superseded) in [
            (Stand::Working, true, true, true),
            (Stand::Over, false, true, false),
            (Stand::Recorded, false, true, false),
            (Stand::Gone, false, false, false),
        ] {
            assert_eq!(needs_bound_items(stand), bound, "{stand:?}");
            assert_eq!(needs_whole_plan(stand, true), last, "{stand:?}");
            assert_eq!(needs_whole_plan(stand, false), superseded, "{stand:?}");
        }
    }
}
