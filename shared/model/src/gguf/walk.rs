//! Walks a GGUF header without keeping it: every length is compared with what is left of the file before it is followed.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use candle_core::quantized::GgmlDType;

use crate::error::{ModelError, Result};

const MAGIC: u32 = u32::from_le_bytes(*b"GGUF");
const MAX_NAME: u64 = 1 << 16;
/// Far above any vocabulary; candle keeps 32 bytes per element whatever the file spends on it.
const MAX_ARRAY: u64 = 1 << 24;
const MAX_DIMS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Checks the header of the GGUF file `path` of `length` bytes, which `reader` is at the beginning of.
pub(super) fn check(path: &Path, reader: &mut BufReader<File>, length: u64) -> Result<()> {
    let mut walk = Walk { path, reader, position: 0, length, wide: true };
    let (tensors, pairs) = walk.preamble()?;
    let mut alignment = DEFAULT_ALIGNMENT;
    for index in 0..pairs {
        walk.pair(index, &mut alignment)?;
    }
    let mut spans = Vec::new();
    for index in 0..tensors {
        spans.push(walk.tensor(index, alignment)?);
    }
    // `preamble` has bounded the count by the file's length, so the sum cannot overflow.
    let data = walk.position.next_multiple_of(alignment);
    for span in spans {
        let end = data.checked_add(span.offset).and_then(|start| start.checked_add(span.bytes));
        if end.is_none_or(|end| end > length) {
            let Span { name, offset, bytes } = span;
            return Err(walk.bad(format!(
                "tensor {name:?} claims {bytes} bytes at offset {offset} of the data, which begins at {data}, but the file has \
                 {length} bytes"
            )));
        }
    }
    Ok(())
}

/// Where a tensor claims to lie, from the beginning of the data.
struct Span {
    name: String,
    offset: u64,
    bytes: u64,
}

struct Walk<'a> {
    path: &'a Path,
    reader: &'a mut BufReader<File>,
    position: u64,
    length: u64,
    /// Lengths are 64 bits wide from version 2 on.
    wide: bool,
}

