//! The one table of routes.

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, any, delete, get, patch, post, put};

use super::error::ApiError;
use super::{
    Api, BASE, access_log, aliases, auth, containers, endpoint, env, events, exec, firewall, health, idempotency,
    images, leaks, logs, metrics, network, openapi, permissions, projects, receipts, request, script_secrets, scripts,
    tokens, verbs,
};

/// Routes below [`BASE`]; each is given [`auth::require_token`]. A path that ends in a slash is there without it too.
fn api_routes(api: &Api) -> Vec<(&'static str, MethodRouter<Api>)> {
    // For POSTs that create and whose body is JSON.
    let once = |route: MethodRouter<Api>| route.route_layer(from_fn_with_state(api.clone(), idempotency::once));
    vec![
        ("/projects/", once(post(projects::create)).get(projects::list)),
        ("/projects/{id}", get(projects::show).put(projects::change).patch(projects::change).delete(projects::remove)),
        ("/projects/{id}/stats", get(projects::stats)),
        ("/projects/{id}/containers", once(post(containers::create)).get(containers::list_of_project)),
        ("/containers/", get(containers::list)),
        (
            "/containers/{id}",
            get(containers::show).patch(containers::patch).put(containers::put).delete(containers::remove),
        ),
        ("/containers/{id}/copy", once(post(containers::copy))),
        ("/containers/{id}/start", post(verbs::start)),
        ("/containers/{id}/stop", post(verbs::stop)),
        ("/containers/{id}/force-stop", post(verbs::force_stop)),
        ("/containers/{id}/restart", post(verbs::restart)),
        ("/containers/{id}/pause", post(verbs::pause)),
        ("/containers/{id}/resume", post(verbs::resume)),
        ("/containers/{id}/env", get(env::show).put(env::replace)),
        ("/containers/{id}/env/{key}", put(env::set).patch(env::set).delete(env::unset)),
        ("/containers/{id}/firewall/rules", get(firewall::list)),
        (
            "/containers/{id}/firewall/ingress",
            once(post(firewall::add_ingress)).delete(firewall::remove_ingress).patch(firewall::switch_ingress),
        ),
        (
            "/containers/{id}/firewall/egress",
            once(post(firewall::add_egress)).delete(firewall::remove_egress).patch(firewall::switch_egress),
        ),
        ("/containers/{id}/firewall/reset", post(firewall::reset)),
        ("/containers/{id}/firewall/effective", get(firewall::effective)),
        (
            "/containers/{id}/network",
            get(network::show).put(network::replace).patch(network::merge).delete(network::clear),
        ),
        ("/containers/{id}/network/start", post(network::start)),
        ("/containers/{id}/network/stop", post(network::stop)),
        (
            "/containers/{id}/proxy/permissions",
            get(permissions::show).put(permissions::replace).delete(permissions::clear),
        ),
        ("/containers/{id}/proxy/permissions/default", patch(permissions::set_default).put(permissions::set_default)),
        (
            "/containers/{id}/proxy/permissions/groups/{name}",
            put(permissions::put_group).delete(permissions::remove_group),
        ),
        ("/containers/{id}/proxy/permissions/groups/{name}/{type}", put(permissions::put_group_of_type)),
        ("/containers/{id}/stats", get(containers::stats)),
        ("/containers/{id}/status-logs", get(logs::status_logs)),
        ("/containers/{id}/logs", get(logs::logs)),
        ("/containers/{id}/access-log", get(access_log::access_log)),
        ("/containers/{id}/exec", post(exec::exec)),
        ("/proxy/aliases", once(post(aliases::create)).get(aliases::list)),
        ("/proxy/aliases/{id}", get(aliases::show).patch(aliases::change).delete(aliases::remove)),
        ("/proxy/aliases/{id}/state", patch(aliases::switch)),
        ("/proxy/aliases/{id}/verify", post(aliases::verify)),
        ("/events", get(events::list)),
        ("/events/stream", get(events::stream)),
        ("/receipts/{id}", get(receipts::show)),
        ("/leaks", get(leaks::list)),
        ("/images", post(images::import).get(images::list)),
        ("/images/{id}", delete(images::remove)),
        ("/auth/tokens", once(post(tokens::create)).get(tokens::list)),
        ("/auth/tokens/{id}", delete(tokens::remove)),
        ("/auth/tokens/{id}/rotate", once(post(tokens::rotate))),
    ]
}

/// The same, for those who manage scripts.
fn managing_routes() -> Vec<(&'static str, MethodRouter<Api>)> {
    vec![
        ("/exec/scripts", get(scripts::list)),
        ("/exec/scripts/{*file}", get(scripts::show).put(scripts::write).delete(scripts::remove)),
        ("/exec/logs/{*file}", get(scripts::log)),
        ("/exec/secrets", get(script_secrets::list)),
        ("/exec/secrets/{name}", put(script_secrets::set).delete(script_secrets::remove)),
    ]
}

/// Scripts answer below [`BASE`], and let in whom they like.
fn script_routes() -> Vec<(&'static str, MethodRouter<Api>)> {
    vec![("/exec/", any(endpoint::answer)), ("/exec/{*path}", any(endpoint::answer))]
}

/// Routes outside [`BASE`], open to all: nothing of a tenant is in them. `/metrics` judges for itself who may read it.
fn open_routes() -> Vec<(&'static str, MethodRouter<Api>)> {
    vec![
        ("/healthz", get(health::healthz)),
        ("/readyz", get(health::readyz)),
        ("/metrics", get(metrics::metrics)),
        ("/openapi.json", get(openapi::document)),
        ("/docs", get(openapi::page)),
    ]
}

/// The router over the table.
pub(super) fn build(api: Api) -> Router {
    let mut router = Router::new();
    // What needs no key is nothing for the door to which only keys lead.
    let open = if matches!(api.door, auth::Door::Tokens) { open_routes() } else { Vec::new() };
    for (path, route) in open {
        router = router.route(path, route);
    }
    for (path, route) in script_routes() {
        router = router.route(&format!("{BASE}{path}"), route);
    }
    for (path, route) in api_routes(&api).into_iter().chain(managing_routes()) {
        let route = route.route_layer(from_fn_with_state(api.clone(), auth::require_token));
        if let Some(bare) = path.strip_suffix('/') {
            router = router.route(&format!("{BASE}{bare}"), route.clone());
        }
        router = router.route(&format!("{BASE}{path}"), route);
    }
    router
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(api.clone(), request::frame))
        .with_state(api)
}

/// Scripts alone, from the beginning of the path: what stands behind their own host.
pub(super) fn build_for_host(api: Api) -> Router {
    Router::new()
        .fallback(endpoint::answer_at_host)
        .layer(from_fn_with_state(api.clone(), request::frame))
        .with_state(api)
}

async fn no_such_route(uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "ROUTE_NOT_FOUND", format!("there is no `{}`", uri.path()))
}

async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let text = format!("`{}` does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", text)
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
