//! Containers: made, copied, changed, started and stopped, deleted.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::super::error::{Error, What};
use super::super::plan::Origin;
use super::super::ready::Readiness;
use super::super::requests::*;
use super::super::rules::{RulesChange, RulesChanged};
use super::super::worker::{Command, Settled};
use super::{Service, gone};
use crate::domain::container::{PORT_DEFAULT, SettingsError};
use crate::domain::host::Alias;
use crate::domain::network::{Network, NetworkChange, Proxy};
use crate::domain::policy::PolicyName;
use crate::domain::receipt::Erasure;
use crate::domain::{
    Confinement, Container, ContainerId, ContainerName, Desired, EnvVars, Image, ImageConfig, ImageId, OperationId,
    Phase, Project, ProjectId, Receipt, Settings, Verb,
};
use crate::sys::gateway::is_closed;

/// The image of a container that names none.
pub const IMAGE_DEFAULT: &str = "base";
/// How long DELETE waits for the objects to be removed, in seconds; they go on being removed behind.
const REMOVED_WAIT_S_MAX: u64 = 30;
/// How long `wait=erased` waits for BTRFS's cleaner, in seconds.
const ERASED_WAIT_S_MAX: u64 = 120;
/// Between two looks at a receipt, in milliseconds.
const ERASED_LOOK_MS: u64 = 20;
impl Service {
    /// Makes a container from an image.
    ///
    /// # Errors
    /// What the request names is not there or in use, a limit is reached, a step failed. Nothing is left then.
    pub async fn create(&self, project: ProjectId, new: NewContainer, wait: Await) -> Result<Made, Error> {
        let image = self.image_for(new.image.as_deref().unwrap_or(IMAGE_DEFAULT))?;
        let defaults = self.default_settings(&*self.project(project)?);
        let settings = new.settings.apply(Settings { port: default_port(&image.config), ..defaults })?;
        let draft = Draft {
            project,
            name: new.name.unwrap_or_else(random_name),
            external_id: new.external_id,
            image: (image.id, image.name.clone()),
            source: None,
            made: new.made,
            settings,
            start: new.start,
        };
        self.build(draft, Origin::Image(image.id), wait).await
    }

    /// Makes a container from another one, running or not.
    ///
    /// # Errors
    /// As [`Service::create`]; and the source was deleted meanwhile.
    pub async fn copy(&self, source: ContainerId, new: NewCopy, wait: Await) -> Result<Made, Error> {
        let from = self.container(source)?;
        if from.receipt.is_some() || matches!(from.phase, Phase::Creating | Phase::Failed { .. }) {
            return Err(Error::NotCopyable { id: source, status: from.status() });
        }
        let mut settings = from.settings.clone();
        settings.template = false;
        settings.deletion_protection = false;
        let project = new.project.unwrap_or(from.project);
        if !new.copy_firewall.unwrap_or(from.settings.template) {
            settings.firewall_policy = self.project(project)?.firewall_policy.clone().unwrap_or_default();
            settings.firewall_rules = Default::default();
        }
        if !new.copy_network.unwrap_or(from.settings.template) {
            settings.network = None;
        }
        let draft = Draft {
            project,
            name: new.name.unwrap_or_else(random_name),
            external_id: new.external_id,
            image: (from.image, from.image_name.clone()),
            source: Some(source),
            made: new.made,
            settings: new.settings.apply(settings)?,
            start: new.start,
        };
        let made = self.build(draft, Origin::Container(source), wait).await;
        let lives = self.container(source).is_ok_and(|source| source.receipt.is_none());
        match made {
            Err(Error::Step { .. }) if !lives => Err(Error::SourceGone(source)),
            made => made,
        }
    }

