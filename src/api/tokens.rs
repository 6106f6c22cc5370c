//! `/auth/tokens`: for admins.

use axum::extract::State;
use jiff::Timestamp;

use super::Api;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::{FromQuery, Json, Pairs, Path, Query};
use super::page::Page;
use super::wire::token::{CreateToken, TokenList, TokenMade, TokenView};
use crate::domain::TokenId;

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
    let made = api.service.create_token(body.into_request(Timestamp::now())?).await?;
    let answer = Answer::created("Token created successfully", TokenMade::new(&made.token, Some(made.secret.reveal())));
    Ok(answer.kept_as(&TokenMade::new(&made.token, None)))
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
    let tokens = tokens.iter().map(|token| TokenView::from(&**token)).collect();
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
