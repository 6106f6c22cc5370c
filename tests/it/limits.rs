//! Limits of a container on the real kernel: taken, kept, read back, changed while it runs, refused where they cannot be.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::daemon::{Client, Daemon, id_of, patience, play};

/// A limit of the network in these tests, in bytes a second: slow enough that this machine's speed does not matter.
const RATE: u64 = 1_000_000;
/// What goes over a limited link: two seconds of it.
const BYTES: u64 = 2 * RATE;
/// How far from the limit a measured rate may lie: what the bucket lets through at once, and a busy machine.
const TOLERANCE: f64 = 0.25;
/// How long a transfer may take.
const TRANSFER: Duration = Duration::from_secs(60);

async fn two_containers(client: &Client) -> [String; 2] {
    let project = client.create_project("shop").await;
    let template = id_of(&client.create_template(&project, "template").await);
    let open = json!({ "firewall_policy": "open" });
    [id_of(&client.copy(&template, open.clone()).await), id_of(&client.copy(&template, open).await)]
}

async fn address(client: &Client, id: &str, port: u16) -> SocketAddr {
    let ip: Ipv4Addr = client.container(id).await["ip"].as_str().unwrap().parse().unwrap();
    (ip, port).into()
}

fn connect(to: SocketAddr) -> TcpStream {
    let begin = Instant::now();
    loop {
        match TcpStream::connect_timeout(&to, Duration::from_secs(2)) {
            Ok(stream) => {
                stream.set_read_timeout(Some(TRANSFER)).unwrap();
                stream.set_write_timeout(Some(TRANSFER)).unwrap();
                return stream;
            }
            Err(error) => assert!(begin.elapsed() < patience(20), "{to}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes a second from this host to the tenant, which says when it has them all.
async fn towards(client: &Client, id: &str, port: u16, bytes: u64) -> f64 {
    let to = address(client, id, port).await;
    let script = format!("head -c {bytes} | wc -c | grep -q {bytes} && echo done");
    let listen = format!("nc -l -p {port} -e sh -c '{script}'");
    let command = json!({ "command": ["sh", "-c", listen], "timeout": 120 });
    // The test's runtime has one thread, and `connect` holds it: the request goes out on the daemon's side first.
    let (client, path) = (client.clone(), format!("/containers/{id}/exec"));
    let listening = tokio::spawn(async move { client.post(&path, command).await.data(200) });
    let took = tokio::task::spawn_blocking(in_this_network(move || {
        let mut stream = connect(to);
        let begin = Instant::now();
        let chunk = vec![b'x'; 64 << 10];
        let mut left = bytes;
        while left > 0 {
            let part = chunk.len().min(usize::try_from(left).unwrap());
            stream.write_all(&chunk[..part]).unwrap();
            left -= part as u64;
        }
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"done\n");
        begin.elapsed()
    }))
    .await
    .unwrap();
    listening.await.unwrap();
    bytes as f64 / took.as_secs_f64()
}

/// Bytes a second from the tenant to this host.
async fn from(client: &Client, id: &str, port: u16, bytes: u64) -> f64 {
    let to = address(client, id, port).await;
    let listen = format!("head -c {bytes} /dev/zero | nc -l -p {port}");
    let command = json!({ "command": ["sh", "-c", listen], "timeout": 120 });
    let (client, path) = (client.clone(), format!("/containers/{id}/exec"));
    let listening = tokio::spawn(async move { client.post(&path, command).await.data(200) });
    let took = tokio::task::spawn_blocking(in_this_network(move || {
        let mut stream = connect(to);
        let begin = Instant::now();
        let mut buffer = vec![0; 64 << 10];
        let mut got = 0;
        while got < bytes {
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0, "only {got} of {bytes} came");
            got += count as u64;
        }
        begin.elapsed()
    }))
    .await
    .unwrap();
    listening.await.unwrap();
    bytes as f64 / took.as_secs_f64()
}

/// A thread of the runtime's pool was made in the network namespace of the thread that made it; this makes sure.
fn in_this_network<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let own = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
    move || {
        nix::sched::setns(&own, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        work()
    }
}

#[track_caller]
fn near(measured: f64, limit: u64, which: &str) {
    let far = (measured / limit as f64 - 1.0).abs();
    assert!(far <= TOLERANCE, "{which}: {measured:.0} bytes a second under a limit of {limit}");
}

#[test]
fn a_containers_network_is_as_fast_as_its_limit_both_ways_and_its_neighbours_is_not_slowed() {
    play(async |daemon| {
        let client = &daemon.client;
        let [slow, free] = two_containers(client).await;
        let path = format!("/containers/{slow}");
        let limits = json!({ "limits": { "net_rx_bps": RATE, "net_tx_bps": RATE } });
        let container = client.patch(&path, limits).await.data(200);
        assert_eq!(container["limits"]["net_rx_bps"], RATE);
        near(towards(client, &slow, 9001, BYTES).await, RATE, "towards the tenant");
        near(from(client, &slow, 9002, BYTES).await, RATE, "from the tenant");
        for measured in [towards(client, &free, 9001, 8 * BYTES).await, from(client, &free, 9002, 8 * BYTES).await] {
            assert!(measured > 4.0 * RATE as f64, "the neighbour had {measured:.0} bytes a second");
        }
        // Another limit, in force at once and again after a restart; then none.
        client.patch(&path, json!({ "limits": { "net_rx_bps": 3 * RATE } })).await.data(200);
        client.verb(&slow, "restart").await.data(200);
        near(towards(client, &slow, 9001, 3 * BYTES).await, 3 * RATE, "towards the tenant, after a restart");
        let lifted = json!({ "limits": { "net_rx_bps": null, "net_tx_bps": null } });
        assert_eq!(client.patch(&path, lifted).await.data(200)["limits"]["net_tx_bps"], Value::Null);
        let measured = from(client, &slow, 9002, 8 * BYTES).await;
        assert!(measured > 4.0 * RATE as f64, "without a limit it had {measured:.0} bytes a second");
    });
}

#[test]
fn a_tenants_root_cannot_lift_what_holds_back_its_packets() {
    play(async |daemon| {
        let client = &daemon.client;
        let [slow, _] = two_containers(client).await;
        let limits = json!({ "limits": { "net_tx_bps": RATE } });
        client.patch(&format!("/containers/{slow}"), limits).await.data(200);
        for attack in [
            "tc qdisc del dev eth0 root",
            "tc qdisc replace dev eth0 root pfifo",
            "ip link set eth0 down",
            "ip link add dummy0 type dummy",
            "unshare -Urn tc qdisc del dev eth0 root",
        ] {
            let command = json!({ "command": ["sh", "-c", attack] });
            let tried = client.post(&format!("/containers/{slow}/exec"), command).await.data(200);
            assert_ne!(tried["exit_code"], 0, "{attack}: {tried}");
            assert_ne!(tried["exit_code"], 127, "{attack} was not there to be tried: {tried}");
        }
        near(from(client, &slow, 9002, BYTES).await, RATE, "from the tenant");
    });
}

#[test]
fn a_ramdisk_changes_its_size_while_it_is_used() {
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("shop").await;
        let id = id_of(&client.create_template(&project, "template").await);
        let path = format!("/containers/{id}");
        let sized = |bytes: u64| json!({ "limits": { "ramdisk": bytes } });
        let blocks = async || client.exec(&id, &["sh", "-c", "df -k /ramdisk | tail -1"]).await;
        client.patch(&path, sized(8 << 20)).await.data(200);
        assert!(blocks().await.contains(" 8192 "), "{}", blocks().await);
        client.exec(&id, &["dd", "if=/dev/zero", "of=/ramdisk/a", "bs=1M", "count=6"]).await;
        client.patch(&path, sized(4 << 20)).await.refused(422, "LIMIT_BELOW_USAGE");
        assert_eq!(client.container(&id).await["limits"]["ramdisk"], 8 << 20, "the record says what is in force");
        assert!(blocks().await.contains(" 8192 "), "{}", blocks().await);
        client.patch(&path, sized(16 << 20)).await.data(200);
        client.exec(&id, &["dd", "if=/dev/zero", "of=/ramdisk/b", "bs=1M", "count=9"]).await;
        client.verb(&id, "restart").await.data(200);
        assert!(blocks().await.contains(" 16384 "), "{}", blocks().await);
        // Without a size of its own: what the memory limit lets it have, at once and after a restart.
        client.patch(&path, json!({ "limits": { "ramdisk": null } })).await.data(200);
        for restart in [false, true] {
            if restart {
                client.verb(&id, "restart").await.data(200);
            }
            client.exec(&id, &["dd", "if=/dev/zero", "of=/ramdisk/a", "bs=1M", "count=24"]).await;
        }
        client.patch(&path, sized(32 << 20)).await.data(200);
        assert!(blocks().await.contains(" 32768 "), "{}", blocks().await);
    });
}

