//! Selective expansion: which chunks return as raw text among the soft tokens of the others.
//!
//! Exact strings do not survive compression; the raw text of the few chunks nearest to the question does (METHOD: LCLM,
//! REFRAG). For a question those are the chunks nearest by the encoder's own vectors; for a summary, the opening and the
//! most central chunks, each unlike those already taken.

/// What is known of a chunk before its text is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate<'a> {
    /// Unit vector `[d_enc]`.
    pub vector: &'a [f32],
    /// Soft tokens it costs compressed.
    pub soft_tokens: usize,
}

/// Decoder positions of a chunk's raw text, by its index; asked only of chunks about to be expanded. `None`: its text is
/// not to be had, so it stays compressed.
pub type TextCost<'a> = &'a mut dyn FnMut(usize) -> Option<usize>;

/// Limits of one prompt window, in decoder positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Soft tokens and raw text together.
    pub positions: usize,
    /// Chunks as raw text.
    pub expand_chunks: usize,
    /// Positions of raw text.
    pub expand_positions: usize,
}

/// How a chunk enters the prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Form {
    /// As its soft tokens.
    Soft,
    /// As raw text; with the score that chose it.
    Text(f32),
    /// Not at all: it did not fit the budget.
    LeftOut,
}

/// Share of a summary candidate's score that likeness to chunks already taken costs.
const DIVERSITY: f32 = 0.5;
/// Most chunks that are chosen to be central and mutually different.
const DIVERSE_TEXTS: usize = 128;
/// Chunks that do not fit, after which the positions of retrieved text count as used up.
const MISSES: usize = 4;

