//! The firewall as users meet it: over the API and the command line, with real containers behind.

use serde_json::{Value, json};

use crate::support::daemon::{Client, Daemon, id_of, play, play_in_lab};
use crate::support::net::{Conversation, Echo, INTERNET, PATIENCE, SILENCE, nft};

async fn container(client: &Client, body: Value) -> (String, Value) {
    let project = client.create_project("acme").await;
    let made = client.post(&format!("/projects/{project}/containers"), body).await.data(201);
    (project, made)
}

fn at(id: &str, end: &str) -> String {
    format!("/containers/{id}/firewall/{end}")
}

async fn delete(client: &Client, path: &str, body: Value) -> crate::support::daemon::Reply {
    crate::support::daemon::answer(client.request(reqwest::Method::DELETE, path).json(&body)).await
}

fn reaches(daemon: &Daemon, container: &Value, port: u16) -> bool {
    daemon.netns(container).run(|| Conversation::open(INTERNET, port, PATIENCE).is_ok())
}

fn is_kept_from(daemon: &Daemon, container: &Value, port: u16) -> bool {
    daemon.netns(container).run(|| Conversation::open(INTERNET, port, SILENCE).is_err())
}

#[test]
fn rules_are_added_listed_switched_and_removed_and_hold_at_once() {
    play_in_lab("", async |daemon, lab| {
        let _servers = [80, 25].map(|port| Echo::listen(&lab.internet, port));
        let client = &daemon.client;
        let (_, made) = container(client, json!({ "name": "shop-1" })).await;
        let id = id_of(&made);
        assert!(reaches(daemon, &made, 25));
        let mut open = daemon.netns(&made).run(|| Conversation::open(INTERNET, 80, PATIENCE).unwrap());
        let mut mail = daemon.netns(&made).run(|| Conversation::open(INTERNET, 25, PATIENCE).unwrap());

        let no_mail =
            json!({ "action": "reject", "protocol": "tcp", "destination_port": "25,465", "description": "no mail" });
        let added = client.post(&at(&id, "egress"), no_mail.clone()).await.data(201);
        assert_eq!((&added["duplicate"], &added["rule"]["state"]), (&json!(false), &json!("enabled")));
        assert_eq!(added["rule"]["destination_port"], "25,465");
        assert!(is_kept_from(daemon, &made, 25) && reaches(daemon, &made, 80), "in force when the call has returned");
        assert!(mail.say(b"still?").is_err(), "and what was open is cut");
        open.say(b"what is allowed goes on").unwrap();

        let before = client.container(&id).await["generation"].clone();
        let again = json!({ "action": "reject", "protocol": "tcp", "destination_port": ["465", "25"] });
        let twice = client.post(&at(&id, "egress"), again).await.data(200);
        assert_eq!((&twice["duplicate"], &twice["rule"]["description"]), (&json!(true), &json!("no mail")));
        assert_eq!(client.container(&id).await["generation"], before, "nothing was changed");

        // The first match decides: this one comes too late.
        client
            .post(&at(&id, "egress"), json!({ "action": "allow", "protocol": "tcp", "destination_port": "25" }))
            .await
            .data(201);
        assert!(is_kept_from(daemon, &made, 25));
        let off = client.patch(&at(&id, "egress"), json!({ "action": "reject", "state": "disabled" })).await.data(200);
        assert_eq!((&off["count"], &off["rules"][0]["state"]), (&json!(1), &json!("disabled")));
        assert!(reaches(daemon, &made, 25));
        let flipped = client.patch(&at(&id, "egress"), json!({ "action": "reject" })).await.data(200);
        assert_eq!(flipped["rules"][0]["state"], "enabled");

        let listed = client.get(&at(&id, "rules")).await.data(200);
        assert_eq!(
            (&listed["total"], &listed["limit"], &listed["firewall_policy"]),
            (&json!(2), &json!(500), &json!("web"))
        );
        assert_eq!((&listed["egress"][0]["description"], &listed["ingress"]), (&json!("no mail"), &json!([])));

        let removed = delete(client, &at(&id, "egress"), json!({ "protocol": "tcp" })).await.data(200);
        assert_eq!((&removed["count"], &removed["rules"][0]["action"]), (&json!(1), &json!("reject")));
        assert!(reaches(daemon, &made, 25));
        delete(client, &at(&id, "egress"), json!({ "action": "drop" })).await.refused(404, "FIREWALL_RULE_NOT_FOUND");
        client.post(&at(&id, "ingress"), json!({ "action": "drop", "source": "192.0.2.0/24" })).await.data(201);
        let reset = client.post(&at(&id, "reset"), json!({})).await.data(200);
        assert_eq!(reset["removed"], 2);
        assert_eq!(client.get(&at(&id, "rules")).await.data(200)["total"], 0);
    });
}

