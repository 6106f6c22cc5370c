//! Bodies that create, copy and change a container, and how they become requests of the lifecycle.
//!
//! The three bodies share the fields of [`SettingsFields`]; a macro writes them out, because serde cannot both flatten a
//! struct and refuse unknown fields.

use serde::Deserialize;
use utoipa::ToSchema;

use super::checks::*;
use super::{nullable, nullable_object, unheeded};
use crate::api::error::ApiError;
use crate::domain::access::AccessChange;
use crate::domain::container::SettingsPatch;
use crate::domain::network::NetworkChange;
use crate::lifecycle::{ContainerPatch, NewContainer, NewCopy};

macro_rules! bodies {
    ($($(#[$doc:meta])* $name:ident { $($own:tt)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($own)*
            /// For people, at most 16000 characters.
            #[serde(default, deserialize_with = "nullable")]
            #[schema(value_type = Option<String>)]
            comment: Option<Option<String>>,
            /// `#rrggbb`, for people.
            #[serde(default, deserialize_with = "nullable")]
            #[schema(value_type = Option<String>)]
            color: Option<Option<String>>,
            /// Replaces the image's entrypoint and command; empty: the image's own.
            #[serde(default, deserialize_with = "nullable")]
            #[schema(value_type = Option<Vec<String>>)]
            command: Option<Option<Vec<String>>>,
            /// Where the tenant's HTTP server listens, 1–65535 (8080).
            #[serde(default, deserialize_with = "nullable")]
            #[schema(value_type = Option<u16>)]
            port: Option<Option<u16>>,
            /// Environment variables (also as `env_vars`).
            #[serde(default, deserialize_with = "nullable", alias = "env_vars")]
            #[schema(value_type = Option<BTreeMap<String, Option<String>>>)]
            environment_vars: Option<Option<Secrets>>,
            /// Limits, one by one; null lifts one.
            #[serde(default, deserialize_with = "nullable_object")]
            #[schema(value_type = Option<LimitsBody>)]
            limits: Option<Option<LimitsBody>>,
            /// A firewall policy's name.
            #[serde(default, deserialize_with = "nullable")]
            #[schema(value_type = Option<String>)]
            firewall_policy: Option<Option<String>>,
            /// Seconds of silence before it is put to sleep; null: never.
            #[serde(default, deserialize_with = "nullable")]
            #[schema(value_type = Option<u32>)]
            idle_timeout: Option<Option<u32>>,
            /// What that is: `stop`, or `pause`, which keeps its memory and goes on in milliseconds (stop).
            #[serde(default, deserialize_with = "nullable")]
            #[schema(value_type = Option<String>)]
            idle_action: Option<Option<String>>,
            /// What counts as use, one by one; null: as in a new container.
            #[serde(default, deserialize_with = "nullable_object")]
            #[schema(value_type = Option<ActivityBody>)]
            activity: Option<Option<ActivityBody>>,
            /// Whether a request to its URL starts it where it is stopped (true).
            #[serde(default, deserialize_with = "nullable")]
            #[schema(value_type = Option<bool>)]
            wake_on_request: Option<Option<bool>>,
            /// The customer's id in your own system, unique in the project.
            #[serde(default, deserialize_with = "nullable")]
            #[schema(value_type = Option<String>)]
            external_id: Option<Option<String>>,
            /// Whether copies take its rules along by default.
            #[serde(default, deserialize_with = "nullable")]
            #[schema(value_type = Option<bool>)]
            template: Option<Option<bool>>,
            /// For people and filters.
            #[serde(default, deserialize_with = "nullable")]
            #[schema(value_type = Option<BTreeMap<String, Option<String>>>)]
            labels: Option<Option<Texts>>,
            /// Refuses DELETE.
            #[serde(default, deserialize_with = "nullable")]
            #[schema(value_type = Option<bool>)]
            deletion_protection: Option<Option<bool>>,
            /// Started again after a reboot (true).
            #[serde(default, deserialize_with = "nullable")]
            #[schema(value_type = Option<bool>)]
            autostart: Option<Option<bool>>,
            /// A tmpfs at `/ramdisk` (true).
            #[serde(default, deserialize_with = "nullable")]
            #[schema(value_type = Option<bool>)]
            ramdisk: Option<Option<bool>>,
            /// Put into root's `authorized_keys`.
            #[serde(default, deserialize_with = "nullable")]
            #[schema(value_type = Option<String>)]
            ssh_public_key: Option<Option<String>>,
            /// How closely it is confined, from the next start on: `standard`, or `nested` or `io-uring`, which open a part of the
            /// kernel and want an admin's token.
            #[serde(default, deserialize_with = "nullable")]
            #[schema(value_type = Option<String>)]
            confinement: Option<Option<String>>,
            #[schema(ignore)]
            ai: Option<serde_json::Value>,
            #[schema(ignore)]
            hoody_kit: Option<serde_json::Value>,
            #[schema(ignore)]
            dev_kit: Option<serde_json::Value>,
            #[schema(ignore)]
            kvm: Option<serde_json::Value>,
            #[schema(ignore)]
            dev_kvm: Option<serde_json::Value>,
            #[schema(ignore)]
            cache: Option<serde_json::Value>,
            #[schema(ignore)]
            cache_image: Option<serde_json::Value>,
            #[schema(ignore)]
            prespawn: Option<serde_json::Value>,
            #[schema(ignore)]
            bypass_prespawn: Option<serde_json::Value>,
            #[schema(ignore)]
            realm_ids: Option<serde_json::Value>,
        }

        impl $name {
            fn unheeded(&self) -> Vec<String> {
                unheeded([
                    ("ai", &self.ai),
                    ("hoody_kit", &self.hoody_kit),
                    ("dev_kit", &self.dev_kit),
                    ("kvm", &self.kvm),
                    ("dev_kvm", &self.dev_kvm),
                    ("cache", &self.cache),
                    ("cache_image", &self.cache_image),
                    ("prespawn", &self.prespawn),
                    ("bypass_prespawn", &self.bypass_prespawn),
                    ("realm_ids", &self.realm_ids),
                ])
            }

            fn fields(&mut self) -> SettingsFields {
                SettingsFields {
                    comment: self.comment.take(),
                    color: self.color.take(),
                    command: self.command.take(),
                    port: self.port.take(),
                    environment_vars: self.environment_vars.take(),
                    limits: self.limits.take(),
                    firewall_policy: self.firewall_policy.take(),
                    idle_timeout: self.idle_timeout.take(),
                    idle_action: self.idle_action.take(),
                    activity: self.activity.take(),
                    wake_on_request: self.wake_on_request.take(),
                    external_id: self.external_id.take(),
                    template: self.template.take(),
                    labels: self.labels.take(),
                    deletion_protection: self.deletion_protection.take(),
                    autostart: self.autostart.take(),
                    ramdisk: self.ramdisk.take(),
                    ssh_public_key: self.ssh_public_key.take(),
                    confinement: self.confinement.take(),
                }
            }
        }
    )*};
}

