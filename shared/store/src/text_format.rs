//! The bytes of a stored text: a plain `.zst` file that any zstd tool reads.
//!
//! ```text
//! 0   4  magic of a zstd skippable frame     8   8  size of the text, u64 little endian
//! 4   4  its length, 40                      16 32  blake3 of everything from byte 48 on
//! 48  …  one zstd frame with the UTF-8 text
//! ```
//!
//! The size bounds decompression. The checksum notices changes that zstd would decode to the same text.

use std::io::Read;

use crate::names::ContentHash;
use crate::text::MAX_TEXT_BYTES;

/// Length of what stands before the zstd frame.
pub(crate) const HEADER_BYTES: usize = 48;

const MAGIC: u32 = 0x184D_2A50;

/// No more is allocated before the data has shown that it is there.
const FIRST_ALLOCATION: u64 = 8 << 20;

/// The header of a text of `size` bytes whose zstd frame hashes to `frame`.
pub(crate) fn header(size: u64, frame: &blake3::Hash) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC.to_le_bytes());
    header[4..8].copy_from_slice(&(HEADER_BYTES as u32 - 8).to_le_bytes());
    header[8..16].copy_from_slice(&size.to_le_bytes());
    header[16..].copy_from_slice(frame.as_bytes());
    header
}

/// Decompresses and verifies a stored text. The error says what does not match.
pub(crate) fn decode(object: &[u8], hash: &ContentHash) -> Result<String, String> {
    let (found, frame) = object.split_at_checked(HEADER_BYTES).ok_or("it is shorter than its header")?;
    let size = u64::from_le_bytes(found[8..16].try_into().map_err(|_| "it has no size")?);
    if found != header(size, &blake3::hash(frame)) {
        return Err("its bytes do not match its checksum".to_owned());
    }
    if size > MAX_TEXT_BYTES {
        return Err(format!("it claims {size} bytes, more than the limit of {MAX_TEXT_BYTES}"));
    }
    let text = decompress(frame, size)?;
    if ContentHash::of(&text) != *hash {
        return Err("its text does not match its name".to_owned());
    }
    String::from_utf8(text).map_err(|_| "its text is not UTF-8".to_owned())
}

fn decompress(frame: &[u8], size: u64) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("it cannot be decompressed ({error})");
    let mut text = Vec::with_capacity(size.min(FIRST_ALLOCATION) as usize);
    let decoder = zstd::stream::read::Decoder::with_buffer(frame).map_err(failed)?;
    decoder.take(size + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 != size {
        return Err(format!("it does not decompress to the {size} bytes it claims"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(text: &[u8], claimed: u64) -> Vec<u8> {
        let frame = zstd::encode_all(text, 3).unwrap();
        [header(claimed, &blake3::hash(&frame)).as_slice(), &frame].concat()
    }

    #[test]
    fn any_zstd_tool_reads_a_stored_text() {
        let object = encode("grüße".as_bytes(), 7);
        assert_eq!(zstd::decode_all(object.as_slice()).unwrap(), "grüße".as_bytes());
    }

    #[test]
    fn decompression_stops_at_the_claimed_size() {
        let bomb = vec![b'a'; 64 << 20];
        let hash = ContentHash::of(&bomb);
        let error = decode(&encode(&bomb, 10), &hash).unwrap_err();
        assert!(error.contains("does not decompress to the 10 bytes"), "{error}");
    }

    #[test]
    fn a_claim_of_two_to_the_sixty_bytes_is_an_error() {
        let error = decode(&encode(b"a", 1 << 60), &ContentHash::of(b"a")).unwrap_err();
        assert!(error.contains("1152921504606846976"), "{error}");
    }

    #[test]
    fn every_flipped_byte_and_every_truncation_is_noticed() {
        let text = b"It is a truth universally acknowledged";
        let good = encode(text, text.len() as u64);
        let hash = ContentHash::of(text);
        assert_eq!(decode(&good, &hash).as_deref(), Ok(std::str::from_utf8(text).unwrap()));
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 0x10;
            assert!(decode(&bad, &hash).is_err(), "byte {position}");
            assert!(decode(&good[..position], &hash).is_err(), "cut at {position}");
        }
    }
}
