//! The encoder side alone.

use candle_core::{Device, Tensor};
use e2llm_model::{AdapterConfig, AdapterForm, Bridge};
use e2llm_train::{AdamWConfig, EncoderSession, Features, LocalSession, initial_adapter};

use crate::models::models;

const CHUNKS: [&str; 5] = ["abc de fgh.", "x yz", "abc de fgh.", "lorem ipsum dolor", "q"];

fn session(ratio: usize) -> LocalSession {
    session_beside(ratio, None)
}

fn session_beside(ratio: usize, table: Option<Bridge>) -> LocalSession {
    let models = models();
    let config = AdapterConfig {
        form: AdapterForm::GatedSegments,
        ratio,
        d_enc: 32,
        d_model: 32,
        value_hidden: 16,
        gate_hidden: 4,
        segment_hidden: 8,
        embedding_rms: 0.5,
        gate_heads: Some(4),
    };
    let adapter = initial_adapter(&config, 3).unwrap();
    LocalSession::new(models.encoder, models.pieces, config, adapter, AdamWConfig::default(), table).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Soft tokens before and after a step.
fn trained(session: &mut LocalSession) -> Vec<Vec<f32>> {
    let mut seen = Vec::new();
    for _ in 0..3 {
        let soft = session.encode(&CHUNKS).unwrap();
        session.backward(&soft.values.sin().unwrap()).unwrap();
        session.step(1.0).unwrap();
        seen.push(values(&soft.values));
    }
    seen
}

#[test]
fn states_that_are_kept_give_the_same_bits() {
    let expected = trained(&mut session(2));
    // None, one chunk's, and all.
    for bytes in [0, 3_000, 1 << 20] {
        let mut session = session(2);
        session.cache_states(bytes);
        assert!(trained(&mut session) == expected, "with {bytes} bytes");
    }
}

#[test]
fn a_change_of_ratio_changes_the_number_of_soft_tokens_and_keeps_training() {
    let mut session = session(4);
    trained(&mut session);
    let before = session.encode(&CHUNKS).unwrap().counts;
    session.set_ratio(2).unwrap();
    assert_eq!(session.adapter().config().ratio, 2);
    let after = session.encode(&CHUNKS).unwrap();
    assert!(
        before.iter().zip(&after.counts).all(|(before, after)| after >= before) && before != after.counts,
        "{before:?} {after:?}"
    );
    let rows = after.counts.iter().sum::<usize>();
    session.backward(&Tensor::ones((rows, 32), candle_core::DType::F32, &Device::Cpu).unwrap()).unwrap();
    assert!(session.step(1.0).unwrap() > 0.0);
}

/// Where the states come in the soft tokens are those of the table, and learn from the states from then on.
#[test]
fn states_come_in_beside_the_table_without_changing_a_soft_token() {
    let wave = |shape: (usize, usize)| {
        let values: Vec<f32> = (0..shape.0 * shape.1).map(|i| (i as f32 * 0.7).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let gates = wave((96, 1)).squeeze(1).unwrap();
    let mut session = session_beside(2, Some(Bridge { values: wave((96, 32)), gates, without_states: true }));
    trained(&mut session);
    let alone = values(&session.encode(&CHUNKS).unwrap().values);
    session.set_features(Features::Bridge).unwrap();
    let together = values(&session.encode(&CHUNKS).unwrap().values);
    let apart = alone.iter().zip(&together).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-5, "the states changed a soft token by {apart}");
    trained(&mut session);
    let skip = &session.parameters().0["value.skip.weight"];
    assert!(skip.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() > 0.0, "the states are not listened to");
}

#[test]
fn nothing_to_encode_is_an_error() {
    assert!(session(2).encode(&[]).unwrap_err().to_string().contains("at least one"));
    assert!(session(2).backward(&Tensor::zeros((1, 32), candle_core::DType::F32, &Device::Cpu).unwrap()).is_err());
}
