//! Links and firewall together, with real packets: what passes, and what does not.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recvfrom, sendto, setsockopt, socket,
};
use nix::sys::time::TimeVal;
use tenantry::domain::Slot;
use tenantry::domain::policy::Policies;
use tenantry::domain::slot::GATEWAY;
use tenantry::sys::netlink::{LinkError, Links, Rates};
use tenantry::sys::nft::{Firewall, FirewallError, NftFirewall};

use crate::support::machine::{Machine, address, instance, policy, rules};
use crate::support::net::{
    Conversation, Echo, HOST, INTERNET, METADATA, NetLab, Netns, PATIENCE, PRIVATE, SILENCE, Sink, UPLINK_GATEWAY, ip,
    nft, refused, rejected, send, talk,
};

#[test]
fn a_tenant_reaches_the_internet_by_the_hosts_address() {
    let machine = Machine::start();
    let _server = Echo::listen(&machine.lab.internet, 80);
    let tenant = machine.tenant(1, &policy("web"));
    assert_eq!(talk(&tenant, INTERNET, 80).unwrap(), HOST, "masqueraded");
}

#[test]
fn the_host_reaches_a_tenant_from_the_gateways_address() {
    let machine = Machine::start();
    let tenant = machine.tenant(1, &policy("no-egress"));
    let _server = Echo::listen(&tenant, 8080);
    let mut conversation = Conversation::open(address(1), 8080, PATIENCE).unwrap();
    assert_eq!(conversation.seen_as, GATEWAY);
    conversation.say(b"how are you").unwrap();
}

#[test]
fn a_tenant_does_not_reach_another() {
    let machine = Machine::start();
    let (one, two) = (machine.tenant(1, &policy("open")), machine.tenant(2, &policy("open")));
    let _server = Echo::listen(&two, 8080);
    assert_eq!(refused(&one, address(2), 8080), std::io::ErrorKind::TimedOut);
    let sink = Sink::listen(&two, 9000);
    send(&one, address(1), address(2), 9000, "psst").unwrap();
    send(&one, address(1), GATEWAY, 9000, "psst").unwrap();
    assert_eq!(sink.waits_for("psst", SILENCE), None);
    assert!(Conversation::open(address(2), 8080, PATIENCE).is_ok(), "the server is there for the host");
}

#[test]
fn a_tenant_does_not_reach_the_host() {
    let machine = Machine::start();
    let host = Netns::current();
    let _server = Echo::listen(&host, 22);
    let sink = Sink::listen(&host, 53);
    let tenant = machine.tenant(1, &policy("open"));
    for target in [GATEWAY, HOST] {
        assert_eq!(refused(&tenant, target, 22), std::io::ErrorKind::TimedOut, "{target}");
        send(&tenant, address(1), target, 53, "question").unwrap();
    }
    assert_eq!(sink.waits_for("question", SILENCE), None);
    assert_eq!(talk(&machine.lab.internet, HOST, 22).unwrap(), Ipv4Addr::new(203, 0, 113, 1), "others do");
}

#[test]
fn a_tenant_cannot_speak_for_another() {
    let machine = Machine::start();
    let internet = Sink::listen(&machine.lab.internet, 9000);
    let host = Sink::listen(&Netns::current(), 9000);
    let tenant = machine.tenant(1, &policy("open"));
    let _other = machine.tenant(2, &policy("open"));
    // The host's own check off, so that it is the firewall that is tested.
    ip("link set lab-1 up");
    std::fs::write("/proc/sys/net/ipv4/conf/lab-1/rp_filter", "0").unwrap();
    for source in [address(2), Ipv4Addr::new(8, 8, 4, 4), HOST] {
        tenant.ip(&format!("address add {source}/32 dev eth0"));
        send(&tenant, source, INTERNET, 9000, "forged").unwrap();
        send(&tenant, source, HOST, 9000, "forged").unwrap();
    }
    send(&tenant, address(1), INTERNET, 9000, "honest").unwrap();
    assert!(internet.waits_for("honest", PATIENCE).is_some());
    assert_eq!(internet.waits_for("forged", SILENCE), None);
    assert_eq!(host.received(), []);
}

