//! Cleaning and bounding of text that came from outside: no control characters, nothing invisible, a named maximum.

/// Longest name, title, policy or label, in bytes.
pub const NAME_BYTES_MAX: usize = 512;
/// Longest id, in bytes.
pub const ID_BYTES_MAX: usize = 256;
/// Longest path or address, in bytes.
pub const PATH_BYTES_MAX: usize = 1024;

/// Bytes an over-long id keeps in front of its hash.
const ID_PREFIX_BYTES: usize = 222;

/// The text without invisible characters, control characters as blanks, trimmed, cut to `max` bytes.
pub fn clean(text: &str, max: usize) -> String {
    let mut cleaned = String::with_capacity(text.len().min(max));
    let kept = text.chars().filter(|c| !is_invisible(*c)).map(|c| if c.is_control() { ' ' } else { c });
    for c in kept {
        if cleaned.is_empty() && c.is_whitespace() {
            continue;
        }
        if cleaned.len() + c.len_utf8() > max {
            break;
        }
        cleaned.push(c);
    }
    cleaned.truncate(cleaned.trim_end().len());
    cleaned
}

/// A cleaned id. One that is too long keeps its beginning and gets a hash of the whole, so that two long ids which
/// differ only at their ends stay two.
pub fn clean_id(text: &str) -> String {
    let whole = clean(text, usize::MAX);
    if whole.len() <= ID_BYTES_MAX {
        return whole;
    }
    let hash = blake3::hash(whole.as_bytes()).to_hex();
    format!("{}~{}", clean(&whole, ID_PREFIX_BYTES), &hash[..32])
}

/// NUL, zero-width and direction-changing characters: they let two names look the same.
fn is_invisible(c: char) -> bool {
    matches!(c, '\0' | '\u{ad}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_and_bounds() {
        for (dirty, max, expect) in [
            ("plain", 10, "plain"),
            ("  a\r\nb\t ", 10, "a  b"),
            ("Micro\u{200b}soft\0", 20, "Microsoft"),
            ("\u{202e}gpj.exe", 20, "gpj.exe"),
            ("äöü", 3, "ä"),
            ("ab cd", 3, "ab"),
            ("", 3, ""),
        ] {
            assert_eq!(clean(dirty, max), expect, "{dirty:?}");
        }
    }

    #[test]
    fn long_ids_stay_distinct() {
        let (a, b) = (format!("{}a", "x".repeat(400)), format!("{}b", "x".repeat(400)));
        assert_ne!(clean_id(&a), clean_id(&b));
        assert!(clean_id(&a).len() <= ID_BYTES_MAX);
        assert_eq!(clean_id("short"), "short");
    }
}
