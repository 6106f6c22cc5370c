//! What scripts' workers do not reach. They are in this host's network, and what they fetch may be a URL that a visitor gave.
//!
//! ```text
//!  output  of a worker's socket, to a tenant's address or a metadata service ─► refused
//! ```
//!
//! A tenant's address is its proxy's alone: there a request is asked who it is from. Names are still looked up where a cloud has its
//! resolver beside its metadata.

use std::ops::RangeInclusive;

use nftables::expr::{Expression, MetaKey, Range};
use nftables::stmt::{Operator, Reject, RejectType, Statement};
use nftables::types::RejectCode;

use super::base::{LINK_LOCAL, OUTPUT};
use super::doors::DNS_PORT;
use super::words::{matches, meta, payload, prefix};
use super::{Batch, Renderer};
use crate::domain::firewall::METADATA;

impl Renderer {
    /// The rules for workers; none where there are none.
    pub(super) fn scripts(&self, batch: &mut Batch) {
        let Some(ids) = &self.scripts else { return };
        let network = self.subnet.network();
        let tenants = (network.network(), network.prefix());
        let metadata = METADATA.map(|address| (address, u32::BITS as u8));
        for (address, length) in [tenants, LINK_LOCAL].into_iter().chain(metadata) {
            let there = matches(payload("ip", "daddr"), Operator::EQ, prefix(address, length));
            let question = Expression::Number(DNS_PORT.into());
            // Whatever is no TCP passes: a worker asks for names, and has nothing else to send.
            let no_question = matches(payload("tcp", "dport"), Operator::NEQ, question);
            // Not by a reset: as that of a tenant's address it would not come in.
            let reject = Reject::new(Some(RejectType::ICMPX), Some(RejectCode::AdminProhibited));
            let prohibited = Statement::Reject(Some(reject));
            batch.add(self.rule(OUTPUT, vec![there, sent_by(ids), no_question, prohibited], None));
        }
    }
}

fn sent_by(ids: &RangeInclusive<u32>) -> Statement<'static> {
    let ids = [*ids.start(), *ids.end()].map(Expression::Number);
    matches(meta(MetaKey::Skuid), Operator::EQ, Expression::Range(Box::new(Range { range: ids })))
}
