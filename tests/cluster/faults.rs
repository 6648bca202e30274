//! Rollbacks while things go wrong: the operator ended at every write, and calls that fail.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use backstep::{
    api::{RollbackRequest, rollback_request::RollbackPhase},
    domain::rollback::is_final,
};
use kube::Api;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use testbed::{Audit, ClusterOptions, User};

use crate::{
    proxy::{Call, Fault, Proxy},
    support::{Installed, Store},
    team::{alice, bob, given},
};

const NAMESPACE: &str = "shop";

fn config_map(name: &str, data: &Value) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": NAMESPACE}, "data": data})
        .to_string()
}

async fn kubectl(installed: &Installed, user: &User, arguments: &[&str], manifest: Option<&str>) -> Result<()> {
    installed
        .cluster
        .kubectl(user, arguments, manifest)
        .await?
        .success()
        .map(drop)
}

/// 40 objects with every sort of owner: server-side apply by one and by two managers, client-side apply, `kubectl create`.
async fn good_release(installed: &Installed) -> Result<()> {
    let all = |range: std::ops::Range<usize>| {
        range
            .map(|n| config_map(&format!("c{n:02}"), &json!({"release": "good", "own": "1"})))
            .collect::<Vec<_>>()
            .join("\n---\n")
    };
    let apply = ["apply", "--server-side", "--field-manager=ci", "-f", "-"];
    kubectl(installed, &alice(), &apply, Some(&all(0..15))).await?;
    kubectl(installed, &alice(), &["apply", "-f", "-"], Some(&all(15..25))).await?;
    kubectl(installed, &alice(), &["create", "-f", "-"], Some(&all(25..30))).await?;
    kubectl(installed, &alice(), &apply, Some(&all(30..35))).await?;
    let second = (30..35)
        .map(|n| config_map(&format!("c{n:02}"), &json!({"second": "owner"})))
        .collect::<Vec<_>>()
        .join("\n---\n");
    let other = ["apply", "--server-side", "--field-manager=team", "-f", "-"];
    kubectl(installed, &alice(), &other, Some(&second)).await
}

/// Every object changes, five are gone and five are new.
async fn bad_release(installed: &Installed) -> Result<()> {
    for n in 0..35 {
        let name = format!("c{n:02}");
        if n % 7 == 6 {
            kubectl(
                installed,
                &alice(),
                &["delete", "configmap", &name, "-n", NAMESPACE],
                None,
            )
            .await?;
            continue;
        }
        let patch = json!({"data": {"release": "bad", "added": "since"}}).to_string();
        let arguments = [
            "patch",
            "configmap",
            &name,
            "-n",
            NAMESPACE,
            "--type=merge",
            "-p",
            &patch,
        ];
        kubectl(installed, &alice(), &arguments, None).await?;
    }
    let new: Vec<String> = (35..40)
        .map(|n| config_map(&format!("c{n:02}"), &json!({"release": "bad"})))
        .collect();
    kubectl(installed, &alice(), &["create", "-f", "-"], Some(&new.join("\n---\n"))).await
}

/// Content and ownership of every object, without what a server counts.
async fn state(installed: &Installed) -> Result<BTreeMap<String, Value>> {
    let arguments = [
        "get",
        "configmaps",
        "-n",
        NAMESPACE,
        "-o",
        "json",
        "--show-managed-fields",
    ];
    let ran = installed
        .cluster
        .kubectl(&User::admin(), &arguments, None)
        .await?
        .success()?;
    let list: Value = serde_json::from_str(&ran.stdout)?;
    let mut state = BTreeMap::new();
    for mut item in list["items"].as_array().cloned().unwrap_or_default() {
        let name = item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if name == "kube-root-ca.crt" {
            continue;
        }
        for field in ["uid", "resourceVersion", "creationTimestamp", "generation"] {
            if let Some(metadata) = item["metadata"].as_object_mut() {
                metadata.remove(field);
            }
        }
        if let Some(entries) = item["metadata"]["managedFields"].as_array_mut() {
            for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
                entry.remove("time");
            }
            entries.sort_by_key(ToString::to_string);
        }
        state.insert(name, item);
    }
    Ok(state)
}

