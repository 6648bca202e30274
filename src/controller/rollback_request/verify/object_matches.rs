//! CEL over the live object holds.

use tokio::time::Instant;

use super::{
    Look,
    expression::{self, Answer},
    id_of,
};
use crate::{api::verify::ObjectMatches, domain::verify::Seen};

pub(super) async fn look(look: &Look<'_>, test: &ObjectMatches) -> Seen {
    let id = id_of(&test.object);
    // Refused by admission and by preflight; never read, whatever became of these.
    if id.group.is_empty() && id.kind == "Secret" {
        return Seen::inconclusive("objectMatches does not read Secrets");
    }
    let object = match look.read(&id, false).await {
        Err(seen) => return seen,
        Ok(None) => return Seen::failed("absent"),
        Ok(Some(object)) => object,
    };
    let left = look.until.saturating_duration_since(Instant::now());
    match expression::evaluate(test.expression.clone(), object, left).await {
        Answer::Holds => Seen::passed("it holds"),
        Answer::DoesNotHold => Seen::failed("it does not hold"),
        Answer::FieldAbsent => Seen::failed("a field that it reads is absent; use has() where that is fine"),
        Answer::Unknown(why) => Seen::inconclusive(why),
    }
}
