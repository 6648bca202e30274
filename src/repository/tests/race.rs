use std::collections::HashSet;

use super::*;
use crate::repository::backend::fault::{FaultBackend, Gate};

fn gated(backend: &Arc<dyn Backend>, gate: &Arc<Gate>) -> Arc<FaultBackend> {
    let gated = FaultBackend::new(backend.clone(), Arc::default());
    *gated.gate.lock().unwrap() = Some(gate.clone());
    Arc::new(gated)
}

async fn reached(gate: &Gate) {
    let waited = tokio::time::timeout(std::time::Duration::from_secs(20), gate.reached.acquire()).await;
    waited
        .unwrap_or_else(|_| panic!("nobody wrote to {} within 20 s", gate.prefix))
        .unwrap()
        .forget();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_never_give_two_snapshots_one_version() {
    let backend = memory();
    let mut tasks = Vec::new();
    for operator in 0..4 {
        let repository = open(&backend).await;
        for task in 0..2 {
            let repository = repository.clone();
            tasks.push(tokio::spawn(async move {
                for round in 0..10 {
                    let state = objects(&[("ConfigMap", "a", &format!("{operator} {task} {round}"))]);
                    capture(&repository, &format!("u-{operator}-{task}-{round}"), "shop", &state)
                        .await
                        .unwrap();
                }
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    let repository = open(&backend).await;
    let versions: Vec<u64> = repository.snapshots(None).iter().map(|record| record.version).collect();
    assert_eq!(versions, (1..=80).collect::<Vec<_>>());
    assert!(repository.verify(|_| {}).await.unwrap().is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_deletions_and_maintenance_beside_each_other_lose_nothing() {
    let backend = memory();
    let mut tasks = Vec::new();
    for operator in 0..2 {
        // A real grace: what the other operator is writing just now is no leftover.
        let options = Options {
            orphan_grace: SignedDuration::from_hours(24 * 365 * 200),
            checkpoint_records: 5,
            small_packs: 3,
            ..options()
        };
        let repository = Repository::open(backend.clone(), options).await.unwrap();
        let captures = repository.clone();
        tasks.push(tokio::spawn(async move {
            for round in 0..25u64 {
                let namespace = format!("ns{operator}");
                // Contents come and go, so that captures rely on what is being collected.
                let state = realistic_namespace(10, (round % 4) * 5);
                let uid = format!("u-{operator}-{round}");
                loop {
                    match capture(&captures, &uid, &namespace, &state).await {
                        Ok(_) => break,
                        Err(error) => assert!(error.needs_new_capture(), "{error}"),
                    }
                }
                assert_eq!(contents(&captures, &uid).await.unwrap(), state);
                if round % 4 != 0 {
                    captures.delete(&[uid]).await.unwrap();
                }
            }
        }));
        tasks.push(tokio::spawn(async move {
            for _ in 0..25 {
                repository.maintain().await.unwrap();
                tokio::task::yield_now().await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let repository = open(&backend).await;
    repository.maintain().await.unwrap();
    let kept: HashSet<_> = repository
        .snapshots(None)
        .iter()
        .map(|record| record.uid.clone())
        .collect();
    assert_eq!(kept.len(), 14);
    for operator in 0..2 {
        for round in (0..25u64).step_by(4) {
            let found = contents(&repository, &format!("u-{operator}-{round}")).await.unwrap();
            assert_eq!(found, realistic_namespace(10, (round % 4) * 5));
        }
    }
    let report = repository.verify(|_| {}).await.unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_upon_contents_that_another_operator_collects_is_refused() {
    let backend = memory();
    let state = objects(&[("ConfigMap", "a", "once")]);
    let collector = open(&backend).await;
    capture(&collector, "u1", "shop", &state).await.unwrap();
    let gate = Gate::new("journal/");
    let slow: Arc<dyn Backend> = gated(&backend, &gate);
    let slow = Repository::open(slow, options()).await.unwrap();
    let task = tokio::spawn({
        let (slow, state) = (slow.clone(), state.clone());
        async move { capture(&slow, "u2", "shop", &state).await }
    });
    reached(&gate).await;
    collector.delete(&["u1".to_owned()]).await.unwrap();
    let report = collector.maintain().await.unwrap();
    assert_eq!(report.condemned, 1);
    gate.open.add_permits(100);
    let refused = task.await.unwrap().unwrap_err();
    assert!(refused.needs_new_capture() && refused.is_transient(), "{refused}");
    capture(&slow, "u2", "shop", &state).await.unwrap();
    collector.refresh().await.unwrap();
    assert_eq!(contents(&collector, "u2").await.unwrap(), state);
    assert_eq!(collector.snapshot("u2").unwrap().version, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_that_a_capture_of_this_operator_relies_on_are_not_collected() {
    let backend = memory();
    let state = objects(&[("ConfigMap", "a", "once")]);
    let repository = open(&backend).await;
    capture(&repository, "u1", "shop", &state).await.unwrap();
    let writer = repository.writer().await.unwrap();
    let manifest = build(&writer, None, &state).await.unwrap();
    // Its own packs are no leftovers either.
    writer.put(FrameGroup::content("", "ConfigMap"), b"more").await.unwrap();
    repository.delete(&["u1".to_owned()]).await.unwrap();
    let report = repository.maintain().await.unwrap();
    assert_eq!((report.condemned, report.orphans), (0, 0));
    writer.commit(vec![draft("u2", "shop", manifest)]).await.unwrap();
    assert_eq!(contents(&repository, "u2").await.unwrap(), state);
    assert_eq!(contents(&open(&backend).await, "u2").await.unwrap(), state);
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_that_another_operator_takes_for_leftovers_cannot_be_committed() {
    let backend = memory();
    let gate = Gate::new("journal/");
    let slow: Arc<dyn Backend> = gated(&backend, &gate);
    let slow = Repository::open(slow, options()).await.unwrap();
    let state = objects(&[("ConfigMap", "a", "once")]);
    let task = tokio::spawn({
        let (slow, state) = (slow.clone(), state.clone());
        async move { capture(&slow, "u1", "shop", &state).await }
    });
    reached(&gate).await;
    let report = open(&backend).await.maintain().await.unwrap();
    assert_eq!((report.orphans, report.deleted), (1, 1));
    gate.open.add_permits(100);
    assert!(task.await.unwrap().unwrap_err().needs_new_capture());
    let repository = open(&backend).await;
    assert!(repository.snapshots(None).is_empty());
    assert!(repository.verify(|_| {}).await.unwrap().is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_written_into_a_pruned_hole_does_not_count() {
    let backend = memory();
    let busy = Repository::open(
        backend.clone(),
        Options {
            checkpoint_records: 2,
            ..options()
        },
    )
    .await
    .unwrap();
    let gate = Gate::new("journal/");
    let slow: Arc<dyn Backend> = gated(&backend, &gate);
    let slow = Repository::open(slow, options()).await.unwrap();
    let state = objects(&[("ConfigMap", "a", "slow")]);
    let task = tokio::spawn({
        let (slow, state) = (slow.clone(), state.clone());
        async move { capture(&slow, "slow", "shop", &state).await }
    });
    // Its record 1 is on its way; meanwhile records 1 to 30 are written by others, and pruned.
    reached(&gate).await;
    for round in 0..30 {
        let other = objects(&[("ConfigMap", "a", &format!("{round}"))]);
        capture(&busy, &format!("u{round}"), "shop", &other).await.unwrap();
    }
    let grace = Options {
        checkpoint_records: 2,
        orphan_grace: SignedDuration::from_hours(24 * 365 * 200),
        ..options()
    };
    let report = Repository::open(backend.clone(), grace)
        .await
        .unwrap()
        .maintain()
        .await
        .unwrap();
    assert!(report.checkpoint.is_some() && report.pruned >= 30, "{report:?}");
    assert!(
        !backend
            .list("journal/")
            .await
            .unwrap()
            .iter()
            .any(|blob| blob.key.ends_with("0001"))
    );
    gate.open.add_permits(100);
    assert_eq!(task.await.unwrap().unwrap().version, 31);
    let repository = open(&backend).await;
    assert_eq!(contents(&repository, "slow").await.unwrap(), state);
    assert_eq!(repository.snapshots(None).len(), 31);
    assert!(repository.verify(|_| {}).await.unwrap().is_clean());
}

/// Runs until it has to wait for a gate, or for a lock that somebody at a gate holds.
async fn run_until_it_waits<F: Future>(task: &mut std::pin::Pin<&mut F>) {
    for _ in 0..1000 {
        assert!(futures::poll!(task.as_mut()).is_pending(), "it should wait");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_was_marked_while_a_pack_could_not_be_found_is_marked_again_where_it_was_moved() {
    let backend = memory();
    let options = |small_packs| Options {
        small_packs,
        // Packs below a kilobyte are small.
        pack_bytes: 8 << 10,
        ..options()
    };
    let other = Repository::open(backend.clone(), options(2)).await.unwrap();
    let large: Vec<u8> = (0..128u8).flat_map(|n| *Digest::of(&[n]).as_bytes()).collect();
    let large = Objects::from([(("ConfigMap".to_owned(), "large".to_owned()), large)]);
    capture(&other, "u0", "first", &large).await.unwrap();
    let slow = Arc::new(FaultBackend::new(backend.clone(), Arc::default()));
    let repository = Repository::open(slow.clone(), options(1)).await.unwrap();
    let [walk, footer, record] = ["packs/", "packs/", "journal/"].map(Gate::new);
    let close = |gate: &Arc<Gate>| *slow.read_gate.lock().unwrap() = Some(gate.clone());

    close(&walk);
    let mut maintenance = std::pin::pin!(repository.maintain());
    run_until_it_waits(&mut maintenance).await;
    reached(&walk).await;
    close(&footer);
    let state = objects(&[("ConfigMap", "a", "1")]);
    let mut captured = std::pin::pin!(capture(&repository, "u1", "second", &state));
    run_until_it_waits(&mut captured).await;
    reached(&footer).await;
    // The new snapshot is committed. Another process moves what it holds before its pack was looked at here.
    other.refresh().await.unwrap();
    capture(&other, "u2", "third", &objects(&[("ConfigMap", "b", "2")]))
        .await
        .unwrap();
    let report = other.maintain().await.unwrap();
    assert_eq!((report.repacked, report.deleted), (2, 2));
    // It is marked between the record that adds the pack, which is gone, and the one that says where its contents went.
    close(&record);
    footer.open.add_permits(100);
    run_until_it_waits(&mut captured).await;
    reached(&record).await;
    walk.open.add_permits(100);
    run_until_it_waits(&mut maintenance).await;
    record.open.add_permits(1000);
    let (captured, maintained) = futures::join!(captured, maintenance);
    captured.unwrap();
    assert_eq!(maintained.unwrap().repacked, 1);

    let repository = open(&backend).await;
    assert_eq!(contents(&repository, "u1").await.unwrap(), state);
    assert!(repository.verify(|_| {}).await.unwrap().is_clean());
}

#[tokio::test]
async fn a_reader_follows_contents_that_another_operator_moved() {
    let backend = memory();
    let reader = open(&backend).await;
    let writer = Repository::open(
        backend.clone(),
        Options {
            small_packs: 2,
            ..options()
        },
    )
    .await
    .unwrap();
    let state = realistic_namespace(20, 0);
    capture(&writer, "u1", "shop", &state).await.unwrap();
    capture(&writer, "u2", "other", &realistic_namespace(20, 40))
        .await
        .unwrap();
    reader.refresh().await.unwrap();
    let report = writer.maintain().await.unwrap();
    assert_eq!((report.repacked, report.deleted), (2, 2));
    assert_eq!(contents(&reader, "u1").await.unwrap(), state);
}
