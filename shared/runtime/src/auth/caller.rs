use std::sync::{Arc, OnceLock};

use e2llm_api::{ErrorCode, status};
use tonic::{Request, Status};

use super::{Role, TokenEntry};

/// Who makes a call, as the server found out.
#[derive(Debug, Clone, Default)]
pub struct Caller(Who);

#[derive(Debug, Clone, Default)]
enum Who {
    /// No token is asked for.
    #[default]
    Anyone,
    /// A token is asked for, and none that is known was given.
    Unknown,
    /// Who has a token.
    Holder(Arc<TokenEntry>),
}

impl Caller {
    pub(crate) fn of(token: Arc<TokenEntry>) -> Self {
        Self(Who::Holder(token))
    }

    pub(crate) fn unknown() -> Self {
        Self(Who::Unknown)
    }

    /// The token's name; `-` where no token is asked for, `?` where none that is known was given.
    pub fn name(&self) -> &str {
        match &self.0 {
            Who::Anyone => "-",
            Who::Unknown => "?",
            Who::Holder(token) => &token.name,
        }
    }

    fn is(&self, allowed: impl FnOnce(&TokenEntry) -> bool) -> bool {
        match &self.0 {
            Who::Anyone => true,
            Who::Unknown => false,
            Who::Holder(token) => allowed(token),
        }
    }

    /// Whether the caller may see and change documents and jobs of a collection.
    pub fn may_use(&self, collection: &str) -> bool {
        self.is(|token| token.allows(collection))
    }

    /// The same as an answer.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`, with the collection and the token's name.
    pub fn check(&self, collection: &str) -> Result<(), Status> {
        // What a request does not name is the collection `default`.
        let collection = if collection.is_empty() { "default" } else { collection };
        if self.may_use(collection) {
            return Ok(());
        }
        let message = format!("token {:?} may not use collection {collection:?}; ask for one that may", self.name());
        Err(status(ErrorCode::PermissionDenied, message))
    }

    /// Whether all collections are open to the caller.
    pub fn may_use_all(&self) -> bool {
        self.is(|token| token.collections.is_none())
    }

    /// The same as an answer, for calls that concern all collections.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`, with the token's name.
    pub fn check_all(&self) -> Result<(), Status> {
        if self.may_use_all() {
            return Ok(());
        }
        let message = format!("token {:?} is for some collections; this call concerns all of them", self.name());
        Err(status(ErrorCode::PermissionDenied, message))
    }

    pub(crate) fn may(&self, role: Role) -> bool {
        self.is(|token| token.role >= role)
    }
}

/// Where it is noted who makes a call, for whoever writes down what became of it, also of one that is broken off.
pub(crate) type Seen = Arc<OnceLock<Caller>>;

/// The caller of a request; one that may do everything where the server asks for no token.
pub fn caller<T>(request: &Request<T>) -> Caller {
    request.extensions().get::<Caller>().cloned().unwrap_or_default()
}
