//! Which container a URL leads to, for the proxy.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use async_trait::async_trait;

use crate::domain::host::Route;
use crate::domain::{Container, Phase};
use crate::lifecycle::Service;
use crate::proxy::{Resolution, Routes, Upstream};

/// The records, as the proxy sees them.
#[derive(Debug)]
pub struct Table {
    service: Service,
}

impl Table {
    /// Over this service.
    pub const fn new(service: Service) -> Self {
        Self { service }
    }

    fn find(&self, route: &Route) -> Option<(Arc<Container>, NonZeroU16)> {
        match route {
            Route::Alias(alias) => {
                let container = self.service.by_alias(alias)?;
                let port = container.settings.port;
                Some((container, port))
            }
            Route::Canonical { project, container, port } => {
                let container = self.service.container(*container).ok()?;
                (container.project == *project).then_some((container, *port))
            }
        }
    }

    fn upstream(&self, container: &Container, port: NonZeroU16) -> Option<Upstream> {
        let address = self.service.address(container)?;
        // Each start has a later time than the one before; a clock set back would only cost a retry.
        let epoch = container.started_at?.as_microsecond().unsigned_abs();
        Some(Upstream { container: container.id, epoch, addr: SocketAddr::from((address, port.get())) })
    }
}

#[async_trait]
impl Routes for Table {
    async fn resolve(&self, route: &Route) -> Resolution {
        let Some((container, port)) = self.find(route) else { return Resolution::Unknown };
        let status = container.status().to_string();
        match &container.phase {
            _ if container.receipt.is_some() => Resolution::Unknown,
            Phase::Running { .. } => {
                self.upstream(&container, port).map_or(Resolution::NotRunning { status }, Resolution::Upstream)
            }
            Phase::Creating | Phase::Starting => Resolution::NotReady { status },
            _ => Resolution::NotRunning { status },
        }
    }

    fn is_current(&self, upstream: &Upstream) -> bool {
        let Ok(container) = self.service.container(upstream.container) else { return false };
        let running = matches!(container.phase, Phase::Running { .. }) && container.receipt.is_none();
        let port = NonZeroU16::new(upstream.addr.port());
        running && port.and_then(|port| self.upstream(&container, port)) == Some(*upstream)
    }
}
