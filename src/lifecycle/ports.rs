//! Ports of this host at which aliases of raw TCP are reached; who listens there is above.

use std::fmt::Debug;
use std::io;
use std::num::NonZeroU16;

use crate::domain::alias::TcpPorts;

/// Who listens at them.
pub trait HostPorts: Debug + Send + Sync + 'static {
    /// Those that aliases may have; `None`: none.
    fn range(&self) -> Option<TcpPorts>;

    /// Listens at one of them, for an alias that is being made.
    ///
    /// # Errors
    /// Somebody else has it ([`io::ErrorKind::AddrInUse`]), or it cannot be had.
    fn claim(&self, port: NonZeroU16) -> io::Result<()>;

    /// Lets a port go whose alias was not made after all.
    fn release(&self, port: NonZeroU16);

    /// Whether somebody listens at one of them now, for an alias that leads somewhere or is being made.
    fn is_open(&self, port: NonZeroU16) -> bool;

    /// Looks at once which of them lead somewhere: an alias was made or changed.
    fn look(&self);
}
