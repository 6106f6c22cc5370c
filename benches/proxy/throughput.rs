//! Requests a second, of the whole machine and of a proxy's own processor time; latencies at a pace that all can keep.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::Args;
use crate::bed::Bed;
use crate::client::Client;
use crate::figures::{cpu_s, median, ms, percentile};
use crate::load::{Round, Target, drive};
use crate::peers::{Nginx, PEER};

/// Connections at once.
const CONNECTIONS: [usize; 3] = [1, 64, 512];
const OURS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// Who is measured, in this order in every round.
const WHO: [&str; 3] = ["directly", "tenantry", "nginx"];

#[derive(Debug, Default, Clone)]
struct Samples {
    /// Requests a second.
    rps: Vec<f64>,
    /// Requests a second of its own processor time.
    rps_per_core: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    paced_p50: Vec<f64>,
    paced_p99: Vec<f64>,
}

pub async fn measure(args: &Args, bed: &Bed, client: &Client, project: &str) -> Result<()> {
    // Its own server is not what is measured: it sleeps, and the upstream listens in its network.
    let body = json!({"name": "upstream", "command": ["sleep", "1000000"], "limits": {"cpu": null}});
    let made = client.post(&format!("/projects/{project}/containers?wait=started"), body).await?.expect(201)?;
    let id = made.id()?;
    let host = made.text("url")?.trim_start_matches("http://").to_owned();
    let ip: Ipv4Addr = crate::field(client, &id, "ip").await?.parse()?;
    let upstream_at = SocketAddr::from((ip, 8080));
    let upstream = Nginx::upstream(bed.work(), bed.init_of(&id)?)?;
    let nginx = Nginx::proxy(bed.work(), upstream_at)?;
    let addrs = [upstream_at, OURS, PEER];
    let targets: Vec<Target> =
        WHO.iter().zip(addrs).map(|(name, addr)| Target { name, addr, host: host.clone(), path: "/notes" }).collect();
    let cpu = |who: usize| match who {
        0 => upstream.cpu_s(),
        1 => cpu_s(bed.pid()),
        _ => nginx.cpu_s(),
    };
    println!(
        "{:<22} {:>9} {:>13} {:>8} {:>8} {:>10} {:>10} {:>10}",
        "connections", "req/s", "req/s of cpu", "p50 ms", "p99 ms", "paced p50", "paced p99", "added p99"
    );
    for connections in CONNECTIONS {
        let mut samples = vec![Samples::default(); WHO.len()];
        for _ in 0..args.rounds {
            for (who, target) in targets.iter().enumerate() {
                let lasts = Duration::from_secs(args.seconds);
                let before = cpu(who)?;
                let full = drive(target, connections, lasts, None).await?;
                let used = cpu(who)? - before;
                let paced = drive(target, connections, lasts, Some(args.rate)).await?;
                samples[who].add(full, used, paced);
            }
        }
        print(connections, &samples);
    }
    drop((nginx, upstream));
    client.delete(&format!("/containers/{id}")).await?.expect(200)?;
    Ok(())
}

impl Samples {
    fn add(&mut self, mut full: Round, used_s: f64, mut paced: Round) {
        self.rps.push(full.requests as f64 / full.lasted.as_secs_f64());
        // The warm-up's requests are in the time and not in the count: its share is taken out.
        let share = full.lasted.as_secs_f64() / (full.lasted.as_secs_f64() + 0.5);
        self.rps_per_core.push(full.requests as f64 / (used_s * share));
        self.p50.push(ms(percentile(&mut full.took, 50.0)));
        self.p99.push(ms(percentile(&mut full.took, 99.0)));
        self.paced_p50.push(ms(percentile(&mut paced.took, 50.0)));
        self.paced_p99.push(ms(percentile(&mut paced.took, 99.0)));
    }
}

fn print(connections: usize, samples: &[Samples]) {
    let middle = |of: &Vec<f64>| median(of.iter().copied());
    let direct = samples.first().map_or(f64::NAN, |direct| middle(&direct.paced_p99));
    for (who, s) in WHO.iter().zip(samples) {
        println!(
            "{:<22} {:>9.0} {:>13.0} {:>8.2} {:>8.2} {:>10.2} {:>10.2} {:>10.2}",
            format!("{connections} {who}"),
            middle(&s.rps),
            middle(&s.rps_per_core),
            middle(&s.p50),
            middle(&s.p99),
            middle(&s.paced_p50),
            middle(&s.paced_p99),
            middle(&s.paced_p99) - direct
        );
    }
    if let [_, ours, nginx] = samples {
        let ratio = middle(&ours.rps_per_core) / middle(&nginx.rps_per_core);
        println!("{:<22} {:>9} {ratio:>13.2}   of nginx's", "", "");
    }
}