/// For a question: raw text of the nearest chunks, soft tokens of the others, nearest first when not all fit. Chunks that
/// `comes_first` names by their index go before all others.
pub fn for_question(
    chunks: &[Candidate<'_>],
    question: &[f32],
    comes_first: &dyn Fn(usize) -> bool,
    budget: Budget,
    cost: TextCost<'_>,
) -> Vec<Form> {
    let scores: Vec<f32> = chunks.iter().map(|c| dot(c.vector, question)).collect();
    let mut order = descending(&scores);
    order.sort_by_key(|index| !comes_first(*index));
    let mut forms = vec![Form::LeftOut; chunks.len()];
    let left = expand(&order, &scores, budget, cost, &mut forms);
    fill_soft(chunks, &order, left, &mut forms);
    forms
}

/// For a summary: raw text of the opening and of central, mutually different chunks; soft tokens of the others in
/// document order as far as they fit.
pub fn for_summary(chunks: &[Candidate<'_>], budget: Budget, cost: TextCost<'_>) -> Vec<Form> {
    let mut forms = vec![Form::LeftOut; chunks.len()];
    let centrality = centrality(chunks);
    let order = diverse_order(chunks, &centrality, budget.expand_chunks);
    let left = expand(&order, &centrality, budget, cost, &mut forms);
    let reading: Vec<usize> = (0..chunks.len()).collect();
    fill_soft(chunks, &reading, left, &mut forms);
    forms
}

/// How near each chunk is to the mean of all.
fn centrality(chunks: &[Candidate<'_>]) -> Vec<f32> {
    let Some(width) = chunks.first().map(|c| c.vector.len()) else { return Vec::new() };
    let mut mean = vec![0.0; width];
    for chunk in chunks {
        mean.iter_mut().zip(chunk.vector).for_each(|(m, v)| *m += v);
    }
    let mean = crate::adapter::unit(mean);
    chunks.iter().map(|c| dot(c.vector, &mean)).collect()
}

/// Raw text alone, of the chunks nearest to `question`, or of central and mutually different ones without one, while it
/// fits: what retrieval without soft tokens would read.
pub fn retrieved(
    chunks: &[Candidate<'_>],
    question: Option<&[f32]>,
    positions: usize,
    cost: TextCost<'_>,
) -> Vec<Form> {
    let mut forms = vec![Form::LeftOut; chunks.len()];
    let (order, scores) = match question {
        Some(question) => {
            let scores: Vec<f32> = chunks.iter().map(|c| dot(c.vector, question)).collect();
            (descending(&scores), scores)
        }
        None => {
            let centrality = centrality(chunks);
            // More than fit are not worth ordering: it takes time quadratic in their number.
            (diverse_order(chunks, &centrality, DIVERSE_TEXTS), centrality)
        }
    };
    let (mut left, mut misses) = (positions, 0);
    for index in order {
        match cost(index).and_then(|positions| left.checked_sub(positions)) {
            Some(rest) => (forms[index], left) = (Form::Text(scores[index]), rest),
            None => misses += 1,
        }
        if misses == MISSES {
            break;
        }
    }
    forms
}

/// Raw text alone of `count` chunks from the beginning, up to the first that does not fit.
pub fn opening(count: usize, positions: usize, cost: TextCost<'_>) -> Vec<Form> {
    unbroken(0..count, count, positions, cost)
}

/// Raw text alone of `count` chunks from both ends, alternately: what does not fit is left out of the middle.
pub fn ends(count: usize, positions: usize, cost: TextCost<'_>) -> Vec<Form> {
    let from_ends = (0..count).map(|i| if i % 2 == 0 { i / 2 } else { count - 1 - i / 2 });
    unbroken(from_ends, count, positions, cost)
}

/// Raw text of the chunks of `order` up to the first that does not fit.
fn unbroken(order: impl Iterator<Item = usize>, count: usize, positions: usize, cost: TextCost<'_>) -> Vec<Form> {
    let mut forms = vec![Form::LeftOut; count];
    let mut left = positions;
    for index in order {
        let Some(rest) = cost(index).and_then(|positions| left.checked_sub(positions)) else { break };
        left = rest;
        forms[index] = Form::Text(0.0);
    }
    forms
}

/// The opening, then greedily the most central chunk that is least like those taken (maximal marginal relevance).
fn diverse_order(chunks: &[Candidate<'_>], centrality: &[f32], count: usize) -> Vec<usize> {
    if chunks.is_empty() {
        return Vec::new();
    }
    let mut taken = vec![0];
    let mut likeness: Vec<f32> = chunks.iter().map(|c| dot(c.vector, chunks[0].vector)).collect();
    while taken.len() < count.min(chunks.len()) {
        let gain = |i: &usize| centrality[*i] - DIVERSITY * likeness[*i];
        let open = (0..chunks.len()).filter(|i| !taken.contains(i));
        let Some(best) = open.max_by(|a, b| gain(a).total_cmp(&gain(b)).then(b.cmp(a))) else { break };
        taken.push(best);
        for (like, chunk) in likeness.iter_mut().zip(chunks) {
            *like = like.max(dot(chunk.vector, chunks[best].vector));
        }
    }
    taken
}

/// Marks chunks of `order` as raw text while they fit; returns the positions left.
fn expand(order: &[usize], scores: &[f32], budget: Budget, cost: TextCost<'_>, forms: &mut [Form]) -> usize {
    let mut text = budget.expand_positions.min(budget.positions);
    let mut left = budget.positions;
    for &index in order.iter().take(budget.expand_chunks) {
        if let Some(positions) = cost(index).filter(|positions| *positions <= text) {
            forms[index] = Form::Text(scores[index]);
            text -= positions;
            left -= positions;
        }
    }
    left
}

/// Gives soft tokens to the chunks of `order` that have no form yet while they fit.
fn fill_soft(chunks: &[Candidate<'_>], order: &[usize], mut left: usize, forms: &mut [Form]) {
    for &index in order {
        if forms[index] == Form::LeftOut && chunks[index].soft_tokens <= left {
            forms[index] = Form::Soft;
            left -= chunks[index].soft_tokens;
        }
    }
}

/// Indices by falling score; equal scores in document order.
fn descending(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    e2llm_kernels::element::dot(a, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTORS: [[f32; 2]; 4] = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]];

    fn candidates() -> Vec<Candidate<'static>> {
        VECTORS.iter().map(|v| Candidate { vector: v, soft_tokens: 4 }).collect()
    }

    fn budget(positions: usize, expand_chunks: usize, expand_positions: usize) -> Budget {
        Budget { positions, expand_chunks, expand_positions }
    }

    #[test]
    fn the_nearest_chunks_become_text_and_the_rest_stays_soft() {
        let forms = for_question(&candidates(), &[0.0, 1.0], &|_| false, budget(100, 2, 100), &mut |_| Some(16));
        assert_eq!(forms, [Form::Soft, Form::Text(1.0), Form::Text(0.8), Form::Soft]);
    }

    #[test]
    fn named_chunks_become_text_before_nearer_ones() {
        let forms = for_question(&candidates(), &[0.0, 1.0], &|i| i == 0, budget(100, 2, 100), &mut |_| Some(16));
        assert_eq!(forms, [Form::Text(0.0), Form::Text(1.0), Form::Soft, Form::Soft]);
    }

    #[test]
    fn a_tight_budget_leaves_out_the_farthest_chunk() {
        let forms = for_question(&candidates(), &[0.0, 1.0], &|_| false, budget(24, 1, 16), &mut |_| Some(16));
        assert_eq!(forms, [Form::LeftOut, Form::Text(1.0), Form::Soft, Form::Soft]);
    }

    #[test]
    fn expansion_can_be_switched_off() {
        let forms = for_question(&candidates(), &[0.0, 1.0], &|_| false, budget(100, 0, 100), &mut |_| Some(16));
        assert_eq!(forms, [Form::Soft; 4]);
    }

    #[test]
    fn a_summary_takes_the_opening_and_then_something_different() {
        let forms = for_summary(&candidates(), budget(100, 2, 100), &mut |_| Some(16));
        assert!(matches!(forms[0], Form::Text(_)), "{forms:?}");
        assert!(matches!(forms[1], Form::Text(_)), "{forms:?}");
        assert_eq!(forms[3], Form::Soft, "the chunk most like the opening");
    }

    #[test]
    fn a_chunk_without_text_stays_compressed() {
        let forms =
            for_question(&candidates(), &[0.0, 1.0], &|_| false, budget(100, 2, 100), &mut |i| (i != 1).then_some(16));
        assert_eq!(forms, [Form::Soft, Form::Soft, Form::Text(0.8), Form::Soft]);
    }

    #[test]
    fn retrieval_takes_the_nearest_chunks_and_nothing_else() {
        let forms = retrieved(&candidates(), Some(&[0.0, 1.0]), 40, &mut |_| Some(16));
        assert_eq!(forms, [Form::LeftOut, Form::Text(1.0), Form::Text(0.8), Form::LeftOut]);
        let central = retrieved(&candidates(), None, 20, &mut |_| Some(16));
        assert!(matches!(central[0], Form::Text(_)) && central[1..].iter().all(|form| *form == Form::LeftOut));
        assert_eq!(retrieved(&[], None, 20, &mut |_| Some(16)), []);
    }

    #[test]
    fn text_from_the_beginning_or_from_both_ends_has_one_gap_at_most() {
        let (text, out) = (Form::Text(0.0), Form::LeftOut);
        assert_eq!(opening(4, 40, &mut |i| Some(if i == 2 { 20 } else { 16 })), [text, text, out, out]);
        assert_eq!(ends(5, 64, &mut |_| Some(16)), [text, text, out, text, text]);
        assert_eq!(ends(5, 50, &mut |_| Some(16)), [text, text, out, out, text]);
        assert_eq!(ends(3, 100, &mut |_| Some(16)), [text; 3]);
        assert_eq!(ends(0, 100, &mut |_| Some(16)), []);
    }

    #[test]
    fn no_budget_is_ever_exceeded() {
        for positions in 0..80 {
            let forms =
                for_question(&candidates(), &[0.6, 0.8], &|_| false, budget(positions, 3, 40), &mut |_| Some(16));
            let cost = |(form, chunk): (&Form, Candidate<'_>)| match form {
                Form::Soft => chunk.soft_tokens,
                Form::Text(_) => 16,
                Form::LeftOut => 0,
            };
            assert!(forms.iter().zip(candidates()).map(cost).sum::<usize>() <= positions);
        }
    }
}
