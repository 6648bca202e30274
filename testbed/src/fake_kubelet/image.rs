//! What a container runtime makes of an image reference.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// The reference with registry and tag, as a container runtime reports it: `web` is `docker.io/library/web:latest`.
pub(crate) fn qualified(reference: &str) -> String {
    let (name, digest) = reference
        .split_once('@')
        .map_or((reference, None), |(name, digest)| (name, Some(digest)));
    let name = match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    };
    match digest {
        Some(digest) => format!("{name}@{digest}"),
        None if tag_start(&name).is_some() => name,
        None => format!("{name}:latest"),
    }
}

/// What a container that starts with `reference` reports as its image's identity: repository and digest. A reference by
/// digest keeps it; a tag has the digest it was moved to, else one that only depends on the reference.
pub(super) fn identity(reference: &str, moved: &BTreeMap<String, String>) -> String {
    let full = qualified(reference);
    let (name, digest) = match full.split_once('@') {
        Some((name, digest)) => (name, digest.to_owned()),
        None => (
            full.as_str(),
            moved.get(&full).cloned().unwrap_or_else(|| first_digest(&full)),
        ),
    };
    let repository = tag_start(name).map_or(name, |start| &name[..start]);
    format!("{repository}@{digest}")
}

fn first_digest(reference: &str) -> String {
    let hex: Vec<_> = Sha256::digest(reference)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{}", hex.concat())
}

/// Where the colon of the tag is; a colon before the last slash is a port's.
fn tag_start(name: &str) -> Option<usize> {
    name.rfind(':').filter(|colon| !name[*colon..].contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_reference_gets_its_registry_and_its_tag() {
        assert_eq!(qualified("web"), "docker.io/library/web:latest");
        assert_eq!(qualified("team/web:1"), "docker.io/team/web:1");
        assert_eq!(
            qualified("registry.example:5000/web"),
            "registry.example:5000/web:latest"
        );
        assert_eq!(qualified("localhost/web@sha256:ab"), "localhost/web@sha256:ab");
    }

    #[test]
    fn a_moved_tag_has_its_new_digest_and_a_digest_stays() {
        let moved = BTreeMap::from([("registry.example/web:1.8".to_owned(), "sha256:new".to_owned())]);
        assert_eq!(
            identity("registry.example/web:1.8", &moved),
            "registry.example/web@sha256:new"
        );
        assert_eq!(
            identity("registry.example/web:1.8@sha256:old", &moved),
            "registry.example/web@sha256:old"
        );
        assert!(identity("registry.example/web:1.9", &moved).starts_with("registry.example/web@sha256:"));
    }
}
