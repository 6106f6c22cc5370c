//! One run: an engine, its bounds, and how it went.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rquickjs::context::EvalOptions;
use rquickjs::{
    AsyncContext, AsyncRuntime, CatchResultExt, CaughtError, Ctx, Function, Module, Object, Promise, TypedArray,
    async_with,
};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, oneshot};

use super::source::{self, Shape};
use super::{PRELUDE, Worker, host};
use crate::domain::{Bytes, Secret};
use crate::exec::protocol::{Failed, Frame, Kind, Order, Told};
use crate::exec::run::{Bounds, ConsoleLine, RunError, ScriptFile};
use crate::sys::worker::{OVERHEAD_MIB, cage, thread_cpu};

/// Stack of the engine, in bytes; deeper recursion is an error that a script can catch. The process has 8 MiB.
const STACK_BYTES: usize = 1024 * 1024;
/// Fetches that wait for a connection.
const FETCHES_WAITING_MAX: u32 = 256;
/// What a check may take: it compiles, and runs nothing.
const CHECK_BYTES: usize = 256 * 1024 * 1024;
/// A stack or message in a report is cut here, in bytes.
const REPORT_BYTES_MAX: usize = 16 * 1024;

/// The engine's side, by name.
const PIECES: [(&str, &str); 4] = [
    ("base", include_str!("prelude/base.js")),
    ("http", include_str!("prelude/http.js")),
    ("tenantry", include_str!("prelude/tenantry.js")),
    ("main", include_str!("prelude/main.js")),
];

/// A run's state, on this side of the engine.
#[derive(Debug)]
pub struct State {
    pub worker: Rc<super::Output>,
    pub folder: super::Folder,
    pub way: Rc<Option<super::Way>>,
    pub known: Rc<RefCell<HashMap<String, String>>>,
    pub file: String,
    pub source: String,
    pub key: Option<Secret>,
    pub bounds: Bounds,
    /// Bytes of the answer so far, and lines and bytes of the console.
    pub answered: Cell<u64>,
    pub printed: Cell<(u32, usize)>,
    /// Whether the answer's end is sent.
    pub ended: Cell<bool>,
    /// The bound that ended the run, or what its script failed to parse with; and the word to stop.
    pub why: RefCell<Option<RunError>>,
    pub stop: Notify,
    /// Sleeps that can be cut short, and questions that are under way.
    pub sleeps: RefCell<HashMap<u32, oneshot::Sender<()>>>,
    pub asks: RefCell<HashMap<u32, oneshot::Sender<Result<Value, String>>>>,
}

impl State {
    /// Ends the run for a reason that its script cannot catch.
    pub fn end(&self, why: RunError) {
        self.why.borrow_mut().get_or_insert(why);
        self.stop.notify_one();
    }
}

/// Loads what every engine has in common once, so that the first run does not pay for it.
pub async fn warm_up() {
    let Ok((_runtime, context)) = engine(CHECK_BYTES).await else { return };
    async_with!(context => |ctx| { drop(host::globals(&ctx)) }).await;
}

async fn engine(memory: usize) -> rquickjs::Result<(AsyncRuntime, AsyncContext)> {
    let runtime = AsyncRuntime::new()?;
    runtime.set_memory_limit(memory).await;
    runtime.set_max_stack_size(STACK_BYTES).await;
    let context = AsyncContext::full(&runtime).await?;
    Ok((runtime, context))
}

/// Whether a script parses.
///
/// # Errors
/// It does not.
pub async fn check(file: &ScriptFile, text: &str) -> Result<(), RunError> {
    let (_runtime, context) = engine(CHECK_BYTES).await.map_err(no_engine)?;
    let (file, text) = (file.0.clone(), text.to_owned());
    async_with!(context => |ctx| {
        match compile(&ctx, &file, &text)? {
            Some(_) => Ok(()),
            None => {
                let code = source::prepare(&file, &text, Shape::Module)?;
                let declared = Module::declare(ctx.clone(), file.as_str(), code).catch(&ctx);
                declared.map(drop).map_err(|error| {
                    source::better(&file, &text, Shape::Module).unwrap_or_else(|| syntax(&file, &error, Shape::Module))
                })
            }
        }
    })
    .await
}

fn no_engine(error: rquickjs::Error) -> RunError {
    RunError::Worker { how: format!("it has no engine: {error}") }
}

