//! Starting, using, restarting and ending clusters.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::{ListParams, PostParams};
use testbed::{Audit, Cluster, ClusterOptions, User, wait_until};

use crate::support::{DEADLINE, cluster, nothing_left, processes_of, started};

#[tokio::test]
async fn two_clusters_at_once_know_nothing_of_each_other() {
    let (first, second) = tokio::join!(cluster("first"), cluster("second"));
    let (Some(first), Some(second)) = (first, second) else {
        return;
    };
    let namespace = serde_json::from_value(serde_json::json!({"metadata": {"name": "only-here"}})).unwrap();
    let here: Api<Namespace> = Api::all(first.admin().await.unwrap());
    here.create(&PostParams::default(), &namespace).await.unwrap();
    let there: Api<Namespace> = Api::all(second.admin().await.unwrap());
    assert!(there.get_opt("only-here").await.unwrap().is_none());

    let (one, other) = (first.directory().to_owned(), second.directory().to_owned());
    first.stop().await.unwrap();
    assert_eq!(nothing_left(&one), Ok(Some(())));
    assert!(
        there.get_opt("default").await.unwrap().is_some(),
        "the other one goes on"
    );
    drop(second);
    assert_eq!(nothing_left(&other), Ok(Some(())));
}

#[tokio::test]
async fn requests_are_counted_and_audited_and_the_data_survive_restarts() {
    let options = ClusterOptions {
        audit: Audit::RequestResponse,
        ..ClusterOptions::api_server_only("audit")
    };
    let Some(mut cluster) = started(options).await else {
        return;
    };
    let alice = User::new("alice", ["shop-team"]);
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin().await.unwrap(), "default");
    let before = cluster.api_requests().await.unwrap();
    let map = serde_json::from_value(serde_json::json!({"metadata": {"name": "kept"}, "data": {"a": "1"}})).unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();
    let hers: Api<ConfigMap> = Api::namespaced(cluster.client_as(&alice).await.unwrap(), "default");
    hers.list(&ListParams::default()).await.unwrap_err();

    let made = cluster.api_requests().await.unwrap().since(&before);
    let maps_of = |verb| move |request: &testbed::ApiRequest| request.resource == "configmaps" && request.verb == verb;
    assert_eq!(
        (made.count(maps_of("POST")), made.count(maps_of("GET"))),
        (1, 0),
        "{made}"
    );
    maps.get("kept").await.unwrap();
    let read = cluster.api_requests().await.unwrap().since(&before).since(&made);
    assert_eq!(
        (read.count(maps_of("POST")), read.count(maps_of("GET"))),
        (0, 1),
        "{read}"
    );

    let events = cluster.audit_events().unwrap();
    let refused = events.iter().find(|event| event.user.username == "alice").unwrap();
    assert_eq!((refused.verb.as_str(), refused.code()), ("list", Some(403)));
    assert_eq!(refused.object_ref.as_ref().unwrap().resource, "configmaps");
    let created = events
        .iter()
        .find(|event| event.verb == "create" && event.user.username == "admin")
        .unwrap();
    assert_eq!(created.request_object.as_ref().unwrap()["data"]["a"], "1");

    cluster.restart_api_server().await.unwrap();
    assert!(
        maps.get_opt("kept").await.unwrap().is_some(),
        "a client from before works at the same address"
    );
    cluster.check().unwrap();

    let kept = tempfile::tempdir().unwrap();
    let data = kept.path().join("etcd");
    cluster.stop_and_keep_etcd(&data).await.unwrap();
    let options = ClusterOptions {
        etcd_data_from: Some(data),
        ..ClusterOptions::api_server_only("again")
    };
    let again = Cluster::start(options).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(again.admin().await.unwrap(), "default");
    assert!(maps.get_opt("kept").await.unwrap().is_some());
}

#[tokio::test]
async fn a_start_that_fails_shows_the_log_and_leaves_nothing() {
    let directory = std::env::temp_dir().join(format!("backstep-testbed-refused-{}", std::process::id()));
    let options = ClusterOptions {
        directory: Some(directory.clone()),
        api_server_args: vec!["--no-such-flag".to_owned()],
        ..ClusterOptions::api_server_only("refused")
    };
    match Cluster::start(options).await {
        Err(error) if error.is::<testbed::Skipped>() => eprintln!("{error}"),
        Err(error) => assert!(error.to_string().contains("unknown flag: --no-such-flag"), "{error}"),
        Ok(_) => panic!("an unknown flag was accepted"),
    }
    wait_until(DEADLINE, "the end of the cluster", async || nothing_left(&directory))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_component_that_dies_is_named_with_its_log() {
    let Some(mut cluster) = cluster("harmed").await else {
        return;
    };
    cluster.check().unwrap();
    assert_eq!(
        processes_of(cluster.directory()).len(),
        5,
        "four components and the helper"
    );
    let (_, id) = cluster
        .process_ids()
        .into_iter()
        .find(|(name, _)| *name == "kube-scheduler")
        .unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(id.cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let error = wait_until(DEADLINE, "the death to be noticed", async || {
        Ok::<_, String>(cluster.check().err().map(|error| error.to_string()))
    })
    .await
    .unwrap();
    assert!(
        error.contains("kube-scheduler") && error.contains("signal: 9"),
        "{error}"
    );
}