#[test]
fn a_memory_limit_below_what_is_held_is_refused_by_name_and_changes_nothing() {
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("shop").await;
        let id = id_of(&client.create_template(&project, "template").await);
        let path = format!("/containers/{id}");
        client.patch(&path, json!({ "limits": { "memory": 128 << 20 } })).await.data(200);
        // A file on a tmpfs is memory that cannot be reclaimed.
        client.exec(&id, &["dd", "if=/dev/zero", "of=/ramdisk/a", "bs=1M", "count=40"]).await;
        let both = json!({ "limits": { "pids": 77, "memory": 16 << 20 } });
        let refusal = client.patch(&path, both).await;
        refusal.refused(422, "LIMIT_BELOW_USAGE");
        assert_eq!(refusal.field(), Some("limits.memory"));
        let stats = client.get(&format!("{path}/stats")).await.data(200);
        assert_eq!(stats["limits"]["memory"], 128 << 20, "{stats}");
        assert_eq!(stats["memory"]["total"], 128 << 20, "what the kernel holds: {stats}");
        assert_ne!(stats["limits"]["pids"], 77, "{stats}");
    });
}

/// What the kernel keeps of a disk's rates: the text of a control file of either version.
fn disk_rates(daemon: &Daemon, id: &str) -> String {
    let files = ["io.max", "blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device"];
    files.iter().filter_map(|file| daemon.cgroup_file(id, file)).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_disk_is_no_faster_than_its_limit_for_reads_and_for_writes_that_are_not_left_to_the_cache() {
    const DISK_RATE: u64 = 2 << 20;
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("shop").await;
        let id = id_of(&client.create_template(&project, "template").await);
        let path = format!("/containers/{id}");
        client.exec(&id, &["dd", "if=/dev/zero", "of=/root/a", "bs=1M", "count=8", "conv=fsync"]).await;
        let limits = json!({ "limits": { "disk_read_bps": DISK_RATE, "disk_write_bps": DISK_RATE } });
        client.patch(&path, limits).await.data(200);
        assert_eq!(disk_rates(daemon, &id).matches(&DISK_RATE.to_string()).count(), 2, "{}", disk_rates(daemon, &id));
        for (what, command) in [
            ("reads", ["dd", "if=/root/a", "of=/dev/null", "bs=1M", "iflag=direct"].as_slice()),
            ("direct writes", &["dd", "if=/dev/zero", "of=/root/b", "bs=1M", "count=8", "oflag=direct"]),
        ] {
            let begin = Instant::now();
            client.exec(&id, command).await;
            let rate = (8 << 20) as f64 / begin.elapsed().as_secs_f64();
            assert!(rate <= DISK_RATE as f64 * (1.0 + TOLERANCE), "{what}: {rate:.0} bytes a second");
        }
        client.patch(&path, json!({ "limits": { "disk_read_bps": null, "disk_write_bps": null } })).await.data(200);
        assert!(!disk_rates(daemon, &id).contains(&DISK_RATE.to_string()), "{}", disk_rates(daemon, &id));
    });
}