impl Walk<'_> {
    /// Magic, version and counts: `(tensors, key-value pairs)`.
    fn preamble(&mut self) -> Result<(u64, u64)> {
        let magic = self.u32("magic")?;
        if magic != MAGIC {
            return Err(self.bad(format!("magic = {magic:#010x}: this is not a GGUF file")));
        }
        let version = self.u32("version")?;
        if !(1..=3).contains(&version) {
            return Err(self.bad(format!("version = {version}: only GGUF 1 to 3 are supported")));
        }
        self.wide = version > 1;
        let tensors = self.count("tensor_count")?;
        let pairs = self.count("metadata_kv_count")?;
        let prefix = if self.wide { 8 } else { 4 };
        self.fits("tensor_count", tensors, prefix + 16)?;
        self.fits("metadata_kv_count", pairs, prefix + 5)?;
        Ok((tensors, pairs))
    }

    fn pair(&mut self, index: u64, alignment: &mut u64) -> Result<()> {
        let key = self.name(&format!("key of metadata pair {index}"))?;
        let kind = self.u32(&key)?;
        if key == "general.alignment" {
            *alignment = self.alignment(kind)?;
            return Ok(());
        }
        match kind {
            STRING => self.skip_string(&key),
            ARRAY => self.skip_array(&key),
            scalar => {
                let bytes = self.scalar_bytes(&key, scalar)?;
                self.skip(&key, bytes)
            }
        }
    }

    fn alignment(&mut self, kind: u32) -> Result<u64> {
        // The format says u32; candle would fall back to 32 for a u64 and read other bytes than were checked.
        let value = match kind {
            4 => u64::from(self.u32("general.alignment")?),
            other => return Err(self.bad(format!("general.alignment has value type {other}, not u32"))),
        };
        match value.is_power_of_two() {
            true => Ok(value),
            false => Err(self.bad(format!("general.alignment = {value} is no power of two"))),
        }
    }

    fn skip_array(&mut self, key: &str) -> Result<()> {
        let kind = self.u32(key)?;
        let length = self.count(key)?;
        if length > MAX_ARRAY {
            return Err(self.bad(format!("{key}: array length {length} is above {MAX_ARRAY}")));
        }
        match kind {
            STRING => (0..length).try_for_each(|_| self.skip_string(key)),
            ARRAY => Err(self.bad(format!("{key}: arrays of arrays are not supported"))),
            scalar => {
                let bytes = self.scalar_bytes(key, scalar)?;
                self.skip(key, bytes * length)
            }
        }
    }

    fn scalar_bytes(&self, key: &str, kind: u32) -> Result<u64> {
        match kind {
            0 | 1 | 7 => Ok(1),
            2 | 3 => Ok(2),
            4..=6 => Ok(4),
            10..=12 => Ok(8),
            _ => Err(self.bad(format!("{key}: value type {kind} does not exist"))),
        }
    }

    fn tensor(&mut self, index: u64, alignment: u64) -> Result<Span> {
        let name = self.name(&format!("name of tensor {index}"))?;
        let dims = self.u32(&name)?;
        if !(1..=MAX_DIMS).contains(&dims) {
            return Err(self.bad(format!("tensor {name:?} has {dims} dimensions, not 1 to {MAX_DIMS}")));
        }
        let dims = (0..dims).map(|_| self.count(&name)).collect::<Result<Vec<u64>>>()?;
        let kind = self.u32(&name)?;
        let offset = self.u64(&name)?;
        if !offset.is_multiple_of(alignment) {
            return Err(self.bad(format!("tensor {name:?}: offset {offset} is not aligned to {alignment}")));
        }
        let Some(kind) = element_type(kind) else {
            return Err(self.bad(format!(
                "tensor {name:?}: element type {kind} is not supported; use F32, F16, BF16, Q*_0, Q*_1 or Q*_K"
            )));
        };
        let block = kind.block_size() as u64;
        let elements = dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
        let bytes = elements.and_then(|n| (n / block).checked_mul(kind.type_size() as u64));
        let Some(bytes) = bytes.filter(|bytes| *bytes > 0 && dims[0].is_multiple_of(block)) else {
            return Err(self.bad(format!("tensor {name:?}: dimensions {dims:?} are impossible for {kind:?}")));
        };
        Ok(Span { name, offset, bytes })
    }

    fn name(&mut self, field: &str) -> Result<String> {
        let length = self.count(field)?;
        if length > MAX_NAME {
            return Err(self.bad(format!("{field}: length {length} is above {MAX_NAME}")));
        }
        self.fits(field, length, 1)?;
        let mut bytes = vec![0; length as usize];
        self.read(field, &mut bytes)?;
        // candle takes zeros at the end off, as version 1 of the format has them.
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
    }

    fn skip_string(&mut self, field: &str) -> Result<()> {
        let length = self.count(field)?;
        self.skip(field, length)
    }

    fn skip(&mut self, field: &str, bytes: u64) -> Result<()> {
        self.fits(field, bytes, 1)?;
        let step = i64::try_from(bytes).map_err(|_| self.bad(format!("{field}: {bytes} bytes")))?;
        self.reader.seek_relative(step).map_err(ModelError::io(self.path))?;
        self.position += bytes;
        Ok(())
    }

    /// A length or count, as wide as this version writes them.
    fn count(&mut self, field: &str) -> Result<u64> {
        if self.wide { self.u64(field) } else { self.u32(field).map(u64::from) }
    }

    fn u32(&mut self, field: &str) -> Result<u32> {
        let mut bytes = [0; 4];
        self.read(field, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self, field: &str) -> Result<u64> {
        let mut bytes = [0; 8];
        self.read(field, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn read(&mut self, field: &str, bytes: &mut [u8]) -> Result<()> {
        self.fits(field, bytes.len() as u64, 1)?;
        self.reader.read_exact(bytes).map_err(ModelError::io(self.path))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Whether `count` items of at least `size` bytes can still follow.
    fn fits(&self, field: &str, count: u64, size: u64) -> Result<()> {
        let left = self.length - self.position;
        match count.checked_mul(size) {
            Some(bytes) if bytes <= left => Ok(()),
            _ => {
                Err(self.bad(format!("{field} claims {count} × {size} bytes, but {left} of {} are left", self.length)))
            }
        }
    }

    fn bad(&self, problem: String) -> ModelError {
        ModelError::bad_weights(self.path, problem)
    }
}

/// GGML's element types that candle can read.
fn element_type(kind: u32) -> Option<GgmlDType> {
    Some(match kind {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        9 => GgmlDType::Q8_1,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        15 => GgmlDType::Q8K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::gguf::GgufFile;

    /// A GGUF file under construction: one F32 tensor `w` of shape `[2, 3]` and a few metadata pairs.
    #[derive(Clone)]
    struct File {
        tensors: u64,
        pairs: Vec<Vec<u8>>,
        dims: Vec<u64>,
        kind: u32,
        offset: u64,
        data: usize,
    }

    impl File {
        fn small() -> Self {
            let pairs = vec![
                pair("name", 8, &string("x")),
                pair("scores", 9, &[6u32.to_le_bytes().as_slice(), &2u64.to_le_bytes(), &[0; 8]].concat()),
                pair(
                    "tokens",
                    9,
                    &[8u32.to_le_bytes().as_slice(), &2u64.to_le_bytes(), &string("a"), &string("bc")].concat(),
                ),
            ];
            Self { tensors: 1, pairs, dims: vec![3, 2], kind: 0, offset: 0, data: 24 }
        }

        fn bytes(&self) -> Vec<u8> {
            let mut out = [b"GGUF".as_slice(), &3u32.to_le_bytes(), &self.tensors.to_le_bytes()].concat();
            out.extend((self.pairs.len() as u64).to_le_bytes());
            out.extend(self.pairs.concat());
            out.extend(string("w"));
            out.extend((self.dims.len() as u32).to_le_bytes());
            out.extend(self.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(self.kind.to_le_bytes());
            out.extend(self.offset.to_le_bytes());
            out.resize(out.len().next_multiple_of(32) + self.data, 0);
            out
        }

        fn open(&self) -> Result<GgufFile> {
            open(&self.bytes())
        }

        /// The message with which the file is refused.
        fn refused(&self) -> String {
            let error = self.open().unwrap_err();
            assert!(matches!(error, ModelError::BadWeights { .. }), "{error}");
            error.to_string()
        }
    }

    fn string(text: &str) -> Vec<u8> {
        [(text.len() as u64).to_le_bytes().as_slice(), text.as_bytes()].concat()
    }

    fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        [string(key).as_slice(), &kind.to_le_bytes(), value].concat()
    }

    fn open(bytes: &[u8]) -> Result<GgufFile> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        GgufFile::open(file.path())
    }

    #[test]
    fn a_small_valid_file_opens() {
        let file = File::small().open().unwrap();
        assert_eq!(file.shape("w"), Some(&[2, 3][..]));
        assert_eq!(file.metadata().strings("tokens").unwrap(), ["a", "bc"]);
    }

    #[test]
    fn claims_of_2_to_the_60_are_refused_by_name() {
        const HUGE: u64 = 1 << 60;
        let mut file = File::small();
        file.tensors = HUGE;
        assert!(file.refused().contains("tensor_count claims 1152921504606846976"), "{}", file.refused());

        for (kind, value) in [
            (8, HUGE.to_le_bytes().to_vec()),
            (9, [6u32.to_le_bytes().as_slice(), &HUGE.to_le_bytes()].concat()),
            (9, [8u32.to_le_bytes().as_slice(), &(1u64 << 20).to_le_bytes()].concat()),
        ] {
            let mut file = File::small();
            file.pairs.push(pair("liar", kind, &value));
            assert!(file.refused().contains("liar"), "{}", file.refused());
        }

        for dims in [vec![HUGE, HUGE], vec![HUGE], vec![3, 3]] {
            let file = File { dims, ..File::small() };
            assert!(file.refused().contains("tensor \"w\""), "{}", file.refused());
        }
    }

    #[test]
    fn a_key_longer_than_the_file_is_refused() {
        let mut bytes = File::small().bytes();
        bytes[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(open(&bytes).unwrap_err().to_string().contains("key of metadata pair 0"));
    }

    #[test]
    fn impossible_tensors_are_refused() {
        let small = File::small;
        assert!(File { kind: 8, ..small() }.refused().contains("impossible for Q8_0"));
        assert!(File { kind: 77, ..small() }.refused().contains("element type 77"));
        assert!(File { dims: vec![0, 2], ..small() }.refused().contains("[0, 2]"));
        assert!(File { dims: vec![1; 5], ..small() }.refused().contains("5 dimensions"));
        assert!(File { offset: 8, ..small() }.refused().contains("offset 8"));
        assert!(File { offset: 32, ..small() }.refused().contains("24 bytes at offset 32"));
        assert!(File { offset: u64::MAX - 31, ..small() }.refused().contains("at offset"));
    }

    #[test]
    fn an_alignment_that_candle_would_divide_by_is_checked() {
        for (name, value) in [("general.alignment", 0u32), ("general.alignment", 3), ("general.alignment\0\0", 0)] {
            let mut file = File::small();
            file.pairs.push(pair(name, 4, &value.to_le_bytes()));
            assert!(file.refused().contains(&format!("general.alignment = {value}")));
        }
    }

    #[test]
    fn other_files_are_called_what_they_are_not() {
        assert!(open(b"PK\x03\x04 and so on").unwrap_err().to_string().contains("not a GGUF file"));
        assert!(open(b"GGUF\x09\0\0\0").unwrap_err().to_string().contains("version = 9"));
    }

    proptest! {
        #[test]
        fn damage_never_panics(places in prop::collection::vec((0usize..240, any::<u8>()), 1..8), cut in 0usize..240) {
            let mut bytes = File::small().bytes();
            for (place, byte) in places {
                let place = place % bytes.len();
                bytes[place] = byte;
            }
            let _ = open(&bytes);
            let _ = open(&bytes[..cut.min(bytes.len())]);
        }
    }
}
