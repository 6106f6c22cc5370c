//! The configuration: read raw, validated once, then handed down as values.
//!
//! A TOML file, each key also as `TENANTRY_<KEY>` with `__` for nesting (`TENANTRY_API__LISTEN`). Every key has a default that
//! suits one machine, so that `tenantry serve` alone works; an unknown key is refused by its name. The environment is
//! handed in by the caller and read nowhere else.

mod acme;
mod awake;
mod exec;
mod proxy;

use std::collections::HashMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::domain::dns::{NAME_SERVERS_MAX, NameServer};
use crate::domain::host::HostNames;
use crate::domain::{Bytes, BytesPerSecond, CpuMillis, Instance, Limits, Pids, Slot, Subnet, slot};

pub use acme::{Acme, AcmeChallenge};
pub use awake::{Awake, MemoryShare, Starts};
pub use exec::Exec;
pub use proxy::{Proxy, Quiet, TRUSTED_PROXIES_MAX};

/// What variables of the environment start with.
pub const ENV_PREFIX: &str = "TENANTRY_";
/// Variables with that prefix that are the client's or a test's, not keys.
const ENV_NOT_KEYS: [&str; 6] = ["URL", "TOKEN", "CONFIG", "LOG", "SKIPS", "VM"];
/// Where `serve` looks when no file is named.
pub const FILE_DEFAULT: &str = "/etc/tenantry/tenantry.toml";

/// Questions a second that one tenant may be granted: fewer than the firewall lets through, so that whoever asks too much is told.
const DNS_QUERIES_PER_S: std::ops::RangeInclusive<u32> = 1..=400;

/// Connections that one tenant may have through its proxy at once.
const RELAY_CONNECTIONS: std::ops::RangeInclusive<usize> = 1..=8192;

/// The validated configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// In the name of every kernel object, so that several daemons live on one host: 1–8 of a-z and 0-9.
    pub instance: Instance,
    /// This host's part of the URLs.
    pub server_name: String,
    /// The domain under which the URLs lie.
    pub domain: String,
    /// What outlives a reboot.
    pub data_dir: PathBuf,
    /// What does not.
    pub run_dir: PathBuf,
    /// Operator's firewall policies, beside the shipped ones.
    pub policies_dir: PathBuf,
    /// Scripts: each file is an endpoint. Made where it is not there.
    pub scripts_dir: PathBuf,
    /// A static busybox, from which the built-in `base` image is made.
    pub busybox: PathBuf,
    /// The REST API.
    pub api: Api,
    /// The proxy in front of the tenants.
    pub proxy: Proxy,
    /// Certificates by ACME.
    pub acme: Acme,
    /// The BTRFS pool.
    pub pool: Pool,
    /// Tenants' network.
    pub net: Net,
    /// Tenants' resolver.
    pub dns: Dns,
    /// What carries tenants' connections through proxies of theirs.
    pub relay: Relay,
    /// Tenants' user ids.
    pub users: Users,
    /// Who may start at once.
    pub starts: Starts,
    /// What the awake may hold.
    pub awake: Awake,
    /// Scripts.
    pub exec: Exec,
    /// Limits of a container that names none.
    pub limits: Defaults,
}

/// The REST API's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Address and port.
    pub listen: SocketAddr,
    /// Whether `/metrics` is answered without a token.
    pub metrics_open: bool,
}

impl Default for Api {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 7070)), metrics_open: false }
    }
}

/// The pool's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pool {
    /// A folder on BTRFS, or one that is not there yet; `None`: `<data_dir>/pool`.
    pub path: Option<PathBuf>,
    /// Size of the sparse loop file where `path` is not on BTRFS.
    #[serde(with = "size")]
    pub size: Bytes,
}

/// Tenants' network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// What their addresses are taken from.
    pub subnet: Subnet,
}