    async fn build(&self, draft: Draft, origin: Origin, wait: Await) -> Result<Made, Error> {
        self.check_settings(&draft.settings)?;
        self.check_room().await?;
        let start = draft.start;
        let began = Instant::now();
        let container = self.ledger().add(|slot| draft.record(slot)).await?;
        let recorded = began.elapsed();
        let (reply, done) = oneshot::channel();
        let deadline = Instant::now() + wait.timeout;
        if let Err(error) = self.inner.shared.send(container.id, Command::Build { origin, start, reply }) {
            self.ledger().forget(container.id).await?;
            return Err(error);
        }
        if wait.until == Until::Nothing {
            self.records().flush().await?;
            return Ok(Made { container, warnings: Vec::new(), timings: Vec::new() });
        }
        // A start is bounded by its helper's own limits, so this ends.
        let mut settled = done.await.map_err(gone)??;
        settled.timings.insert(0, ("record".to_owned(), recorded));
        self.await_ready(settled, wait.until, deadline).await
    }

    /// Waits until the port accepts; past the deadline, or when init has ended, the caller gets a warning.
    async fn await_ready(&self, settled: Settled, until: Until, deadline: Instant) -> Result<Made, Error> {
        let Settled { mut container, ready, mut timings } = settled;
        let mut warnings = Vec::new();
        if let (Until::Ready, Some(mut ready)) = (until, ready) {
            let began = Instant::now();
            let over = tokio::time::timeout_at(deadline.into(), ready.wait_for(|end| *end != Readiness::Pending)).await;
            let end = over.ok().and_then(Result::ok).map(|end| *end);
            timings.push(("ready".to_owned(), began.elapsed()));
            // It may have been deleted meanwhile; the record from before is then the best there is.
            container = self.container(container.id).unwrap_or(container);
            warnings.extend(not_ready(&container, end));
        }
        Ok(Made { container, warnings, timings })
    }

    /// One container.
    ///
    /// # Errors
    /// No such container.
    pub fn container(&self, id: ContainerId) -> Result<Arc<Container>, Error> {
        self.ledger().directory().container(id)
    }

