//! A note of each write: who, what, from where.
//!
//! Begun when it is known who asks, ended with the answer. A write whose client leaves before that may have been carried out
//! all the same, so its note is written when the request is dropped. What is refused for its form or because of the state of
//! things changes nothing and is not noted; what the caller may not do is.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;

use super::auth::{Caller, Target};
use crate::domain::event::{Audit, AuditRun, Happening};
use crate::domain::{ContainerId, ProjectId};
use crate::lifecycle::Service;

/// Where a request comes from; in its extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// The id of what a request made, or was answered with again; in the answer's extensions.
#[derive(Debug, Clone)]
pub struct Object(pub String);

/// A write whose answer is not there yet.
#[derive(Debug)]
pub struct Note {
    service: Service,
    /// `None`: written, or not to be.
    draft: Option<Draft>,
}

#[derive(Debug)]
struct Draft {
    project: Option<ProjectId>,
    container: Option<ContainerId>,
    audit: Audit,
}

/// Begins the note of a request that may change something.
pub fn begin(service: &Service, caller: &Caller, route: &str, target: Target, request: &Request) -> Option<Note> {
    if request.method().is_safe() {
        return None;
    }
    let audit = Audit {
        token: caller.token(),
        alias: caller.alias().to_owned(),
        run: caller.run().map(|run| AuditRun { script: run.script.clone(), run: run.run.clone() }),
        method: request.method().to_string(),
        route: route.to_owned(),
        object: target.object,
        status: None,
        client: request.extensions().get::<Peer>().map(|peer| peer.0.to_canonical()),
    };
    let (project, container) = (target.project, target.container.map(|container| container.id));
    Some(Note { service: service.clone(), draft: Some(Draft { project, container, audit }) })
}

/// Whether an answer of this status is noted.
fn is_noted(status: StatusCode) -> bool {
    !status.is_client_error() || status == StatusCode::FORBIDDEN
}

impl Note {
    /// Ends it with the answer, which goes on its way then.
    pub async fn end(mut self, response: Response) -> Response {
        if let Some(draft) = self.draft.take().filter(|_| is_noted(response.status())) {
            let made = response.extensions().get::<Object>().map(|object| object.0.clone());
            write(&self.service, draft.ended(&self.service, response.status(), made)).await;
        }
        response
    }
}

impl Draft {
    fn ended(self, service: &Service, status: StatusCode, made: Option<String>) -> Self {
        let mut draft = self;
        draft.audit.status = Some(status.as_u16());
        if let Some(made) = made {
            if let Some(made) = made.parse().ok().and_then(|id| service.container(id).ok()) {
                (draft.project, draft.container) = (Some(made.project), Some(made.id));
            }
            // A path names what something is made from or in.
            draft.audit.object.get_or_insert(made);
        }
        draft
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if let Some(draft) = self.draft.take() {
            let service = self.service.clone();
            tokio::spawn(async move { write(&service, draft).await });
        }
    }
}

/// That a write could not be noted is no reason to call it failed.
async fn write(service: &Service, draft: Draft) {
    let Draft { project, container, audit } = draft;
    if let Err(error) = service.note_write(Happening::written(project, container, audit)).await {
        tracing::error!(error = &error as &dyn std::error::Error, "a write could not be noted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_or_may_not_be_done_is_noted_and_what_was_only_wrong_is_not() {
        for (status, noted) in [(200, true), (201, true), (403, true), (500, true), (507, true)] {
            assert_eq!(is_noted(StatusCode::from_u16(status).unwrap()), noted, "{status}");
        }
        for status in [400, 401, 404, 409, 412, 422, 429] {
            assert!(!is_noted(StatusCode::from_u16(status).unwrap()), "{status}");
        }
    }
}
