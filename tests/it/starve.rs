//! Attacks of a tenant's root on what all tenants share: memory, processor, tasks, descriptors, disk, logs. Each is bounded and stops
//! by itself; while it goes on, the neighbour's URL and the API answer, and what it took stays within its limits.

use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tenantry::sys::folders::{LOG_BYTES_MAX, LOG_DISK_MAX};

use crate::call;
use crate::support::attacker::{ARENA, Arg, Insider, Order, PIECE};
use crate::support::daemon::{Client, Daemon, id_of, patience, play};

/// How long an attack may last, in seconds.
const ATTACK_S: u64 = 6;
/// How long the neighbour and the API are watched meanwhile.
const WATCH: Duration = Duration::from_secs(4);
/// What they may take to answer under attack: both cores of a small machine may be busy with other tests as well.
const ANSWER: Duration = Duration::from_secs(3);
/// How long an event may take: a look a second, and one to be late.
const EVENT: Duration = Duration::from_secs(2);
/// How long one of a disk may take: every fifth look.
const DISK_EVENT: Duration = Duration::from_secs(12);

/// What attacker and neighbour may use: so little processor that the host has room beside both.
const PIDS: u64 = 48;
const MEMORY: u64 = 64 << 20;
const DISK: u64 = 24 << 20;

/// An attacker and its neighbour with the same limits.
struct Estate<'a> {
    client: &'a Client,
    attacker: String,
    neighbour: Value,
}

impl<'a> Estate<'a> {
    async fn new(client: &'a Client) -> Self {
        let project = client.create_project("estate").await;
        let template = id_of(&client.create_template(&project, "template").await);
        let limits = json!({ "cpu": 0.3, "memory": MEMORY, "pids": PIDS, "disk": DISK, "ramdisk": 8 << 20 });
        let attacker = id_of(&client.copy(&template, json!({ "limits": limits })).await);
        let neighbour = client.copy(&template, json!({ "limits": limits })).await;
        Self { client, attacker, neighbour }
    }

    /// Attacks, and holds that neighbour and API answer meanwhile; what became of the attack.
    async fn attack(&self, script: &str) -> Value {
        let command = json!({ "command": ["sh", "-c", script], "timeout": ATTACK_S });
        let path = format!("/containers/{}/exec", self.attacker);
        let (client, attack) = (self.client.clone(), command);
        let attack = tokio::spawn(async move { client.post(&path, attack).await.data(200) });
        self.serves(script).await;
        attack.await.unwrap()
    }