    /// All of them in the order they were made, those being deleted too.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.ledger().directory().containers()
    }

    /// Changes a container; limits and firewall at once, the environment at the next start.
    ///
    /// # Errors
    /// A stale `if_match`, a name in use, a limit that the kernel does not take. Nothing is changed then.
    pub async fn update(&self, id: ContainerId, patch: ContainerPatch, if_match: Option<u64>) -> Result<Made, Error> {
        let old = self.container(id)?;
        let new = patch.settings.clone().apply(old.settings.clone())?;
        self.check_settings(&new)?;
        if matches!(patch.settings.network, NetworkChange::Replace(_) | NetworkChange::Merge(_)) {
            self.check_network(new.network.as_ref())?;
        }
        let (reply, done) = oneshot::channel();
        self.inner.shared.send(id, Command::Update { patch: Box::new(patch), if_match, reply })?;
        let container = done.await.map_err(gone)??;
        Ok(Made { container, warnings: Vec::new(), timings: Vec::new() })
    }

    /// Changes a container's own firewall rules; in force when this returns, where it runs.
    ///
    /// # Errors
    /// A stale `if_match`, no room for the rule, no rule that fits, the firewall fails. Nothing is changed then.
    pub async fn change_rules(
        &self,
        id: ContainerId,
        change: RulesChange,
        if_match: Option<u64>,
    ) -> Result<RulesChanged, Error> {
        let (reply, done) = oneshot::channel();
        self.inner.shared.send(id, Command::Rules { change: Box::new(change), if_match, reply })?;
        done.await.map_err(gone)?
    }

    /// Carries out a verb.
    ///
    /// # Errors
    /// The verb makes no sense now, another one is at work, a step failed.
    pub async fn verb(&self, id: ContainerId, verb: Verb, wait: Await, grace: Option<Duration>) -> Result<Done, Error> {
        let container = self.container(id)?;
        if container.receipt.is_some() {
            return Err(Error::WrongState { verb, status: container.status() });
        }
        let operation = OperationId::generate();
        let grace = grace.unwrap_or(Duration::from_secs(STOP_GRACE_S_DEFAULT));
        let (reply, done) = oneshot::channel();
        let deadline = Instant::now() + wait.timeout;
        self.inner.shared.send(id, Command::Verb { verb, grace, reply })?;
        tracing::info!(container = %id, %operation, %verb, "accepted");
        if wait.until == Until::Nothing {
            return Ok(Done { operation, verb, container, warnings: Vec::new(), timings: Vec::new() });
        }
        let settled = done.await.map_err(gone)??;
        let made = self.await_ready(settled, wait.until, deadline).await?;
        let Made { container, warnings, timings } = made;
        Ok(Done { operation, verb, container, warnings, timings })
    }

    /// Deletes a container with all its data: from any state, and again with the same answer. Returns when every object is
    /// removed or, with `erased`, when the filesystem has dropped the data too.
    ///
    /// # Errors
    /// No such container ever was, a stale `if_match`, it is protected, an object could not be removed.
    pub async fn delete(&self, id: ContainerId, erased: bool, if_match: Option<u64>) -> Result<Receipt, Error> {
        // Known before anything is removed: a daemon that is killed in between must still follow the data to its end.
        let subvolumes = self.inner.shared.executor.subvolumes(id).await?;
        let receipt = match self.ledger().tombstone(id, &subvolumes, if_match).await {
            Ok(receipt) => {
                let (reply, done) = oneshot::channel();
                self.inner.shared.send(id, Command::Erase { tries: 0, reply })?;
                match tokio::time::timeout(Duration::from_secs(REMOVED_WAIT_S_MAX), done).await {
                    Ok(done) => done.map_err(gone)??,
                    Err(_elapsed) => receipt,
                }
            }
            Err(Error::NotFound { what, name }) => match self.receipt_of(id) {
                Some(receipt) => self.receipt(receipt).await?,
                None => return Err(Error::NotFound { what, name }),
            },
            Err(error) => return Err(error),
        };
        if erased { self.await_erased(receipt).await } else { Ok(receipt) }
    }

    async fn await_erased(&self, receipt: Receipt) -> Result<Receipt, Error> {
        let id = receipt.id;
        let look = async {
            let mut receipt = receipt;
            while receipt.state != Erasure::Complete {
                tokio::time::sleep(Duration::from_millis(ERASED_LOOK_MS)).await;
                receipt = self.receipt(id).await?;
            }
            Ok(receipt)
        };
        match tokio::time::timeout(Duration::from_secs(ERASED_WAIT_S_MAX), look).await {
            Ok(complete) => complete,
            Err(_elapsed) => self.receipt(id).await,
        }
    }

    fn image_for(&self, name: &str) -> Result<Arc<Image>, Error> {
        let images = self.ledger().images();
        let by_id = name.parse::<ImageId>().ok().and_then(|id| images.get(&id));
        by_id.or_else(|| images.named(name)).ok_or_else(|| Error::not_found(What::Image, name))
    }

    fn default_settings(&self, project: &Project) -> Settings {
        Settings {
            comment: None,
            color: None,
            command: Vec::new(),
            port: PORT_DEFAULT,
            env: EnvVars::default(),
            limits: project.limits.over(self.inner.defaults),
            firewall_policy: project.firewall_policy.clone().unwrap_or_default(),
            firewall_rules: Default::default(),
            network: None,
            access: None,
            idle_timeout_s: project.idle_timeout_s,
            idle_action: project.idle_action,
            activity: Default::default(),
            wake_on_request: true,
            template: false,
            labels: Default::default(),
            deletion_protection: false,
            autostart: true,
            ramdisk: true,
            ssh_public_key: None,
            confinement: Confinement::Standard,
        }
    }

    /// What can be refused before anything is made.
    fn check_settings(&self, settings: &Settings) -> Result<(), Error> {
        self.check_policy(&settings.firewall_policy)
    }

    pub(super) fn check_policy(&self, policy: &PolicyName) -> Result<(), Error> {
        match self.inner.shared.policies.get(policy) {
            Some(_) => Ok(()),
            None => Err(Error::not_found(What::Policy, policy)),
        }
    }

    /// Whether the daemon may connect to what network settings name by address; a name's addresses are looked at when it is used.
    fn check_network(&self, network: Option<&Network>) -> Result<(), Error> {
        let closed = |address| !self.inner.allow_local_proxies && is_closed(address, self.inner.shared.subnet);
        let wanted = "none of this host's own addresses, a tenant's or a link-local one is wanted";
        let proxy = network.and_then(Network::proxy).and_then(Proxy::address).filter(|address| closed(*address));
        let servers = network.map_or(&[][..], |network| &network.name_servers);
        if proxy.is_some() {
            return Err(SettingsError { field: "proxy", wanted }.into());
        }
        if servers.iter().any(|server| closed(server.address().ip())) {
            return Err(SettingsError { field: "dns_servers", wanted }.into());
        }
        Ok(())
    }

    async fn check_room(&self) -> Result<(), Error> {
        let space = self.drivers().pool.space().await.map_err(Error::driver)?;
        if !space.has_headroom() {
            return Err(Error::PoolFull { available: space.available });
        }
        Ok(())
    }
}