#[test]
fn a_tenant_cannot_answer_for_another() {
    let machine = Machine::start();
    let (one, two) = (machine.tenant(1, &policy("open")), machine.tenant(2, &policy("open")));
    std::fs::write("/proc/sys/net/ipv4/conf/lab-1/rp_filter", "0").unwrap();
    one.ip(&format!("address add {}/32 dev eth0", address(2)));
    // The host asks tenant 2; both answer from the address and port that were asked.
    let host = UdpSocket::bind((GATEWAY, 5000)).unwrap();
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    let sink = Sink::listen(&two, 6000);
    host.send_to(b"question", (address(2), 6000)).unwrap();
    assert!(sink.waits_for("question", PATIENCE).is_some());
    let answer = |from: &Netns, text: &str| {
        from.run(|| {
            let socket = UdpSocket::bind((address(2), 6000)).unwrap();
            socket.send_to(text.as_bytes(), (GATEWAY, 5000)).unwrap();
        });
    };
    drop(sink);
    answer(&one, "forged");
    answer(&two, "honest");
    let mut buffer = [0; 16];
    let (length, from) = host.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from.ip()), (&b"honest"[..], address(2).into()));
    host.set_read_timeout(Some(SILENCE)).unwrap();
    assert!(host.recv_from(&mut buffer).is_err(), "and nothing else");
}

#[test]
fn the_links_own_check_drops_forged_sources_without_any_rules() {
    let machine = Machine::start();
    let sink = Sink::listen(&machine.lab.internet, 9000);
    let tenant = machine.tenant(1, &policy("open"));
    machine.runtime.block_on(machine.firewall.unload()).unwrap();
    tenant.ip("address add 8.8.4.4/32 dev eth0");
    machine.lab.internet.ip("route add 10.201.0.0/16 via 203.0.113.2");
    send(&tenant, Ipv4Addr::new(8, 8, 4, 4), INTERNET, 9000, "forged").unwrap();
    send(&tenant, address(1), INTERNET, 9000, "honest").unwrap();
    assert!(sink.waits_for("honest", PATIENCE).is_some());
    assert_eq!(sink.waits_for("forged", SILENCE), None);
}

#[test]
fn a_tenant_can_neither_ask_nor_tell_the_host_hardware_addresses() {
    let machine = Machine::start();
    let tenant = machine.tenant(1, &policy("open"));
    let _server = Echo::listen(&tenant, 8080);
    // What a tenant that may configure its own end could try.
    tenant.ip("link set eth0 address 02:00:00:00:00:99");
    let before = ip("neighbour show dev lab-1");
    assert!(before.contains("PERMANENT"), "{before}");
    assert_eq!(tenant.ip("neighbour show dev eth0"), "", "with the address it forgot the gateway's");
    let asked = tenant.run(|| Conversation::open(INTERNET, 80, SILENCE).map(drop));
    assert!(asked.is_err());
    assert!(!tenant.ip("neighbour show dev eth0").contains("REACHABLE"), "the host answered");
    assert_eq!(ip("neighbour show dev lab-1"), before);
}

#[test]
fn metadata_addresses_are_out_of_reach() {
    let machine = Machine::start();
    let _server = Echo::listen(&machine.lab.internet, 80);
    let tenant = machine.tenant(1, &policy("open"));
    assert_eq!(refused(&tenant, METADATA, 80), std::io::ErrorKind::TimedOut);
    assert!(talk(&Netns::current(), METADATA, 80).is_ok(), "the host itself may");
}

#[test]
fn the_default_policy_keeps_tenants_out_of_private_networks() {
    let machine = Machine::start();
    let _server = Echo::listen(&machine.lab.internet, 80);
    let web = machine.tenant(1, &policy("web"));
    assert!(rejected(&web, PRIVATE, 80), "refused at once");
    let open = machine.tenant(2, &policy("open"));
    assert!(talk(&open, PRIVATE, 80).is_ok());
}

