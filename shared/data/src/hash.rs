//! Hashes that are the same on every machine and in every version: they decide splits, order and what is a duplicate.

/// Scrambles 64 bits (SplitMix64's finaliser).
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// FNV-1a of the bytes, scrambled.
pub(crate) fn text(text: &str) -> u64 {
    let mut state = 0xCBF2_9CE4_8422_2325_u64;
    for byte in text.bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    }
    mix(state)
}

/// One hash of several in their order.
pub(crate) fn sequence(hashes: &[u64]) -> u64 {
    hashes.iter().fold(hashes.len() as u64, |state, hash| mix(state.rotate_left(5) ^ hash))
}

/// Calls `word` for every run of ASCII letters and digits in the lower-cased text, with the run's byte range in it.
pub(crate) fn words(lower: &str, mut word: impl FnMut(std::ops::Range<usize>)) {
    let mut start = None;
    for (at, byte) in lower.bytes().enumerate() {
        match (byte.is_ascii_lowercase() || byte.is_ascii_digit(), start) {
            (true, None) => start = Some(at),
            (false, Some(from)) => {
                word(from..at);
                start = None;
            }
            _ => {}
        }
    }
    if let Some(from) = start {
        word(from..lower.len());
    }
}

/// Hashes of the words of a text, whatever its case.
pub(crate) fn word_hashes(original: &str) -> Vec<u64> {
    let lower = original.to_lowercase();
    let mut hashes = Vec::with_capacity(lower.len() / 6);
    words(&lower, |range| hashes.push(text(&lower[range])));
    hashes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_runs_of_letters_and_digits_in_any_case() {
        assert_eq!(word_hashes("IPv6, ünd e"), word_hashes("ipv6 nd - E"));
        assert_ne!(word_hashes("a b"), word_hashes("b a"));
        assert!(word_hashes("— …").is_empty());
    }

    #[test]
    fn the_order_of_a_sequence_counts() {
        assert_ne!(sequence(&[1, 2]), sequence(&[2, 1]));
        assert_ne!(sequence(&[0]), sequence(&[0, 0]));
    }
}