fn request(name: &str) -> String {
    json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": "RollbackRequest",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"target": {"snapshot": "good"}, "prune": "Created", "resultSnapshot": false,
                 "reason": {"message": "the release is bad"}},
    })
    .to_string()
}

fn phase(request: &RollbackRequest) -> RollbackPhase {
    request.status.as_ref().and_then(|s| s.phase).unwrap_or_default()
}

/// Asks as alice, approves as bob, and waits for the end; `between` is given the time between two looks.
async fn roll_back(
    installed: &mut Installed,
    name: &str,
    within: Duration,
    mut between: impl AsyncFnMut(&mut Installed) -> Result<()>,
) -> Result<RollbackRequest> {
    installed.apply(&alice(), &request(name)).await?.success()?;
    let api: Api<RollbackRequest> = Api::namespaced(installed.admin().await?, NAMESPACE);
    let end = Instant::now() + within;
    let mut approved = String::new();
    loop {
        between(installed).await?;
        let seen = api.get(name).await?;
        if is_final(phase(&seen)) {
            return Ok(seen);
        }
        ensure!(
            Instant::now() < end,
            "it did not end: {:#?}\n{}",
            seen.status,
            installed.log_tail()
        );
        let asked = seen.status.as_ref().and_then(|s| s.approval.clone());
        if let Some(asked) = asked
            && phase(&seen) == RollbackPhase::AwaitingApproval
            && asked.request != approved
            && asked.state == "Pending"
        {
            // What was asked for may be asked for again under another name.
            let arguments = ["approve", name, "-n", NAMESPACE, "--yes", "--diffs", "none"];
            if installed.cli(&bob(), &arguments).await?.success().is_ok() {
                approved = asked.request;
            }
        }
    }
}

