//! The same guard for safetensors.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::tensor::TensorInfo;
use serde::Deserialize;

use crate::error::{ModelError, Result};

const LENGTH_BYTES: u64 = 8;
/// The safetensors library's own limit.
const MAX_HEADER: u64 = 100_000_000;

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    _metadata: Option<HashMap<String, String>>,
    #[serde(flatten)]
    tensors: HashMap<String, TensorInfo>,
}

/// Checks that the header of a safetensors file describes exactly the bytes that the file has: its length and every offset
/// lie within the file, tensors follow one another without gap or overlap, and shape × element size is each one's length.
///
/// Reads the header only.
///
/// # Errors
/// [`ModelError::Io`] if the file cannot be read, [`ModelError::BadWeights`] naming tensor, field and value.
pub fn check_safetensors(path: &Path) -> Result<()> {
    let mut file = File::open(path).map_err(ModelError::io(path))?;
    let length = file.metadata().map_err(ModelError::io(path))?.len();
    let bad = |problem: String| ModelError::bad_weights(path, problem);
    if length < LENGTH_BYTES {
        return Err(bad(format!("the file has {length} bytes: too short for safetensors")));
    }
    let mut prefix = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut prefix).map_err(ModelError::io(path))?;
    let header_length = u64::from_le_bytes(prefix);
    if header_length > MAX_HEADER.min(length - LENGTH_BYTES) {
        return Err(bad(format!("header length = {header_length}, but the file has {length} bytes")));
    }
    let mut header = vec![0; header_length as usize];
    file.read_exact(&mut header).map_err(ModelError::io(path))?;
    let header: Header = serde_json::from_slice(&header).map_err(|e| bad(format!("header: {e}")))?;
    check_tensors(&header.tensors, length - LENGTH_BYTES - header_length).map_err(bad)
}

fn check_tensors(tensors: &HashMap<String, TensorInfo>, data: u64) -> Result<(), String> {
    let mut in_order: Vec<_> = tensors.iter().collect();
    in_order.sort_by_key(|(_, info)| info.data_offsets);
    let mut expected = 0;
    for (name, info) in in_order {
        let (start, end) = info.data_offsets;
        if start != expected || end < start || end as u64 > data {
            return Err(format!(
                "tensor {name:?}: data_offsets = [{start}, {end}], expected to begin at {expected} within {data} bytes"
            ));
        }
        let elements = info.shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        if bits != (end - start).checked_mul(8) {
            let bytes = end - start;
            return Err(format!(
                "tensor {name:?}: {:?} of shape {:?} does not take {bytes} bytes",
                info.dtype, info.shape
            ));
        }
        expected = end;
    }
    match expected as u64 == data {
        true => Ok(()),
        false => {
            Err(format!("tensors end at {expected}, but the file has {data} bytes of data: it is truncated or damaged"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn check(header: &str, length: u64, data: usize) -> Result<(), String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&length.to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file.write_all(&vec![0; data]).unwrap();
        check_safetensors(file.path()).map_err(|e| e.to_string())
    }

    fn tensor(shape: &str, offsets: &str, data: usize) -> Result<(), String> {
        let header =
            format!(r#"{{"__metadata__":{{"a":"b"}},"w":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
        check(&header, header.len() as u64, data)
    }

    #[test]
    fn a_header_that_describes_the_data_passes() {
        tensor("[2,3]", "[0,24]", 24).unwrap();
    }

    #[test]
    fn a_header_length_beyond_the_file_is_refused() {
        assert!(check("{}", 1 << 60, 0).unwrap_err().contains("header length = 1152921504606846976"));
        assert!(check("{}", 3, 0).unwrap_err().contains("header length = 3"));
    }

    #[test]
    fn claims_that_do_not_fit_are_refused_by_name() {
        for (shape, offsets) in [
            ("[1152921504606846976]", "[0,24]"),
            ("[4294967296,4294967296,4]", "[0,24]"),
            ("[2,3]", "[0,1152921504606846976]"),
            ("[2,3]", "[24,0]"),
            ("[2,3]", "[8,32]"),
            ("[2,2]", "[0,24]"),
        ] {
            let error = tensor(shape, offsets, 24).unwrap_err();
            assert!(error.contains("tensor \"w\""), "{shape} {offsets}: {error}");
        }
    }

    #[test]
    fn missing_or_surplus_data_is_refused() {
        assert!(tensor("[2,3]", "[0,24]", 23).is_err());
        assert!(tensor("[2,3]", "[0,24]", 25).unwrap_err().contains("truncated or damaged"));
    }

    #[test]
    fn a_header_that_is_no_json_is_refused() {
        assert!(check("{oops", 5, 0).unwrap_err().contains("header"));
    }
}
