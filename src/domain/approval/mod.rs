//! Who may undo, and how we know: which policy applies ([`policy`]), which decisions count ([`tally`]), where an approval stands
//! ([`state`]), and the one gate before every write ([`permit`]). The rules are `approval.md`; nothing here reads a cluster.

pub mod course;
pub mod gate;
pub mod hold;
pub mod identity;
pub mod permit;
pub mod policy;
pub mod refusal;
pub mod satisfiable;
pub mod seal;
pub mod state;
pub mod tally;
pub mod vote;

pub use gate::Gate;
pub use identity::{Exclusion, Exclusions, People, Person};
pub use permit::{Clearance, ExecutionPermit, clear, resume};
pub use policy::{Chosen, NoRoute, Route, choose};
pub use refusal::{Consequence, Refusal};
pub use tally::{Tally, Verdict, tally};
pub use vote::{Ballot, NotCounted, Vote};
