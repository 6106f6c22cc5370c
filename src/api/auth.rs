//! Who asks, and what they may know of.
//!
//! [`require_token`] stands before every route below `/api/v1`: there is no handler without a [`Caller`]. What a request is,
//! as far as rights go, is told by its method and route alone ([`deed_of`]); whether the caller may is told by [`may`], before
//! the handler. A route that is new changes something of the host's until it is said to be something else. What lies outside a
//! token's project is 404: it may not even learn that the thing exists.
//!
//! Two doors lead here, and a key fits one: tokens over TCP, keys of runs over the socket for scripts.

use std::sync::Arc;

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{FromRequestParts, MatchedPath, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::{Api, BASE, audit};
use crate::domain::may::{Deed, Denied, may};
use crate::domain::token::{Permissions, TokenHash};
use crate::domain::{Container, ContainerId, Project, ProjectId, Token, TokenId};
use crate::exec::runs::{Holder, Runs};
use crate::lifecycle::{Refused, Service, What};

/// What a router takes for proof of who asks.
#[derive(Debug, Clone)]
pub enum Door {
    /// A token's secret.
    Tokens,
    /// A run's key.
    Runs(Runs),
}

/// Who a request comes from.
#[derive(Debug, Clone)]
pub struct Caller {
    token: Arc<Token>,
    proof: Proof,
}

#[derive(Debug, Clone)]
enum Proof {
    /// A secret that hashes so.
    Secret(TokenHash),
    /// A run's key.
    Run(Arc<Holder>),
}

/// What a request is about, as far as its path tells.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// The id in its path.
    pub object: Option<String>,
    /// The container that it is, or belongs to.
    pub container: Option<Arc<Container>>,
    /// The project that it is, or belongs to.
    pub project: Option<ProjectId>,
}

impl Target {
    fn of(service: &Service, route: &str, id: Option<&str>) -> Self {
        let object = id.map(str::to_owned);
        let parsed = |kind: &str| id.filter(|_| route.starts_with(kind));
        let container = match parsed("/proxy/aliases/{id}") {
            Some(id) => id.parse().ok().and_then(|id| service.alias(id).ok()).map(|alias| alias.container),
            None => parsed("/containers/{id}").and_then(|id| id.parse().ok()),
        };
        let container = container.and_then(|id| service.container(id).ok());
        let project = parsed("/projects/{id}").and_then(|id| id.parse().ok());
        let project = project.or_else(|| container.as_ref().map(|one| one.project));
        Self { object, container, project }
    }
}

/// What a request is, by its method and its route below [`BASE`].
pub fn deed_of(method: &Method, route: &str) -> Deed {
    match route {
        _ if route.starts_with("/exec/") => Deed::Scripts,
        _ if method.is_safe() => Deed::Read,
        "/containers/{id}/copy" => Deed::Copy,
        // Which container it is for stands in the body; the handler asks by [`Caller::own`].
        "/proxy/aliases" => Deed::Change,
        _ if route.starts_with("/containers/{id}") || route.starts_with("/proxy/aliases/{id}") => Deed::Change,
        _ => Deed::Govern,
    }
}

/// Refuses a request whose caller may not do it; notes one that changes something.
pub async fn require_token(
    State(api): State<Api>,
    route: MatchedPath,
    params: Result<RawPathParams, RawPathParamsRejection>,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = match admit(&api, request.headers()) {
        Ok(caller) => caller,
        Err(error) => return error.into_response(),
    };
    let route = route.as_str().strip_prefix(BASE).unwrap_or(route.as_str());
    let id = params.as_ref().ok().and_then(|params| params.iter().find(|(name, _)| *name == "id"));
    let target = Target::of(&api.service, route, id.map(|(_, value)| value));
    let judged = caller.judge(deed_of(request.method(), route), &target);
    let note = audit::begin(&api.service, &caller, route, target, &request);
    let response = match judged {
        Ok(()) => {
            request.extensions_mut().insert(caller.clone());
            next.run(request).await
        }
        Err(denied) => ApiError::from(denied).into_response(),
    };
    if let Some(made) = response.extensions().get::<audit::Object>().and_then(|made| made.0.parse().ok()) {
        caller.told_of(made);
    }
    match note {
        Some(note) => note.end(response).await,
        None => response,
    }
}

/// Who presents what a request bears.
///
/// # Errors
/// 401.
pub(super) fn admit(api: &Api, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let hash = TokenHash::of(presented(headers)?);
    match &api.door {
        Door::Tokens => {
            let token = api.service.authenticate(&hash).map_err(refused)?;
            Ok(Caller { token, proof: Proof::Secret(hash) })
        }
        Door::Runs(runs) => {
            let holder = runs.holder(&hash).ok_or_else(|| refused(Refused::Unknown))?;
            Ok(Caller { token: Arc::new(holder.identity()), proof: Proof::Run(holder) })
        }
    }
}

