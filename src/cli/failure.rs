//! Why the client failed, as far as its exit code tells failures apart.

use std::process::ExitCode;

use crate::domain::chain;

/// A failure with an exit code of its own.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The API said no.
    #[error("{message} [{code}{}]", request_id.as_ref().map(|id| format!(", request {id}")).unwrap_or_default())]
    Refused {
        /// Its machine code.
        code: String,
        /// For people.
        message: String,
        /// For the daemon's log; `None`: it was the client that found nothing in a list.
        request_id: Option<String>,
    },
    /// The command line or the configuration cannot be.
    #[error("{0}")]
    Usage(String),
    /// No daemon answered.
    #[error("cannot reach the daemon at {url} (is `tenantry serve` running there?)")]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What the network said.
        #[source]
        source: reqwest::Error,
    },
}

impl Failure {
    /// A usage error, with all its causes in one line.
    pub fn usage(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::Usage(chain(error))
    }
}

/// 1 refused or failed, 2 usage, 3 unreachable.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(match error.downcast_ref::<Failure>() {
        Some(Failure::Usage(_)) => 2,
        Some(Failure::Unreachable { .. }) => 3,
        Some(Failure::Refused { .. }) | None => 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_exit_code() {
        let refused = Failure::Refused { code: "POOL_FULL".into(), message: "full".into(), request_id: None };
        assert_eq!(exit_code(&refused.into()), ExitCode::from(1));
        assert_eq!(exit_code(&Failure::Usage("no".into()).into()), ExitCode::from(2));
        assert_eq!(exit_code(&anyhow::anyhow!("other")), ExitCode::from(1));
    }
}