/// A container before it has a slot.
struct Draft {
    project: ProjectId,
    name: ContainerName,
    external_id: Option<crate::domain::container::ExternalId>,
    image: (ImageId, String),
    source: Option<ContainerId>,
    made: Provenance,
    settings: Settings,
    start: bool,
}

impl Draft {
    fn record(self, slot: crate::domain::Slot) -> Container {
        let now = Timestamp::now();
        let (image, image_name) = self.image;
        Container {
            id: ContainerId::generate(),
            project: self.project,
            name: self.name,
            external_id: self.external_id,
            slot,
            alias: Alias::generate(),
            image,
            image_name,
            source: self.source,
            made_by: self.made.by,
            made_under: self.made.under,
            settings: self.settings,
            phase: Phase::Creating,
            desired: if self.start { Desired::Running } else { Desired::Stopped },
            receipt: None,
            generation: 1,
            env_revision: 1,
            env_revision_applied: 0,
            created_at: now,
            updated_at: now,
            started_at: None,
            started_by: None,
            ready_at: None,
            transitions: 0,
        }
    }
}

fn not_ready(container: &Container, end: Option<Readiness>) -> Option<String> {
    let port = container.settings.port;
    match end {
        Some(Readiness::Ready) => None,
        Some(_) => Some(format!(
            "the container stopped before port {port} accepted: {}",
            container.phase.reason().unwrap_or_else(|| container.status().to_string())
        )),
        None => Some(format!("port {port} did not accept in time; the container goes on starting")),
    }
}

/// Where the HTTP server of a container listens that names no port: 8080 where its image exposes that or no TCP port at
/// all, else the lowest one that it exposes.
fn default_port(config: &ImageConfig) -> NonZeroU16 {
    let number = |text: &String| {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        number.parse::<NonZeroU16>().ok().filter(|_| protocol.eq_ignore_ascii_case("tcp"))
    };
    let exposed = || config.exposed_ports.iter().filter_map(number);
    if exposed().any(|port| port == PORT_DEFAULT) { PORT_DEFAULT } else { exposed().min().unwrap_or(PORT_DEFAULT) }
}

/// A name for a container that was given none.
fn random_name() -> ContainerName {
    ContainerName::random(rand::random())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_listens_where_its_image_says() {
        let port = |exposed: &[&str]| {
            let exposed_ports = exposed.iter().map(|text| (*text).to_owned()).collect();
            default_port(&ImageConfig { exposed_ports, ..ImageConfig::default() }).get()
        };
        assert_eq!(port(&[]), 8080);
        assert_eq!(port(&["80/tcp"]), 80);
        assert_eq!(port(&["443", "53/udp", "80/tcp"]), 80);
        assert_eq!(port(&["80/tcp", "8080/tcp"]), 8080);
        assert_eq!(port(&["53/udp", "0/tcp", "x/tcp", "8000-8010/tcp"]), 8080);
    }
}