/// The resolver that tenants ask on their gateway's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// Who is asked, in this order: addresses such as `192.0.2.53` or `192.0.2.53:5353`, at most 4. Empty: those of
    /// `/etc/resolv.conf`. From the environment: with commas.
    #[serde(deserialize_with = "one_or_many")]
    pub upstreams: Vec<NameServer>,
    /// The port of the gateway's address that tenants' port 53 is led to; 0: any that is free.
    pub port: u16,
    /// Questions that one tenant may ask a second, 1–400; three times as many at once.
    pub queries_per_second: u32,
}

/// What carries the connections of tenants whose `network` names a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Relay {
    /// The port of the gateway's address that those tenants' connections are led to; 0: any that is free.
    pub port: u16,
    /// Connections of one tenant at once, 1–8192.
    pub connections: usize,
    /// Whether proxies and name servers of containers may also be on this host, in tenants' subnet or on a link. Whoever may call the
    /// API then reaches by the daemon what listens on this host for itself.
    pub allow_local_proxies: bool,
}

/// A list, or in a variable of the environment a text with commas.
fn one_or_many<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(from: D) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Raw {
        Many(Vec<String>),
        One(String),
    }
    let texts = match Raw::deserialize(from)? {
        Raw::Many(texts) => texts,
        Raw::One(text) => text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect(),
    };
    texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
}

/// Tenants' user ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Users {
    /// The first id on the host; 65536 a slot go up from there.
    pub uid_base: u32,
}

/// Limits of a container that names none. `0` lifts one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    /// Cores.
    pub cpu: f64,
    /// Memory.
    #[serde(with = "size")]
    pub memory: Bytes,
    /// The tenant's own writes.
    #[serde(with = "size")]
    pub disk: Bytes,
    /// The tmpfs at `/ramdisk`.
    #[serde(with = "size")]
    pub ramdisk: Bytes,
    /// Tasks.
    pub pids: u32,
    /// Disk reads, a second.
    #[serde(with = "size")]
    pub disk_read_bps: Bytes,
    /// Disk writes, a second.
    #[serde(with = "size")]
    pub disk_write_bps: Bytes,
    /// Network towards the tenant, a second.
    #[serde(with = "size")]
    pub net_rx_bps: Bytes,
    /// Network from the tenant, a second.
    #[serde(with = "size")]
    pub net_tx_bps: Bytes,
}

impl Eq for Defaults {}

mod size {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::domain::Bytes;

    pub fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u64),
            Text(String),
        }
        match Raw::deserialize(from)? {
            Raw::Number(bytes) => Ok(Bytes(bytes)),
            Raw::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file or a variable does not read: the message names the key.
    #[error("the configuration does not read")]
    Read(#[source] Box<config::ConfigError>),
    /// A value that cannot be.
    #[error("{key}: {problem}")]
    Value {
        /// The key, dotted.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            instance: Instance::tenantry(),
            server_name: "node1".into(),
            domain: "localhost".into(),
            data_dir: "/var/lib/tenantry".into(),
            run_dir: "/run/tenantry".into(),
            policies_dir: "/etc/tenantry/policies".into(),
            scripts_dir: "/etc/tenantry/scripts".into(),
            busybox: "/bin/busybox".into(),
            api: Api::default(),
            proxy: Proxy::default(),
            acme: Acme::default(),
            pool: Pool::default(),
            net: Net { subnet: Subnet::default() },
            dns: Dns::default(),
            relay: Relay::default(),
            users: Users { uid_base: 1_000_000_000 },
            starts: Starts::default(),
            awake: Awake::default(),
            exec: Exec::default(),
            limits: Defaults::default(),
        }
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self { upstreams: Vec::new(), port: 0, queries_per_second: 100 }
    }
}

impl Default for Relay {
    fn default() -> Self {
        Self { port: 0, connections: 256, allow_local_proxies: false }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self { path: None, size: Bytes::gib(20) }
    }
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            cpu: 1.0,
            memory: Bytes::mib(512),
            disk: Bytes::gib(2),
            ramdisk: Bytes::mib(64),
            pids: 512,
            disk_read_bps: Bytes(0),
            disk_write_bps: Bytes(0),
            net_rx_bps: Bytes(0),
            net_tx_bps: Bytes(0),
        }
    }
}

