//! The command line, as a person and a script meet it: the binary against a real daemon.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::daemon::{API, Daemon, play};

/// What a command said, and how it ended.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    #[track_caller]
    fn well(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    #[track_caller]
    fn json(self) -> Value {
        serde_json::from_str(&self.well()).unwrap()
    }

    /// Holds that it failed with this exit code, and said this on standard error alone.
    #[track_caller]
    fn failed(&self, code: i32, text: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.err.contains(text) && self.out.is_empty(), "{self:?}");
    }
}

/// The binary with the daemon's own configuration, as on the host it runs on.
fn command(daemon: &Daemon, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenantry"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TENANTRY_")) {
        command.env_remove(name);
    }
    command.env("TENANTRY_CONFIG", daemon.scratch().join("config.toml")).env("NO_COLOR", "1");
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn said(child: Child) -> Said {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs a command line; words have no spaces.
fn run(daemon: &Daemon, line: &str) -> Said {
    let args: Vec<_> = line.split(' ').collect();
    said(command(daemon, &args).spawn().unwrap())
}

fn run_with_input(daemon: &Daemon, args: &[&str], input: &str) -> Said {
    let mut child = command(daemon, args).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    said(child)
}

#[test]
fn a_newcomer_gets_from_a_project_to_a_deleted_tenant() {
    play(async |daemon| {
        run(daemon, "container list").failed(2, "tenantry project create");
        run(daemon, "project create shop --max-containers 3 --memory 128MiB").well();
        let shown = run(daemon, "container create template --template --env PLAN=free").well();
        assert!(shown.contains("running") && shown.contains("memory=128.00MiB"), "{shown}");
        let url = shown.lines().find_map(|line| line.trim().strip_prefix("url ")).unwrap().trim().to_owned();
        assert!(url.starts_with("http://"), "{shown}");
        let id = run(daemon, "container copy template acme --external-id cus_1 --label plan=pro -q").well();
        assert_eq!(id.trim().len(), 24);
        let listed = run(daemon, "container list --label plan=pro").well();
        assert_eq!(listed.lines().count(), 2, "{listed}");
        assert!(listed.contains("NAME") && listed.contains("acme"), "{listed}");
        for (verb, status) in [
            ("pause", "paused"),
            ("resume", "running"),
            ("stop", "stopped"),
            ("start", "running"),
            ("force-stop", "stopped"),
        ] {
            let said = run(daemon, &format!("container {verb} acme")).well();
            assert_eq!(said, format!("acme is {status}\n"));
        }
        let updated = run(daemon, "container update acme --label plan=max --comment hello --json").json();
        assert_eq!((&updated["labels"]["plan"], &updated["comment"]), (&"max".into(), &"hello".into()));
        assert_eq!(updated["external_id"], "cus_1");
        let receipt = run(daemon, "container delete acme --erased -q").well();
        let receipt = run(daemon, &format!("receipt show {} --json", receipt.trim())).json();
        assert_eq!(receipt["state"], "complete");
        let gone = run(daemon, "project delete shop").well();
        assert!(gone.starts_with("shop is deleted"), "{gone}");
        assert_eq!(run(daemon, "project list -q").well(), "");
        let doctor = run(daemon, "doctor").well();
        assert!(doctor.contains("leaks: none"), "{doctor}");
    });
}

#[test]
fn a_command_inside_has_its_input_its_output_and_its_exit_code() {
    play(async |daemon| {
        run(daemon, "project create shop").well();
        run(daemon, "container create acme").well();
        let script = ["container", "exec", "acme", "--", "sh", "-c", "cat; echo oops >&2; exit 7"];
        let said = run_with_input(daemon, &script, "select 1\n");
        assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (7, "select 1\n", "oops\n"));
        run(daemon, "container exec acme -- nosuch").failed(1, "COMMAND_NOT_EXECUTABLE");
        run(daemon, "container exec acme --timeout 1 -- sleep 9").failed(137, "took too long");
        let set = run(daemon, "container env set acme PLAN=pro").well();
        assert_eq!(set, "PLAN=pro\n");
        let seen = run(daemon, "container env set acme SEATS=5 --restart").well();
        assert_eq!(seen, "PLAN=pro\nSEATS=5\n");
        assert!(run(daemon, "container exec acme -- env").well().lines().any(|line| line == "PLAN=pro"));
        run(daemon, "container env unset acme PLAN").well();
        run(daemon, "container env unset acme PLAN").failed(1, "ENV_KEY_NOT_FOUND");
        let stats = run(daemon, "container stats acme").well();
        assert!(stats.contains("of a core") && stats.contains("KiB of"), "{stats}");
    });
}

