use e2llm_kernels::{Into, Linear, Pool, Rows, Scratch};

/// Products of one thread, with its buffers: threads take whole chunks, not parts of products.
#[derive(Default)]
pub(super) struct Products {
    rows: Rows,
    scratch: Scratch,
}

impl Products {
    /// The layer's outputs for each of `count` rows of `from` as `prepare` makes them, put into `out` or added to it.
    pub(super) fn apply(
        &mut self,
        linear: &Linear,
        (from, count): (&[f32], usize),
        prepare: impl Fn(&[f32], &mut [f32]) + Sync,
        out: &mut [f32],
        into: Into,
    ) {
        self.rows.shape_for(linear.weight(), count);
        self.rows.fill(Pool::single(), from, prepare);
        linear.forward(Pool::single(), &self.rows, out, into, &mut self.scratch);
    }
}

/// Rows as they are.
pub(super) fn same(from: &[f32], to: &mut [f32]) {
    to.copy_from_slice(from);
}

/// Tokens that one thread takes at once: enough for the products, few enough for its cache.
const GROUP_TOKENS: usize = 256;

/// Consecutive sequences of about [`GROUP_TOKENS`] tokens together.
pub(super) fn groups_of(lengths: &[usize]) -> Vec<&[usize]> {
    let mut groups = Vec::new();
    let mut start = 0;
    let mut tokens = 0;
    for (index, length) in lengths.iter().enumerate() {
        if tokens > 0 && tokens + length > GROUP_TOKENS {
            groups.push(&lengths[start..index]);
            (start, tokens) = (index, 0);
        }
        tokens += length;
    }
    groups.push(&lengths[start..]);
    groups
}
