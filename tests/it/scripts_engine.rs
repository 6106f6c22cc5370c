//! Scripts in their workers: what they may say, what ends them, and what they cannot reach. Real processes, as root.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tenantry::domain::{Bytes, Secret};
use tenantry::exec::pool::{Confine, Pool, PoolConfig};
use tenantry::exec::run::{Asked, Bounds, ConsoleLine, Engine, Run, RunError, ScriptFile};
use tenantry::sys::worker::Api;
use tokio::sync::mpsc;

use crate::support::net::answer_all;

/// Ids that no other test has.
const FIRST_ID: u32 = 3_900_000_000;

struct Rig {
    pool: Pool,
    scripts: TempDir,
    instance: String,
}

#[derive(Debug)]
struct Got {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Result<Vec<u8>, RunError>,
    console: Vec<ConsoleLine>,
}

impl Got {
    fn text(&self) -> String {
        String::from_utf8(self.body.clone().unwrap()).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text()).unwrap()
    }
}

fn asked() -> Asked {
    Asked {
        method: "POST".into(),
        url: "/shop/x?a=1&b=2&b=3".into(),
        params: BTreeMap::from([("id".into(), "7".into())]),
        headers: vec![("content-type".into(), "application/json".into()), ("x-a".into(), "1".into())],
        body: br#"{ "n":  1 }"#.to_vec(),
        client: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    }
}

fn bounds() -> Bounds {
    Bounds {
        wall: Duration::from_secs(20),
        cpu: Duration::from_secs(10),
        memory: Bytes::mib(64),
        response: Bytes::mib(4),
        connections: 8,
    }
}

impl Rig {
    async fn new(instance: &str, warm: u16, workers_max: u16) -> Self {
        Self::with(instance, warm, workers_max, Api::Nowhere).await
    }

