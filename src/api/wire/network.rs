//! Network settings on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::checks::{comment, map, map_inner};
use super::nullable;
use crate::api::error::ApiError;
use crate::domain::Secret;
use crate::domain::dns::NameServer;
use crate::domain::network::{Kind, Network, NetworkPatch, Way};

/// Network settings. PATCH is a JSON merge patch: what is left out stays; PUT replaces all, and whether they are switched on stays.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkBody {
    /// socks5, http, https: TCP goes through `proxy`, names are asked for through it, everything else is dropped. block: nothing
    /// leaves. null: directly.
    #[serde(default, rename = "type", deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    kind: Option<Option<String>>,
    /// The proxy's URL, `type://user:password@host:port`. Credentials are never answered.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    proxy: Option<Option<Secret>>,
    /// Who is asked for names, at most 4: addresses, with a port where it is not 53. None: those of the daemon.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Vec<String>>)]
    dns_servers: Option<Option<Vec<String>>>,
    /// For people, at most 16000 characters.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    comment: Option<Option<String>>,
}

impl NetworkBody {
    /// The change.
    ///
    /// # Errors
    /// A field that cannot be, by its name. No error repeats a proxy's URL.
    pub fn into_patch(self) -> Result<NetworkPatch, ApiError> {
        let servers = |texts: Option<Vec<String>>| texts.unwrap_or_default().iter().map(|text| server(text)).collect();
        Ok(NetworkPatch {
            kind: map_inner(self.kind, |text| kind(&text))?,
            proxy: map_inner(self.proxy, |url| {
                url.reveal().parse().map_err(|error| ApiError::invalid("proxy", error))
            })?,
            name_servers: map(self.dns_servers, servers)?,
            comment: map_inner(self.comment, comment)?,
        })
    }
}

fn kind(text: &str) -> Result<Kind, ApiError> {
    let all = [Kind::Socks5, Kind::Http, Kind::Https, Kind::Block];
    let found = all.into_iter().find(|kind| kind.as_str() == text);
    found.ok_or_else(|| ApiError::invalid("type", "socks5, http, https or block is wanted"))
}

fn server(text: &str) -> Result<NameServer, ApiError> {
    text.parse().map_err(|error| ApiError::invalid("dns_servers", error))
}

/// Network settings as they are.
#[derive(Debug, Serialize, ToSchema)]
pub struct NetworkView {
    /// socks5, http, https, block; null: directly.
    #[serde(rename = "type")]
    pub kind: Option<&'static str>,
    /// The proxy's URL, without its credentials.
    pub proxy: Option<String>,
    /// Whether the proxy is given credentials.
    pub proxy_credentials: bool,
    /// Who is asked for names; none: those of the daemon.
    pub dns_servers: Vec<String>,
    /// For people.
    pub comment: Option<String>,
    /// Whether all this is in force.
    pub enabled: bool,
}

impl From<Option<&Network>> for NetworkView {
    fn from(network: Option<&Network>) -> Self {
        let proxy = network.and_then(Network::proxy);
        Self {
            kind: network.and_then(|network| network.way.as_ref()).map(|way: &Way| way.kind().as_str()),
            proxy: proxy.map(ToString::to_string),
            proxy_credentials: proxy.is_some_and(|proxy| proxy.credentials.is_some()),
            dns_servers: network
                .map(|network| network.name_servers.iter().map(ToString::to_string).collect())
                .unwrap_or_default(),
            comment: network.and_then(|network| network.comment.clone()),
            enabled: network.is_some_and(|network| network.enabled),
        }
    }
}
