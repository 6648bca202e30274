use super::*;

#[tokio::test]
async fn what_was_captured_reads_back_after_reopening() {
    let backend = memory();
    let first = objects(&[
        ("ConfigMap", "a", "1"),
        ("ConfigMap", "b", "2"),
        ("Deployment", "web", "3"),
    ]);
    let mut second = first.clone();
    second.insert(("Secret".to_owned(), "s".to_owned()), b"4".to_vec());
    second.remove(&("ConfigMap".to_owned(), "a".to_owned()));
    second.insert(("Deployment".to_owned(), "web".to_owned()), b"5".to_vec());
    let repository = open(&backend).await;
    let one = capture(&repository, "u1", "shop", &first).await.unwrap();
    let two = capture(&repository, "u2", "shop", &second).await.unwrap();
    assert_eq!(
        (one.version, one.parent, two.version, two.parent),
        (1, None, 2, Some(1))
    );
    assert_eq!(
        two.counts,
        Counts {
            captured: 3,
            unchanged: 1,
            added: 1,
            changed: 1,
            removed: 1
        }
    );
    assert_eq!((one.sizes.logical, two.sizes.logical, two.sizes.new), (3, 3, 2));
    for repository in [repository, open(&backend).await] {
        assert_eq!(contents(&repository, "u1").await.unwrap(), first);
        assert_eq!(contents(&repository, "u2").await.unwrap(), second);
        assert_eq!(repository.snapshot("u2").unwrap(), two);
        let manifest = repository.manifest("u2").await.unwrap();
        assert!(manifest.get(&id("ConfigMap", "a")).await.unwrap().is_none());
        let (found, entry) = manifest.get(&id("Deployment", "web")).await.unwrap().unwrap();
        assert_eq!((&*found, entry.content), (&kind("Deployment"), Digest::of(b"5")));
        let kinds: Vec<_> = manifest
            .kinds()
            .await
            .unwrap()
            .into_iter()
            .map(|kind| kind.kind)
            .collect();
        assert_eq!(kinds, ["ConfigMap", "Secret", "Deployment"]);
        let maps: Vec<_> = manifest.entries_of("", "ConfigMap").try_collect().await.unwrap();
        assert_eq!(maps.len(), 1);
        assert!(repository.verify(|_| {}).await.unwrap().is_clean());
    }
}

#[tokio::test]
async fn an_unchanged_capture_shares_its_segments_and_digest() {
    let repository = open(&memory()).await;
    let state = realistic_namespace(300, 0);
    let one = capture(&repository, "u1", "shop", &state).await.unwrap();
    let two = capture(&repository, "u2", "shop", &state).await.unwrap();
    assert_eq!(
        (one.digest, &one.segments, two.counts.unchanged),
        (two.digest, &two.segments, 300)
    );
    assert_eq!((two.sizes.new, two.sizes.logical), (0, one.sizes.logical));
}

#[tokio::test]
async fn the_digest_does_not_depend_on_how_the_manifest_came_to_be() {
    let last = realistic_namespace(100, 3);
    let digest = capture(&open(&memory()).await, "u", "shop", &last)
        .await
        .unwrap()
        .digest;
    let repository = open(&memory()).await;
    for (at, first) in [10, 7, 3].into_iter().enumerate() {
        capture(&repository, &format!("u{at}"), "shop", &realistic_namespace(100, first))
            .await
            .unwrap();
    }
    assert_eq!(repository.snapshot("u2").unwrap().digest, digest);
    // Entries in reverse order, in tiny memory, on top of another snapshot.
    let options = Options {
        manifest_buffer: 1000,
        ..options()
    };
    for previous in [false, true] {
        let repository = Repository::open(memory(), options.clone()).await.unwrap();
        let before = capture(&repository, "before", "shop", &realistic_namespace(100, 50))
            .await
            .unwrap();
        let writer = repository.writer().await.unwrap();
        let mut builder = writer.manifest(previous.then_some(&before)).await.unwrap();
        for ((kind_name, name), content) in last.iter().rev() {
            let kind = kind(kind_name);
            let (digest, _) = writer.put(FrameGroup::content("", ""), content).await.unwrap();
            builder
                .add(&kind, entry(name, digest, content.len(), None))
                .await
                .unwrap();
        }
        let built = builder.finish().await.unwrap();
        assert_eq!(built.digest, digest, "previous: {previous}");
        let same = if previous { 53 } else { 0 };
        let counts = Counts {
            captured: 100,
            unchanged: same,
            added: 100 - same,
            changed: 0,
            removed: if previous { 47 } else { 0 },
        };
        assert_eq!(built.counts, counts, "previous: {previous}");
    }
}

