//! What the prelude may ask of the worker: `host`, and the globals that are LLRT's.

use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use llrt_modules::{abort, buffer, crypto, events, exceptions, path, string_decoder, url, util};
use rquickjs::loader::{Loader, Resolver};
use rquickjs::module::Declared;
use rquickjs::prelude::{Async, Func, List, Rest};
use rquickjs::{Array, CatchResultExt, Ctx, Exception, Function, Module, Object, Result, TypedArray, Value};
use tokio::sync::oneshot;

use super::run::{self, State};
use super::source::{self, Shape};
use super::{KNOWN_MAX, stripe};
use crate::exec::protocol::{Ask, Head, Kind};
use crate::exec::run::{ConsoleLine, RunError};

/// Lines and bytes of a run's console; what comes after is dropped, and said to be.
const CONSOLE_LINES_MAX: u32 = 1_000;
const CONSOLE_BYTES_MAX: usize = 256 * 1024;
/// A line's text is cut here, in bytes.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// Timers, and questions to the shared store, at once.
const SLEEPS_MAX: usize = 10_000;
const ASKS_MAX: usize = 1_000;
/// Headers of an answer, and their bytes.
const HEADERS_MAX: usize = 100;
const HEADERS_BYTES_MAX: usize = 32 * 1024;
/// LLRT's modules that are there.
const BUILTIN: [&str; 7] = ["buffer", "crypto", "events", "path", "string_decoder", "url", "util"];
/// Those that the prelude has.
const OWN: [&str; 5] = ["console", "timers", "tenantry", "stripe", "shared"];

/// Makes the globals.
pub fn globals(ctx: &Ctx<'_>) -> Result<()> {
    exceptions::init(ctx)?;
    events::init(ctx)?;
    abort::init(ctx)?;
    buffer::init(ctx)?;
    crypto::init(ctx)?;
    url::init(ctx)?;
    util::init(ctx)?;
    llrt_fetch::init(ctx)
}

/// The object that the prelude gets.
pub fn host<'js>(ctx: &Ctx<'js>, state: &Rc<State>) -> Result<Object<'js>> {
    let host = Object::new(ctx.clone())?;
    answering(&host, state)?;
    waiting(&host, state)?;
    loading(&host, state)?;
    let verify = |ctx: Ctx<'js>, raw: TypedArray<'js, u8>, header: String, secrets: Vec<String>, tolerance: f64| {
        let raw = raw.as_bytes().ok_or_else(|| Exception::throw_type(&ctx, "the raw body is detached"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
        Ok::<_, rquickjs::Error>(
            stripe::verify(raw, &header, &secrets, now, tolerance as i64).err().map(|e| e.to_string()),
        )
    };
    host.set("stripe", Func::from(verify))?;
    host.set(
        "format",
        Func::from(|ctx: Ctx<'js>, args: Rest<Value<'js>>| llrt_logging::format_plain(ctx, true, args)),
    )?;
    Ok(host)
}

/// Console, head, body, end.
fn answering<'js>(host: &Object<'js>, state: &Rc<State>) -> Result<()> {
    let own = Rc::clone(state);
    host.set("console", Func::from(move |level: String, text: String| print(&own, level, text)))?;
    let own = Rc::clone(state);
    host.set(
        "head",
        Func::from(move |ctx: Ctx<'js>, status: u16, headers: String| head(&ctx, &own, status, &headers)),
    )?;
    let own = Rc::clone(state);
    host.set(
        "write",
        Func::from(move |ctx: Ctx<'js>, data: Value<'js>, length: usize| write(&ctx, &own, &data, length)),
    )?;
    let own = Rc::clone(state);
    host.set(
        "end",
        Func::from(move || {
            // One that hit a bound is not whole, whatever its script caught.
            if own.why.borrow().is_none() {
                own.ended.set(true);
                let _ = own.worker.send(Kind::Done, &[]);
            }
        }),
    )
}

fn print(state: &State, level: String, mut text: String) {
    let (lines, bytes) = state.printed.get();
    if lines > CONSOLE_LINES_MAX {
        return;
    }
    super::cut(&mut text, LINE_BYTES_MAX);
    let mut line = ConsoleLine { level, text };
    state.printed.set((lines + 1, bytes + line.text.len()));
    if lines == CONSOLE_LINES_MAX || bytes + line.text.len() > CONSOLE_BYTES_MAX {
        state.printed.set((CONSOLE_LINES_MAX + 1, bytes));
        line = ConsoleLine { level: "warn".to_owned(), text: "further lines of this run are dropped".to_owned() };
    }
    // A pool that is gone reads no console.
    let _ = state.worker.send_json(Kind::Console, &line);
}

fn head(ctx: &Ctx<'_>, state: &State, status: u16, headers: &str) -> Result<()> {
    let headers: Vec<(String, String)> =
        serde_json::from_str(headers).map_err(|e| Exception::throw_type(ctx, &e.to_string()))?;
    let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if headers.len() > HEADERS_MAX || bytes > HEADERS_BYTES_MAX {
        let most = format!("an answer has at most {HEADERS_MAX} headers and {HEADERS_BYTES_MAX} bytes of them");
        return Err(Exception::throw_range(ctx, &most));
    }
    gone(ctx, state.worker.send_json(Kind::Head, &Head { status, headers }))
}

/// What is over the bound ends the run: an answer cut short must not look like a whole one.
fn write<'js>(ctx: &Ctx<'js>, state: &State, data: &Value<'js>, length: usize) -> Result<()> {
    let most = state.bounds.response;
    let fits = |length: usize| {
        let sum = state.answered.get().saturating_add(length as u64);
        state.answered.set(sum);
        if sum > most.0 {
            state.end(RunError::Response { response: most });
            return Err(Exception::throw_range(ctx, "the answer is larger than it may be"));
        }
        Ok(())
    };
    if let Some(text) = data.as_string() {
        // A character takes a byte at least; asked before the text is copied, which a large one must not be.
        if length as u64 > most.0 {
            return fits(length);
        }
        let text = text.to_string()?;
        fits(text.len())?;
        return gone(ctx, state.worker.send_body(text.as_bytes()));
    }
    let bytes = TypedArray::<u8>::from_value(data.clone())?;
    let bytes = bytes.as_bytes().ok_or_else(|| Exception::throw_type(ctx, "the bytes are detached"))?;
    fits(bytes.len())?;
    gone(ctx, state.worker.send_body(bytes))
}

