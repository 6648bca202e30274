use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::repository::backend::{Put, fault::FakeApi};

fn backend(api: &Arc<FakeApi>, quota: u64) -> SecretsBackend {
    SecretsBackend::new(api.client(), "backstep-system", "main", quota).unwrap()
}

fn big(byte: u8, len: usize) -> Vec<Bytes> {
    let whole = Bytes::from(
        (0..len)
            .map(|at| byte ^ u8::try_from(at / 1000 % 256).unwrap())
            .collect::<Vec<_>>(),
    );
    vec![whole.slice(..len / 3), whole.slice(len / 3..)]
}

#[tokio::test]
async fn a_large_blob_is_cut_into_immutable_secrets_and_read_in_parts() {
    let api = Arc::<FakeApi>::default();
    let secrets = backend(&api, 1 << 30);
    let blob = big(3, 2_000_000);
    let whole = blob.concat();
    assert_eq!(secrets.put_new("packs/a", blob.clone()).await.unwrap(), Put::Created);
    assert_eq!(
        secrets.put_new("packs/a", big(4, 1_900_000)).await.unwrap(),
        Put::AlreadyExists
    );
    assert_eq!(
        secrets
            .put_new("journal/b", vec![Bytes::from_static(b"x")])
            .await
            .unwrap(),
        Put::Created
    );
    assert_eq!(api.secrets.lock().unwrap().len(), 4, "the loser left no parts");
    for secret in api.secrets.lock().unwrap().values() {
        assert_eq!(
            (&secret["immutable"], &secret["type"]),
            (&json!(true), &json!("backstep.dev/repository"))
        );
    }
    for secrets in [&secrets, &backend(&api, 1 << 30)] {
        assert_eq!(secrets.get("packs/a").await.unwrap().unwrap(), whole);
        for range in [0..10, 921_590..921_610, 1_999_990..2_000_000, 5..1_999_999] {
            let expected = &whole[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
            assert_eq!(secrets.get_range("packs/a", range).await.unwrap().unwrap(), expected);
        }
    }
    let listed = secrets.list("packs/").await.unwrap();
    assert_eq!(
        (listed.len(), listed[0].key.as_str(), listed[0].size),
        (1, "packs/a", 2_000_000)
    );
    let other = SecretsBackend::new(api.client(), "backstep-system", "other", 1).unwrap();
    assert!(other.list("").await.unwrap().is_empty(), "stores do not see each other");
    assert!(
        api.lists
            .lock()
            .unwrap()
            .iter()
            .all(|list| list.contains("PartialObjectMetadataList"))
    );
    secrets.delete("packs/a").await.unwrap();
    assert_eq!(secrets.get_range("packs/a", 1_999_990..2_000_000).await.unwrap(), None);
    assert_eq!(api.secrets.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_full_store_says_how_much_is_used_needed_and_allowed() {
    let api = Arc::<FakeApi>::default();
    let secrets = backend(&api, 1_500_000);
    secrets.put_new("packs/a", big(1, 1_000_000)).await.unwrap();
    let error = secrets.put_new("packs/b", big(2, 600_000)).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::QuotaExceeded {
                used: 1_000_000,
                needed: 600_000,
                quota: 1_500_000,
                ..
            }
        ),
        "{error}"
    );
    assert!(!error.is_transient());
    backend(&api, 1).delete("packs/a").await.unwrap();
    assert_eq!(
        secrets.put_new("packs/b", big(2, 600_000)).await.unwrap(),
        Put::Created,
        "space freed by others counts"
    );
}

#[tokio::test]
async fn refusals_of_the_api_server_have_their_type_and_waits_are_honoured() {
    let api = Arc::<FakeApi>::default();
    let secrets = backend(&api, 1 << 30);
    secrets.list("").await.unwrap();
    let refuse = |code: u16, message: &str| {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "R",
            "message": message, "details": {"retryAfterSeconds": i32::from(code == 429)}});
        api.refuse.lock().unwrap().push(status);
    };
    refuse(403, "secrets is forbidden: User cannot list");
    assert!(matches!(secrets.list("").await.unwrap_err(), Error::Forbidden { .. }));
    refuse(403, "forbidden: exceeded quota: compute");
    let error = secrets.list("").await.unwrap_err();
    assert!(
        !error.is_transient() && error.to_string().contains("raise the ResourceQuota"),
        "{error}"
    );
    refuse(413, "request entity too large");
    assert!(
        secrets
            .list("")
            .await
            .unwrap_err()
            .to_string()
            .contains("request limit")
    );
    let begun = std::time::Instant::now();
    refuse(429, "slow down");
    secrets.list("").await.unwrap();
    assert!(
        begun.elapsed() >= std::time::Duration::from_secs(1),
        "the server asked for a second"
    );
    refuse(503, "etcd is away");
    secrets.list("").await.unwrap();
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_recognised_as_our_own() {
    let api = Arc::<FakeApi>::default();
    let place: Arc<dyn Backend> = Arc::new(backend(&api, 1 << 30));
    let repository = open(&place).await;
    for round in 0..3 {
        let faults = api.faults.lock().unwrap().clone();
        faults.lose_answers.store(2, Ordering::SeqCst);
        capture(
            &repository,
            &format!("u{round}"),
            "shop",
            &objects(&[("ConfigMap", "a", &round.to_string())]),
        )
        .await
        .unwrap();
    }
    let versions: Vec<u64> = repository.snapshots(None).iter().map(|record| record.version).collect();
    assert_eq!(versions, [1, 2, 3]);
    assert_eq!(place.list("journal/").await.unwrap().len(), 3);
}

#[tokio::test]
async fn listings_go_through_all_pages() {
    let api = Arc::<FakeApi>::default();
    let secrets = backend(&api, 1 << 30);
    for at in 0..1100 {
        secrets
            .put_new(&format!("journal/{at:016}"), vec![Bytes::from_static(b"x")])
            .await
            .unwrap();
    }
    assert_eq!(secrets.list("journal/").await.unwrap().len(), 1100);
}

#[test]
fn a_store_name_that_cannot_be_part_of_a_secret_name_is_refused() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _in = runtime.enter();
    let client = Arc::<FakeApi>::default().client();
    for name in ["", "Upper", "a/b", "a-very-long-name-of-a-store"] {
        assert!(SecretsBackend::new(client.clone(), "n", name, 1).is_err(), "{name}");
    }
}
