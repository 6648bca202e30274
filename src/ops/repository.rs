//! The repository, opened with the user's own rights.

use super::{
    Result, Session, status,
    store::{self, Location},
};

/// Use of the store.
pub async fn usage(session: &Session, chosen: Option<&Location>) -> Result<status::Repository> {
    let location = store::locate(session, chosen).await?;
    Err(super::Error::new(
        super::Class::Unavailable,
        format!("cannot open {location}"),
    ))
}