/// Does a run.
///
/// # Errors
/// Why it has no answer, or not a whole one.
pub async fn run(
    worker: &Worker,
    order: Order,
    source: String,
    body: Vec<u8>,
    frames: &mut mpsc::Receiver<Frame>,
) -> Result<(), Failed> {
    let bounds = order.bounds;
    let spoiled = |error| Failed { error, goes_on: false };
    // The body is there three times while it is parsed.
    let beside = OVERHEAD_MIB * 1024 * 1024 + 3 * body.len() as u64;
    cage::limit_data(bounds.memory.0 + beside).map_err(|e| spoiled(RunError::Worker { how: e.to_string() }))?;
    let memory = usize::try_from(bounds.memory.0).unwrap_or(usize::MAX);
    let (runtime, context) = engine(memory).await.map_err(|e| spoiled(no_engine(e)))?;
    let state = state(worker, &order, source);
    runtime.set_interrupt_handler(Some(interrupt(Rc::clone(&state)))).await;
    runtime.set_host_promise_rejection_tracker(Some(Box::new(rejected))).await;
    runtime.set_loader(host::Files(Rc::clone(&state)), host::Files(Rc::clone(&state))).await;
    let told = json!({
        "file": order.file, "asked": order.asked, "metadata": order.metadata, "secrets": order.secrets,
        "limits": { "connections": bounds.connections.max(1), "waiting": FETCHES_WAITING_MAX },
    });
    let inside = Rc::clone(&state);
    let script = async_with!(context => |ctx| { evaluate(ctx, inside, told, body).await });
    let outcome = tokio::select! {
        biased;
        // Set by a bound: the engine may never say so itself, where it was within a promise's job.
        () = state.stop.notified() => Err(None),
        outcome = script => outcome.map_err(Some),
        () = tokio::time::sleep(bounds.wall) => Err(Some(RunError::Time { wall: bounds.wall })),
        () = answer_asks(&state, frames) => Err(Some(RunError::Worker { how: "the daemon is gone".to_owned() })),
    };
    verdict(&state, outcome)
}

fn state(worker: &Worker, order: &Order, source: String) -> Rc<State> {
    Rc::new(State {
        worker: Rc::clone(&worker.output),
        folder: worker.folder.clone(),
        way: Rc::clone(&worker.way),
        known: Rc::clone(&worker.known),
        file: order.file.0.clone(),
        source,
        key: order.key.clone(),
        bounds: order.bounds,
        answered: Cell::default(),
        printed: Cell::default(),
        ended: Cell::default(),
        why: RefCell::default(),
        stop: Notify::new(),
        sleeps: RefCell::default(),
        asks: RefCell::default(),
    })
}

/// What is said of a run. One that hit a bound has spoiled its worker; so has any whose answer had ended when it failed, for nobody
/// waits for that.
fn verdict(state: &State, outcome: Result<(), Option<RunError>>) -> Result<(), Failed> {
    let error = match (state.why.borrow_mut().take(), outcome) {
        (Some(why), _) => why,
        (None, Ok(())) => return Ok(()),
        (None, Err(error)) => error.unwrap_or(RunError::Time { wall: state.bounds.wall }),
    };
    let goes_on = matches!(error, RunError::Thrown { .. } | RunError::Syntax { .. });
    if state.ended.get() && goes_on {
        let text = format!("after the answer's end: {error}");
        let _ = state.worker.send_json(Kind::Console, &ConsoleLine { level: "error".to_owned(), text });
        return Ok(());
    }
    Err(Failed { error, goes_on })
}

/// Asked by the engine every so often while it computes; `true` ends the script, which cannot catch that.
fn interrupt(state: Rc<State>) -> Box<dyn FnMut() -> bool> {
    let (began, cpu) = (Instant::now(), thread_cpu());
    let Bounds { wall, cpu: cpu_max, .. } = state.bounds;
    Box::new(move || {
        if thread_cpu().saturating_sub(cpu) > cpu_max {
            state.end(RunError::Cpu { cpu: cpu_max });
        } else if began.elapsed() > wall {
            state.end(RunError::Time { wall });
        }
        state.why.borrow().is_some()
    })
}

/// Told by the engine of a promise that failed with nobody looking, and again when somebody does.
fn rejected<'js>(ctx: Ctx<'js>, promise: rquickjs::Value<'js>, reason: rquickjs::Value<'js>, handled: bool) {
    // Before the prelude is there, nothing of a script's can fail.
    if let Ok(note) = ctx.globals().get::<_, Function<'_>>("__rejected") {
        let _ = note.call::<_, ()>((promise, reason, handled)).catch(&ctx);
    }
}

/// Hands answers of the shared store to who asked; returns when the pool is gone.
async fn answer_asks(state: &State, frames: &mut mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        let Ok(Told { id, told }) = frame.json() else { return };
        if let Some(asked) = state.asks.borrow_mut().remove(&id) {
            let _ = asked.send(told);
        }
    }
}

