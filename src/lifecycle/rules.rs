//! Changes to a container's own firewall rules: made by its worker, in force at once where it runs.

use std::sync::Arc;

use super::error::Error;
use super::ledger::Change;
use super::worker::Worker;
use crate::domain::Container;
use crate::domain::event::{EventKind, Happening};
use crate::domain::firewall::{Added, OwnRule, OwnRules, Removal, Selector, Side, State};

/// A change to a container's own rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RulesChange {
    /// Adds a rule behind the others.
    Add {
        /// Which way's.
        side: Side,
        /// The rule.
        rule: OwnRule,
    },
    /// Removes rules.
    Remove {
        /// Which way's.
        side: Side,
        /// Which.
        selector: Selector,
        /// One of them or all.
        which: Removal,
    },
    /// Puts every rule that fits into a state, or (`None`) into its other one.
    Switch {
        /// Which way's.
        side: Side,
        /// Which.
        selector: Selector,
        /// The state.
        state: Option<State>,
    },
    /// Removes all rules of both directions.
    Reset,
}

/// What a change came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RulesEffect {
    /// The rules it is about: as they are now, or as they were before they were removed.
    pub rules: Vec<OwnRule>,
    /// Whether a rule that was to be added was there already.
    pub duplicate: bool,
}

/// A container whose own rules were changed.
#[derive(Debug, Clone)]
pub struct RulesChanged {
    /// Its record afterwards.
    pub container: Arc<Container>,
    /// What the change came to.
    pub effect: RulesEffect,
}

impl RulesChange {
    /// Makes the change.
    ///
    /// # Errors
    /// There is no room for the rule, or no rule that fits.
    pub fn apply(&self, rules: &mut OwnRules) -> Result<RulesEffect, Error> {
        let found = |side, rules: Vec<OwnRule>| match rules.is_empty() {
            true => Err(Error::NoSuchRule(side)),
            false => Ok(RulesEffect { rules, duplicate: false }),
        };
        match self {
            Self::Add { side, rule } => match rules.add(*side, rule.clone())? {
                Added::New => Ok(RulesEffect { rules: vec![rule.clone()], duplicate: false }),
                Added::Duplicate(there) => Ok(RulesEffect { rules: vec![there], duplicate: true }),
            },
            Self::Remove { side, selector, which } => found(*side, rules.remove(*side, selector, *which)),
            Self::Switch { side, selector, state } => found(*side, rules.switch(*side, selector, *state)),
            Self::Reset => {
                let gone = Side::BOTH.map(|side| rules.remove(side, &Selector::default(), Removal::All));
                Ok(RulesEffect { rules: gone.concat(), duplicate: false })
            }
        }
    }

    /// What happened, as events call it.
    const fn event(&self) -> EventKind {
        match self {
            Self::Add { .. } => EventKind::RuleAdded,
            Self::Remove { .. } => EventKind::RuleRemoved,
            Self::Switch { .. } => EventKind::RuleSwitched,
            Self::Reset => EventKind::RulesReset,
        }
    }
}

impl Worker {
    /// Changes own rules; what changes nothing leaves the record as it is.
    pub(super) async fn change_rules(
        &self,
        change: &RulesChange,
        if_match: Option<u64>,
    ) -> Result<RulesChanged, Error> {
        let old = self.record_at(if_match)?;
        let mut rules = old.settings.firewall_rules.clone();
        let effect = change.apply(&mut rules)?;
        if rules == old.settings.firewall_rules {
            return Ok(RulesChanged { container: old, effect });
        }
        let patch = |record: &mut Container| {
            record.settings.firewall_rules = rules.clone();
            Ok(())
        };
        let container = self.replace(&old, Change::flushed("firewall"), patch).await?;
        let (event, count) = (change.event(), effect.rules.len());
        tracing::info!(%event, count, generation = container.generation, "the firewall's rules are changed");
        let happened = Happening::to_container(event, container.project, container.id);
        if let Err(error) = self.shared.ledger.emit(happened.with("count", count as u64)).await {
            // The rules are in force and on the disk: that they are is what counts.
            tracing::error!(error = &error as &dyn std::error::Error, "an event cannot be written");
        }
        Ok(RulesChanged { container, effect })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> OwnRule {
        OwnRule { rule: toml::from_str(text).unwrap(), state: State::Enabled }
    }

    #[test]
    fn what_fits_nothing_is_refused_and_changes_nothing() {
        let mut rules = OwnRules::default();
        let side = Side::Egress;
        rules.add(side, rule("action = 'drop'")).unwrap();
        let before = rules.clone();
        let selector = Selector { state: Some(State::Disabled), ..Selector::default() };
        let remove = RulesChange::Remove { side, selector: selector.clone(), which: Removal::All };
        assert!(matches!(remove.apply(&mut rules), Err(Error::NoSuchRule(Side::Egress))));
        let switch = RulesChange::Switch { side: Side::Ingress, selector, state: None };
        assert!(matches!(switch.apply(&mut rules), Err(Error::NoSuchRule(Side::Ingress))));
        assert_eq!(rules, before);
    }

    #[test]
    fn a_duplicate_is_answered_with_the_rule_that_is_there() {
        let mut rules = OwnRules::default();
        let named = rule("action = 'drop'\ndescription = 'first'");
        let add = |rule| RulesChange::Add { side: Side::Ingress, rule };
        let effect = |duplicate| RulesEffect { rules: vec![named.clone()], duplicate };
        assert_eq!(add(named.clone()).apply(&mut rules).unwrap(), effect(false));
        assert_eq!(add(rule("action = 'drop'")).apply(&mut rules).unwrap(), effect(true));
        assert_eq!(RulesChange::Reset.apply(&mut rules).unwrap(), effect(false));
        assert_eq!(RulesChange::Reset.apply(&mut rules).unwrap(), RulesEffect::default());
    }
}
