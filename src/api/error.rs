//! The one place where errors get a status and a machine code.
//!
//! An [`ApiError`] that leaves a handler is not a body yet: it travels in the response's extensions to
//! [`super::request`], which knows the request's id, logs what the client is not told, and writes the body.

pub(super) mod scripts;

use std::sync::Arc;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use crate::domain::container::SettingsError;
use crate::domain::{EnvError, chain};
use crate::lifecycle::{DriverError, Error, What};
use crate::store::StoreError;
use crate::sys::btrfs::PoolError;
use crate::sys::cgroup::CgroupError;
use crate::sys::runtime::RuntimeError;

/// Characters of an error's message, at most: it may repeat what the caller sent.
const MESSAGE_CHARS_MAX: usize = 600;
/// What a client is told to wait before it asks again where nothing better is known, in seconds.
const RETRY_AFTER_S: u64 = 1;
/// What stands in the place of everything that only an operator may see.
const INTERNAL_TEXT: &str = "an internal error; the daemon's log has the details under this request_id";

/// An answer that is a refusal or a failure.
#[derive(Debug, Clone)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    field: Option<String>,
    retry_after_s: Option<u64>,
    cause: Option<Arc<Error>>,
}

/// The body of every answer that is no success.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// The HTTP status again.
    #[serde(rename = "statusCode")]
    pub status_code: u16,
    /// For machines: `CONTAINER_NAME_IN_USE`, …
    pub error: String,
    /// For people.
    pub message: String,
    /// `field`: which one was wrong, where one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub data: Option<Value>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// As in `x-request-id` and in the daemon's log.
    pub request_id: String,
}

