//! What `kubectl backstep doctor` says of the guard: what differs from this release, and what the operator makes of it.

use anyhow::{Result, ensure};
use serde_json::Value;
use testbed::{ClusterOptions, User, wait_until};

use crate::{
    support::{Installed, PATIENCE, Store},
    team::{alice, given},
};

/// Outcome, detail and fix of the check `name`.
async fn check(installed: &Installed, user: &User, name: &str) -> Result<(String, String, String)> {
    let ran = installed.cli(user, &["doctor", "-n", "shop", "-o", "json"]).await?;
    let checks: Value = serde_json::from_str(&ran.stdout)?;
    let found = checks["checks"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|check| check["name"] == name);
    let text = |field: &str| {
        found
            .and_then(|check| check[field].as_str())
            .unwrap_or_default()
            .to_owned()
    };
    Ok((text("outcome"), text("detail"), text("fix")))
}

async fn until_check(installed: &Installed, name: &str, outcome: &str) -> Result<(String, String)> {
    let seen = wait_until(PATIENCE, &format!("doctor to find {name} {outcome}"), async || {
        let (seen, detail, fix) = check(installed, &User::admin(), name).await?;
        ensure!(seen == outcome, "{seen}: {detail}");
        Ok::<_, anyhow::Error>(Some((detail, fix)))
    })
    .await;
    seen.map_err(|error| error.context(installed.log_tail()))
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_what_was_changed_of_the_guard_and_what_the_operator_makes_of_it() -> Result<()> {
    let installed = Installed::start_with(ClusterOptions::named("doctor-guard"), Store::Directory, &[]).await?;
    given(&installed, "shop").await?;
    until_check(&installed, "specs of the guard", "OK").await?;
    let (before, _) = until_check(&installed, "guard", "OK").await?;
    ensure!(before.contains("epoch sha256:"), "{before}");

    // By its name it is still there, and it still denies.
    let narrowed = r#"{"spec":{"matchResources":{"namespaceSelector":{"matchLabels":{"nowhere":"at-all"}}}}}"#;
    let binding = "requests.guard.backstep.dev";
    let patch = async |body: &str| {
        let arguments = [
            "patch",
            "validatingadmissionpolicybinding",
            binding,
            "--type=merge",
            "-p",
            body,
        ];
        installed
            .cluster
            .kubectl(&User::admin(), &arguments, None)
            .await?
            .success()
            .map(drop)
    };
    patch(narrowed).await?;
    let (detail, fix) = until_check(&installed, "specs of the guard", "FAIL").await?;
    ensure!(
        detail.contains(binding) && detail.contains("matchResources"),
        "{detail}"
    );
    ensure!(fix.contains("helm upgrade"), "{fix}");
    let (names, _, _) = check(&installed, &User::admin(), "admission policies").await?;
    ensure!(names == "OK", "its name and action alone do not tell");
    let (detail, fix) = until_check(&installed, "guard", "FAIL").await?;
    ensure!(
        detail.contains("matchResources") && fix.contains("nothing is approved"),
        "{detail} {fix}"
    );
    // Who may not look gets no false alarm.
    for name in ["specs of the guard", "guard"] {
        let (outcome, detail, _) = check(&installed, &alice(), name).await?;
        ensure!(outcome == "SKIP" || outcome.is_empty(), "{name} {outcome}: {detail}");
    }

    // As it was, but not the same any more: another epoch.
    patch(r#"{"spec":{"matchResources":null}}"#).await?;
    until_check(&installed, "specs of the guard", "OK").await?;
    let (after, _) = until_check(&installed, "guard", "OK").await?;
    ensure!(after != before, "the epoch is the same: {after}");
    Ok(())
}
