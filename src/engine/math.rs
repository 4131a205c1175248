//! Powers and logarithms of two in integers, from two published tables of 1,025 entries each, so that any program can
//! recompute a score to the last digit. No floats. `schemas/score-vectors.json` prints both tables.
//! Next: `state.rs`, what is added up.

use std::sync::LazyLock;

use smallvec::SmallVec;

/// Steps of both tables per power of two.
pub const STEPS: usize = 1_024;

/// `EXP2[n]` = 2^(−n/1024) in Q32, rounded.
pub static EXP2: LazyLock<[u64; STEPS + 1]> = LazyLock::new(exp2_table);

/// `LOG2[n]` = log2(1 + n/1024) in Q16, rounded.
pub static LOG2: LazyLock<[u32; STEPS + 1]> = LazyLock::new(log2_table);

/// 1 in Q32.
pub const ONE_Q32: u64 = 1 << 32;
/// 1 in Q16.
pub const ONE_Q16: u64 = 1 << 16;

/// Products of 2^(−1/2), 2^(−1/4) … 2^(−1/1024), each an integer square root in Q63.
fn exp2_table() -> [u64; STEPS + 1] {
    let mut roots = [0_u128; 11];
    roots[0] = 1 << 62;
    for k in 1..roots.len() {
        roots[k] = (roots[k - 1] << 63).isqrt();
    }
    let mut table = [0; STEPS + 1];
    for (n, entry) in table.iter_mut().enumerate() {
        let mut value = 1_u128 << 63;
        for (k, root) in roots.iter().enumerate() {
            if n >> (10 - k) & 1 == 1 {
                value = (value * root) >> 63;
            }
        }
        *entry = ((value + (1 << 30)) >> 31) as u64;
    }
    table
}

/// Bit by bit: squaring doubles the logarithm, and what passes 2 is a bit of it.
fn log2_table() -> [u32; STEPS + 1] {
    let mut table = [0; STEPS + 1];
    for (n, entry) in table.iter_mut().enumerate() {
        let mut x = (1_u128 << 62) + ((n as u128) << 52);
        let mut bits = 0_u64;
        if n == STEPS {
            bits = 1 << 24;
        } else {
            for _ in 0..24 {
                x = (x * x) >> 62;
                bits <<= 1;
                if x >= 1 << 63 {
                    bits |= 1;
                    x >>= 1;
                }
            }
        }
        *entry = ((bits + 128) >> 8) as u32;
    }
    table
}

/// 2^(−x/65536) in Q32, by linear interpolation in `EXP2`.
pub fn exp2_neg_q32(x_q16: u64) -> u64 {
    let whole = x_q16 >> 16;
    if whole > 32 {
        return 0;
    }
    let fraction = (x_q16 & 0xffff) as usize;
    let (index, rest) = (fraction >> 6, (fraction & 63) as u64);
    let table = &*EXP2;
    let value = table[index] - (((table[index] - table[index + 1]) * rest) >> 6);
    value >> whole
}

/// log2(n) in Q16 for n ≥ 1, by linear interpolation in `LOG2`.
pub fn log2_q16(n: u64) -> u64 {
    assert!(n > 0, "zero has no logarithm");
    let msb = 63 - n.leading_zeros();
    // The mantissa below the leading bit, as 26 bits: ten pick the entry, sixteen interpolate.
    let below = u128::from(n) << 26 >> msb;
    let below = (below as u64) & ((1 << 26) - 1);
    let (index, rest) = ((below >> 16) as usize, below & 0xffff);
    let table = &*LOG2;
    let (low, high) = (u64::from(table[index]), u64::from(table[index + 1]));
    (u64::from(msb) << 16) + low + (((high - low) * rest) >> 16)
}

/// Splits `total` in proportion to `parts` so that the pieces add up exactly: floors first, then one each to the
/// largest remainders, ties to the earlier.
pub fn largest_remainder(total: i64, parts: &[i64]) -> SmallVec<[i64; 8]> {
    let sum: i128 = parts.iter().map(|p| i128::from(*p)).sum();
    // Quotient and remainder; wide arithmetic is left to products that need it.
    let split = |part: &i64| match (total.checked_mul(*part), i64::try_from(sum)) {
        (_, Ok(0)) => (0, 0),
        (Some(product), Ok(sum)) => (product / sum, i128::from(product % sum)),
        _ => {
            let product = i128::from(total) * i128::from(*part);
            ((product / sum) as i64, product % sum)
        }
    };
    let mut pieces: SmallVec<[i64; 8]> = parts.iter().map(|p| split(p).0).collect();
    let missing = total - pieces.iter().sum::<i64>();
    if sum == 0 || missing == 0 {
        return pieces;
    }
    let mut order: SmallVec<[usize; 8]> = (0..parts.len()).collect();
    order.sort_by_key(|n| (-split(&parts[*n]).1, *n));
    for n in order.into_iter().take(missing as usize) {
        pieces[n] += 1;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_hold_known_values() {
        assert_eq!((EXP2[0], EXP2[512], EXP2[STEPS]), (1 << 32, 3_037_000_500, 1 << 31));
        assert_eq!((LOG2[0], LOG2[512], LOG2[STEPS]), (0, 38_336, 65_536));
        assert!(EXP2.windows(2).all(|w| w[0] > w[1]) && LOG2.windows(2).all(|w| w[0] < w[1]));
    }

    #[test]
    fn powers_and_logarithms_are_close_and_monotone() {
        assert_eq!(exp2_neg_q32(3 << 16), ONE_Q32 / 8);
        assert_eq!(exp2_neg_q32(33 << 16), 0);
        assert_eq!(log2_q16(1), 0);
        assert_eq!(log2_q16(1 << 40), 40 << 16);
        let mut last = u64::MAX;
        for x in (0..40_u64 << 16).step_by(97) {
            let value = exp2_neg_q32(x);
            assert!(value <= last);
            last = value;
        }
        let mut last = 0;
        for n in 1..200_000 {
            let value = log2_q16(n);
            assert!(value >= last);
            last = value;
        }
        assert!(log2_q16(u64::MAX) <= 64 << 16);
    }

    #[test]
    fn pieces_add_up() {
        let wide = i64::MAX / 2;
        for (total, parts, pieces) in [
            (100, &[1, 1, 1][..], &[34, 33, 33][..]),
            (7, &[0, 5, 9], &[0, 3, 4]),
            (7, &[0, wide / 9 * 5, wide / 9 * 9], &[0, 3, 4]),
            (0, &[1, 2], &[0, 0]),
            (5, &[0, 0], &[0, 0]),
            (5, &[], &[]),
        ] {
            assert_eq!(largest_remainder(total, parts).as_slice(), pieces, "{total} in {parts:?}");
        }
    }
}
