//! Who is who.

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, PostParams};
use kube::{Client, Error};
use testbed::{ClusterOptions, User};

use crate::support::{apply, started};

async fn identity(client: Client) -> (String, Vec<String>) {
    let reviews: Api<SelfSubjectReview> = Api::all(client);
    let review = reviews
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .unwrap();
    let user = review.status.unwrap().user_info.unwrap();
    (user.username.unwrap(), user.groups.unwrap_or_default())
}

async fn may_list_pods(client: Client) -> bool {
    let pods: Api<Pod> = Api::namespaced(client, "default");
    match pods.list(&ListParams::default()).await {
        Ok(_) => true,
        Err(Error::Api(status)) if status.code == 403 => false,
        Err(error) => panic!("neither allowed nor forbidden: {error}"),
    }
}

const ROBOT: &str = "{apiVersion: v1, kind: ServiceAccount, metadata: {name: robot, namespace: default}}";

const GRANT: &str = r"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: default}
rules:
- {apiGroups: [''], resources: [pods], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: readers, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: Group, name: readers}
- {kind: ServiceAccount, name: robot, namespace: default}
";

#[tokio::test]
async fn users_are_distinct_and_have_only_the_rights_that_rbac_gives() {
    let Some(cluster) = started(ClusterOptions::api_server_only("users")).await else {
        return;
    };
    let alice = User::new("alice", ["shop-team", "readers", "on call, \"today\""]);
    let mallory = User::new("mallory", Vec::<String>::new());
    let (name, groups) = identity(cluster.client_as(&alice).await.unwrap()).await;
    assert_eq!(name, "alice");
    assert_eq!(
        groups,
        ["shop-team", "readers", "on call, \"today\"", "system:authenticated"]
    );
    let (name, groups) = identity(cluster.client_as(&mallory).await.unwrap()).await;
    assert_eq!(
        (name.as_str(), groups),
        ("mallory", vec!["system:authenticated".to_owned()])
    );
    apply(&cluster, ROBOT).await;
    let account = cluster.service_account_client("default", "robot").await.unwrap();
    assert_eq!(identity(account.clone()).await.0, "system:serviceaccount:default:robot");

    for client in [cluster.client_as(&alice).await.unwrap(), account.clone()] {
        assert!(!may_list_pods(client).await, "the test bed gives no rights");
    }
    apply(&cluster, GRANT).await;
    for client in [cluster.client_as(&alice).await.unwrap(), account] {
        testbed::wait_until(crate::support::DEADLINE, "the granted right", async || {
            Ok::<_, String>(may_list_pods(client.clone()).await.then_some(()))
        })
        .await
        .unwrap();
    }
    assert!(!may_list_pods(cluster.client_as(&mallory).await.unwrap()).await);

    let missing = cluster
        .service_account_kubeconfig("default", "nobody")
        .await
        .unwrap_err();
    assert!(missing.to_string().contains("default/nobody"), "{missing}");
}

#[tokio::test]
async fn tools_act_as_their_user_and_kubeconfigs_are_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(cluster) = started(ClusterOptions::api_server_only("tools")).await else {
        return;
    };
    let alice = User::new("alice", ["shop-team"]);
    let who = cluster
        .kubectl(&alice, &["auth", "whoami", "-o", "json"], None)
        .await
        .unwrap()
        .json()
        .unwrap();
    assert_eq!(who["status"]["userInfo"]["username"], "alice");
    let refused = cluster
        .kubectl(&alice, &["get", "secrets"], None)
        .await
        .unwrap()
        .failure()
        .unwrap();
    assert!(refused.stderr.contains("Forbidden"), "{refused}");
    let mode = std::fs::metadata(cluster.kubeconfig(&alice).unwrap())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    match cluster
        .helm(&User::admin(), &["list", "--all-namespaces", "--output", "json"], None)
        .await
    {
        Ok(listed) => assert_eq!(listed.json().unwrap(), serde_json::json!([])),
        Err(error) => eprintln!("{}", error.downcast::<testbed::Skipped>().unwrap()),
    }
}