/// `Authorization: Bearer <token>`, or the bare token.
pub(super) fn presented(headers: &HeaderMap) -> Result<&str, ApiError> {
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

/// 401: what was presented is not known.
pub(super) fn unknown() -> ApiError {
    refused(Refused::Unknown)
}

/// 403.
pub(super) fn insufficient(why: &str) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "INSUFFICIENT_PERMISSIONS", why)
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        insufficient(&denied.to_string())
    }
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
        self.token.id
    }

    /// The token's alias.
    pub fn alias(&self) -> &str {
        &self.token.alias
    }

    /// The run whose key was presented.
    pub fn run(&self) -> Option<&Holder> {
        match &self.proof {
            Proof::Secret(_) => None,
            Proof::Run(holder) => Some(holder),
        }
    }

    /// Whose idempotency keys these are. Scripts are one, but what one was answered is nothing for another of a different scope.
    pub fn key_space(&self) -> String {
        match self.run().and_then(|run| run.scope) {
            Some(project) => format!("{}.{project}", self.token.id),
            None => self.token.id.to_string(),
        }
    }

    /// Whether the caller would still be admitted: for an answer that goes on and on.
    pub fn is_still_known(&self, service: &Service) -> bool {
        match &self.proof {
            Proof::Secret(hash) => service.knows(self.token.id, hash),
            Proof::Run(holder) => !holder.is_over(),
        }
    }

    /// A container that lies outside the caller's project is not there for it; the handler says so.
    fn judge(&self, deed: Deed, target: &Target) -> Result<(), Denied> {
        let seen = target.container.as_deref().filter(|container| self.sees(container.project));
        may(&self.token, deed, seen)
    }

    /// Refuses whoever may not manage scripts.
    ///
    /// # Errors
    /// 403.
    pub fn scripts(&self) -> Result<(), ApiError> {
        Ok(may(&self.token, Deed::Scripts, None)?)
    }

    /// Refuses whoever may not read the notes of who wrote what.
    ///
    /// # Errors
    /// 403.
    pub fn auditor(&self) -> Result<(), ApiError> {
        match self.token.permissions {
            Permissions::FullAccess => Ok(()),
            Permissions::ReadOnly | Permissions::Provisioner => Err(insufficient("audit events are for full_access")),
        }
    }

    /// Refuses tokens that are bound to a project: for what belongs to the whole host.
    ///
    /// # Errors
    /// 403.
    pub fn host_wide(&self) -> Result<(), ApiError> {
        match self.token.project {
            None => Ok(()),
            Some(_) => Err(insufficient("this token is bound to one project")),
        }
    }

    /// Refuses all but admins: full access, no project.
    ///
    /// # Errors
    /// 403.
    pub fn admin(&self) -> Result<(), ApiError> {
        may(&self.token, Deed::Govern, None)?;
        self.host_wide()
    }

    /// Whether things of a project are there for this token.
    pub fn sees(&self, project: ProjectId) -> bool {
        self.token.project.is_none_or(|bound| bound == project)
    }

    /// A script's run was told of a container: its own answer may tell of it, too.
    pub fn told_of(&self, container: ContainerId) {
        if let Some(run) = self.run() {
            run.told_of.add(container);
        }
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
        if !self.sees(container.project) {
            return Err(ApiError::not_found(What::Container, id));
        }
        self.told_of(id);
        Ok(container)
    }

    /// A container that this token may change, for a request that does not name it in its path.
    ///
    /// # Errors
    /// 403, 404.
    pub fn own(&self, service: &Service, id: ContainerId) -> Result<Arc<Container>, ApiError> {
        let container = self.container(service, id)?;
        may(&self.token, Deed::Change, Some(&container))?;
        Ok(container)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use jiff::Timestamp;

    use super::*;
    fn bearing(text: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(text))])
    }

    fn caller(permissions: Permissions, project: Option<ProjectId>) -> Caller {
        let token = Token {
            id: TokenId::generate(),
            alias: "t".into(),
            hash: TokenHash::of("x"),
            permissions,
            project,
            created_at: Timestamp::UNIX_EPOCH,
            expires_at: None,
            templates: Vec::new(),
            scripts: false,
            previous: None,
        };
        Caller { token: Arc::new(token), proof: Proof::Secret(TokenHash::of("x")) }
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
        assert!(reader.sees(other) && reader.admin().is_err() && reader.auditor().is_err());
    }
}