impl Defaults {
    /// As limits of a container.
    pub fn limits(&self) -> Limits {
        let unless_zero = |bytes: Bytes| (bytes.0 != 0).then_some(bytes);
        let rate = |bytes: Bytes| unless_zero(bytes).map(|bytes| BytesPerSecond(bytes.0));
        Limits {
            cpu: (self.cpu > 0.0).then(|| CpuMillis((self.cpu * 1000.0).round() as u32)),
            memory: unless_zero(self.memory),
            disk: unless_zero(self.disk),
            ramdisk: unless_zero(self.ramdisk),
            pids: (self.pids != 0).then_some(Pids(self.pids)),
            disk_read_bps: rate(self.disk_read_bps),
            disk_write_bps: rate(self.disk_write_bps),
            net_rx_bps: rate(self.net_rx_bps),
            net_tx_bps: rate(self.net_tx_bps),
        }
    }
}

impl Config {
    /// Reads a file, if one is named or the default one is there, and the variables handed in.
    ///
    /// # Errors
    /// Names the key that does not read or cannot be.
    pub fn load(file: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let keys = env.into_iter().filter(|(name, _)| is_key(name)).collect::<HashMap<_, _>>();
        let from_env = config::Environment::with_prefix(ENV_PREFIX.trim_end_matches('_'))
            .prefix_separator("_")
            .separator("__")
            .try_parsing(true)
            .source(Some(keys));
        let path = file.unwrap_or(Path::new(FILE_DEFAULT));
        let from_file = config::File::from(path).format(config::FileFormat::Toml).required(file.is_some());
        let config: Self = config::Config::builder()
            .add_source(from_file)
            .add_source(from_env)
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|source| ConfigError::Read(Box::new(source)))?;
        config.validate()
    }

    fn validate(self) -> Result<Self, ConfigError> {
        let wrong = |key, problem: String| Err(ConfigError::Value { key, problem });
        for (key, path) in
            [("data_dir", &self.data_dir), ("run_dir", &self.run_dir), ("scripts_dir", &self.scripts_dir)]
        {
            if !path.is_absolute() {
                return wrong(key, format!("`{}` is not an absolute path", path.display()));
            }
        }
        self.host_names()?;
        if !(self.limits.cpu.is_finite() && (0.0..=4096.0).contains(&self.limits.cpu)) {
            return wrong("limits.cpu", format!("{} is not between 0 and 4096 cores", self.limits.cpu));
        }
        self.proxy.validate(self.api.listen)?;
        self.acme.validate(self.proxy.tls_listen.is_some())?;
        if self.pool.size < POOL_SIZE_MIN {
            return wrong("pool.size", format!("{} is less than {POOL_SIZE_MIN}", self.pool.size));
        }
        if self.dns.upstreams.len() > NAME_SERVERS_MAX {
            return wrong("dns.upstreams", format!("{} are more than {NAME_SERVERS_MAX}", self.dns.upstreams.len()));
        }
        if !DNS_QUERIES_PER_S.contains(&self.dns.queries_per_second) {
            let (min, max) = (DNS_QUERIES_PER_S.start(), DNS_QUERIES_PER_S.end());
            return wrong("dns.queries_per_second", format!("{} is not {min} to {max}", self.dns.queries_per_second));
        }
        if !RELAY_CONNECTIONS.contains(&self.relay.connections) {
            let (min, max) = (RELAY_CONNECTIONS.start(), RELAY_CONNECTIONS.end());
            return wrong("relay.connections", format!("{} is not {min} to {max}", self.relay.connections));
        }
        self.starts.validate()?;
        self.exec.validate()?;
        if self.users.uid_base < slot::IDS_PER_SLOT || self.last_slot().0 == 0 {
            return wrong("users.uid_base", format!("{} leaves no room for 65536 ids a slot", self.users.uid_base));
        }
        Ok(self)
    }

    /// The highest slot that has both an address in the subnet and 65536 ids below 2^32.
    pub fn last_slot(&self) -> Slot {
        let by_ids = (u32::MAX - self.users.uid_base) / slot::IDS_PER_SLOT;
        let by_ids = u16::try_from(by_ids.saturating_sub(1)).unwrap_or(u16::MAX);
        self.net.subnet.last_slot().min(Slot(by_ids))
    }

    /// The pool's folder.
    pub fn pool_path(&self) -> PathBuf {
        self.pool.path.clone().unwrap_or_else(|| self.data_dir.join("pool"))
    }

    /// The names that tenants' URLs are made of.
    ///
    /// # Errors
    /// `server_name` and `domain` are no host names.
    pub fn host_names(&self) -> Result<HostNames, ConfigError> {
        HostNames::new(&self.server_name, &self.domain, self.proxy.scheme(), self.proxy.port())
            .map_err(|error| ConfigError::Value { key: "server_name, domain", problem: error.to_string() })
    }

    /// Where certificates are.
    pub fn certificates_path(&self) -> PathBuf {
        self.proxy.certificates_dir.clone().unwrap_or_else(|| self.data_dir.join("certificates"))
    }

    /// Where the admin token lies.
    pub fn admin_token_path(&self) -> PathBuf {
        self.data_dir.join("admin.token")
    }

    /// Where scripts' workers come to the API.
    pub fn scripts_socket(&self) -> PathBuf {
        self.run_dir.join("scripts").join("api.sock")
    }

    /// As TOML, for `tenantry config default`.
    ///
    /// # Errors
    /// None that a valid configuration has.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }
}

