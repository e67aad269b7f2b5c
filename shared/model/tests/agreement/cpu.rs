//! The CPU forms against the tensor forms of the same models, and against transformers.

use candle_core::{DType, Device, Tensor};
use e2llm_model::cpu::{Cache, CpuAdapter, CpuDecoder, CpuEncoder, Step, Workspace};
use e2llm_model::ops::log_likelihoods;
use e2llm_model::{Adapter, AdapterConfig, AdapterForm, ContentRows, Decoder, Packing, TextEncoder, TokenStates};

use crate::golden::{cases, floats, ids, read, text};
use crate::{assert_close, distance, gguf, model};

/// What 8-bit activations cost; llama.cpp's are the same.
const QUANTISED: f32 = 0.6;

fn quantised() -> CpuDecoder {
    CpuDecoder::new(&Decoder::from_gguf(&gguf(), &Device::Cpu).unwrap()).unwrap()
}

/// Final states of all rows, read in steps of these lengths.
fn read_in_steps(decoder: &CpuDecoder, input: &[f32], steps: &[usize]) -> Vec<f32> {
    let d = decoder.config().d_model;
    let (mut cache, mut work) = (Cache::new(decoder.config(), input.len() / d).unwrap(), Workspace::default());
    let (mut states, mut rest) = (Vec::new(), input);
    for rows in steps {
        let (own, later) = rest.split_at(rows * d);
        let step = Step { input: own, cache: &mut cache, wanted: *rows };
        states.extend(decoder.read(&mut [step], &mut work).unwrap());
        rest = later;
    }
    states
}

#[test]
fn logits_and_likelihoods_of_quantised_weights_are_those_of_transformers() {
    let (decoder, mut work) = (quantised(), Workspace::default());
    let mut apart = Vec::new();
    for prompt in cases(&read("decoder.json")["prompts"]) {
        let sequence = ids(&prompt["ids"]);
        let states = read_in_steps(&decoder, &decoder.embed(&sequence).unwrap(), &[sequence.len()]);
        let logits = decoder.logits(&states, &mut work);
        let vocabulary = logits.len() / sequence.len();
        let last = &logits[logits.len() - vocabulary..];
        let next = &prompt["next"];
        let ours: Vec<f32> = ids(&next["ids"]).iter().map(|id| last[*id as usize]).collect();
        assert_close(text(prompt, "name"), &ours, &floats(&next["logits"]), QUANTISED);
        let expected = floats(&prompt["log_likelihood"]);
        if !expected.is_empty() {
            let shown =
                Tensor::from_slice(&logits[..expected.len() * vocabulary], (expected.len(), vocabulary), &Device::Cpu);
            let ours = log_likelihoods(&shown.unwrap(), &sequence[1..]).unwrap();
            apart.extend(ours.iter().zip(&expected).map(|(a, b)| f64::from(a - b)));
        }
    }
    // Rounding makes single tokens likelier or less likely, but not on average.
    let mean = apart.iter().sum::<f64>() / apart.len() as f64;
    assert!(mean.abs() < 0.02, "log-likelihoods are off by {mean} nats on average");
}

#[test]
fn dense_weights_are_nearly_those_of_the_tensor_form() {
    let dense = Decoder::from_gguf(&gguf(), &Device::Cpu).unwrap().into_dense(DType::F32).unwrap();
    let decoder = CpuDecoder::new(&dense).unwrap();
    let prompt = cases(&read("decoder.json")["prompts"]).next().unwrap().clone();
    let sequence = ids(&prompt["ids"]);
    let input = dense.embed(&sequence).unwrap();
    let expected = dense.hidden(&input, &Packing::sequences(&[sequence.len()])).unwrap();
    let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let ours = read_in_steps(&decoder, &input.flatten_all().unwrap().to_vec1::<f32>().unwrap(), &[sequence.len()]);
    let size = expected.iter().map(|x| x.abs()).fold(0.0, f32::max);
    assert!(distance(&ours, &expected) < 0.02 * size, "off by {} of {size}", distance(&ours, &expected));
}

#[test]
fn a_sequence_is_read_the_same_in_any_steps_and_any_company() {
    let decoder = quantised();
    let d = decoder.config().d_model;
    let rows = |count: usize, seed: u32| {
        decoder.embed(&(0..count as u32).map(|i| (i * 37 + seed) % 40_000).collect::<Vec<_>>()).unwrap()
    };
    let (long, short) = (rows(150, 5), rows(9, 77));
    let whole = read_in_steps(&decoder, &long, &[150]);
    assert_eq!(whole, read_in_steps(&decoder, &long, &[1, 63, 1, 70, 15]));

    let mut work = Workspace::default();
    let (mut a, mut b) = (Cache::new(decoder.config(), 200).unwrap(), Cache::new(decoder.config(), 200).unwrap());
    let (first, rest) = long.split_at(100 * d);
    decoder.read(&mut [Step { input: first, cache: &mut a, wanted: 0 }], &mut work).unwrap();
    let mut fork = a.clone();
    let mut together =
        [Step { input: &short, cache: &mut b, wanted: 0 }, Step { input: rest, cache: &mut a, wanted: 50 }];
    assert_eq!(decoder.read(&mut together, &mut work).unwrap(), &whole[100 * d..]);
    // The fork shares the first pages, and what was written after it is not its own.
    let step = Step { input: rest, cache: &mut fork, wanted: 50 };
    assert_eq!(decoder.read(&mut [step], &mut work).unwrap(), &whole[100 * d..]);
}

