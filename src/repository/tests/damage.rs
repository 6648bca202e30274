use bytes::Bytes;

use super::*;

/// Blobs that can be changed behind the repository's back.
async fn copy_of(backend: &Arc<dyn Backend>, change: Option<(&str, Bytes)>) -> Arc<dyn Backend> {
    let copy = memory();
    for blob in backend.list("").await.unwrap() {
        let bytes = match &change {
            Some((key, bytes)) if *key == blob.key => bytes.clone(),
            _ => backend.get(&blob.key).await.unwrap().unwrap(),
        };
        if !bytes.is_empty() {
            copy.put_new(&blob.key, vec![bytes]).await.unwrap();
        }
    }
    copy
}

/// Three snapshots, a checkpoint, records after it, a leftover pack, a needless record.
async fn sample() -> Arc<dyn Backend> {
    let backend = memory();
    let options = Options {
        checkpoint_records: 2,
        small_packs: 100,
        ..options()
    };
    let repository = Repository::open(backend.clone(), options).await.unwrap();
    let leftover = repository.writer().await.unwrap();
    let mut state = realistic_namespace(50, 0);
    capture(&repository, "u1", "shop", &state).await.unwrap();
    for round in 0..8 {
        capture(&repository, &format!("x{round}"), "other", &objects(&[]))
            .await
            .unwrap();
    }
    let first = backend.get("journal/0000000000000001").await.unwrap().unwrap();
    assert!(repository.maintain().await.unwrap().checkpoint.is_some());
    backend.put_new("journal/0000000000000001", vec![first]).await.unwrap();
    state.insert(("ConfigMap".to_owned(), "new".to_owned()), b"new".to_vec());
    capture(&repository, "u2", "shop", &state).await.unwrap();
    capture(&repository, "u3", "third", &realistic_namespace(30, 200))
        .await
        .unwrap();
    leftover
        .put(FrameGroup::content("", "ConfigMap"), b"left over")
        .await
        .unwrap();
    assert!(matches!(leftover.commit(Vec::new()).await, Ok(records) if records.is_empty()));
    backend
}

#[tokio::test]
async fn every_one_of_a_thousand_flipped_bits_is_found_and_named() {
    let backend = sample().await;
    let blobs = backend.list("").await.unwrap();
    assert!(open(&backend).await.verify(|_| {}).await.unwrap().is_clean());
    let mut random = 0x1234_5678_9abc_def1u64;
    let (mut refused, mut affected) = (0, 0);
    for round in 0..1000usize {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let blob = &blobs[round % blobs.len()];
        let mut bytes = backend.get(&blob.key).await.unwrap().unwrap().to_vec();
        let bit = usize::try_from(random % (bytes.len() as u64 * 8)).unwrap();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let damaged = copy_of(&backend, Some((&blob.key, bytes.into()))).await;
        match Repository::open(damaged, options()).await {
            Err(error) => {
                assert!(
                    error.is_corrupt() && error.to_string().contains(&blob.key),
                    "{}: bit {bit}: {error}",
                    blob.key
                );
                assert!(
                    !blob.key.starts_with("packs/"),
                    "a damaged pack must not hinder opening"
                );
                refused += 1;
            }
            Ok(repository) => {
                let report = repository.verify(|_| {}).await.unwrap();
                let found: Vec<_> = report.findings.iter().map(|finding| finding.blob.as_str()).collect();
                assert_eq!(found, [blob.key.as_str()], "bit {bit} of {}", bytes_of(blob));
                let finding = &report.findings[0];
                affected += usize::from(!finding.snapshots.is_empty());
                for uid in ["u1", "u2", "u3"] {
                    // What is not named can be read whole.
                    if !finding.snapshots.contains(uid) {
                        contents(&repository, uid).await.unwrap();
                        assert!(repository.verify_snapshot(uid).await.unwrap().is_clean());
                    } else if let Err(error) = contents(&repository, uid).await {
                        assert!(error.is_corrupt(), "{error}");
                        assert!(!repository.verify_snapshot(uid).await.unwrap().is_clean());
                    }
                }
            }
        }
    }
    assert!(
        refused > 100 && affected > 100,
        "{refused} refused, {affected} affected"
    );
}

