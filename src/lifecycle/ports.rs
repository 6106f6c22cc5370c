//! Ports of this host at which aliases of raw TCP are reached; who listens there is above.

use std::fmt::Debug;
use std::io;
use std::num::NonZeroU16;

use crate::domain::alias::PortRange;

/// Who listens at them.
pub trait HostPorts: Debug + Send + Sync + 'static {
    /// Those that aliases may have; `None`: none.
    fn range(&self) -> Option<PortRange>;

    /// Listens at one of them, for an alias that is being made: clients are taken once it is, and the port is let go where it is not.
    ///
    /// # Errors
    /// Somebody else has it.
    fn claim(&self, port: NonZeroU16) -> io::Result<()>;

    /// Looks at once which of them still lead somewhere: an alias was changed or taken away.
    fn look(&self);
}
