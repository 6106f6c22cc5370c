//! `/receipts/{id}`: what is left of a deleted container.

use axum::extract::State;

use super::Api;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::{Path, Query};
use super::wire::ops::ReceiptView;
use crate::domain::ReceiptId;
use crate::lifecycle::What;

/// What was erased, when, and how that was seen
#[utoipa::path(get, path = "/api/v1/receipts/{id}", tag = "receipts", operation_id = "get_receipt",
    params(("id" = String, Path, description = "The receipt's id")),
    responses((status = 200, description = "The receipt", body = Success<ReceiptView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn show(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ReceiptId>,
    _: Query<()>,
) -> Result<Answer<ReceiptView>, ApiError> {
    let receipt = api.service.receipt(id).await?;
    if !caller.sees(receipt.project) {
        return Err(ApiError::not_found(What::Receipt, id));
    }
    Ok(Answer::ok("Receipt retrieved successfully", receipt.into()))
}