fn bytes_of(blob: &BlobInfo) -> String {
    format!("{} ({} bytes)", blob.key, blob.size)
}

#[tokio::test]
async fn a_blob_that_is_gone_is_found_and_named() {
    let backend = sample().await;
    let whole = open(&backend).await;
    let journal = backend.list("journal/").await.unwrap();
    let newest = journal.iter().map(|blob| blob.key.clone()).max().unwrap();
    let mut found = 0;
    for blob in backend.list("").await.unwrap() {
        let copy = copy_of(&backend, Some((&blob.key, Bytes::new()))).await;
        let id: Option<PackId> = blob.key.strip_prefix("packs/").map(|id| id.parse().unwrap());
        let committed = id.is_none_or(|id| whole.shared().state.packs.values().any(|pack| pack.id == id));
        // Nothing needs a leftover; without its last record a journal is simply shorter.
        let needless = !committed || blob.key.ends_with("/0000000000000001") || blob.key == newest;
        match Repository::open(copy, options()).await {
            // The journal begins too late, or has a hole.
            Err(error) => assert!(error.is_corrupt() && !needless, "{}: {error}", blob.key),
            Ok(repository) => {
                let report = repository.verify(|_| {}).await.unwrap();
                let names: Vec<_> = report.findings.iter().map(|finding| finding.blob.as_str()).collect();
                let expected: &[&str] = if needless { &[] } else { &[&blob.key] };
                assert_eq!(names, expected, "without {}", blob.key);
                assert!(
                    report.findings.iter().all(|finding| !finding.snapshots.is_empty()),
                    "{report:?}"
                );
                found += names.len();
            }
        }
    }
    assert!(found > 0);
}

#[tokio::test]
async fn a_blob_that_vanishes_under_an_open_repository_is_found_and_named() {
    let backend = sample().await;
    let repository = open(&backend).await;
    let committed: Vec<String> = repository
        .shared()
        .state
        .packs
        .values()
        .map(|pack| pack.id.blob())
        .collect();
    for blob in backend.list("").await.unwrap() {
        if blob.key.starts_with("packs/") && !committed.contains(&blob.key) || blob.key.ends_with("/0000000000000001") {
            continue;
        }
        let bytes = backend.get(&blob.key).await.unwrap().unwrap();
        backend.delete(&blob.key).await.unwrap();
        let report = repository.verify(|_| {}).await.unwrap();
        let names: Vec<_> = report.findings.iter().map(|finding| finding.blob.as_str()).collect();
        assert_eq!(names, [&blob.key]);
        backend.put_new(&blob.key, vec![bytes]).await.unwrap();
    }
    assert!(repository.verify(|_| {}).await.unwrap().is_clean());
}

#[tokio::test]
async fn nothing_is_committed_to_a_store_that_was_emptied_while_it_was_in_use() {
    let backend = memory();
    let repository = open(&backend).await;
    let state = realistic_namespace(50, 0);
    capture(&repository, "u1", "shop", &state).await.unwrap();
    for blob in backend.list("").await.unwrap() {
        backend.delete(&blob.key).await.unwrap();
    }
    let error = capture(&repository, "u2", "another", &state).await.unwrap_err();
    assert!(error.is_corrupt(), "{error}");
    assert!(error.to_string().contains("emptied or replaced"), "{error}");
    assert!(repository.snapshot("u2").is_none());
    capture(&open(&memory()).await, "u2", "another", &state).await.unwrap();
}

