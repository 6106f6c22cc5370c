//! Aliases on the wire.

use std::num::NonZeroU16;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::checks::{id_of, map, map_inner, port, time_to_come};
use super::nullable;
use crate::api::error::ApiError;
use crate::api::page::Pagination;
use crate::domain::alias::{Program, ProxyAlias, TargetPath};
use crate::domain::host::{Alias, AliasError, CustomDomain, DomainError};
use crate::lifecycle::{AliasPatch, AliasSettings, NewAlias, NewProgram};

/// A further name for a container, or a change to one, where fields that are left out stay as they are.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AliasBody {
    /// The container it leads to: wanted for a new one, and stays.
    container_id: Option<String>,
    /// 3–61 of `a-z 0-9 -`, unique on this host; null or left out: 48 hex digits that nobody can guess.
    alias: Option<String>,
    /// A domain of the customer's that leads to the same, such as `shop.example.com`, once it is verified; unique on this host.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    domain: Option<Option<String>>,
    /// Takes the domain for verified, or for not: for full-access tokens of the whole host.
    verified: Option<bool>,
    /// `http` (the default), or `tcp`: anything, at a port of this host's own. Stays.
    program: Option<String>,
    /// The port of this host that a new alias of `tcp` is reached at, of those that are set aside for that; left out: one that is free. Stays.
    listen_port: Option<u16>,
    /// Whether a connection to an alias of `tcp` wakes the container (true); if not, it is let go while that sleeps or starts.
    wake: Option<bool>,
    /// The port it leads to; null or left out: the container's own.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u16>)]
    port: Option<Option<u16>>,
    /// The path every request goes to; null or left out: the one asked for.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    target_path: Option<Option<String>>,
    /// Whether a path that is asked for, other than `/`, goes before `target_path` (false).
    allow_path_override: Option<bool>,
    /// From when on it leads nowhere; null or left out: never.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    expires_at: Option<Option<String>>,
    /// Whether it leads anywhere (true).
    enabled: Option<bool>,
}

/// An alias switched on or off.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SwitchAlias {
    /// Whether it leads anywhere.
    #[schema(required)]
    enabled: Option<bool>,
}

fn name(text: &str) -> Result<Alias, ApiError> {
    text.parse().map_err(|error: AliasError| ApiError::bad("INVALID_ALIAS", error.to_string()).of("alias"))
}

fn domain(text: String) -> Result<CustomDomain, ApiError> {
    text.parse().map_err(|error: DomainError| ApiError::bad("INVALID_DOMAIN", error.to_string()).of("domain"))
}

fn target_path(text: String) -> Result<TargetPath, ApiError> {
    text.parse().map_err(|error| ApiError::invalid("target_path", error))
}

fn program(text: Option<String>, listen_port: Option<u16>) -> Result<NewProgram, ApiError> {
    let listen_port = map(listen_port, |number| {
        NonZeroU16::new(number).ok_or_else(|| ApiError::invalid("listen_port", "1 to 65535 is wanted"))
    })?;
    match text.as_deref() {
        Some("tcp") => Ok(NewProgram::Tcp { listen_port }),
        None | Some("http") if listen_port.is_some() => {
            Err(ApiError::invalid("listen_port", "an alias of http is reached at the port of all"))
        }
        None | Some("http") => Ok(NewProgram::Http),
        Some(_) => Err(ApiError::invalid("program", "http or tcp is wanted")),
    }
}

impl AliasBody {
    /// A new alias.
    ///
    /// # Errors
    /// A field that cannot be, by its name.
    pub fn into_new(mut self, now: Timestamp) -> Result<NewAlias, ApiError> {
        let container = self.container_id.take().ok_or_else(|| ApiError::invalid("container_id", "is missing"))?;
        let container = id_of("container_id", &container)?;
        let program = program(self.program.take(), self.listen_port.take())?;
        let AliasPatch { alias, settings } = self.into_patch(now)?;
        Ok(NewAlias { container, alias, program, settings })
    }

