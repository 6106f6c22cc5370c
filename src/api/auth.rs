//! Who asks, and what they may know of.
//!
//! [`require_token`] stands before every route below `/api/v1`: there is no handler without a [`Caller`]. A
//! `read_only` token is held to GET by the method, not by each handler. What lies outside a token's project is 404:
//! it may not even learn that the thing exists.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Api;
use super::error::ApiError;
use crate::domain::token::Permissions;
use crate::domain::{Container, ContainerId, Project, ProjectId, Token, TokenId};
use crate::lifecycle::{Refused, Service, What};

/// The token a request came with.
#[derive(Debug, Clone)]
pub struct Caller(Arc<Token>);

/// Refuses a request without a token that may do it.
pub async fn require_token(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    match admit(&api.service, request.method(), request.headers()) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

/// The token of a request, where it may do what the method says.
///
/// # Errors
/// 401 and 403.
pub(super) fn admit(service: &Service, method: &Method, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let secret = presented(headers)?;
    let token = service.authenticate(secret).map_err(refused)?;
    let caller = Caller(token);
    if !(method.is_safe() || caller.may_write()) {
        return Err(insufficient("this token is read_only"));
    }
    Ok(caller)
}

/// `Authorization: Bearer <token>`, or the bare token.
fn presented(headers: &HeaderMap) -> Result<&str, ApiError> {
    let missing = || {
        ApiError::new(
            StatusCode::UNAUTHORIZED,
            "MISSING_TOKEN",
            "a token is wanted, as `Authorization: Bearer <token>`",
        )
    };
    let value = headers.get(header::AUTHORIZATION).ok_or_else(missing)?;
    let text = value.to_str().map_err(|_| refused(Refused::Unknown))?.trim();
    let secret = match text.split_once(' ') {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("bearer") => rest.trim(),
        Some(_) => return Err(refused(Refused::Unknown)),
        None if text.eq_ignore_ascii_case("bearer") => "",
        None => text,
    };
    if secret.is_empty() { Err(missing()) } else { Ok(secret) }
}

fn refused(why: Refused) -> ApiError {
    match why {
        Refused::Unknown => ApiError::new(StatusCode::UNAUTHORIZED, "INVALID_TOKEN", "the token is not known"),
        Refused::Expired => ApiError::new(StatusCode::UNAUTHORIZED, "TOKEN_EXPIRED", "the token has expired"),
    }
}

fn insufficient(why: &str) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "INSUFFICIENT_PERMISSIONS", why)
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // Only a route that was mounted without `require_token` lacks it.
        parts.extensions.get::<Self>().cloned().ok_or_else(|| refused(Refused::Unknown))
    }
}

impl Caller {
    /// The token's id.
    pub fn token(&self) -> TokenId {
        self.0.id
    }

    /// Whether the token would still be admitted: for an answer that goes on and on.
    pub fn is_still_known(&self, service: &Service) -> bool {
        service.knows(&self.0)
    }

    fn may_write(&self) -> bool {
        self.0.permissions == Permissions::FullAccess
    }

    /// Refuses tokens that are bound to a project: for what belongs to the whole host.
    ///
    /// # Errors
    /// 403.
    pub fn host_wide(&self) -> Result<(), ApiError> {
        match self.0.project {
            None => Ok(()),
            Some(_) => Err(insufficient("this token is bound to one project")),
        }
    }

    /// Refuses all but admins: full access, no project.
    ///
    /// # Errors
    /// 403.
    pub fn admin(&self) -> Result<(), ApiError> {
        if !self.may_write() {
            return Err(insufficient("this token is read_only"));
        }
        self.host_wide()
    }

    /// Whether things of a project are there for this token.
    pub fn sees(&self, project: ProjectId) -> bool {
        self.0.project.is_none_or(|bound| bound == project)
    }

    /// A project that this token may know of.
    ///
    /// # Errors
    /// 404.
    pub fn project(&self, service: &Service, id: ProjectId) -> Result<Arc<Project>, ApiError> {
        if !self.sees(id) {
            return Err(ApiError::not_found(What::Project, id));
        }
        Ok(service.project(id)?)
    }

    /// A container that this token may know of.
    ///
    /// # Errors
    /// 404.
    pub fn container(&self, service: &Service, id: ContainerId) -> Result<Arc<Container>, ApiError> {
        let container = service.container(id)?;
        if self.sees(container.project) { Ok(container) } else { Err(ApiError::not_found(What::Container, id)) }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use jiff::Timestamp;

    use super::*;
    use crate::domain::token::TokenHash;

    fn bearing(text: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(text))])
    }

    fn caller(permissions: Permissions, project: Option<ProjectId>) -> Caller {
        Caller(Arc::new(Token {
            id: TokenId::generate(),
            alias: "t".into(),
            hash: TokenHash::of("x"),
            permissions,
            project,
            created_at: Timestamp::UNIX_EPOCH,
            expires_at: None,
        }))
    }

    #[test]
    fn a_token_comes_as_bearer_or_bare() {
        for text in ["Bearer tnt_1", "bearer  tnt_1", "tnt_1", " tnt_1 "] {
            assert_eq!(presented(&bearing(text)).unwrap(), "tnt_1", "{text}");
        }
    }

    #[test]
    fn a_request_without_a_token_is_told_so() {
        assert_eq!(presented(&HeaderMap::new()).unwrap_err().code(), "MISSING_TOKEN");
        for text in ["", "Bearer", "Bearer  "] {
            assert_eq!(presented(&bearing(text)).unwrap_err().code(), "MISSING_TOKEN", "{text}");
        }
        assert_eq!(presented(&bearing("Basic dXNlcjpwYXNz")).unwrap_err().code(), "INVALID_TOKEN");
    }

    #[test]
    fn each_refusal_has_its_code() {
        assert_eq!(
            (refused(Refused::Unknown).status().as_u16(), refused(Refused::Unknown).code()),
            (401, "INVALID_TOKEN")
        );
        assert_eq!(
            (refused(Refused::Expired).status().as_u16(), refused(Refused::Expired).code()),
            (401, "TOKEN_EXPIRED")
        );
    }

    #[test]
    fn a_bound_token_sees_its_project_alone_and_is_no_admin() {
        let (mine, other) = (ProjectId::generate(), ProjectId::generate());
        let bound = caller(Permissions::FullAccess, Some(mine));
        assert!(bound.sees(mine) && !bound.sees(other));
        assert_eq!(bound.admin().unwrap_err().status(), StatusCode::FORBIDDEN);
        assert_eq!(bound.host_wide().unwrap_err().code(), "INSUFFICIENT_PERMISSIONS");
        assert!(caller(Permissions::FullAccess, None).admin().is_ok());
        let reader = caller(Permissions::ReadOnly, None);
        assert!(reader.sees(other) && reader.admin().is_err() && !reader.may_write());
    }
}
