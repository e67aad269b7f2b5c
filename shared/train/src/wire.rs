//! How tensors travel between the two sides: f32 values, row-major, little endian.

use candle_core::{Device, Tensor};

use crate::error::{Result, TrainError};

/// The bytes of a tensor.
pub fn to_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// A tensor of `[rows, width]` from its bytes.
///
/// # Errors
/// When there are more or fewer.
pub fn from_bytes(bytes: &[u8], (rows, width): (usize, usize)) -> Result<Tensor> {
    let (values, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() || Some(values.len()) != rows.checked_mul(width) {
        let problem = format!("{} bytes came for an f32 tensor of [{rows}, {width}]", bytes.len());
        return Err(TrainError::Invalid(problem));
    }
    let values: Vec<f32> = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
    Ok(Tensor::from_vec(values, (rows, width), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_comes_out_bit_for_bit_or_not_at_all() {
        let tensor = Tensor::new(&[[1.5f32, -0.0, f32::MIN_POSITIVE], [7.0, 8.0, 9.0]], &Device::Cpu).unwrap();
        let bytes = to_bytes(&tensor).unwrap();
        let bits = |tensor: &Tensor| -> Vec<u32> {
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|value| value.to_bits()).collect()
        };
        assert_eq!(bits(&from_bytes(&bytes, (2, 3)).unwrap()), bits(&tensor));
        assert!(from_bytes(&bytes[1..], (2, 3)).unwrap_err().to_string().contains("23 bytes"));
        assert!(from_bytes(&bytes, (3, 3)).is_err());
    }
}
