//! What cannot be rolled back to, or captured, is refused with what, why and how to fix, and nothing is changed.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use backstep::{
    api::{RollbackRequest, RollbackRequestStatus, Snapshot, rollback_request::RollbackPhase},
    domain::object::Digest,
};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use testbed::{ClusterOptions, User, wait_until};

use crate::{
    support::{Installed, PATIENCE, Store},
    tampering::{approved, kubectl, live},
    team::{ask, given, said, until_phase},
};

/// A right to ask and nothing else.
const MALLORY: &str = r"
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: asks, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: backstep-requester}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: mallory}]
";

async fn start(name: &str) -> Result<Installed> {
    let options = ClusterOptions {
        with_scheduler: false,
        with_fake_kubelet: false,
        ..ClusterOptions::named(name)
    };
    Installed::start_with(options, Store::Directory, &[]).await
}

async fn config_map(installed: &Installed, namespace: &str, name: &str, value: &str) -> Result<()> {
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace},
        "data": {"release": value},
    });
    installed.given(&map.to_string()).await
}

/// Every ConfigMap and Snapshot of a namespace with its resource version.
async fn versions(installed: &Installed, namespace: &str) -> Result<BTreeMap<String, Option<String>>> {
    let client = installed.admin().await?;
    let every = ListParams::default();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let snapshots: Api<Snapshot> = Api::namespaced(client, namespace);
    let maps = maps.list(&every).await?.items.into_iter().map(|one| one.metadata);
    let snapshots = snapshots.list(&every).await?.items.into_iter().map(|one| one.metadata);
    let all = maps.chain(snapshots);
    Ok(all
        .map(|one| (one.name.unwrap_or_default(), one.resource_version))
        .collect())
}

/// One bad request.
struct Bad {
    name: &'static str,
    spec: Value,
    /// Reason and parts of the message: what, why, how to fix; ` | ` separates what may stand in the place of a part.
    says: &'static [&'static str],
}

/// Asks for all at once, as alice; each has to fail as it should, and nothing may change.
async fn refused(installed: &Installed, requests: &[Bad]) -> Result<()> {
    let before = versions(installed, "shop").await?;
    for bad in requests {
        ask(installed, "shop", bad.name, &bad.spec).await?;
    }
    for bad in requests {
        let status = until_phase(installed, "shop", bad.name, RollbackPhase::Failed).await?;
        refusal(bad.name, &status, bad.says)?;
    }
    let after = versions(installed, "shop").await?;
    ensure!(after == before, "something was written: {before:#?} {after:#?}");
    Ok(())
}

fn refusal(name: &str, status: &RollbackRequestStatus, says: &[&str]) -> Result<()> {
    for part in says {
        ensure!(
            part.split(" | ").any(|part| said(status).contains(part)),
            "{name} does not say `{part}`: {}",
            said(status)
        );
    }
    ensure!(
        status.approval.is_none() && status.safety_snapshot.is_none() && status.started_at.is_none(),
        "{name}: {status:#?}"
    );
    Ok(())
}

fn bad_targets() -> Vec<Bad> {
    let bad = |name, target: Value, says| Bad {
        name,
        spec: json!({ "target": target }),
        says,
    };
    vec![
        bad(
            "no-snapshot",
            json!({"snapshot": "nowhere"}),
            &[
                "TargetNotFound: there is no snapshot nowhere in this namespace; `kubectl get snapshots` lists what there is",
            ],
        ),
        bad(
            "of-another-namespace",
            json!({"snapshot": "elsewhere"}),
            &["TargetNotFound: there is no snapshot elsewhere in this namespace; `kubectl get snapshots`"],
        ),
        bad(
            "no-lineage",
            json!({"lineage": "nowhere", "previous": true}),
            &["TargetNotFound: lineage nowhere has no Ready version; `kubectl get snapshots`"],
        ),
        bad(
            "no-version",
            json!({"lineage": "shop", "version": 9}),
            &["TargetNotFound: lineage shop has no version 9; `kubectl get snapshots`"],
        ),
        bad(
            "no-tag",
            json!({"lineage": "shop", "tag": "stable"}),
            &["TargetNotFound: no Ready snapshot of lineage shop carries the tag stable; `kubectl get snapshots`"],
        ),
        bad(
            "too-early",
            json!({"lineage": "shop", "asOf": "2001-01-01T00:00:00Z"}),
            &["TargetNotFound: lineage shop has no Ready version begun at or before 2001-01-01T00:00:00Z"],
        ),
        bad(
            "not-ready",
            json!({"snapshot": "failed"}),
            &["TargetNotReady: snapshot failed is Failed, not Ready; name a Ready one"],
        ),
    ]
}

