//! Projects on the wire.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::checks::{color, idle_action, idle_timeout, limits, map, map_inner, policy};
use super::container::LimitsView;
use super::settings::LimitsBody;
use super::{nullable, nullable_object, unheeded};
use crate::api::error::ApiError;
use crate::api::page::Pagination;
use crate::domain::container::LimitsPatch;
use crate::domain::project::PROJECT_ALIAS_CHARS_MAX;
use crate::domain::{Limits, Project};
use crate::lifecycle::{NewProject, ProjectPatch};

/// A project to be made.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateProject {
    /// 1–100 printable characters, unique on this host.
    #[schema(required)]
    pub alias: Option<String>,
    /// `#rrggbb`, for people.
    pub color: Option<String>,
    /// How many containers it may have; null: as many as the host can.
    pub max_containers: Option<u32>,
    /// The firewall policy of containers that are made in it and name none; null: `web`.
    pub firewall_policy: Option<String>,
    /// Limits of containers that are made in it and say nothing else, over the host's; null: the host's.
    #[serde(default, deserialize_with = "nullable_object")]
    #[schema(value_type = Option<LimitsBody>)]
    pub limits: Option<Option<LimitsBody>>,
    /// Seconds of silence before containers that are made in it are put to sleep; null: never.
    pub idle_timeout: Option<u32>,
    /// What that is: `stop` or `pause` (stop).
    pub idle_action: Option<String>,
    #[schema(ignore)]
    realm_ids: Option<Value>,
}

/// A change to a project: fields that are left out stay as they are.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeProject {
    /// 1–100 printable characters, unique on this host.
    pub alias: Option<String>,
    /// `#rrggbb`, for people; null: none.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    pub color: Option<Option<String>>,
    /// How many containers it may have; null: as many as the host can.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u32>)]
    pub max_containers: Option<Option<u32>>,
    /// The firewall policy of containers that are made in it and name none; null: `web`.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    pub firewall_policy: Option<Option<String>>,
    /// Limits of containers that are made in it, one by one; null: the host's. Containers that are there keep theirs.
    #[serde(default, deserialize_with = "nullable_object")]
    #[schema(value_type = Option<LimitsBody>)]
    pub limits: Option<Option<LimitsBody>>,
    /// Seconds of silence before containers that are made in it are put to sleep; null: never. Those that are there keep theirs.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u32>)]
    pub idle_timeout: Option<Option<u32>>,
    /// What that is: `stop` or `pause`; null: stop.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    pub idle_action: Option<Option<String>>,
    #[schema(ignore)]
    realm_ids: Option<Value>,
}

fn alias(text: String) -> Result<String, ApiError> {
    let fits = (1..=PROJECT_ALIAS_CHARS_MAX).contains(&text.chars().count())
        && !text.chars().any(char::is_control)
        && text.trim() == text;
    if fits {
        Ok(text)
    } else {
        let wanted = format!("1 to {PROJECT_ALIAS_CHARS_MAX} printable characters are wanted, no space first or last");
        Err(ApiError::invalid("alias", wanted))
    }
}

fn limits_change(given: Option<Option<LimitsBody>>) -> Result<LimitsPatch, ApiError> {
    match given {
        None => Ok(LimitsPatch::default()),
        Some(None) => Ok(LimitsPatch::NONE_LEFT),
        Some(Some(body)) => limits(body),
    }
}

impl CreateProject {
    /// The request, and what the caller should know.
    ///
    /// # Errors
    /// A field that cannot be, by its name.
    pub fn into_request(self) -> Result<(NewProject, Vec<String>), ApiError> {
        let warnings = unheeded([("realm_ids", &self.realm_ids)]);
        let given = self.alias.ok_or_else(|| ApiError::invalid("alias", "is missing"))?;
        let color = self.color.map(|text| color("color", text)).transpose()?;
        let new = NewProject {
            alias: alias(given)?,
            color,
            containers_max: self.max_containers,
            firewall_policy: map(self.firewall_policy, policy)?,
            limits: limits_change(self.limits)?.apply(Limits::default()),
            idle_timeout_s: map(self.idle_timeout, idle_timeout)?,
            idle_action: map(self.idle_action, idle_action)?.unwrap_or_default(),
        };
        Ok((new, warnings))
    }
}

impl ChangeProject {
    /// The request, and what the caller should know.
    ///
    /// # Errors
    /// A field that cannot be, by its name.
    pub fn into_request(self) -> Result<(ProjectPatch, Vec<String>), ApiError> {
        let warnings = unheeded([("realm_ids", &self.realm_ids)]);
        let color = self.color.map(|inner| inner.map(|text| color("color", text)).transpose()).transpose()?;
        let alias = self.alias.map(alias).transpose()?;
        let patch = ProjectPatch {
            alias,
            color,
            containers_max: self.max_containers,
            firewall_policy: map_inner(self.firewall_policy, policy)?,
            limits: limits_change(self.limits)?,
            idle_timeout_s: map_inner(self.idle_timeout, idle_timeout)?,
            idle_action: map_inner(self.idle_action, idle_action)?.map(Option::unwrap_or_default),
        };
        Ok((patch, warnings))
    }
}

