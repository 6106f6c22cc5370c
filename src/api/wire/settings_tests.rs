use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::api::extract::from_json;
use crate::domain::container::{
    COMMAND_BYTES_MAX, COMMAND_WORDS_MAX, COMMENT_CHARS_MAX, EnvChange, LABELS_MAX, LabelChange,
};
use crate::domain::{CpuMillis, Secret};

fn create(body: Value) -> Result<(NewContainer, Vec<String>), ApiError> {
    from_json::<CreateContainer>(body.to_string().as_bytes())?.into_request()
}

fn change(body: Value, maps: Maps) -> Result<ContainerPatch, ApiError> {
    from_json::<ChangeContainer>(body.to_string().as_bytes())?.into_request(maps).map(|(patch, _)| patch)
}

fn copy(body: Value) -> Result<(NewCopy, Vec<String>), ApiError> {
    from_json::<CopyContainer>(body.to_string().as_bytes())?.into_request()
}

fn texts<const N: usize>(pairs: [(&str, Option<&str>); N]) -> Texts {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.map(str::to_owned))).collect()
}

fn bad_fields() -> Vec<(&'static str, Value)> {
    let long = "x".repeat(COMMENT_CHARS_MAX + 1);
    vec![
        ("comment", json!(long)),
        ("comment", json!(7)),
        ("color", json!("red")),
        ("color", json!("#12345g")),
        ("color", json!("#1234567")),
        ("color", json!("#éé12")),
        ("command", json!("sh")),
        ("command", json!([""])),
        ("command", json!(["a\u{0}b"])),
        ("command", json!(vec!["x"; COMMAND_WORDS_MAX + 1])),
        ("command", json!(["x".repeat(COMMAND_BYTES_MAX)])),
        ("command[1]", json!(["sh", 1])),
        ("port", json!(0)),
        ("port", json!(65_536)),
        ("port", json!(-1)),
        ("port", json!("80")),
        ("port", json!(80.5)),
        ("environment_vars.PORT", json!({"PORT": 1})),
        ("environment_vars", json!(["A=1"])),
        ("limits.cpu", json!({"cpu": 0})),
        ("limits.cpu", json!({"cpu": 0.0001})),
        ("limits.cpu", json!({"cpu": 4096.1})),
        ("limits.cpu", json!({"cpu": -1})),
        ("limits.cpu", json!({"cpu": "1"})),
        ("limits.memory", json!({"memory": 0})),
        ("limits.memory", json!({"memory": 1.5})),
        ("limits.memory", json!({"memory": "1GiB"})),
        ("limits.memory", json!({"memory": u64::MAX})),
        ("limits.disk", json!({"disk": -5})),
        ("limits.ramdisk", json!({"ramdisk": 0})),
        ("limits.pids", json!({"pids": 0})),
        ("limits.pids", json!({"pids": 1u64 << 33})),
        ("limits.disk_read_bps", json!({"disk_read_bps": 0})),
        ("limits.disk_write_bps", json!({"disk_write_bps": 0})),
        ("limits.net_rx_bps", json!({"net_rx_bps": 0})),
        ("limits.net_tx_bps", json!({"net_tx_bps": 0})),
        ("limits.swap", json!({"swap": 1})),
        ("limits", json!([])),
        ("firewall_policy", json!("../web")),
        ("firewall_policy", json!(".hidden")),
        ("firewall_policy", json!("")),
        ("idle_timeout", json!(0)),
        ("idle_timeout", json!(-1)),
        ("external_id", json!("")),
        ("external_id", json!("a\nb")),
        ("external_id", json!("x".repeat(256))),
        ("template", json!("yes")),
        ("labels.a:b", json!({"a:b": "1"})),
        ("labels.a=b", json!({"a=b": "1"})),
        ("labels.", json!({"": "1"})),
        ("labels.a", json!({"a": "x".repeat(256)})),
        ("labels.a", json!({"a": 1})),
        ("labels", json!((0..=LABELS_MAX).map(|n| (n.to_string(), "v")).collect::<BTreeMap<_, _>>())),
        ("deletion_protection", json!(1)),
        ("autostart", json!("false")),
        ("ramdisk", json!(64)),
        ("ssh_public_key", json!("hello")),
        ("ssh_public_key", json!("ssh-ed25519")),
        ("ssh_public_key", json!("ssh-ed25519 AAAA\nssh-ed25519 BBBB")),
        ("ssh_public_key", json!("command=\"sh\" ssh-ed25519 AAAA")),
        ("ssh_public_key", json!(format!("ssh-rsa {}", "A".repeat(8_192)))),
        ("colour", json!("#aabbcc")),
    ]
}

