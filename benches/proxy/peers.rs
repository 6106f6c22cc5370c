//! nginx, twice: as the upstream, in a container's network namespace, and as the peer, a plain reverse proxy.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::figures::cpu_s;

/// Where the peer listens.
pub const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8090);
/// How long nginx may take to listen.
const READY_S_MAX: u64 = 10;

/// A running nginx.
#[derive(Debug)]
pub struct Nginx {
    master: Child,
}

fn config(folder: &Path, workers: usize, server: &str) -> String {
    let folder = folder.display();
    format!(
        "daemon off;\nuser root;\nworker_processes {workers};\npid {folder}/pid;\nerror_log {folder}/error.log;\n\
         events {{ worker_connections 4096; }}\nhttp {{\n  keepalive_requests 1000000000;\n  keepalive_timeout 75s;\n\
         client_body_temp_path {folder}/body;\n  proxy_temp_path {folder}/proxy;\n  fastcgi_temp_path {folder}/fcgi;\n\
         uwsgi_temp_path {folder}/uwsgi;\n  scgi_temp_path {folder}/scgi;\n{server}}}\n"
    )
}

impl Nginx {
    /// What all are in front of: a page of 1 KiB from memory, on port 8080 of a container's network.
    pub fn upstream(work: &Path, init: u32) -> Result<Self> {
        let server = format!(
            "  access_log off;\n  server {{ listen 8080 reuseport; location / {{ return 200 \"{}\"; }} }}\n",
            "x".repeat(1_024)
        );
        let net = format!("--net=/proc/{init}/ns/net");
        Self::start(&work.join("upstream"), 1, &server, &["nsenter", &net])
    }

    /// The peer: a worker for each core, as our runtime has; connections to the upstream are kept; the upstream is told what ours
    /// tells it; an access log that is written in batches, as ours is.
    pub fn proxy(work: &Path, upstream: SocketAddr) -> Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        let folder = work.join("peer");
        let server = format!(
            "  access_log {}/access.log combined buffer=256k flush=1s;\n\
             upstream tenant {{ server {upstream}; keepalive 256; keepalive_requests 1000000000; }}\n\
             server {{ listen {PEER} backlog=4096; location / {{\n    proxy_pass http://tenant;\n\
             proxy_http_version 1.1;\n    proxy_set_header Connection \"\";\n    proxy_set_header Host $host;\n\
             proxy_set_header X-Forwarded-For $remote_addr;\n    proxy_set_header X-Forwarded-Proto $scheme;\n\
             proxy_set_header X-Forwarded-Host $host;\n    proxy_set_header X-Request-Id $request_id;\n\
             add_header X-Request-Id $request_id;\n  }} }}\n",
            folder.display()
        );
        Self::start(&folder, cores, &server, &[])
    }

    fn start(folder: &PathBuf, workers: usize, server: &str, before: &[&str]) -> Result<Self> {
        fs::create_dir(folder)?;
        let file = folder.join("nginx.conf");
        fs::write(&file, config(folder, workers, server))?;
        let file = file.display().to_string();
        let words: Vec<&str> = before.iter().copied().chain(["nginx", "-c", &file]).collect();
        let (program, args) = words.split_first().context("no program")?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let master = command.spawn().context("cannot run nginx: ./dev bench proxy installs it")?;
        let mut nginx = Self { master };
        let began = Instant::now();
        while nginx.workers().len() < workers {
            if nginx.master.try_wait()?.is_some() || began.elapsed() > Duration::from_secs(READY_S_MAX) {
                bail!("nginx does not run: {}", fs::read_to_string(folder.join("error.log")).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(nginx)
    }

    fn workers(&self) -> Vec<u32> {
        let master = self.master.id();
        let children = fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Processor time of its workers.
    pub fn cpu_s(&self) -> Result<f64> {
        self.workers().into_iter().map(cpu_s).sum()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let asked = i32::try_from(self.master.id()).map(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
        if !matches!(asked, Ok(Ok(()))) {
            let _ = self.master.kill();
        }
        let _ = self.master.wait();
    }
}
