//! Page tokens: the key after which the next page begins. Opaque to callers.

use crate::IndexError;
use crate::doc_index::RecordKey;

/// Begins every token, so that tokens of another format are refused and not misread.
const FORMAT: &str = "1";

/// The token of the page after `last`.
pub(crate) fn token(last: &RecordKey) -> String {
    let key = [last.collection.as_str(), &last.doc_id, &last.fingerprint].join("\0");
    let hex = key.bytes().map(|byte| format!("{byte:02x}"));
    std::iter::once(FORMAT.to_owned()).chain(hex).collect()
}

/// The key in `token`, which must have been issued for `collection`.
pub(crate) fn parse(token: &str, collection: &str) -> Result<RecordKey, IndexError> {
    let key = decode(token).filter(|key| key.collection == collection);
    key.ok_or_else(|| {
        let start: String = token.chars().take(24).collect();
        IndexError::invalid(format!(
            "page token {start:?} was not issued for collection {collection:?}; list from the start"
        ))
    })
}

fn decode(token: &str) -> Option<RecordKey> {
    let hex = token.strip_prefix(FORMAT)?.as_bytes();
    let (pairs, rest) = hex.as_chunks::<2>();
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let byte = |pair: &[u8; 2]| u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok();
    let bytes = pairs.iter().map(byte).collect::<Option<Vec<u8>>>().filter(|_| rest.is_empty())?;
    let text = String::from_utf8(bytes).ok()?;
    let mut parts = text.split('\0').map(str::to_owned);
    let key = RecordKey { collection: parts.next()?, doc_id: parts.next()?, fingerprint: parts.next()? };
    parts.next().is_none().then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> RecordKey {
        RecordKey { collection: "c".into(), doc_id: "Ünïcode 文書".into(), fingerprint: "f-4x".into() }
    }

    #[test]
    fn a_token_leads_back_to_its_key() {
        assert_eq!(parse(&token(&key()), "c").unwrap(), key());
    }

    #[test]
    fn tokens_that_were_not_issued_are_refused() {
        let good = token(&key());
        for bad in ["", "1", "1zz", "2abcd", "1ff", &good[..good.len() - 1], "€€€", "1€"] {
            assert!(parse(bad, "c").is_err(), "{bad:?}");
        }
        assert!(parse(&good, "other").is_err());
    }
}
