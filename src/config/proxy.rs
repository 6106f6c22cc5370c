//! How tenants' URLs are reached.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::{ConfigError, one_or_many};
use crate::domain::alias::TcpPorts;
use crate::domain::host::Scheme;

/// The longest a request waits for a container to wake, in seconds: below what the proxy waits for any answer to "where".
const WAKE_TIMEOUT_S_MAX: u32 = 55;
/// Paths, and words of a `User-Agent`, that do not wake, at most: each request is compared with them.
const QUIET_WORDS_MAX: usize = 256;
/// Bytes of one of them.
const QUIET_WORD_BYTES_MAX: usize = 256;
/// Networks of proxies whose word is taken, at most.
pub const TRUSTED_PROXIES_MAX: usize = 16;

/// The proxy's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Proxy {
    /// Address and port.
    pub listen: SocketAddr,
    /// Address and port for clients that speak TLS; none: nobody does here.
    pub tls_listen: Option<SocketAddr>,
    /// Where certificates are, `<name>.crt` or `.pem` with `<name>.key`; `None`: `<data_dir>/certificates`.
    pub certificates_dir: Option<PathBuf>,
    /// Whether `listen` sends clients to https instead of serving them.
    pub redirect_to_https: bool,
    /// The port in the URLs, where it is not the one listened on (behind a load balancer).
    pub public_port: Option<u16>,
    /// `http` or `https` in the URLs; `None`: `https` where `tls_listen` is set, else `http`.
    pub scheme: Option<Scheme>,
    /// How long a request waits for a container that has to wake, in seconds, 1–60.
    pub wake_timeout_s: u32,
    /// Networks of proxies before this one, at most 16: whoever comes from there is believed what it says in `X-Forwarded-For`. From the
    /// environment: with commas.
    #[serde(deserialize_with = "one_or_many")]
    pub trusted_proxies: Vec<IpNetwork>,
    /// Ports of this host for aliases of raw TCP, as `20000-20099`, at the address of `listen`; none: there are no such aliases.
    pub tcp_ports: Option<TcpPorts>,
    /// Whether each container has a log of what is asked of its URL.
    pub access_log: bool,
    /// Requests that do not wake a container: 204 while it sleeps, and as any other while it is awake.
    pub quiet: Quiet,
}

/// Requests of browsers and probes that want nothing of the tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quiet {
    /// Paths, exactly so.
    pub paths: Vec<String>,
    /// Words in the `User-Agent`, whatever their case.
    pub agents: Vec<String>,
}

impl Default for Quiet {
    fn default() -> Self {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Self {
            paths: texts(&["/favicon.ico", "/robots.txt"]),
            agents: texts(&[
                "bot",
                "crawler",
                "spider",
                "kube-probe",
                "HealthChecker",
                "UptimeRobot",
                "Pingdom",
                "GoogleHC",
            ]),
        }
    }
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            tls_listen: None,
            certificates_dir: None,
            redirect_to_https: false,
            public_port: None,
            scheme: None,
            wake_timeout_s: 30,
            trusted_proxies: Vec::new(),
            tcp_ports: None,
            access_log: true,
            quiet: Quiet::default(),
        }
    }
}

impl Proxy {
    /// As it stands in the URLs.
    pub fn scheme(&self) -> Scheme {
        let own = if self.tls_listen.is_some() { Scheme::Https } else { Scheme::Http };
        self.scheme.unwrap_or(own)
    }

    /// How clients of `listen` come: where TLS is spoken here, those who speak none come there; else whoever is in front may have
    /// spoken it.
    pub fn plain_scheme(&self) -> Scheme {
        if self.tls_listen.is_some() { Scheme::Http } else { self.scheme() }
    }

    /// The port that the URLs have.
    pub(super) fn port(&self) -> u16 {
        let own = self.tls_listen.filter(|_| self.scheme() == Scheme::Https).unwrap_or(self.listen);
        self.public_port.unwrap_or(own.port())
    }

    /// The port of https that clients of `listen` are sent to, if they are.
    pub fn https_port(&self) -> Option<u16> {
        let own = self.tls_listen.filter(|_| self.redirect_to_https)?.port();
        Some(self.public_port.filter(|_| self.scheme() == Scheme::Https).unwrap_or(own))
    }

    pub(super) fn validate(&self, api: SocketAddr) -> Result<(), ConfigError> {
        let wrong = |key, problem: String| Err(ConfigError::Value { key, problem });
        if !(1..=WAKE_TIMEOUT_S_MAX).contains(&self.wake_timeout_s) {
            let problem = format!("{} is not between 1 and {WAKE_TIMEOUT_S_MAX} seconds", self.wake_timeout_s);
            return wrong("proxy.wake_timeout_s", problem);
        }
        self.quiet.validate()?;
        if self.trusted_proxies.len() > TRUSTED_PROXIES_MAX {
            let count = self.trusted_proxies.len();
            return wrong("proxy.trusted_proxies", format!("{count} are more than {TRUSTED_PROXIES_MAX}"));
        }
        if self.redirect_to_https && self.tls_listen.is_none() {
            return wrong("proxy.redirect_to_https", "nobody would be served: proxy.tls_listen is not set".to_owned());
        }
        let Some(range) = self.tcp_ports else { return Ok(()) };
        match [Some(api), Some(self.listen), self.tls_listen].into_iter().flatten().find(|own| range.has(own.port())) {
            Some(own) => {
                let problem = format!("{range} has {} in it, which this daemon listens on itself", own.port());
                wrong("proxy.tcp_ports", problem)
            }
            None => Ok(()),
        }
    }
}

impl Quiet {
    fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |key, problem: String| Err(ConfigError::Value { key, problem });
        for (key, words) in [("proxy.quiet.paths", &self.paths), ("proxy.quiet.agents", &self.agents)] {
            if words.len() > QUIET_WORDS_MAX {
                return wrong(key, format!("{} are more than {QUIET_WORDS_MAX}", words.len()));
            }
            if let Some(long) = words.iter().find(|word| word.len() > QUIET_WORD_BYTES_MAX) {
                return wrong(key, format!("`{long:.32}…` is longer than {QUIET_WORD_BYTES_MAX} bytes"));
            }
        }
        Ok(())
    }
}