#[test]
fn bad_rules_are_refused_by_name_and_leave_nothing() {
    play(async |daemon| {
        let client = &daemon.client;
        let (_, made) = container(client, json!({ "start": false })).await;
        let id = id_of(&made);
        for (end, body, field) in [
            ("egress", json!({}), "action"),
            ("egress", json!({ "action": "allow", "source": "192.0.2.1" }), "source"),
            ("ingress", json!({ "action": "allow", "destination": "192.0.2.1" }), "destination"),
            ("egress", json!({ "action": "allow", "destination": "10.0.0.1/8" }), "destination"),
            ("egress", json!({ "action": "allow", "destination_port": "443" }), "destination_port"),
            (
                "egress",
                json!({ "action": "allow", "protocol": "tcp", "destination_port": "99999" }),
                "destination_port",
            ),
            ("egress", json!({ "action": "allow", "nonsense": 1 }), "nonsense"),
        ] {
            let refused = client.post(&at(&id, end), body.clone()).await;
            refused.refused(400, "VALIDATION_ERROR");
            assert_eq!(refused.field(), Some(field), "{body}");
        }
        delete(client, &at(&id, "egress"), json!({})).await.refused(400, "VALIDATION_ERROR");
        client.patch(&at(&id, "egress"), json!({ "action": "drop" })).await.refused(404, "FIREWALL_RULE_NOT_FOUND");
        client.get(&at("0123456789abcdef01234567", "rules")).await.refused(404, "CONTAINER_NOT_FOUND");
        client.get(&format!("{}?x=1", at(&id, "rules"))).await.refused(400, "UNKNOWN_PARAMETER");
        assert_eq!(client.get(&at(&id, "rules")).await.data(200)["total"], 0);
        for port in 1..=500 {
            let rule = json!({ "action": "drop", "protocol": "udp", "destination_port": port.to_string() });
            client.post(&at(&id, if port % 2 == 0 { "ingress" } else { "egress" }), rule).await.data(201);
        }
        let one_more = client.post(&at(&id, "egress"), json!({ "action": "drop" })).await;
        one_more.refused(400, "CONTAINER_FIREWALL_RULE_LIMIT");
        client.verb(&id, "start").await.data(200);
        let effective = client.get(&at(&id, "effective")).await.data(200);
        assert_eq!(effective["agrees"], true, "{effective}");
        assert!(effective["kernel"]["egress"].as_array().unwrap().len() > 250);
    });
}

#[test]
fn a_copy_takes_its_templates_rules_along_before_its_first_packet() {
    play_in_lab("", async |daemon, lab| {
        let _servers = [80, 25].map(|port| Echo::listen(&lab.internet, port));
        let client = &daemon.client;
        let (_, template) = container(client, json!({ "template": true, "firewall_policy": "open" })).await;
        let source = id_of(&template);
        client
            .post(&at(&source, "egress"), json!({ "action": "drop", "protocol": "tcp", "destination_port": "25" }))
            .await
            .data(201);
        let copy = client.copy(&source, json!({})).await;
        assert_eq!(copy["firewall_policy"], "open");
        assert_eq!(client.get(&at(&id_of(&copy), "rules")).await.data(200)["egress"][0]["destination_port"], "25");
        assert!(reaches(daemon, &copy, 80) && is_kept_from(daemon, &copy, 25));

        // A change to one is not a change to the other.
        client.post(&at(&id_of(&copy), "reset"), json!({})).await.data(200);
        assert!(reaches(daemon, &copy, 25) && is_kept_from(daemon, &template, 25));

        let without = client.copy(&source, json!({ "copy_firewall_rules": false })).await;
        assert_eq!(without["firewall_policy"], "web");
        assert_eq!(client.get(&at(&id_of(&without), "rules")).await.data(200)["total"], 0);
        // A container that is no template keeps its rules to itself, unless it is asked to.
        let plain = client.copy(&id_of(&copy), json!({ "firewall_policy": "locked-down" })).await;
        client.post(&at(&id_of(&plain), "egress"), json!({ "action": "allow" })).await.data(201);
        let kept = client.copy(&id_of(&plain), json!({})).await;
        assert_eq!(client.get(&at(&id_of(&kept), "rules")).await.data(200)["total"], 0);
        let asked = client.copy(&id_of(&plain), json!({ "copy_firewall_rules": true })).await;
        assert_eq!(client.get(&at(&id_of(&asked), "rules")).await.data(200)["total"], 1);
        assert_eq!(asked["firewall_policy"], "locked-down");
    });
}

