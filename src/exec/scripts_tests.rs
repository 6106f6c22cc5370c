use super::*;
use crate::exec::secrets::SecretsError;
use crate::exec::testing::{Stage, asked};

async fn ask(stage: &Stage, method: &str, path: &str, body: &str) -> Result<Reply, Fault> {
    let endpoint = stage.scripts.find(path).await?;
    let mut asked = asked(method, path, body.as_bytes());
    asked.params = endpoint.params.clone();
    stage.scripts.answer(endpoint, asked, ()).await
}

async fn text(reply: Reply) -> String {
    let mut whole = Vec::new();
    match reply.body {
        ReplyBody::Whole(body) => whole = body,
        ReplyBody::Stream(mut pieces) => {
            while let Some(piece) = pieces.recv().await {
                whole.extend(piece.unwrap());
            }
        }
    }
    String::from_utf8(whole).unwrap()
}

async fn log(stage: &Stage, file: &str) -> String {
    let lines = stage.scripts.log().tail(&ScriptFile(file.into()), 100, None).await.unwrap();
    lines.iter().map(|line| format!("{} {}\n", line.level, line.text)).collect()
}

#[tokio::test]
async fn a_file_answers_with_what_its_path_stands_for() {
    let stage = Stage::new().await;
    assert!(matches!(ask(&stage, "GET", "/shop/7", "").await, Err(Fault::NotFound(_))));
    stage.file("shop/[id].js", "return 1");
    let reply = ask(&stage, "POST", "/shop/7", "hi").await.unwrap();
    assert_eq!(reply.headers, [("content-type".to_owned(), "text/plain".to_owned())]);
    assert_eq!(text(reply).await, "POST /shop/7 id=7 hi");
    let log = log(&stage, "shop/[id].js").await;
    assert!(log.contains("info hello from shop/[id].js") && log.contains("run POST /shop/7: 200 ("), "{log}");
}

#[tokio::test]
async fn a_switched_off_script_is_not_there_and_a_bad_comment_is_told() {
    let stage = Stage::new().await;
    stage.file("off.js", "// @enabled false");
    stage.file("bad.js", "\n// @timeout soon");
    assert!(matches!(ask(&stage, "GET", "/off", "").await, Err(Fault::NotFound(_))));
    let Err(Fault::Comment { file, source }) = ask(&stage, "GET", "/bad", "").await else { panic!("it cannot be") };
    assert_eq!((file.0.as_str(), source.line), ("bad.js", 2));
}

#[tokio::test]
async fn what_a_script_throws_stands_in_its_log() {
    let stage = Stage::new().await;
    stage.file("a.js", "fake: throw");
    assert!(matches!(ask(&stage, "GET", "/a", "").await, Err(Fault::Run(RunError::Thrown { .. }))));
    let log = log(&stage, "a.js").await;
    assert!(log.contains("uncaught Error: oops") && log.contains("at a.js:1"), "{log}");
    stage.file("s.js", "fake: 99");
    assert!(matches!(ask(&stage, "GET", "/s", "").await, Err(Fault::Status(99))));
}

#[tokio::test]
async fn whoever_goes_away_ends_the_run() {
    let stage = Stage::new().await;
    stage.file("drip.js", "fake: drip");
    stage.file("hang.js", "fake: hang");
    let ReplyBody::Stream(mut body) = ask(&stage, "GET", "/drip", "").await.unwrap().body else { panic!("a stream") };
    body.recv().await.unwrap().unwrap();
    assert_eq!(stage.engine.alive(), 1);
    drop(body);
    stage.engine.until(|| stage.engine.alive() == 0).await;
    let asking = ask(&stage, "GET", "/hang", "");
    assert!(tokio::time::timeout(Duration::from_millis(100), asking).await.is_err());
    assert_eq!(stage.engine.alive(), 0);
    assert!(log(&stage, "hang.js").await.contains("whoever asked has gone"));
}