bodies! {
    /// A container to be made from an image.
    CreateContainer {
        /// This node's id or name; it is the only one.
        pub server_id: Option<String>,
        /// 3–100 of `A-Z a-z 0-9 - _`; `rand` or left out: a random one.
        pub name: Option<String>,
        /// An image's name or id; left out: `base`.
        pub container_image: Option<String>,
        /// Whether it is started at once (true).
        pub start: Option<bool>,
    }
    /// A container to be made from another one; every setting given here differs from the source's.
    CopyContainer {
        /// Left out: the source's project.
        pub target_project_id: Option<String>,
        /// This node's id or name; it is the only one.
        pub target_server_id: Option<String>,
        /// 3–100 of `A-Z a-z 0-9 - _`; `rand` or left out: a random one.
        pub name: Option<String>,
        /// Whether it is started at once (true).
        pub start: Option<bool>,
        /// A snapshot of the source to copy, in the place of what it is now.
        pub source_snapshot: Option<String>,
        /// Whether the source's firewall policy and own rules are taken along; left out: if the source is a template.
        pub copy_firewall_rules: Option<bool>,
        /// Whether the source's network settings are taken along, its proxy with the credentials too; left out: if the source is a template.
        pub copy_network_rules: Option<bool>,
    }
    /// A change to a container: fields that are left out stay as they are.
    ChangeContainer {
        /// 3–100 of `A-Z a-z 0-9 - _`.
        pub name: Option<String>,
    }
}

