//! The runtime on the real kernel: containers of busybox, through the binary under test as the helper.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tenantry::domain::{Bytes, Confinement, ContainerId, CpuMillis, EnvVars, Limits, Pids, Secret};
use tenantry::sys::oci::{self, BundleSpec};
use tenantry::sys::runtime::{
    Delivery, ExecOutcome, ExecRequest, Exit, HelperRuntime, Init, Launch, Runtime, RuntimeError, become_subreaper,
};

use crate::support::container::{CgroupGuard, Folder, busybox_rootfs};

/// Above all that `first_of_ids` gives out.
const FIRST_ID: u32 = 3_950_000_000;

/// One runtime with a folder and a cgroup of its own.
#[derive(Debug)]
struct Bed {
    runtime: HelperRuntime,
    cgroups: CgroupGuard,
    folder: Folder,
}

impl Bed {
    fn new() -> Self {
        become_subreaper().unwrap();
        let folder = Folder::new();
        let helper = Path::new(env!("CARGO_BIN_EXE_tenantry"));
        let runtime = HelperRuntime::with_helper(&folder.path().join("run"), helper).unwrap();
        Self { runtime, cgroups: CgroupGuard::new(), folder }
    }

    fn container(&self, args: &[&str]) -> Launch {
        self.container_with(args, |_| {})
    }

    fn container_with(&self, args: &[&str], change: impl FnOnce(&mut BundleSpec<'_>)) -> Launch {
        let id = ContainerId::generate();
        let home = self.folder.path().join(id.to_string());
        let launch = Launch {
            id,
            bundle: home.join("bundle"),
            rootfs: home.join("rootfs"),
            first_id: FIRST_ID,
            log: home.join("log"),
        };
        busybox_rootfs(&launch.rootfs);
        let limits = Limits {
            cpu: Some(CpuMillis(500)),
            memory: Some(Bytes::mib(64)),
            pids: Some(Pids(64)),
            ..Limits::default()
        };
        let mut spec = BundleSpec {
            id,
            hostname: "acme".into(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: vec![("PLAN".into(), Secret::new("pro"))],
            cwd: "/srv".into(),
            uid: 0,
            gid: 0,
            additional_gids: vec![],
            rootfs: launch.rootfs.clone(),
            cgroups_path: self.cgroups.child(id),
            limits: &limits,
            first_id: FIRST_ID,
            ramdisk: Some(Bytes::mib(8)),
            confinement: Confinement::Standard,
        };
        change(&mut spec);
        oci::write_bundle(&launch.bundle, &spec).unwrap();
        launch
    }

    async fn run(&self, launch: &Launch) -> Init {
        self.runtime.prepare(launch).await.unwrap();
        let init = self.runtime.create(launch.id).await.unwrap();
        self.runtime.start(launch.id).await.unwrap();
        init
    }

    async fn exec(&self, launch: &Launch, init: Init, command: &[&str]) -> ExecOutcome {
        self.runtime.exec(launch.id, init, &request(command)).await.unwrap()
    }

    async fn end(&self, launch: &Launch) {
        self.runtime.remove(launch.id).await.unwrap();
        self.cgroups.remove(launch.id);
        self.assert_nothing_left(launch.id).await;
    }

    /// No file, cgroup, mount, process or zombie of the container's.
    async fn assert_nothing_left(&self, id: ContainerId) {
        assert_eq!(self.runtime.list().await.unwrap().iter().filter(|left| **left == id).count(), 0);
        assert!(self.cgroups.folders(id).is_empty());
        assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&id.to_string()), "a mount is left");
        let deadline = Instant::now() + Duration::from_secs(3);
        while let Some(left) = our_leftover() {
            assert!(Instant::now() < deadline, "left behind: {left}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn log(&self, launch: &Launch) -> String {
        fs::read_to_string(&launch.log).unwrap()
    }
}

/// A child of this process that nobody will reap: a zombie, or one that never got to execve. Other tests of this
/// process run at the same time; theirs pass.
fn our_leftover() -> Option<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<i32> =
        lists.flat_map(|l| l.split_whitespace().map(|p| p.parse().unwrap()).collect::<Vec<_>>()).collect();
    children.into_iter().find_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.contains("(youki:[").then_some(stat)
    })
}

