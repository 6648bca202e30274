//! Lists of metadata: the server writes them in protobuf, and they say what the objects themselves say.

use anyhow::{Context as _, Result, ensure};
use backstep::cluster::{
    list::{Collection, Pager},
    metadata::{Head, Metadata},
};
use serde_json::json;
use testbed::{Cluster, ClusterOptions, User};

fn objects() -> String {
    let owned = |name: &str, uid: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {
                "name": name, "namespace": "default", "labels": {"app": "web", "tier": ""}, "annotations": {"note": "über"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid, "controller": true}],
            },
        })
    };
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default", "annotations": {"deployment.kubernetes.io/revision": "7"}},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "app", "image": "web:1"}]}},
        },
    });
    let widget = json!({
        "apiVersion": "example.com/v1", "kind": "Widget",
        "metadata": {"name": "leaving", "namespace": "default", "finalizers": ["example.com/stays"], "labels": {"size": "small"}},
    });
    let items = [owned("web", "6f5f2d0e-6f0a-4d5e-9f56-0a8d7ef0d6c1"), deployment, widget];
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

const WIDGETS: &str = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {kind: Widget, plural: widgets}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]
";

#[tokio::test(flavor = "multi_thread")]
async fn metadata_in_protobuf_says_what_the_objects_say() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions::api_server_only("metadata")).await?;
    let admin = User::admin();
    cluster
        .kubectl(&admin, &["apply", "-f", "-"], Some(WIDGETS))
        .await?
        .success()?;
    let established = [
        "wait",
        "crd/widgets.example.com",
        "--for=condition=Established",
        "--timeout=60s",
    ];
    cluster.kubectl(&admin, &established, None).await?.success()?;
    cluster
        .kubectl(&admin, &["create", "-f", "-"], Some(&objects()))
        .await?
        .success()?;
    let delete = ["delete", "widget", "leaving", "--wait=false"];
    cluster.kubectl(&admin, &delete, None).await?.success()?;

    let client = cluster.admin().await?;
    for (group, plural) in [("", "configmaps"), ("apps", "deployments"), ("example.com", "widgets")] {
        let collection = Collection {
            group: group.into(),
            version: "v1".into(),
            plural: plural.into(),
            namespace: Some("default".into()),
        };
        let get = |accept: &str| {
            http::Request::get(collection.path())
                .header(http::header::ACCEPT, accept)
                .body(Vec::new())
        };
        // What is asked for is there, so that it is no accident when nothing falls back to JSON.
        let protobuf = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        let answer = client.send(get(protobuf)?.map(kube::client::Body::from)).await?;
        ensure!(answer.status().is_success(), "{plural}: {}", answer.status());
        let kind = answer
            .headers()
            .get(http::header::CONTENT_TYPE)
            .context("no content type")?;
        ensure!(
            kind.to_str()?.starts_with("application/vnd.kubernetes.protobuf"),
            "{plural}: {kind:?}"
        );

        let whole: serde_json::Value = client.request(get("application/json")?).await?;
        let items = whole["items"].as_array().cloned().unwrap_or_default();
        let heads = items.into_iter().map(serde_json::from_value::<Head>);
        let expected: Vec<Metadata> = heads.map(|head| Ok(head?.metadata)).collect::<Result<_>>()?;
        ensure!(!expected.is_empty(), "no {plural}");

        let mut pager = Pager::start(client.clone(), collection, true);
        let mut page = pager.next().await?.context("no page")?;
        let found = page.take_metadata().context("whole objects")?;
        ensure!(found == expected, "{plural}: {found:#?} is not {expected:#?}");
    }
    cluster.stop().await
}