fn gone(ctx: &Ctx<'_>, sent: std::io::Result<()>) -> Result<()> {
    sent.map_err(|error| Exception::throw_message(ctx, &format!("nobody takes the answer: {error}")))
}

/// Sleeps, the API, the shared store.
fn waiting<'js>(host: &Object<'js>, state: &Rc<State>) -> Result<()> {
    let own = Rc::clone(state);
    host.set("sleep", Func::from(Async(move |ctx: Ctx<'js>, id: u32, ms: f64| sleep(ctx, Rc::clone(&own), id, ms))))?;
    let own = Rc::clone(state);
    host.set(
        "wake",
        Func::from(move |id: u32| {
            if let Some(sleeper) = own.sleeps.borrow_mut().remove(&id) {
                let _ = sleeper.send(());
            }
        }),
    )?;
    let own = Rc::clone(state);
    let call = move |ctx: Ctx<'js>, method: String, path: String, body: Option<String>, if_match: Option<String>| {
        request(ctx, Rc::clone(&own), method, path, body, if_match)
    };
    host.set("request", Func::from(Async(call)))?;
    let own = Rc::clone(state);
    host.set("ask", Func::from(Async(move |ctx: Ctx<'js>, question: String| ask(ctx, Rc::clone(&own), question))))?;
    let own = Rc::clone(state);
    host.set("known", Func::from(move |name: String| own.known.borrow().get(&name).cloned()))?;
    let own = Rc::clone(state);
    host.set(
        "know",
        Func::from(move |name: String, id: String| {
            let mut known = own.known.borrow_mut();
            if known.len() >= KNOWN_MAX {
                known.clear();
            }
            known.insert(name, id);
        }),
    )?;
    let own = Rc::clone(state);
    host.set("forget", Func::from(move |name: String| own.known.borrow_mut().remove(&name).is_some()))
}

async fn sleep(ctx: Ctx<'_>, state: Rc<State>, id: u32, ms: f64) -> Result<()> {
    let (wake, woken) = oneshot::channel();
    // 0 is a turn of the event loop, which nobody cuts short.
    if id == 0 {
        tokio::time::sleep(run::sleep_of(ms)).await;
        return Ok(());
    }
    if state.sleeps.borrow().len() >= SLEEPS_MAX {
        return Err(Exception::throw_range(&ctx, &format!("at most {SLEEPS_MAX} timers run at once")));
    }
    state.sleeps.borrow_mut().insert(id, wake);
    let _ = tokio::time::timeout(run::sleep_of(ms), woken).await;
    state.sleeps.borrow_mut().remove(&id);
    Ok(())
}

async fn request<'js>(
    ctx: Ctx<'js>,
    state: Rc<State>,
    method: String,
    path: String,
    body: Option<String>,
    if_match: Option<String>,
) -> Result<List<(u16, String)>> {
    let failed = |error: super::api::ApiError| Exception::throw_message(&ctx, &error.to_string());
    let way = state.way.as_ref().as_ref().ok_or_else(|| failed(super::api::ApiError::Nowhere))?;
    let key = state.key.as_ref().ok_or_else(|| failed(super::api::ApiError::NoKey))?;
    way.call(key, &method, &path, body, if_match.as_deref()).await.map(List).map_err(failed)
}

async fn ask(ctx: Ctx<'_>, state: Rc<State>, question: String) -> Result<String> {
    let failed = |message: &str| Exception::throw_message(&ctx, message);
    let ask = serde_json::from_str(&question).map_err(|error| failed(&error.to_string()))?;
    let (told, answer) = oneshot::channel();
    let id = {
        let mut asks = state.asks.borrow_mut();
        if asks.len() >= ASKS_MAX {
            return Err(failed(&format!("at most {ASKS_MAX} questions to shared are asked at once")));
        }
        let id = (0..).find(|id| !asks.contains_key(id)).unwrap_or_default();
        asks.insert(id, told);
        id
    };
    gone(&ctx, state.worker.send_json(Kind::Ask, &Ask { id, ask }))?;
    match answer.await {
        Ok(Ok(value)) => Ok(value.to_string()),
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(failed("shared: nobody answers")),
    }
}

/// Modules, libraries, JSON.
fn loading<'js>(host: &Object<'js>, state: &Rc<State>) -> Result<()> {
    let own = Rc::clone(state);
    let find = move |ctx: Ctx<'js>, from: String, name: String| {
        resolve(&own, &from, &name).map_err(|e| Exception::throw_message(&ctx, &e))
    };
    host.set("resolve", Func::from(find))?;
    let own = Rc::clone(state);
    host.set("text", Func::from(move |ctx: Ctx<'js>, file: String| text(&ctx, &own, &file)))?;
    let own = Rc::clone(state);
    host.set(
        "isModule",
        Func::from(move |ctx: Ctx<'js>, file: String| {
            text(&ctx, &own, &file).map(|text| is_module(&ctx, &file, &text))
        }),
    )?;
    let own = Rc::clone(state);
    host.set("library", Func::from(move |ctx: Ctx<'js>, file: String| library(&ctx, &own, &file)))?;
    let load = |ctx: Ctx<'js>, name: String| {
        Module::import(&ctx, format!("{}{name}", super::PRELUDE))?.finish::<Object<'js>>()
    };
    host.set("load", Func::from(load))?;
    let own = Rc::clone(state);
    host.set("main", Func::from(move |ctx: Ctx<'js>| main(&ctx, &own)))
}

/// Kind and name of what a file asks for by a name.
fn resolve(state: &State, from: &str, name: &str) -> std::result::Result<Vec<String>, String> {
    let plain = name.strip_prefix("node:").unwrap_or(name);
    if BUILTIN.contains(&plain) || OWN.contains(&plain) {
        return Ok(vec!["builtin".to_owned(), plain.to_owned()]);
    }
    let file = state.folder.find(from, name).map_err(|error| error.to_string())?;
    let kind = if file.ends_with(".json") { "json" } else { "file" };
    Ok(vec![kind.to_owned(), file])
}

fn text(ctx: &Ctx<'_>, state: &State, file: &str) -> Result<String> {
    state.folder.read(file).map_err(|error| Exception::throw_message(ctx, &error.to_string()))
}

fn refused(ctx: &Ctx<'_>, error: &RunError) -> rquickjs::Error {
    Exception::throw_syntax(ctx, &error.to_string())
}

/// Whether a file that is required has to be loaded as a module: it looks like one, and is no function's body.
fn is_module(ctx: &Ctx<'_>, file: &str, text: &str) -> bool {
    let parses = |code: String| run::eval::<Function<'_>>(ctx, file, code).catch(ctx).is_ok();
    source::looks_like_module(file, text) && !source::prepare(file, text, Shape::Library).is_ok_and(parses)
}

fn library<'js>(ctx: &Ctx<'js>, state: &State, file: &str) -> Result<Function<'js>> {
    let text = text(ctx, state, file)?;
    let code = source::prepare(file, &text, Shape::Library).map_err(|e| refused(ctx, &e))?;
    let compiled = run::eval(ctx, file, code).catch(ctx);
    compiled.map_err(|error| {
        let better = source::better(file, &text, Shape::Library);
        refused(ctx, &better.unwrap_or_else(|| run::syntax(file, &error, Shape::Library)))
    })
}

/// The script as a module: what says that it is evaluated, and its exports.
fn main<'js>(ctx: &Ctx<'js>, state: &State) -> Result<Array<'js>> {
    let noted = |error: RunError| {
        let thrown = refused(ctx, &error);
        state.why.borrow_mut().get_or_insert(error);
        thrown
    };
    let code = source::prepare(&state.file, &state.source, Shape::Module).map_err(noted)?;
    let declared = Module::declare(ctx.clone(), state.file.as_str(), code).catch(ctx);
    let declared = declared.map_err(|error| match &error {
        rquickjs::CaughtError::Exception(exception)
            if exception.as_object().get("name").is_ok_and(|name: String| name == "SyntaxError") =>
        {
            let better = source::better(&state.file, &state.source, Shape::Module);
            noted(better.unwrap_or_else(|| run::syntax(&state.file, &error, Shape::Module)))
        }
        _ => error.throw(ctx),
    })?;
    let (module, evaluated) = declared.eval()?;
    let both = Array::new(ctx.clone())?;
    both.set(0, evaluated)?;
    both.set(1, module.namespace()?)?;
    Ok(both)
}

/// Finds and loads what modules import.
#[derive(Debug, Clone)]
pub struct Files(pub Rc<State>);

impl Resolver for Files {
    fn resolve<'js>(&mut self, ctx: &Ctx<'js>, base: &str, name: &str) -> Result<String> {
        // Names that the worker itself asks for begin at the folder, whoever is on the stack.
        let (base, name) = match name.strip_prefix(super::PRELUDE) {
            Some(whole) if BUILTIN.contains(&whole) => ("", whole.to_owned()),
            Some(whole) => ("", format!("./{whole}")),
            None => (base, name.to_owned()),
        };
        let found = resolve(&self.0, base, &name).map_err(|error| Exception::throw_message(ctx, &error))?;
        Ok(found.into_iter().nth(1).unwrap_or_default())
    }
}

impl Loader for Files {
    fn load<'js>(&mut self, ctx: &Ctx<'js>, name: &str) -> Result<Module<'js, Declared>> {
        let ctx = ctx.clone();
        match name {
            "buffer" => Module::declare_def::<buffer::BufferModule, _>(ctx, name),
            "crypto" => Module::declare_def::<crypto::CryptoModule, _>(ctx, name),
            "events" => Module::declare_def::<events::EventsModule, _>(ctx, name),
            "path" => Module::declare_def::<path::PathModule, _>(ctx, name),
            "string_decoder" => Module::declare_def::<string_decoder::StringDecoderModule, _>(ctx, name),
            "url" => Module::declare_def::<url::UrlModule, _>(ctx, name),
            "util" => Module::declare_def::<util::UtilModule, _>(ctx, name),
            own if OWN.contains(&own) => Module::declare(ctx, name, format!("export default __own.{own};")),
            file => self.load_file(ctx, file),
        }
    }
}

impl Files {
    /// A file that is no module is required, and what it exports is the default.
    fn load_file<'js>(&self, ctx: Ctx<'js>, file: &str) -> Result<Module<'js, Declared>> {
        let text = text(&ctx, &self.0, file)?;
        if file.ends_with(".json") || !is_module(&ctx, file, &text) {
            let quoted = serde_json::to_string(file).unwrap_or_default();
            return Module::declare(ctx, file, format!("export default __require({quoted});"));
        }
        let code = source::prepare(file, &text, Shape::Module).map_err(|e| refused(&ctx, &e))?;
        Module::declare(ctx, file, code)
    }
}
