//! What the repository keeps of a rollback: the whole of a long plan, every failure, and nothing that nobody can ask for any more.

use anyhow::{Context as _, Result, ensure};
use backstep::api::{RollbackPlan, RollbackRequest, rollback_request::RollbackPhase};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use testbed::{ClusterOptions, Ran, User, wait_until};

use crate::{
    support::{Installed, PATIENCE, Store},
    team::{alice, approve, ask, given, said, until, until_phase},
};

/// Looks for leftovers often.
const TIDY: [&str; 2] = ["--maintenance-interval", "1s"];
const CANARY: &str = "canary-of-a-password";

async fn kubectl(installed: &Installed, user: &User, arguments: &[&str]) -> Result<Ran> {
    installed.cluster.kubectl(user, arguments, None).await?.success()
}

/// Names of the documents of one room of the store.
fn documents(installed: &Installed, room: &str) -> Vec<String> {
    let entries = std::fs::read_dir(installed.store_directory().join(room));
    let mut names: Vec<String> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

async fn until_documents(
    installed: &Installed,
    room: &str,
    what: &str,
    wanted: impl Fn(&[String]) -> bool,
) -> Result<()> {
    let seen = wait_until(PATIENCE, what, async || {
        let names = documents(installed, room);
        if wanted(&names) {
            Ok(Some(()))
        } else {
            Err(format!("{names:?}"))
        }
    })
    .await;
    seen.map_err(|error| error.context(installed.log_tail()))
}

async fn backstep(installed: &Installed, user: &User, arguments: &[&str], code: i32) -> Result<Ran> {
    let ran = installed.cli(user, &[arguments, &["-n", "shop"]].concat()).await?;
    ensure!(ran.status.code() == Some(code), "exit code {code} was expected\n{ran}");
    Ok(ran)
}

/// Each difference is longer than an item of the object may show.
fn long(name: &str, mark: &str) -> String {
    let lines: Vec<String> = (0..1500)
        .map(|line| format!("{mark} of {name}, line {line}\n"))
        .collect();
    let text = lines.concat();
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "shop"}, "data": {"text": text}}).to_string()
}

