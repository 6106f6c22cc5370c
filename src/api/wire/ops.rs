//! Verbs, exec, environment and receipts on the wire.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::checks::{Secrets, command};
use super::container::{EnvSync, revealed};
use crate::api::error::ApiError;
use crate::domain::receipt::Erasure;
use crate::domain::{Bytes, Container, EnvVars, Receipt, Secret};
use crate::lifecycle::Done;
use crate::sys::runtime::{ExecOutcome, ExecRequest, Exit};

/// Output of a command that is kept of each stream.
pub const EXEC_OUTPUT_MAX: Bytes = Bytes::mib(1);
/// Bytes of a command's standard input, at most.
const EXEC_STDIN_BYTES_MAX: usize = 4 << 20;
/// How long a command may take where the caller does not say, in seconds.
const EXEC_TIMEOUT_S_DEFAULT: u64 = 60;
/// How long a command may take, in seconds.
const EXEC_TIMEOUT_S_MAX: u64 = 3_600;
/// Bytes of a working folder's path, at most (`PATH_MAX` of `linux/limits.h`).
const CWD_BYTES_MAX: usize = 4_095;
/// What a shell adds to a signal's number.
const SIGNAL_BASE: i32 = 128;

/// A verb as it was carried out.
#[derive(Debug, Serialize, ToSchema)]
pub struct OperationView {
    /// The verb.
    pub operation: String,
    /// On what.
    pub container_id: String,
    /// In which project.
    pub project_id: String,
    /// The container's status afterwards.
    pub status: &'static str,
    /// As the daemon's log has it.
    pub operation_id: String,
    /// What the caller should know, though nothing failed.
    pub warnings: Vec<String>,
}

impl From<Done> for OperationView {
    fn from(done: Done) -> Self {
        Self {
            operation: done.verb.to_string(),
            container_id: done.container.id.to_string(),
            project_id: done.container.project.to_string(),
            status: done.container.status().as_str(),
            operation_id: done.operation.to_string(),
            warnings: done.warnings,
        }
    }
}

/// A command to run inside.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecBody {
    /// Program and arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// Added to the container's own environment.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub env: BTreeMap<String, Secret>,
    /// Working folder; left out: the container's own.
    pub cwd: Option<String>,
    /// Standard input; closed behind it.
    #[schema(value_type = Option<String>)]
    pub stdin: Option<Secret>,
    /// Seconds before it is killed, 1–3600 (60).
    pub timeout: Option<u64>,
}

impl ExecBody {
    /// The request.
    ///
    /// # Errors
    /// A field that cannot be, by its name.
    pub fn into_request(self) -> Result<ExecRequest, ApiError> {
        if self.command.is_empty() {
            return Err(ApiError::invalid("command", "a program and its arguments are wanted"));
        }
        let cwd = self.cwd.map(|text| {
            let fits = text.starts_with('/') && text.len() <= CWD_BYTES_MAX && !text.contains('\0');
            if fits { Ok(PathBuf::from(text)) } else { Err(ApiError::invalid("cwd", "an absolute path is wanted")) }
        });
        let stdin = self.stdin.map(|text| text.reveal().as_bytes().to_vec()).unwrap_or_default();
        if stdin.len() > EXEC_STDIN_BYTES_MAX {
            return Err(ApiError::invalid("stdin", format!("more than {EXEC_STDIN_BYTES_MAX} bytes")));
        }
        let timeout_s = self.timeout.unwrap_or(EXEC_TIMEOUT_S_DEFAULT);
        if !(1..=EXEC_TIMEOUT_S_MAX).contains(&timeout_s) {
            return Err(ApiError::invalid("timeout", format!("1 to {EXEC_TIMEOUT_S_MAX} seconds are wanted")));
        }
        Ok(ExecRequest {
            command: command(self.command)?,
            env: EnvVars::parse(self.env).map_err(|error| ApiError::from(error).of("env"))?,
            cwd: cwd.transpose()?,
            stdin,
            timeout_ms: timeout_s * 1_000,
            output_max: EXEC_OUTPUT_MAX,
        })
    }
}

/// How a command ended and what it said.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ExecView {
    /// 128 and the signal's number where a signal ended it, as shells have it.
    pub exit_code: Option<i32>,
    /// Standard output; what is not UTF-8 is replaced.
    pub stdout: String,
    /// Standard error; what is not UTF-8 is replaced.
    pub stderr: String,
    /// Whether one of them was longer than what is kept.
    pub truncated: bool,
    /// Whether it was killed for its timeout.
    pub timed_out: bool,
}

impl From<ExecOutcome> for ExecView {
    fn from(outcome: ExecOutcome) -> Self {
        Self {
            exit_code: match outcome.exit {
                Exit::Code(code) => Some(code),
                Exit::Signal(signal) => Some(SIGNAL_BASE + signal),
                Exit::Unknown => None,
            },
            stdout: String::from_utf8_lossy(&outcome.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&outcome.stderr).into_owned(),
            truncated: outcome.truncated,
            timed_out: outcome.timed_out,
        }
    }
}

/// A container's environment.
#[derive(Debug, Serialize, ToSchema)]
pub struct EnvView {
    /// The variables.
    pub environment_vars: BTreeMap<String, String>,
    /// Whether the container runs with them.
    pub synced: bool,
    /// More about that.
    pub env_sync: EnvSync,
}