/// A project.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProjectView {
    /// Its id.
    pub id: String,
    /// Unique on this host.
    pub alias: String,
    /// For people.
    pub color: Option<String>,
    /// How many containers it may have; null: as many as the host can.
    pub max_containers: Option<u32>,
    /// The firewall policy of containers that are made in it and name none; null: `web`.
    pub firewall_policy: Option<String>,
    /// Limits of containers that are made in it, over the host's; null: the host's.
    pub limits: LimitsView,
    /// Seconds of silence before containers that are made in it are put to sleep; null: never.
    pub idle_timeout: Option<u32>,
    /// What that is: stop or pause.
    pub idle_action: &'static str,
    /// How many it has.
    pub container_count: u64,
    /// Whether it is being removed.
    pub deleting: bool,
    /// Goes up with every change; the ETag.
    pub generation: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// What the caller should know, though nothing failed.
    pub warnings: Vec<String>,
}

impl ProjectView {
    /// A record as the API shows it.
    pub fn new(project: &Project, container_count: u64, warnings: Vec<String>) -> Self {
        Self {
            id: project.id.to_string(),
            alias: project.alias.clone(),
            color: project.color.clone(),
            max_containers: project.containers_max,
            firewall_policy: project.firewall_policy.as_ref().map(ToString::to_string),
            limits: project.limits.into(),
            idle_timeout: project.idle_timeout_s,
            idle_action: project.idle_action.as_str(),
            container_count,
            deleting: project.deleting,
            generation: project.generation,
            created_at: project.created_at,
            updated_at: project.updated_at,
            warnings,
        }
    }
}

/// A page of projects.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProjectList {
    /// The projects.
    pub projects: Vec<ProjectView>,
    /// Where they stand.
    pub pagination: Pagination,
}

/// A project that was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProjectDeleted {
    /// The project.
    pub id: String,
    /// One for each of its containers.
    pub receipt_ids: Vec<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::extract::from_json;
    use crate::domain::{IdleAction, Pids};

    fn create(body: Value) -> Result<(NewProject, Vec<String>), ApiError> {
        from_json::<CreateProject>(body.to_string().as_bytes())?.into_request()
    }

    fn change(body: Value) -> Result<(ProjectPatch, Vec<String>), ApiError> {
        from_json::<ChangeProject>(body.to_string().as_bytes())?.into_request()
    }

    #[test]
    fn every_bad_field_is_refused_by_its_name() {
        for (field, value) in [
            ("alias", json!("")),
            ("alias", json!("a\nb")),
            ("alias", json!(" a")),
            ("alias", json!("x".repeat(101))),
            ("alias", json!(7)),
            ("color", json!("blue")),
            ("max_containers", json!(-1)),
            ("max_containers", json!(1.5)),
            ("max_containers", json!("3")),
            ("name", json!("x")),
            ("firewall_policy", json!("../etc")),
            ("limits", json!("x")),
            ("limits", json!([])),
            ("idle_timeout", json!(0)),
            ("idle_action", json!("hibernate")),
        ] {
            let mut body = json!({ "alias": "shop" });
            body[field] = value.clone();
            let error = create(body).unwrap_err();
            assert_eq!((error.status().as_u16(), error.field()), (400, Some(field)), "{}", error.message());
            let error = change(json!({ field: value })).unwrap_err();
            assert_eq!((error.status().as_u16(), error.field()), (400, Some(field)), "{}", error.message());
        }
        assert_eq!(create(json!({})).unwrap_err().field(), Some("alias"));
    }

    #[test]
    fn bodies_become_requests() {
        let (new, warnings) =
            create(json!({"alias": "Café ☕", "color": "#ffffff", "max_containers": 3, "realm_ids": ["a"]})).unwrap();
        assert_eq!((new.alias.as_str(), new.containers_max), ("Café ☕", Some(3)));
        assert_eq!(warnings, ["realm_ids is accepted and not acted on"]);
        let (patch, _) = change(json!({"color": null, "max_containers": null})).unwrap();
        assert_eq!(patch, ProjectPatch { color: Some(None), containers_max: Some(None), ..Default::default() });
    }

    #[test]
    fn a_project_has_defaults_for_its_containers_and_null_takes_them_back() {
        let body = json!({"alias": "shop", "firewall_policy": "web", "limits": {"pids": 9, "memory": null}});
        let (new, _) = create(body).unwrap();
        assert_eq!(new.firewall_policy.map(|policy| policy.to_string()).as_deref(), Some("web"));
        assert_eq!(new.limits, Limits { pids: Some(Pids(9)), ..Limits::default() });
        assert_eq!(create(json!({"alias": "a", "limits": null})).unwrap().0.limits, Limits::default());
        let (new, _) = create(json!({"alias": "a", "idle_timeout": 60, "idle_action": "pause"})).unwrap();
        assert_eq!((new.idle_timeout_s, new.idle_action), (Some(60), IdleAction::Pause));
        let (patch, _) = change(json!({"idle_timeout": null, "idle_action": null})).unwrap();
        assert_eq!((patch.idle_timeout_s, patch.idle_action), (Some(None), Some(IdleAction::Stop)));
        let (patch, _) = change(json!({"firewall_policy": null, "limits": {"pids": null}})).unwrap();
        assert_eq!(patch.firewall_policy, Some(None));
        assert_eq!(patch.limits, LimitsPatch { pids: Some(None), ..Default::default() });
        assert_eq!(change(json!({"limits": null})).unwrap().0.limits, LimitsPatch::NONE_LEFT);
        assert_eq!(change(json!({"limits": {"pids": 0}})).unwrap_err().field(), Some("limits.pids"));
    }
}
