use std::collections::BTreeSet;

use super::*;
use crate::domain::container::PORT_DEFAULT;
use crate::domain::host::Alias;
use crate::domain::{Bytes, Confinement, ContainerId, CpuMillis, ImageId, Init, Phase, ProjectId, Settings, Slot};
use crate::sys::cgroup::Usage;
use crate::sys::netlink::LinkUsage;

fn container() -> Container {
    Container {
        id: "0123456789abcdef01234567".parse::<ContainerId>().unwrap(),
        project: "1123456789abcdef01234567".parse::<ProjectId>().unwrap(),
        name: "acme".parse().unwrap(),
        external_id: Some("cus_1".parse().unwrap()),
        slot: Slot(7),
        alias: "ab".repeat(24).parse::<Alias>().unwrap(),
        image: "2123456789abcdef01234567".parse::<ImageId>().unwrap(),
        image_name: "base".into(),
        source: None,
        made_by: None,
        made_under: None,
        settings: Settings {
            comment: None,
            color: None,
            command: vec![],
            port: PORT_DEFAULT,
            env: EnvVars::parse([("PLAN".into(), "pro".to_owned())]).unwrap(),
            limits: Limits { cpu: Some(CpuMillis(1_500)), memory: Some(Bytes::mib(64)), ..Limits::default() },
            firewall_policy: "default".parse().unwrap(),
            firewall_rules: Default::default(),
            network: None,
            access: None,
            idle_timeout_s: None,
            idle_action: Default::default(),
            activity: Default::default(),
            wake_on_request: true,
            template: false,
            labels: BTreeMap::new(),
            deletion_protection: false,
            autostart: true,
            ramdisk: true,
            ssh_public_key: None,
            confinement: Confinement::Standard,
        },
        phase: Phase::Running { init: Init { pid: 7, start_ticks: 9 } },
        desired: Desired::Running,
        receipt: None,
        generation: 3,
        env_revision: 2,
        env_revision_applied: 1,
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
        started_at: Some(Timestamp::UNIX_EPOCH),
        started_by: None,
        ready_at: None,
        transitions: 0,
    }
}

fn view() -> serde_json::Value {
    let place = Place {
        project_alias: Some("shop".into()),
        server_id: "f".repeat(24),
        server_name: "node1".into(),
        urls: vec!["http://abab.node1.localhost:8080".into(), "https://1-0-http-80.node1.localhost/".into()],
        ip: Some(Ipv4Addr::new(10, 201, 0, 7)),
        last_activity_at: None,
        why_awake: Some("it has no idle_timeout".into()),
    };
    serde_json::to_value(ContainerView::new(&container(), place, vec!["w".into()])).unwrap()
}

#[test]
fn a_container_has_every_field_of_the_contract_also_where_nothing_is_known() {
    let view = view();
    let found: BTreeSet<&str> = view.as_object().unwrap().keys().map(String::as_str).collect();
    for field in "id project_id project_alias server_id server_name name color container_image status desired status_reason \
         generation environment_vars env_sync autostart ramdisk comment snapshot_count last_used_snapshot \
         source_container_id proxy_domains warnings created_at updated_at url urls port limits idle_timeout template labels \
         external_id made_by ip started_at ready_at last_activity_at"
        .split_whitespace()
    {
        assert!(found.contains(field), "{field} is missing");
    }
    let limits: BTreeSet<&str> = view["limits"].as_object().unwrap().keys().map(String::as_str).collect();
    let wanted = "cpu memory disk ramdisk pids disk_read_bps disk_write_bps net_rx_bps net_tx_bps";
    assert_eq!(limits, wanted.split(' ').collect());
}

#[test]
fn a_container_looks_as_the_contract_says() {
    insta::assert_json_snapshot!("container", view());
}

#[test]
fn stats_of_a_stopped_container_have_no_processor_and_no_memory() {
    let stats = Stats { cgroup: None, cpu_percent: None, disk: None, link: None };
    let view = serde_json::to_value(StatsView::new(&container(), stats)).unwrap();
    assert_eq!((&view["cpu"], &view["memory"], &view["processes"]), (&().into(), &().into(), &().into()));
    assert_eq!(view["network"], serde_json::json!([]));
}

#[test]
fn stats_are_in_the_contracts_units() {
    let usage = Usage { cpu_us: 5, memory: Bytes::mib(16), memory_limit: Some(Bytes::mib(64)), pids: 3, oom_kills: 0 };
    let link = LinkUsage { rx_bytes: 1, tx_bytes: 2, rx_packets: 3, tx_packets: 4 };
    let stats = Stats { cgroup: Some(usage), cpu_percent: Some(12.5), disk: None, link: Some(link) };
    let view = StatsView::new(&container(), stats);
    let cpu = view.cpu.unwrap();
    assert_eq!((cpu.usage, cpu.allocated_time, cpu.usage_percent), (5_000, Some(1_500_000_000), Some(12.5)));
    assert_eq!(view.memory.unwrap().usage_percent, Some(25.0));
    assert_eq!((view.network[0].name, view.network[0].tx_bytes, view.processes), ("eth0", 2, Some(3)));
}
