#![allow(
    clippy::disallowed_methods,
    reason = "the printed figures take their size from the environment and the time from the clock"
)]

use super::*;
use crate::repository::backend::fault::FaultBackend;

fn counting(backend: &Arc<dyn Backend>) -> Arc<FaultBackend> {
    Arc::new(FaultBackend::new(backend.clone(), Arc::default()))
}

fn put(backend: &FaultBackend) -> usize {
    backend.put_bytes.swap(0, Ordering::SeqCst)
}

/// Changes every hundredth object, scattered.
fn churn(state: &mut Objects, round: u64) {
    let keys: Vec<_> = state.keys().cloned().collect();
    for (kind, name) in keys
        .into_iter()
        .skip(usize::try_from(round * 37 % 100).unwrap())
        .step_by(100)
    {
        let seed: u64 = name[4..].parse().unwrap();
        let (_, content) = realistic(seed, round + 1);
        state.insert((kind, name), content);
    }
}

#[tokio::test]
async fn unchanged_costs_four_kibibytes_and_one_percent_three_percent() {
    let backend = counting(&memory());
    let repository = Repository::open(backend.clone(), options()).await.unwrap();
    let mut state = realistic_namespace(5000, 0);
    let logical: usize = state.values().map(Vec::len).sum();
    capture(&repository, "u0", "shop", &state).await.unwrap();
    let first = put(&backend);
    capture(&repository, "same", "shop", &state).await.unwrap();
    let same = put(&backend);
    let mut total = first + same;
    let mut worst = 0;
    for round in 1..30 {
        churn(&mut state, round);
        capture(&repository, &format!("u{round}"), "shop", &state)
            .await
            .unwrap();
        let cost = put(&backend);
        worst = worst.max(cost);
        total += cost;
    }
    let ratio =
        |part: usize, whole: usize| f64::from(u32::try_from(part).unwrap()) / f64::from(u32::try_from(whole).unwrap());
    let percent = |bytes: usize| 100.0 * ratio(bytes, first);
    println!(
        "normalised {logical}, stored {first} ({:.1}x), same {same}, 1 % at most {:.2} %, 30 versions {:.1} %",
        ratio(logical, first),
        percent(worst),
        percent(total)
    );
    assert!(same <= 4096, "{same} bytes for nothing");
    assert!(percent(worst) <= 3.0, "{:.2} % for 1 %", percent(worst));
    assert!(percent(total) <= 135.0, "{:.1} % for 30 versions", percent(total));
    assert_eq!(contents(&repository, "u29").await.unwrap(), state);
}

#[tokio::test]
async fn one_object_is_restored_with_three_small_reads() {
    let backend = memory();
    capture(&open(&backend).await, "u1", "shop", &realistic_namespace(3000, 0))
        .await
        .unwrap();
    let backend = counting(&backend);
    let repository = Repository::open(backend.clone(), options()).await.unwrap();
    for seed in [0, 1501, 2999] {
        repository.drop_frames();
        backend.gets.store(0, Ordering::SeqCst);
        backend.got_bytes.store(0, Ordering::SeqCst);
        let (kind_name, content) = realistic(seed, 0);
        let manifest = repository.manifest("u1").await.unwrap();
        let (_, entry) = manifest
            .get(&id(&kind_name, &format!("app-{seed:05}")))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(repository.read_chunk(&entry.content).await.unwrap(), content);
        repository.read_chunk(&entry.beside.unwrap()).await.unwrap();
        let (gets, bytes) = (
            backend.gets.load(Ordering::SeqCst),
            backend.got_bytes.load(Ordering::SeqCst),
        );
        assert!(gets <= 3 && bytes <= 256 << 10, "{gets} GETs, {bytes} bytes");
    }
}

#[tokio::test]
async fn packs_are_about_four_mebibytes() {
    let backend = memory();
    let repository = open(&backend).await;
    let mut state = Objects::new();
    let mut digest = Digest::of(b"");
    for at in 0..3000 {
        let mut content = Vec::new();
        for _ in 0..128 {
            digest = Digest::of(digest.as_bytes());
            content.extend_from_slice(digest.as_bytes());
        }
        state.insert(("Secret".to_owned(), format!("s{at:04}")), content);
    }
    capture(&repository, "u1", "shop", &state).await.unwrap();
    let sizes: Vec<u64> = backend
        .list("packs/")
        .await
        .unwrap()
        .iter()
        .map(|pack| pack.size)
        .collect();
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size < (4 << 20) + (256 << 10)), "{sizes:?}");
    assert_eq!(contents(&repository, "u1").await.unwrap(), state);
}