    /// A change to an alias.
    ///
    /// # Errors
    /// A field that cannot be, by its name.
    pub fn into_patch(self, now: Timestamp) -> Result<AliasPatch, ApiError> {
        if self.container_id.is_some() {
            return Err(ApiError::invalid("container_id", "an alias stays with its container; make another one"));
        }
        for (field, is_set) in [("program", self.program.is_some()), ("listen_port", self.listen_port.is_some())] {
            if is_set {
                return Err(ApiError::invalid(field, "an alias keeps what it was made with; make another one"));
            }
        }
        Ok(AliasPatch {
            alias: map(self.alias, |text| name(&text))?,
            settings: AliasSettings {
                domain: map_inner(self.domain, domain)?,
                verified: self.verified,
                wake: self.wake,
                port: map_inner(self.port, port)?,
                target_path: map_inner(self.target_path, target_path)?,
                allow_path_override: self.allow_path_override,
                enabled: self.enabled,
                expires_at: map_inner(self.expires_at, |text| time_to_come("expires_at", &text, now))?,
            },
        })
    }
}

impl SwitchAlias {
    /// The request.
    ///
    /// # Errors
    /// The field is missing.
    pub fn into_request(self) -> Result<AliasPatch, ApiError> {
        let enabled = self.enabled.ok_or_else(|| ApiError::invalid("enabled", "is missing"))?;
        let settings = AliasSettings { enabled: Some(enabled), ..AliasSettings::default() };
        Ok(AliasPatch { alias: None, settings })
    }
}

/// A further name of a container.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AliasView {
    /// Its id.
    pub id: String,
    /// The container it leads to.
    pub container_id: String,
    /// The name.
    pub alias: String,
    /// A domain of the customer's; null: none.
    pub domain: Option<String>,
    /// Whether the domain leads anywhere.
    pub verified: bool,
    /// How the domain's owner says that it may lead here; null where there is none.
    pub verification: Option<Verification>,
    /// `http` or `tcp`.
    pub program: &'static str,
    /// The port of this host that it is reached at; null: the one of all.
    pub listen_port: Option<u16>,
    /// Whether that port is open: not where another program has it or `proxy.tcp_ports` no longer names it, nor while the alias leads
    /// nowhere, and for a moment after it was switched on. Null: it has none of its own.
    pub listening: Option<bool>,
    /// Whether a visitor by it wakes the container.
    pub wake: bool,
    /// The port it leads to; null: the container's own.
    pub port: Option<u16>,
    /// The path every request goes to; null: the one asked for.
    pub target_path: Option<String>,
    /// Whether a path that is asked for, other than `/`, goes before `target_path`.
    pub allow_path_override: bool,
    /// From when on it leads nowhere; null: never.
    pub expires_at: Option<Timestamp>,
    /// Whether it leads anywhere.
    pub enabled: bool,
    /// Its URL.
    pub url: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// What the DNS must say of a domain: either.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Verification {
    /// The name of a TXT record.
    pub txt_name: String,
    /// Its text.
    pub txt_value: String,
    /// What the domain is to be another name of, by a CNAME record.
    pub cname_target: String,
}

impl AliasView {
    /// A record as the API shows it; `host` is its own, and `listening` says whether its port is open.
    pub fn new(alias: &ProxyAlias, url: String, host: String, listening: Option<bool>) -> Self {
        let custom = alias.custom.as_ref();
        let (program, wake) = match alias.program {
            Program::Http => ("http", true),
            Program::Tcp { wakes, .. } => ("tcp", wakes),
        };
        Self {
            id: alias.id.to_string(),
            container_id: alias.container.to_string(),
            alias: alias.alias.to_string(),
            domain: custom.map(|custom| custom.domain.to_string()),
            verified: custom.is_some_and(|custom| custom.verified_at.is_some()),
            verification: custom.map(|custom| Verification {
                txt_name: custom.domain.proof_name(),
                txt_value: custom.proof.as_str().to_owned(),
                cname_target: host,
            }),
            program,
            listen_port: alias.listen_port().map(Into::into),
            listening,
            wake,
            port: alias.port.map(Into::into),
            target_path: alias.target_path.as_ref().map(ToString::to_string),
            allow_path_override: alias.allow_path_override,
            expires_at: alias.expires_at,
            enabled: alias.enabled,
            url,
            created_at: alias.created_at,
            updated_at: alias.updated_at,
        }
    }
}

/// A page of aliases.
#[derive(Debug, Serialize, ToSchema)]
pub struct AliasList {
    /// The aliases.
    pub aliases: Vec<AliasView>,
    /// Where they stand.
    pub pagination: Pagination,
}