#[tokio::test]
async fn damage_under_an_open_repository_is_found_and_heals_by_the_next_capture() {
    let backend = memory();
    let repository = open(&backend).await;
    let state = realistic_namespace(50, 0);
    capture(&repository, "u1", "shop", &state).await.unwrap();
    let pack = backend.list("packs/").await.unwrap().remove(0);
    let mut bytes = backend.get(&pack.key).await.unwrap().unwrap().to_vec();
    bytes[200] ^= 4;
    backend.delete(&pack.key).await.unwrap();
    backend.put_new(&pack.key, vec![bytes.into()]).await.unwrap();
    let report = repository.verify_snapshot("u1").await.unwrap();
    assert_eq!((report.findings.len(), &report.findings[0].blob), (1, &pack.key));
    assert!(report.findings[0].snapshots.contains("u1"));
    let error = contents(&repository, "u1").await.unwrap_err();
    assert!(error.is_corrupt() && error.to_string().contains(&pack.key), "{error}");
    // The same contents, put again, are stored again, and both snapshots read from them.
    capture(&repository, "u2", "healed", &state).await.unwrap();
    assert_eq!(contents(&repository, "u2").await.unwrap(), state);
    assert_eq!(contents(&repository, "u1").await.unwrap(), state);
}

#[tokio::test]
async fn what_is_repaired_from_a_backup_is_readable_at_once() {
    let backend = memory();
    let repository = open(&backend).await;
    // What cannot be compressed is stored as it is: a changed bit of it is found by nothing but its digest.
    let noise: Vec<u8> = (0..64u8).flat_map(|n| *Digest::of(&[n]).as_bytes()).collect();
    let state = Objects::from([(("ConfigMap".to_owned(), "noise".to_owned()), noise)]);
    capture(&repository, "u1", "shop", &state).await.unwrap();
    let pack = backend.list("packs/").await.unwrap().remove(0);
    let sound = backend.get(&pack.key).await.unwrap().unwrap();
    let store = async |bytes: Bytes| {
        backend.delete(&pack.key).await.unwrap();
        backend.put_new(&pack.key, vec![bytes]).await.unwrap();
    };
    let mut digests_differed = 0;
    for at in (100..2000).step_by(300) {
        let mut bytes = sound.to_vec();
        bytes[at] ^= 1;
        store(bytes.into()).await;
        repository.drop_frames();
        let error = contents(&repository, "u1").await.unwrap_err();
        assert!(error.is_corrupt(), "{error}");
        digests_differed += u32::from(error.to_string().contains("does not match its digest"));
        store(sound.clone()).await;
        assert_eq!(contents(&repository, "u1").await.unwrap(), state, "byte {at}");
    }
    assert!(digests_differed > 0);
}

#[tokio::test]
async fn a_newer_format_is_told_apart_from_damage() {
    let backend = memory();
    let mut record = b"BSJR\x07".to_vec();
    record.extend([0; 60]);
    let hash = Digest::of(&record);
    record.extend(hash.as_bytes());
    backend
        .put_new("journal/0000000000000001", vec![record.into()])
        .await
        .unwrap();
    let error = Repository::open(backend, options()).await.err().unwrap();
    assert!(
        matches!(
            error,
            Error::NewerFormat {
                found: 7,
                supported: 1,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn nothing_is_collected_while_a_snapshot_cannot_be_read() {
    let backend = sample().await;
    let repository = open(&backend).await;
    let segment = repository.snapshot("u1").unwrap().segments[0].digest;
    drop(repository);
    // Damage the frame that holds the manifest: the last frame of the first pack.
    let mut skipped = 0;
    for blob in backend.list("packs/").await.unwrap() {
        let mut bytes = backend.get(&blob.key).await.unwrap().unwrap().to_vec();
        for byte in &mut bytes[20..] {
            *byte ^= 1;
        }
        let copy = copy_of(&backend, Some((&blob.key, bytes.into()))).await;
        let repository = open(&copy).await;
        if repository.read_chunk(&segment).await.is_ok() {
            continue;
        }
        repository.delete(&["u3".to_owned()]).await.unwrap();
        let report = repository.maintain().await.unwrap();
        assert!(report.skipped.is_some() && report.condemned == 0, "{report:?}");
        skipped += 1;
    }
    assert_eq!(skipped, 1);
}