#[test]
fn a_full_cache_is_refused_before_anything_is_read() {
    let decoder = quantised();
    let mut cache = Cache::new(decoder.config(), 3).unwrap();
    let input = decoder.embed(&[1, 2, 3, 4]).unwrap();
    let step = Step { input: &input, cache: &mut cache, wanted: 1 };
    let error = decoder.read(&mut [step], &mut Workspace::default()).unwrap_err();
    assert!(error.to_string().contains('4'), "{error}");
    assert!(cache.is_empty());
}

#[test]
fn the_encoder_s_states_are_nearly_those_of_the_tensor_form_whatever_is_encoded_beside() {
    let files = model("minilm");
    let config = std::fs::read_to_string(files.config.unwrap()).unwrap();
    let encoder = TextEncoder::load(&files.weights[0], &config, &Device::Cpu).unwrap();
    let cpu = CpuEncoder::new(&encoder).unwrap();
    let sequences: Vec<Vec<u32>> = [3usize, 66, 128, 200, 17]
        .iter()
        .map(|length| (0..*length as u32).map(|i| 1_000 + (i * 7919 + *length as u32) % 20_000).collect())
        .collect();
    let states = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let expected = states(encoder.states(&sequences).unwrap().last);
    let ours = states(cpu.states(&sequences).unwrap().last);
    let error = ours.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
    let size = expected.iter().map(|x| x * x).sum::<f32>();
    assert!((error / size).sqrt() < 4e-3, "states are off by {} of their size", (error / size).sqrt());
    let alone: Vec<f32> =
        sequences.iter().flat_map(|s| states(cpu.states(std::slice::from_ref(s)).unwrap().last)).collect();
    assert_eq!(ours, alone);
}

#[test]
fn the_adapter_s_soft_tokens_are_nearly_those_of_the_tensor_form_whatever_is_encoded_beside() {
    let wave = |shape: &[usize], seed: usize| {
        let values = (0..shape.iter().product()).map(|i: usize| ((i * 7919 + seed * 31) as f32 * 0.37).sin() * 0.2);
        Tensor::from_vec(values.collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
    };
    let (lengths, d_enc) = ([2usize, 3, 66, 130, 200, 17], 48);
    let total = lengths.iter().sum::<usize>();
    for (gate_heads, ratio) in [(None, 4), (Some(4), 3)] {
        let config = AdapterConfig {
            form: AdapterForm::GatedSegments,
            ratio,
            d_enc,
            d_model: 64,
            value_hidden: 96,
            gate_hidden: 16,
            segment_hidden: 80,
            embedding_rms: 0.13,
            gate_heads,
        };
        let parameters = config.parameters().into_iter().enumerate();
        let parameters = parameters.map(|(seed, (name, shape))| (name.to_owned(), wave(&shape, seed))).collect();
        let adapter = Adapter::new(config, parameters, &Device::Cpu).unwrap();
        let cpu = CpuAdapter::new(&adapter).unwrap().unwrap();
        let states = |lengths: &[usize], rows: std::ops::Range<usize>| {
            let of = |seed| wave(&[total, d_enc], seed).narrow(0, rows.start, rows.len()).unwrap();
            TokenStates { first: of(100), last: of(200), lengths: lengths.to_vec() }
        };
        let whole = states(&lengths, 0..total);
        let content = ContentRows::inside_specials(&lengths);
        let features = Adapter::features(&whole, &content).unwrap();
        let expected =
            adapter.soft_tokens(&features, &content.pieces).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let ours = cpu.soft_tokens(&whole).unwrap();
        assert_eq!(ours.len(), expected.len());
        let error = ours.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        let size = expected.iter().map(|x| x * x).sum::<f32>();
        assert!((error / size).sqrt() < 4e-3, "soft tokens are off by {} of their size", (error / size).sqrt());
        let mut start = 0;
        let mut alone = Vec::new();
        for length in lengths {
            alone.extend(cpu.soft_tokens(&states(&[length], start..start + length)).unwrap());
            start += length;
        }
        assert_eq!(ours, alone);
    }
}