/// Limits as the API has them. A field that is left out stays as it is, null lifts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsBody {
    /// Cores, 0.001–4096.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<f64>)]
    pub(super) cpu: Option<Option<f64>>,
    /// Bytes.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u64>)]
    pub(super) memory: Option<Option<u64>>,
    /// Bytes of its own writes.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u64>)]
    pub(super) disk: Option<Option<u64>>,
    /// Bytes of the tmpfs at `/ramdisk`.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u64>)]
    pub(super) ramdisk: Option<Option<u64>>,
    /// Processes and threads.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u64>)]
    pub(super) pids: Option<Option<u64>>,
    /// Bytes a second.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u64>)]
    pub(super) disk_read_bps: Option<Option<u64>>,
    /// Bytes a second.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u64>)]
    pub(super) disk_write_bps: Option<Option<u64>>,
    /// Bytes a second, towards the tenant.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u64>)]
    pub(super) net_rx_bps: Option<Option<u64>>,
    /// Bytes a second, from the tenant.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u64>)]
    pub(super) net_tx_bps: Option<Option<u64>>,
}

/// What counts as use of a container. A field that is left out stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ActivityBody {
    /// Requests to its URLs (true); one that is open is never cut off.
    pub(super) requests: Option<bool>,
    /// Upgraded connections while they are open (true).
    pub(super) connections: Option<bool>,
    /// A connection without a byte either way for so many seconds counts no longer; null: for as long as it is open.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u32>)]
    pub(super) connection_idle: Option<Option<u32>>,
    /// Commands that the API runs in it (true).
    pub(super) exec: Option<bool>,
    /// Calls to `http://169.254.1.1/keepalive` from inside (true).
    pub(super) keepalive: Option<bool>,
    /// More than so many cores used counts, 0.001–4096; null: it does not.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<f64>)]
    pub(super) cpu: Option<Option<f64>>,
}

/// The fields that all three bodies have. The outer `None`: left out; the inner: null.
#[derive(Debug, Default)]
struct SettingsFields {
    comment: Option<Option<String>>,
    color: Option<Option<String>>,
    command: Option<Option<Vec<String>>>,
    port: Option<Option<u16>>,
    environment_vars: Option<Option<Secrets>>,
    limits: Option<Option<LimitsBody>>,
    firewall_policy: Option<Option<String>>,
    idle_timeout: Option<Option<u32>>,
    idle_action: Option<Option<String>>,
    activity: Option<Option<ActivityBody>>,
    wake_on_request: Option<Option<bool>>,
    external_id: Option<Option<String>>,
    template: Option<Option<bool>>,
    labels: Option<Option<Texts>>,
    deletion_protection: Option<Option<bool>>,
    autostart: Option<Option<bool>>,
    ramdisk: Option<Option<bool>>,
    ssh_public_key: Option<Option<String>>,
    confinement: Option<Option<String>>,
}

