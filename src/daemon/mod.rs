//! `tenantry serve`: puts the floors on top of each other, and takes them down in order.
//!
//! ```text
//!  folders ─► pool ─► drivers ─► store ─► recovery ─► base image, admin token ─► API, proxy, egress
//! ```
//!
//! What cannot work is found before anything is served. A container outlives the daemon: at the end nothing of theirs is
//! touched, and the next daemon takes them over.

mod access_log;
mod domains;
mod ports;
mod quiet;
mod routes;
mod scripts;
mod tenants;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acme::{Acme, AcmeConfig};
use crate::api::{Api, Monitoring, serve};
use crate::config::{AcmeChallenge, Config, ConfigError};
use crate::domain::Bytes;
use crate::egress::dns::{Lookup, Resolver, ResolverConfig};
use crate::egress::{Dialer, Keepalive, Relay, RelayConfig};
use crate::exec::pool::worker_ids;
use crate::exec::runs::Runs;
use crate::exec::{ScriptsError, schedule};
use crate::lifecycle::{ALARM_LOOK_MS, Drivers, Error, Report, Service};
use crate::proxy::tls::{Certificates, FolderError, Tls, TlsConfig, TlsError};
use crate::proxy::{Challenges, Door, Proxy, ProxyConfig, TrustedProxies};
use crate::store::sled::SledStore;
use crate::store::{Records, Store, StoreError};
use crate::sys::btrfs::{BtrfsPool, OpenedPool, Pool, PoolError, PoolOptions, QuotaMode, open_pool};
use crate::sys::cgroup::{CgroupError, Cgroups, DeviceNumber, KernelCgroups};
use crate::sys::folders::{self, DiskFolders, Layout};
use crate::sys::gateway::{Doors, GatewayError, GatewaySockets};
use crate::sys::netlink::{LinkError, VethLinks};
use crate::sys::nft::{NftFirewall, PolicyFolderError, load_policies};
use crate::sys::runtime::{HelperRuntime, Runtime, RuntimeError, become_subreaper};
use crate::sys::worker::WorkerError;

use scripts::Hosting;

/// How long verbs at work may take at the end, in seconds: less than systemd's 90 s before it kills.
const CLOSE_S_MAX: u64 = 30;
/// How old the note of a token's last use may be after a crash, in seconds.
const USES_KEPT_EVERY_S: u64 = 60;
/// Between two looks at the length of the logs, in seconds.
const LOGS_LOOK_S: u64 = 2;
/// Between two looks for quota groups of what has been deleted, in seconds.
const GROUPS_LOOK_S: u64 = 3_600;