fn bad_selections() -> Vec<Bad> {
    let good = json!({"snapshot": "good"});
    vec![
        Bad {
            name: "not-captured",
            spec: json!({"target": good, "strategy": "Partial", "components": ["Workloads"]}),
            says: &[
                "InvalidSpec: components: the snapshot did not capture Workloads; remove it, or name a snapshot that did",
            ],
        },
        Bad {
            name: "no-such-kind",
            spec: json!({"target": good, "strategy": "Selective", "objects": {"include": [{"kinds": ["Widget"]}]}}),
            says: &[
                "NothingSelected: objects selects nothing that the snapshot holds or that is live",
                "`kubectl backstep snapshot show` lists what it holds",
            ],
        },
        Bad {
            name: "no-such-object",
            spec: json!({"target": good, "strategy": "Selective", "objects": {"include": [{"names": ["nothing-*"]}]}}),
            says: &["NothingSelected: objects selects nothing"],
        },
        Bad {
            name: "nobody-can-approve",
            spec: json!({"target": good, "reason": {"type": "Compliance"}}),
            says: &[
                "Unsatisfiable: ApprovalPolicy alone cannot approve this request: stage approval can never be met",
                "1 distinct people must approve",
                "only 0 of those it names can; name more approvers or a group, or require fewer",
            ],
        },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_cannot_be_is_refused_with_what_why_and_how_to_fix_and_changes_nothing() -> Result<()> {
    let mut installed = start("refusals").await?;
    given(&installed, "shop").await?;
    given(&installed, "other").await?;
    installed.given(MALLORY).await?;
    // Nobody but who asks could approve it.
    let alone = json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": "ApprovalPolicy", "metadata": {"name": "alone"},
        "spec": {"priority": 20, "match": {"reasons": ["Compliance"]},
                 "stages": [{"name": "approval", "required": 1, "approvers": {"users": ["alice"]}}]},
    });
    installed.given(&alone.to_string()).await?;
    // Most of what is stored is of one object, so that damage in the middle is damage of that one.
    let mut random = rand::rngs::StdRng::seed_from_u64(11);
    let noise: String = (0..100_000)
        .map(|_| char::from(random.sample(rand::distr::Alphanumeric)))
        .collect();
    config_map(&installed, "shop", "large", &noise).await?;
    config_map(&installed, "shop", "web", "good").await?;
    let capture = json!({"lineage": "shop", "capture": {"components": ["Configuration"]}});
    installed.snapshot("shop", "good", &capture).await?;
    installed.snapshot("other", "elsewhere", &json!({})).await?;
    config_map(&installed, "shop", "web", "bad").await?;
    let nothing = json!({"capture": {"selector": {"matchLabels": {"a": "b"}}}});
    installed.snapshot("shop", "failed", &nothing).await?;

    refused(&installed, &bad_targets()).await?;
    refused(&installed, &bad_selections()).await?;

    // Who may ask, and may not do by hand what is asked for.
    let request = json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": "RollbackRequest",
        "metadata": {"name": "without-rights", "namespace": "shop"}, "spec": {"target": {"snapshot": "good"}},
    });
    let mallory = User::new("mallory", ["outsiders"]);
    installed.apply(&mallory, &request.to_string()).await?.success()?;
    let status = until_phase(&installed, "shop", "without-rights", RollbackPhase::Failed).await?;
    let says = [
        "PreflightFailed: ",
        "mallory may not",
        "update configmaps",
        "grant these, or have somebody ask who holds them",
    ];
    refusal("without-rights", &status, &says)?;
    ensure!(live(&installed, "shop").await? == "bad");

    damaged_and_newer(&mut installed).await?;
    installed.cluster.stop().await
}

/// What is said of contents that do not match their digest: by who checks all of them, or by who needs them.
const DAMAGED: &[&str] = &[
    "PreflightFailed: SnapshotVerified: stored contents are damaged: packs/ | Corrupt: the repository is damaged: `packs/",
    "name another snapshot | run `kubectl backstep snapshot verify` to see which snapshots are affected and restore the blob",
];

/// Contents that do not match their digest, and contents that a newer release wrote.
async fn damaged_and_newer(installed: &mut Installed) -> Result<()> {
    let packs = installed.store_directory().join("packs");
    let largest = std::fs::read_dir(&packs)?
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .max_by_key(|file| file.metadata().map_or(0, |meta| meta.len()))
        .context("a pack")?
        .path();
    let sound = std::fs::read(&largest)?;
    let mut bytes = sound.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&largest, bytes)?;
    // What it read before it would not have to read again.
    installed.start_operator().await?;
    let good = json!({"target": {"snapshot": "good"}});
    refused(
        installed,
        &[Bad {
            name: "damaged",
            spec: good.clone(),
            says: DAMAGED,
        }],
    )
    .await?;
    // Nothing differs: what is damaged is no target all the same.
    config_map(installed, "shop", "web", "good").await?;
    refused(
        installed,
        &[Bad {
            name: "damaged-and-equal",
            spec: good.clone(),
            says: DAMAGED,
        }],
    )
    .await?;
    config_map(installed, "shop", "web", "bad").await?;
    // What would be written back is damaged itself.
    config_map(installed, "shop", "large", "small").await?;
    refused(
        installed,
        &[Bad {
            name: "damaged-content",
            spec: good.clone(),
            says: DAMAGED,
        }],
    )
    .await?;
    std::fs::write(&largest, sound)?;

    let journal = installed.store_directory().join("journal");
    let newest = std::fs::read_dir(&journal)?
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .filter_map(|file| file.file_name().to_str()?.parse::<u64>().ok())
        .max()
        .context("a record")?;
    // A record as a later release might write it: its mark, its format, its own digest.
    let mut record = b"BSJR\x07".to_vec();
    record.extend([0; 60]);
    let own = Digest::of(&record);
    record.extend(own.as_bytes());
    let later = journal.join(format!("{:016}", newest + 1));
    std::fs::write(&later, record)?;
    refused(
        installed,
        &[Bad {
            name: "newer",
            spec: good.clone(),
            says: &[
                "NewerFormat: `journal/",
                "has repository format 7, this Backstep reads up to 1",
                "upgrade Backstep",
            ],
        }],
    )
    .await?;
    let taken = installed.snapshot("other", "newer", &json!({})).await?;
    let why = why(&taken);
    ensure!(
        why.starts_with("NewerFormat: `journal/") && why.contains("upgrade Backstep to the version that wrote it"),
        "{why}"
    );
    std::fs::remove_file(&later)?;

    // It was the store, and nothing else: now there is a plan.
    let plan = json!({"target": {"snapshot": "good"}, "dryRun": true});
    ask(installed, "shop", "sound", &plan).await?;
    until_phase(installed, "shop", "sound", RollbackPhase::Planned).await?;
    Ok(())
}