#[test]
fn a_locked_down_tenant_has_the_web_and_nothing_else() {
    let machine = Machine::start();
    let _servers = [80, 443, 25].map(|port| Echo::listen(&machine.lab.internet, port));
    let resolver = Sink::listen(&machine.lab.internet, 53);
    let tenant = machine.tenant(1, &policy("locked-down"));
    assert!(talk(&tenant, INTERNET, 80).is_ok() && talk(&tenant, INTERNET, 443).is_ok());
    assert!(rejected(&tenant, INTERNET, 25));
    send(&tenant, address(1), PRIVATE, 53, "question").unwrap();
    assert!(resolver.waits_for("question", PATIENCE).is_some());
    let silent = machine.tenant(2, &policy("no-egress"));
    assert!(rejected(&silent, INTERNET, 443));
}

#[test]
fn strangers_get_in_only_where_the_policy_says_so() {
    let machine = Machine::start();
    let (web, open) = (machine.tenant(1, &policy("web")), machine.tenant(2, &policy("open")));
    let _servers = [Echo::listen(&web, 8080), Echo::listen(&open, 8080)];
    machine.lab.internet.ip("route add 10.201.0.0/16 via 203.0.113.2");
    assert_eq!(refused(&machine.lab.internet, address(1), 8080), std::io::ErrorKind::TimedOut);
    assert!(talk(&machine.lab.internet, address(2), 8080).is_ok());
}

#[test]
fn no_packet_passes_before_the_link_is_up() {
    let machine = Machine::start();
    let sink = Sink::listen(&machine.lab.internet, 9000);
    let tenant = Netns::new();
    let (links, runtime) = (&machine.links, &machine.runtime);
    runtime.block_on(links.attach(Slot(1), &tenant.path(), Rates::default())).unwrap();
    runtime.block_on(machine.firewall.apply(Slot(1), &policy("open"))).unwrap();
    let _ = send(&tenant, address(1), INTERNET, 9000, "early");
    assert!(Conversation::open(address(1), 8080, SILENCE).is_err());
    assert_eq!(sink.waits_for("early", SILENCE), None);
    runtime.block_on(links.up(Slot(1))).unwrap();
    send(&tenant, address(1), INTERNET, 9000, "on time").unwrap();
    assert!(sink.waits_for("on time", PATIENCE).is_some());
    assert_eq!(sink.waits_for("early", Duration::ZERO), None);
}

#[test]
fn a_link_without_rules_passes_nothing() {
    let machine = Machine::start();
    let _server = Echo::listen(&machine.lab.internet, 80);
    let tenant = Netns::new();
    machine.runtime.block_on(async {
        machine.links.attach(Slot(1), &tenant.path(), Rates::default()).await.unwrap();
        machine.links.up(Slot(1)).await.unwrap();
    });
    assert_eq!(refused(&tenant, INTERNET, 80), std::io::ErrorKind::TimedOut);
    let sink = Sink::listen(&tenant, 9000);
    machine.lab.internet.ip("route add 10.201.0.0/16 via 203.0.113.2");
    send(&machine.lab.internet, UPLINK_GATEWAY, address(1), 9000, "knock").unwrap();
    assert_eq!(sink.waits_for("knock", SILENCE), None);
    machine.runtime.block_on(machine.firewall.apply(Slot(1), &policy("open"))).unwrap();
    send(&machine.lab.internet, UPLINK_GATEWAY, address(1), 9000, "come in").unwrap();
    assert!(sink.waits_for("come in", PATIENCE).is_some());
}

#[test]
fn ipv6_is_off_on_both_ends() {
    let machine = Machine::start();
    let tenant = machine.tenant(1, &policy("open"));
    assert_eq!(ip("-6 address show dev lab-1"), "");
    assert_eq!(tenant.ip("-6 address show"), "");
    tenant.run(|| {
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/disable_ipv6").unwrap(), "1\n");
    });
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv6/conf/uplink/disable_ipv6").unwrap(), "0\n", "not our link");
}

