//! The name somebody probably meant.

/// The name closest to a misspelt one, when it is close enough to be meant.
pub fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|name| (edits(wrong, name), name))
        .filter(|(edits, name)| *edits <= 1 + name.len().max(wrong.len()) / 5 || begins(name, wrong))
        .min()
        .map(|(_, name)| name)
}

/// Insertions, deletions and replacements between two words (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Whether the shorter word begins the longer one, as in `alert` and `alerting`.
fn begins(a: &str, b: &str) -> bool {
    a.len().min(b.len()) >= 4 && (a.starts_with(b) || b.starts_with(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_could_be_meant_is_suggested() {
        for (wrong, near) in
            [("open_att", Some("open_at")), ("alerting", Some("alert")), ("enabled", None), ("al", None)]
        {
            assert_eq!(nearest(wrong, ["open_at", "alert", "on"].into_iter()), near, "{wrong}");
        }
    }
}
