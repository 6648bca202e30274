use serde_json::{Value, json};

use super::*;
use crate::repository::{Put, Room};

#[tokio::test]
async fn a_document_is_written_once_and_damage_to_it_is_found_and_named() {
    let backend = memory();
    let repository = open(&backend).await;
    let first = json!({"items": ["a", "b"]});
    assert_eq!(
        repository.put_document(Room::Ledger, "one", &first).await.unwrap(),
        Put::Created
    );
    let second = repository.put_document(Room::Ledger, "one", &json!(2)).await.unwrap();
    assert_eq!(second, Put::AlreadyExists);
    assert_eq!(
        repository.document::<Value>(Room::Ledger, "one").await.unwrap(),
        Some(first)
    );
    assert_eq!(repository.document::<Value>(Room::History, "one").await.unwrap(), None);
    assert_eq!(repository.documents(Room::Ledger).await.unwrap(), ["one"]);
    assert!(repository.verify(|_| {}).await.unwrap().is_clean());

    let whole = backend.get("ledger/one").await.unwrap().unwrap();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        backend.delete("ledger/one").await.unwrap();
        backend.put_new("ledger/one", vec![bytes.into()]).await.unwrap();
        let read = repository.document::<Value>(Room::Ledger, "one").await;
        assert!(read.is_err_and(|error| error.is_corrupt()), "bit {bit}");
    }
    let report = repository.verify(|_| {}).await.unwrap();
    assert_eq!(report.findings.len(), 1);
    assert_eq!(report.findings[0].blob, "ledger/one");
    repository.delete_document(Room::Ledger, "one").await.unwrap();
    assert_eq!(repository.document::<Value>(Room::Ledger, "one").await.unwrap(), None);
}
