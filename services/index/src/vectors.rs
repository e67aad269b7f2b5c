//! Mean vectors in memory, for exact search.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use e2llm_api::v1::DocRecord;
use e2llm_store::manifest::{Change, Manifest};

use crate::doc_index::{Effects, RecordKey};

/// The mean vectors of all records, scaled to unit length. Derived from the view, never stored.
#[derive(Debug, Default)]
pub(crate) struct VectorTable {
    /// By collection and fingerprint, then by length: vectors of one bundle have one length, and if a log holds
    /// others they are kept apart.
    groups: HashMap<(String, String), BTreeMap<usize, Rows>>,
}

/// Vectors of one length.
#[derive(Debug, Default)]
struct Rows {
    ids: Vec<String>,
    /// `[ids, length]`, row by row.
    values: Vec<f32>,
    row_of: HashMap<String, usize>,
}

/// A document and the cosine of its vector with the query.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Nearest {
    pub(crate) doc_id: String,
    pub(crate) score: f32,
}

impl VectorTable {
    /// Adds or replaces the vector of a record.
    pub(crate) fn put(&mut self, record: &DocRecord) {
        let key = RecordKey::of(record);
        self.remove(&key);
        let vector = unit(decode(&record.mean_vector));
        let group = self.groups.entry((key.collection, key.fingerprint)).or_default();
        group.entry(vector.len()).or_default().push(key.doc_id, &vector);
    }

    /// Removes the vector of a record, if there is one.
    pub(crate) fn remove(&mut self, key: &RecordKey) {
        let group = (key.collection.clone(), key.fingerprint.clone());
        let Some(lengths) = self.groups.get_mut(&group) else { return };
        lengths.retain(|length, rows| {
            rows.remove(&key.doc_id, *length);
            !rows.ids.is_empty()
        });
        if lengths.is_empty() {
            self.groups.remove(&group);
        }
    }

    /// Does to the vectors what `manifest` did to the records.
    pub(crate) fn apply(&mut self, manifest: &Manifest, effects: &Effects) {
        let mut removed = effects.removed.iter();
        for change in &manifest.changes {
            match change {
                Change::Put(record) => self.put(record),
                Change::Summary(_) | Change::HandOver { .. } => {}
                Change::Delete { .. } => {
                    removed.next().into_iter().flatten().for_each(|key| self.remove(key));
                }
            }
        }
    }

    /// The length of the vectors of a fingerprint; the greatest, should there be several. `None`: no vectors.
    pub(crate) fn length(&self, collection: &str, fingerprint: &str) -> Option<usize> {
        let group = self.groups.get(&(collection.to_owned(), fingerprint.to_owned()))?;
        group.keys().next_back().copied()
    }

    /// The `limit` documents nearest to `query`, by descending cosine, then by id.
    pub(crate) fn nearest(&self, collection: &str, fingerprint: &str, query: &[f32], limit: usize) -> Vec<Nearest> {
        let group = self.groups.get(&(collection.to_owned(), fingerprint.to_owned()));
        let Some(rows) = group.and_then(|lengths| lengths.get(&query.len())) else { return Vec::new() };
        let query = unit(query.to_vec());
        let mut best = BinaryHeap::with_capacity(limit + 1);
        for (row, id) in rows.values.chunks_exact(query.len()).zip(&rows.ids) {
            best.push(Reverse(Candidate { score: dot(row, &query), id }));
            if best.len() > limit {
                best.pop();
            }
        }
        let sorted = best.into_sorted_vec().into_iter();
        sorted.map(|Reverse(c)| Nearest { doc_id: c.id.to_owned(), score: c.score }).collect()
    }
}

impl Rows {
    fn push(&mut self, id: String, vector: &[f32]) {
        self.row_of.insert(id.clone(), self.ids.len());
        self.ids.push(id);
        self.values.extend_from_slice(vector);
    }

