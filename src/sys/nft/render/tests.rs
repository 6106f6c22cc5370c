use proptest::prelude::*;

use super::tenant::{comment, rule_statements};
use super::*;
use crate::domain::firewall::{OwnRules, Rule, Ruleset, Side};
use crate::domain::policy::Policy;

fn renderer() -> Renderer {
    Renderer::new("lab".parse().unwrap(), "10.201.0.0/16".parse().unwrap())
}

fn rule(text: &str) -> Rule {
    toml::from_str(text).unwrap()
}

fn ruleset(policy: &str) -> Ruleset {
    Ruleset::new(&toml::from_str::<Policy>(policy).unwrap(), &OwnRules::default()).unwrap()
}

fn rendered(rule: &Rule) -> Vec<String> {
    rule_statements(rule, Side::Egress, &[]).iter().map(|(rule, _)| serde_json::to_string(rule).unwrap()).collect()
}

#[test]
fn the_base_table() {
    let mut batch = Batch::default();
    renderer().base(&mut batch);
    insta::assert_snapshot!(batch.lines());
}

#[test]
fn what_is_added_for_scripts() {
    let (mut without, mut with) = (Batch::default(), Batch::default());
    renderer().base(&mut without);
    renderer().with_scripts(1_000_000_001..=1_000_000_016).base(&mut with);
    let without: Vec<String> = without.lines().lines().map(str::to_owned).collect();
    let added: Vec<String> =
        with.lines().lines().filter(|line| !without.iter().any(|one| one == line)).map(str::to_owned).collect();
    insta::assert_snapshot!(added.join("\n"));
}

#[test]
fn one_tenants_chains() {
    let policy = r#"
        ingress.default = "drop"
        egress.default = "reject"
        [[egress.rules]]
        action = "allow"
        protocol = "tcp"
        peers = ["198.51.100.0/24", "203.0.113.7/32"]
        ports = ["443", "8000-8100"]
        description = "the API"
        [[egress.rules]]
        action = "reject"
        protocol = "icmp4"
    "#;
    let mut batch = Batch::default();
    renderer().tenant(&mut batch, Slot(7), &ruleset(policy), Before::Unknown, &Moves::default()).unwrap();
    insta::assert_snapshot!(batch.lines());
}

#[test]
fn rules_that_name_hosts() {
    let policy = r#"
        ingress.default = "drop"
        egress.default = "drop"
        [[egress.rules]]
        action = "allow"
        protocol = "tcp"
        peers = ["shop.example", "*.api.example", "192.0.2.1"]
        ports = ["443"]
    "#;
    let mut batch = Batch::default();
    renderer().tenant(&mut batch, Slot(7), &ruleset(policy), Before::Direct, &Moves::default()).unwrap();
    let lines: Vec<String> = batch.lines().lines().filter(|line| line.contains("hosts-")).map(str::to_owned).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_tenants_removal() {
    let mut batch = Batch::default();
    renderer().remove(&mut batch, Slot(7), &Moves::default()).unwrap();
    insta::assert_snapshot!(batch.lines());
}

#[test]
fn networks_within_others_and_ports_that_touch_are_one() {
    let nested = rule("action = \"drop\"\npeers = [\"10.1.0.0/16\", \"10.0.0.0/8\", \"10.0.0.0/8\"]\n");
    assert_eq!(rendered(&nested).len(), 1);
    let everybody = rule("action = \"drop\"\npeers = [\"10.0.0.0/8\", \"0.0.0.0/0\"]\n");
    assert_eq!(rendered(&everybody), [r#"[{"drop":null}]"#]);
    let touching = rule("action = \"drop\"\nprotocol = \"udp\"\nports = [\"81-90\", \"80\", \"85-100\"]\n");
    assert!(rendered(&touching).concat().contains(r#"{"range":[80,100]}"#));
}

#[test]
fn alternatives_become_rules_and_never_sets() {
    let text = "action = \"reject\"\nprotocol = \"tcp\"\nports = [\"80\", \"443\"]\npeers = [\"10.0.0.0/8\", \"192.0.2.1/32\"]\n";
    let rules = rendered(&rule(text));
    assert_eq!(rules.len(), 4);
    assert!(!rules.concat().contains("set\":["));
}

#[test]
fn a_slot_outside_the_subnet_is_not_rendered() {
    let renderer = Renderer::new("lab".parse().unwrap(), "10.201.0.0/28".parse().unwrap());
    assert_eq!(renderer.remove(&mut Batch::default(), Slot(15), &Moves::default()), None);
}

#[test]
fn comments_are_cut_between_characters() {
    assert_eq!(comment(&"é".repeat(100)).len(), 126);
    assert_eq!(comment("short"), "short");
}

proptest! {
    #[test]
    fn only_our_chains_have_a_slot(slot: u16, other in "[a-z-]{0,8}") {
        prop_assert_eq!(Renderer::slot_of_chain(&format!("out-{slot}")), Some(Slot(slot)));
        prop_assert_eq!(Renderer::slot_of_chain(&format!("in-{slot}")), None);
        prop_assert_eq!(Renderer::slot_of_chain(&other), None);
    }
}