#[test]
fn ipv6_does_not_pass_where_somebody_switches_it_on_again() {
    let machine = Machine::start();
    let tenant = machine.tenant(1, &policy("open"));
    let internet = &machine.lab.internet;
    let on = |link: &str| std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "0").unwrap();
    on("lab-1");
    tenant.run(|| on("eth0"));
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    // Neighbours are told, since the host's end asks for none.
    let macs = ["02:74:6e:00:00:01", "02:74:6e:01:00:01"];
    ip("-6 address add fd00:1::1/64 dev lab-1 nodad");
    ip(&format!("-6 neighbour replace fd00:1::2 dev lab-1 lladdr {} nud permanent", macs[1]));
    tenant.ip("-6 address add fd00:1::2/64 dev eth0 nodad");
    tenant.ip(&format!("-6 neighbour replace fd00:1::1 dev eth0 lladdr {} nud permanent", macs[0]));
    tenant.ip("-6 route add default via fd00:1::1");
    ip("-6 address add fd00:2::1/64 dev uplink nodad");
    internet.ip("-6 address add fd00:2::2/64 dev host nodad");
    internet.ip("-6 route add default via fd00:2::1");
    let listen = |netns: &Netns| {
        netns.run(|| {
            let socket = UdpSocket::bind("[::]:9000").unwrap();
            socket.set_read_timeout(Some(SILENCE)).unwrap();
            socket
        })
    };
    let knock = |from: &Netns, target: &str| {
        from.run(|| UdpSocket::bind("[::]:0").unwrap().send_to(b"knock", (target, 9000)).unwrap());
    };
    let host = Netns::current();
    let (in_host, in_tenant, in_internet) = (listen(&host), listen(&tenant), listen(internet));
    let heard = |socket: &UdpSocket| socket.recv_from(&mut [0; 16]).is_ok();
    knock(&tenant, "fd00:1::1");
    knock(&tenant, "fd00:2::2");
    knock(internet, "fd00:1::2");
    assert!(!heard(&in_host) && !heard(&in_internet) && !heard(&in_tenant));
    machine.runtime.block_on(machine.firewall.unload()).unwrap();
    knock(&tenant, "fd00:1::1");
    knock(&tenant, "fd00:2::2");
    knock(internet, "fd00:1::2");
    for socket in [&in_host, &in_internet, &in_tenant] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(heard(socket), "it was the firewall");
    }
}

#[test]
fn packets_of_no_flow_do_not_leave_with_a_tenants_own_address() {
    let machine = Machine::start();
    let tenant = machine.tenant(1, &policy("open"));
    let raw = |netns: &Netns| {
        netns.run(|| socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Icmp).unwrap())
    };
    let (sender, receiver) = (raw(&tenant), raw(&machine.lab.internet));
    setsockopt(&receiver, ReceiveTimeout, &TimeVal::new(0, 200_000)).unwrap();
    // Type, code, checksum, id 1, sequence 1: an answer that nobody asked for, then a question.
    for message in [[0u8, 0, 0xff, 0xfd, 0, 1, 0, 1], [8, 0, 0xf7, 0xfd, 0, 1, 0, 1]] {
        let target = SockaddrIn::from(SocketAddrV4::new(INTERNET, 0));
        sendto(sender.as_raw_fd(), &message, &target, MsgFlags::empty()).unwrap();
    }
    let mut buffer = [0; 64];
    let mut seen = Vec::new();
    while let Ok((length, from)) = recvfrom::<SockaddrIn>(receiver.as_raw_fd(), &mut buffer) {
        assert!(length >= 28);
        seen.push((buffer[20], from.map(|from| from.ip())));
    }
    assert_eq!(seen, [(8, Some(HOST))], "the question alone, masqueraded");
}

