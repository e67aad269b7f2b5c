//! Selective expansion: which chunks return as raw text behind the soft tokens of all.
//!
//! Exact strings do not survive compression; the raw text of the few chunks nearest to the question does (METHOD: LCLM,
//! REFRAG). For a question those are the chunks nearest by the encoder's own vectors and by the question's words; for a
//! summary, the opening and the most central chunks, each unlike those already taken.
//!
//! The text stands behind the soft tokens, not in their place: what stands before it is the same for every question to
//! a document that fits, so that the decoder reads it once.

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

/// Whether something holds for a chunk, by its index.
pub type ChunkTest<'a> = &'a dyn Fn(usize) -> bool;

/// What is known of the chunks beside their scores for a question.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// Chunks that go before all others.
    pub comes_first: ChunkTest<'a>,
    /// Chunks with enough of the question's words ([`crate::lexical::standing_out`]).
    pub stands_out: ChunkTest<'a>,
    /// Chunks whose last sentence goes on in the next chunk.
    pub goes_on: ChunkTest<'a>,
}

impl Known<'_> {
    /// The chunks to be read as raw text, best first: the best one, and behind it only those that stand out, for others would be
    /// more to mistake for the answer. A sentence that was cut brings the chunk with its other part along.
    fn choose(&self, scores: &[f32]) -> Vec<usize> {
        let order = descending(scores);
        let (first, others): (Vec<usize>, Vec<usize>) = order.into_iter().partition(|index| (self.comes_first)(*index));
        let ranked = others.into_iter().enumerate();
        let chosen = ranked.filter(|(rank, index)| *rank == 0 || (self.stands_out)(*index)).map(|(_, index)| index);
        let chosen: Vec<usize> = first.into_iter().chain(chosen).collect();
        with_other_parts(&chosen, scores.len(), self.goes_on)
    }
}

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

/// How a chunk enters the prompt; neither way: it did not fit the budget.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Form {
    /// As its soft tokens.
    pub soft: bool,
    /// As raw text behind them; the score that chose it.
    pub text: Option<f32>,
}

/// Raw text gives way to the soft tokens of all chunks as long as it keeps so much of the positions, as a divisor.
const LEAST_TEXT: usize = 4;
/// Share of a summary candidate's score that likeness to chunks already taken costs.
const DIVERSITY: f32 = 0.5;
/// Most chunks that are chosen to be central and mutually different.
const DIVERSE_TEXTS: usize = 128;
/// Chunks that do not fit, after which the positions of retrieved text count as used up.
const MISSES: usize = 4;

