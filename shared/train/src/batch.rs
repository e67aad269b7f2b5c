//! Samples as decoder input, and how a batch is shared out over workers.

use std::ops::Range;

use candle_core::Tensor;
use e2llm_model::{Decoder, Packing};

use crate::error::Result;
use crate::sample::{Part, Sample};
use crate::session::{EncoderSession, SoftBatch};

/// All chunk texts of the samples, in order.
pub(crate) fn chunks(samples: &[Sample]) -> Vec<&str> {
    let parts = samples.iter().flat_map(|s| &s.before);
    parts.filter_map(|p| if let Part::Chunk(text) = p { Some(text.as_str()) } else { None }).collect()
}

/// Samples laid out as one packed decoder input.
#[derive(Default)]
pub(crate) struct Batch {
    /// All token ids, then all soft tokens; `order` says which stands where.
    tokens: Vec<u32>,
    order: Vec<u32>,
    lengths: Vec<usize>,
    /// Rows whose next token is a target, and the targets.
    rows: Vec<u32>,
    targets: Vec<u32>,
}

impl Batch {
    /// `counts`: soft tokens of each chunk, in the order of [`chunks`].
    pub(crate) fn new(samples: &[&Sample], counts: &[usize]) -> Self {
        let total_tokens: usize = samples.iter().map(|sample| token_count(sample)).sum();
        let mut batch = Self::default();
        let mut counts = counts.iter();
        let mut soft = total_tokens as u32;
        for sample in samples {
            let start = batch.order.len();
            for part in &sample.before {
                match part {
                    Part::Tokens(ids) => batch.push_tokens(ids),
                    Part::Chunk(_) => {
                        let count = counts.next().copied().unwrap_or(0) as u32;
                        batch.order.extend(soft..soft + count);
                        soft += count;
                    }
                }
            }
            batch.push_target(&sample.target, start);
        }
        batch
    }

    /// The same samples as a teacher reads them: chunks as text. Rows and targets come in the same order.
    pub(crate) fn of_full_text(samples: &[&Sample]) -> Self {
        let mut batch = Self::default();
        for sample in samples {
            let start = batch.order.len();
            batch.push_tokens(&sample.full);
            batch.push_target(&sample.target, start);
        }
        batch
    }

    fn push_target(&mut self, target: &[u32], start: usize) {
        self.rows.extend((0..target.len()).map(|i| (self.order.len() + i - 1) as u32));
        self.targets.extend(target);
        self.push_tokens(&target[..target.len() - 1]);
        self.lengths.push(self.order.len() - start);
    }

    fn push_tokens(&mut self, ids: &[u32]) {
        let first = self.tokens.len() as u32;
        self.order.extend(first..first + ids.len() as u32);
        self.tokens.extend(ids);
    }

    pub(crate) fn positions(&self) -> usize {
        self.order.len()
    }

    /// Logits at the target rows `[targets, vocabulary]`.
    pub(crate) fn logits(&self, decoder: &Decoder, soft: Option<&Tensor>) -> Result<Tensor> {
        let device = decoder.device();
        let mut input = decoder.embed(&self.tokens)?;
        if let Some(soft) = soft {
            input = Tensor::cat(&[&input, &soft.to_device(device)?], 0)?;
        }
        let input = input.index_select(&Tensor::new(self.order.as_slice(), device)?, 0)?;
        let hidden = decoder.hidden(&input, &Packing::sequences(&self.lengths))?;
        let rows = Tensor::new(self.rows.as_slice(), device)?;
        Ok(decoder.logits(&hidden.index_select(&rows, 0)?)?)
    }

    pub(crate) fn targets(&self) -> &[u32] {
        &self.targets
    }
}

fn token_count(sample: &Sample) -> usize {
    let before: usize = sample.before.iter().map(|p| if let Part::Tokens(ids) = p { ids.len() } else { 0 }).sum();
    before + sample.target.len() - 1
}

/// Samples of one worker with their soft tokens.
pub(crate) struct Shard<'a> {
    pub(crate) samples: Vec<&'a Sample>,
    /// Where they stand in the batch.
    pub(crate) places: Vec<usize>,
    /// `[Σ counts, d_model]`; none when no sample of them has a chunk.
    pub(crate) soft: Option<Tensor>,
    pub(crate) counts: Vec<usize>,
    /// Soft rows of each sample, in this shard's order.
    pub(crate) rows: Vec<usize>,
}

/// Chunks and soft rows of one sample inside a [`SoftBatch`].
struct Place {
    chunks: Range<usize>,
    rows: Range<usize>,
    positions: usize,
}

