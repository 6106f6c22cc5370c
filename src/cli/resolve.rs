//! Names where ids are wanted. What looks like an id is taken for one.

use serde_json::Value;

use super::Context;
use super::failure::Failure;
use super::output::cell;
use crate::domain::ContainerId;

fn is_id(text: &str) -> bool {
    // All ids have the same form.
    text.parse::<ContainerId>().is_ok()
}

fn by_name(items: &[Value], field: &str, name: &str) -> Option<String> {
    let item = items.iter().find(|item| item[field].as_str() == Some(name))?;
    item["id"].as_str().map(str::to_owned)
}

fn unknown(what: &str, name: &str) -> Failure {
    Failure::Refused {
        code: format!("{}_NOT_FOUND", what.to_uppercase()),
        message: format!("there is no {what} `{name}`"),
        request_id: None,
    }
}

/// The one project there is, where none is named.
fn only(projects: &[Value]) -> Result<String, Failure> {
    match projects {
        [one] => Ok(cell(&one["id"])),
        [] => Err(Failure::Usage("there is no project yet: make one with `tenantry project create ALIAS`".to_owned())),
        many => {
            let aliases: Vec<_> = many.iter().take(5).map(|one| cell(&one["alias"])).collect();
            let more = if many.len() > aliases.len() { ", …" } else { "" };
            Err(Failure::Usage(format!("--project is wanted: there are {}{more}", aliases.join(", "))))
        }
    }
}

/// A project by its id or alias; the only one there is where none is named.
pub async fn project(context: &Context, name: Option<&str>) -> anyhow::Result<String> {
    if let Some(id) = name.filter(|name| is_id(name)) {
        return Ok(id.to_owned());
    }
    let projects = context.client.list("/projects/", "projects", &[]).await?;
    match name {
        None => Ok(only(&projects)?),
        Some(name) => Ok(by_name(&projects, "alias", name).ok_or_else(|| unknown("project", name))?),
    }
}

/// A container by its id, or by its name in a project.
pub async fn container(context: &Context, name: &str, project_name: Option<&str>) -> anyhow::Result<String> {
    if is_id(name) {
        return Ok(name.to_owned());
    }
    let project = project(context, project_name).await?;
    let containers = context.client.list(&format!("/projects/{project}/containers"), "containers", &[]).await?;
    Ok(by_name(&containers, "name", name).ok_or_else(|| unknown("container", name))?)
}

/// An image by its id or name.
pub async fn image(context: &Context, name: &str) -> anyhow::Result<String> {
    if is_id(name) {
        return Ok(name.to_owned());
    }
    let images = context.client.list("/images", "images", &[]).await?;
    Ok(by_name(&images, "name", name).ok_or_else(|| unknown("image", name))?)
}

/// A container's further name, by its id or as it is.
pub async fn alias(context: &Context, name: &str) -> anyhow::Result<String> {
    if is_id(name) {
        return Ok(name.to_owned());
    }
    let aliases = context.client.list("/proxy/aliases", "aliases", &[]).await?;
    Ok(by_name(&aliases, "alias", name).ok_or_else(|| unknown("alias", name))?)
}

/// A token by its id or alias.
pub async fn token(context: &Context, name: &str) -> anyhow::Result<String> {
    if is_id(name) {
        return Ok(name.to_owned());
    }
    let tokens = context.client.list("/auth/tokens", "tokens", &[]).await?;
    Ok(by_name(&tokens, "alias", name).ok_or_else(|| unknown("token", name))?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_only_project_is_meant_where_none_is_named() {
        assert_eq!(only(&[json!({"id": "1", "alias": "shop"})]).unwrap(), "1");
        assert!(only(&[]).unwrap_err().to_string().contains("project create"));
        let two = [json!({"id": "1", "alias": "shop"}), json!({"id": "2", "alias": "crm"})];
        assert!(only(&two).unwrap_err().to_string().contains("shop, crm"));
    }

    #[test]
    fn an_id_is_known_by_its_form() {
        assert!(is_id("0123456789abcdef01234567"));
        assert!(!is_id("acme") && !is_id("0123456789ABCDEF01234567"));
    }
}