#[tokio::test]
async fn any_sequence_of_changes_reads_back_as_captured() {
    let backend = memory();
    let options = Options {
        manifest_buffer: 3000,
        ..options()
    };
    let repository = Repository::open(backend.clone(), options).await.unwrap();
    let mut state = realistic_namespace(60, 0);
    let mut model = Vec::new();
    for round in 0..60u64 {
        for change in 0..=round % 7 {
            let seed = (round * 31 + change * 17) % 90;
            let (kind, content) = realistic(seed, round);
            let key = (kind, format!("app-{seed:05}"));
            if (round + change) % 3 == 0 {
                state.remove(&key).map(drop)
            } else {
                state.insert(key, content).map(drop)
            };
        }
        if round % 20 == 19 {
            state.retain(|(kind, _), _| kind != "Deployment");
        }
        let record = capture(&repository, &format!("u{round}"), "shop", &state)
            .await
            .unwrap();
        assert_eq!(record.counts.captured, state.len() as u64);
        assert_eq!(
            record.sizes.logical,
            state.values().map(|content| content.len() as u64).sum::<u64>()
        );
        let runs = record.segments.iter().map(|segment| segment.run).max().unwrap();
        assert!(runs <= 32, "{runs} runs");
        model.push(state.clone());
    }
    let repository = open(&backend).await;
    for (round, state) in model.iter().enumerate() {
        assert_eq!(
            &contents(&repository, &format!("u{round}")).await.unwrap(),
            state,
            "round {round}"
        );
    }
    let report = repository.verify(|_| {}).await.unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
}

#[tokio::test]
async fn a_kind_that_is_served_anew_replaces_its_header() {
    let repository = open(&memory()).await;
    let state = objects(&[("ConfigMap", "a", "1"), ("ConfigMap", "b", "2")]);
    let one = capture(&repository, "u1", "shop", &state).await.unwrap();
    let writer = repository.writer().await.unwrap();
    let mut builder = writer.manifest(Some(&one)).await.unwrap();
    let newer = KindHeader {
        version: "v2".to_owned(),
        ..kind("ConfigMap")
    };
    for ((_, name), content) in &state {
        assert_eq!(
            builder.previous_entry(&newer, name).await.unwrap(),
            None,
            "another version has other content"
        );
        builder
            .add(&newer, entry(name, Digest::of(content), 1, None))
            .await
            .unwrap();
    }
    let built = builder.finish().await.unwrap();
    writer.commit(vec![draft("u2", "shop", built)]).await.unwrap();
    let manifest = repository.manifest("u2").await.unwrap();
    assert_eq!(manifest.kinds().await.unwrap(), [newer]);
    assert_eq!(manifest.record().digest, one.digest);
}

#[tokio::test]
async fn a_newer_resource_version_alone_costs_a_row_and_keeps_the_digest() {
    let repository = open(&memory()).await;
    let state = realistic_namespace(50, 0);
    let one = capture(&repository, "u1", "shop", &state).await.unwrap();
    let before = repository.usage().stored_bytes;
    let writer = repository.writer().await.unwrap();
    let mut builder = writer.manifest(Some(&one)).await.unwrap();
    for (seen, (kind_name, name)) in state.keys().enumerate() {
        let mut entry = builder.previous_entry(&kind(kind_name), name).await.unwrap().unwrap();
        if seen == 7 {
            entry.resource_version = "99999999".to_owned();
        }
        builder.add(&kind(kind_name), entry).await.unwrap();
    }
    builder.set_extras(serde_json::json!({"images": []}));
    let built = builder.finish().await.unwrap();
    let two = writer.commit(vec![draft("u2", "shop", built)]).await.unwrap().remove(0);
    assert_eq!(
        (two.digest, two.counts.unchanged, two.segments.len()),
        (one.digest, 50, one.segments.len() + 1)
    );
    let cost = repository.usage().stored_bytes - before;
    assert!(cost < 1000, "{cost} bytes");
}