#[test]
fn a_projects_policy_is_its_containers_and_rules_outlive_the_daemon() {
    play_in_lab("", async |daemon, lab| {
        let _server = Echo::listen(&lab.internet, 80);
        let project = daemon
            .client
            .post("/projects/", json!({ "alias": "shut", "firewall_policy": "no-egress" }))
            .await
            .data(201);
        let path = format!("/projects/{}/containers", id_of(&project));
        let made = daemon.client.post(&path, json!({})).await.data(201);
        let id = id_of(&made);
        assert!(made["firewall_policy"] == "no-egress" && is_kept_from(daemon, &made, 80));
        let rule = json!({ "action": "allow", "protocol": "tcp", "destination": INTERNET.to_string(), "destination_port": "80" });
        daemon.client.post(&at(&id, "egress"), rule).await.data(201);
        let mut open = daemon.netns(&made).run(|| Conversation::open(INTERNET, 80, PATIENCE).unwrap());
        daemon.kill9();
        daemon.restart().await;
        open.say(b"through the restart").unwrap();
        assert!(reaches(daemon, &made, 80));
        let client = &daemon.client;
        assert_eq!(client.get(&at(&id, "effective")).await.data(200)["agrees"], true);
        client.verb(&id, "restart").await.data(200);
        assert!(reaches(daemon, &made, 80));
    });
}

#[test]
fn what_is_in_force_is_told_beside_what_should_be() {
    play(async |daemon| {
        let client = &daemon.client;
        let (_, made) = container(client, json!({ "firewall_policy": "locked-down" })).await;
        let id = id_of(&made);
        client
            .post(&at(&id, "egress"), json!({ "action": "allow", "protocol": "icmp4", "icmp_type": 8 }))
            .await
            .data(201);
        let effective = client.get(&at(&id, "effective")).await.data(200);
        assert_eq!((&effective["agrees"], &effective["table_intact"]), (&json!(true), &json!(true)), "{effective}");
        let egress = &effective["rules"]["egress"];
        assert_eq!(
            (&egress["rules"][0]["origin"], &egress["rules"][1]["origin"]),
            (&json!("container"), &json!("policy"))
        );
        assert_eq!((&egress["default"], &egress["rules"][0]["rule"]["icmp_type"]), (&json!("reject"), &json!(8)));
        assert!(
            effective["kernel"]["egress"].as_array().unwrap().contains(&json!("icmp type 8 accept")),
            "{effective}"
        );

        nft("flush ruleset");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let mended = loop {
            let seen = client.get(&at(&id, "effective")).await.data(200);
            if seen["agrees"] == true && seen["repairs"] == 1 {
                break seen;
            }
            assert!(std::time::Instant::now() < deadline, "it is not mended: {seen}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        };
        assert!(mended["last_repair_at"].is_string());
        assert!(daemon.log().contains("another program has changed the firewall's table"));

        client.verb(&id, "stop").await.data(200);
        let stopped = client.get(&at(&id, "effective")).await.data(200);
        assert_eq!((&stopped["status"], &stopped["kernel"]["egress"]), (&json!("stopped"), &json!([])));
        assert_eq!(stopped["agrees"], true);
    });
}
