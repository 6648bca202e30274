//! The object is there.

use super::{Look, id_of};
use crate::{api::reference::ObjectReference, domain::verify::Seen};

pub(super) async fn look(look: &Look<'_>, object: &ObjectReference) -> Seen {
    match look.read(&id_of(object), true).await {
        Err(seen) => seen,
        Ok(None) => Seen::failed("absent"),
        Ok(Some(found)) if !found["metadata"]["deletionTimestamp"].is_null() => Seen::failed("being deleted"),
        Ok(Some(_)) => Seen::passed("exists"),
    }
}