#[test]
fn exit_codes_tell_refused_from_usage_from_unreachable() {
    play(async |daemon| {
        run(daemon, "project create shop").well();
        run(daemon, "project create shop").failed(1, "PROJECT_ALIAS_IN_USE");
        run(daemon, "container show nobody").failed(1, "there is no container `nobody`");
        run(daemon, "container create ab").failed(1, "INVALID_CONTAINER_NAME");
        run(daemon, "container stats").failed(2, "required arguments");
        run(daemon, "container update nobody").failed(2, "nothing to change");
        run(daemon, "project update shop").failed(2, "nothing to change");
        run(daemon, "project create").failed(2, "required arguments");
        run(daemon, "--url https://x project list").failed(2, "http://");
        run(daemon, "--url http://127.0.0.1:9 --token x project list").failed(3, "cannot reach the daemon");
        run(daemon, &format!("--url {API} --token nope project list")).failed(1, "INVALID_TOKEN");
        run(daemon, &format!("--url {API} project list")).failed(1, "MISSING_TOKEN");
        let secret = run(daemon, "token create viewer --permission read_only -q").well();
        let viewer = format!("--token {} project", secret.trim());
        assert!(run(daemon, &format!("{viewer} list")).well().contains("shop"));
        run(daemon, &format!("{viewer} delete shop")).failed(1, "INSUFFICIENT_PERMISSIONS");
        // The argument is no token to present.
        run(daemon, "token delete viewer").well();
        run(daemon, &format!("{viewer} list")).failed(1, "INVALID_TOKEN");
        run(daemon, "config check").well();
        run(daemon, "--config /nonexistent.toml config check").failed(2, "/nonexistent.toml");
    });
}

#[test]
fn a_url_is_closed_and_opened_again() {
    play(async |daemon| {
        run(daemon, "project create shop").well();
        run(daemon, "container create acme").well();
        let open = run(daemon, "access show acme").well();
        assert!(open.contains("allow"), "{open}");
        let set = ["access", "password", "acme", "staff", "--user", "ada"];
        let closed = run_with_input(daemon, &set, "correct horse\n").well();
        assert!(closed.contains("deny") && closed.contains("ada") && !closed.contains("horse"), "{closed}");
        run_with_input(daemon, &set, "short\n").failed(1, "password");
        run_with_input(daemon, &["access", "token", "acme", "ci", "--param", "key"], &"x".repeat(16)).well();
        run(daemon, "access ip acme office 192.0.2.0/24").well();
        run(daemon, "access ip acme office everywhere").failed(1, "range");
        run(daemon, "access default acme maybe").failed(2, "maybe");
        let shown = run(daemon, "access remove acme ci --json").json();
        let names: Vec<_> = shown["groups"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["office", "staff"]);
        let document =
            r#"{"default":"deny","groups":{"a":{"type":"ip","range":"::1"}},"permissions":{"a":{"http":8080}}}"#;
        let set = run_with_input(daemon, &["access", "set", "acme", "--json"], document).json();
        assert_eq!(set["permissions"]["a"]["http"], "8080");
        assert!(run(daemon, "access clear acme").well().contains("allow"));
    });
}

/// A root filesystem with a busybox and a script, as a tar.
fn rootfs_tar(to: &Path) {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists()).unwrap();
    let mut tar = tar::Builder::new(fs::File::create(to).unwrap());
    tar.append_path_with_name(busybox, "bin/busybox").unwrap();
    tar.finish().unwrap();
}

#[test]
fn an_image_is_imported_from_a_tar_and_from_a_layouts_folder() {
    play(async |daemon| {
        let scratch = daemon.scratch().to_owned();
        let path = |name: &str| scratch.join(name).display().to_string();
        rootfs_tar(&scratch.join("rootfs.tar"));
        let image = run(daemon, &format!("image import {} --name crm:1 --json", path("rootfs.tar"))).json();
        assert_eq!(image["name"], "crm:1");
        let listed = run(daemon, "image list").well();
        assert!(listed.contains("crm:1") && listed.contains("MiB"), "{listed}");

        layout(&scratch.join("oci"), &fs::read(scratch.join("rootfs.tar")).unwrap());
        run(daemon, &format!("image import {} --name crm:2", path("oci"))).well();
        run(daemon, "project create shop").well();
        let made = run(daemon, "container create acme --image crm:2 --wait started --json").json();
        assert_eq!((&made["container_image"], &made["status"]), (&"crm:2".into(), &"running".into()));
        let env = run(daemon, "container exec acme -- /bin/busybox env").well();
        assert!(env.lines().any(|line| line == "GREETING=hello"), "{env}");

        run(daemon, "image delete crm:2").failed(1, "IMAGE_IN_USE");
        run(daemon, "image delete crm:1").well();
        run(daemon, &format!("image import {} --name x", path("nope.tar"))).failed(2, "there is no file or folder");
        run(daemon, &format!("image import {} --name x", path("data"))).failed(2, "no OCI image layout");
        fs::write(scratch.join("text"), "hello".repeat(400)).unwrap();
        let refused = run(daemon, &format!("image import {} --name x", path("text")));
        refused.failed(1, "is no tar");
        assert!(!refused.err.contains("uploads"), "where the daemon put it is not told: {refused:?}");
    });
}