/// How much each chunk has to do with a question: the cosine of their vectors, and beside it the share of the question's words
/// that it holds ([`crate::lexical::scores`]; empty where no text is to be had).
pub fn relevance(chunks: &[Candidate<'_>], question: &[f32], lexical: &[f32]) -> Vec<f32> {
    let words = lexical.iter().copied().chain(std::iter::repeat(0.0));
    chunks.iter().zip(words).map(|(chunk, words)| dot(chunk.vector, question) + words).collect()
}

/// For a question: raw text of the chunks of highest score, and soft tokens of all, those of highest score first when not
/// all fit; which become text, [`Known`] says, too.
pub fn for_question(
    chunks: &[Candidate<'_>],
    scores: &[f32],
    known: Known<'_>,
    budget: Budget,
    cost: TextCost<'_>,
) -> Vec<Form> {
    let mut order = descending(scores);
    order.sort_by_key(|index| !(known.comes_first)(*index));
    let mut forms = vec![Form::default(); chunks.len()];
    let whole = known.choose(scores);
    let beside = beside_all_soft(chunks, budget);
    let is_enough = beside.expand_positions >= (budget.positions / LEAST_TEXT).min(budget.expand_positions);
    let mut left = budget.positions;
    if is_enough {
        left = expand(&whole, scores, beside, cost, &mut forms);
    }
    if left == budget.positions {
        // Not all soft tokens will fit: which do depends on the question, and little of an earlier prompt is reused.
        left = expand(&whole, scores, budget, cost, &mut forms);
    }
    fill_soft(chunks, &order, left, &mut forms);
    forms
}

/// The order in which every chunk is followed by those that its first and last sentence have their other parts in.
fn with_other_parts(order: &[usize], count: usize, goes_on: ChunkTest<'_>) -> Vec<usize> {
    let mut is_taken = vec![false; count];
    let mut whole = Vec::with_capacity(order.len());
    for &index in order {
        let before = index.checked_sub(1).filter(|before| goes_on(*before));
        let after = Some(index + 1).filter(|after| *after < count && goes_on(index));
        for index in [Some(index), after, before].into_iter().flatten() {
            if !std::mem::replace(&mut is_taken[index], true) {
                whole.push(index);
            }
        }
    }
    whole
}

/// For a summary: raw text of the opening and of central, mutually different chunks; soft tokens of all in document order. Where
/// these do not all fit, those of the chunks that raw text would have gone on with come first.
pub fn for_summary(chunks: &[Candidate<'_>], budget: Budget, cost: TextCost<'_>) -> Vec<Form> {
    let mut forms = vec![Form::default(); chunks.len()];
    let centrality = centrality(chunks);
    let soft: usize = chunks.iter().map(|chunk| chunk.soft_tokens).sum();
    let fit = soft <= budget.positions;
    let count = if fit { budget.expand_chunks } else { budget.expand_chunks.max(DIVERSE_TEXTS) };
    let mut order = diverse_order(chunks, &centrality, count);
    let text = if fit { beside_all_soft(chunks, budget) } else { budget };
    let left = expand(&order, &centrality, text, cost, &mut forms);
    order.retain(|index| forms[*index].text.is_none());
    order.extend(0..chunks.len());
    fill_soft(chunks, &order, left, &mut forms);
    forms
}

/// The budget with no more raw text than there is room for beside the soft tokens of all chunks.
fn beside_all_soft(chunks: &[Candidate<'_>], budget: Budget) -> Budget {
    let soft: usize = chunks.iter().map(|chunk| chunk.soft_tokens).sum();
    let room = budget.positions.saturating_sub(soft);
    Budget { expand_positions: budget.expand_positions.min(room), ..budget }
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

/// Raw text alone, of the chunks whose `scores` for a question are highest, or of central and mutually different ones
/// without one, while it fits: what retrieval without soft tokens would read. Which, [`Known`] says, as in [`for_question`].
pub fn retrieved(
    chunks: &[Candidate<'_>],
    scores: Option<Vec<f32>>,
    known: Known<'_>,
    positions: usize,
    cost: TextCost<'_>,
) -> Vec<Form> {
    let mut forms = vec![Form::default(); chunks.len()];
    let (order, scores) = match scores {
        Some(scores) => (known.choose(&scores), scores),
        None => {
            let centrality = centrality(chunks);
            // More than fit are not worth ordering: it takes time quadratic in their number.
            (diverse_order(chunks, &centrality, DIVERSE_TEXTS), centrality)
        }
    };
    let (mut left, mut misses) = (positions, 0);
    for index in order {
        match cost(index).and_then(|positions| left.checked_sub(positions)) {
            Some(rest) => (forms[index].text, left) = (Some(scores[index]), rest),
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
    let mut forms = vec![Form::default(); count];
    let mut left = positions;
    for index in order {
        let Some(rest) = cost(index).and_then(|positions| left.checked_sub(positions)) else { break };
        left = rest;
        forms[index].text = Some(0.0);
    }
    forms
}

/// The opening, then greedily the most central chunk that is least like those taken (maximal marginal relevance).
fn diverse_order(chunks: &[Candidate<'_>], centrality: &[f32], count: usize) -> Vec<usize> {
    if chunks.is_empty() {
        return Vec::new();
    }
    let mut taken = vec![0];
    let mut is_taken = vec![false; chunks.len()];
    is_taken[0] = true;
    let mut likeness: Vec<f32> = chunks.iter().map(|c| dot(c.vector, chunks[0].vector)).collect();
    while taken.len() < count.min(chunks.len()) {
        let gain = |i: &usize| centrality[*i] - DIVERSITY * likeness[*i];
        let open = (0..chunks.len()).filter(|i| !is_taken[*i]);
        let Some(best) = open.max_by(|a, b| gain(a).total_cmp(&gain(b)).then(b.cmp(a))) else { break };
        taken.push(best);
        is_taken[best] = true;
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
            forms[index].text = Some(scores[index]);
            text -= positions;
            left -= positions;
        }
    }
    left
}

/// Gives soft tokens to the chunks of `order` while they fit.
fn fill_soft(chunks: &[Candidate<'_>], order: &[usize], mut left: usize, forms: &mut [Form]) {
    for &index in order {
        if !forms[index].soft && chunks[index].soft_tokens <= left {
            forms[index].soft = true;
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

    /// Nothing is known but the scores.
    const ALL: Known<'static> = Known { comes_first: &|_| false, stands_out: &|_| true, goes_on: &|_| false };

    fn candidates() -> Vec<Candidate<'static>> {
        VECTORS.iter().map(|v| Candidate { vector: v, soft_tokens: 4 }).collect()
    }

    fn budget(positions: usize, expand_chunks: usize, expand_positions: usize) -> Budget {
        Budget { positions, expand_chunks, expand_positions }
    }

    /// `text` says which chunks are raw text, `soft` which are soft tokens.
    fn shape(forms: &[Form]) -> (Vec<usize>, Vec<usize>) {
        let all = || forms.iter().enumerate();
        let text = all().filter(|(_, form)| form.text.is_some()).map(|(index, _)| index).collect();
        (text, all().filter(|(_, form)| form.soft).map(|(index, _)| index).collect())
    }

    fn asked(question: &[f32], named: &[usize], budget: Budget) -> Vec<Form> {
        let scores = relevance(&candidates(), question, &[]);
        let known = Known { comes_first: &|index| named.contains(&index), ..ALL };
        for_question(&candidates(), &scores, known, budget, &mut |_| Some(16))
    }

    #[test]
    fn the_nearest_chunks_become_text_behind_the_soft_tokens_of_all() {
        let forms = asked(&[0.0, 1.0], &[], budget(100, 2, 100));
        assert_eq!(shape(&forms), (vec![1, 2], vec![0, 1, 2, 3]));
        assert_eq!((forms[1].text, forms[2].text), (Some(1.0), Some(0.8)));
    }

    #[test]
    fn a_cut_sentence_brings_its_other_part_along() {
        assert_eq!(with_other_parts(&[2, 0, 3, 1], 4, &|index| index == 2), [2, 3, 0, 1]);
        assert_eq!(with_other_parts(&[2, 0, 3, 1], 4, &|index| index == 1), [2, 1, 0, 3]);
        let scores = relevance(&candidates(), &[0.0, 1.0], &[]);
        let known = Known { goes_on: &|index| index == 0, ..ALL };
        let forms = for_question(&candidates(), &scores, known, budget(100, 2, 100), &mut |_| Some(16));
        assert_eq!(shape(&forms).0, [0, 1]);
        assert_eq!(with_other_parts(&[0], 1, &|_| true), [0], "there is no next one");
    }

    #[test]
    fn behind_the_best_only_what_stands_out_is_read() {
        let scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4];
        let chosen = |named: usize| {
            Known { comes_first: &|index| index == named, stands_out: &|index| index == 4, goes_on: &|_| false }
                .choose(&scores)
        };
        assert_eq!(chosen(9), [0, 4]);
        assert_eq!(chosen(5), [5, 0, 4], "what is named comes on top");
        assert_eq!(ALL.choose(&scores), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn words_in_common_count_beside_the_vectors() {
        let scores = relevance(&candidates(), &[0.0, 1.0], &[0.9, 0.0, 0.0, 0.0]);
        assert_eq!(scores, [0.9, 1.0, 0.8, 0.6]);
        assert_eq!(relevance(&candidates(), &[0.0, 1.0], &[]), [0.0, 1.0, 0.8, 0.6]);
    }

    #[test]
    fn named_chunks_become_text_before_nearer_ones() {
        assert_eq!(shape(&asked(&[0.0, 1.0], &[0], budget(100, 2, 100))).0, [0, 1]);
    }

    #[test]
    fn a_tight_budget_leaves_out_the_soft_tokens_of_the_farthest_chunk() {
        assert_eq!(shape(&asked(&[0.0, 1.0], &[], budget(28, 1, 16))), (vec![1], vec![1, 2, 3]));
    }

    #[test]
    fn raw_text_gives_way_as_long_as_it_keeps_a_quarter() {
        // 16 positions of soft tokens: beside them there is room for two texts of three.
        assert_eq!(shape(&asked(&[0.0, 1.0], &[], budget(60, 3, 48))), (vec![1, 2], vec![0, 1, 2, 3]));
        // Beside them there would be room for none.
        assert_eq!(shape(&asked(&[0.0, 1.0], &[], budget(24, 1, 16))), (vec![1], vec![1, 2]));
    }

    #[test]
    fn expansion_can_be_switched_off() {
        assert_eq!(shape(&asked(&[0.0, 1.0], &[], budget(100, 0, 100))), (vec![], vec![0, 1, 2, 3]));
    }

    #[test]
    fn a_summary_takes_the_opening_and_then_something_different() {
        let forms = for_summary(&candidates(), budget(100, 2, 100), &mut |_| Some(16));
        let (text, soft) = shape(&forms);
        assert!(text.contains(&0) && text.len() == 2, "{forms:?}");
        assert!(!text.contains(&3), "the chunk most like the opening");
        assert_eq!(soft, [0, 1, 2, 3]);
    }

    #[test]
    fn a_summary_leaves_out_raw_text_before_soft_tokens() {
        let forms = for_summary(&candidates(), budget(40, 4, 40), &mut |_| Some(16));
        assert_eq!(shape(&forms), (vec![0], vec![0, 1, 2, 3]));
    }

    #[test]
    fn a_summary_in_too_small_a_window_keeps_its_raw_text_and_the_soft_tokens_of_others() {
        // 16 positions of text; of the soft tokens of four chunks, those of two fit: not the opening's, which is text.
        let forms = for_summary(&candidates(), budget(15 + 8, 1, 15), &mut |_| Some(15));
        assert_eq!(shape(&forms).0, [] as [usize; 0], "all soft tokens fit, and text gives way");
        let forms = for_summary(&candidates(), budget(15, 1, 7), &mut |_| Some(7));
        let (text, soft) = shape(&forms);
        assert!(text == [0] && soft.len() == 2 && !soft.contains(&0), "{forms:?}");
    }

    #[test]
    fn a_chunk_without_text_stays_compressed() {
        let scores = relevance(&candidates(), &[0.0, 1.0], &[]);
        let mut cost = |index| (index != 1).then_some(16);
        let forms = for_question(&candidates(), &scores, ALL, budget(100, 2, 100), &mut cost);
        assert_eq!(shape(&forms), (vec![2], vec![0, 1, 2, 3]));
    }

    #[test]
    fn retrieval_takes_the_nearest_chunks_and_nothing_else() {
        let scores = relevance(&candidates(), &[0.0, 1.0], &[]);
        let forms = retrieved(&candidates(), Some(scores), ALL, 40, &mut |_| Some(16));
        assert_eq!(shape(&forms), (vec![1, 2], vec![]));
        let central = retrieved(&candidates(), None, ALL, 20, &mut |_| Some(16));
        assert_eq!(shape(&central), (vec![0], vec![]));
        assert_eq!(retrieved(&[], None, ALL, 20, &mut |_| Some(16)), []);
    }

    #[test]
    fn text_from_the_beginning_or_from_both_ends_has_one_gap_at_most() {
        let text = |forms: &[Form]| shape(forms).0;
        assert_eq!(text(&opening(4, 40, &mut |i| Some(if i == 2 { 20 } else { 16 }))), [0, 1]);
        assert_eq!(text(&ends(5, 64, &mut |_| Some(16))), [0, 1, 3, 4]);
        assert_eq!(text(&ends(5, 50, &mut |_| Some(16))), [0, 1, 4]);
        assert_eq!(text(&ends(3, 100, &mut |_| Some(16))), [0, 1, 2]);
        assert_eq!(ends(0, 100, &mut |_| Some(16)), []);
    }

    #[test]
    fn no_budget_is_ever_exceeded() {
        for positions in 0..80 {
            let forms = asked(&[0.6, 0.8], &[], budget(positions, 3, 40));
            let (text, soft) = shape(&forms);
            assert!(16 * text.len() + 4 * soft.len() <= positions);
        }
    }
}