    /// Holds that neighbour and API answer for a while.
    async fn serves(&self, what: &str) {
        let begin = Instant::now();
        while begin.elapsed() < WATCH {
            let asked = Instant::now();
            let page = self.client.page(&self.neighbour, "/").await;
            assert_eq!(page.status, 200, "the neighbour under `{what}`: {}", page.text);
            let container = self.client.container(&self.attacker).await;
            assert_eq!(container["id"], self.attacker);
            assert!(asked.elapsed() < ANSWER, "under `{what}` both took {:?}", asked.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn stats(&self) -> Value {
        self.client.get(&format!("/containers/{}/stats", self.attacker)).await.data(200)
    }

    /// What the attacker holds of memory; nothing where its own init was killed for it.
    async fn memory(&self) -> u64 {
        self.stats().await["memory"]["usage"].as_u64().unwrap_or(0)
    }

    /// Ends what an attack left running.
    async fn settle(&self) {
        // Where its init was killed it is stopped already.
        self.client.verb(&self.attacker, "force-stop").await;
        self.client.verb(&self.attacker, "start").await.data(200);
    }

    /// Waits for an event of the attacker's; how many there are.
    async fn told(&self, kind: &str, within: Duration) -> Value {
        let path = format!("/events?type={kind}&container_id={}", self.attacker);
        let begin = Instant::now();
        loop {
            let events = self.client.get(&path).await.data(200)["events"].take();
            if events != json!([]) {
                return events;
            }
            assert!(begin.elapsed() < within, "no {kind} within {within:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[test]
fn a_fork_bomb_stays_within_its_tasks_and_is_told() {
    play(async |daemon| {
        let estate = Estate::new(&daemon.client).await;
        estate.attack("bomb() { bomb | bomb & }; bomb; sleep 5").await;
        let stats = estate.stats().await;
        assert!(stats["processes"].as_u64().unwrap() <= PIDS, "{stats}");
        let told = estate.told("container.pids_limit", EVENT).await;
        assert!(told[0]["data"]["count"].as_u64().unwrap() > 0, "{told}");
        estate.settle().await;
        assert!(estate.stats().await["processes"].as_u64().unwrap() < PIDS / 2);
    });
}

#[test]
fn a_memory_bomb_is_killed_alone_and_told_while_its_init_lives() {
    play(async |daemon| {
        let estate = Estate::new(&daemon.client).await;
        // A text that grows until it cannot: the shell's own memory, then a file's in each tmpfs.
        for bomb in ["tail /dev/zero", "dd if=/dev/zero of=/dev/null bs=512M count=1"] {
            let died = estate.attack(bomb).await;
            assert_ne!(died["exit_code"], 0, "{bomb}: {died}");
        }
        let told = estate.told("container.oom", EVENT).await;
        assert!(told[0]["data"]["count"].as_u64().unwrap() > 0 && told[0]["reason"].is_string(), "{told}");
        let stats = estate.stats().await;
        assert!(stats["memory"]["usage"].as_u64().unwrap() <= MEMORY, "{stats}");
        assert_eq!(estate.client.container(&estate.attacker).await["status"], "running", "init lives");
        assert_eq!(daemon.cgroup_file(&estate.attacker, "memory.swap.current").unwrap_or("0".into()), "0");
    });
}

#[test]
fn what_is_filled_in_memory_is_the_tenants_own_memory() {
    play(async |daemon| {
        let estate = Estate::new(&daemon.client).await;
        let fill = |path: &str| format!("dd if=/dev/zero of={path} bs=1M count=512");
        let small = "cd /dev/shm && seq 400000 | xargs touch".to_owned();
        // Files without content cost memory too, though no blocks of the tmpfs.
        for attack in [fill("/ramdisk/fill"), fill("/dev/shm/fill"), small] {
            let filled = estate.attack(&attack).await;
            assert_ne!(filled["exit_code"], 0, "{attack}: {filled}");
            let memory = estate.memory().await;
            assert!(memory <= MEMORY, "{attack}: {memory} bytes");
            estate.settle().await;
        }
    });
}

/// Connections within one container, each end filled as far as it goes.
const CONNECTIONS: usize = 250;
/// What the kernel may grant a socket beyond any limit, with what surrounds it.
const SOCKET_BYTES: u64 = 128 << 10;

#[test]
fn what_lies_in_sockets_is_bounded_by_the_tenants_memory() {
    use libc::*;
    play(async |daemon| {
        let estate = Estate::new(&daemon.client).await;
        let insider = Insider::enter(daemon, &estate.attacker);
        let port = 7777u16;
        let name = [&(AF_INET as u16).to_ne_bytes()[..], &port.to_be_bytes(), &[127, 0, 0, 1], &[0; 8]].concat();
        let named = |call, socket| Order::call(call, &[Arg::Result(socket), Arg::Bytes(name.clone()), 16.into()]);
        let mut orders = vec![call!(SYS_socket, AF_INET, SOCK_STREAM, 0), named(SYS_bind, 0)];
        orders.push(Order::call(SYS_listen, &[Arg::Result(0), 64.into()]));
        let mut fills = Vec::new();
        for _ in 0..CONNECTIONS {
            let near = orders.len();
            orders.extend([call!(SYS_socket, AF_INET, SOCK_STREAM, 0), named(SYS_connect, near)]);
            orders.push(Order::call(SYS_accept4, &[Arg::Result(0), 0.into(), 0.into(), SOCK_NONBLOCK.into()]));
            let nonblocking = [Arg::Result(near), F_SETFL.into(), O_NONBLOCK.into()];
            orders.push(Order::call(SYS_fcntl, &nonblocking));
            for end in [near, near + 2] {
                fills.push(orders.len());
                // From the program's own memory, which is there whatever it holds.
                let page = [Arg::Result(end), ARENA.into(), PIECE.into()];
                orders.push(Order::repeat(200, SYS_write, &page));
            }
        }
        let end = insider.dare(&orders).await;
        let filled = fills.iter().filter_map(|place| end.answers.get(*place)).map(|answer| answer.result as u64);
        let held = filled.sum::<u64>() * PIECE as u64;
        println!("{held} bytes in {} ends of sockets: {}", fills.len(), end.exit_code);
        let most = MEMORY + fills.len() as u64 * SOCKET_BYTES;
        assert!(held > 0 && held <= most, "{held} bytes lie in sockets under a limit of {MEMORY}");
        estate.serves("full sockets").await;
    });
}

#[test]
fn answers_that_nobody_reads_are_the_end_of_who_asked_for_them() {
    use libc::*;
    const SOCKETS: usize = 300;
    const REQUEST_BYTES: usize = 4_016;
    play(async |daemon| {
        let estate = Estate::new(&daemon.client).await;
        let insider = Insider::enter(daemon, &estate.attacker);
        // RTM_SETLINK of nothing, acknowledged: refused, and answered with the whole request.
        let mut request = vec![0; REQUEST_BYTES];
        request[..4].copy_from_slice(&(REQUEST_BYTES as u32).to_ne_bytes());
        request[4..8].copy_from_slice(&[19, 0, 5, 0]);
        let length = || Arg::from(REQUEST_BYTES as i64);
        let mut orders = vec![call!(SYS_open, "/tmp/request", O_RDWR | O_CREAT, 0o600)];
        orders.push(Order::call(SYS_write, &[Arg::Result(0), Arg::Bytes(request), length()]));
        orders.push(Order::call(SYS_pread64, &[Arg::Result(0), ARENA.into(), length(), 0.into()]));
        for _ in 0..SOCKETS {
            let socket = Arg::Result(orders.len());
            orders.push(call!(SYS_socket, AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_ROUTE));
            let sent = [socket, ARENA.into(), length(), 0.into(), 0.into(), 0.into()];
            orders.push(Order::repeat(100, SYS_sendto, &sent));
        }
        orders.push(Order::hold(20_000));
        let hoarding = tokio::spawn(async move { insider.try_all(&orders).await.status });
        let told = estate.told("container.oom", Duration::from_secs(10)).await;
        assert!(told[0]["reason"].as_str().unwrap().contains("netlink"), "{told}");
        let unread = told[0]["data"]["unread_bytes"].as_u64().unwrap();
        assert!(unread > 32 << 20, "{told}");
        println!("killed with {unread} bytes unread; its command was answered {:?}", hoarding.await);
        estate.serves("unread answers").await;
        assert_ne!(estate.client.container(&estate.attacker).await["status"], "running");
        estate.client.verb(&estate.attacker, "start").await.data(200);
    });
}

#[test]
fn a_disk_that_is_filled_is_full_for_its_tenant_alone_and_told() {
    play(async |daemon| {
        let estate = Estate::new(&daemon.client).await;
        let filled = estate.attack("dd if=/dev/zero of=/root/fill bs=1M count=512 conv=fsync").await;
        assert_ne!(filled["exit_code"], 0, "{filled}");
        let stats = estate.stats().await;
        assert!(stats["disk"]["root"]["usage"].as_u64().unwrap() <= DISK, "{stats}");
        let told = estate.told("container.disk_full", DISK_EVENT).await;
        assert_eq!(told[0]["data"]["limit_bytes"], DISK, "{told}");
        let kept = estate.client.send_page(&estate.neighbour, "/cgi-bin/notes", "kept").await;
        assert_eq!(kept.status, 200, "the neighbour's disk has room: {}", kept.text);
    });
}

#[test]
fn files_without_content_are_counted_too() {
    play(async |daemon| {
        let estate = Estate::new(&daemon.client).await;
        let path = format!("/containers/{}", estate.attacker);
        estate.client.patch(&path, json!({ "limits": { "disk": 4 << 20, "cpu": 1.0 } })).await.data(200);
        let filled = estate.attack("mkdir /root/many; cd /root/many && seq 1000000 | xargs touch").await;
        assert_ne!(filled["exit_code"], 0, "{filled}");
        let count: u64 = std::fs::read_dir(daemon.rootfs(&estate.attacker).join("root/many")).unwrap().count() as u64;
        assert!(count < 200_000, "{count} files under a limit of 4 MiB: {filled}");
        estate.settle().await;
    });
}

#[test]
fn descriptors_run_out_for_a_tenant_and_not_for_the_host() {
    play(async |daemon| {
        let estate = Estate::new(&daemon.client).await;
        let open = || -> (u64, u64) {
            let text = std::fs::read_to_string("/proc/sys/fs/file-nr").unwrap();
            let numbers: Vec<u64> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
            (numbers[0], numbers[2])
        };
        let (before, max) = open();
        let names = "$(yes /dev/null | head -n 17000)";
        let bomb = format!("for i in $(seq 40); do tail -f {names} & done; sleep 5");
        estate.attack(&bomb).await;
        let (now, _) = open();
        assert!(now < before + (max - before) / 2, "{now} of {max} files are open, {before} before");
        let limit = estate.client.exec(&id_of(&estate.neighbour), &["sh", "-c", "ulimit -n"]).await;
        assert_eq!(limit.trim(), "16384");
        estate.settle().await;
    });
}

/// Bytes that the files below a folder hold on the disk, or are to hold: a file that is not written yet has no blocks.
fn held(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let size = |path: &Path| match path.metadata() {
        Ok(found) if found.is_dir() => held(path),
        Ok(found) => found.len().max(found.blocks() * 512),
        // Replaced meanwhile.
        Err(_) => 0,
    };
    entries.map(|entry| size(&entry.path())).sum()
}

/// Holds for a while that a log keeps its bound at every look.
fn keeps_its_bound(daemon: &Daemon, id: &str, watch: Duration) -> u64 {
    let logs = daemon.data_dir().join("pool/containers").join(id).join("logs");
    let begin = Instant::now();
    let mut most = 0;
    while begin.elapsed() < watch {
        most = held(&logs).max(most);
        // What is kept of a cut log lies beside it.
        assert!(most <= LOG_DISK_MAX.0 + LOG_BYTES_MAX.0, "{most} bytes of logs");
        std::thread::sleep(Duration::from_millis(5));
    }
    most
}

#[test]
fn a_flood_of_the_log_keeps_its_bound_with_a_daemon_and_without() {
    play(async |daemon| {
        let estate = Estate::new(&daemon.client).await;
        let attacker = estate.attacker.clone();
        let path = format!("/containers/{attacker}");
        estate.client.patch(&path, json!({ "limits": { "cpu": 1.0 } })).await.data(200);
        // `yes` ends when its output takes no more; the flood begins anew, by itself for a time.
        let flood = "for i in $(seq 200); do timeout 1 yes 'a line of the log' >> /proc/1/fd/1; done";
        let command = json!({ "command": ["sh", "-c", format!("{flood} &")], "timeout": ATTACK_S });
        estate.client.post(&format!("{path}/exec"), command).await.data(200);
        estate.serves("a log flood").await;
        let most = keeps_its_bound(daemon, &attacker, WATCH);
        assert!(most > LOG_BYTES_MAX.0, "no flood: {most} bytes");
        let log = estate.client.get(&format!("{path}/logs?tail=3")).await;
        assert!(log.text.contains("a line of the log"), "{}", log.text);
        let ip: Ipv4Addr = estate.neighbour["ip"].as_str().unwrap().parse().unwrap();
        drop(estate);
        daemon.kill9();
        keeps_its_bound(daemon, &attacker, WATCH);
        let page = std::net::TcpStream::connect_timeout(&(ip, 8080).into(), patience(2));
        assert!(page.is_ok(), "the neighbour serves without a daemon: {page:?}");
        daemon.restart().await;
        assert_eq!(daemon.client.container(&attacker).await["status"], "running", "a full log ends nobody");
        daemon.client.verb(&attacker, "force-stop").await.data(200);
        daemon.client.delete(&path).await.data(200);
    });
}

/// Requests of one round, and rounds of each kind, in turn.
const REQUESTS: usize = 60;
const ROUNDS: usize = 5;
/// How often it is measured until it holds: what others do on the machine meanwhile is not the tenant's doing, and hardly goes on for so long.
const ATTEMPTS_MAX: usize = 3;
/// What one may be late by whatever the reason, beside twice the time: a tick of a machine that others use too.
const GRACE: Duration = Duration::from_millis(15);

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The time that 99 of 100 requests to the neighbour do not exceed.
async fn p99(estate: &Estate<'_>) -> Duration {
    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let begin = Instant::now();
        assert_eq!(estate.client.page(&estate.neighbour, "/").await.status, 200);
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    times[(REQUESTS * 99).div_ceil(100) - 1]
}

#[test]
fn a_spinning_neighbour_does_not_double_the_time_of_the_slowest_answers() {
    play(async |daemon| {
        let estate = Estate::new(&daemon.client).await;
        let path = format!("/containers/{}/exec", estate.attacker);
        p99(&estate).await;
        let mut seen = Vec::new();
        for _ in 0..ATTEMPTS_MAX {
            let (mut quiet, mut loud) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                quiet.push(p99(&estate).await);
                let spin = "for i in 1 2 3 4; do timeout 20 sh -c 'while :; do :; done' & done; wait";
                let (client, path) = (estate.client.clone(), path.clone());
                let command = json!({ "command": ["sh", "-c", spin], "timeout": 30 });
                let spinning = tokio::spawn(async move { client.post(&path, command).await });
                tokio::time::sleep(Duration::from_millis(300)).await;
                loud.push(p99(&estate).await);
                estate.settle().await;
                spinning.abort();
            }
            let (before, during) = (median(quiet.clone()), median(loud.clone()));
            if during <= before * 2 + GRACE {
                return;
            }
            seen.push(format!("p99 {before:?} before, {during:?} during: {quiet:?}, {loud:?}"));
        }
        panic!("{seen:#?}");
    });
}
