//! Compaction: of each key below the last stable offset the latest record stays, at its offset; aborted records,
//! markers and old tombstones go. The last batch stays whatever it holds, so that a reader's position reaches the end.
//! A batch that cannot be opened stays as it is. Next: `state.rs`.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::batch::Opened;
use super::log::{Partition, Stored};

/// Compacts a partition; tombstones stamped before `tombstones_before` are removed.
pub fn compact(partition: &mut Partition, tombstones_before: i64) {
    let stable = partition.last_stable();
    let below = partition.batches.partition_point(|stored| stored.last < stable);
    let Some(settled) = below.checked_sub(1) else { return };
    let until = partition.batches[settled].base;
    let latest = latest(partition, settled);
    let batches = std::mem::take(&mut partition.batches);
    let mut kept = VecDeque::with_capacity(batches.len());
    for (n, stored) in batches.into_iter().enumerate() {
        match n < settled {
            true => kept.extend(rewrite(partition, stored, &latest, tombstones_before)),
            false => kept.push_back(stored),
        }
    }
    partition.bytes = kept.iter().map(|stored| stored.bytes.len()).sum();
    partition.clean_bytes = partition.bytes;
    partition.batches = kept;
    // The records of the others are gone; a list that never shrinks would be searched by every fetch.
    partition.facts.aborted.retain(|aborted| aborted.marker >= until);
}

fn is_aborted(partition: &Partition, stored: &Stored) -> bool {
    let theirs = partition.facts.aborted.iter().filter(|aborted| aborted.producer == stored.producer);
    stored.transactional && theirs.into_iter().any(|a| a.first <= stored.base && stored.base < a.marker)
}

/// Offset of the latest record of each key among the first batches.
fn latest(partition: &Partition, settled: usize) -> HashMap<Bytes, i64> {
    let mut latest = HashMap::new();
    // The batch behind is stable too; only it is not rewritten.
    for stored in partition.batches.iter().take(settled + 1) {
        if stored.control || is_aborted(partition, stored) {
            continue;
        }
        let Some(opened) = Opened::read(&stored.bytes) else { continue };
        for entry in &opened.entries {
            if let Some(key) = opened.key(entry) {
                latest.insert(Bytes::copy_from_slice(key), entry.offset);
            }
        }
    }
    latest
}

fn rewrite(
    partition: &Partition,
    stored: Stored,
    latest: &HashMap<Bytes, i64>,
    tombstones_before: i64,
) -> Option<Stored> {
    if stored.control || is_aborted(partition, &stored) {
        return None;
    }
    let Some(opened) = Opened::read(&stored.bytes) else { return Some(stored) };
    let keep: Vec<bool> = opened
        .entries
        .iter()
        .map(|entry| {
            let current = opened.key(entry).is_some_and(|key| latest.get(key) == Some(&entry.offset));
            current && !(entry.tombstone && entry.timestamp < tombstones_before)
        })
        .collect();
    if keep.iter().all(|keep| *keep) {
        return Some(stored);
    }
    if !keep.iter().any(|keep| *keep) {
        return None;
    }
    Stored::new(opened.keep(&keep))
}

#[cfg(test)]
mod tests {
    use super::super::batch::tests::batch;
    use super::*;

    fn left(partition: &Partition) -> Vec<(String, i64)> {
        let opened = partition.batches.iter().filter_map(|stored| Opened::read(&stored.bytes));
        let rows = opened.flat_map(|opened| {
            let row = |e| (String::from_utf8(opened.key(e).unwrap().to_vec()).unwrap(), e.offset);
            opened.entries.iter().map(row).collect::<Vec<_>>()
        });
        rows.collect()
    }

    #[test]
    fn the_latest_of_each_key_stays_at_its_offset() {
        let mut partition = Partition::default();
        partition.append(&batch(&[("a", Some("1")), ("b", Some("1")), ("gone", None)]));
        partition.append(&batch(&[("a", Some("2"))]));
        partition.append(&batch(&[("c", Some("1")), ("a", Some("3"))]));
        compact(&mut partition, 2_000);
        assert_eq!(left(&partition), [("b".into(), 1), ("c".into(), 4), ("a".into(), 5)]);
        assert_eq!((partition.facts.next, partition.clean_bytes), (6, partition.bytes));
    }

    #[test]
    fn a_young_tombstone_and_what_is_not_stable_stay() {
        let mut partition = Partition::default();
        partition.append(&batch(&[("gone", Some("1"))]));
        partition.append(&batch(&[("gone", None)]));
        partition.append(&batch(&[("z", None)]));
        partition.facts.open.insert(9, 3);
        partition.append(&batch(&[("z", Some("open"))]));
        compact(&mut partition, 0);
        assert_eq!(left(&partition), [("gone".into(), 1), ("z".into(), 2), ("z".into(), 3)]);
    }
}