/// An OCI image layout of one layer.
fn layout(folder: &Path, layer: &[u8]) {
    use sha2::Digest;
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = hex::encode(sha2::Sha256::digest(bytes));
        fs::write(blobs.join(&digest), bytes).unwrap();
        (format!("sha256:{digest}"), bytes.len())
    };
    let json = |value: Value| put(value.to_string().as_bytes());
    let (layer, layer_size) = put(layer);
    let (config, config_size) = json(serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": { "Cmd": ["/bin/busybox", "sleep", "1000"], "Env": ["GREETING=hello"] },
        "rootfs": { "type": "layers", "diff_ids": [layer] }
    }));
    let (manifest, manifest_size) = json(serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size }]
    }));
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [
        { "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": manifest_size }
    ]});
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[test]
fn a_way_out_is_set_from_the_command_line() {
    play(async |daemon| {
        run(daemon, "project create shop").well();
        run(daemon, "container create acme").well();
        let none = run(daemon, "network show acme --json").json();
        assert_eq!((&none["type"], &none["enabled"]), (&serde_json::Value::Null, &false.into()));
        let set = "network set acme --type socks5 --proxy socks5://user:hunter2@192.0.2.7:1080 --dns-server 192.0.2.53";
        let shown = run(daemon, set).well();
        assert!(shown.contains("socks5://192.0.2.7:1080") && !shown.contains("hunter2"), "{shown}");
        run(daemon, "network stop acme").well();
        let off = run(daemon, "network show acme --json").json();
        assert_eq!((&off["type"], &off["enabled"]), (&"socks5".into(), &false.into()));
        assert_eq!((&off["proxy_credentials"], &off["dns_servers"][0]), (&true.into(), &"192.0.2.53".into()));
        run(daemon, "network start acme").well();
        run(daemon, "network set acme --type http").failed(1, "VALIDATION_ERROR");
        run(daemon, "network clear acme").well();
        run(daemon, "network start acme").failed(1, "NETWORK_NOT_CONFIGURED");
    });
}

#[test]
fn rules_are_kept_from_the_command_line() {
    play(async |daemon| {
        run(daemon, "project create shop").well();
        run(daemon, "container create acme").well();
        let added =
            run(daemon, "firewall add acme egress --action reject --protocol tcp --port 25,465 --description no-mail")
                .well();
        assert!(added.contains("egress") && added.contains("25,465") && added.contains("no-mail"), "{added}");
        let again = run(daemon, "firewall add acme egress --action reject --protocol tcp --port 465,25");
        assert!(again.err.contains("there already"), "{again:?}");
        run(daemon, "firewall add acme ingress --action allow --peer 192.0.2.0/24 --disabled").well();
        let listed = run(daemon, "firewall list acme").well();
        assert_eq!(listed.lines().count(), 3, "{listed}");
        assert!(
            listed.contains("DIRECTION") && listed.contains("disabled") && listed.contains("192.0.2.0/24"),
            "{listed}"
        );
        run(daemon, "firewall enable acme ingress --peer 192.0.2.0/24").well();
        run(daemon, "firewall disable acme egress --port 25,465").well();
        let json = run(daemon, "firewall list acme --json").json();
        assert_eq!(
            (&json["ingress"][0]["state"], &json["egress"][0]["state"]),
            (&"enabled".into(), &"disabled".into())
        );
        let effective = run(daemon, "firewall effective acme").well();
        assert!(effective.contains("the kernel agrees") && effective.contains("policy"), "{effective}");
        run(daemon, "firewall remove acme egress").failed(1, "VALIDATION_ERROR");
        run(daemon, "firewall remove acme egress --port 26").failed(1, "FIREWALL_RULE_NOT_FOUND");
        run(daemon, "firewall remove acme egress --port 25,465").well();
        assert!(run(daemon, "firewall reset acme").well().contains("1 rules removed"));
        run(daemon, "firewall add acme egress").failed(1, "VALIDATION_ERROR");
    });
}

#[test]
fn a_log_is_followed_until_its_container_is_deleted() {
    play(async |daemon| {
        run(daemon, "project create shop").well();
        let script = "for n in 1 2 3; do echo before $n; done; while sleep 0.2; do echo after; done";
        let create = ["container", "create", "acme", "--wait", "started", "--", "/bin/sh", "-c", script];
        said(command(daemon, &create).spawn().unwrap()).well();
        let mut follower = command(daemon, &["container", "logs", "acme", "--follow"]).spawn().unwrap();
        let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
        let first: Vec<_> = lines.by_ref().take(5).map(Result::unwrap).collect();
        assert_eq!(first, ["before 1", "before 2", "before 3", "after", "after"]);
        run(daemon, "container delete acme").well();
        assert!(lines.all(|line| line.unwrap() == "after"));
        let ended = said(follower);
        assert_eq!(ended.code, 0, "{ended:?}");
        assert!(ended.err.contains("the container was deleted"), "{ended:?}");
    });
}