/// The smallest loop file: BTRFS wants 109 MiB (mkfs.btrfs(8)) and a template needs room beside it.
pub const POOL_SIZE_MIN: Bytes = Bytes::mib(256);

fn is_key(name: &str) -> bool {
    name.strip_prefix(ENV_PREFIX)
        .is_some_and(|key| !ENV_NOT_KEYS.iter().any(|not| key == *not || key.starts_with("VM_")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::host::Scheme;

    fn load(toml: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.toml");
        std::fs::write(&file, toml).unwrap();
        Config::load(Some(&file), env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    fn complaint(error: ConfigError) -> String {
        use std::error::Error;
        format!("{error}: {}", error.source().map(ToString::to_string).unwrap_or_default())
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        assert_eq!(load("", &[]).unwrap(), Config::default());
    }

    #[test]
    fn the_printed_defaults_read_back() {
        assert_eq!(load(&Config::default().to_toml().unwrap(), &[]).unwrap(), Config::default());
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let env = [("TENANTRY_API__LISTEN", "127.0.0.1:1"), ("TENANTRY_INSTANCE", "t2"), ("TENANTRY_TOKEN", "x")];
        let config = load("instance = 't1'\n[pool]\nsize = '1GiB'", &env).unwrap();
        assert_eq!(config.api.listen, SocketAddr::from(([127, 0, 0, 1], 1)));
        assert_eq!(config.instance.as_str(), "t2");
        assert_eq!(config.pool.size, Bytes::gib(1));
        let config = load("", &[("TENANTRY_DNS__UPSTREAMS", "192.0.2.53, 192.0.2.54:5353")]).unwrap();
        assert_eq!(config.dns.upstreams.len(), 2);
    }

    #[test]
    fn a_default_limit_of_zero_is_none() {
        let toml = "[limits]\ncpu = 0.0\nmemory = 0\nnet_rx_bps = '10MiB'\ndisk_write_bps = 5";
        let limits = load(toml, &[]).unwrap().limits.limits();
        assert_eq!((limits.cpu, limits.memory, limits.net_tx_bps), (None, None, None));
        let rates = (limits.net_rx_bps, limits.disk_write_bps);
        assert_eq!(rates, (Some(BytesPerSecond(10 << 20)), Some(BytesPerSecond(5))));
    }

    #[test]
    fn urls_are_https_where_tls_is_spoken_unless_said_otherwise() {
        let of = |toml: &str| {
            let proxy = load(&format!("[proxy]\n{toml}"), &[]).unwrap().proxy;
            (proxy.scheme(), proxy.port(), proxy.plain_scheme(), proxy.https_port())
        };
        use Scheme::{Http, Https};
        assert_eq!(of(""), (Http, 8080, Http, None));
        assert_eq!(of("scheme = 'https'\npublic_port = 443"), (Https, 443, Https, None));
        assert_eq!(of("tls_listen = '127.0.0.1:8443'"), (Https, 8443, Http, None));
        let redirect = "tls_listen = '127.0.0.1:8443'\nredirect_to_https = true";
        assert_eq!(of(redirect), (Https, 8443, Http, Some(8443)));
        assert_eq!(of(&format!("{redirect}\npublic_port = 443")), (Https, 443, Http, Some(443)));
        assert_eq!(of(&format!("{redirect}\nscheme = 'http'\npublic_port = 80")), (Http, 80, Http, Some(8443)));
    }

    #[test]
    fn an_unknown_key_is_refused_by_its_name() {
        assert!(complaint(load("instence = 'x'", &[]).unwrap_err()).contains("instence"));
        assert!(complaint(load("[api]\nport = 1", &[]).unwrap_err()).contains("port"));
        assert!(complaint(load("", &[("TENANTRY_INSTENCE", "x")]).unwrap_err()).contains("instence"));
    }

    #[test]
    fn values_that_cannot_be_are_refused_by_their_key() {
        for (toml, key) in [
            ("run_dir = 'run'", "run_dir"),
            ("domain = 'Local Host'", "domain"),
            ("[proxy]\nredirect_to_https = true", "proxy.redirect_to_https"),
            ("[acme]\nenabled = true", "acme.enabled"),
            ("[acme]\ndirectory = 'http://acme.example'", "acme.directory"),
            ("[acme]\ncontact = ['me@example.com']", "acme.contact"),
            ("[acme]\ndomains = ['*.example.com']", "shop.example.com"),
            ("[users]\nuid_base = 4294967295", "users.uid_base"),
            ("[pool]\nsize = '1MiB'", "pool.size"),
            ("[limits]\ncpu = -1.0", "limits.cpu"),
            ("[proxy]\ntrusted_proxies = ['10.0.0.0/33']", "trusted_proxies"),
            ("[dns]\nqueries_per_second = 0", "dns.queries_per_second"),
            ("[relay]\nconnections = 0", "relay.connections"),
            ("[starts]\nat_once = 0", "starts.at_once"),
            ("[starts]\nwakes_per_second = 0", "starts.wakes_per_second"),
            ("[awake]\nmemory = '101%'", "101%"),
            ("scripts_dir = 'scripts'", "scripts_dir"),
            ("[exec]\nworkers = 0", "exec.workers"),
            ("[exec]\nwarm = 9", "exec.warm"),
            ("[exec]\ntimeout_s = 301", "exec.timeout_s"),
            ("[exec]\nmemory = '1MiB'", "exec.memory"),
            ("[exec]\nsecrets_file = 'x'", "exec.secrets_file"),
            ("[dns]\nupstreams = ['dns.example']", "dns.example"),
            ("[dns]\nupstreams = ['1.1.1.1', '1.1.1.2', '1.1.1.3', '1.1.1.4', '1.1.1.5']", "dns.upstreams"),
            ("instance = 'much-too-long'", "instance name"),
        ] {
            let text = complaint(load(toml, &[]).unwrap_err());
            assert!(text.contains(key), "{toml}: {text}");
        }
    }
}