#[test]
fn every_bad_field_is_refused_by_its_name_in_every_body() {
    for (field, value) in bad_fields() {
        let key = field.split(['.', '[']).next().unwrap();
        let body = json!({ key: value });
        let errors = [
            create(body.clone()).map(drop),
            copy(body.clone()).map(drop),
            change(body.clone(), Maps::Merge).map(drop),
            change(body.clone(), Maps::Replace).map(drop),
        ];
        for error in errors {
            let error = error.expect_err(field);
            assert_eq!((error.status().as_u16(), error.code()), (400, "VALIDATION_ERROR"), "{field}");
            assert_eq!(error.field(), Some(field), "{}", error.message());
        }
    }
}

#[test]
fn environment_errors_have_codes_of_their_own() {
    for (vars, code) in [
        (json!({"2A": "x"}), "INVALID_ENV_KEY"),
        (json!({"A-B": "x"}), "INVALID_ENV_KEY"),
        (json!({"TENANTRY_ID": "x"}), "RESERVED_ENV_PREFIX"),
        (json!({"A": "x".repeat(65_537)}), "INVALID_ENV_VALUE"),
        (json!((0..257).map(|n| (format!("K{n}"), "v")).collect::<BTreeMap<_, _>>()), "TOO_MANY_ENV_VARS"),
    ] {
        let body = json!({ "environment_vars": vars });
        assert_eq!(create(body.clone()).unwrap_err().code(), code);
        assert_eq!(change(body, Maps::Merge).unwrap_err().code(), code);
    }
    let both = "{\"environment_vars\": {}, \"env_vars\": {}}";
    assert!(from_json::<CreateContainer>(both.as_bytes()).is_err());
}

#[test]
fn bad_names_have_the_contracts_code() {
    for bad in ["ab", "a b c", "acmé", "a/b"] {
        for error in [
            create(json!({ "name": bad })).map(drop),
            copy(json!({ "name": bad })).map(drop),
            change(json!({ "name": bad }), Maps::Merge).map(drop),
        ] {
            let error = error.unwrap_err();
            assert_eq!(
                (error.status().as_u16(), error.code(), error.field()),
                (400, "INVALID_CONTAINER_NAME", Some("name"))
            );
        }
    }
    for random in [json!({}), json!({"name": null}), json!({"name": "rand"}), json!({"name": ""})] {
        assert_eq!(create(random).unwrap().0.name, None);
    }
}

#[test]
fn a_whole_create_body_becomes_the_request() {
    let (new, warnings) = create(json!({
        "server_id": null, "name": "acme-1", "color": "#00ffAA", "container_image": "base",
        "environment_vars": {"PLAN": "pro"}, "ssh_public_key": "ssh-ed25519 AAAAC3+/x== me@host\n",
        "comment": "hi", "autostart": false, "ramdisk": null, "command": ["/app", ""], "port": 3000,
        "limits": {"cpu": 0.25, "memory": 67108864, "pids": null}, "firewall_policy": "web",
        "idle_timeout": null, "external_id": "cus_1", "template": true, "labels": {"plan": "pro"},
        "deletion_protection": true, "start": false, "ai": true, "kvm": false, "realm_ids": ["a"], "prespawn": null
    }))
    .unwrap();
    assert_eq!(new.name.unwrap().as_str(), "acme-1");
    assert_eq!((new.image.as_deref(), new.start), (Some("base"), false));
    assert_eq!(new.external_id.unwrap().as_str(), "cus_1");
    let settings = new.settings;
    assert_eq!(settings.limits.cpu, Some(Some(CpuMillis(250))));
    assert_eq!((settings.limits.pids, settings.limits.disk), (Some(None), None));
    assert_eq!((settings.autostart, settings.ramdisk, settings.idle_timeout_s), (Some(false), None, Some(None)));
    assert_eq!(settings.ssh_public_key, Some(Some("ssh-ed25519 AAAAC3+/x== me@host".to_owned())));
    assert!(matches!(settings.env, EnvChange::Replace(vars) if vars.len() == 1));
    assert_eq!(warnings, ["ai is accepted and not acted on", "realm_ids is accepted and not acted on"]);
}

#[test]
fn an_empty_body_asks_for_the_defaults() {
    let (new, warnings) = create(json!({})).unwrap();
    assert_eq!(new, NewContainer { start: true, ..NewContainer::default() });
    assert!(warnings.is_empty());
    assert_eq!(change(json!({}), Maps::Merge).unwrap(), ContainerPatch::default());
}