impl ApiError {
    /// A refusal.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), field: None, retry_after_s: None, cause: None }
    }

    /// 400: a value that is not what its field takes.
    pub fn invalid(field: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        let field = field.into();
        Self::bad("VALIDATION_ERROR", format!("{field}: {problem}")).of(field)
    }

    /// 400 with a code of its own.
    pub fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 404 for a thing of that kind.
    pub fn not_found(what: What, name: impl std::fmt::Display) -> Self {
        Error::not_found(what, name).into()
    }

    /// Names the field that was wrong.
    pub fn of(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Says that the same request may succeed later, and when.
    pub fn retry_after_s(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// The machine code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The text for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The field that was wrong.
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// The body as it is sent.
    pub fn body(&self, request_id: &str) -> ErrorBody {
        ErrorBody {
            status_code: self.status.as_u16(),
            error: self.code.to_owned(),
            message: self.message.chars().take(MESSAGE_CHARS_MAX).collect(),
            data: self.field.as_ref().map(|field| json!({ "field": field })),
            retryable: self.retry_after_s.is_some(),
            request_id: request_id.to_owned(),
        }
    }

    /// Seconds for `Retry-After`.
    pub fn retry_after(&self) -> Option<u64> {
        self.retry_after_s
    }

    /// What only an operator may see: the whole chain of causes.
    pub fn hidden_chain(&self) -> Option<String> {
        let cause = self.cause.as_ref().filter(|_| self.status.is_server_error())?;
        Some(chain(cause.as_ref()))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status;
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let Verdict { status, code, message, retry } = verdict(&error);
        let message = message.unwrap_or_else(|| error.to_string());
        let mut answer = Self::new(status, code, message);
        answer.retry_after_s = retry.then_some(RETRY_AFTER_S);
        answer.field = match &error {
            Error::Settings(wrong) => Some(wrong.field.to_owned()),
            Error::LimitUnsupported { limit, .. } | Error::LimitBelowUse { limit, .. } => {
                Some(format!("limits.{limit}"))
            }
            _ => None,
        };
        answer.cause = Some(Arc::new(error));
        answer
    }
}

impl From<EnvError> for ApiError {
    fn from(error: EnvError) -> Self {
        Error::Env(error).into()
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Error::Store(error).into()
    }
}

impl From<SettingsError> for ApiError {
    fn from(error: SettingsError) -> Self {
        Error::Settings(error).into()
    }
}

struct Verdict {
    status: StatusCode,
    code: &'static str,
    /// In the place of the error's own text.
    message: Option<String>,
    retry: bool,
}

fn say(status: StatusCode, code: &'static str) -> Verdict {
    Verdict { status, code, message: None, retry: false }
}

fn later(status: StatusCode, code: &'static str) -> Verdict {
    Verdict { status, code, message: None, retry: true }
}

fn internal() -> Verdict {
    Verdict {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        code: "INTERNAL_ERROR",
        message: Some(INTERNAL_TEXT.to_owned()),
        retry: false,
    }
}

/// Every error the lifecycle has, once.
fn verdict(error: &Error) -> Verdict {
    use StatusCode as S;
    match error {
        Error::NotFound { what, .. } => say(S::NOT_FOUND, not_found_code(*what)),
        Error::NameInUse(_) => say(S::CONFLICT, "CONTAINER_NAME_IN_USE"),
        Error::ExternalIdInUse(_) => say(S::CONFLICT, "EXTERNAL_ID_IN_USE"),
        Error::AliasInUse { what: What::Project, .. } => say(S::CONFLICT, "PROJECT_ALIAS_IN_USE"),
        Error::AliasInUse { what: What::Image, .. } => say(S::CONFLICT, "IMAGE_NAME_IN_USE"),
        Error::AliasInUse { what: What::Token, .. } => say(S::CONFLICT, "TOKEN_ALIAS_IN_USE"),
        Error::AliasInUse { what: What::Alias, .. } => say(S::CONFLICT, "PROXY_ALIAS_IN_USE"),
        Error::ListenPortInUse(_) => say(S::CONFLICT, "LISTEN_PORT_IN_USE"),
        Error::NoListenPort(_) => say(S::BAD_REQUEST, "INVALID_LISTEN_PORT"),
        Error::NoListenPorts => say(S::UNPROCESSABLE_ENTITY, "TCP_UNSUPPORTED"),
        Error::ListenPortsUsedUp(_) => say(S::CONFLICT, "LISTEN_PORTS_USED_UP"),
        Error::NotOfProgram { .. } => say(S::BAD_REQUEST, "NOT_OF_PROGRAM"),
        Error::NoDomain => say(S::BAD_REQUEST, "PROXY_ALIAS_NO_DOMAIN"),
        Error::OwnDomain(_) => say(S::BAD_REQUEST, "INVALID_DOMAIN"),
        Error::NotProven { .. } => say(S::CONFLICT, "DOMAIN_NOT_VERIFIED"),
        Error::NamesUnavailable { .. } => later(S::SERVICE_UNAVAILABLE, "DNS_UNAVAILABLE"),
        Error::AliasLimit { .. } => say(S::BAD_REQUEST, "PROXY_ALIAS_LIMIT"),
        Error::AliasInUse { .. } => say(S::CONFLICT, "NAME_IN_USE"),
        Error::ProjectLimit { .. } => say(S::BAD_REQUEST, "PROJECT_CONTAINER_LIMIT"),
        Error::Deleting { what: What::Project } => say(S::CONFLICT, "PROJECT_DELETING"),
        Error::Deleting { .. } => say(S::CONFLICT, "CONTAINER_DELETING"),
        Error::NoSlot(_) => say(S::INSUFFICIENT_STORAGE, "SUBNET_FULL"),
        Error::PoolFull { .. } => say(S::INSUFFICIENT_STORAGE, "POOL_FULL"),
        Error::WrongState { .. } => say(S::BAD_REQUEST, "INVALID_CONTAINER_STATE"),
        Error::NotRunning(_) => say(S::CONFLICT, "CONTAINER_NOT_RUNNING"),
        Error::Busy(_) => later(S::CONFLICT, "CONTAINER_OPERATION_IN_PROGRESS"),
        Error::Stale { .. } => say(S::PRECONDITION_FAILED, "PRECONDITION_FAILED"),
        Error::Protected(_) => say(S::LOCKED, "CONTAINER_PROTECTED"),
        Error::Rules(_) => say(S::BAD_REQUEST, "CONTAINER_FIREWALL_RULE_LIMIT"),
        Error::NoSuchRule(_) => say(S::NOT_FOUND, "FIREWALL_RULE_NOT_FOUND"),
        Error::ImageInUse(_) => say(S::CONFLICT, "IMAGE_IN_USE"),
        Error::SourceGone(_) => say(S::CONFLICT, "SOURCE_CONTAINER_DELETED"),
        Error::StartFailed(_) => say(S::UNPROCESSABLE_ENTITY, "CONTAINER_START_FAILED"),
        Error::LimitUnsupported { .. } => say(S::UNPROCESSABLE_ENTITY, "LIMIT_UNSUPPORTED"),
        Error::LimitBelowUse { .. } => say(S::UNPROCESSABLE_ENTITY, "LIMIT_BELOW_USAGE"),
        Error::BadImage(_) => say(S::UNPROCESSABLE_ENTITY, "INVALID_IMAGE"),
        Error::Env(error) => say(S::BAD_REQUEST, env_code(error)),
        Error::Settings(_) => say(S::BAD_REQUEST, "VALIDATION_ERROR"),
        Error::NetworkNotSet => say(S::CONFLICT, "NETWORK_NOT_CONFIGURED"),
        Error::ShuttingDown => later(S::SERVICE_UNAVAILABLE, "SHUTTING_DOWN"),
        Error::DeletedMeanwhile(_) => say(S::CONFLICT, "CONTAINER_DELETED"),
        Error::Step { source, .. } | Error::Driver(source) => driver(source),
        Error::NotExecutable(_) => say(S::UNPROCESSABLE_ENTITY, "COMMAND_NOT_EXECUTABLE"),
        Error::NotCopyable { .. } => say(S::CONFLICT, "CONTAINER_NOT_COPYABLE"),
        Error::Store(_) | Error::Config(_) | Error::File { .. } | Error::Left { .. } => internal(),
    }
}

const fn not_found_code(what: What) -> &'static str {
    match what {
        What::Project => "PROJECT_NOT_FOUND",
        What::Container => "CONTAINER_NOT_FOUND",
        What::Image => "IMAGE_NOT_FOUND",
        What::Token => "TOKEN_NOT_FOUND",
        What::Receipt => "RECEIPT_NOT_FOUND",
        What::Policy => "FIREWALL_POLICY_NOT_FOUND",
        What::Alias => "PROXY_ALIAS_NOT_FOUND",
    }
}