    async fn with(instance: &str, warm: u16, workers_max: u16, api: Api) -> Self {
        let scripts = tempfile::tempdir().unwrap();
        fs::set_permissions(scripts.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let config = PoolConfig {
            program: PathBuf::from(env!("CARGO_BIN_EXE_tenantry")),
            scripts_dir: scripts.path().to_owned(),
            api,
            confine: Confine::Full { instance: Some(instance.parse().unwrap()), first_id: FIRST_ID },
            warm,
            workers_max,
            memory_max: Bytes::mib(128),
            wait_max: Duration::from_secs(30),
        };
        Self { pool: Pool::start(config).await.unwrap(), scripts, instance: instance.to_owned() }
    }

    fn run_of(&self, file: &str, source: &str) -> (Run, mpsc::Receiver<ConsoleLine>) {
        let (console, lines) = mpsc::channel(2_000);
        let run = Run {
            file: ScriptFile(file.into()),
            source: source.into(),
            asked: asked(),
            metadata: json!({"script": file}),
            secrets: BTreeMap::from([("KEY".into(), Secret::new("s3cret"))]),
            key: None,
            bounds: bounds(),
            console: Arc::new(console),
        };
        (run, lines)
    }

    async fn go(&self, run: Run, mut lines: mpsc::Receiver<ConsoleLine>) -> Result<Got, RunError> {
        let mut answer = self.pool.run(run).await?;
        let mut body = Ok(Vec::new());
        while let Some(part) = answer.body.recv().await {
            match (&mut body, part) {
                (Ok(body), Ok(part)) => body.extend(part),
                (body, Err(error)) => *body = Err(error),
                _ => {}
            }
        }
        let mut console = Vec::new();
        while let Ok(line) = lines.try_recv() {
            console.push(line);
        }
        Ok(Got { status: answer.status, headers: answer.headers.into_iter().collect(), body, console })
    }

    async fn try_js(&self, source: &str) -> Result<Got, RunError> {
        let (run, lines) = self.run_of("x.js", source);
        self.go(run, lines).await
    }

    async fn js(&self, source: &str) -> Got {
        self.try_js(source).await.unwrap_or_else(|error| panic!("{error:?}\n{source}"))
    }

    async fn still_runs(&self) {
        assert_eq!(self.js("return 'fine'").await.text(), "fine");
    }

    /// The only waiting worker's keeper: a worker waits again a moment after its answer's end.
    async fn keeper(&self) -> u32 {
        for _ in 0..1_000 {
            if let [pid] = self.pool.warm()[..] {
                return pid;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no worker waits");
    }

    async fn close(self) {
        self.pool.close().await;
        let left: Vec<_> = glob_groups(&format!("{}-scripts", self.instance));
        assert!(left.is_empty(), "{left:?}");
        let workers = workers_of(self.scripts.path());
        assert!(workers.is_empty(), "{workers:?}");
    }
}

fn glob_groups(name: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path().join(name));
    hierarchies.filter(|path| path.exists()).collect()
}

/// Processes with a file of the folder mounted: the workers of one test.
fn workers_of(scripts: &std::path::Path) -> Vec<i32> {
    let marker = scripts.file_name().unwrap().to_str().unwrap();
    let pids =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        // The keeper is in the same mount namespace, and not in the same pid namespace.
        let inside = status.lines().any(|line| line.starts_with("NSpid:") && line.split_whitespace().count() > 2);
        inside && mounts.lines().any(|line| line.contains(marker) && line.contains(" /scripts "))
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_shape_of_a_script_is_answered() {
    let rig = Rig::new("seshape", 1, 2).await;
    let got = rig.js("return { a: [1], q: req.query, p: req.params, m: metadata.script, s: secrets.KEY }").await;
    assert_eq!((got.status, got.headers["content-type"].as_str()), (200, "application/json"));
    let want = json!({"a": [1], "q": {"a": "1", "b": ["2", "3"]}, "p": {"id": "7"}, "m": "x.js", "s": "s3cret"});
    assert_eq!(got.json(), want);
    let got = rig.js("const v = await Promise.resolve('héllo'); return v").await;
    assert_eq!((got.headers["content-type"].as_str(), got.text().as_str()), ("text/plain; charset=utf-8", "héllo"));
    assert_eq!(rig.js("return Buffer.from([0, 255, 1])").await.body, Ok(vec![0, 255, 1]));
    assert_eq!(rig.js("console.log('x')").await.status, 204);
    let got = rig.js("res.status(201).set('X-B', 'c').json({ ok: true })").await;
    assert_eq!((got.status, got.headers["x-b"].as_str(), got.json()), (201, "c", json!({"ok": true})));
    let got = rig
        .js("module.exports = (req, res) => ({ m: req.method, ip: req.ip, path: req.path, a: req.headers['x-a'] })")
        .await;
    assert_eq!(got.json(), json!({"m": "POST", "ip": "127.0.0.1", "path": "/shop/x", "a": "1"}));
    assert_eq!(rig.js("module.exports = async (req, res) => { res.send('s') }").await.text(), "s");
    assert_eq!(rig.js("import { createHash } from 'crypto';\nexport default async (req) => createHash('sha256').update('a').digest('hex').slice(0, 6)").await.text(), "ca9781");
    assert_eq!(rig.js("export default { plain: 1 }").await.json(), json!({"plain": 1}));
    assert_eq!(rig.js("return new Response('r', { status: 418, headers: { 'x-r': '1' } })").await.status, 418);
    let got = rig.js("res.redirect('/there')").await;
    assert_eq!((got.status, got.headers["location"].as_str()), (302, "/there"));
    assert_eq!(rig.js("setTimeout(() => res.json({ late: true }), 20)").await.json(), json!({"late": true}));
    assert_eq!(
        rig.js(
            "for (let i = 0; i < 3; i++) { res.write(i + ';'); await new Promise((go) => setTimeout(go, 5)) } res.end()"
        )
        .await
        .text(),
        "0;1;2;"
    );
    let (run, lines) =
        rig.run_of("x.ts", "interface A { n: number }\nconst a: A = { n: 2 };\nreturn { n: a.n as number }");
    assert_eq!(rig.go(run, lines).await.unwrap().json(), json!({"n": 2}));
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_there_as_it_came_and_parsed() {
    let rig = Rig::new("sereq", 1, 2).await;
    let got = rig.js("return { raw: req.rawBody.toString(), is: Buffer.isBuffer(req.rawBody), body: req.body, text: await req.text(), json: await req.json() }").await;
    let raw = "{ \"n\":  1 }";
    assert_eq!(got.json(), json!({"raw": raw, "is": true, "body": {"n": 1}, "text": raw, "json": {"n": 1}}));
    let ask = async |kind: &str, body: &[u8]| {
        let (mut run, lines) =
            rig.run_of("x.js", "return { body: req.body, error: req.bodyError && req.bodyError.name }");
        run.asked.headers = vec![("content-type".into(), kind.into())];
        run.asked.body = body.to_vec();
        rig.go(run, lines).await.unwrap().json()
    };
    assert_eq!(ask("application/json", b"{").await, json!({"error": "SyntaxError"}));
    assert_eq!(ask("application/x-www-form-urlencoded", b"a=1&b=x+y").await, json!({"body": {"a": "1", "b": "x y"}}));
    assert_eq!(ask("text/plain", b"hi").await, json!({"body": "hi"}));
    assert_eq!(ask("application/json", b"").await, json!({}));
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_built_in_works() {
    let rig = Rig::new("sebuilt", 1, 2).await;
    let source = r#"
        const { createHmac, timingSafeEqual, randomUUID } = require('node:crypto');
        const url = new URL('https://a.example/b?c=d');
        await new Promise((go) => setTimeout(go, 1));
        console.log('hello', { a: 1 }); console.error('oh');
        return { mac: createHmac('sha256', 'k').update(req.rawBody).digest('hex').length, host: url.host,
                 text: new TextDecoder().decode(new TextEncoder().encode('ü')), uuid: randomUUID().length,
                 b64: Buffer.from('hi').toString('base64'), path: require('path').join('a', '..', 'b'),
                 kind: typeof fetch, data: await (await fetch('data:,x%20y')).text(), process: typeof process, web: typeof crypto.subtle };
    "#;
    let got = rig.js(source).await;
    let want = json!({"mac": 64, "host": "a.example", "text": "ü", "uuid": 36, "b64": "aGk=", "path": "b", "kind": "function",
        "data": "x y", "process": "undefined", "web": "object"});
    assert_eq!(got.json(), want);
    let lines: Vec<_> = got.console.iter().map(|line| (line.level.as_str(), line.text.trim())).collect();
    assert_eq!((lines[0].0, lines[1]), ("log", ("error", "oh")));
    assert!(lines[0].1.contains("hello") && lines[0].1.contains("a: 1"), "{lines:?}");
    rig.js("await shared.set('a', { n: 1 }); await shared.increment('n', 2)").await;
    let got = rig.js("return [await shared.get('a'), await shared.increment('n'), await shared.get('none') === undefined, await shared.delete('a')]").await;
    assert_eq!(got.json(), json!([{"n": 1}, 3, true, true]));
    let got = rig
        .js("Promise.reject(new Error('lost')); const p = Promise.reject(1); try { await p } catch {} return 1")
        .await;
    let said: Vec<_> = got.console.iter().map(|line| line.text.as_str()).collect();
    assert!(said.len() == 1 && said[0].contains("Unhandled rejection:") && said[0].contains("lost"), "{said:?}");
    let error = rig.try_js("await tenantry.containers.get('x')").await.unwrap_err();
    assert!(error.to_string().contains("there is no API to call"), "{error}");
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_scripts_folder_can_be_required_and_no_other() {
    let rig = Rig::new("sereqr", 1, 2).await;
    let folder = rig.scripts.path();
    fs::create_dir(folder.join("lib")).unwrap();
    fs::write(folder.join("lib/a.js"), "exports.b = require('./b'); exports.j = require('../j.json').v").unwrap();
    fs::write(folder.join("lib/b.ts"), "const n: number = 5; module.exports = n;").unwrap();
    fs::write(folder.join("lib/m.mjs"), "import c from './a.js'; export const twice = c.b * 2; export default 1")
        .unwrap();
    fs::write(folder.join("j.json"), r#"{"v": 9}"#).unwrap();
    fs::write(folder.join("bad.js"), "\nlet a = ;").unwrap();
    assert_eq!(
        rig.js("const a = require('./lib/a'); return [a.b, a.j, require('./lib/m.mjs').twice]").await.json(),
        json!([5, 9, 10])
    );
    assert_eq!(
        rig.js("import { twice } from './lib/m.mjs';\nimport j from './j.json';\nexport default () => twice + j.v")
            .await
            .json(),
        json!(19)
    );
    for name in [
        "../../etc/passwd",
        "/etc/passwd",
        "../../../../etc/resolv.conf",
        "./lib/../../x",
        "express",
        "fs",
        "child_process",
        "process",
    ] {
        let error = rig.try_js(&format!("require({name:?})")).await.unwrap_err();
        assert!(matches!(&error, RunError::Thrown { message, .. } if message.contains(name)), "{name}: {error:?}");
    }
    let error = rig.try_js("require('./bad')").await.unwrap_err();
    assert!(error.to_string().contains("bad.js:2:"), "{error}");
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_says_where_in_the_authors_file() {
    let rig = Rig::new("seerr", 1, 2).await;
    let RunError::Syntax { place, message } = rig.try_js("const a = 1;\nlet b = ;\n").await.unwrap_err() else {
        panic!()
    };
    assert_eq!((place.file.0.as_str(), place.line), ("x.js", 2), "{message} {place:?}");
    let RunError::Syntax { place, .. } = rig.try_js("let b = ;").await.unwrap_err() else { panic!() };
    assert_eq!((place.line, place.column), (1, 9));
    let RunError::Syntax { place, .. } = rig.try_js("import a from 'url';\nexport default (").await.unwrap_err() else {
        panic!()
    };
    assert_eq!(place.line, 2);
    let error = rig.try_js("function f() { throw new TypeError('no') }\nf()").await.unwrap_err();
    let RunError::Thrown { message, stack } = error else { panic!("{error:?}") };
    let stack = stack.unwrap();
    assert_eq!(message, "TypeError: no");
    assert!(stack.starts_with("at f (x.js:1:2") && stack.contains("\nat script (x.js:2:"), "{stack}");
    assert!(!stack.contains("tenantry:"), "{stack}");
    assert!(
        matches!(rig.try_js("throw { code: 7 }").await, Err(RunError::Thrown { message, .. }) if message == r#"{"code":7}"#)
    );
    assert!(
        matches!(rig.try_js("await Promise.reject(new Error('later'))").await, Err(RunError::Thrown { message, .. }) if message == "Error: later")
    );
    let file = |name: &str| ScriptFile(name.into());
    rig.pool.check(&file("a.js"), "return 1").await.unwrap();
    rig.pool.check(&file("a.ts"), "export default (a: number): number => a").await.unwrap();
    assert!(matches!(rig.pool.check(&file("a.js"), "return (").await, Err(RunError::Syntax { .. })));
    let enumeration = rig.pool.check(&file("a.ts"), "enum E { A }").await.unwrap_err();
    assert!(enumeration.to_string().starts_with("a.ts:1:1: "), "{enumeration}");
    rig.still_runs().await;
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stripes_signatures_are_checked() {
    let rig = Rig::new("sestripe", 1, 2).await;
    let sign = r#"
        const { createHmac } = require('crypto');
        const now = Math.floor(Date.now() / 1000);
        const sign = (t, secret) => createHmac('sha256', secret).update(t + '.' + req.rawBody.toString()).digest('hex');
        const tried = (header, secret, options) => { try { return stripe.verify(req.rawBody, header, secret, options) } catch (e) { return e.name + ': ' + e.message } };
    "#;
    let got = rig
        .js(&format!(
            "{sign} return [
        tried(`t=${{now}},v1=${{sign(now, 's')}}`, 's'),
        tried(`t=${{now}},v1=00,v1=${{sign(now, 's')}}`, ['other', 's']),
        tried(`t=${{now}},v1=${{sign(now, 's')}}`, 'other'),
        tried(`t=${{now - 301}},v1=${{sign(now - 301, 's')}}`, 's'),
        tried(`t=${{now - 301}},v1=${{sign(now - 301, 's')}}`, 's', {{ tolerance: 600 }}),
        tried(undefined, 's'), tried('x', secrets.NONE)]"
        ))
        .await
        .json();
    assert_eq!((&got[0], &got[1], &got[4]), (&json!({"n": 1}), &json!({"n": 1}), &json!({"n": 1})), "{got}");
    for (at, word) in [(2, "no signature matches"), (3, "outside the tolerance"), (5, "missing")] {
        let text = got[at].as_str().unwrap();
        assert!(text.starts_with("StripeSignatureError: ") && text.contains(word), "{text}");
    }
    assert!(got[6].as_str().unwrap().starts_with("TypeError: stripe.verify: a secret is wanted"), "{got}");
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bound_ends_its_own_run_alone_and_is_named() {
    let rig = Rig::new("sebound", 1, 2).await;
    let tight = |source: &str, change: fn(&mut Bounds)| {
        let (mut run, lines) = rig.run_of("x.js", source);
        change(&mut run.bounds);
        rig.go(run, lines)
    };
    for source in [
        "while (true) {}",
        "try { while (true) {} } catch { return 1 }",
        "await null; while (true) {}",
        "export default () => { for (;;); }",
    ] {
        let began = Instant::now();
        let error = tight(source, |b| b.cpu = Duration::from_millis(200)).await.unwrap_err();
        assert_eq!(error, RunError::Cpu { cpu: Duration::from_millis(200) }, "{source}");
        assert!(began.elapsed() < Duration::from_secs(5), "{source}");
        rig.still_runs().await;
    }
    for source in
        ["await new Promise(() => {})", "setInterval(() => {}, 10)", "await new Promise((go) => setTimeout(go, 60000))"]
    {
        let error = tight(source, |b| b.wall = Duration::from_millis(300)).await.unwrap_err();
        assert_eq!(error, RunError::Time { wall: Duration::from_millis(300) }, "{source}");
        rig.still_runs().await;
    }
    for source in [
        "const a = []; while (true) a.push(new Array(1000).fill(a.length))",
        "let s = 'x'; while (true) s += s",
        "const a = []; while (true) a.push(Buffer.alloc(1 << 20, 1))",
        "const a = []; while (true) a.push(new Uint8Array(1 << 20).fill(1))",
    ] {
        let error = rig.try_js(source).await.unwrap_err();
        let named = matches!(error, RunError::Memory { .. })
            || matches!(&error, RunError::Thrown { message, .. } if message.contains("invalid string length") || message.contains("out of memory"));
        assert!(named, "{source}: {error:?}");
        rig.still_runs().await;
    }
    let error = rig.try_js("const f = () => 1 + f(); f()").await.unwrap_err();
    assert!(matches!(&error, RunError::Thrown { message, .. } if message.contains("stack")), "{error:?}");
    rig.still_runs().await;
    let large = RunError::Response { response: Bytes::mib(4) };
    for source in [
        "return 'x'.repeat(5 * 1024 * 1024)",
        "return Buffer.alloc(5 * 1024 * 1024)",
        "return { a: 'x'.repeat(5 * 1024 * 1024) }",
    ] {
        let outcome = rig.try_js(source).await;
        let error = outcome.and_then(|got| got.body).unwrap_err();
        assert_eq!(error, large, "{source}");
        rig.still_runs().await;
    }
    let got = rig.js("const part = 'x'.repeat(65536); try { while (true) res.write(part) } catch { res.end() }").await;
    assert_eq!((got.status, got.body.err()), (200, Some(large)));
    rig.still_runs().await;
    let got = rig.js("for (let i = 0; i < 1e5; i++) console.log('line', i)").await;
    assert!(got.console.len() <= 1_001, "{}", got.console.len());
    assert!(got.console.last().unwrap().text.contains("dropped"));
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_are_an_error_and_never_more_than_the_bound() {
    let rig = Rig::new("seconn", 1, 2).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let open = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&open);
    let server = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            held.push(stream);
        }
    });
    let source = format!("await Promise.all(Array.from({{ length: 10000 }}, () => fetch('http://127.0.0.1:{port}/')))");
    let error = rig.try_js(&source).await.unwrap_err();
    assert!(
        matches!(&error, RunError::Thrown { message, .. } if message.contains("8 connections are open")),
        "{error:?}"
    );
    assert!(open.load(std::sync::atomic::Ordering::SeqCst) <= 8);
    rig.still_runs().await;
    server.abort();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut some = [0; 1024];
            let _ = stream.read(&mut some).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
        }
    });
    let source = format!(
        "const all = await Promise.all(Array.from({{ length: 30 }}, async () => (await fetch('http://localhost:{port}/')).text())); return all.join('')"
    );
    assert_eq!(rig.js(&source).await.text(), "ok".repeat(30));
    server.abort();
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_a_run_leaves_open_are_no_harm_to_the_next() {
    let rig = Rig::new("seleft", 1, 1).await;
    let (port, server) = answer_all().await;
    let of = |first: u8, count: u16| {
        format!(
            "let all = 0; for (let n = 1; n <= {count}; n++) try {{ all += (await (await fetch(`http://127.0.${{{first} + (n >> 7)}}.${{1 + (n & 127)}}:{port}/`)).text()).length }} catch {{}} return all"
        )
    };
    let keeper = rig.keeper().await;
    rig.js(&of(1, 400)).await;
    assert_eq!(rig.js(&of(9, 40)).await.text(), "80", "the next run has its connections");
    assert_ne!(rig.keeper().await, keeper, "in a worker of its own");
    server.abort();
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_costs_its_own_run_and_is_replaced() {
    let rig = Rig::new("sekill", 1, 1).await;
    let pid = rig.keeper().await;
    let (run, lines) =
        rig.run_of("x.js", "res.write('a'); await new Promise((go) => setTimeout(go, 10000)); return 'b'");
    let scripts = rig.scripts.path().to_owned();
    let kill = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let workers = workers_of(&scripts);
        assert_eq!(workers.len(), 1);
        assert_ne!(workers[0] as u32, pid, "the worker is the keeper's child");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(workers[0]), nix::sys::signal::Signal::SIGKILL).unwrap();
    });
    let got = rig.go(run, lines).await.unwrap();
    kill.await.unwrap();
    assert_eq!(got.body, Err(RunError::Worker { how: "killed by signal 9".into() }));
    rig.still_runs().await;
    assert_ne!(rig.keeper().await, pid);
    // A keeper that is killed takes its worker along.
    let keeper = rig.keeper().await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(matches!(rig.try_js("return 1").await, Err(RunError::Worker { .. })));
    rig.still_runs().await;
    // An answer that nobody wants ends its run.
    let (run, _lines) = rig.run_of("x.js", "res.write('a'); await new Promise(() => {})");
    drop(rig.pool.run(run).await.unwrap());
    rig.still_runs().await;
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_waits_for_a_worker_only_so_long() {
    let mut config_rig = Rig::new("sebusy", 0, 1).await;
    config_rig.pool.close().await;
    let config = PoolConfig {
        program: PathBuf::from(env!("CARGO_BIN_EXE_tenantry")),
        scripts_dir: config_rig.scripts.path().to_owned(),
        api: Api::Nowhere,
        confine: Confine::Full { instance: Some("sebusy".parse().unwrap()), first_id: FIRST_ID },
        warm: 1,
        workers_max: 1,
        memory_max: Bytes::mib(64),
        wait_max: Duration::from_millis(100),
    };
    config_rig.pool = Pool::start(config).await.unwrap();
    let rig = config_rig;
    let (run, _lines) = rig.run_of("x.js", "res.write('a'); await new Promise(() => {})");
    let answer = rig.pool.run(run).await.unwrap();
    assert_eq!(rig.try_js("return 1").await.unwrap_err(), RunError::Busy { waited: Duration::from_millis(100) });
    // Callers that go away at any moment, also while a worker is started, take no seat along.
    drop(answer);
    for ms in [0, 1, 2, 5, 10, 20, 40, 80] {
        let (run, _lines) = rig.run_of("x.js", "while (true) {}");
        let _ = tokio::time::timeout(Duration::from_millis(ms), rig.pool.run(run)).await;
    }
    rig.keeper().await;
    rig.still_runs().await;
    // Closing does not wait for a run.
    rig.keeper().await;
    let (run, _lines) = rig.run_of("x.js", "res.write('a'); await new Promise(() => {})");
    let answer = rig.pool.run(run).await.unwrap();
    rig.close().await;
    drop(answer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_nobody_and_sees_nothing() {
    let rig = Rig::new("secage", 1, 1).await;
    let worker = workers_of(rig.scripts.path());
    assert_eq!(worker.len(), 1);
    let of = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", worker[0])).unwrap();
    let status = of("status");
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let id = (FIRST_ID + 1).to_string();
    assert_eq!(line("Uid:").split_whitespace().collect::<Vec<_>>(), [id.as_str(); 4]);
    assert_eq!(line("Gid:").split_whitespace().collect::<Vec<_>>(), [id.as_str(); 4]);
    assert_eq!(line("Groups:"), "");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(line(set), "0000000000000000", "{set}");
    }
    assert_eq!((line("NoNewPrivs:").as_str(), line("Seccomp:").as_str()), ("1", "2"));
    assert_eq!(line("NSpid:").split_whitespace().nth(1), Some("1"));
    assert_eq!(of("environ"), "");
    assert!(of("cgroup").contains("/secage-scripts/0"), "{}", of("cgroup"));
    let mounts: Vec<String> = of("mountinfo").lines().map(|line| line.split(' ').nth(4).unwrap().to_owned()).collect();
    assert_eq!(mounts, ["/", "/scripts"]);
    let root: Vec<_> =
        fs::read_dir(format!("/proc/{}/root/", worker[0])).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(root.len(), 2, "{root:?}");
    assert!(
        of("mountinfo").lines().all(|line| line.split(' ').nth(5).unwrap().starts_with("ro,")),
        "{}",
        of("mountinfo")
    );
    let files =
        fs::read_dir(format!("/proc/{}/fd", worker[0])).unwrap().map(|e| fs::read_link(e.unwrap().path()).unwrap());
    let files: Vec<String> = files.map(|link| link.display().to_string()).collect();
    // Standard error is the daemon's, whatever that is: here this test's own.
    let stderr = fs::read_link("/proc/self/fd/2").unwrap().display().to_string();
    assert!(
        files.iter().all(|f| *f == stderr
            || f.starts_with("socket:")
            || f.starts_with("anon_inode:")
            || f.contains("/null")
            || f.starts_with("pipe:")
            || f.starts_with("/dev/")),
        "{files:?}"
    );
    let limits = of("limits");
    for (name, most) in [("Max open files", "256"), ("Max file size", "0"), ("Max core file size", "1")] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        assert_eq!(line[name.len()..].split_whitespace().next(), Some(most), "{line}");
    }
    // From inside: nothing names a file, a process, the environment.
    let got = rig.js("return [typeof process, typeof require, Object.keys(globalThis).filter((k) => /env|spawn|exec|^file|host/.test(k))]").await;
    assert_eq!(got.json(), json!(["undefined", "function", []]));
    // No socket of the host's but by TCP: fetch speaks no other scheme.
    let error = rig.try_js("await fetch('file:///etc/passwd')").await.unwrap_err();
    assert!(matches!(error, RunError::Thrown { .. }), "{error:?}");
    rig.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_passes_from_run_to_run_and_a_warm_worker_is_fast() {
    let rig = Rig::new("sefast", 1, 1).await;
    rig.js("globalThis.left = 1; Array.prototype.left = 1; Object.prototype.bad = 1; setInterval(() => {}, 1); return res.json(1)").await;
    assert_eq!(
        rig.js("return [typeof left, [].left === undefined, ({}).bad === undefined]").await.json(),
        json!(["undefined", true, true])
    );
    let pid = rig.keeper().await;
    let mut times = Vec::new();
    for _ in 0..100 {
        let began = Instant::now();
        assert_eq!(rig.js("return 'x'").await.text(), "x");
        times.push(began.elapsed());
    }
    times.sort();
    eprintln!("a run of a warm worker: p50 {:?}, p99 {:?}", times[50], times[98]);
    assert_eq!(rig.keeper().await, pid, "it was one worker all along");
    rig.close().await;
}

/// An API that knows a template and what was copied from it, as far as the client in scripts asks.
fn api(socket: &std::path::Path) -> tokio::task::JoinHandle<()> {
    use axum::extract::{Path, Query, State};
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::{get, post};
    use axum::{Json, Router};
    type Made = std::sync::Arc<std::sync::Mutex<Vec<Value>>>;
    const TEMPLATE: &str = "0123456789abcdef01234567";
    let template = || json!({"id": TEMPLATE, "name": "template", "template": true});
    let list = async move |State(made): State<Made>, Query(query): Query<BTreeMap<String, String>>| {
        let all = made.lock().unwrap().clone();
        let found: Vec<Value> = match query.get("external_id") {
            Some(id) => all.into_iter().filter(|one| one["external_id"] == json!(id)).collect(),
            None => vec![template()],
        };
        Json(json!({"statusCode": 200, "message": "", "data": {"containers": found, "pagination": {"totalPages": 1}}}))
    };
    let copy = async |State(made): State<Made>, Path(id): Path<String>, head: HeaderMap, Json(body): Json<Value>| {
        assert_eq!((id.as_str(), head["authorization"].to_str().unwrap()), (TEMPLATE, "Bearer run-key"));
        let mut made = made.lock().unwrap();
        if made.iter().any(|one| one["external_id"] == body["external_id"]) {
            let error = json!({"statusCode": 409, "error": "EXTERNAL_ID_IN_USE", "message": "it is in use", "data": {"field": "external_id"}});
            return (StatusCode::CONFLICT, Json(error));
        }
        let mut one = body;
        one["id"] = json!(format!("{:024x}", made.len() + 1));
        one["url"] = json!("http://x.localhost");
        made.push(one.clone());
        (StatusCode::CREATED, Json(json!({"statusCode": 201, "message": "", "data": one})))
    };
    let app = Router::new()
        .route("/api/v1/containers/", get(list))
        .route("/api/v1/containers/{id}/copy", post(copy))
        .with_state(Made::default());
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    fs::set_permissions(socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_calls_the_api_over_its_socket_with_its_runs_key() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let server = api(&socket);
    let rig = Rig::with("seapi", 1, 2, Api::Socket(socket)).await;
    let source = r#"
        const one = await tenantry.containers.ensure('template', { external_id: 'cus_1', environment_vars: { A: '1' } });
        const again = await tenantry.containers.ensure('template', { external_id: 'cus_1' });
        let wrong; try { await tenantry.containers.copy('template', { external_id: 'cus_1' }) } catch (e) { wrong = e }
        return { one, again: again.created, same: again.id === one.id, none: await tenantry.containers.get({ external_id: 'cus_2' }),
                 wrong: [wrong.name, wrong.status, wrong.code, wrong.field, wrong instanceof tenantry.TenantryError] };
    "#;
    let (mut run, lines) = rig.run_of("x.js", source);
    run.key = Some(Secret::new("run-key"));
    let got = rig.go(run, lines).await.unwrap().json();
    assert_eq!(
        (&got["one"]["created"], &got["again"], &got["same"], &got["none"]),
        (&json!(true), &json!(false), &json!(true), &Value::Null),
        "{got}"
    );
    assert_eq!(got["wrong"], json!(["TenantryError", 409, "EXTERNAL_ID_IN_USE", "external_id", true]));
    assert_eq!(got["one"]["environment_vars"], json!({"A": "1"}));
    let error = rig.try_js("await tenantry.containers.get('template')").await.unwrap_err();
    assert!(error.to_string().contains("has no token"), "{error}");
    server.abort();
    rig.close().await;
}

#[test]
fn a_file_is_tried_without_a_server() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(folder.path().join("lib.js"), "exports.twice = (n) => 2 * n").unwrap();
    fs::write(folder.path().join("event.json"), r#"{"n": 21}"#).unwrap();
    let file = folder.path().join("x.ts");
    fs::write(&file, "console.log('seen', secrets.K); const n: number = req.body.n; return res.status(Number(req.query.s)).json(require('./lib').twice(n))").unwrap();
    let tried = |path: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tenantry"));
        command.args(["exec", "run"]).arg(&file).args(["--path", path, "--secret", "K=v"]);
        command.arg("--body").arg(format!("@{}", folder.path().join("event.json").display()));
        let done = command.env_clear().output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (done.status.code(), text(done.stdout), text(done.stderr))
    };
    let (code, out, said) = tried("/x?s=200");
    assert_eq!((code, out.as_str()), (Some(0), "42"), "{said}");
    assert!(said.contains("[log] seen v"), "{said}");
    let (code, out, said) = tried("/x?s=402");
    assert_eq!((code, out.as_str()), (Some(1), "42"), "{said}");
    let (code, _, said) = tried("/x?s=9");
    assert_eq!(code, Some(1));
    assert!(said.contains("RangeError") && said.contains("x.ts:1:"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_leaves_no_worker() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let file = folder.path().join("x.js");
    fs::write(&file, "console.log('runs'); while (true) {}").unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tenantry"));
    let mut daemon = command.args(["exec", "run"]).arg(&file).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut said = std::io::BufReader::new(daemon.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert!(line.contains("runs"), "{line}");
    assert_eq!(workers_of(folder.path()).len(), 1);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    for _ in 0..200 {
        if workers_of(folder.path()).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?}", workers_of(folder.path()));
}