    fn remove(&mut self, id: &str, length: usize) {
        let Some(row) = self.row_of.remove(id) else { return };
        let last = self.ids.len() - 1;
        self.values.copy_within(last * length..(last + 1) * length, row * length);
        self.values.truncate(last * length);
        self.ids.swap_remove(row);
        if let Some(moved) = self.ids.get(row) {
            self.row_of.insert(moved.clone(), row);
        }
    }
}

/// Ordered from far to near; of two equally near, the smaller id is nearer.
#[derive(Debug, PartialEq)]
struct Candidate<'a> {
    score: f32,
    id: &'a str,
}

impl Ord for Candidate<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.id.cmp(self.id))
    }
}

impl PartialOrd for Candidate<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for Candidate<'_> {}

/// The floats of a `[d_enc]` little-endian vector; bytes beyond a multiple of four are not part of it.
pub(crate) fn decode(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|float| f32::from_le_bytes(*float)).collect()
}

fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let norm = dot(&vector, &vector).sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|value| *value /= norm);
    }
    vector
}

/// Eight sums side by side, which the compiler turns into vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    let mut sums = [0f32; 8];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(doc_id: &str, vector: &[f32]) -> DocRecord {
        DocRecord {
            collection: "c".into(),
            doc_id: doc_id.into(),
            fingerprint: "f".into(),
            mean_vector: vector.iter().flat_map(|v| v.to_le_bytes()).collect(),
            ..DocRecord::default()
        }
    }

    fn ids(table: &VectorTable, query: &[f32], limit: usize) -> Vec<String> {
        table.nearest("c", "f", query, limit).into_iter().map(|hit| hit.doc_id).collect()
    }

    #[test]
    fn nearest_agrees_with_sorting_all_cosines() {
        let mut table = VectorTable::default();
        let mut all = Vec::new();
        for n in 0..200u32 {
            let vector: Vec<f32> = (0..19).map(|d| ((n * 31 + d * 17) % 101) as f32 - 50.0).collect();
            table.put(&record(&format!("d{n:03}"), &vector));
            all.push((format!("d{n:03}"), vector));
        }
        let query: Vec<f32> = (0..19).map(|d| (d as f32 * 0.7).sin()).collect();
        let cosine = |v: &[f32]| {
            let product =
                |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            product(v, &query) / (product(v, v) * product(&query, &query)).sqrt()
        };
        all.sort_by(|a, b| cosine(&b.1).total_cmp(&cosine(&a.1)));
        let hits = table.nearest("c", "f", &query, 10);
        for (hit, (id, vector)) in hits.iter().zip(&all) {
            assert_eq!(&hit.doc_id, id);
            assert!((f64::from(hit.score) - cosine(vector)).abs() < 1e-5, "{hit:?}");
        }
        assert_eq!(hits.len(), 10);
    }

    #[test]
    fn removed_and_replaced_vectors_are_not_found() {
        let mut table = VectorTable::default();
        for (id, vector) in [("a", [1.0, 0.0]), ("b", [0.9, 0.1]), ("c", [0.0, 1.0])] {
            table.put(&record(id, &vector));
        }
        table.remove(&RecordKey::of(&record("a", &[])));
        table.put(&record("b", &[-1.0, 0.0]));
        assert_eq!(ids(&table, &[1.0, 0.0], 3), ["c", "b"]);
    }

    #[test]
    fn equally_near_documents_come_in_the_order_of_their_ids() {
        let mut table = VectorTable::default();
        for id in ["z", "a", "m"] {
            table.put(&record(id, &[2.0, 0.0]));
        }
        assert_eq!(ids(&table, &[1.0, 0.0], 2), ["a", "m"]);
    }

    #[test]
    fn vectors_of_another_length_are_kept_apart() {
        let mut table = VectorTable::default();
        table.put(&record("a", &[1.0, 0.0]));
        table.put(&record("b", &[1.0, 0.0, 0.0]));
        assert_eq!(ids(&table, &[1.0, 0.0], 9), ["a"]);
        table.put(&record("a", &[0.0, 1.0, 0.0]));
        assert!(ids(&table, &[1.0, 0.0], 9).is_empty());
        assert_eq!(ids(&table, &[0.0, 1.0, 0.0], 9), ["a", "b"]);
    }
}