impl From<&Container> for EnvView {
    fn from(container: &Container) -> Self {
        Self {
            environment_vars: revealed(&container.settings.env),
            synced: !container.env_pending(),
            env_sync: EnvSync::of(container),
        }
    }
}

/// One variable's value.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvValue {
    /// The value.
    #[schema(value_type = String)]
    pub value: Secret,
}

/// Reads the body of PUT `/env`: the map itself, or the map under `environment_vars` (or `env_vars`).
///
/// # Errors
/// Not a map of texts.
pub fn env_map(body: Value) -> Result<Secrets, ApiError> {
    let Value::Object(mut fields) = body else {
        return Err(ApiError::bad("VALIDATION_ERROR", "the body: a map of names and texts is wanted"));
    };
    for wrapper in ["environment_vars", "env_vars"] {
        if fields.len() == 1 && fields.get(wrapper).is_some_and(Value::is_object) {
            return env_map(fields.remove(wrapper).unwrap_or_default());
        }
    }
    let text = |(key, value)| match value {
        Value::String(text) => Ok((key, Some(Secret::new(text)))),
        _ => Err(ApiError::invalid(format!("environment_vars.{key}"), "a text is wanted")),
    };
    fields.into_iter().map(text).collect()
}

/// What was erased, when, and how that was seen.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReceiptView {
    /// The receipt's id.
    pub receipt_id: String,
    /// The same.
    pub id: String,
    /// The container that was deleted.
    pub container_id: String,
    /// The project it was in.
    pub project_id: String,
    /// pending, removed (every object; the filesystem still drops the data), complete.
    pub state: &'static str,
    /// When DELETE was asked for.
    pub requested_at: Timestamp,
    /// When it was complete.
    pub completed_at: Option<Timestamp>,
    /// What was removed, in order.
    pub erased: Vec<ErasedView>,
}

/// One thing that was removed.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErasedView {
    /// What.
    pub what: String,
    /// How it was seen to be gone.
    pub verified: String,
    /// When.
    pub at: Timestamp,
}

impl From<Receipt> for ReceiptView {
    fn from(receipt: Receipt) -> Self {
        let erased = receipt.erased.into_iter();
        Self {
            receipt_id: receipt.id.to_string(),
            id: receipt.id.to_string(),
            container_id: receipt.container.to_string(),
            project_id: receipt.project.to_string(),
            state: match receipt.state {
                Erasure::Pending => "pending",
                Erasure::Removed => "removed",
                Erasure::Complete => "complete",
            },
            requested_at: receipt.requested_at,
            completed_at: receipt.completed_at,
            erased: erased.map(|one| ErasedView { what: one.what, verified: one.verified, at: one.at }).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::extract::from_json;

    fn exec(body: Value) -> Result<ExecRequest, ApiError> {
        from_json::<ExecBody>(body.to_string().as_bytes())?.into_request()
    }

    #[test]
    fn every_bad_field_of_exec_is_refused_by_its_name() {
        for (field, value) in [
            ("command", json!([])),
            ("command", json!([""])),
            ("command", json!("sh")),
            ("cwd", json!("tmp")),
            ("cwd", json!("/a\u{0}")),
            ("cwd", json!(format!("/{}", "x".repeat(CWD_BYTES_MAX)))),
            ("stdin", json!(7)),
            ("stdin", json!("x".repeat(EXEC_STDIN_BYTES_MAX + 1))),
            ("timeout", json!(0)),
            ("timeout", json!(3_601)),
            ("timeout", json!(-1)),
            ("env", json!({"TENANTRY_X": "1"})),
            ("env.A", json!({"A": null})),
            ("user", json!("root")),
        ] {
            let mut body = json!({ "command": ["sh"] });
            body[field.split('.').next().unwrap()] = value;
            let error = exec(body).unwrap_err();
            assert_eq!((error.status().as_u16(), error.field()), (400, Some(field)), "{}", error.message());
        }
        assert_eq!(exec(json!({})).unwrap_err().field(), Some("command"));
        let request =
            exec(json!({"command": ["sh", "-c", "id"], "env": {"A": "1"}, "cwd": "/tmp", "timeout": 2})).unwrap();
        assert_eq!((request.timeout_ms, request.env.len(), request.output_max), (2_000, 1, EXEC_OUTPUT_MAX));
    }

    #[test]
    fn a_signal_is_an_exit_code_as_shells_have_it() {
        let view = |exit| {
            ExecView::from(ExecOutcome { exit, timed_out: false, stdout: vec![0xff], stderr: vec![], truncated: false })
        };
        assert_eq!(view(Exit::Code(3)).exit_code, Some(3));
        assert_eq!(view(Exit::Signal(9)).exit_code, Some(137));
        assert_eq!(view(Exit::Unknown).exit_code, None);
        assert_eq!(view(Exit::Code(0)).stdout, "\u{fffd}");
    }

    #[test]
    fn an_environment_comes_bare_or_wrapped() {
        let want = Secrets::from([("A".to_owned(), Some(Secret::new("1")))]);
        for body in [json!({"A": "1"}), json!({"environment_vars": {"A": "1"}}), json!({"env_vars": {"A": "1"}})] {
            assert_eq!(env_map(body).unwrap(), want);
        }
        assert_eq!(env_map(json!({"A": 1})).unwrap_err().field(), Some("environment_vars.A"));
        assert_eq!(env_map(json!({"A": null})).unwrap_err().field(), Some("environment_vars.A"));
        assert!(env_map(json!(["A"])).is_err());
    }
}