#[test]
fn the_hosts_end_is_set_as_documented() {
    let machine = Machine::start();
    let _tenant = machine.tenant(1, &policy("open"));
    let setting = |name: &str| {
        let value = std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/lab-1/{name}")).unwrap();
        (name.to_owned(), value.trim().to_owned())
    };
    let wanted = [("rp_filter", "1"), ("forwarding", "1"), ("send_redirects", "0"), ("accept_redirects", "0")];
    for (name, value) in wanted.into_iter().chain([("proxy_arp", "0"), ("arp_ignore", "8"), ("route_localnet", "0")]) {
        assert_eq!(setting(name), (name.to_owned(), value.to_owned()));
    }
    assert!(ip("link show dev lab-1").contains("NOARP"));
}

#[test]
fn established_flows_outlive_other_tenants_rules_and_a_reload() {
    let machine = Machine::start();
    let _server = Echo::listen(&machine.lab.internet, 80);
    let tenant = machine.tenant(1, &policy("web"));
    let mut conversation = tenant.run(|| Conversation::open(INTERNET, 80, PATIENCE).unwrap());
    machine.runtime.block_on(machine.firewall.apply(Slot(2), &policy("no-egress"))).unwrap();
    conversation.say(b"still there?").unwrap();
    machine.runtime.block_on(machine.firewall.load(&[(Slot(1), policy("web"))])).unwrap();
    conversation.say(b"and now?").unwrap();
}

#[test]
fn new_rules_hold_from_the_moment_apply_returns() {
    let machine = Machine::start();
    let _server = Echo::listen(&machine.lab.internet, 80);
    let tenant = machine.tenant(1, &policy("web"));
    assert!(talk(&tenant, INTERNET, 80).is_ok());
    machine.runtime.block_on(machine.firewall.apply(Slot(1), &policy("no-egress"))).unwrap();
    assert!(rejected(&tenant, INTERNET, 80));
    machine.runtime.block_on(machine.firewall.apply(Slot(1), &policy("web"))).unwrap();
    assert!(talk(&tenant, INTERNET, 80).is_ok());
}

#[test]
fn applies_at_once_share_transactions() {
    let machine = Machine::start();
    let before = machine.firewall.transactions();
    let web = policy("web");
    machine.runtime.block_on(async {
        let applies = (1..=50).map(|slot| machine.firewall.apply(Slot(slot), &web));
        for outcome in futures_util::future::join_all(applies).await {
            outcome.unwrap();
        }
        assert_eq!(machine.firewall.list().await.unwrap(), (1..=50).map(Slot).collect::<Vec<_>>());
    });
    let transactions = machine.firewall.transactions() - before;
    assert!(transactions <= 3, "{transactions} transactions");
}

#[test]
fn a_slot_outside_the_subnet_fails_alone() {
    let lab = NetLab::enter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let firewall = NftFirewall::new(instance(), "10.201.0.0/28".parse().unwrap());
        firewall.load(&[]).await.unwrap();
        let web = policy("web");
        let (good, bad, also_good) =
            tokio::join!(firewall.apply(Slot(1), &web), firewall.apply(Slot(99), &web), firewall.apply(Slot(2), &web));
        assert!(good.is_ok() && also_good.is_ok());
        assert!(matches!(bad, Err(FirewallError::NoAddress(Slot(99)))));
        assert_eq!(firewall.list().await.unwrap(), [Slot(1), Slot(2)]);
    });
    drop(lab);
}

#[test]
fn of_orders_for_one_slot_the_last_counts() {
    let machine = Machine::start();
    let (firewall, web) = (&machine.firewall, policy("web"));
    machine.runtime.block_on(async {
        let (removed, applied) = tokio::join!(firewall.remove(Slot(1)), firewall.apply(Slot(1), &web));
        assert!(removed.is_ok() && applied.is_ok());
        assert_eq!(firewall.list().await.unwrap(), [Slot(1)]);
        let (applied, removed) = tokio::join!(firewall.apply(Slot(1), &web), firewall.remove(Slot(1)));
        assert!(removed.is_ok() && applied.is_ok());
        assert_eq!(firewall.list().await.unwrap(), []);
    });
}

