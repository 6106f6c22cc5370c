//! An answer of server-sent events, read as it comes.

use std::time::Duration;

use http_body_util::BodyExt;

use super::*;

/// How long an event may take.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Stream(pub(super) Body);

impl Stream {
    pub(super) async fn of(desk: &Desk, path: &str) -> Self {
        let response = desk.send("GET", path, &[], None).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self(response.into_body())
    }

    pub(super) async fn next(&mut self) -> Option<String> {
        let frame = tokio::time::timeout(PATIENCE, self.0.frame()).await.unwrap()?;
        Some(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap())
    }
}