const fn env_code(error: &EnvError) -> &'static str {
    match error {
        EnvError::Key(_) => "INVALID_ENV_KEY",
        EnvError::Reserved(_) => "RESERVED_ENV_PREFIX",
        EnvError::Value(_) => "INVALID_ENV_VALUE",
        EnvError::TooMany(_) => "TOO_MANY_ENV_VARS",
    }
}

/// The few failures of a driver that the caller caused or can mend; the rest is the operator's.
fn driver(error: &DriverError) -> Verdict {
    let told = |status, code| Verdict { status, code, message: Some(error.to_string()), retry: false };
    match error {
        DriverError::Pool(PoolError::Full { .. }) => Verdict {
            message: Some("the pool is full".to_owned()),
            ..say(StatusCode::INSUFFICIENT_STORAGE, "POOL_FULL")
        },
        DriverError::Pool(PoolError::NoQuota) | DriverError::Cgroup(CgroupError::NoController { .. }) => {
            told(StatusCode::UNPROCESSABLE_ENTITY, "LIMIT_UNSUPPORTED")
        }
        DriverError::Runtime(RuntimeError::NotExecutable { .. }) => {
            told(StatusCode::UNPROCESSABLE_ENTITY, "CONTAINER_START_FAILED")
        }
        DriverError::Runtime(RuntimeError::NotRunning(_)) => told(StatusCode::CONFLICT, "CONTAINER_NOT_RUNNING"),
        _ => internal(),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::domain::firewall::{OwnRulesError, Side};
    use crate::domain::{Bytes, ContainerId, Status, Verb};

    fn id() -> ContainerId {
        "0123456789abcdef01234567".parse().unwrap()
    }

    fn leak() -> std::io::Error {
        std::io::Error::other("/secret/place")
    }

    fn pool(action: &'static str) -> DriverError {
        PoolError::Path { action, path: "/secret".into(), source: leak() }.into()
    }

    fn refused_limit(source: CgroupError) -> CgroupError {
        CgroupError::Limit { limit: "disk_read_bps", source: Box::new(source) }
    }

    fn step(source: DriverError) -> Error {
        Error::Step { id: id(), step: "snapshot".into(), source: Box::new(source) }
    }

    fn said(cases: impl IntoIterator<Item = (Error, u16, &'static str)>) {
        for (error, status, code) in cases {
            let text = error.to_string();
            let answer = ApiError::from(error);
            assert_eq!((answer.status().as_u16(), answer.code()), (status, code), "{text}");
            let body = serde_json::to_value(answer.body("r-1")).unwrap();
            assert!(!body.to_string().contains("/secret"), "{body}");
            assert_eq!(body["retryable"], matches!(code, "CONTAINER_OPERATION_IN_PROGRESS" | "SHUTTING_DOWN"));
        }
    }

    #[test]
    fn every_error_of_an_alias_has_its_status_and_its_code() {
        said([
            (Error::AliasInUse { what: What::Alias, name: "n".into() }, 409, "PROXY_ALIAS_IN_USE"),
            (Error::AliasLimit { max: 64 }, 400, "PROXY_ALIAS_LIMIT"),
            (Error::ListenPortInUse(NonZeroU16::MAX), 409, "LISTEN_PORT_IN_USE"),
            (Error::NoListenPort("1-2".parse().unwrap()), 400, "INVALID_LISTEN_PORT"),
            (Error::NoListenPorts, 422, "TCP_UNSUPPORTED"),
            (Error::ListenPortsUsedUp("1-2".parse().unwrap()), 409, "LISTEN_PORTS_USED_UP"),
            (Error::NotOfProgram { field: "wake", program: "http" }, 400, "NOT_OF_PROGRAM"),
            (Error::NoDomain, 400, "PROXY_ALIAS_NO_DOMAIN"),
            (Error::OwnDomain("a.b".parse().unwrap()), 400, "INVALID_DOMAIN"),
        ]);
    }

    #[test]
    fn every_error_has_its_status_and_its_code() {
        let name = || "n".to_owned();
        let cases = [
            (Error::not_found(What::Project, "x"), 404, "PROJECT_NOT_FOUND"),
            (Error::not_found(What::Container, "x"), 404, "CONTAINER_NOT_FOUND"),
            (Error::not_found(What::Image, "x"), 404, "IMAGE_NOT_FOUND"),
            (Error::not_found(What::Token, "x"), 404, "TOKEN_NOT_FOUND"),
            (Error::not_found(What::Receipt, "x"), 404, "RECEIPT_NOT_FOUND"),
            (Error::not_found(What::Policy, "x"), 404, "FIREWALL_POLICY_NOT_FOUND"),
            (Error::NameInUse(name()), 409, "CONTAINER_NAME_IN_USE"),
            (Error::ExternalIdInUse(name()), 409, "EXTERNAL_ID_IN_USE"),
            (Error::AliasInUse { what: What::Project, name: name() }, 409, "PROJECT_ALIAS_IN_USE"),
            (Error::AliasInUse { what: What::Image, name: name() }, 409, "IMAGE_NAME_IN_USE"),
            (Error::AliasInUse { what: What::Token, name: name() }, 409, "TOKEN_ALIAS_IN_USE"),
            (Error::ProjectLimit { max: 3 }, 400, "PROJECT_CONTAINER_LIMIT"),
            (Error::Deleting { what: What::Project }, 409, "PROJECT_DELETING"),
            (Error::Deleting { what: What::Container }, 409, "CONTAINER_DELETING"),
            (Error::NoSlot(65_000), 507, "SUBNET_FULL"),
            (Error::PoolFull { available: Bytes(1) }, 507, "POOL_FULL"),
            (Error::WrongState { verb: Verb::Start, status: Status::Running }, 400, "INVALID_CONTAINER_STATE"),
            (Error::NotRunning(Status::Stopped), 409, "CONTAINER_NOT_RUNNING"),
            (Error::Busy(id()), 409, "CONTAINER_OPERATION_IN_PROGRESS"),
            (Error::Stale { what: What::Container, wanted: 1, found: 2 }, 412, "PRECONDITION_FAILED"),
            (Error::Protected(id()), 423, "CONTAINER_PROTECTED"),
            (OwnRulesError::TooMany.into(), 400, "CONTAINER_FIREWALL_RULE_LIMIT"),
            (Error::NoSuchRule(Side::Egress), 404, "FIREWALL_RULE_NOT_FOUND"),
            (Error::ImageInUse(name()), 409, "IMAGE_IN_USE"),
            (Error::SourceGone(id()), 409, "SOURCE_CONTAINER_DELETED"),
            (Error::StartFailed(name()), 422, "CONTAINER_START_FAILED"),
            (Error::LimitUnsupported { limit: "disk", reason: name() }, 422, "LIMIT_UNSUPPORTED"),
            (Error::LimitBelowUse { limit: "memory", reason: name() }, 422, "LIMIT_BELOW_USAGE"),
            (Error::driver(refused_limit(CgroupError::NoDevice)), 422, "LIMIT_UNSUPPORTED"),
            (
                Error::driver(refused_limit(CgroupError::Timeout { id: id(), what: "freeze", waited_ms: 1 })),
                500,
                "INTERNAL_ERROR",
            ),
            (Error::BadImage(name()), 422, "INVALID_IMAGE"),
            (Error::Env(EnvError::Key(name())), 400, "INVALID_ENV_KEY"),
            (Error::Env(EnvError::Reserved(name())), 400, "RESERVED_ENV_PREFIX"),
            (Error::Env(EnvError::Value("A".parse().unwrap())), 400, "INVALID_ENV_VALUE"),
            (Error::Env(EnvError::TooMany(257)), 400, "TOO_MANY_ENV_VARS"),
            (SettingsError { field: "labels", wanted: "x" }.into(), 400, "VALIDATION_ERROR"),
            (Error::ShuttingDown, 503, "SHUTTING_DOWN"),
            (Error::DeletedMeanwhile(id()), 409, "CONTAINER_DELETED"),
            (step(pool("snapshot")), 500, "INTERNAL_ERROR"),
            (step(PoolError::Full { action: "x", path: "/secret".into() }.into()), 507, "POOL_FULL"),
            (step(PoolError::NoQuota.into()), 422, "LIMIT_UNSUPPORTED"),
            (Error::driver(CgroupError::NoController { controller: "io" }), 422, "LIMIT_UNSUPPORTED"),
            (
                step(RuntimeError::NotExecutable { id: id(), message: "`/x`: no such file".into() }.into()),
                422,
                "CONTAINER_START_FAILED",
            ),
            (Error::driver(RuntimeError::NotRunning(id())), 409, "CONTAINER_NOT_RUNNING"),
            (Error::driver(pool("x")), 500, "INTERNAL_ERROR"),
            (Error::Store(StoreError::Conflict { key: "/secret".into() }), 500, "INTERNAL_ERROR"),
        ];
        said(cases);
    }

    #[test]
    fn an_internal_error_shows_its_chain_to_the_operator_alone() {
        let answer = ApiError::from(step(pool("snapshot")));
        assert_eq!(answer.message(), INTERNAL_TEXT);
        let chain = answer.hidden_chain().unwrap();
        assert_eq!(
            chain,
            "snapshot of container 0123456789abcdef01234567 failed: cannot snapshot /secret: /secret/place"
        );
        assert!(ApiError::from(Error::NameInUse("a".into())).hidden_chain().is_none());
    }

    #[test]
    fn a_message_is_bounded_whatever_it_repeats() {
        let answer = ApiError::invalid("name", "x".repeat(10_000));
        assert_eq!(answer.body("r").message.chars().count(), MESSAGE_CHARS_MAX);
        assert_eq!(answer.body("r").data.unwrap()["field"], "name");
    }
}