/// Whether the call changes an object of the namespace, or of Backstep.
fn is_step(call: &Call) -> bool {
    call.writes()
        && !["/leases", "/events", "/selfsubject", "/subjectaccessreviews"]
            .iter()
            .any(|other| call.path.contains(other))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_at_every_write_reaches_the_same_state_and_writes_nothing_twice() -> Result<()> {
    let options = ClusterOptions {
        audit: Audit::Metadata,
        ..ClusterOptions::named("faults-kill")
    };
    let mut installed = Installed::start_with(options, Store::Directory, &[]).await?;
    given(&installed, NAMESPACE).await?;
    good_release(&installed).await?;
    let good = state(&installed).await?;
    installed.snapshot(NAMESPACE, "good", &json!({})).await?;
    bad_release(&installed).await?;
    let before = installed.cluster.audit_events()?.len();

    // Once for every call, in turn before it arrives and after it was carried out.
    let seen: Mutex<HashMap<String, u32>> = Mutex::default();
    let (proxy, mut stops) = Proxy::start(&installed, move |call| {
        if !is_step(call) {
            return Fault::None;
        }
        let path = call.path.split('?').next().unwrap_or_default();
        let mut seen = seen.lock().unwrap();
        let before = seen.len().is_multiple_of(2);
        let times = seen.entry(format!("{} {path}", call.method)).or_default();
        *times += 1;
        match (*times, before) {
            (1, true) => Fault::StopBefore,
            (1, false) => Fault::StopAfter,
            _ => Fault::None,
        }
    })
    .await?;
    installed.through(proxy.kubeconfig(&installed)?).await?;
    let mut kills = 0_u32;
    let ended = roll_back(&mut installed, "undo", Duration::from_secs(600), async |installed| {
        if let Ok(stopped) = tokio::time::timeout(Duration::from_millis(200), stops.recv()).await {
            stopped.context("the proxy ended")?;
            installed.kill_operator();
            // Whatever else was under way died with it.
            while stops.try_recv().is_ok() {}
            kills += 1;
            installed.start_operator().await?;
        }
        Ok(())
    })
    .await?;
    ensure!(phase(&ended) == RollbackPhase::Completed, "{:#?}", ended.status);
    ensure!(kills >= 10, "only {kills} kills: the test shows nothing");
    let reached = state(&installed).await?;
    ensure!(reached == good, "{}", differences(&good, &reached));

    let events = installed.cluster.audit_events()?;
    let mut writes: BTreeMap<(String, String), u32> = BTreeMap::new();
    for event in &events[before..] {
        let of_operator = event
            .user
            .username
            .starts_with("system:serviceaccount:backstep-system:");
        let done = event.code().is_some_and(|code| code < 300);
        let dry = event.request_uri.contains("dryRun=");
        let writes_it = ["create", "update", "patch", "delete"].contains(&event.verb.as_str());
        if let Some(object) = &event.object_ref
            && of_operator
            && done
            && !dry
            && writes_it
            && object.namespace == NAMESPACE
            && object.resource == "configmaps"
        {
            let shape = if event.verb == "patch"
                && !event.request_uri.contains("force=")
                && !event.request_uri.contains("fieldManager=")
            {
                "fields"
            } else {
                event.verb.as_str()
            };
            *writes.entry((object.name.clone(), shape.to_owned())).or_default() += 1;
        }
    }
    let twice: Vec<_> = writes.iter().filter(|(_, count)| **count > 1).collect();
    ensure!(twice.is_empty(), "written twice: {twice:?}");
    Ok(())
}

fn differences(left: &BTreeMap<String, Value>, right: &BTreeMap<String, Value>) -> String {
    let names: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
    names
        .into_iter()
        .filter(|name| left.get(*name) != right.get(*name))
        .map(|name| format!("{name}\n  {:?}\n  {:?}", left.get(name), right.get(name)))
        .collect::<Vec<_>>()
        .join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_tenth_of_all_calls_failing_rollbacks_end_correctly_or_say_why() -> Result<()> {
    let mut installed = Installed::start("faults-tenth", Store::Directory).await?;
    given(&installed, NAMESPACE).await?;
    good_release(&installed).await?;
    let good = state(&installed).await?;
    installed.snapshot(NAMESPACE, "good", &json!({})).await?;
    let random = Mutex::new(StdRng::seed_from_u64(7));
    let (proxy, _stops) = Proxy::start(&installed, move |_| {
        let mut random = random.lock().unwrap();
        if !random.random_bool(0.1) {
            return Fault::None;
        }
        match random.random_range(0..4) {
            0 => Fault::Before(500),
            1 => Fault::Before(503),
            2 => Fault::Before(429),
            _ => Fault::After(504),
        }
    })
    .await?;
    installed.through(proxy.kubeconfig(&installed)?).await?;
    let mut completed = 0;
    for round in 0..3 {
        bad_release(&installed).await?;
        let name = format!("undo-{round}");
        let ended = roll_back(&mut installed, &name, Duration::from_secs(240), async |_| {
            tokio::time::sleep(Duration::from_millis(200)).await;
            Ok(())
        })
        .await?;
        let reached = state(&installed).await?;
        let status = ended.status.unwrap_or_default();
        match status.phase.unwrap_or_default() {
            RollbackPhase::Completed => {
                completed += 1;
                ensure!(reached == good, "{}", differences(&good, &reached));
            }
            other => {
                let why = format!("{:?}", status.conditions);
                ensure!(
                    why.contains("injected") || why.contains("StoreUnavailable") || why.contains("ApiUnavailable"),
                    "{other:?} without the true reason: {why}"
                );
                // The next round begins where the first one did.
                good_again(&installed).await?;
            }
        }
    }
    ensure!(completed > 0, "not one rollback of three came through");
    Ok(())
}

/// Whatever a failed round left behind makes way for the good release.
async fn good_again(installed: &Installed) -> Result<()> {
    kubectl(
        installed,
        &alice(),
        &["delete", "configmaps", "--all", "-n", NAMESPACE],
        None,
    )
    .await?;
    good_release(installed).await
}
