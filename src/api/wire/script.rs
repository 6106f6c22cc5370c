//! Scripts, their secrets and their logs on the wire.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::error::ApiError;
use crate::domain::Secret;
use crate::exec::comments::{Cors, Door, KeySource, Settings};
use crate::exec::log::LogLine;
use crate::exec::manage::Overview;
use crate::exec::secrets::{Known, Origin, VALUE_BYTES_MAX};

/// A file of the scripts' folder.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScriptView {
    /// Its name below the folder.
    pub file: String,
    /// The paths below `/exec` that it answers, as `/shop/[id]`; null: it answers none.
    pub route: Option<String>,
    /// Its own comments; null where they cannot be read.
    pub settings: Option<SettingsView>,
    /// What is wrong with it: it cannot be read, its comments cannot be, or another file answers its path.
    pub error: Option<String>,
    /// When it was last modified.
    #[schema(value_type = Option<String>)]
    pub modified_at: Option<Timestamp>,
    /// Its text; not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// What a script says of itself.
#[derive(Debug, Serialize, ToSchema)]
pub struct SettingsView {
    /// `@description`.
    pub description: Option<String>,
    /// `@enabled`.
    pub enabled: bool,
    /// `@timeout`; null: the configuration's.
    pub timeout_ms: Option<u64>,
    /// `@concurrent`; null: as many as there are workers.
    pub concurrent: Option<u32>,
    /// `@cors`: origins, or `*`.
    pub cors: Vec<String>,
    /// `@token`: null (anyone), `token`, or `secret:NAME`.
    pub token: Option<String>,
    /// `@schedule`.
    pub schedule: Option<String>,
    /// `@idempotency`.
    pub idempotency: Option<String>,
    /// `@scope`: a project's id or alias.
    pub scope: Option<String>,
}

/// The files of the scripts' folder.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScriptList {
    /// By name.
    pub scripts: Vec<ScriptView>,
}

/// The end of a script's log.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScriptLog {
    /// Oldest first.
    pub log: Vec<ScriptLogLine>,
}

/// A line of a script's log.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScriptLogLine {
    /// When.
    #[schema(value_type = String)]
    pub time: Timestamp,
    /// Of which run; `-`: of none.
    pub run: String,
    /// `log`, `info`, `warn`, `error`, `debug`: printed by the script. `run`: how a run ended.
    pub level: String,
    /// What.
    pub text: String,
}

/// A secret, without its value, which is never shown.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScriptSecretView {
    /// Its name.
    pub name: String,
    /// `api`, or `file`: the operator's.
    pub origin: &'static str,
    /// When it was set by the API.
    #[schema(value_type = Option<String>)]
    pub updated_at: Option<Timestamp>,
}

/// The secrets.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScriptSecretList {
    /// By name.
    pub secrets: Vec<ScriptSecretView>,
}

/// A secret's new value.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSecret {
    /// At most 8 KiB.
    #[schema(value_type = String)]
    value: Secret,
}

impl SetSecret {
    /// The value.
    ///
    /// # Errors
    /// It is too long.
    pub fn into_value(self) -> Result<Secret, ApiError> {
        if self.value.reveal().len() > VALUE_BYTES_MAX {
            return Err(ApiError::invalid("value", format!("longer than {VALUE_BYTES_MAX} bytes")));
        }
        Ok(self.value)
    }
}

impl From<Known> for ScriptSecretView {
    fn from(known: Known) -> Self {
        let origin = match known.origin {
            Origin::File => "file",
            Origin::Api => "api",
        };
        Self { name: known.name, origin, updated_at: known.updated_at }
    }
}

impl From<LogLine> for ScriptLogLine {
    fn from(line: LogLine) -> Self {
        let LogLine { time, run, level, text } = line;
        Self { time, run, level, text }
    }
}

impl From<&Settings> for SettingsView {
    fn from(settings: &Settings) -> Self {
        let cors = match &settings.cors {
            None => Vec::new(),
            Some(Cors::Any) => vec!["*".to_owned()],
            Some(Cors::Origins(origins)) => origins.clone(),
        };
        let token = match &settings.door {
            Door::Open => None,
            Door::Token => Some("token".to_owned()),
            Door::Secret(name) => Some(format!("secret:{name}")),
        };
        let key = |source: &KeySource| match source {
            KeySource::Body(names) => format!("body.{}", names.join(".")),
            KeySource::Header(name) => format!("header.{name}"),
        };
        Self {
            description: settings.description.clone(),
            enabled: settings.enabled,
            timeout_ms: settings.timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            concurrent: settings.concurrent.map(std::num::NonZeroU32::get),
            cors,
            token,
            schedule: settings.schedule.as_ref().map(ToString::to_string),
            idempotency: settings.idempotency.as_ref().map(key),
            scope: settings.scope.clone(),
        }
    }
}

impl From<Overview> for ScriptView {
    fn from(overview: Overview) -> Self {
        let Overview { file, route, problem, script } = overview;
        let problem = problem.map(|problem| problem.to_string());
        let (settings, wrong, modified_at) = match &script {
            Ok(script) => match &script.settings {
                Ok(settings) => (Some(SettingsView::from(settings)), None, Some(script.modified_at)),
                Err(error) => (None, Some(error.to_string()), Some(script.modified_at)),
            },
            Err(error) => (None, Some(error.clone()), None),
        };
        Self { file: file.0, route, settings, error: wrong.or(problem), modified_at, source: None }
    }
}
