//! The main job over the real daemon: one call gives a customer a running sandbox with a URL.

use serde_json::json;

use crate::support::daemon::{id_of, play};

#[test]
fn a_copy_answers_at_its_url_and_keeps_its_rows_to_itself() {
    play(async |daemon| {
        let client = &daemon.client;
        let before = daemon.objects();
        let project = client.create_project("acme").await;
        let template = client.create_template(&project, "crm").await;
        let a = client.copy(&id_of(&template), json!({ "name": "customer-a" })).await;
        let b = client.copy(&id_of(&template), json!({ "name": "customer-b" })).await;
        assert!(client.page(&a, "/").await.text.contains("This sandbox runs."));
        assert_eq!(client.send_page(&a, "/cgi-bin/notes", "row of A").await.status, 200);
        assert_eq!(client.page(&a, "/cgi-bin/notes").await.text, "row of A\n");
        assert_eq!(client.page(&b, "/cgi-bin/notes").await.text, "");
        for container in [&a, &b, &template] {
            client.delete(&format!("/containers/{}?wait=erased", id_of(container))).await.data(200);
        }
        daemon.settles_to(&before);
    });
}