#[test]
fn one_slots_refused_rules_fail_no_others() {
    let machine = Machine::start();
    // Somebody has put another verdict where slot 2's would go.
    nft("add element inet lab egress { lab-2 : drop }");
    let (firewall, web) = (&machine.firewall, policy("web"));
    machine.runtime.block_on(async {
        let (one, two, three) =
            tokio::join!(firewall.apply(Slot(1), &web), firewall.apply(Slot(2), &web), firewall.apply(Slot(3), &web));
        assert!(one.is_ok() && three.is_ok());
        let refusal = two.unwrap_err();
        let wanted = "the firewall refused the transaction that would load the chains of slot 2 in table inet lab";
        assert_eq!(refusal.to_string(), wanted);
        assert_eq!(firewall.list().await.unwrap(), [Slot(1), Slot(3)]);
    });
}

#[test]
fn an_apply_waits_for_the_removal_of_its_slot_that_is_under_way() {
    let machine = Machine::start();
    let (firewall, web) = (&machine.firewall, policy("web"));
    machine.runtime.block_on(async {
        for _ in 0..5 {
            firewall.apply(Slot(1), &web).await.unwrap();
            let before = firewall.transactions();
            let removal = {
                let firewall = firewall.clone();
                tokio::spawn(async move { firewall.remove(Slot(1)).await })
            };
            while firewall.transactions() == before {
                tokio::task::yield_now().await;
            }
            firewall.apply(Slot(1), &web).await.unwrap();
            removal.await.unwrap().unwrap();
            assert_eq!(firewall.list().await.unwrap(), [Slot(1)]);
        }
    });
}

#[test]
fn every_shipped_policy_and_one_at_its_limits_are_accepted() {
    let machine = Machine::start();
    let side = |default: &str, direction: &str| {
        let rule = format!(
            "[[{direction}.rules]]\naction = \"reject\"\ndescription = \"{}\"\npeers = [\"198.18.0.0/16\", \"192.0.2.1/32\"]\n",
            "\\\"ü".repeat(80)
        );
        format!("[{direction}]\ndefault = \"{default}\"\n{}", rule.repeat(500))
    };
    let text = side("reject", "ingress") + &side("allow", "egress");
    let mut policies = Policies::shipped().unwrap();
    policies.add("limits".parse().unwrap(), &text).unwrap();
    let tenants: Vec<_> =
        (1..).map(Slot).zip(policies.names().map(|name| rules(policies.get(name).unwrap()))).collect();
    machine.runtime.block_on(async {
        machine.firewall.load(&tenants).await.unwrap();
        assert_eq!(machine.firewall.list().await.unwrap().len(), 5);
        let limits = rules(policies.get(&"limits".parse().unwrap()).unwrap());
        let applies = (1..=3).map(|slot| machine.firewall.apply(Slot(slot), &limits));
        futures_util::future::try_join_all(applies).await.unwrap();
    });
}

#[test]
fn the_first_answer_after_up_is_not_lost() {
    let machine = Machine::start();
    let web = policy("web");
    let tenants: Vec<_> = (1..=40)
        .map(|slot| {
            let netns = Netns::new();
            machine.runtime.block_on(machine.links.attach(Slot(slot), &netns.path(), Rates::default())).unwrap();
            machine.runtime.block_on(machine.firewall.apply(Slot(slot), &web)).unwrap();
            (slot, Echo::listen(&netns, 8080), netns)
        })
        .collect();
    for (slot, _server, _netns) in &tenants {
        machine.runtime.block_on(machine.links.up(Slot(*slot))).unwrap();
        let start = Instant::now();
        Conversation::open(address(*slot), 8080, PATIENCE).unwrap();
        // A lost answer comes again after a second.
        assert!(start.elapsed() < Duration::from_millis(900), "slot {slot} took {:?}", start.elapsed());
    }
}