async fn evaluate(ctx: Ctx<'_>, state: Rc<State>, told: Value, body: Vec<u8>) -> Result<(), RunError> {
    let none = |error: CaughtError<'_>| thrown(&error, state.bounds.memory, None);
    host::globals(&ctx).catch(&ctx).map_err(none)?;
    let script = compile(&ctx, &state.file, &state.source)?;
    let wrapped = script.as_ref().map(|_| state.file.as_str());
    let failed = |error: CaughtError<'_>| thrown(&error, state.bounds.memory, wrapped);
    let started = start(&ctx, &state, &told, body, script).catch(&ctx).map_err(failed)?;
    started.into_future::<()>().await.catch(&ctx).map_err(failed)
}

/// The prelude, and the script in it.
fn start<'js>(
    ctx: &Ctx<'js>,
    state: &Rc<State>,
    told: &Value,
    body: Vec<u8>,
    script: Option<Function<'js>>,
) -> rquickjs::Result<Promise<'js>> {
    let pieces = Object::new(ctx.clone())?;
    for (name, text) in PIECES {
        pieces.set(name, eval::<Function<'_>>(ctx, &format!("{PRELUDE}{name}"), text.to_owned())?)?;
    }
    let main: Function<'_> = pieces.get("main")?;
    let order = ctx.json_parse(told.to_string())?;
    let run: Function<'_> = main.call((host::host(ctx, state)?, order, TypedArray::new(ctx.clone(), body)?, pieces))?;
    run.call((script,))
}

/// The script as a function; `None` where it is a module, which is compiled where it is loaded.
fn compile<'js>(ctx: &Ctx<'js>, file: &str, text: &str) -> Result<Option<Function<'js>>, RunError> {
    let compiled = source::prepare(file, text, Shape::Script)
        .and_then(|code| eval(ctx, file, code).catch(ctx).map_err(|error| syntax(file, &error, Shape::Script)));
    match compiled {
        Ok(function) => Ok(Some(function)),
        Err(_) if source::looks_like_module(file, text) => Ok(None),
        Err(error) => Err(source::better(file, text, Shape::Script).unwrap_or(error)),
    }
}

/// Evaluates an expression that is a function.
pub fn eval<'js, T: rquickjs::FromJs<'js>>(ctx: &Ctx<'js>, file: &str, code: String) -> rquickjs::Result<T> {
    let mut options = EvalOptions::default();
    options.strict = false;
    options.filename = Some(file.to_owned());
    ctx.eval_with_options(code, options)
}

/// An error of the parser.
pub fn syntax(file: &str, error: &CaughtError<'_>, shape: Shape) -> RunError {
    let CaughtError::Exception(exception) = error else { return thrown(error, Bytes(0), None) };
    let stack = exception.stack().unwrap_or_default();
    let (file, line, column) = source::place_in(&stack).unwrap_or_else(|| (file.to_owned(), 0, 0));
    RunError::Syntax { place: source::place(&file, line, column, shape), message: message(exception) }
}

fn message(exception: &rquickjs::Exception<'_>) -> String {
    let name = exception.as_object().get::<_, String>("name").unwrap_or_else(|_| "Error".to_owned());
    match exception.message() {
        Some(message) if !message.is_empty() => cut(format!("{name}: {message}")),
        _ => name,
    }
}

/// What a script threw; `wrapped` is its file, where that is a function's body.
fn thrown(error: &CaughtError<'_>, memory: Bytes, wrapped: Option<&str>) -> RunError {
    match error {
        CaughtError::Exception(exception) => {
            let message = message(exception);
            if message.starts_with("InternalError: out of memory") {
                return RunError::Memory { memory };
            }
            let stack = exception
                .stack()
                .map(|stack| cut(source::own_stack(&stack, wrapped)))
                .filter(|stack| !stack.is_empty());
            RunError::Thrown { message, stack }
        }
        // Where there is no memory left for an error, null is thrown.
        CaughtError::Value(value) if value.is_null() => RunError::Memory { memory },
        CaughtError::Value(value) => {
            let json = value.ctx().json_stringify(value.clone()).ok().flatten().and_then(|text| text.to_string().ok());
            RunError::Thrown { message: cut(json.unwrap_or_else(|| format!("{value:?}"))), stack: None }
        }
        CaughtError::Error(error) => RunError::Thrown { message: error.to_string(), stack: None },
    }
}

fn cut(mut text: String) -> String {
    super::cut(&mut text, REPORT_BYTES_MAX);
    text
}

/// A sleep's length, from what a script says.
pub fn sleep_of(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default()
}