/// Why a daemon cannot serve.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each is what its source is of")]
pub enum DaemonError {
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot listen on {address} for the {what}")]
    Listen {
        what: &'static str,
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the configuration cannot be used")]
    Config(#[from] ConfigError),
    #[error("a firewall policy cannot be used")]
    Policy(#[from] PolicyFolderError),
    #[error("the pool cannot be opened")]
    Pool(#[from] PoolError),
    #[error("the store cannot be opened")]
    Store(#[from] StoreError),
    #[error("cgroups cannot be used")]
    Cgroup(#[from] CgroupError),
    #[error("the network cannot be set up")]
    Link(#[from] LinkError),
    #[error("tenants cannot be served on their gateway's address")]
    Gateway(#[from] GatewayError),
    #[error("the runtime cannot be set up")]
    Runtime(#[from] RuntimeError),
    #[error("the folders cannot be made")]
    Folders(#[from] folders::FolderError),
    #[error("scripts cannot be served")]
    Scripts(#[from] ScriptsError),
    #[error("scripts have no workers (without scripts, `[exec] enabled = false`, this host can serve)")]
    Workers(#[from] WorkerError),
    #[error("the records cannot be taken over")]
    Service(#[from] Error),
    #[error("clients cannot be served by TLS")]
    Certificates(#[from] FolderError),
    #[error("clients cannot be served by TLS")]
    Tls(#[from] TlsError),
    #[error("{0}")]
    System(&'static str, #[source] io::Error),
}

/// A daemon that has taken over and listens, and serves nothing yet.
#[derive(Debug)]
pub struct Daemon {
    service: Service,
    pool: OpenedPool,
    api: TcpListener,
    scripts: UnixListener,
    proxy: TcpListener,
    tls: Option<TlsDoor>,
    gateway: GatewaySockets,
    config: Config,
    report: Report,
}

/// What clients that speak TLS come to.
#[derive(Debug)]
struct TlsDoor {
    listener: TcpListener,
    certificates: Arc<Certificates>,
    challenges: Arc<Challenges>,
    tls: Arc<Tls>,
}

impl TlsDoor {
    async fn open(config: &Config) -> Result<Option<Self>, DaemonError> {
        let Some(address) = config.proxy.tls_listen else { return Ok(None) };
        let folder = config.certificates_path();
        // One that the operator named is the operator's.
        if config.proxy.certificates_dir.is_none() {
            make_folder(&folder, PRIVATE_MODE)?;
        }
        let challenges = Arc::new(Challenges::default());
        let certificates = Certificates::open(&folder, Arc::clone(&challenges))?;
        let takes_challenges = config.acme.enabled && config.acme.challenge == AcmeChallenge::TlsAlpn01;
        let bounds = TlsConfig { takes_challenges, ..TlsConfig::default() };
        let tls = Tls::new(Arc::clone(&certificates), bounds)?;
        Ok(Some(Self { listener: listen("proxy's TLS", address)?, certificates, challenges, tls }))
    }
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DaemonError {
    let path = path.to_owned();
    move |source| DaemonError::File { action, path, source }
}

/// Of folders that are root's alone.
const PRIVATE_MODE: u32 = 0o700;
/// Of the run folder: containers' inits pass it on their way to their rootfs, and none may list it.
const PASS_MODE: u32 = 0o711;

/// Clients that wait to be accepted; the kernel's `net.core.somaxconn`, 4096 by default, bounds it too. Where there is no room the kernel drops
/// what comes, and the client tries again after a second: with the usual 128, some of 512 that came at once waited so long.
const BACKLOG: u32 = 4_096;
/// Of the scripts' folder: their workers are nobody, and read it.
const SCRIPTS_MODE: u32 = 0o755;
/// Of the socket for scripts.
const SOCKET_MODE: u32 = 0o666;

/// A folder with exactly this mode, also where an earlier daemon made it with another.
fn make_folder(path: &Path, mode: u32) -> Result<(), DaemonError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(file("make the folder", path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(file("protect", path))
}

/// The socket over which scripts come to the API. Any user may connect to it, for a worker is nobody; so its folder is root's
/// alone, and a worker is given the socket by a mount of its own. One that an earlier daemon left leads nowhere.
fn listen_to_scripts(path: &Path) -> Result<UnixListener, DaemonError> {
    if let Some(folder) = path.parent() {
        make_folder(folder, PRIVATE_MODE)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file("remove", path)(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(file("listen on", path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE)).map_err(file("open", path))?;
    Ok(listener)
}

/// It leads nowhere any more; the next daemon makes its own.
fn remove_socket(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "the socket for scripts is left");
    }
}

fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, DaemonError> {
    let bound = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bound().map_err(|source| DaemonError::Listen { what, address, source })
}

/// The drivers of this host, for this configuration, with a runtime that was made for it.
///
/// # Errors
/// What of it cannot be used.
pub async fn drivers(
    config: &Config,
    layout: &Layout,
    opened: &OpenedPool,
    doors: Doors,
    runtime: Arc<dyn Runtime>,
) -> Result<Drivers, DaemonError> {
    let device = opened.device()?.map(DeviceNumber::from_dev);
    let cgroups = KernelCgroups::detect(config.instance.clone(), device)?;
    cgroups.prepare().await?;
    let links = VethLinks::new(config.instance.clone(), config.net.subnet)
        .map_err(|source| DaemonError::System("cannot speak to the kernel's network", source))?;
    tracing::info!(cgroups = ?cgroups.version(), "the host's controllers are found");
    let pool: Arc<dyn Pool> = Arc::new(opened.pool.clone());
    let scripts = config.exec.enabled.then(|| worker_ids(config.users.uid_base));
    Ok(Drivers {
        folders: Arc::new(DiskFolders::open(layout.clone(), pool.clone())?),
        pool,
        cgroups: Arc::new(cgroups),
        links: Arc::new(links),
        firewall: Arc::new(NftFirewall::of_daemon(config.instance.clone(), config.net.subnet, doors, scripts)),
        runtime,
    })
}

impl Daemon {
    /// Opens everything and takes over what an earlier daemon left.
    ///
    /// # Errors
    /// What cannot work, before anything is served.
    pub async fn open(mut config: Config) -> Result<Self, DaemonError> {
        become_subreaper().map_err(|source| DaemonError::System("cannot become the reaper of containers", source))?;
        let database = config.data_dir.join("db");
        make_folder(&config.data_dir, PRIVATE_MODE)?;
        make_folder(&database, PRIVATE_MODE)?;
        make_folder(&config.run_dir, PASS_MODE)?;
        // The lock of the store comes first: two daemons of one folder must not both touch the kernel.
        let store: Arc<dyn Store> = Arc::new(Arc::new(SledStore::open_after_another(&database).await?));
        let records = Records::open(store).await?;
        let policies = load_policies(&config.policies_dir)?;
        let api = listen("API", config.api.listen)?;
        let proxy = listen("proxy", config.proxy.listen)?;
        let tls = TlsDoor::open(&config).await?;
        let options =
            PoolOptions { path: config.pool_path(), size: config.pool.size, label: config.instance.to_string() };
        let pool = open_pool(options).await?;
        if pool.pool.quota() != QuotaMode::Simple {
            tracing::warn!("no container has a disk limit: the kernel keeps none (BTRFS simple quotas need Linux 6.7)");
            config.limits.disk = Bytes(0);
        }
        tracing::info!(backing = ?pool.backing, created = pool.created, adopted = pool.adopted, "the pool is open");
        let layout = Layout { pool: pool.layout.clone(), data: config.data_dir.clone() };
        let gateway = GatewaySockets::bind(config.dns.port, config.relay.port)?;
        let doors = gateway.doors().map_err(|source| DaemonError::System("cannot tell a socket's port", source))?;
        let runtime = HelperRuntime::new(&config.run_dir)?;
        runtime.warm();
        let drivers = drivers(&config, &layout, &pool, doors, Arc::new(runtime)).await?;
        drivers.links.prepare_host().await?;
        let service = Service::open(&config, layout, drivers, records, policies).await?;
        service.sweep_images().await?;
        let report = service.recover().await?;
        tracing::info!(?report, "recovered");
        if let Err(error) = service.ensure_base_image(config.busybox.clone()).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "there is no `base` image");
        }
        service.ensure_admin_token(&config.admin_token_path()).await?;
        let scripts = listen_to_scripts(&config.scripts_socket())?;
        Ok(Self { service, pool, api, scripts, proxy, tls, gateway, config, report })
    }

    /// What recovery found.
    pub const fn report(&self) -> &Report {
        &self.report
    }

    /// Serves until `shutdown`; verbs at work are ended, containers run on.
    ///
    /// # Errors
    /// The names of the URLs cannot be used.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), DaemonError> {
        let Self { service, pool, api, scripts: socket, proxy: listener, tls, gateway, config, .. } = self;
        let runs = Runs::default();
        let scripts = match config.exec.enabled {
            true => Some(Hosting::open(&config, &service, runs.clone()).await?),
            false => None,
        };
        let routes = routes::Table::new(service.clone(), Handle::current(), &config.proxy);
        let routes = match scripts.as_ref().and_then(Hosting::address) {
            Some(address) => routes.with_scripts(address),
            None => routes,
        };
        let routes = Arc::new(routes);
        let trusted_proxies = TrustedProxies::new(&config.proxy.trusted_proxies);
        let access_log = config.proxy.access_log;
        // A thread a core, as every server of many connections has.
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let bounds = ProxyConfig { threads, trusted_proxies, access_log, ..ProxyConfig::default() };
        let proxy = Proxy::new(config.host_names()?, routes, bounds)
            .map_err(|source| DaemonError::System("cannot start the proxy's threads", source))?;
        let beside = TaskTracker::new();
        let served = CancellationToken::new();
        beside.spawn(access_log::write(proxy.clone(), service.clone(), served.clone()));
        let doors = TaskTracker::new();
        let door = Door { scheme: config.proxy.plain_scheme(), https_port: config.proxy.https_port() };
        doors.spawn(Arc::clone(&proxy).serve_at(listener, door, shutdown.clone()));
        if let Some(TlsDoor { listener, certificates, challenges, tls }) = tls {
            if config.acme.enabled {
                proxy.answer_challenges(Arc::clone(&challenges));
                let acme = acme(&config, &service, Arc::clone(&certificates), challenges);
                beside.spawn(acme.run(shutdown.clone()));
            }
            beside.spawn(certificates.watch(shutdown.clone()));
            doors.spawn(Arc::clone(&proxy).serve_tls(listener, tls, shutdown.clone()));
        }
        doors.close();
        beside.spawn(async move {
            doors.wait().await;
            served.cancel();
        });
        let ports = Arc::new(ports::Ports::new(config.proxy.listen.ip(), config.proxy.tcp_ports));
        beside.spawn(Arc::clone(&ports).serve(service.clone(), Arc::clone(&proxy), shutdown.clone()));
        beside.spawn(serve_tenants(&config, &service, gateway, shutdown.clone()));
        beside.spawn(watch_idle(service.clone(), shutdown.clone()));
        beside.spawn(trim_logs(service.clone(), shutdown.clone()));
        beside.spawn(look_for_alarms(service.clone(), shutdown.clone()));
        beside.spawn(keep_uses_now_and_then(service.clone(), shutdown.clone()));
        beside.spawn(sweep_groups(pool.pool.clone(), shutdown.clone()));
        if let Some(scripts) = &scripts {
            beside.spawn(schedule::serve(scripts.scripts.clone(), shutdown.clone()));
        }
        beside.close();
        tracing::info!(api = %config.api.listen, proxy = %config.proxy.listen, "serving");
        let dialer = Dialer::new(config.net.subnet, config.relay.allow_local_proxies);
        let names = Arc::new(Lookup::new(config.dns.upstreams.clone(), dialer));
        let monitoring = Monitoring { open: config.api.metrics_open, sources: vec![proxy] };
        let surface = Api::new(service.clone(), names, ports, monitoring, shutdown.clone());
        let surface = match &scripts {
            Some(hosting) => surface.with_scripts(hosting.scripts.clone()),
            None => surface,
        };
        serve_api(api, socket, &surface, runs, scripts, shutdown).await;
        remove_socket(&config.scripts_socket());
        service.close(Duration::from_secs(CLOSE_S_MAX)).await;
        beside.wait().await;
        keep_uses(&service).await;
        leave_host(service, pool).await;
        Ok(())
    }
}

/// Leaves the machine as it was, but for containers that run on.
async fn leave_host(service: Service, pool: OpenedPool) {
    let left = service.leave_host().await;
    drop(service);
    match left {
        Ok(true) => {
            if let Err(error) = pool.close().await {
                tracing::warn!(error = &error as &dyn std::error::Error, "the pool stays mounted");
            }
        }
        Ok(false) => tracing::info!("containers run on; the pool stays mounted"),
        Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "the host is not left clean"),
    }
}

/// Answers whoever has a token, scripts, and who comes to scripts' own host; then ends the workers, whose scripts nobody asks any more.
async fn serve_api(
    api: TcpListener,
    socket: UnixListener,
    surface: &Api,
    runs: Runs,
    scripts: Option<Hosting>,
    shutdown: CancellationToken,
) {
    let (host, workers) = scripts.map_or((None, None), |hosting| (hosting.host, Some(hosting.workers)));
    let at_host = async {
        if let Some((listener, _)) = host {
            serve(listener, surface.router_for_host(), shutdown.clone()).await;
        }
    };
    let to_scripts = serve(socket, surface.router_for_scripts(runs), shutdown.clone());
    tokio::join!(serve(api, surface.router(), shutdown.clone()), to_scripts, at_host);
    if let Some(workers) = workers {
        workers.close().await;
    }
}

/// What orders certificates.
fn acme(config: &Config, service: &Service, certificates: Arc<Certificates>, challenges: Arc<Challenges>) -> Acme {
    let wanted = Arc::new(domains::Table::new(service.clone(), config.acme.domains.clone()));
    let config = AcmeConfig {
        directory: config.acme.directory.clone(),
        contact: config.acme.contact.clone(),
        challenge: config.acme.challenge,
        ca_file: config.acme.ca_file.clone(),
        account: config.data_dir.join("acme.json"),
        folder: config.certificates_path(),
    };
    Acme { config, certificates, challenges, wanted }
}

/// Serves tenants on their gateway's address.
fn serve_tenants(
    config: &Config,
    service: &Service,
    gateway: GatewaySockets,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let bounds = ResolverConfig {
        upstreams: config.dns.upstreams.clone(),
        queries_per_second: config.dns.queries_per_second,
        subnet: config.net.subnet,
    };
    let relayed = RelayConfig { connections_of_one_max: config.relay.connections };
    let tenants = Arc::new(tenants::Table::new(service.clone()));
    let dialer = Dialer::new(config.net.subnet, config.relay.allow_local_proxies);
    let resolver = Resolver::new(bounds, dialer.clone(), tenants.clone(), tenants.clone());
    let relay = Relay::new(&relayed, dialer, tenants.clone());
    let keepalive = Keepalive::new(tenants.clone(), tenants);
    let changes = service.ways_out();
    async move {
        let resolving = resolver.serve(gateway.dns_udp, gateway.dns_tcp, shutdown.clone());
        let relaying = relay.serve(gateway.relay, changes, shutdown.clone());
        tokio::join!(resolving, relaying, keepalive.serve(gateway.keepalive, shutdown));
    }
}

async fn watch_idle(service: Service, shutdown: CancellationToken) {
    service.watch_idle(shutdown).await;
}

async fn keep_uses(service: &Service) {
    if let Err(error) = service.keep_uses().await {
        tracing::warn!(error = &error as &dyn std::error::Error, "when tokens were last used is not written down");
    }
}

async fn keep_uses_now_and_then(service: Service, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            // Both only wait.
            () = tokio::time::sleep(Duration::from_secs(USES_KEPT_EVERY_S)) => keep_uses(&service).await,
            () = shutdown.cancelled() => return,
        }
    }
}

async fn trim_logs(service: Service, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            // Both only wait.
            () = tokio::time::sleep(Duration::from_secs(LOGS_LOOK_S)) => service.trim_logs().await,
            () = shutdown.cancelled() => return,
        }
    }
}

async fn look_for_alarms(service: Service, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            // Both only wait.
            () = tokio::time::sleep(Duration::from_millis(ALARM_LOOK_MS)) => service.look_for_alarms().await,
            () = shutdown.cancelled() => return,
        }
    }
}

/// Groups of deleted subvolumes stay while anybody shares their data.
async fn sweep_groups(pool: BtrfsPool, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            // Both only wait.
            () = tokio::time::sleep(Duration::from_secs(GROUPS_LOOK_S)) => {}
            () = shutdown.cancelled() => return,
        }
        let pool = pool.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || pool.sweep_quota_groups()).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "quota groups of what was deleted are left");
        }
    }
}
