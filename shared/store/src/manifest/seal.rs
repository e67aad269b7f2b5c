//! Sealed objects: a body and the checksum over it.

use std::fmt;

use e2llm_api::v1;
use prost::Message;

use super::ManifestError;

/// blake3 of a sealed body. The default (zeros) stands for "nothing before".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Checksum([u8; 32]);

impl Checksum {
    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn of(body: &[u8]) -> Self {
        Self(*blake3::hash(body).as_bytes())
    }
}

impl TryFrom<&[u8]> for Checksum {
    type Error = ();
    fn try_from(bytes: &[u8]) -> Result<Self, ()> {
        bytes.try_into().map(Self).map_err(|_| ())
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex()[..16])
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Encodes `message` and adds its checksum.
pub(crate) fn seal(message: &impl Message) -> (Vec<u8>, Checksum) {
    let body = message.encode_to_vec();
    let checksum = Checksum::of(&body);
    let sealed = v1::Sealed { body, checksum: checksum.0.to_vec() };
    (sealed.encode_to_vec(), checksum)
}

/// Verifies a sealed object and decodes its body. Any changed, missing or added byte is an error.
pub(crate) fn open<M: Message + Default>(path: &str, bytes: &[u8]) -> Result<(M, Checksum), ManifestError> {
    let sealed = v1::Sealed::decode(bytes)
        .map_err(|error| ManifestError::corrupt(path, format!("cannot be decoded ({error})")))?;
    let checksum = Checksum::of(&sealed.body);
    if sealed.checksum != checksum.0 {
        return Err(ManifestError::corrupt(path, "does not match its checksum"));
    }
    // protobuf ignores unknown fields and accepts several encodings of one value; a flip in those is damage too.
    if sealed.encode_to_vec() != bytes {
        return Err(ManifestError::corrupt(path, "has bytes that do not belong to it"));
    }
    let message = M::decode(sealed.body.as_slice())
        .map_err(|error| ManifestError::corrupt(path, format!("has a body that cannot be decoded ({error})")))?;
    Ok((message, checksum))
}