#[test]
fn removal_leaves_nothing_and_may_be_repeated() {
    let machine = Machine::start();
    let empty = nft("list table inet lab");
    machine.runtime.block_on(async {
        let web = policy("web");
        for slot in 1..=3 {
            machine.firewall.apply(Slot(slot), &web).await.unwrap();
        }
        for _ in 0..2 {
            for outcome in futures_util::future::join_all((1..=4).map(|slot| machine.firewall.remove(Slot(slot)))).await
            {
                outcome.unwrap();
            }
        }
        assert_eq!(machine.firewall.list().await.unwrap(), []);
    });
    assert_eq!(nft("list table inet lab"), empty);
    machine.runtime.block_on(async {
        machine.firewall.unload().await.unwrap();
        machine.firewall.unload().await.unwrap();
        machine.firewall.remove(Slot(1)).await.unwrap();
        assert_eq!(machine.firewall.list().await.unwrap(), []);
    });
    assert_eq!(nft("list tables"), "");
}

#[test]
fn a_start_right_after_a_foreign_flush_finds_the_table_mended() {
    let machine = Machine::start();
    let _server = Echo::listen(&machine.lab.internet, 80);
    let tenant = machine.tenant(1, &policy("web"));
    nft("flush ruleset");
    machine.runtime.block_on(machine.firewall.apply(Slot(1), &policy("web"))).unwrap();
    assert_eq!(talk(&tenant, INTERNET, 80).unwrap(), HOST);
    assert_eq!(refused(&tenant, METADATA, 80), std::io::ErrorKind::TimedOut);
}

#[test]
fn other_tables_and_other_traffic_are_left_alone() {
    let machine = Machine::start();
    nft("add table inet foreign");
    machine.runtime.block_on(async {
        machine.firewall.load(&[]).await.unwrap();
        machine.firewall.unload().await.unwrap();
    });
    assert_eq!(nft("list tables").trim(), "table inet foreign");
    machine.runtime.block_on(machine.firewall.load(&[])).unwrap();
    // A guest of somebody else on this host, in an address range of its own.
    let guest = Netns::new();
    ip(&format!("link add guest type veth peer name eth0 netns {}", guest.path().display()));
    ip("address add 192.0.2.1/24 dev guest");
    ip("link set guest up");
    guest.ip("address add 192.0.2.2/24 dev eth0");
    guest.ip("link set eth0 up");
    guest.ip("route add default via 192.0.2.1");
    machine.lab.internet.ip("route add 192.0.2.0/24 via 203.0.113.2");
    let _server = Echo::listen(&machine.lab.internet, 80);
    assert_eq!(talk(&guest, INTERNET, 80).unwrap(), Ipv4Addr::new(192, 0, 2, 2), "not masqueraded by us");
}

#[test]
fn links_are_counted_listed_and_removed_for_good() {
    let machine = Machine::start();
    let _server = Echo::listen(&machine.lab.internet, 80);
    let tenant = machine.tenant(7, &policy("web"));
    let (links, runtime) = (&machine.links, &machine.runtime);
    talk(&tenant, INTERNET, 80).unwrap();
    let usage = runtime.block_on(links.usage(Slot(7))).unwrap().unwrap();
    assert!(usage.tx_packets >= 4 && usage.rx_packets >= 3 && usage.tx_bytes > 200, "{usage:?}");
    ip("link add lab-x type veth peer name other-1");
    assert_eq!(runtime.block_on(links.list()).unwrap(), [Slot(7)]);
    for _ in 0..2 {
        runtime.block_on(links.detach(Slot(7))).unwrap();
    }
    assert_eq!(runtime.block_on(links.list()).unwrap(), []);
    assert_eq!(runtime.block_on(links.usage(Slot(7))).unwrap(), None);
    assert!(!ip("route show table all").contains("10.201.0.7"));
}

