//! Tokens on the wire.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::checks::{id_of, time_to_come};
use crate::api::error::ApiError;
use crate::api::page::Pagination;
use crate::domain::Token;
use crate::domain::token::Permissions;
use crate::lifecycle::NewToken;

/// Characters of a token's alias, at most.
const TOKEN_ALIAS_CHARS_MAX: usize = 100;

/// A token to be made.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// 1–100 printable characters, unique.
    #[schema(required)]
    pub alias: Option<String>,
    /// `full_access` (where left out) or `read_only`.
    pub permission_template: Option<String>,
    /// The only project it may know of; left out: all.
    pub project_id: Option<String>,
    /// From when on it is refused; left out: never.
    pub expires_at: Option<String>,
}

impl CreateToken {
    /// The request.
    ///
    /// # Errors
    /// A field that cannot be, by its name.
    pub fn into_request(self, now: Timestamp) -> Result<NewToken, ApiError> {
        let alias = self.alias.ok_or_else(|| ApiError::invalid("alias", "is missing"))?;
        if !(1..=TOKEN_ALIAS_CHARS_MAX).contains(&alias.chars().count()) || alias.chars().any(char::is_control) {
            return Err(ApiError::invalid("alias", "1 to 100 printable characters are wanted"));
        }
        let permissions = match self.permission_template.as_deref() {
            None | Some("full_access") => Permissions::FullAccess,
            Some("read_only") => Permissions::ReadOnly,
            Some(_) => return Err(ApiError::invalid("permission_template", "full_access or read_only is wanted")),
        };
        let project = self.project_id.map(|text| id_of("project_id", &text));
        let expires_at = self.expires_at.map(|text| time_to_come("expires_at", &text, now));
        Ok(NewToken { alias, permissions, project: project.transpose()?, expires_at: expires_at.transpose()? })
    }
}

/// A token, without its secret.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TokenView {
    /// Its id.
    pub id: String,
    /// For people.
    pub alias: String,
    /// `full_access` or `read_only`.
    pub permission_template: &'static str,
    /// The only project it may know of; null: all.
    pub project_id: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// From when on it is refused; null: never.
    pub expires_at: Option<Timestamp>,
}

impl From<&Token> for TokenView {
    fn from(token: &Token) -> Self {
        Self {
            id: token.id.to_string(),
            alias: token.alias.clone(),
            permission_template: match token.permissions {
                Permissions::FullAccess => "full_access",
                Permissions::ReadOnly => "read_only",
            },
            project_id: token.project.map(|id| id.to_string()),
            created_at: token.created_at,
            expires_at: token.expires_at,
        }
    }
}

/// A new token; its secret is shown this once.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TokenMade {
    /// Its id.
    pub id: String,
    /// For people.
    pub alias: String,
    /// `full_access` or `read_only`.
    pub permission_template: &'static str,
    /// The only project it may know of; null: all.
    pub project_id: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// From when on it is refused; null: never.
    pub expires_at: Option<Timestamp>,
    /// What to present. Null when an idempotency key asks again: secrets are not kept.
    pub token: Option<String>,
}

impl TokenMade {
    /// A token with or without its secret.
    pub fn new(token: &Token, secret: Option<&str>) -> Self {
        let TokenView { id, alias, permission_template, project_id, created_at, expires_at } = token.into();
        Self { id, alias, permission_template, project_id, created_at, expires_at, token: secret.map(str::to_owned) }
    }
}

/// A page of tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenList {
    /// The tokens.
    pub tokens: Vec<TokenView>,
    /// Where they stand.
    pub pagination: Pagination,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::extract::from_json;

    fn create(body: Value) -> Result<NewToken, ApiError> {
        from_json::<CreateToken>(body.to_string().as_bytes())?.into_request(Timestamp::from_second(1_000).unwrap())
    }

    #[test]
    fn every_bad_field_is_refused_by_its_name() {
        for (field, value) in [
            ("alias", json!("")),
            ("alias", json!("x".repeat(101))),
            ("permission_template", json!("root")),
            ("permission_template", json!("provisioner")),
            ("project_id", json!("shop")),
            ("expires_at", json!("tomorrow")),
            ("expires_at", json!("1970-01-01T00:00:00Z")),
            ("scope", json!("x")),
        ] {
            let mut body = json!({ "alias": "ci" });
            body[field] = value;
            let error = create(body).unwrap_err();
            assert_eq!((error.status().as_u16(), error.field()), (400, Some(field)), "{}", error.message());
        }
        assert_eq!(create(json!({})).unwrap_err().field(), Some("alias"));
    }

    #[test]
    fn a_token_is_for_everything_and_for_ever_where_nothing_is_said() {
        let new = create(json!({"alias": "ci"})).unwrap();
        assert_eq!((new.permissions, new.project, new.expires_at), (Permissions::FullAccess, None, None));
        let new =
            create(json!({"alias": "ci", "permission_template": "read_only", "expires_at": "2030-01-31T00:00:00Z"}));
        assert_eq!(new.unwrap().permissions, Permissions::ReadOnly);
    }
}