#[test]
fn a_patch_merges_maps_and_a_put_replaces_them() {
    let body = json!({"labels": {"a": null, "c": "3"}, "env_vars": {"A": null, "B": "2"}});
    let patch = change(body, Maps::Merge).unwrap().settings;
    assert_eq!(patch.labels, LabelChange::Merge(texts([("a", None), ("c", Some("3"))])));
    let EnvChange::Merge(vars) = patch.env else { panic!("not a merge") };
    let vars: Vec<_> = vars.iter().map(|(key, value)| (key.as_str(), value.as_ref().map(Secret::reveal))).collect();
    assert_eq!(vars, [("A", None), ("B", Some("2"))]);

    let put = change(json!({"labels": {"c": "3"}, "environment_vars": {"B": "2"}}), Maps::Replace).unwrap();
    assert_eq!(put.settings.labels, LabelChange::Replace(BTreeMap::from([("c".into(), "3".into())])));
    assert!(matches!(put.settings.env, EnvChange::Replace(vars) if vars.len() == 1));
    for map in ["environment_vars", "labels"] {
        let null = change(json!({ map: {"B": null} }), Maps::Replace).unwrap_err();
        assert_eq!(null.field(), Some(format!("{map}.B").as_str()));
    }
    for maps in [Maps::Merge, Maps::Replace] {
        let none = change(json!({"labels": null}), maps).unwrap().settings.labels;
        assert_eq!(none, LabelChange::Replace(BTreeMap::new()), "null empties the map");
    }
    assert_eq!(copy(json!({"labels": null})).unwrap().0.settings.labels, LabelChange::Keep);
}

#[test]
fn null_empties_what_can_be_empty_and_is_refused_elsewhere() {
    let patch = change(json!({"comment": null, "color": null, "idle_timeout": null, "external_id": null}), Maps::Merge)
        .unwrap();
    assert_eq!((patch.settings.comment, patch.settings.color), (Some(None), Some(None)));
    assert_eq!((patch.settings.idle_timeout_s, patch.external_id), (Some(None), Some(None)));
    for field in [
        "port",
        "limits",
        "firewall_policy",
        "template",
        "autostart",
        "ramdisk",
        "deletion_protection",
        "environment_vars",
    ] {
        let error = change(json!({ field: null }), Maps::Merge).unwrap_err();
        assert_eq!(error.field(), Some(field));
    }
}

#[test]
fn a_change_takes_no_field_that_cannot_change() {
    for field in ["container_image", "server_id", "start", "project_id", "id"] {
        let error = change(json!({ field: "x" }), Maps::Merge).unwrap_err();
        assert!(error.message().contains(field), "{}", error.message());
    }
}

#[test]
fn a_copy_overrides_and_says_what_it_does_not_copy() {
    let body = json!({"environment_vars": {"PLAN": "pro", "OLD": null}, "labels": {"x": "1"}, "copy_network_rules": true, "copy_firewall_rules": false});
    let (new, warnings) = copy(body).unwrap();
    assert!(matches!(new.settings.env, EnvChange::Merge(vars) if vars.len() == 2));
    assert_eq!(new.settings.labels, LabelChange::Merge(texts([("x", Some("1"))])));
    assert_eq!((new.copy_firewall, new.start, new.project), (Some(false), true, None));
    assert_eq!((new.copy_network, warnings.len()), (Some(true), 0));
    let error = copy(json!({"target_project_id": "nope"})).unwrap_err();
    assert_eq!((error.code(), error.field()), ("INVALID_ID", Some("target_project_id")));
    let error = copy(json!({"source_snapshot": "s1"})).unwrap_err();
    assert_eq!((error.status().as_u16(), error.code()), (404, "SNAPSHOT_NOT_FOUND"));
}

#[test]
fn an_image_reference_is_one_word() {
    for bad in ["", "a b", "a\n", &"x".repeat(256)] {
        assert_eq!(create(json!({ "container_image": bad })).unwrap_err().field(), Some("container_image"));
    }
}

#[test]
fn a_body_is_not_printed_with_its_environment() {
    let secret = "sk_live_1";
    let body = json!({ "environment_vars": { "KEY": secret } }).to_string();
    let body = from_json::<CopyContainer>(body.as_bytes()).unwrap();
    assert!(!format!("{body:?}").contains(secret));
    let (request, _) = body.into_request().unwrap();
    assert!(!format!("{request:?}").contains(secret));
    let exec = json!({ "command": ["env"], "env": { "KEY": secret }, "stdin": secret }).to_string();
    let exec = from_json::<crate::api::wire::ops::ExecBody>(exec.as_bytes()).unwrap();
    assert!(!format!("{exec:?}").contains(secret));
}
