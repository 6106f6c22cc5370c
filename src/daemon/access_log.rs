//! Writes what the proxy leaves of each request to the access logs, off the requests' way.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::domain::ContainerId;
use crate::lifecycle::Service;
use crate::proxy::Proxy;

/// Writes until `end`, which comes when the proxy serves nobody any more, and then what is left.
pub async fn write(proxy: Arc<Proxy>, service: Service, end: CancellationToken) {
    loop {
        let ended = tokio::select! {
            // Both only wait.
            () = proxy.access().collected() => false,
            () = end.cancelled() => true,
        };
        let queue = proxy.clone();
        // Thousands of lines take milliseconds, in which no request shall wait for this thread.
        if let Ok(logs) = tokio::task::spawn_blocking(move || by_container(&queue)).await {
            service.append_access_logs(logs).await;
        }
        if ended {
            return;
        }
    }
}

fn by_container(proxy: &Proxy) -> BTreeMap<ContainerId, Vec<u8>> {
    let mut logs = BTreeMap::<ContainerId, Vec<u8>>::new();
    for (id, access) in proxy.access().take() {
        access.write_line(logs.entry(id).or_default());
    }
    logs
}
