//! What the DNS says of a customer's domain; who asks it is above.

use std::fmt::Debug;

use async_trait::async_trait;

/// No name server gave an answer.
#[derive(Debug, thiserror::Error)]
#[error("no name server answers")]
pub struct NamesError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Who asks the DNS. A name that is not there has nothing, which is no error. Bounded in time and number by whoever implements it.
#[async_trait]
pub trait Names: Debug + Send + Sync + 'static {
    /// The texts of a name (TXT).
    async fn texts(&self, name: &str) -> Result<Vec<String>, NamesError>;

    /// What a name is another name of (CNAME).
    async fn canonical(&self, name: &str) -> Result<Option<String>, NamesError>;
}
