//! Tokens on the wire.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::checks::{id_of, time_to_come};
use crate::api::error::ApiError;
use crate::api::page::Pagination;
use crate::domain::token::{Permissions, TEMPLATES_MAX, TemplateRef};
use crate::domain::{ContainerName, Token};
use crate::lifecycle::NewToken;

/// Characters of a token's alias, at most.
const TOKEN_ALIAS_CHARS_MAX: usize = 100;
/// How long an old secret may work on, in seconds.
const GRACE_S_MAX: u64 = 86_400;

/// A token to be made.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// 1–100 printable characters, unique.
    #[schema(required)]
    pub alias: Option<String>,
    /// `full_access` (where left out), `read_only` or `provisioner`.
    pub permission_template: Option<String>,
    /// The only project it may know of; left out: all.
    pub project_id: Option<String>,
    /// From when on it is refused; left out: never.
    pub expires_at: Option<String>,
    /// Of a provisioner: names or ids of the containers that it may copy; empty or left out: whatever is a template.
    pub templates: Option<Vec<String>>,
    /// Of full_access: whether it may manage scripts (false).
    pub scripts: Option<bool>,
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
            Some("provisioner") => Permissions::Provisioner,
            Some(_) => {
                let wanted = "full_access, read_only or provisioner is wanted";
                return Err(ApiError::invalid("permission_template", wanted));
            }
        };
        let scripts = self.scripts.unwrap_or(false);
        if scripts && permissions != Permissions::FullAccess {
            return Err(ApiError::invalid("scripts", "only a token with full_access may manage scripts"));
        }
        let templates = templates(self.templates.unwrap_or_default(), permissions)?;
        let project = self.project_id.map(|text| id_of("project_id", &text));
        let expires_at = self.expires_at.map(|text| time_to_come("expires_at", &text, now));
        let (project, expires_at) = (project.transpose()?, expires_at.transpose()?);
        Ok(NewToken { alias, permissions, project, expires_at, templates, scripts })
    }
}

fn templates(given: Vec<String>, permissions: Permissions) -> Result<Vec<TemplateRef>, ApiError> {
    let wrong = |problem: String| Err(ApiError::invalid("templates", problem));
    if !given.is_empty() && permissions != Permissions::Provisioner {
        return wrong("only a provisioner has templates".to_owned());
    }
    if given.len() > TEMPLATES_MAX {
        return wrong(format!("at most {TEMPLATES_MAX} are wanted"));
    }
    if let Some(bad) = given.iter().find(|text| text.parse::<ContainerName>().is_err()) {
        return wrong(format!(
            "`{}` is neither a container's name nor an id",
            bad.chars().take(64).collect::<String>()
        ));
    }
    Ok(given.into_iter().map(TemplateRef::from).collect())
}

/// A token, without its secret.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TokenView {
    /// Its id.
    pub id: String,
    /// For people.
    pub alias: String,
    /// `full_access`, `read_only` or `provisioner`.
    pub permission_template: &'static str,
    /// What a provisioner may copy, by name or id; empty: whatever is a template.
    pub templates: Vec<String>,
    /// Whether it may manage scripts.
    pub scripts: bool,
    /// The only project it may know of; null: all.
    pub project_id: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// From when on it is refused; null: never.
    pub expires_at: Option<Timestamp>,
    /// When it was last presented; after a crash this may be a minute old. Null: never.
    pub last_used_at: Option<Timestamp>,
}

impl TokenView {
    /// A token, and when it was last presented.
    pub fn new(token: &Token, last_used_at: Option<Timestamp>) -> Self {
        Self {
            last_used_at,
            id: token.id.to_string(),
            alias: token.alias.clone(),
            permission_template: token.permissions.as_str(),
            templates: token.templates.iter().map(ToString::to_string).collect(),
            scripts: token.scripts,
            project_id: token.project.map(|id| id.to_string()),
            created_at: token.created_at,
            expires_at: token.expires_at,
        }
    }
}

/// A token whose secret is new; it is shown this once.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TokenMade {
    /// All but its secret.
    #[serde(flatten)]
    pub view: TokenView,
    /// What to present. Null when an idempotency key asks again: secrets are not kept.
    pub token: Option<String>,
}

impl TokenMade {
    /// A token with or without its secret.
    pub fn new(view: TokenView, secret: Option<&str>) -> Self {
        Self { view, token: secret.map(str::to_owned) }
    }
}

/// A rotation.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateToken {
    /// Seconds for which the old secret works on, 0–86400 (0).
    pub grace: Option<u64>,
}

impl RotateToken {
    /// How long the old secret works on.
    ///
    /// # Errors
    /// Longer than may be.
    pub fn into_grace(self) -> Result<Duration, ApiError> {
        match self.grace.unwrap_or(0) {
            seconds if seconds <= GRACE_S_MAX => Ok(Duration::from_secs(seconds)),
            _ => Err(ApiError::invalid("grace", format!("0 to {GRACE_S_MAX} seconds are wanted"))),
        }
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
            ("templates", json!(["base"])),
            ("scripts", json!("yes")),
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
        assert!(new.templates.is_empty() && !new.scripts);
        let new =
            create(json!({"alias": "ci", "permission_template": "read_only", "expires_at": "2030-01-31T00:00:00Z"}));
        assert_eq!(new.unwrap().permissions, Permissions::ReadOnly);
    }

    #[test]
    fn a_provisioner_names_its_templates_and_manages_no_scripts() {
        let body = |more: Value| {
            let mut body = json!({ "alias": "shop", "permission_template": "provisioner" });
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            create(body)
        };
        let id = "0123456789abcdef01234567";
        let new = body(json!({ "templates": ["base", id] })).unwrap();
        assert_eq!(new.templates, [TemplateRef::Name("base".into()), TemplateRef::Id(id.parse().unwrap())]);
        for (bad, field) in [
            (json!({ "templates": ["no such name"] }), "templates"),
            (json!({ "templates": vec!["base"; TEMPLATES_MAX + 1] }), "templates"),
            (json!({ "scripts": true }), "scripts"),
        ] {
            assert_eq!(body(bad).unwrap_err().field(), Some(field));
        }
    }

    #[test]
    fn a_grace_is_no_longer_than_a_day() {
        let grace = |body: &str| from_json::<RotateToken>(body.as_bytes())?.into_grace();
        assert_eq!((grace("{}").unwrap(), grace(r#"{"grace":86400}"#).unwrap().as_secs()), (Duration::ZERO, 86_400));
        assert_eq!(grace(r#"{"grace":86401}"#).unwrap_err().field(), Some("grace"));
        assert!(grace(r#"{"grace":-1}"#).is_err());
    }
}
