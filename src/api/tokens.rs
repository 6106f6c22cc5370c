//! `/auth/tokens`: for admins.

use axum::extract::State;
use jiff::Timestamp;

use super::Api;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::{FromQuery, Json, OptionalJson, Pairs, Path, Query};
use super::page::Page;
use super::wire::token::{CreateToken, RotateToken, TokenList, TokenMade, TokenView};
use crate::domain::{Token, TokenId};
use crate::lifecycle::MadeToken;

/// Query of the list of tokens.
#[derive(Debug)]
pub struct TokensQuery(Page);

impl FromQuery for TokensQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        Page::take(pairs, &["created_at", "alias"]).map(Self)
    }
}

/// Make a token; its secret is shown this once
#[utoipa::path(post, path = "/api/v1/auth/tokens", tag = "tokens", operation_id = "create_token",
    request_body = CreateToken,
    params(("Idempotency-Key" = Option<String>, Header,
            description = "The same key and body: the first answer again, without the secret")),
    responses((status = 201, description = "Made", body = Success<TokenMade>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn create(
    State(api): State<Api>,
    caller: Caller,
    _: Query<()>,
    Json(body): Json<CreateToken>,
) -> Result<Answer<TokenMade>, ApiError> {
    caller.admin()?;
    let new = body.into_request(Timestamp::now())?;
    if new.scripts {
        caller.scripts()?;
    }
    let made = api.service.create_token(new).await?;
    let answer = Answer::created("Token created successfully", shown(&api, &made, true)).made(made.token.id);
    Ok(answer.kept_as(&shown(&api, &made, false)))
}

fn view(api: &Api, token: &Token) -> TokenView {
    TokenView::new(token, api.service.last_used(token.id))
}

fn shown(api: &Api, made: &MadeToken, secret: bool) -> TokenMade {
    TokenMade::new(view(api, &made.token), secret.then_some(made.secret.reveal()))
}

/// Give a token another secret; it is shown this once
///
/// The old one works on for `grace` seconds. What the token may do, and what it made, stays as it is.
#[utoipa::path(post, path = "/api/v1/auth/tokens/{id}/rotate", tag = "tokens", operation_id = "rotate_token",
    request_body = RotateToken,
    params(("id" = String, Path, description = "The token's id"),
           ("Idempotency-Key" = Option<String>, Header,
            description = "The same key and body: the first answer again, without the secret")),
    responses((status = 200, description = "Rotated", body = Success<TokenMade>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn rotate(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<TokenId>,
    _: Query<()>,
    OptionalJson(body): OptionalJson<RotateToken>,
) -> Result<Answer<TokenMade>, ApiError> {
    caller.admin()?;
    // Whoever gets its secret may do what it may.
    if api.service.token(id)?.scripts {
        caller.scripts()?;
    }
    let made = api.service.rotate_token(id, body.into_grace()?).await?;
    let answer = Answer::ok("Token rotated successfully", shown(&api, &made, true));
    Ok(answer.kept_as(&shown(&api, &made, false)))
}

/// List tokens
#[utoipa::path(get, path = "/api/v1/auth/tokens", tag = "tokens", operation_id = "list_tokens",
    params(("page" = Option<u64>, Query, description = "From 1"), ("limit" = Option<u64>, Query, description = "1–100 (50)"),
           ("sort_by" = Option<String>, Query, description = "created_at, alias"),
           ("sort_order" = Option<String>, Query, description = "asc, desc")),
    responses((status = 200, description = "A page", body = Success<TokenList>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn list(
    State(api): State<Api>,
    caller: Caller,
    Query(query): Query<TokensQuery>,
) -> Result<Answer<TokenList>, ApiError> {
    caller.admin()?;
    let page = query.0;
    let (tokens, pagination) = page.cut(api.service.tokens(), |a, b| match page.sort_by {
        "alias" => a.alias.cmp(&b.alias),
        _ => a.created_at.cmp(&b.created_at),
    });
    let tokens = tokens.iter().map(|token| view(&api, token)).collect();
    Ok(Answer::ok("Tokens retrieved successfully", TokenList { tokens, pagination }))
}

/// Delete a token: it is refused from now on
#[utoipa::path(delete, path = "/api/v1/auth/tokens/{id}", tag = "tokens", operation_id = "delete_token",
    params(("id" = String, Path, description = "The token's id")),
    responses((status = 200, description = "Deleted", body = Success<super::wire::Deleted>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn remove(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<TokenId>,
    _: Query<()>,
) -> Result<Answer<super::wire::Deleted>, ApiError> {
    caller.admin()?;
    api.service.delete_token(id).await?;
    Ok(Answer::ok("Token deleted successfully", super::wire::Deleted { id: id.to_string() }))
}