/// Shares samples out over at most `count` workers, longest first to whoever has the fewest positions: a step takes as long as
/// its slowest worker.
pub(crate) fn shards<'a>(samples: &'a [Sample], soft: Option<&SoftBatch>, count: usize) -> Result<Vec<Shard<'a>>> {
    let places = places(samples, soft);
    let mut order: Vec<usize> = (0..samples.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(places[*index].positions));
    let mut shares = vec![(0, Vec::new()); count.clamp(1, samples.len().max(1))];
    for index in order {
        if let Some((positions, share)) = shares.iter_mut().min_by_key(|(positions, _)| *positions) {
            *positions += places[index].positions;
            share.push(index);
        }
    }
    shares
        .into_iter()
        .filter(|(_, share)| !share.is_empty())
        .map(|(_, share)| shard(samples, soft, &places, share))
        .collect()
}

fn places(samples: &[Sample], soft: Option<&SoftBatch>) -> Vec<Place> {
    let (mut chunk, mut row) = (0, 0);
    let place = |sample: &Sample| {
        let own = sample.before.iter().filter(|part| matches!(part, Part::Chunk(_))).count();
        let chunks = chunk..chunk + own;
        let rows: usize = soft.map_or(0, |soft| soft.counts[chunks.clone()].iter().sum());
        let place = Place { chunks, rows: row..row + rows, positions: token_count(sample) + rows };
        chunk += own;
        row += rows;
        place
    };
    samples.iter().map(place).collect()
}

fn shard<'a>(
    samples: &'a [Sample],
    soft: Option<&SoftBatch>,
    places: &[Place],
    mut share: Vec<usize>,
) -> Result<Shard<'a>> {
    share.sort_unstable();
    let rows: Vec<usize> = share.iter().map(|index| places[*index].rows.len()).collect();
    let mut parts = Vec::new();
    let mut counts = Vec::new();
    for place in share.iter().map(|index| &places[*index]).filter(|place| !place.rows.is_empty()) {
        if let Some(soft) = soft {
            parts.push(soft.values.narrow(0, place.rows.start, place.rows.len())?);
            counts.extend(&soft.counts[place.chunks.clone()]);
        }
    }
    let values = if parts.is_empty() { None } else { Some(Tensor::cat(&parts, 0)?) };
    let own = share.iter().map(|index| &samples[*index]).collect();
    Ok(Shard { samples: own, places: share, soft: values, counts, rows })
}

/// Soft tokens of samples, or nothing when they hold no chunk.
pub(crate) fn encode_samples(session: &mut impl EncoderSession, samples: &[Sample]) -> Result<Option<SoftBatch>> {
    let chunks = chunks(samples);
    if chunks.is_empty() { Ok(None) } else { session.encode(&chunks).map(Some) }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::sample::Objective;

    fn sample(tokens: usize, chunks: usize) -> Sample {
        let mut before = vec![Part::Tokens(vec![1; tokens])];
        before.extend((0..chunks).map(|i| Part::Chunk(i.to_string())));
        Sample { objective: Objective::Reconstruct, before, target: vec![2, 3], full: vec![] }
    }

    #[test]
    fn the_longest_sample_gets_a_worker_of_its_own() {
        let samples = [sample(3, 1), sample(50, 2), sample(4, 0), sample(5, 1)];
        let values = Tensor::arange(0f32, 8.0, &Device::Cpu).unwrap().reshape((8, 1)).unwrap();
        let soft = SoftBatch { values, counts: vec![2, 1, 3, 2] };
        let shards = shards(&samples, Some(&soft), 2).unwrap();
        assert_eq!(shards.iter().map(|s| s.places.clone()).collect::<Vec<_>>(), [vec![1], vec![0, 2, 3]]);
        let rows = |shard: &Shard<'_>| shard.soft.as_ref().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((rows(&shards[0]), shards[0].counts.clone()), (vec![2.0, 3.0, 4.0, 5.0], vec![1, 3]));
        assert_eq!((rows(&shards[1]), shards[1].counts.clone()), (vec![0.0, 1.0, 6.0, 7.0], vec![2, 2]));
        assert_eq!(shards[1].rows, [2, 0, 2]);
    }

    #[test]
    fn samples_without_chunks_have_no_soft_tokens() {
        let samples = [sample(3, 0)];
        let shards = shards(&samples, None, 2).unwrap();
        assert!(shards.len() == 1 && shards[0].soft.is_none() && shards[0].counts.is_empty());
    }

    #[test]
    fn a_teacher_reads_the_text_and_predicts_the_same_targets() {
        let sample = Sample { full: vec![9; 20], ..sample(3, 1) };
        let (student, teacher) = (Batch::new(&[&sample], &[4]), Batch::of_full_text(&[&sample]));
        assert_eq!(student.targets(), teacher.targets());
        assert_eq!((student.positions(), teacher.positions()), (3 + 4 + 1, 20 + 1));
        assert_eq!((student.rows, teacher.rows), (vec![6, 7], vec![19, 20]));
    }
}
