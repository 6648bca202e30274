//! The seal over counted decisions: who can write the status but is not this operator cannot make one.

use jiff::Timestamp;
use serde_json::json;

use crate::{
    api::approval_request::Decision,
    domain::object::{Digest, FingerprintKey, canonical},
};

/// A decision as it was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed<'a> {
    /// UID of the decision.
    pub uid: &'a str,
    /// Its author.
    pub username: &'a str,
    /// Its stage.
    pub stage: &'a str,
    /// What it says.
    pub decision: Decision,
    /// When it was made.
    pub at: Timestamp,
}

/// `status.seal`: a keyed digest over the `ApprovalRequest` (UID), the plan, the guard epoch and every counted decision, in
/// whatever order they are given.
pub fn seal(key: &FingerprintKey, request_uid: &str, plan: Digest, epoch: &str, counted: &[Sealed<'_>]) -> String {
    let mut decisions: Vec<_> = counted.iter().collect();
    decisions.sort_by_key(|decision| decision.uid);
    let decisions: Vec<_> = decisions
        .iter()
        .map(|one| json!([one.uid, one.username, one.stage, one.decision, one.at.to_string()]))
        .collect();
    let text = canonical::to_bytes(&json!([request_uid, plan, epoch, decisions]));
    key.fingerprint("backstep.dev/approval-seal", &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: FingerprintKey = FingerprintKey::new([7; 32]);

    fn ada() -> Sealed<'static> {
        Sealed {
            uid: "1",
            username: "ada",
            stage: "sre",
            decision: Decision::Approve,
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_seal_holds_every_part_and_no_order() {
        let bob = Sealed {
            uid: "2",
            username: "bob",
            ..ada()
        };
        let plan = Digest::of(b"plan");
        let of = |decisions: &[Sealed<'_>]| seal(&KEY, "request", plan, "epoch", decisions);
        let first = of(&[ada(), bob.clone()]);
        assert_eq!(first, of(&[bob.clone(), ada()]));
        assert!(first.len() <= 128, "the bound of the field");
        let others = [
            of(&[ada()]),
            of(&[
                Sealed {
                    username: "eve",
                    ..ada()
                },
                bob.clone(),
            ]),
            of(&[
                Sealed {
                    decision: Decision::Reject,
                    ..ada()
                },
                bob.clone(),
            ]),
            seal(&KEY, "other", plan, "epoch", &[ada(), bob.clone()]),
            seal(&KEY, "request", Digest::of(b"other"), "epoch", &[ada(), bob.clone()]),
            seal(&KEY, "request", plan, "other", &[ada(), bob.clone()]),
            seal(&FingerprintKey::new([8; 32]), "request", plan, "epoch", &[ada(), bob]),
        ];
        assert!(others.iter().all(|other| *other != first));
    }
}
