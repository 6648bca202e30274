//! Where an `ApprovalRequest` may go from where it is.

pub use crate::api::approval_request::ApprovalPhase;
use ApprovalPhase::{
    Approved, AwaitingReview, BreakGlass, Cancelled, Consumed, Expired, Pending, Rejected, ReviewOverdue, Reviewed,
    Revoked, Superseded,
};

/// A phase does not follow another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an ApprovalRequest that is {from:?} does not become {to:?}; read it again and decide on what it is now")]
pub struct NotAllowed {
    /// The phase it has.
    pub from: ApprovalPhase,
    /// The phase it was to get.
    pub to: ApprovalPhase,
}

/// What may follow `phase`; nothing follows a final one. The CRD enforces the same.
///
/// ```text
/// Pending → Approved → Consumed*      Pending → Rejected* | Expired* | Cancelled* | Superseded*
/// Approved → Revoked* | Expired* | Cancelled* | Superseded*
/// Pending → BreakGlass → AwaitingReview → (ReviewOverdue →) Reviewed*
/// BreakGlass → Cancelled* | Superseded*
/// ```
pub const fn successors(phase: ApprovalPhase) -> &'static [ApprovalPhase] {
    match phase {
        Pending => &[Approved, Rejected, Expired, Cancelled, Superseded, BreakGlass],
        Approved => &[Consumed, Revoked, Expired, Cancelled, Superseded],
        BreakGlass => &[AwaitingReview, Cancelled, Superseded],
        AwaitingReview => &[Reviewed, ReviewOverdue],
        ReviewOverdue => &[Reviewed],
        Rejected | Expired | Cancelled | Superseded | Revoked | Consumed | Reviewed => &[],
    }
}

/// Whether nothing follows `phase`.
pub const fn is_final(phase: ApprovalPhase) -> bool {
    successors(phase).is_empty()
}

/// Whether an execution has used the approval, or is using it.
pub const fn is_used(phase: ApprovalPhase) -> bool {
    match phase {
        Consumed | AwaitingReview | ReviewOverdue | Reviewed => true,
        Pending | Approved | BreakGlass | Rejected | Expired | Cancelled | Superseded | Revoked => false,
    }
}

/// Whether the phase says that no execution will ever use it.
pub const fn is_closed_unused(phase: ApprovalPhase) -> bool {
    is_final(phase) && !is_used(phase)
}

/// The phase `to`, where it may follow `from` or is the same.
///
/// # Errors
/// It may not.
pub fn transition(from: ApprovalPhase, to: ApprovalPhase) -> Result<ApprovalPhase, NotAllowed> {
    if from == to || successors(from).contains(&to) {
        Ok(to)
    } else {
        Err(NotAllowed { from, to })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [ApprovalPhase; 12] = [
        Pending,
        Approved,
        Rejected,
        Expired,
        Cancelled,
        Superseded,
        Revoked,
        Consumed,
        BreakGlass,
        AwaitingReview,
        Reviewed,
        ReviewOverdue,
    ];

    #[test]
    fn every_pair_of_phases_is_allowed_or_refused_as_the_design_says() {
        let allowed = "Pending>Approved Pending>Rejected Pending>Expired Pending>Cancelled Pending>Superseded \
            Pending>BreakGlass Approved>Consumed Approved>Revoked Approved>Expired Approved>Cancelled \
            Approved>Superseded BreakGlass>AwaitingReview BreakGlass>Cancelled BreakGlass>Superseded \
            AwaitingReview>Reviewed AwaitingReview>ReviewOverdue ReviewOverdue>Reviewed";
        let allowed: Vec<&str> = allowed.split_whitespace().collect();
        for from in ALL {
            for to in ALL {
                let expected = from == to || allowed.contains(&format!("{from:?}>{to:?}").as_str());
                assert_eq!(transition(from, to).is_ok(), expected, "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn no_phase_comes_back_once_it_is_left() {
        for start in ALL {
            let mut seen = vec![start];
            let mut next = successors(start).to_vec();
            while let Some(phase) = next.pop() {
                assert_ne!(phase, start, "{start:?} is reached again");
                if !seen.contains(&phase) {
                    seen.push(phase);
                    next.extend(successors(phase));
                }
            }
        }
    }

    #[test]
    fn a_used_approval_never_becomes_unused() {
        for from in ALL.into_iter().filter(|phase| is_used(*phase)) {
            assert!(successors(from).iter().all(|to| is_used(*to)), "{from:?}");
        }
        assert!(is_closed_unused(Rejected) && !is_closed_unused(Reviewed) && !is_closed_unused(Pending));
    }
}