fn secret(mark: &str) -> String {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db", "namespace": "shop"},
           "stringData": {"password": format!("{CANARY}-{mark}")}})
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_is_longer_than_its_object_is_kept_whole_and_outlives_its_request() -> Result<()> {
    let installed = Installed::start_with(ClusterOptions::named("reports-plan"), Store::Directory, &TIDY).await?;
    given(&installed, "shop").await?;
    let names: Vec<String> = (0..20).map(|n| format!("long-{n:02}")).collect();
    let release = |mark: &str| {
        let mut manifests: Vec<String> = names.iter().map(|name| long(name, mark)).collect();
        manifests.push(secret(mark));
        manifests.join("\n---\n")
    };
    // Not by apply: what was applied last would not fit into an annotation of these.
    let put = async |verb: &str, mark: &str| {
        let ran = installed
            .cluster
            .kubectl(&alice(), &[verb, "-f", "-"], Some(&release(mark)))
            .await?;
        ran.success().map(drop)
    };
    put("create", "first").await?;
    installed.snapshot("shop", "good", &json!({})).await?;
    put("replace", "second").await?;
    ask(&installed, "shop", "back", &json!({"target": {"snapshot": "good"}})).await?;
    let status = until_phase(&installed, "shop", "back", RollbackPhase::AwaitingApproval).await?;
    let told = status.plan.clone().context("a plan")?;
    let plans: Api<RollbackPlan> = Api::namespaced(installed.admin().await?, "shop");
    let cut = plans.get(&told.name).await?;
    ensure!(cut.spec.truncated, "{:?}", cut.spec.summary);
    ensure!(serde_json::to_vec(&cut)?.len() < 300 * 1024, "the object is too long");
    ensure!(
        documents(&installed, "plans").len() == 1,
        "{:?}",
        documents(&installed, "plans")
    );

    let store = format!("file://{}", installed.store_directory().display());
    let whole = ["plan", "--of", "back", "--full", "-o", "json", "--store", &store];
    let is_whole = |ran: &Ran| -> Result<()> {
        let plan: RollbackPlan = serde_json::from_str(&ran.stdout)?;
        ensure!(
            !plan.spec.truncated && plan.spec.digest == told.digest,
            "{:?}",
            plan.spec.summary
        );
        ensure!(
            plan.name_any() == told.name && plan.spec.items.len() == 21,
            "{}",
            plan.spec.items.len()
        );
        for item in &plan.spec.items {
            let diff = item.diff.clone().unwrap_or_default();
            if item.object.kind == "ConfigMap" {
                let all = ["line 0", "line 1499"].iter().all(|line| diff.contains(line));
                ensure!(
                    all && !diff.contains("… cut"),
                    "{}: {} bytes",
                    item.object.name,
                    diff.len()
                );
            }
        }
        // Neither plain nor as a Secret writes it.
        ensure!(!ran.stdout.contains(CANARY), "a value of a Secret is shown");
        ensure!(
            !ran.stdout.contains("Y2FuYXJ5LW9mLWEtcGFzc3dvcmQ"),
            "a value of a Secret is shown"
        );
        Ok(())
    };
    is_whole(&backstep(&installed, &User::admin(), &whole, 0).await?)?;
    let table = ["plan", "--of", "back", "--full", "--store", &store];
    let table = backstep(&installed, &User::admin(), &table, 0).await?;
    ensure!(
        table.stdout.contains("first of long-19, line 1499"),
        "{}",
        table.stdout.len()
    );
    ensure!(!table.stdout.contains("left out"), "it says that something is left out");
    // The store is not for everybody, and the plan that is says where the rest is.
    let refused = installed
        .cli(&alice(), &["plan", "--of", "back", "--full", "-n", "shop"])
        .await?;
    ensure!(
        !refused.status.success() && refused.stderr.contains("may not read"),
        "{refused}"
    );
    let short = backstep(&installed, &alice(), &["plan", "--of", "back", "--diffs", "none"], 0).await?;
    ensure!(
        short.stdout.contains("kubectl backstep plan --of back --full"),
        "{}",
        short.stdout
    );

    approve(&installed, "shop", "back").await?;
    let ended = until_phase(&installed, "shop", "back", RollbackPhase::Completed).await?;
    ensure!(
        ended.items.as_ref().is_some_and(|items| items.done == 21),
        "{}",
        said(&ended)
    );
    until_documents(&installed, "plans", "nothing that nobody can ask for", <[_]>::is_empty).await?;
    is_whole(&backstep(&installed, &User::admin(), &whole, 0).await?)?;

    // A dry run is not remembered: its plan goes with it.
    put("replace", "third").await?;
    let dry = json!({"target": {"snapshot": "good"}, "dryRun": true});
    ask(&installed, "shop", "dry", &dry).await?;
    until_phase(&installed, "shop", "dry", RollbackPhase::Planned).await?;
    let of_back = documents(&installed, "reports");
    ensure!(of_back.len() >= 4, "{of_back:?}");
    for request in ["back", "dry"] {
        kubectl(
            &installed,
            &alice(),
            &["delete", "rollbackrequest", request, "-n", "shop"],
        )
        .await?;
    }
    until_documents(&installed, "reports", "only the report of what was executed", |names| {
        names.len() == 2
    })
    .await?;
    is_whole(&backstep(&installed, &User::admin(), &whole, 0).await?)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_of_an_execution_is_in_its_record_beyond_what_the_status_holds() -> Result<()> {
    let installed = Installed::start_with(ClusterOptions::named("reports-failures"), Store::Directory, &TIDY).await?;
    given(&installed, "shop").await?;
    let release = |mark: &str| {
        (0..20)
            .map(|n| {
                let metadata = json!({"name": format!("c-{n:02}"), "namespace": "shop"});
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"mode": mark}})
                    .to_string()
            })
            .collect::<Vec<_>>()
            .join("\n---\n")
    };
    installed.apply(&alice(), &release("first")).await?.success()?;
    installed.snapshot("shop", "good", &json!({})).await?;
    installed.apply(&alice(), &release("second")).await?.success()?;
    let spec = json!({"target": {"snapshot": "good"}, "onFailure": "Continue", "suspend": true});
    ask(&installed, "shop", "back", &spec).await?;
    until_phase(&installed, "shop", "back", RollbackPhase::AwaitingApproval).await?;
    approve(&installed, "shop", "back").await?;
    // Nobody could have known.
    let refuses = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-first}
spec:
  failurePolicy: Fail
  matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [configmaps]}]}
  validations: [{expression: "!has(object.data) || !('mode' in object.data) || object.data.mode != 'first'", message: not today}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-first}
