//! `/openapi.json`, and `/docs`: the same document as a page that loads nothing from elsewhere.

use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use serde_json::Value;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};

use super::extract::Query;
use super::{
    access_log, aliases, containers, endpoint, env, events, exec, firewall, health, images, leaks, logs, metrics,
    network, permissions, projects, receipts, script_secrets, scripts, tokens, verbs,
};

/// The document.
#[derive(Debug, OpenApi)]
#[openapi(
    info(title = "Tenantry", description = "One sandbox per customer: a container, a filesystem, a firewall and a URL from one API call."),
    paths(
        projects::create, projects::list, projects::show, projects::change, projects::remove, projects::stats,
        containers::create, containers::copy, containers::list, containers::list_of_project, containers::show,
        containers::patch, containers::put, containers::remove, containers::stats,
        verbs::start, verbs::stop, verbs::force_stop, verbs::restart, verbs::pause, verbs::resume,
        env::show, env::replace, env::set, env::unset,
        firewall::list, firewall::add_ingress, firewall::add_egress, firewall::remove_ingress, firewall::remove_egress,
        firewall::switch_ingress, firewall::switch_egress, firewall::reset, firewall::effective,
        network::show, network::replace, network::merge, network::clear, network::start, network::stop,
        permissions::show, permissions::replace, permissions::clear, permissions::set_default, permissions::put_group,
        permissions::put_group_of_type, permissions::remove_group,
        logs::logs, logs::status_logs, access_log::access_log, exec::exec, events::list, events::stream, receipts::show, leaks::list,
        aliases::create, aliases::list, aliases::show, aliases::change, aliases::switch, aliases::verify, aliases::remove,
        endpoint::answer, scripts::list, scripts::show, scripts::write, scripts::remove, scripts::log,
        script_secrets::list, script_secrets::set, script_secrets::remove,
        images::import, images::list, images::remove,
        tokens::create, tokens::list, tokens::rotate, tokens::remove,
        health::healthz, health::readyz, metrics::metrics, document, page,
    ),
    security(("token" = [])),
    modifiers(&Token, &UniqueIds),
)]
struct Document;

struct Token;

impl utoipa::Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        document
            .components
            .get_or_insert_with(Default::default)
            .add_security_scheme("token", SecurityScheme::Http(bearer));
    }
}

/// PUT and PATCH of one handler share its id; clients are generated from ids, which have to be unique.
struct UniqueIds;

impl utoipa::Modify for UniqueIds {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for item in document.paths.paths.values_mut() {
            let (Some(put), Some(patch)) = (&mut item.put, &item.patch) else { continue };
            if put.operation_id == patch.operation_id {
                put.operation_id = put.operation_id.take().map(|id| format!("{id}_by_put"));
            }
        }
    }
}

static JSON: LazyLock<Value> = LazyLock::new(|| serde_json::to_value(Document::openapi()).unwrap_or_default());
static PAGE: LazyLock<String> = LazyLock::new(|| render(&JSON));

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "health", operation_id = "openapi", security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
pub async fn document(_: Query<()>) -> Response {
    axum::Json(&*JSON).into_response()
}

/// This document as a page
#[utoipa::path(get, path = "/docs", tag = "health", operation_id = "docs", security(()),
    responses((status = 200, description = "HTML", content_type = "text/html", body = String)))]
pub async fn page(_: Query<()>) -> Response {
    let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(PAGE.as_str())).into_response()
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}\
    h2{margin-top:2em;border-bottom:1px solid #ccc}summary{cursor:pointer;padding:.3em 0}code{font-size:14px}\
    .m{display:inline-block;width:4.5em;font-weight:600}table{border-collapse:collapse;margin:.5em 0 1em}\
    td{padding:.15em .8em .15em 0;vertical-align:top}p{margin:.3em 0}";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// What a field is, in a word.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str() {
        return name.rsplit('/').next().unwrap_or_default().to_owned();
    }
    match &schema["type"] {
        Value::String(kind) => kind.clone(),
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        _ => schema["oneOf"]
            .as_array()
            .map(|all| all.iter().map(kind).collect::<Vec<_>>().join(" or "))
            .unwrap_or_default(),
    }
}

fn row(out: &mut String, name: &str, kind: &str, description: &str) {
    let (name, kind, description) = (escape(name), escape(kind), escape(description));
    let _ = write!(out, "<tr><td><code>{name}</code><td>{kind}<td>{description}");
}

fn fields(out: &mut String, document: &Value, schema: &Value) {
    let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) else { return };
    let Some(properties) = document["components"]["schemas"][name]["properties"].as_object() else { return };
    for (field, schema) in properties {
        row(out, field, &kind(schema), text(schema, "description"));
    }
}

fn operation(out: &mut String, document: &Value, method: &str, path: &str, operation: &Value) {
    let (method, path) = (method.to_uppercase(), escape(path));
    let summary = escape(text(operation, "summary"));
    let _ = write!(out, "<details><summary><span class=m>{method}</span><code>{path}</code> {summary}</summary>");
    let _ = write!(out, "<p>{}</p><table>", escape(text(operation, "description")));
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        row(out, text(parameter, "name"), text(parameter, "in"), text(parameter, "description"));
    }
    fields(out, document, &operation["requestBody"]["content"]["application/json"]["schema"]);
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        row(out, status, "answer", text(response, "description"));
    }
    out.push_str("</table></details>");
}

fn render(document: &Value) -> String {
    let title = escape(text(&document["info"], "title"));
    let intro = escape(text(&document["info"], "description"));
    let mut out = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{title} API</title><style>{STYLE}</style>\
         <h1>{title} API</h1><p>{intro}</p><p>The same as JSON: <a href=\"/openapi.json\">/openapi.json</a></p>"
    );
    let mut by_tag = std::collections::BTreeMap::<&str, String>::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        for (method, one) in item.as_object().into_iter().flatten() {
            let tag = one["tags"][0].as_str().unwrap_or("other");
            operation(by_tag.entry(tag).or_default(), document, method, path, one);
        }
    }
    for (tag, operations) in by_tag {
        let _ = write!(out, "<h2>{}</h2>{operations}", escape(tag));
    }
    out
}

#[cfg(test)]
pub(super) fn document_for_tests() -> &'static Value {
    &JSON
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_as_it_was() {
        insta::assert_json_snapshot!("openapi", &*JSON);
    }

    #[test]
    fn every_operation_has_an_id_of_its_own() {
        let items = JSON["paths"].as_object().unwrap().values();
        let operations = items.flat_map(|item| item.as_object().unwrap().values());
        let mut ids: Vec<_> = operations.map(|operation| operation["operationId"].as_str().unwrap()).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }

    #[test]
    fn the_page_shows_every_operation_and_loads_nothing() {
        let operations =
            JSON["paths"].as_object().unwrap().values().map(|item| item.as_object().unwrap().len()).sum::<usize>();
        assert_eq!(PAGE.matches("<details>").count(), operations);
        for outside in ["http://", "https://", "<script", "src="] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
    }

    #[test]
    fn fields_of_other_systems_are_taken_and_not_advertised() {
        let schemas = JSON["components"]["schemas"].to_string();
        assert!(!schemas.contains("hoody") && !schemas.contains("prespawn"));
    }
}