#[tokio::test]
async fn a_delivery_that_comes_twice_runs_once() {
    let stage = Stage::new().await;
    stage.file("hook.js", "// @idempotency body.id\n// fake: slow");
    let same = r#"{"id":"evt_1"}"#;
    let (first, second) =
        tokio::join!(ask(&stage, "POST", "/hook", same), ask(&stage, "POST", "/hook", r#"{"id":"evt_1","pending":1}"#));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert!(first.replayed != second.replayed);
    assert_eq!((text(first).await, text(second).await), ("slow".to_owned(), "slow".to_owned()));
    assert_eq!(stage.engine.runs(), 1);
    assert!(ask(&stage, "POST", "/hook", same).await.unwrap().replayed);
    ask(&stage, "POST", "/hook", r#"{"id":"evt_2"}"#).await.unwrap();
    assert_eq!(stage.engine.runs(), 2);
    assert!(matches!(ask(&stage, "POST", "/hook", "{}").await, Err(Fault::KeyMissing(_))));
    // What changes nothing is no delivery.
    assert!(!ask(&stage, "GET", "/hook", "").await.unwrap().replayed);
}

#[tokio::test]
async fn a_failed_delivery_is_run_again() {
    let stage = Stage::new().await;
    for (word, runs) in [("throw", 2), ("400", 4), ("half", 6)] {
        stage.file("hook.js", &format!("// @idempotency body.id\n// fake: {word}"));
        for _ in 0..2 {
            if let Ok(reply) = ask(&stage, "POST", "/hook", r#"{"id":"evt_1"}"#).await {
                assert!(!reply.replayed, "{word}");
            }
        }
        assert_eq!(stage.engine.runs(), runs, "{word}");
    }
}

#[tokio::test]
async fn a_delivery_runs_on_when_its_sender_goes_away() {
    let stage = Stage::new().await;
    stage.file("hook.js", "// @idempotency body.id\n// fake: slow");
    let asking = ask(&stage, "POST", "/hook", r#"{"id":"evt_1"}"#);
    assert!(tokio::time::timeout(Duration::from_millis(20), asking).await.is_err());
    let again = ask(&stage, "POST", "/hook", r#"{"id":"evt_1"}"#).await.unwrap();
    assert!(again.replayed);
    assert_eq!(stage.engine.runs(), 1);
}

#[tokio::test]
async fn runs_of_one_script_wait_for_each_other_where_it_says_so() {
    let stage = Stage::new().await;
    stage.file("a.js", "// @concurrent 1\n// fake: slow");
    let began = Instant::now();
    let both = tokio::join!(async { text(ask(&stage, "GET", "/a", "").await.unwrap()).await }, async {
        text(ask(&stage, "GET", "/a", "").await.unwrap()).await
    });
    assert_eq!(both, ("slow".to_owned(), "slow".to_owned()));
    assert!(began.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn a_run_has_a_key_of_its_scope_and_none_without_its_project() {
    let stage = Stage::new().await;
    stage.file("a.js", "return 1");
    stage.file("b.js", "// @scope project=shop");
    stage.file("c.js", "// @scope project=gone");
    text(ask(&stage, "GET", "/a", "").await.unwrap()).await;
    text(ask(&stage, "GET", "/b", "").await.unwrap()).await;
    assert!(matches!(ask(&stage, "GET", "/c", "").await, Err(Fault::Key(_))));
    let keys = stage.engine.keys.lock().unwrap().clone();
    assert_eq!(keys, [Some("a.js all".to_owned()), Some("b.js shop".to_owned())]);
}

#[tokio::test]
async fn a_secrets_file_that_others_may_read_stops_the_run_and_the_log_says_why() {
    let stage = Stage::new().await;
    stage.file("a.js", "return 1");
    std::fs::write(stage.root.path().join("secrets.toml"), "A = \"1\"").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(stage.root.path().join("secrets.toml"), mode).unwrap();
    let refused = ask(&stage, "GET", "/a", "").await;
    assert!(matches!(refused, Err(Fault::Secrets(SecretsError::Open { .. }))));
    assert!(log(&stage, "a.js").await.contains("chmod 600"));
}

#[tokio::test]
async fn a_script_is_written_when_it_can_be_and_answers_at_once() {
    use crate::exec::manage::WriteError;
    let stage = Stage::new().await;
    let file = ScriptFile("shop/a.js".into());
    assert!(stage.scripts.write(&file, "return 1".into()).await.unwrap());
    assert!(!stage.scripts.write(&file, "return 2".into()).await.unwrap());
    assert_eq!(text(ask(&stage, "GET", "/shop/a", "").await.unwrap()).await, "GET /shop/a  ");
    let bad = stage.scripts.write(&file, "\n// @timeout x".into()).await;
    assert!(matches!(bad, Err(WriteError::Comment(error)) if error.line == 2));
    let bad = stage.scripts.write(&file, "syntax".into()).await;
    assert!(matches!(bad, Err(WriteError::Check(RunError::Syntax { .. }))));
    assert_eq!(&*stage.scripts.show(&file).await.unwrap().unwrap().script.unwrap().source, "return 2");
    assert_eq!(stage.scripts.list().await.unwrap().len(), 1);
    assert!(stage.scripts.remove(&file).await.unwrap() && !stage.scripts.remove(&file).await.unwrap());
    assert!(matches!(ask(&stage, "GET", "/shop/a", "").await, Err(Fault::NotFound(_))));
}

#[tokio::test]
async fn a_delivery_whose_sender_hangs_up_takes_of_its_bound_until_it_has_run() {
    let stage = Stage::new().await;
    stage.file("hook.js", "// @idempotency body.id\n// fake: slow");
    let endpoint = stage.scripts.find("/hook").await.unwrap();
    let (held, scripts) = (Arc::new(()), stage.scripts.clone());
    let (theirs, body) = (Arc::clone(&held), br#"{"id":"1"}"#);
    let asking = tokio::spawn(async move { scripts.answer(endpoint, asked("POST", "/hook", body), theirs).await });
    while stage.engine.runs() == 0 {
        tokio::task::yield_now().await;
    }
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    assert_eq!(Arc::strong_count(&held), 2, "the run goes on");
    while Arc::strong_count(&held) == 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
