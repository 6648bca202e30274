//! Who is who: one person may have several identities, and some may not decide.

use std::{collections::BTreeMap, fmt};

use crate::api::approval_policy::Alias;

/// What user names of `ServiceAccounts` begin with.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Namespace and name of the `ServiceAccount` that a user name stands for.
pub fn service_account(username: &str) -> Option<(&str, &str)> {
    username.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')
}

/// The user name of a `ServiceAccount`.
pub fn service_account_user(namespace: &str, name: &str) -> String {
    format!("{SERVICE_ACCOUNT}{namespace}:{name}")
}

/// One person, whichever of its identities it used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Person {
    /// A person of the policy's alias list, by its place there.
    Listed(usize),
    /// Anybody else, by user name.
    User(String),
}

/// The alias list of a policy, as a lookup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct People {
    by_identity: BTreeMap<String, usize>,
}

impl People {
    /// Entries that share an identity are one person, over however many entries.
    pub fn new(aliases: &[Alias]) -> Self {
        let mut by_identity: BTreeMap<String, usize> = BTreeMap::new();
        for (index, alias) in aliases.iter().enumerate() {
            let known: Vec<usize> = alias
                .identities
                .iter()
                .filter_map(|identity| by_identity.get(identity).copied())
                .collect();
            let person = known.iter().copied().min().unwrap_or(index);
            for other in by_identity.values_mut().filter(|other| known.contains(other)) {
                *other = person;
            }
            for identity in &alias.identities {
                by_identity.insert(identity.clone(), person);
            }
        }
        Self { by_identity }
    }

    /// Who uses this user name.
    pub fn person(&self, username: &str) -> Person {
        self.by_identity
            .get(username)
            .map_or_else(|| Person::User(username.to_owned()), |person| Person::Listed(*person))
    }
}

/// Why somebody may not decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Exclusion {
    /// It asked.
    Requester,
    /// The operator asked for it.
    OnBehalfOf,
    /// The rollback runs as it.
    RunsAs,
    /// It took the snapshot, and the policy says `excludeSnapshotAuthor`.
    SnapshotAuthor,
    /// It is a `ServiceAccount` of the request's namespace: whoever owns the namespace can act as it.
    OwnServiceAccount,
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requester => "the requester does not decide on its own request",
            Self::OnBehalfOf => "the request was made on behalf of this person",
            Self::RunsAs => "the rollback runs as this ServiceAccount",
            Self::SnapshotAuthor => "the author of the snapshot does not decide (excludeSnapshotAuthor)",
            Self::OwnServiceAccount => "a ServiceAccount of the request's own namespace never counts",
        })
    }
}

/// Who may not decide on one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// The namespace of the request.
    pub namespace: String,
    /// User name of `spec.requestedBy`.
    pub requested_by: String,
    /// User name of `spec.onBehalfOf`.
    pub on_behalf_of: Option<String>,
    /// `spec.serviceAccountName`.
    pub runs_as: Option<String>,
    /// User name of the snapshot's author, where the policy excludes it.
    pub snapshot_author: Option<String>,
}

impl Exclusions {
    /// Why `username` may not decide, in any of its identities; `None` where it may.
    pub fn of(&self, username: &str, people: &People) -> Option<Exclusion> {
        let person = people.person(username);
        let is = |other: &str| people.person(other) == person;
        if is(&self.requested_by) {
            return Some(Exclusion::Requester);
        }
        if self.on_behalf_of.as_deref().is_some_and(is) {
            return Some(Exclusion::OnBehalfOf);
        }
        let runs_as = self.runs_as.as_deref().filter(|name| !name.is_empty());
        if runs_as.is_some_and(|name| is(&service_account_user(&self.namespace, name))) {
            return Some(Exclusion::RunsAs);
        }
        if self.snapshot_author.as_deref().is_some_and(is) {
            return Some(Exclusion::SnapshotAuthor);
        }
        service_account(username)
            .is_some_and(|(namespace, _)| namespace == self.namespace)
            .then_some(Exclusion::OwnServiceAccount)
    }

    /// The user whose wish it is: `onBehalfOf` where it is set, else `requestedBy`.
    pub fn effective_requester(&self) -> &str {
        self.on_behalf_of.as_deref().unwrap_or(&self.requested_by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alias(name: &str, identities: &[&str]) -> Alias {
        Alias {
            name: name.to_owned(),
            identities: identities.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    #[test]
    fn entries_that_share_an_identity_are_one_person() {
        let people = People::new(&[
            alias("ada", &["ada", "oidc:ada"]),
            alias("bob", &["bob"]),
            alias("robot", &["robot", "ci"]),
            alias("more", &["ci", "oidc:ada"]),
        ]);
        assert_eq!(people.person("ada"), people.person("robot"));
        assert_ne!(people.person("ada"), people.person("bob"));
        assert_eq!(people.person("eve"), Person::User("eve".to_owned()));
    }

    #[test]
    fn every_identity_of_the_requester_is_excluded() {
        let people = People::new(&[alias("ada", &["ada", "oidc:ada"])]);
        let exclusions = Exclusions {
            namespace: "shop".to_owned(),
            requested_by: "ada".to_owned(),
            on_behalf_of: Some("carl".to_owned()),
            runs_as: Some("deployer".to_owned()),
            snapshot_author: Some("dora".to_owned()),
        };
        for (username, expected) in [
            ("ada", Some(Exclusion::Requester)),
            ("oidc:ada", Some(Exclusion::Requester)),
            ("carl", Some(Exclusion::OnBehalfOf)),
            ("system:serviceaccount:shop:deployer", Some(Exclusion::RunsAs)),
            ("system:serviceaccount:shop:other", Some(Exclusion::OwnServiceAccount)),
            ("dora", Some(Exclusion::SnapshotAuthor)),
            ("system:serviceaccount:shop-two:other", None),
            ("bob", None),
        ] {
            assert_eq!(exclusions.of(username, &people), expected, "{username}");
        }
    }
}