#[test]
fn a_link_goes_with_its_namespace_and_detach_does_not_mind() {
    let machine = Machine::start();
    drop(machine.tenant(1, &policy("web")));
    machine.runtime.block_on(async {
        let deadline = Instant::now() + PATIENCE;
        while machine.links.list().await.unwrap() == [Slot(1)] {
            assert!(Instant::now() < deadline, "the kernel has not taken the link down");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        machine.links.detach(Slot(1)).await.unwrap();
    });
}

#[test]
fn faults_name_the_link_or_the_namespace() {
    let machine = Machine::start();
    let tenant = machine.tenant(1, &policy("web"));
    let (links, runtime) = (&machine.links, &machine.runtime);
    let twice = runtime.block_on(links.attach(Slot(1), &tenant.path(), Rates::default())).unwrap_err();
    assert_eq!(twice.to_string(), "cannot make the veth pair lab-1");
    let nowhere = runtime.block_on(links.attach(Slot(2), "/run/no/such/netns".as_ref(), Rates::default())).unwrap_err();
    assert_eq!(nowhere.to_string(), "cannot open /run/no/such/netns");
    let no_netns = runtime.block_on(links.attach(Slot(2), "/proc/self/status".as_ref(), Rates::default())).unwrap_err();
    assert_eq!(no_netns.to_string(), "cannot enter and prepare /proc/self/status");
    assert!(matches!(runtime.block_on(links.up(Slot(3))), Err(LinkError::Netlink { .. } | LinkError::Missing { .. })));
    assert_eq!(runtime.block_on(links.list()).unwrap(), [Slot(1)], "nothing of the failed ones is left");
}

/// A process in a user and a network namespace of its own, as a container has them.
struct Container(Child);

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_namespace_that_a_user_namespace_owns_is_configured_as_well() {
    let machine = Machine::start();
    let _server = Echo::listen(&machine.lab.internet, 80);
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "sh", "-c", "echo ready; exec sleep 30"]);
    let mut child = Container(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.0.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let tenant = Netns::of_process(child.0.id()).unwrap();
    machine.runtime.block_on(async {
        machine.links.attach(Slot(1), &tenant.path(), Rates::default()).await.unwrap();
        machine.firewall.apply(Slot(1), &policy("web")).await.unwrap();
        machine.links.up(Slot(1)).await.unwrap();
    });
    assert_eq!(talk(&tenant, INTERNET, 80).unwrap(), HOST);
}

#[test]
fn fifty_tenants_come_and_go_eight_at_a_time() {
    use futures_util::StreamExt;
    let machine = Machine::start();
    let namespaces: Vec<_> = (1..=50).map(|slot| (Slot(slot), Netns::new())).collect();
    let (links, firewall, web) = (&machine.links, &machine.firewall, policy("web"));
    machine.runtime.block_on(async {
        let start = |(slot, netns): &(Slot, Netns)| {
            let (slot, path, web) = (*slot, netns.path(), web.clone());
            async move {
                tokio::try_join!(
                    async { links.attach(slot, &path, Rates::default()).await.map_err(|error| error.to_string()) },
                    async { firewall.apply(slot, &web).await.map_err(|error| error.to_string()) },
                )?;
                links.up(slot).await.map_err(|error| error.to_string())
            }
        };
        let started: Vec<_> =
            futures_util::stream::iter(namespaces.iter().map(start)).buffer_unordered(8).collect().await;
        started.into_iter().for_each(|outcome| outcome.unwrap());
        assert_eq!(links.list().await.unwrap().len(), 50);
        let stop = |(slot, _): &(Slot, Netns)| {
            let slot = *slot;
            async move {
                links.detach(slot).await.unwrap();
                firewall.remove(slot).await.unwrap();
            }
        };
        futures_util::stream::iter(namespaces.iter().map(stop)).buffer_unordered(8).collect::<Vec<_>>().await;
        assert_eq!((links.list().await.unwrap(), firewall.list().await.unwrap()), (vec![], vec![]));
    });
    assert!(!ip("address show").contains("169.254.1.1"));
}
