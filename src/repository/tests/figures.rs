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

/// Not a test: prints where the bytes go, for tuning.
#[tokio::test]
#[ignore = "prints figures at scale"]
async fn breakdown() {
    let count: u64 = std::env::var("OBJECTS").map_or(3000, |n| n.parse().unwrap());
    let level: i32 = std::env::var("LEVEL").map_or(3, |n| n.parse().unwrap());
    let backend = counting(&memory());
    let repository = Repository::open(
        backend.clone(),
        Options {
            compression_level: level,
            ..options()
        },
    )
    .await
    .unwrap();
    let mut state = realistic_namespace(count, 0);
    let mut total = 0;
    for round in 0..30 {
        if round > 0 {
            churn(&mut state, round);
        }
        let begun = std::time::Instant::now();
        capture(&repository, &format!("u{round}"), "shop", &state)
            .await
            .unwrap();
        let took = begun.elapsed();
        let cost = put(&backend);
        total += cost;
        if round < 3 || round == 29 {
            let shared = repository.shared();
            let mut classes = std::collections::BTreeMap::<u32, (u32, u32, u32)>::new();
            for frame in shared
                .packs
                .iter()
                .filter(|p| round == 0 || p.id == shared.packs.last().unwrap().id)
                .flat_map(|p| &p.frames)
            {
                let class = classes.entry(frame.group.0 >> 24).or_default();
                *class = (class.0 + frame.chunks, class.1 + frame.raw, class.2 + frame.len);
            }
            println!(
                "{round}: {cost} bytes in {took:?}; class: (chunks, raw, compressed) {classes:?}; journal {}",
                shared.journal_bytes
            );
        }
    }
    println!("total {total}");
}

/// Not a test: prints what a compression level costs.
#[tokio::test]
#[ignore = "prints figures"]
async fn levels() {
    let state = realistic_namespace(6000, 0);
    let mut sorted: Vec<_> = state.iter().collect();
    sorted.sort();
    let mut frames = vec![Vec::new()];
    for (_, content) in sorted {
        if frames.last().unwrap().len() > 128 << 10 {
            frames.push(Vec::new());
        }
        frames.last_mut().unwrap().extend_from_slice(content);
    }
    for level in 1..=10 {
        let codecs = super::super::pack::Codecs::new(level);
        codecs.compress(&frames[0]).unwrap();
        let begun = std::time::Instant::now();
        let bytes: usize = frames.iter().map(|frame| codecs.compress(frame).unwrap().len()).sum();
        println!(
            "level {level}: {bytes} bytes, {:.2} µs an object",
            begun.elapsed().as_secs_f64() * 1e6 / 6000.0
        );
    }
}

fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Not a test: many namespaces in one pass, kind by kind, thrice: at first, unchanged, 1 % changed.
#[tokio::test]
#[ignore = "prints figures at scale"]
async fn many_namespaces() {
    let count: u64 = std::env::var("NAMESPACES").map_or(200, |n| n.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let local: Arc<dyn Backend> = Arc::new(ObjectStoreBackend::local(dir.path().to_str().unwrap()).unwrap());
    let backend = counting(&local);
    let repository = Repository::open(backend.clone(), options()).await.unwrap();
    let idle = peak_memory();
    for round in 0..4u64 {
        let changed = |seed: u64| round == 2 && seed % 100 == 7;
        let begun = std::time::Instant::now();
        let mut generating = std::time::Duration::ZERO;
        let writer = Arc::new(repository.writer().await.unwrap());
        let mut builders = Vec::new();
        for ns in 0..count {
            let previous = repository
                .snapshots(Some(&LineageKey::new(format!("ns{ns}"), "default")))
                .pop();
            builders.push(writer.manifest(previous.as_deref()).await.unwrap());
        }
        for wanted in ["ConfigMap", "Deployment"] {
            let kind = kind(wanted);
            for (ns, builder) in (0u64..).zip(&mut builders) {
                for seed in ns * 50..ns * 50 + 50 {
                    if (wanted == "Deployment") != seed.is_multiple_of(3) {
                        continue;
                    }
                    let name = format!("app-{seed:05}");
                    if !changed(seed)
                        && round != 3
                        && let Some(entry) = builder.previous_entry(&kind, &name).await.unwrap()
                    {
                        builder.add(&kind, entry).await.unwrap();
                        continue;
                    }
                    let clock = std::time::Instant::now();
                    let (_, content) = realistic(seed, u64::from(changed(seed)));
                    generating += clock.elapsed();
                    let (digest, _) = writer
                        .put(FrameGroup::content(&kind.group, wanted), &content)
                        .await
                        .unwrap();
                    builder
                        .add(&kind, entry(&name, digest, content.len(), None))
                        .await
                        .unwrap();
                }
            }
        }
        println!("  streamed: {}", peak_memory() - idle);
        let mut drafts = Vec::new();
        for (ns, builder) in builders.into_iter().enumerate() {
            drafts.push(draft(
                &format!("u{ns}-{round}"),
                &format!("ns{ns}"),
                builder.finish().await.unwrap(),
            ));
        }
        println!("  finished: {}", peak_memory() - idle);
        Arc::into_inner(writer).unwrap().commit(drafts).await.unwrap();
        let took = begun.elapsed().saturating_sub(generating);
        println!(
            "round {round}: {:.2} µs an object, {} bytes put, {} gets, peak {} KiB above {idle}",
            took.as_secs_f64() * 1e6 / f64::from(u32::try_from(count * 50).unwrap()),
            put(&backend),
            backend.gets.swap(0, Ordering::SeqCst),
            peak_memory() - idle
        );
    }
    let begun = std::time::Instant::now();
    let again = Repository::open(backend.clone(), options()).await.unwrap();
    println!("open: {:?}, {:?}", begun.elapsed(), again.usage());
    let begun = std::time::Instant::now();
    println!(
        "maintain: {:?} in {:?}",
        again.maintain().await.unwrap(),
        begun.elapsed()
    );
    let begun = std::time::Instant::now();
    println!(
        "verify: clean {} in {:?}",
        again.verify(|_| {}).await.unwrap().is_clean(),
        begun.elapsed()
    );
}
