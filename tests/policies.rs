//! Policy files: the shipped set compiles, and every way to break one is reported with its place and its fix.
//! Expected messages: `tests/golden/check/`; rewrite them with `UPDATE=1`.

use casestream::policies::{Files, compile_with_tests, hash};

#[test]
fn the_shipped_set_compiles() {
    let files = Files::built_in();
    let compiled = compile_with_tests(&files).unwrap_or_else(|problems| {
        panic!("{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    });
    assert_eq!(compiled.set.hash, hash(&files));
    assert_eq!(compiled.set.policies.len(), 3);
    assert_eq!(compiled.set.catalogue.indicators.len(), 42);
    assert_eq!(compiled.tests.len(), 6);
}
