//! Who may call what: API tokens with roles and collections.
//!
//! A token is 32 random bytes as hex, shown once when it is made; a server keeps its BLAKE3 hash. So much randomness cannot be guessed
//! from a hash, which a slow password hash would be for; the hashes are compared in constant time.

mod caller;
mod layer;
mod limit;
mod rights;
mod tokens;

pub(crate) use caller::Seen;
pub use caller::{Caller, caller};
pub(crate) use layer::AuthLayer;
pub use rights::{Role, required_role};
pub use tokens::{NewToken, TokenEntry, Tokens};

use std::sync::Arc;

use crate::RuntimeError;

/// What a server asks of its callers.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// Nothing: whoever reaches the address may do everything.
    #[default]
    Open,
    /// A token.
    Tokens(Arc<Tokens>),
}

impl Auth {
    /// Tokens from a file, see [`Tokens::load`].
    ///
    /// # Errors
    /// [`RuntimeError::BadFile`]
    pub fn from_file(path: &std::path::Path) -> Result<Self, RuntimeError> {
        Ok(Self::Tokens(Arc::new(Tokens::load(path)?)))
    }
}
