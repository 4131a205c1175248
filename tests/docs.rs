//! Pages that are generated from data, committed, and checked. `UPDATE=1 cargo test --test docs` rewrites them.

use std::fmt::Write;
use std::{env, fs, path::Path};

use casestream::topology::{Cleanup, TOPICS};

fn check(page: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, text).expect("page can be written");
    }
    let have = fs::read_to_string(&path).unwrap_or_default();
    assert!(have == text, "{page} is not what the code says: run UPDATE=1 cargo test --test docs");
}

#[test]
fn topics_page_equals_the_topology() {
    let mut page = String::from(
        "# Topics\n\nGenerated from `src/topology.rs`. `casestream topics plan` compares it with a cluster, `topics apply` creates what is\n\
         missing. Topics marked per user have the engine's partition count (64 unless configured), and everything about one\n\
         user lies in one partition number. Read with `isolation.level=read_committed`; Java's default is not.\n\n\
         | topic | key | cleanup | partitions | value | casestream |\n|---|---|---|---|---|---|\n\
         | `raw.<source>` | any | the owner's | the owner's | vendor JSON as emitted | in |\n",
    );
    for t in TOPICS {
        let cleanup = match t.cleanup {
            Cleanup::Compact => "compact".to_owned(),
            Cleanup::Delete(days) => format!("delete, {days} d"),
            Cleanup::CompactAndDelete(days) => format!("compact, delete {days} d"),
        };
        let partitions = if t.per_partition { "per user" } else { "1" };
        let value = t.schema.map_or("see below".to_owned(), |s| format!("[{s}](../schemas/{}.avsc)", t.name));
        let key = t.key.replace('|', "\\|");
        writeln!(page, "| `{}` | {key} | {cleanup} | {partitions} | {value} | {} |", t.name, t.direction)
            .expect("text");
    }
    page.push_str(
        "\n`dead-letters` hold the original bytes with the headers of [bad input](bad-input.md). `user-state` is internal: one\n\
         key per segment of a user (`<user_key>`, `<user_key>|seen`, `<user_key>|<day number>`) in a binary form of its own, and\n\
         `\\0meta` with the same content as the `engine-journal` record of the last transaction. A tombstone on `risk-scores` or\n\
         `risk-levels` means: out of scope, forgotten or erased. A consumer away for longer than `delete.retention.ms` has missed\n\
         tombstones and rebuilds from offset 0.\n",
    );
    check("docs/topics.md", &page);
}
