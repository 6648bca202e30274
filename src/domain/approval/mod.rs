//! Who may undo, and how we know: which policy applies ([`policy`]), which decisions count ([`tally`]), where an approval stands
//! ([`state`]), and the one gate before every write ([`permit`]). The rules are `approval.md`; nothing here reads a cluster.

pub mod identity;
pub mod satisfiable;
pub mod state;
pub mod tally;

pub use identity::{Exclusion, Exclusions, People, Person};
pub use tally::{Ballot, NotCounted, Tally, Verdict, Vote, tally};
