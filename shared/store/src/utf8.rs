/// Checks UTF-8 that arrives in pieces whose ends may split code points.
#[derive(Debug, Default)]
pub(crate) struct Utf8Check {
    /// The start of a code point whose rest has not arrived; at most 3 bytes.
    pending: Vec<u8>,
    /// Bytes seen before `pending`.
    checked: u64,
}

/// Offset of the first byte that does not belong to a code point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidAt(pub(crate) u64);

impl Utf8Check {
    /// Takes the next piece.
    pub(crate) fn push(&mut self, mut piece: &[u8]) -> Result<(), InvalidAt> {
        while !self.pending.is_empty() {
            let Some((first, rest)) = piece.split_first() else { return Ok(()) };
            self.pending.push(*first);
            match std::str::from_utf8(&self.pending) {
                Ok(_) => self.settle_pending(),
                Err(error) if error.error_len().is_some() => return Err(InvalidAt(self.checked)),
                Err(_) => {}
            }
            piece = rest;
        }
        match std::str::from_utf8(piece) {
            Ok(_) => self.checked += piece.len() as u64,
            Err(error) => self.keep_tail(piece, error)?,
        }
        Ok(())
    }

    /// Ends the text: an unfinished code point is an error.
    pub(crate) fn finish(&self) -> Result<(), InvalidAt> {
        if self.pending.is_empty() { Ok(()) } else { Err(InvalidAt(self.checked)) }
    }

    fn settle_pending(&mut self) {
        self.checked += self.pending.len() as u64;
        self.pending.clear();
    }

    fn keep_tail(&mut self, piece: &[u8], error: std::str::Utf8Error) -> Result<(), InvalidAt> {
        let valid = error.valid_up_to();
        self.checked += valid as u64;
        if error.error_len().is_some() {
            return Err(InvalidAt(self.checked));
        }
        self.pending.extend_from_slice(&piece[valid..]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &[u8], piece: usize) -> Result<(), InvalidAt> {
        let mut check = Utf8Check::default();
        for part in text.chunks(piece) {
            check.push(part)?;
        }
        check.finish()
    }

    #[test]
    fn code_points_may_straddle_pieces_of_any_size() {
        let text = "aß漢😀\u{0}\r\nz😀".as_bytes();
        for piece in 1..=text.len() {
            assert_eq!(check(text, piece), Ok(()), "pieces of {piece}");
        }
    }

    #[test]
    fn the_offset_of_the_first_bad_byte_does_not_depend_on_the_pieces() {
        let cases: [&[u8]; 5] = [b"ab\xffcd", b"\xe6\xbc", "漢\u{e9}".as_bytes(), b"abc\xf0\x9fzz", b"x\xed\xa0\x80"];
        for text in cases {
            let whole = std::str::from_utf8(text).map(|_| ()).map_err(|e| InvalidAt(e.valid_up_to() as u64));
            for piece in 1..=text.len() {
                assert_eq!(check(text, piece), whole, "{text:?} in pieces of {piece}");
            }
        }
    }
}
