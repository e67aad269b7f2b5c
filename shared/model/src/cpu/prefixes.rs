use std::sync::Arc;

use e2llm_kernels::attention::PAGE;
use half::f16;
use moka::policy::EvictionPolicy;
use moka::sync::Cache as Lru;

use super::cache::{Cache, Page};
use crate::decoder::DecoderConfig;
use crate::error::Result;

/// Names a page of a prompt: the hash of its rows and of all rows before them.
pub type PageName = [u8; 32];

/// Pages of prompts that one decoder has read: what prompts have in common at their beginning is read once.
///
/// It does not matter what the common part is made of: template, soft tokens or text. Keys and values do not depend on how a prompt
/// was read, so answers do not depend on what is found here (vLLM calls this automatic prefix caching). The least used pages are
/// forgotten when the budget is full.
#[derive(Debug)]
pub struct Prefixes(Lru<PageName, Page>);

impl Prefixes {
    /// Keeps about `budget` bytes.
    pub fn new(budget: u64) -> Self {
        let size = |_: &PageName, page: &Arc<Vec<f16>>| u32::try_from(size_of_val(&page[..])).unwrap_or(u32::MAX);
        Self(Lru::builder().max_capacity(budget).weigher(size).eviction_policy(EvictionPolicy::lru()).build())
    }

    /// Names the whole pages of a prompt `[positions, d_model]`, without the page of its last row: that row is always read, for what
    /// follows it.
    pub fn names(rows: &[f32], d_model: usize) -> Vec<PageName> {
        let whole = (rows.len() / d_model).saturating_sub(1) / PAGE;
        let mut hasher = blake3::Hasher::new();
        let mut name = |rows: &[f32]| *hasher.update(bytemuck::cast_slice(rows)).finalize().as_bytes();
        rows.chunks_exact(PAGE * d_model).take(whole).map(&mut name).collect()
    }

    /// A cache for a prompt of these pages, which holds as many of the first ones as are known.
    ///
    /// # Errors
    /// As [`Cache::new`].
    pub fn open(&self, names: &[PageName], config: &DecoderConfig, capacity: usize) -> Result<Cache> {
        let known: Vec<Page> = names.iter().map_while(|name| self.0.get(name)).collect();
        // Once more from the last to the first: a page is of no use without those before it, so those are forgotten later.
        names[..known.len()].iter().rev().for_each(|name| drop(self.0.get(name)));
        Cache::of_pages(known, config, capacity)
    }

    /// Remembers the pages of a prompt that was read.
    pub fn keep(&self, names: &[PageName], cache: &Cache) {
        names.iter().zip(cache.pages()).rev().for_each(|(name, page)| self.0.insert(*name, page.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: usize = 2;

    fn rows(pages: usize, seed: f32) -> Vec<f32> {
        (0..pages * PAGE * D).map(|i| i as f32 * seed).collect()
    }

    #[test]
    fn a_name_says_what_the_page_and_all_before_it_hold() {
        let one = Prefixes::names(&[rows(2, 1.0), vec![0.0; D]].concat(), D);
        assert_eq!(one.len(), 2);
        assert_eq!(Prefixes::names(&[rows(2, 1.0), vec![5.0; 3 * D]].concat(), D), one);
        let other = Prefixes::names(&[rows(1, 2.0), rows(2, 1.0)[PAGE * D..].to_vec(), vec![0.0; D]].concat(), D);
        assert!(other[0] != one[0] && other[1] != one[1], "the second pages are equal, what is before them is not");
    }

    #[test]
    fn the_last_row_is_left_to_be_read() {
        assert_eq!(Prefixes::names(&rows(2, 1.0), D).len(), 1);
        assert_eq!(Prefixes::names(&[], D).len(), 0);
    }
}
