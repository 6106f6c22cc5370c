//! Projects.

use std::sync::Arc;

use futures_util::StreamExt;
use jiff::Timestamp;

use super::super::error::{Error, What};
use super::super::requests::{NewProject, ProjectPatch};
use super::Service;
use crate::domain::{Project, ProjectId, ReceiptId};

/// Containers of a project that are deleted at once.
const DELETES_AT_ONCE_MAX: usize = 8;

impl Service {
    /// Makes a project.
    ///
    /// # Errors
    /// Its alias is in use, there is no such policy.
    pub async fn create_project(&self, new: NewProject) -> Result<Arc<Project>, Error> {
        if let Some(policy) = &new.firewall_policy {
            self.check_policy(policy)?;
        }
        let now = Timestamp::now();
        let project = Project {
            id: ProjectId::generate(),
            alias: new.alias,
            color: new.color,
            containers_max: new.containers_max,
            firewall_policy: new.firewall_policy,
            limits: new.limits,
            idle_timeout_s: new.idle_timeout_s,
            idle_action: new.idle_action,
            deleting: false,
            generation: 1,
            created_at: now,
            updated_at: now,
        };
        self.ledger().put_project(|_| Ok(project)).await
    }

    /// All of them in the order they were made.
    pub fn projects(&self) -> Vec<Arc<Project>> {
        self.ledger().directory().projects()
    }

    /// One project.
    ///
    /// # Errors
    /// No such project.
    pub fn project(&self, id: ProjectId) -> Result<Arc<Project>, Error> {
        self.ledger().directory().project(id)
    }

    /// Changes a project.
    ///
    /// # Errors
    /// No such project or policy, a stale `if_match`, an alias in use.
    pub async fn update_project(
        &self,
        id: ProjectId,
        patch: ProjectPatch,
        if_match: Option<u64>,
    ) -> Result<Arc<Project>, Error> {
        self.project(id)?;
        if let Some(Some(policy)) = &patch.firewall_policy {
            self.check_policy(policy)?;
        }
        self.change_project(id, if_match, |project| {
            if let Some(alias) = patch.alias {
                project.alias = alias;
            }
            if let Some(color) = patch.color {
                project.color = color;
            }
            if let Some(max) = patch.containers_max {
                project.containers_max = max;
            }
            if let Some(policy) = patch.firewall_policy {
                project.firewall_policy = policy;
            }
            if let Some(timeout_s) = patch.idle_timeout_s {
                project.idle_timeout_s = timeout_s;
            }
            if let Some(action) = patch.idle_action {
                project.idle_action = action;
            }
            project.limits = patch.limits.apply(project.limits);
        })
        .await
    }

    async fn change_project(
        &self,
        id: ProjectId,
        if_match: Option<u64>,
        change: impl FnOnce(&mut Project) + Send,
    ) -> Result<Arc<Project>, Error> {
        self.ledger()
            .put_project(|directory| {
                let mut project = (*directory.project(id)?).clone();
                if let Some(wanted) = if_match.filter(|wanted| *wanted != project.generation) {
                    return Err(Error::Stale { what: What::Project, wanted, found: project.generation });
                }
                change(&mut project);
                project.generation += 1;
                project.updated_at = Timestamp::now();
                Ok(project)
            })
            .await
    }

    /// Deletes a project with all its containers; gives their receipts.
    ///
    /// # Errors
    /// No such project, one of its containers is protected (nothing is deleted then), or one could not be removed (the rest
    /// is, and the call can be made again).
    pub async fn delete_project(&self, id: ProjectId) -> Result<Vec<ReceiptId>, Error> {
        self.project(id)?;
        let theirs = |service: &Self| -> Vec<_> {
            service.containers().into_iter().filter(|container| container.project == id).collect()
        };
        let protected = |container: &&Arc<crate::domain::Container>| {
            container.settings.deletion_protection && container.receipt.is_none()
        };
        if let Some(container) = theirs(self).iter().find(protected) {
            return Err(Error::Protected(container.id));
        }
        // From here on nothing new can be made in it.
        self.change_project(id, None, |project| project.deleting = true).await?;
        let deletions = theirs(self).into_iter().map(|container| self.delete(container.id, false, None));
        let results: Vec<_> =
            futures_util::stream::iter(deletions).buffer_unordered(DELETES_AT_ONCE_MAX).collect().await;
        let receipts = results.into_iter().map(|result| result.map(|receipt| receipt.id)).collect::<Result<_, _>>()?;
        self.ledger().remove_project(id).await?;
        Ok(receipts)
    }
}