spec: {policyName: no-first, validationActions: [Deny], matchResources: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}}
"#;
    installed.given(refuses).await?;
    wait_until(PATIENCE, "the policy to refuse", async || {
        let try_one = [
            "create",
            "configmap",
            "probe",
            "--from-literal=mode=first",
            "--dry-run=server",
            "-n",
            "shop",
        ];
        let ran = installed
            .cluster
            .kubectl(&alice(), &try_one, None)
            .await
            .map_err(|e| e.to_string())?;
        if ran.stderr.contains("not today") {
            Ok(Some(()))
        } else {
            Err(ran.to_string())
        }
    })
    .await?;
    let go = [
        "patch",
        "rollbackrequest",
        "back",
        "-n",
        "shop",
        "--type=merge",
        "-p",
        r#"{"spec":{"suspend":false}}"#,
    ];
    kubectl(&installed, &alice(), &go).await?;
    let status = until(&installed, "shop", "back", "the rollback to end", |status| {
        status.completed_at.is_some()
    })
    .await?;
    let items = status.items.clone().context("items")?;
    ensure!(status.phase == Some(RollbackPhase::Failed), "{}", said(&status));
    ensure!(
        (items.failed, items.failures.len(), items.failures_omitted) == (20, 16, Some(4)),
        "{items:?}"
    );

    let store = format!("file://{}", installed.store_directory().display());
    let history = ["history", "back", "-o", "json", "--store", &store];
    let every = |ran: &Ran| -> Result<()> {
        let record: Value = serde_json::from_str(&ran.stdout)?;
        let failures = record["failures"].as_array().cloned().unwrap_or_default();
        let of: std::collections::BTreeSet<_> = failures.iter().filter_map(|f| f["object"].as_str()).collect();
        ensure!(of.len() == 20 && of.contains("ConfigMap/c-19"), "{record:#}");
        ensure!(record["decisions"][0]["username"] == "bob", "{record:#}");
        Ok(())
    };
    every(&backstep(&installed, &User::admin(), &history, 0).await?)?;
    // Who may not read the store is told what is missing.
    let part = backstep(&installed, &alice(), &["history", "back"], 0).await?;
    ensure!(part.stderr.contains("4 more failures"), "{part}");
    kubectl(
        &installed,
        &alice(),
        &["delete", "rollbackrequest", "back", "-n", "shop"],
    )
    .await?;
    every(&backstep(&installed, &User::admin(), &history, 0).await?)?;
    let told = backstep(&installed, &User::admin(), &["history", "back", "--store", &store], 0).await?;
    ensure!(told.stdout.matches(" WriteRefused: ").count() == 20, "{told}");
    until_documents(&installed, "plans", "nothing that nobody can ask for", <[_]>::is_empty).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deleted_request_left_behind_is_collected_also_when_nobody_saw_it_go() -> Result<()> {
    let mut installed = Installed::start_with(ClusterOptions::named("reports-gone"), Store::Directory, &TIDY).await?;
    given(&installed, "shop").await?;
    let config = |mode: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web", "namespace": "shop"}, "data": {"mode": mode}}).to_string()
    };
    installed.apply(&alice(), &config("first")).await?.success()?;
    installed.snapshot("shop", "good", &json!({})).await?;
    installed.apply(&alice(), &config("second")).await?.success()?;
    for request in ["one", "two"] {
        ask(&installed, "shop", request, &json!({"target": {"snapshot": "good"}})).await?;
        until_phase(&installed, "shop", request, RollbackPhase::AwaitingApproval).await?;
    }
    ensure!(
        documents(&installed, "plans").len() == 2,
        "{:?}",
        documents(&installed, "plans")
    );
    installed.kill_operator();
    kubectl(
        &installed,
        &alice(),
        &["delete", "rollbackrequest", "one", "-n", "shop"],
    )
    .await?;
    installed.start_operator().await?;
    let requests: Api<RollbackRequest> = Api::namespaced(installed.admin().await?, "shop");
    let left = requests.get("two").await?.uid().context("a UID")?;
    until_documents(
        &installed,
        "plans",
        "the items of the request that is gone to go",
        |names| names.len() == 1 && names[0].starts_with(&left),
    )
    .await?;
    // What is still to be approved is not lost.
    approve(&installed, "shop", "two").await?;
    until_phase(&installed, "shop", "two", RollbackPhase::Completed).await?;
    until_documents(
        &installed,
        "plans",
        "the items of the request that is over to go",
        <[_]>::is_empty,
    )
    .await
}