fn request(command: &[&str]) -> ExecRequest {
    ExecRequest {
        command: command.iter().map(|part| (*part).to_owned()).collect(),
        env: EnvVars::default(),
        cwd: None,
        stdin: vec![],
        timeout_ms: 20_000,
        output_max: Bytes::mib(1),
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Exits cleanly on SIGTERM, as a server does.
const SERVER: [&str; 3] = ["/bin/sh", "-c", "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done"];

#[tokio::test(flavor = "multi_thread")]
async fn a_container_starts_is_stopped_and_leaves_nothing() {
    let bed = Bed::new();
    let launch = bed.container(&SERVER);
    let pins = bed.runtime.prepare(&launch).await.unwrap();
    assert!(pins.net.exists() && pins.user.exists());
    let init = bed.runtime.create(launch.id).await.unwrap();
    assert_eq!(bed.log(&launch), "", "it ran before it was started");
    bed.runtime.start(launch.id).await.unwrap();
    assert!(bed.runtime.is_alive(init));
    while bed.log(&launch) != "up\n" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(bed.runtime.signal(init, libc::SIGHUP).unwrap(), Delivery::Ignored);
    assert_eq!(bed.runtime.signal(init, libc::SIGTERM).unwrap(), Delivery::Sent);
    assert_eq!(bed.runtime.wait(init).await, Exit::Code(0));
    assert_eq!(bed.runtime.signal(init, libc::SIGTERM).unwrap(), Delivery::Gone);
    bed.end(&launch).await;
    bed.runtime.remove(launch.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_sees_its_own_world_only() {
    let bed = Bed::new();
    let script = "id -u; cat /proc/self/uid_map; env; cat /proc/sys/kernel/hostname; ls /; cat /proc/mounts; \
                  touch /srv/mine; touch /ramdisk/mine; echo again >>/dev/stdout; ls /proc | head -1; ls /dev";
    let launch = bed.container(&["sh", "-c", script]);
    let init = bed.run(&launch).await;
    assert_eq!(bed.runtime.wait(init).await, Exit::Code(0), "{}", bed.log(&launch));
    let log = bed.log(&launch);
    assert!(log.starts_with("0\n"), "{log}");
    assert!(log.contains(&format!("0 {FIRST_ID}      65536")), "{log}");
    for wanted in ["PLAN=pro", "HOME=/root", "acme", "again", "ramdisk /ramdisk tmpfs", "size=8192k"] {
        assert!(log.contains(wanted), "{wanted} is not in {log}");
    }
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(launch.rootfs.join("srv/mine")).unwrap().uid(), 0, "on disk its root is root");
    bed.end(&launch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_confined_exactly_as_init_is() {
    let bed = Bed::new();
    let launch = bed.container_with(&SERVER, |spec| {
        (spec.uid, spec.gid) = (1000, 1001);
        spec.additional_gids = vec![1002];
    });
    let init = bed.run(&launch).await;
    for file in ["uid_map", "gid_map", "limits", "cgroup", "oom_score_adj", "setgroups"] {
        let (of_init, of_command) = (format!("/proc/1/{file}"), format!("/proc/self/{file}"));
        let outcome = bed.exec(&launch, init, &["cat", &of_init]).await;
        assert_eq!(outcome.exit, Exit::Code(0), "{}", text(&outcome.stderr));
        let own = bed.exec(&launch, init, &["cat", &of_command]).await;
        assert_eq!(text(&outcome.stdout), text(&own.stdout), "{file}");
        let host = fs::read_to_string(format!("/proc/{}/{file}", init.pid)).unwrap();
        assert!(file == "cgroup" || file.ends_with("_map") || host == text(&own.stdout), "{file}: {host}");
    }
    let status = |text: &str| -> Vec<String> {
        let wanted = [
            "Uid",
            "Gid",
            "Groups",
            "CapInh",
            "CapPrm",
            "CapEff",
            "CapBnd",
            "CapAmb",
            "NoNewPrivs",
            "Seccomp",
            "Umask",
        ];
        text.lines().filter(|l| wanted.iter().any(|w| l.starts_with(w))).map(str::to_owned).collect()
    };
    let outcome = bed.exec(&launch, init, &["cat", "/proc/self/status"]).await;
    let of_init = fs::read_to_string(format!("/proc/{}/status", init.pid)).unwrap();
    let inside = bed.exec(&launch, init, &["cat", "/proc/1/status"]).await;
    assert_eq!(status(text(&outcome.stdout)), status(text(&inside.stdout)));
    assert!(of_init.contains("Seccomp:\t2") && text(&outcome.stdout).contains("Seccomp:\t2"));
    assert!(text(&outcome.stdout).contains("NoNewPrivs:\t1"));
    assert!(text(&outcome.stdout).contains("Uid:\t1000\t1000\t1000\t1000"));

    let links = "for n in /proc/self/ns/*; do ls -l $n | head -1; done";
    let outcome = bed.exec(&launch, init, &["sh", "-c", links]).await;
    for name in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"] {
        let of_init = fs::read_link(format!("/proc/{}/ns/{name}", init.pid)).unwrap();
        assert!(text(&outcome.stdout).contains(of_init.to_str().unwrap()), "{name}: {}", text(&outcome.stdout));
        let host = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_eq!(name == "time", host == of_init, "{name} is the host's");
    }
    bed.end(&launch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commands_capabilities_as_root_are_inits() {
    let bed = Bed::new();
    let launch = bed.container(&SERVER);
    let init = bed.run(&launch).await;
    let outcome = bed.exec(&launch, init, &["sh", "-c", "cat /proc/self/status; cat /proc/1/status"]).await;
    let caps = |name: &str| {
        let found: Vec<_> =
            text(&outcome.stdout).lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], found[1]);
        found[0].clone()
    };
    // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT
    assert_eq!(caps("CapEff"), "CapEff:\t00000000000405fb");
    assert_eq!(caps("CapBnd"), "CapBnd:\t00000000000405fb");
    assert_eq!(caps("CapPrm"), "CapPrm:\t00000000000405fb");
    assert_eq!(caps("CapInh"), "CapInh:\t0000000000000000");
    assert_eq!(caps("CapAmb"), "CapAmb:\t0000000000000000");
    bed.end(&launch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_input_output_environment_folder_and_status() {
    let bed = Bed::new();
    let launch = bed.container(&SERVER);
    let init = bed.run(&launch).await;
    let mut wanted =
        request(&["sh", "-c", "cat; echo $PLAN$MORE; cat /proc/self/environ >/dev/null; ls -d $PWD; exit 3"]);
    wanted.stdin = vec![b'x'; 300_000];
    wanted.env = EnvVars::parse([("MORE".to_owned(), "+".to_owned()), ("PLAN".to_owned(), "max".to_owned())]).unwrap();
    wanted.cwd = Some("/tmp".into());
    let outcome = bed.runtime.exec(launch.id, init, &wanted).await.unwrap();
    assert_eq!(outcome.exit, Exit::Code(3));
    let (echoed, rest) = outcome.stdout.split_at(300_000);
    assert!(echoed.iter().all(|byte| *byte == b'x'));
    assert_eq!(text(rest), "max+\n/tmp\n");
    assert!(!outcome.truncated && !outcome.timed_out);

    let mut loud = request(&["sh", "-c", "yes | head -c 500000; echo short >&2"]);
    loud.output_max = Bytes(1000);
    let outcome = bed.runtime.exec(launch.id, init, &loud).await.unwrap();
    assert_eq!((outcome.stdout.len(), text(&outcome.stderr), outcome.truncated), (1000, "short\n", true));
    bed.end(&launch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_past_its_time_is_killed_with_its_children() {
    let bed = Bed::new();
    let launch = bed.container(&SERVER);
    let init = bed.run(&launch).await;
    let mut slow = request(&["sh", "-c", "sleep 77 & echo started; sleep 77"]);
    slow.timeout_ms = 300;
    let begun = Instant::now();
    let outcome = bed.runtime.exec(launch.id, init, &slow).await.unwrap();
    assert!(outcome.timed_out && begun.elapsed() < Duration::from_secs(20));
    assert_eq!((outcome.exit, text(&outcome.stdout)), (Exit::Signal(libc::SIGKILL), "started\n"));
    let left = bed.exec(&launch, init, &["sh", "-c", "cat /proc/[0-9]*/cmdline"]).await;
    assert!(!String::from_utf8_lossy(&left.stdout).contains("sleep\x0077"), "a sleeper is left");

    // What it leaves in the background holds its output open, and nobody waits for that.
    let outcome = bed.exec(&launch, init, &["sh", "-c", "sleep 70 & echo done"]).await;
    assert_eq!(text(&outcome.stdout), "done\n");
    assert!(begun.elapsed() < Duration::from_secs(40));
    bed.end(&launch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_exec_ends_its_command() {
    let bed = Bed::new();
    let launch = bed.container(&SERVER);
    let init = bed.run(&launch).await;
    let sleeper = request(&["sleep", "78"]);
    let exec = bed.runtime.exec(launch.id, init, &sleeper);
    assert!(tokio::time::timeout(Duration::from_millis(300), exec).await.is_err());
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        let left = bed.exec(&launch, init, &["sh", "-c", "cat /proc/[0-9]*/cmdline"]).await;
        if !String::from_utf8_lossy(&left.stdout).contains("sleep\x0078") {
            break;
        }
        assert!(Instant::now() < deadline, "the sleeper is left");
    }
    bed.end(&launch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_be_executed_is_named() {
    let bed = Bed::new();
    let refused = |error: RuntimeError, name: &str| {
        let RuntimeError::NotExecutable { message, .. } = &error else { panic!("{error}") };
        assert!(message.contains(name), "{message}");
    };
    let launch = bed.container(&["/bin/nope"]);
    bed.runtime.prepare(&launch).await.unwrap();
    refused(bed.runtime.create(launch.id).await.unwrap_err(), "`/bin/nope`: No such file");
    bed.assert_nothing_left(launch.id).await;

    // Its interpreter is what is missing: that shows only at execve.
    let launch = bed.container(&["/srv/script"]);
    fs::write(launch.rootfs.join("srv/script"), "#!/bin/python9\n").unwrap();
    fs::set_permissions(launch.rootfs.join("srv/script"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    bed.runtime.prepare(&launch).await.unwrap();
    bed.runtime.create(launch.id).await.unwrap();
    refused(bed.runtime.start(launch.id).await.unwrap_err(), "`/srv/script`: No such file");
    bed.assert_nothing_left(launch.id).await;

    let launch = bed.container(&SERVER);
    let init = bed.run(&launch).await;
    for (program, why) in [("nope", "No such file"), ("/etc/passwd", "Permission denied"), ("/etc", "Is a directory")] {
        let error = bed.runtime.exec(launch.id, init, &request(&[program])).await.unwrap_err();
        refused(error, &format!("`{program}`: {why}"));
    }
    bed.end(&launch).await;
    let error = bed.runtime.exec(launch.id, init, &request(&["true"])).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotRunning(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exact_end_of_init_is_known() {
    let bed = Bed::new();
    let launch = bed.container(&["sh", "-c", "exit 42"]);
    let init = bed.run(&launch).await;
    assert_eq!(bed.runtime.wait(init).await, Exit::Code(42));
    assert_eq!(bed.runtime.wait(init).await, Exit::Code(42), "asked again");
    bed.end(&launch).await;

    let launch = bed.container(&["sleep", "60"]);
    let init = bed.run(&launch).await;
    assert_eq!(bed.runtime.signal(init, libc::SIGTERM).unwrap(), Delivery::Ignored, "sleep has no handler");
    assert_eq!(bed.runtime.signal(init, libc::SIGKILL).unwrap(), Delivery::Sent);
    assert_eq!(bed.runtime.wait(init).await, Exit::Signal(libc::SIGKILL));
    bed.end(&launch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_at_once_all_start() {
    let bed = Bed::new();
    let launches: Vec<Launch> = (0..8).map(|_| bed.container(&SERVER)).collect();
    let inits = futures_util::future::join_all(launches.iter().map(|launch| bed.run(launch))).await;
    for (launch, init) in launches.iter().zip(&inits) {
        assert_eq!(bed.exec(launch, *init, &["true"]).await.exit, Exit::Code(0));
    }
    assert_eq!(bed.runtime.list().await.unwrap().len(), 8);
    futures_util::future::join_all(launches.iter().map(|launch| bed.end(launch))).await;
}

/// The step up to which a start goes before its helper is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Prepared,
    Created,
}

async fn go_to(bed: &Bed, launch: &Launch, step: Step) -> (i32, Option<Init>) {
    let pins = bed.runtime.prepare(launch).await.unwrap();
    let helper = pins.net.components().nth(2).unwrap().as_os_str().to_str().unwrap().parse().unwrap();
    match step {
        Step::Prepared => (helper, None),
        Step::Created => (helper, Some(bed.runtime.create(launch.id).await.unwrap())),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_helper_leaves_nothing_after_remove() {
    let bed = Bed::new();
    for step in [Step::Prepared, Step::Created] {
        let launch = bed.container(&SERVER);
        let (helper, init) = go_to(&bed, &launch, step).await;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(helper), nix::sys::signal::Signal::SIGKILL).unwrap();
        let next = match step {
            Step::Prepared => bed.runtime.create(launch.id).await.map(|_| ()),
            Step::Created => bed.runtime.start(launch.id).await,
        };
        assert!(matches!(next, Err(RuntimeError::Helper { .. })), "{next:?}");
        bed.end(&launch).await;
        assert!(!init.is_some_and(|init| bed.runtime.is_alive(init)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_killed_at_any_moment_leaves_nothing_after_remove() {
    let bed = Bed::new();
    for delay_us in (0..40_000).step_by(1_700) {
        let launch = bed.container(&SERVER);
        let start = async {
            bed.runtime.prepare(&launch).await?;
            bed.runtime.create(launch.id).await?;
            bed.runtime.start(launch.id).await
        };
        // A start whose caller goes away has its helper killed wherever it is.
        let _ = tokio::time::timeout(Duration::from_micros(delay_us), start).await;
        bed.end(&launch).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_killed_at_work_is_noticed_at_once() {
    let bed = Bed::new();
    for delay_us in (0..30_000).step_by(2_300) {
        let launch = bed.container(&SERVER);
        let (helper, _) = go_to(&bed, &launch, Step::Prepared).await;
        let kill = async {
            tokio::time::sleep(Duration::from_micros(delay_us)).await;
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(helper), nix::sys::signal::Signal::SIGKILL);
        };
        let begun = Instant::now();
        let (_, ()) = tokio::join!(bed.runtime.create(launch.id), kill);
        assert!(begun.elapsed() < Duration::from_secs(10), "killed after {delay_us} us");
        bed.end(&launch).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_start_leaves_nothing() {
    let bed = Bed::new();
    for step in [Step::Prepared, Step::Created] {
        let launch = bed.container(&SERVER);
        let (_, init) = go_to(&bed, &launch, step).await;
        bed.end(&launch).await;
        assert!(!init.is_some_and(|init| bed.runtime.is_alive(init)), "{step:?}");
    }
}

/// Speaks to a helper as a daemon would that then goes away, which a session, when dropped, does not do: it kills.
#[tokio::test(flavor = "multi_thread")]
async fn a_helper_whose_daemon_goes_away_undoes_everything() {
    use std::io::{BufRead, BufReader, Write};
    let bed = Bed::new();
    for steps in [0, 1] {
        let launch = bed.container(&SERVER);
        let run = bed.folder.path().join("run");
        // Through a shell: a helper of ours that no runtime knows would be taken for a lost one's orphan.
        let mut helper = std::process::Command::new("/bin/sh")
            .args(["-c", "\"$0\" runtime start; exit $?", env!("CARGO_BIN_EXE_tenantry")])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = helper.stdin.take().unwrap();
        let mut output = BufReader::new(helper.stdout.take().unwrap()).lines();
        let places = serde_json::json!({
            "dir": run.join("containers").join(launch.id.to_string()), "seccomp_cache": run.join("seccomp")
        });
        let prepare = serde_json::json!({"prepare": {"launch": launch, "places": places}});
        writeln!(input, "{prepare}").unwrap();
        assert!(output.next().unwrap().unwrap().starts_with(r#"{"prepared""#));
        if steps == 1 {
            writeln!(input, r#""create""#).unwrap();
            assert!(output.next().unwrap().unwrap().starts_with(r#"{"created""#));
            assert!(!bed.cgroups.folders(launch.id).is_empty());
        }
        drop(input);
        assert!(helper.wait().unwrap().success());
        bed.assert_nothing_left(launch.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_that_hangs_or_talks_nonsense_is_killed() {
    let folder = Folder::new();
    let launch = Launch {
        id: ContainerId::generate(),
        bundle: PathBuf::from("/nonexistent"),
        rootfs: PathBuf::from("/nonexistent"),
        first_id: FIRST_ID,
        log: PathBuf::from("/nonexistent"),
    };
    let bodies = [
        ("read line; echo '{\"what\":1}'; sleep 60", "speak to"),
        ("read line; exit 3", "speak to"),
        ("read line; echo '\"started\"'", "understand"),
    ];
    // All before any is executed: what another test forks meanwhile holds a file that is open for writing, and such a one is not
    // executed (ETXTBSY, execve(2)).
    let scripts = [0, 1, 2].map(|n| folder.path().join(format!("helper-{n}")));
    for (script, (body, _)) in scripts.iter().zip(bodies) {
        fs::write(script, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    for (script, (_, wanted)) in scripts.iter().zip(bodies) {
        let runtime = HelperRuntime::with_helper(&folder.path().join("run"), script).unwrap();
        let begun = Instant::now();
        let error = runtime.prepare(&launch).await.unwrap_err();
        assert!(matches!(&error, RuntimeError::Helper { action, .. } if *action == wanted), "{error:?}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        runtime.remove(launch.id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_folder_above_the_runtime_is_named() {
    let bed = Bed::new();
    let launch = bed.container(&SERVER);
    fs::set_permissions(bed.folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    bed.runtime.prepare(&launch).await.unwrap();
    let error = bed.runtime.create(launch.id).await.unwrap_err();
    assert!(error.to_string().contains("others may not pass"), "{error}");
    bed.end(&launch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_exec_helper_does_not_keep_its_container_from_dying() {
    let bed = Bed::new();
    let launch = bed.container(&SERVER);
    let init = bed.run(&launch).await;
    let marker = "sleep\x0081234\0";
    let sleeper = request(&["sleep", "81234"]);
    let killed = async {
        let parent = loop {
            let found = fs::read_dir("/proc").unwrap().flatten().find(|process| {
                fs::read_to_string(process.path().join("cmdline")).is_ok_and(|cmdline| cmdline == marker)
            });
            match found {
                Some(process) => break fs::read_to_string(process.path().join("stat")).unwrap(),
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let parent = parent.rsplit(')').next().unwrap().split(' ').nth(2).unwrap().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(parent), nix::sys::signal::Signal::SIGKILL).unwrap();
    };
    let (outcome, ()) = tokio::join!(bed.runtime.exec(launch.id, init, &sleeper), killed);
    assert!(matches!(outcome, Err(RuntimeError::Helper { .. })), "{outcome:?}");
    assert_eq!(bed.runtime.signal(init, libc::SIGKILL).unwrap(), Delivery::Sent);
    let ended = tokio::time::timeout(Duration::from_secs(2), bed.runtime.wait(init)).await;
    assert_eq!(ended, Ok(Exit::Signal(libc::SIGKILL)));
    bed.end(&launch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_cannot_loosen_its_own_bonds() {
    let bed = Bed::new();
    let launch = bed.container(&SERVER);
    let init = bed.run(&launch).await;
    let refused = [
        "mount -t tmpfs none /tmp",
        "mount -o remount,rw /sys",
        "cd /sys/fs/cgroup/memory || cd /sys/fs/cgroup; mkdir mine",
        "cd /sys/fs/cgroup/pids || cd /sys/fs/cgroup; echo 1 > cgroup.procs",
        "cd /sys/fs/cgroup/memory && echo 999999999 > memory.limit_in_bytes",
        "cd /sys/fs/cgroup/memory || cd /sys/fs/cgroup; [ -f memory.max ] && echo max > memory.max",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "echo c > /proc/sysrq-trigger",
        "echo x > /proc/sys/kernel/core_pattern",
        "head -c 1 /proc/kcore | grep -q .",
        "mknod /tmp/disk b 259 0 && head -c 1 /tmp/disk",
        "unshare -U true",
        "unshare -m true",
        "chroot /proc/1/root/../../.. ls /work",
        "hostname changed",
        "ip link add dummy0 type dummy",
    ];
    for attempt in refused {
        let outcome = bed.exec(&launch, init, &["/bin/busybox", "sh", "-c", attempt]).await;
        assert_ne!(outcome.exit, Exit::Code(0), "{attempt}: {}", text(&outcome.stdout));
    }
    // A device file in the image is a file like any other.
    let device = launch.rootfs.join("srv/null");
    let made = std::process::Command::new("mknod").arg("-m666").arg(&device).args(["c", "1", "3"]).status().unwrap();
    assert!(made.success());
    let outcome = bed.exec(&launch, init, &["sh", "-c", "echo x > /srv/null"]).await;
    assert_ne!(outcome.exit, Exit::Code(0), "a device file of the image works");
    bed.end(&launch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_an_earlier_daemon_is_adopted_and_removed() {
    let bed = Bed::new();
    let launch = bed.container(&SERVER);
    let init = bed.run(&launch).await;
    // Nothing of a runtime lies in its memory alone.
    let helper = Path::new(env!("CARGO_BIN_EXE_tenantry"));
    let next = HelperRuntime::with_helper(&bed.folder.path().join("run"), helper).unwrap();
    assert_eq!(next.list().await.unwrap(), [launch.id]);
    assert!(next.is_alive(init));
    assert_eq!(next.exec(launch.id, init, &request(&["true"])).await.unwrap().exit, Exit::Code(0));
    next.remove(launch.id).await.unwrap();
    assert!(!next.is_alive(init));
    bed.end(&launch).await;
}

/// The bundle as it lies there, without anything of ours: no pinned namespaces, no idmapped rootfs.
#[test]
fn runc_takes_the_same_bundle() {
    use std::process::Command;
    if Command::new("runc").arg("--version").output().is_err() {
        panic!("runc is needed");
    }
    let bed = Bed::new();
    let launch = bed.container(&["sh", "-c", "id -u; cat /proc/self/uid_map; env; cat /proc/self/status"]);
    // runc 1.1 has no idmapped mounts: shift the files themselves.
    let owner = format!("{FIRST_ID}:{FIRST_ID}");
    assert!(Command::new("chown").args(["-hR", &owner]).arg(&launch.rootfs).status().unwrap().success());
    let output = Command::new("runc")
        .arg("--root")
        .arg(bed.folder.path().join("runc"))
        .args(["run", "--bundle"])
        .arg(&launch.bundle)
        .arg(launch.id.to_string())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = text(&output.stdout);
    for wanted in ["0\n", "PLAN=pro", &FIRST_ID.to_string(), "Seccomp:\t2", "NoNewPrivs:\t1", "00000000000405fb"] {
        assert!(said.contains(wanted), "{wanted:?} is not in {said}");
    }
    bed.cgroups.remove(launch.id);
}
