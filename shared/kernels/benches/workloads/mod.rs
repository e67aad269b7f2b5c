//! Fixed work at the shapes of the default models (SmolLM2-135M, MiniLM-L6), on one thread: for `cargo bench` and for the count of
//! instructions.

use e2llm_kernels::attention::{Heads, PAGE, Sequence};
use e2llm_kernels::bidirectional::{self, attend_to_all};
use e2llm_kernels::element::{gelu, rms_norm_row};
use e2llm_kernels::gemm::{Mat, Threads, matmul};
use e2llm_kernels::{Gated, Into, Linear, Lora, Matrix, Pool, Rows, Scratch};
use half::f16;

/// Width of the decoder's rows, of its feed-forward layer, and of the encoder's rows.
const D_MODEL: usize = 576;
const INNER: usize = 1536;
const D_ENC: usize = 384;

/// Work that can be repeated.
pub struct Workload {
    /// What is computed.
    pub name: &'static str,
    /// Multiplications and additions of one run.
    pub flops: u64,
    run: Box<dyn FnMut()>,
}

impl Workload {
    fn new(name: &'static str, flops: usize, run: impl FnMut() + 'static) -> Self {
        Self { name, flops: flops as u64, run: Box::new(run) }
    }

    /// Does it once.
    pub fn run(&mut self) {
        (self.run)();
    }
}

/// All of them.
pub fn all() -> Vec<Workload> {
    vec![
        linear("u4_1_row", u4(INNER, D_MODEL), 1),
        linear("u4_64_rows", u4(INNER, D_MODEL), 64),
        linear("u4_lora_1_row", u4(INNER, D_MODEL).with_lora(lora()).expect("of this shape"), 1),
        linear("i8_1_row", i8(INNER, D_MODEL), 1),
        linear("i16_128_rows", i16(INNER, D_ENC), 128),
        gated("u4_swiglu_16_rows", 16),
        attention("attention_1_row_at_1024", 1, 1023),
        attention("attention_64_rows_at_1024", 64, 960),
        encoder_attention("bidirectional_100_rows", 100),
        gemm("f32_128_rows", 128),
        norm("rms_norm_and_round_64_rows", 64),
        activation("gelu_128_rows", 128),
    ]
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 % 1009) as f32 - 504.0) / 504.0).collect()
}

/// Q4_1 blocks: scale and minimum of about 0.01, then nibbles.
fn u4(rows: usize, cols: usize) -> Linear {
    let header = |i: usize| if i % 2 == 1 { 0x20 } else { 0 };
    let byte = |i: usize| if i % 20 < 4 { header(i % 20) } else { (i * 37 % 251) as u8 };
    let bytes: Vec<u8> = (0..rows * cols / 32 * 20).map(byte).collect();
    plain(Matrix::from_q4_1(rows, cols, &bytes))
}

fn i8(rows: usize, cols: usize) -> Linear {
    plain(Matrix::i8_from_f32(rows, cols, &values(rows * cols)))
}

fn i16(rows: usize, cols: usize) -> Linear {
    plain(Matrix::i16_from_f32(rows, cols, &values(rows * cols)))
}

fn plain(matrix: Result<Matrix, String>) -> Linear {
    Linear::new(matrix.expect("of this shape"), Vec::new()).expect("no bias")
}

fn lora() -> Lora {
    let (rank, a, b) = (16, values(16 * D_MODEL), values(INNER * 16));
    Lora::new(&[(INNER, &a, &b)], rank, D_MODEL).expect("of this shape")
}

fn rows_for(linear: &Linear, count: usize) -> Rows {
    let mut rows = Rows::default();
    rows.shape_for(linear.weight(), count);
    rows.fill(Pool::single(), &values(count * linear.weight().cols()), |from, to| to.copy_from_slice(from));
    rows
}

fn linear(name: &'static str, linear: Linear, count: usize) -> Workload {
    let (rows, cols) = (linear.weight().rows(), linear.weight().cols());
    let (x, mut out, mut scratch) = (rows_for(&linear, count), vec![0.0; count * rows], Scratch::default());
    Workload::new(name, 2 * count * rows * cols, move || {
        linear.forward(Pool::single(), &x, &mut out, Into::Replace, &mut scratch);
    })
}

fn gated(name: &'static str, count: usize) -> Workload {
    let (both, down) = (Gated::new(u4(2 * INNER, D_MODEL)).expect("of this shape"), u4(D_MODEL, INNER));
    let (x, mut out, mut scratch) = (rows_for(both.linear(), count), Rows::default(), Scratch::default());
    Workload::new(name, 4 * count * INNER * D_MODEL, move || {
        both.forward(Pool::single(), &x, &down, &mut out, &mut scratch);
    })
}

fn attention(name: &'static str, count: usize, past: usize) -> Workload {
    let heads = Heads { queries: 9, keys: 3, width: 64, window: None };
    let positions = past + count;
    let page: Vec<f16> = values(heads.page_len()).into_iter().map(f16::from_f32).collect();
    let pages: Vec<Vec<f16>> = vec![page; positions.div_ceil(PAGE)];
    let width = heads.queries * heads.width;
    let (queries, mut out) = (values(count * width), vec![0.0; count * width]);
    // Every row sees about all positions: keys and values once each.
    Workload::new(name, 4 * count * width * positions, move || {
        let sequence = Sequence { rows: count, past, pages: pages.iter().map(Vec::as_slice).collect() };
        heads.attend(Pool::single(), &[sequence], &queries, &mut out);
    })
}

/// MiniLM's twelve heads.
fn encoder_attention(name: &'static str, count: usize) -> Workload {
    let (qkv, mut out) = (values(3 * count * D_ENC), vec![0.0; count * D_ENC]);
    let mut scratch = bidirectional::Scratch::default();
    Workload::new(name, 4 * count * count * D_ENC, move || attend_to_all(&mut out, &qkv, D_ENC, 12, &mut scratch))
}

fn gemm(name: &'static str, count: usize) -> Workload {
    let (a, b, mut out) = (values(count * D_ENC), values(INNER * D_ENC), vec![0.0; count * INNER]);
    Workload::new(name, 2 * count * D_ENC * INNER, move || {
        let (a, b) = (Mat::new(&a, count, D_ENC, D_ENC), Mat::new(&b, INNER, D_ENC, D_ENC));
        matmul(&mut out, INNER, a, b.t(), 1.0, false, Threads::One);
    })
}

fn norm(name: &'static str, count: usize) -> Workload {
    let (linear, x, weight) = (u4(8, D_MODEL), values(count * D_MODEL), values(D_MODEL));
    let mut rows = rows_for(&linear, count);
    Workload::new(name, 4 * count * D_MODEL, move || {
        rows.fill(Pool::single(), &x, |from, to| rms_norm_row(to, from, &weight, 1e-5));
    })
}

fn activation(name: &'static str, count: usize) -> Workload {
    let (x, mut out) = (values(count * INNER), vec![0.0; count * INNER]);
    Workload::new(name, count * INNER, move || gelu(&mut out, &x))
}
