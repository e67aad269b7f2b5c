use super::*;
use crate::names::{BlobName, ContentHash};

fn prompt() -> SoftPrompt {
    let chunk = |text_start, text_end| ChunkMeta { text_start, text_end, tokens: 8, soft_tokens: 2 };
    SoftPrompt {
        fingerprint: "tiny-4x".into(),
        ratio: 4,
        input_key: ContentHash::of(b"input").to_string(),
        text_hash: ContentHash::of(b"text").to_string(),
        text_start: 100,
        text_end: 160,
        d_model: 3,
        d_enc: 2,
        chunks: vec![chunk(100, 130), chunk(130, 160)],
        soft: (0..12).map(|v| f16::from_f32(v as f32 / 7.0)).collect(),
        vectors: (0..4).map(|v| f16::from_f32(-(v as f32))).collect(),
    }
}

/// A file with this header and `data` bytes after it.
fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn a_soft_prompt_survives_storage_bit_for_bit() {
    assert_eq!(decode(&encode(&prompt()).unwrap()), Ok(prompt()));
}

#[test]
fn equal_soft_prompts_have_equal_bytes() {
    assert_eq!(encode(&prompt()), encode(&prompt()));
}

#[test]
fn any_safetensors_reader_reads_a_blob() {
    let bytes = encode(&prompt()).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let soft = tensors.tensor("soft").unwrap();
    assert_eq!((soft.dtype(), soft.shape()), (Dtype::F16, [4, 3].as_slice()));
    assert_eq!(tensors.tensor("chunks").unwrap().shape(), [2, 4]);
    assert_eq!(tensors.tensor("vectors").unwrap().shape(), [2, 2]);
}

#[test]
fn a_header_that_claims_two_to_the_sixty_elements_is_an_error() {
    let huge = 1u64 << 60;
    for (dtype, bytes) in [("F16", huge.checked_mul(2)), ("U8", Some(huge)), ("U64", huge.checked_mul(8))] {
        let end = bytes.unwrap_or(u64::MAX);
        let header = format!(r#"{{"soft":{{"dtype":"{dtype}","shape":[{huge},1],"data_offsets":[0,{end}]}}}}"#);
        let error = decode(&file(&header, 64)).unwrap_err();
        assert!(error.contains("header"), "{error}");
    }
}

#[test]
fn claimed_offsets_near_the_end_of_the_address_space_are_an_error() {
    let each = (1u64 << 61) - 1;
    let tensors: Vec<String> = (0..8)
        .map(|n| {
            format!(r#""t{n}":{{"dtype":"U8","shape":[{each}],"data_offsets":[{},{}]}}"#, n * each, (n + 1) * each)
        })
        .collect();
    let error = decode(&file(&format!("{{{}}}", tensors.join(",")), 64)).unwrap_err();
    assert!(error.contains("bytes of tensors, it has 64"), "{error}");
}

#[test]
fn a_header_longer_than_the_file_or_the_limit_is_an_error() {
    let long = [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat();
    assert!(decode(&long).unwrap_err().contains("its header claims"));
    let beyond = [1000u64.to_le_bytes().as_slice(), b"{}"].concat();
    assert!(decode(&beyond).unwrap_err().contains("ends within its header"));
}

#[test]
fn every_flipped_byte_and_every_truncation_is_noticed_by_the_name() {
    let good = encode(&prompt()).unwrap().to_vec();
    let name = BlobName { input_key: ContentHash::of(b"input"), content_hash: ContentHash::of(&good) };
    assert_eq!(crate::blob::verified(&name, &good), Ok(prompt()));
    for position in 0..good.len() {
        let mut bad = good.clone();
        bad[position] ^= 1;
        assert!(crate::blob::verified(&name, &bad).is_err(), "byte {position}");
        assert!(crate::blob::verified(&name, &good[..position]).is_err(), "cut at {position}");
    }
}

#[test]
fn no_flipped_byte_makes_the_decoder_panic() {
    let good = encode(&prompt()).unwrap().to_vec();
    for position in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[position] ^= 1 << bit;
            // Whether it is an error depends on the bit; that it returns is the point.
            let _ = decode(&bad);
        }
        let _ = decode(&good[..position]);
    }
}

#[test]
fn fields_that_contradict_each_other_are_named() {
    let broken = |change: fn(&mut SoftPrompt)| {
        let mut prompt = prompt();
        change(&mut prompt);
        prompt.check().unwrap_err()
    };
    assert!(broken(|p| p.soft.truncate(11)).contains("soft has 11 values, not [4, 3]"));
    assert!(broken(|p| p.vectors.clear()).contains("vectors has 0 values"));
    assert!(broken(|p| p.chunks.clear()).contains("it has 0 chunks"));
    assert!(broken(|p| p.chunks[1].text_end = 161).contains("chunk 1 covers bytes 130..161"));
    assert!(broken(|p| p.chunks.swap(0, 1)).contains("chunk 1 covers bytes 100..130"));
    assert!(broken(|p| p.d_model = usize::MAX).contains("soft has 12 values"));
    assert!(broken(|p| p.text_hash = "../x".into()).contains("text hash"));
}
