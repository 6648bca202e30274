//! Many interleavings of two processes on one store, each decided by a seed: a failure names the seed, and the seed brings it back.

use std::{cell::RefCell, ops::Range, sync::atomic::AtomicUsize};

use async_trait::async_trait;
use bytes::Bytes;
use rand::{Rng, SeedableRng as _, rngs::SmallRng};

use super::*;
use crate::repository::backend::BlobInfo;

thread_local! {
    static RANDOM: RefCell<SmallRng> = RefCell::new(SmallRng::seed_from_u64(0));
}

fn random() -> [u8; 16] {
    RANDOM.with_borrow_mut(rand::Rng::random)
}

/// Waits before and after each call, for as many turns of the other tasks as the seed says.
#[derive(Debug)]
struct Slow {
    inner: Arc<dyn Backend>,
    /// One wait of so many is a long one.
    rarity: u32,
    /// Turns of the longest wait.
    longest: u32,
}

impl Slow {
    /// Mostly a moment; now and then long enough for the others to do a lot.
    async fn dawdle(&self) {
        let turns = RANDOM.with_borrow_mut(|random| match random.random_range(0..self.rarity) {
            0 => random.random_range(0..self.longest),
            1 | 2 => random.random_range(0..40),
            _ => random.random_range(0..4),
        });
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    }

    async fn slowly<T>(&self, call: impl Future<Output = T>) -> T {
        self.dawdle().await;
        let answer = call.await;
        self.dawdle().await;
        answer
    }
}

#[async_trait]
impl Backend for Slow {
    async fn put_new(&self, key: &str, blob: Vec<Bytes>) -> Result<Put> {
        self.slowly(self.inner.put_new(key, blob)).await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        self.slowly(self.inner.get(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>> {
        self.slowly(self.inner.get_range(key, range)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<BlobInfo>> {
        self.slowly(self.inner.list(prefix)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.slowly(self.inner.delete(key)).await
    }

    async fn sweep(&self, older_than: Timestamp) -> Result<u64> {
        self.slowly(self.inner.sweep(older_than)).await
    }
}

/// What one seed decides beside the order of calls.
fn settings(seed: u64) -> Options {
    let grace = if seed.is_multiple_of(4) {
        // Packs of captures that still run are taken for leftovers; such captures are done again.
        SignedDuration::ZERO
    } else {
        SignedDuration::from_hours(24 * 365 * 200)
    };
    Options {
        random,
        compression_level: 1,
        orphan_grace: grace,
        checkpoint_records: 2 + seed % 7,
        small_packs: 2 + usize::try_from(seed / 7 % 3).unwrap(),
        ..options()
    }
}

const ROUNDS: u64 = 9;

/// Contents come and go, and the processes have them in common, so that captures rely on what is being collected.
fn state_of(round: u64) -> Objects {
    realistic_namespace(4, (round % 4) * 2)
}

fn is_kept(round: u64) -> bool {
    round.is_multiple_of(4)
}

async fn captures(repository: Repository, process: u64, unfinished: Arc<AtomicUsize>) -> Result<(), String> {
    for round in 0..ROUNDS {
        let (state, uid) = (state_of(round), format!("u-{process}-{round}"));
        loop {
            match capture(&repository, &uid, &format!("ns{process}"), &state).await {
                Ok(_) => break,
                // Collected meanwhile, or the other process kept being faster.
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(format!("capture {uid}: {error}")),
            }
        }
        match contents(&repository, &uid).await {
            Ok(found) if found == state => {}
            Ok(_) => return Err(format!("{uid} holds something else")),
            Err(error) => return Err(format!("read {uid} after its capture: {error}")),
        }
        if !is_kept(round) {
            while let Err(error) = repository.delete(std::slice::from_ref(&uid)).await {
                if !error.is_transient() {
                    return Err(format!("delete {uid}: {error}"));
                }
            }
        }
    }
    unfinished.fetch_sub(1, Ordering::SeqCst);
    Ok(())
}

async fn maintenance(repository: Repository, unfinished: Arc<AtomicUsize>) -> Result<(), String> {
    while unfinished.load(Ordering::SeqCst) > 0 {
        match repository.maintain().await {
            Ok(report) => {
                if let Some(why) = report.skipped {
                    return Err(format!("maintenance was skipped: {why}"));
                }
            }
            Err(error) if error.is_transient() => {}
            Err(error) => return Err(format!("maintain: {error}")),
        }
    }
    Ok(())
}

/// Reads everything, as a process that was just started does.
async fn audits(backend: Arc<dyn Backend>, options: Options) -> Result<(), String> {
    for _ in 0..ROUNDS / 2 {
        let repository = Repository::open(backend.clone(), options.clone())
            .await
            .map_err(|e| format!("open: {e}"))?;
        for record in repository.snapshots(None) {
            if let Err(error) = contents(&repository, &record.uid).await {
                repository.refresh().await.map_err(|e| e.to_string())?;
                if repository.snapshot(&record.uid).is_some() {
                    return Err(format!("read {}: {error}", record.uid));
                }
            }
        }
    }
    Ok(())
}

async fn two_processes(seed: u64) -> Result<(), String> {
    RANDOM.with_borrow_mut(|random| *random = SmallRng::seed_from_u64(seed));
    let store = memory();
    // Each process has a pace of its own.
    let slowly = |process: u64| -> Arc<dyn Backend> {
        let pace = seed / [1, 5, 25][usize::try_from(process).unwrap()] % 5;
        let (rarity, longest) =
            [(3, 300), (8, 2000), (20, 100), (20, 1000), (60, 4000)][usize::try_from(pace).unwrap()];
        Arc::new(Slow {
            inner: store.clone(),
            rarity,
            longest,
        })
    };
    let unfinished = Arc::new(AtomicUsize::new(2));
    let mut tasks = tokio::task::JoinSet::new();
    for process in 0..2 {
        let repository = Repository::open(slowly(process), settings(seed))
            .await
            .map_err(|e| e.to_string())?;
        tasks.spawn(captures(repository.clone(), process, unfinished.clone()));
        tasks.spawn(maintenance(repository, unfinished.clone()));
    }
    tasks.spawn(audits(slowly(2), settings(seed)));
    while let Some(done) = tasks.join_next().await {
        done.map_err(|e| e.to_string())??;
    }
    let repository = open(&store).await;
    repository.maintain().await.map_err(|e| e.to_string())?;
    for uid in (0..2).flat_map(|process| {
        (0..ROUNDS)
            .filter(|round| is_kept(*round))
            .map(move |round| (process, round))
    }) {
        let (process, round) = uid;
        let found = contents(&repository, &format!("u-{process}-{round}")).await;
        if found.map_err(|e| format!("u-{process}-{round} in the end: {e}"))? != state_of(round) {
            return Err(format!("u-{process}-{round} holds something else in the end"));
        }
    }
    let report = repository.verify(|_| {}).await.map_err(|e| e.to_string())?;
    if report.is_clean() {
        Ok(())
    } else {
        Err(format!("{:?}", report.findings))
    }
}

fn explore(seeds: Range<u64>) {
    let failures: Vec<String> = seeds
        .filter_map(|seed| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let problem = runtime.block_on(two_processes(seed)).err()?;
            Some(format!("seed {seed}: {problem}"))
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn no_order_of_the_calls_of_two_processes_loses_contents() {
    explore(0..30);
}