impl SettingsFields {
    fn into_patch(self, maps: Maps, nulls: Nulls) -> Result<SettingsPatch, ApiError> {
        let env = |vars: Option<Secrets>| env_change(vars.unwrap_or_default(), maps);
        Ok(SettingsPatch {
            comment: map_inner(self.comment, comment)?,
            color: map_inner(self.color, |text| color("color", text))?,
            command: map(self.command.map(Option::unwrap_or_default), command)?,
            port: map(solid("port", self.port, nulls)?, port)?,
            env: map(env_given(self.environment_vars, maps, nulls)?, env)?.unwrap_or_default(),
            limits: map(solid("limits", self.limits, nulls)?, limits)?.unwrap_or_default(),
            firewall_policy: map(solid("firewall_policy", self.firewall_policy, nulls)?, policy)?,
            network: NetworkChange::Keep,
            access: AccessChange::Keep,
            idle_timeout_s: map_inner(self.idle_timeout, idle_timeout)?,
            idle_action: map(solid("idle_action", self.idle_action, nulls)?, idle_action)?,
            activity: activity_given(self.activity, nulls)?,
            wake_on_request: solid("wake_on_request", self.wake_on_request, nulls)?,
            template: solid("template", self.template, nulls)?,
            labels: labels_given(self.labels, maps, nulls)?,
            deletion_protection: solid("deletion_protection", self.deletion_protection, nulls)?,
            autostart: solid("autostart", self.autostart, nulls)?,
            ramdisk: solid("ramdisk", self.ramdisk, nulls)?,
            ssh_public_key: map_inner(self.ssh_public_key, ssh_key)?,
            confinement: map(solid("confinement", self.confinement, nulls)?, confinement)?,
        })
    }
}

impl CreateContainer {
    /// The request, and what the caller should know.
    ///
    /// # Errors
    /// A field that cannot be, by its name.
    pub fn into_request(mut self) -> Result<(NewContainer, Vec<String>), ApiError> {
        let warnings = self.unheeded();
        let mut fields = self.fields();
        let new = NewContainer {
            name: name_or_random(self.name)?,
            image: map(self.container_image, image)?,
            external_id: external_id(fields.external_id.take())?.flatten(),
            settings: fields.into_patch(Maps::Replace, Nulls::LeftOut)?,
            made: Default::default(),
            start: self.start.unwrap_or(true),
        };
        Ok((new, warnings))
    }
}

impl CopyContainer {
    /// The request, and what the caller should know.
    ///
    /// # Errors
    /// A field that cannot be, by its name.
    pub fn into_request(mut self) -> Result<(NewCopy, Vec<String>), ApiError> {
        let warnings = self.unheeded();
        let mut fields = self.fields();
        if let Some(snapshot) = self.source_snapshot.filter(|name| !name.is_empty()) {
            let text = format!("the source has no snapshot `{snapshot}`");
            return Err(ApiError::new(axum::http::StatusCode::NOT_FOUND, "SNAPSHOT_NOT_FOUND", text));
        }
        let project = map(self.target_project_id, |text| id_of("target_project_id", &text))?;
        let new = NewCopy {
            project,
            name: name_or_random(self.name)?,
            external_id: external_id(fields.external_id.take())?.flatten(),
            settings: fields.into_patch(Maps::Merge, Nulls::LeftOut)?,
            copy_firewall: self.copy_firewall_rules,
            copy_network: self.copy_network_rules,
            made: Default::default(),
            start: self.start.unwrap_or(true),
        };
        Ok((new, warnings))
    }
}

impl ChangeContainer {
    /// The request, and what the caller should know.
    ///
    /// # Errors
    /// A field that cannot be, by its name.
    pub fn into_request(mut self, maps: Maps) -> Result<(ContainerPatch, Vec<String>), ApiError> {
        let warnings = self.unheeded();
        let mut fields = self.fields();
        let patch = ContainerPatch {
            name: map(self.name, |text| name(&text))?,
            external_id: external_id(fields.external_id.take())?,
            settings: fields.into_patch(maps, Nulls::Refused)?,
        };
        Ok((patch, warnings))
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
