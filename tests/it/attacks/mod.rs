//! Attacks from inside a container, as its root, against the host, the daemon and a neighbour. `tests/README.md` has a table of them.
//!
//! Each test plays on one [`Stage`]: a villain, and a neighbour with a row that is nobody else's. After each the neighbour still has
//! its row and nothing more, both it and the API answer, and the host is as it was.

mod budgets;
mod daemon;
mod files;
mod kernel;
mod network;
mod openings;
mod others;
mod sights;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::attacker::Insider;
use crate::support::daemon::{Daemon, id_of, play_with};

/// What is the neighbour's own.
const ROW: &str = "the neighbour's own row";
/// What of the host an attack must not change, and could: read before and after.
const HOST_SETTINGS: [&str; 9] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/kernel/randomize_va_space",
    "/proc/sys/fs/suid_dumpable",
    "/proc/sys/vm/overcommit_memory",
    "/proc/modules",
    "/proc/self/mountinfo",
];

/// Two containers and their daemon.
struct Stage<'a> {
    daemon: &'a Daemon,
    project: String,
    villain: Insider,
    neighbour: Insider,
    neighbour_container: Value,
}

/// Plays an attack, and holds that it did no harm.
fn attack(test: impl AsyncFnOnce(&Stage<'_>)) {
    attack_with("", test);
}

/// As [`attack`], with more in the daemon's configuration.
fn attack_with(config: &str, test: impl AsyncFnOnce(&Stage<'_>)) {
    play_with(config, async |daemon| {
        let client = daemon.client.clone();
        let project = client.create_project("estate").await;
        let make = async |name: &str| {
            let path = format!("/projects/{project}/containers");
            client.post(&path, json!({ "name": name })).await.data(201)
        };
        let (villain, neighbour) = (make("villain").await, make("neighbour").await);
        assert_eq!(client.send_page(&neighbour, "/cgi-bin/notes", ROW).await.status, 200);
        let stage = Stage {
            daemon,
            project: project.clone(),
            villain: Insider::enter(daemon, &id_of(&villain)),
            neighbour: Insider::enter(daemon, &id_of(&neighbour)),
            neighbour_container: neighbour,
        };
        let before = host_settings();
        test(&stage).await;
        stage.is_unharmed().await;
        assert_eq!(host_settings(), before);
    });
}

impl Stage<'_> {
    /// The neighbour and the API answer, and the neighbour has what it had.
    async fn is_unharmed(&self) {
        let page = self.daemon.client.page(&self.neighbour_container, "/cgi-bin/notes").await;
        assert_eq!((page.status, page.text.as_str()), (200, format!("{ROW}\n").as_str()));
        assert_eq!(self.daemon.client.get("/containers/").await.status, 200);
    }

    /// The first process of a container, as the host knows it.
    fn init_of(&self, insider: &Insider) -> i32 {
        let path = self.daemon.run_dir().join("containers").join(&insider.id).join("init.json");
        let init: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        i32::try_from(init["pid"].as_i64().unwrap()).unwrap()
    }
}

/// Mounts are compared by what they show where, since other tests of this machine come and go with theirs.
fn host_settings() -> BTreeMap<&'static str, String> {
    let read = |path: &'static str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let kept = |line: &&str| path != "/proc/self/mountinfo" || !line.contains("/tmp/");
        (path, text.lines().filter(kept).collect::<Vec<_>>().join("\n"))
    };
    HOST_SETTINGS.into_iter().map(read).collect()
}
