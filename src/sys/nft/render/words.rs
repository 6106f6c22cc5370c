//! The words rules are made of.

use std::net::Ipv4Addr;

use nftables::expr::{Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix};
use nftables::stmt::{JumpTarget, Match, Operator, Statement, VerdictMap};

/// Longest prefix: one address.
const HOST_PREFIX: u8 = 32;

pub(in crate::sys::nft) fn text(value: impl Into<std::borrow::Cow<'static, str>>) -> Expression<'static> {
    Expression::String(value.into())
}

pub(in crate::sys::nft) fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

pub(in crate::sys::nft) fn payload(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

pub(in crate::sys::nft) fn prefix(address: Ipv4Addr, length: u8) -> Expression<'static> {
    let address = text(address.to_string());
    if length == HOST_PREFIX {
        return address;
    }
    Expression::Named(NamedExpression::Prefix(Prefix { addr: Box::new(address), len: length.into() }))
}

pub(in crate::sys::nft) fn matches(
    left: Expression<'static>,
    op: Operator,
    right: Expression<'static>,
) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

pub(in crate::sys::nft) fn goto(chain: &'static str) -> Statement<'static> {
    Statement::Goto(JumpTarget { target: chain.into() })
}

pub(in crate::sys::nft) fn by_interface(key: MetaKey, map: &str) -> Statement<'static> {
    Statement::VerdictMap(VerdictMap { key: meta(key), data: text(format!("@{map}")) })
}