/// Reason and message of the condition `Ready`.
fn why(snapshot: &Snapshot) -> String {
    let conditions = snapshot.status.iter().flat_map(|status| &status.conditions);
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
    ready.map_or_else(String::new, |ready| format!("{}: {}", ready.reason, ready.message))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_captured_and_a_namespace_that_goes_are_told_and_nothing_is_left_behind() -> Result<()> {
    let installed = start("goners").await?;
    given(&installed, "shop").await?;
    config_map(&installed, "shop", "web", "good").await?;
    for (name, spec, says) in [
        (
            "nothing",
            json!({"capture": {"selector": {"matchLabels": {"a": "b"}}}}),
            &[
                "NothingMatched: spec.capture selects no object of the namespace; compare its selector and include",
                "and create a new Snapshot",
            ][..],
        ),
        (
            "unknown-kind",
            json!({"capture": {"include": [{"kinds": ["Deploymint"]}]}}),
            &[
                "UnknownKind: spec.capture.include names kinds that this cluster does not serve, or that are never captured: \
                 Deploymint; write kinds in CamelCase as in `kubectl api-resources`, and create a new Snapshot",
            ],
        ),
    ] {
        let taken = installed.snapshot("shop", name, &spec).await?;
        for part in says {
            ensure!(
                why(&taken).contains(part),
                "{name} does not say `{part}`: {}",
                why(&taken)
            );
        }
        let status = taken.status.unwrap_or_default();
        ensure!(
            status.version.is_none() && status.digest.is_none(),
            "{name}: {status:#?}"
        );
    }

    // Approved and held, while its namespace goes, and is held up by somebody else's finalizer.
    approved(&installed, "leaving", &json!({})).await?;
    let maps: Api<ConfigMap> = Api::namespaced(installed.admin().await?, "leaving");
    let hold = |finalizers: Value| Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
    maps.patch("web", &PatchParams::default(), &hold(json!(["example.com/hold"])))
        .await?;
    let namespaces: Api<Namespace> = Api::all(installed.admin().await?);
    namespaces.delete("leaving", &DeleteParams::default()).await?;
    let requests: Api<RollbackRequest> = Api::namespaced(installed.admin().await?, "leaving");
    wait_until(PATIENCE, "the request to go with its namespace", async || {
        let left = requests.get_opt("undo").await?;
        ensure!(left.is_none(), "{left:#?}");
        Ok(Some(()))
    })
    .await?;
    ensure!(
        live(&installed, "leaving").await? == "bad",
        "it ran in a namespace that goes"
    );
    let late = json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": "RollbackRequest",
        "metadata": {"name": "late", "namespace": "leaving"}, "spec": {"target": {"snapshot": "good"}},
    });
    let ran = installed.apply(&User::admin(), &late.to_string()).await?.failure()?;
    ensure!(ran.stderr.contains("because it is being terminated"), "{ran}");
    maps.patch("web", &PatchParams::default(), &hold(Value::Null)).await?;
    wait_until(PATIENCE, "the namespace to go", async || {
        let left = namespaces.get_opt("leaving").await?;
        ensure!(left.is_none(), "{:#?}", left.and_then(|one| one.status));
        Ok(Some(()))
    })
    .await?;
    let ran = installed.apply(&User::admin(), &late.to_string()).await?.failure()?;
    ensure!(ran.stderr.contains("namespaces \"leaving\" not found"), "{ran}");

    // A namespace of the same name is another one: what was approved for the old one does not come back.
    approved(&installed, "leaving", &json!({})).await?;
    let get = ["get", "approvalrequests", "-n", "leaving", "-o", "name"];
    let open = kubectl(&installed, &User::admin(), &get, None).await?;
    ensure!(open.lines().count() == 1, "{open}");
    installed.cluster.stop().await
}
