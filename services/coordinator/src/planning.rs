use std::collections::HashMap;
use std::collections::hash_map::Entry;

use e2llm_api::v1::{Row, RowError};
use prost::Message;

/// What planning needs to know of rows planned before.
#[derive(Debug, Default)]
pub(crate) struct Planning {
    /// Pages so far.
    pub(crate) pages: u32,
    /// Someone is submitting rows.
    pub(crate) is_submitting: bool,
    /// One digest per planned row, to recognise rows that are submitted again.
    digests: Vec<u64>,
    /// Document ids seen, by hash, with the number of their row.
    ids: HashMap<u128, u64>,
}

impl Planning {
    /// Takes note of the rows of a page.
    pub(crate) fn add(&mut self, rows: &[Row]) {
        self.pages += 1;
        for row in rows {
            self.digests.push(digest(row));
            if row.error.is_none() {
                self.ids.entry(id_hash(&row.id)).or_insert(row.number);
            }
        }
    }

    /// What of the submission was not planned may come again as something else.
    pub(crate) fn end_submission(&mut self) {
        let planned = self.digests.len() as u64;
        self.ids.retain(|_, number| *number < planned);
        self.is_submitting = false;
    }

    /// Whether the row planned under this number is the same as `row`; `None` if none is planned yet.
    pub(crate) fn is_same(&self, row: &Row) -> Option<bool> {
        let planned = self.digests.get(usize::try_from(row.number).ok()?)?;
        Some(*planned == digest(row))
    }

    /// Takes a document id for a row, unless another row has it: then its number. For a planned row nothing is taken.
    pub(crate) fn claim_id(&mut self, id: &str, number: u64) -> Result<(), u64> {
        let is_planned = number < self.digests.len() as u64;
        let holder = match self.ids.entry(id_hash(id)) {
            Entry::Occupied(taken) => *taken.get(),
            Entry::Vacant(free) if !is_planned => *free.insert(number),
            Entry::Vacant(_) => number,
        };
        if holder == number { Ok(()) } else { Err(holder) }
    }
}

/// Recognises a row that is submitted again, by all that its result depends on. Of a row with an error only that it has
/// one counts: messages may differ.
fn digest(row: &Row) -> u64 {
    let content = match row.error {
        Some(_) => Row { id: row.id.clone(), error: Some(RowError::default()), ..Row::default() },
        None => Row { number: 0, text_bytes: 0, ..row.clone() },
    };
    (first_u128(&blake3::hash(&content.encode_to_vec())) >> 64) as u64
}

fn id_hash(id: &str) -> u128 {
    first_u128(&blake3::hash(id.as_bytes()))
}

fn first_u128(hash: &blake3::Hash) -> u128 {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.as_bytes()[..16]);
    u128::from_be_bytes(half)
}