#[tokio::test]
async fn versions_are_never_given_twice_and_heads_make_a_tree() {
    let backend = memory();
    let repository = open(&backend).await;
    let key = LineageKey::new("shop", "default");
    assert_eq!(repository.lineage(&key), None);
    for version in 1..=3u64 {
        capture(
            &repository,
            &format!("u{version}"),
            "shop",
            &objects(&[("ConfigMap", "a", &version.to_string())]),
        )
        .await
        .unwrap();
    }
    repository.set_head(&key, 1).await.unwrap();
    assert!(matches!(
        repository.set_head(&key, 9).await,
        Err(Error::VersionNotFound { version: 9, .. })
    ));
    repository
        .delete(&["u2".to_owned(), "u3".to_owned(), "never".to_owned()])
        .await
        .unwrap();
    repository.delete(&["u3".to_owned()]).await.unwrap();
    let repository = open(&backend).await;
    assert_eq!(
        repository.lineage(&key),
        Some(LineageState {
            head: Some(1),
            next_version: 4
        })
    );
    let four = capture(&repository, "u4", "shop", &objects(&[])).await.unwrap();
    assert_eq!((four.version, four.parent), (4, Some(1)));
    assert!(matches!(repository.manifest("u2").await, Err(Error::SnapshotNotFound(uid)) if uid == "u2"));
    assert_eq!(
        contents(&repository, "u1").await.unwrap(),
        objects(&[("ConfigMap", "a", "1")])
    );
}

#[tokio::test]
async fn committing_a_uid_twice_gives_the_first_record() {
    let repository = open(&memory()).await;
    let one = capture(&repository, "u1", "shop", &objects(&[("ConfigMap", "a", "1")]))
        .await
        .unwrap();
    let again = capture(&repository, "u1", "shop", &objects(&[("ConfigMap", "a", "2")]))
        .await
        .unwrap();
    assert_eq!(one, again);
}

#[tokio::test]
async fn an_entry_without_content_is_refused() {
    let writer = open(&memory()).await.writer().await.unwrap();
    let mut builder = writer.manifest(None).await.unwrap();
    let refused = builder
        .add(&kind("ConfigMap"), entry("a", Digest::of(b"nowhere"), 7, None))
        .await;
    assert!(matches!(refused, Err(Error::MissingChunk { what, .. }) if what.contains("ConfigMap/a")));
}

#[tokio::test]
async fn a_pass_over_many_namespaces_commits_them_in_one_record() {
    let backend = memory();
    let repository = Repository::open(
        backend.clone(),
        Options {
            manifest_buffer: 20_000,
            ..options()
        },
    )
    .await
    .unwrap();
    let writer = Arc::new(repository.writer().await.unwrap());
    let states: Vec<Objects> = (0..40).map(|ns| realistic_namespace(20, ns * 15)).collect();
    let mut builders = Vec::new();
    for _ in &states {
        builders.push(writer.manifest(None).await.unwrap());
    }
    // Kind by kind through all namespaces, as a cluster-wide list streams.
    for wanted in ["ConfigMap", "Deployment"] {
        for (builder, state) in builders.iter_mut().zip(&states) {
            for ((kind_name, name), content) in state.iter().filter(|((kind, _), _)| kind == wanted) {
                let (digest, _) = writer.put(FrameGroup::content("", kind_name), content).await.unwrap();
                builder
                    .add(&kind(kind_name), entry(name, digest, content.len(), None))
                    .await
                    .unwrap();
            }
        }
    }
    let mut drafts = Vec::new();
    for (at, mut builder) in builders.into_iter().enumerate() {
        builder.set_extras(serde_json::json!({}));
        drafts.push(draft(
            &format!("u{at}"),
            &format!("ns{at}"),
            builder.finish().await.unwrap(),
        ));
    }
    Arc::into_inner(writer).unwrap().commit(drafts).await.unwrap();
    assert_eq!(backend.list("journal/").await.unwrap().len(), 1);
    let repository = open(&backend).await;
    for (at, state) in states.iter().enumerate() {
        assert_eq!(&contents(&repository, &format!("u{at}")).await.unwrap(), state);
        let alone = capture(&open(&memory()).await, "x", "x", state).await.unwrap();
        assert_eq!(repository.snapshot(&format!("u{at}")).unwrap().digest, alone.digest);
    }
}

