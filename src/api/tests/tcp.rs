//! Aliases of raw TCP: which port of the host they get, and what means nothing for them.

use super::*;

async fn make(desk: &Desk, id: &Value, more: Value) -> Reply {
    let mut body = json!({ "container_id": id, "program": "tcp", "port": 5432 });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    desk.post("/proxy/aliases", body).await
}

#[tokio::test]
async fn an_alias_of_tcp_gets_a_port_that_nobody_has_and_keeps_it() {
    let desk = Desk::new().await;
    let id = desk.create(json!({})).await["id"].clone();
    let first = make(&desk, &id, json!({ "alias": "crm-db" })).await.data(201);
    assert_eq!(
        (&first["listen_port"], &first["program"], &first["wake"], &first["listening"]),
        (&json!(20_000), &json!("tcp"), &json!(true), &json!(true))
    );
    assert_eq!(first["url"], "tcp://crm-db.node1.localhost:20000");
    let second = make(&desk, &id, json!({ "wake": false })).await.data(201);
    assert_eq!(
        (&second["listen_port"], &second["wake"]),
        (&json!(20_002), &json!(false)),
        "20001 is another program's"
    );
    make(&desk, &id, json!({ "listen_port": 20_000 })).await.refused(409, "LISTEN_PORT_IN_USE");
    make(&desk, &id, json!({ "listen_port": TAKEN_PORT })).await.refused(409, "LISTEN_PORT_IN_USE");
    let far = make(&desk, &id, json!({ "listen_port": 5432 })).await;
    far.refused(400, "INVALID_LISTEN_PORT");
    assert!(far.json["message"].as_str().unwrap().contains("20000-20003"), "{}", far.json);
    make(&desk, &id, json!({ "listen_port": 20_003 })).await.data(201);
    make(&desk, &id, json!({})).await.refused(409, "LISTEN_PORTS_USED_UP");

    // For the next daemon it is the same one; who gives it up makes room.
    let desk = desk.restarted().await;
    let path = format!("/proxy/aliases/{}", first["id"].as_str().unwrap());
    assert_eq!(desk.get(&path).await.data(200)["listen_port"], 20_000);
    let woken = desk.call("PATCH", &path, &[], Some(&json!({ "wake": false, "port": 5433 }))).await.data(200);
    assert_eq!((&woken["wake"], &woken["port"], &woken["listen_port"]), (&json!(false), &json!(5433), &json!(20_000)));
    desk.call("DELETE", &path, &[], None).await.data(200);
    assert_eq!(make(&desk, &id, json!({})).await.data(201)["listen_port"], 20_000);
}

#[tokio::test]
async fn what_means_nothing_for_a_program_is_refused_by_its_name() {
    let desk = Desk::new().await;
    let id = desk.create(json!({})).await["id"].clone();
    for (field, value) in
        [("target_path", json!("/x")), ("domain", json!("db.example.com")), ("allow_path_override", json!(true))]
    {
        let refused = make(&desk, &id, json!({ field: value })).await;
        refused.refused(400, "NOT_OF_PROGRAM");
        assert!(refused.json["message"].as_str().unwrap().contains(field), "{}", refused.json);
    }
    let http = json!({ "container_id": id, "alias": "page", "wake": false });
    desk.post("/proxy/aliases", http).await.refused(400, "NOT_OF_PROGRAM");
    let ported = json!({ "container_id": id, "listen_port": 20_000 });
    desk.post("/proxy/aliases", ported).await.refused(400, "VALIDATION_ERROR");
    let udp = json!({ "container_id": id, "program": "udp" });
    desk.post("/proxy/aliases", udp).await.refused(400, "VALIDATION_ERROR");
    make(&desk, &id, json!({ "listen_port": 0 })).await.refused(400, "VALIDATION_ERROR");
    let tcp = make(&desk, &id, json!({})).await.data(201);
    let path = format!("/proxy/aliases/{}", tcp["id"].as_str().unwrap());
    for change in [json!({ "program": "http" }), json!({ "listen_port": 20_003 })] {
        desk.call("PATCH", &path, &[], Some(&change)).await.refused(400, "VALIDATION_ERROR");
    }
    assert_eq!(desk.get(&path).await.data(200), tcp, "nothing was changed");
}
