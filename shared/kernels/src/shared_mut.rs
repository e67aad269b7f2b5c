//! A slice whose parts the tasks of a region write.

use std::marker::PhantomData;
use std::ops::Range;

/// Hands out parts of a borrowed slice to several threads.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: it only hands out parts of `&mut [T]`, which may be sent and, by the contract of `part`, never alias.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrowed: PhantomData }
    }

    /// # Safety
    /// No two parts that are held at the same time may overlap.
    ///
    /// # Panics
    /// When the range is not inside the slice.
    #[expect(clippy::mut_from_ref, reason = "the contract above is what makes the parts exclusive")]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of a slice of {}", self.len);
        // SAFETY: inside the slice, and exclusive by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
