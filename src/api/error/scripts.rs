//! What visitors are told where a script has no answer, and what whoever writes one is told.
//!
//! A visitor is told the place of what cannot be read, since nothing of it runs, and of a failure only that there was one: what a
//! script throws is for its log.

use axum::http::StatusCode;

use super::{ApiError, RETRY_AFTER_S};
use crate::exec::Fault;
use crate::exec::deliveries::ClaimError;
use crate::exec::folder::FolderError;
use crate::exec::manage::WriteError;
use crate::exec::run::{Place, RunError};
use crate::exec::secrets::SecretsError;

/// What a visitor is told where only the log may say more.
const IN_THE_LOG: &str = "the script failed; its log says why";

fn failed(code: &'static str, message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, code, message)
}

fn busy(message: String) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "SCRIPT_BUSY", message).retry_after_s(RETRY_AFTER_S)
}

/// A place as an answer's `data` has it: `shop/a.js:3:7`.
fn at(place: &Place) -> String {
    format!("{}:{}:{}", place.file, place.line, place.column)
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        let text = fault.to_string();
        match fault {
            Fault::NotFound(_) => Self::new(StatusCode::NOT_FOUND, "SCRIPT_NOT_FOUND", text),
            Fault::Comment { file, source } => failed("SCRIPT_COMMENT", text).of(format!("{file}:{}", source.line)),
            Fault::KeyMissing(_) => Self::bad("DELIVERY_KEY_MISSING", text),
            Fault::Full { .. } => busy(text),
            Fault::Claim(ClaimError::InFlight) => busy("the same delivery is being handled".to_owned()),
            Fault::Claim(ClaimError::TooMany) => busy(text),
            Fault::Claim(ClaimError::Store(error)) | Fault::Keep(error) => error.into(),
            Fault::Run(error) => of_run(error),
            Fault::Folder(_) | Fault::Secrets(_) | Fault::Key(_) | Fault::Status(_) | Fault::Task => {
                failed("SCRIPT_FAILED", IN_THE_LOG)
            }
        }
    }
}

fn of_run(error: RunError) -> ApiError {
    let text = error.to_string();
    match error {
        RunError::Syntax { place, .. } => failed("SCRIPT_SYNTAX", text).of(at(&place)),
        RunError::Thrown { .. } => failed("SCRIPT_FAILED", IN_THE_LOG),
        RunError::Time { .. } => ApiError::new(StatusCode::GATEWAY_TIMEOUT, "SCRIPT_TIMEOUT", text),
        RunError::Cpu { .. } => failed("SCRIPT_CPU", text),
        RunError::Memory { .. } => failed("SCRIPT_MEMORY", text),
        RunError::Response { .. } => failed("SCRIPT_RESPONSE", text),
        RunError::Worker { .. } => {
            ApiError::new(StatusCode::BAD_GATEWAY, "SCRIPT_WORKER", "the process of the script ended under it")
        }
        RunError::Busy { .. } => busy(text),
    }
}

/// For whoever manages scripts: what the folder says.
pub fn of_management(fault: Fault) -> ApiError {
    match &fault {
        Fault::Folder(FolderError::Io { .. }) => {
            tracing::error!(error = &fault as &dyn std::error::Error, "the scripts cannot be managed");
            failed("SCRIPTS_UNREADABLE", "the scripts cannot be read or written; the daemon's log has the details")
        }
        Fault::Folder(error) => ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "SCRIPT_UNREADABLE", error.to_string()),
        _ => fault.into(),
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        let text = error.to_string();
        let unprocessable = |code| Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, text);
        match error {
            WriteError::Comment(error) => unprocessable("SCRIPT_COMMENT").of(format!("line {}", error.line)),
            WriteError::Check(RunError::Syntax { place, .. }) => unprocessable("SCRIPT_SYNTAX").of(at(&place)),
            WriteError::Check(error) => of_run(error),
            WriteError::Fault(fault) => of_management(fault),
        }
    }
}

impl From<SecretsError> for ApiError {
    fn from(error: SecretsError) -> Self {
        match error {
            SecretsError::TooMany => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "TOO_MANY_SECRETS", error.to_string()),
            SecretsError::Store(error) => error.into(),
            // Its text names the file and what is wrong with it, and repeats nothing that stands in it.
            other => {
                tracing::error!(error = &other as &dyn std::error::Error, "the secrets of scripts cannot be read");
                failed("SECRETS_UNREADABLE", other.to_string())
            }
        }
    }
}
