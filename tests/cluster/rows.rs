//! `tests/rows.yaml` says for each case of approval, and for each bad input, what shows it.

use std::{collections::BTreeMap, fs, path::Path};

/// What the list has to speak of.
const ROWS: [&str; 11] = [
    "ask",
    "bad rollbacks",
    "bad snapshots",
    "change",
    "count",
    "decide",
    "guard",
    "latch",
    "leave",
    "own",
    "tamper",
];

/// What is wrong with one reference of an entry that begins with `A ` or `D `.
fn problem(root: &Path, entry: &str, shown_by: &str) -> Option<String> {
    if let Some((file, test)) = shown_by.split_once("::") {
        let path = if file.starts_with("src/") {
            root.join(file)
        } else {
            root.join(format!("tests/cluster/{file}.rs"))
        };
        let Ok(text) = fs::read_to_string(&path) else {
            return Some(format!("{} cannot be read", path.display()));
        };
        let test = format!("fn {test}(");
        let mut lines = text.lines();
        let mut before = "";
        let is_test = lines.any(|line| {
            let found = line.contains(&test) && (before.contains("test]") || before.contains("tokio::test("));
            before = line;
            found
        });
        return (!is_test).then(|| format!("{} has no test `{test}`", path.display()));
    }
    let which = if entry.starts_with("A ") {
        "/accepted/"
    } else {
        "/refused/"
    };
    if !shown_by.contains(which) {
        return Some(format!("{shown_by} is not{which}"));
    }
    let file = root.join("tests/cel").join(shown_by);
    let there = ["yaml", "after.yaml"]
        .iter()
        .any(|end| file.with_extension(end).is_file());
    (!there).then(|| format!("there is no {}.yaml", file.display()))
}

#[test]
fn every_row_names_files_and_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("tests/rows.yaml")).unwrap();
    let rows: BTreeMap<String, BTreeMap<String, Vec<String>>> = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(rows.keys().collect::<Vec<_>>(), ROWS);
    let mut wrong = Vec::new();
    for (row, entries) in &rows {
        assert!(!entries.is_empty(), "{row} is empty");
        for (entry, shown_by) in entries {
            if shown_by.is_empty() || !(entry.starts_with("A ") || entry.starts_with("D ")) {
                wrong.push(format!(
                    "{row}, {entry}: an entry begins with A or D, and something shows it"
                ));
            }
            let problems = shown_by.iter().filter_map(|one| problem(root, entry, one));
            wrong.extend(problems.map(|problem| format!("{row}, {entry}: {problem}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_row_that_names_what_is_not_there_is_found() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (entry, shown_by) in [
        ("A x", "approvaldecision/accepted/nothing"),
        ("A x", "approvaldecision/refused/turned"),
        ("D x", "nofile::every_row_names_files_and_tests_that_exist"),
        ("D x", "rows::problem"),
        ("D x", "src/domain/approval/tally_tests.rs::nothing"),
    ] {
        assert!(problem(root, entry, shown_by).is_some(), "{shown_by}");
    }
    assert_eq!(problem(root, "D x", "approvaldecision/refused/turned"), None);
    assert_eq!(
        problem(root, "D x", "rows::a_row_that_names_what_is_not_there_is_found"),
        None
    );
}