#[tokio::test]
async fn checkpoints_replace_the_journal_and_reopen_the_same() {
    let backend = memory();
    let options = Options {
        checkpoint_records: 8,
        ..options()
    };
    let repository = Repository::open(backend.clone(), options.clone()).await.unwrap();
    let mut written = Vec::new();
    for round in 0..40u64 {
        capture(
            &repository,
            &format!("u{round}"),
            "shop",
            &objects(&[("ConfigMap", "a", &(round / 2).to_string())]),
        )
        .await
        .unwrap();
        if round % 3 == 0 {
            repository.delete(&[format!("u{}", round / 2)]).await.unwrap();
        }
        written.extend(repository.maintain().await.unwrap().checkpoint);
    }
    assert!(written.len() >= 2, "{written:?}");
    assert_eq!(backend.list("checkpoints/").await.unwrap().len(), 1);
    let records = backend.list("journal/").await.unwrap().len();
    assert!(records < 40, "{records} records left");
    let again = Repository::open(backend.clone(), options).await.unwrap();
    assert_eq!(again.snapshots(None), repository.snapshots(None));
    let key = LineageKey::new("shop", "default");
    assert_eq!(
        again.lineage(&key),
        Some(LineageState {
            head: Some(40),
            next_version: 41
        })
    );
    assert_eq!(again.usage(), repository.usage());
    let report = again.verify(|_| {}).await.unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
}

#[tokio::test]
async fn collected_space_comes_back_and_small_packs_are_merged() {
    let backend = memory();
    let repository = Repository::open(
        backend.clone(),
        Options {
            small_packs: 10,
            ..options()
        },
    )
    .await
    .unwrap();
    let mut state = realistic_namespace(200, 0);
    for round in 0..20u64 {
        let (kind, content) = realistic(round, round + 1);
        state.insert((kind, format!("app-{round:05}")), content);
        capture(&repository, &format!("u{round}"), "shop", &state)
            .await
            .unwrap();
    }
    assert_eq!(packs_on(&backend).await, 20);
    let report = repository.maintain().await.unwrap();
    assert!(report.repacked >= 19 && report.deleted == report.repacked, "{report:?}");
    assert!(packs_on(&backend).await <= 2);
    for repository in [&repository, &open(&backend).await] {
        assert_eq!(contents(repository, "u19").await.unwrap(), state);
        assert!(repository.verify(|_| {}).await.unwrap().is_clean());
    }
    let before = repository.usage().stored_bytes;
    repository
        .delete(&(0..20).map(|round| format!("u{round}")).collect::<Vec<_>>())
        .await
        .unwrap();
    let report = repository.maintain().await.unwrap();
    assert_eq!((packs_on(&backend).await, report.skipped), (0, None));
    assert!(repository.usage().stored_bytes < before / 2);
    assert_eq!(
        repository.maintain().await.unwrap(),
        MaintenanceReport::default(),
        "nothing is left to do"
    );
}

#[tokio::test]
async fn a_manifest_of_kinds_that_come_side_by_side_has_one_run_so_that_an_object_lies_in_one_segment() {
    let backend = memory();
    let repository = open(&backend).await;
    let writer = repository.writer().await.unwrap();
    let mut builder = writer.manifest(None).await.unwrap();
    let names = ["Alpha", "Beta", "Gamma", "Rare"];
    for at in 0..2600 {
        for (every, kind_name) in [1, 2, 1, 400].into_iter().zip(names) {
            if at % every == 0 {
                let (digest, _) = writer.put(FrameGroup::content("", ""), &[1]).await.unwrap();
                let entry = entry(&format!("o-{at:05}"), digest, 1, None);
                builder.add(&kind(kind_name), entry).await.unwrap();
            }
        }
    }
    let built = builder.finish().await.unwrap();
    let runs: Vec<_> = built.segments.iter().map(|segment| segment.run).collect();
    assert!(runs.len() > 4 && runs.iter().all(|run| *run == 0), "{runs:?}");
    writer.commit(vec![draft("u1", "shop", built)]).await.unwrap();
    let manifest = repository.manifest("u1").await.unwrap();
    for (kind_name, count) in names.into_iter().zip([2600, 1300, 2600, 7]) {
        let found: Vec<_> = manifest.entries_of("", kind_name).try_collect().await.unwrap();
        assert_eq!(found.len(), count, "{kind_name}");
    }
}
