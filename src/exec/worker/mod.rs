//! The worker: where scripts are evaluated, one after another, each in an engine of its own that nothing outlives.
//!
//! It is this binary in a cage (`sys::worker`), with one thread of its own and an event loop on it. What it is told and what it
//! says are frames on its only descriptor (`exec::protocol`).
//!
//! - [`source`] makes a script's text into what the engine takes; [`files`] finds what it requires;
//! - [`run`] makes an engine, bounds it, runs a script in it, and says how it went;
//! - [`host`] is what the engine's side, `prelude/*.js`, may ask of this one;
//! - [`api`] and [`stripe`] are behind `tenantry` and `stripe`.
//!
//! A run that hit a bound ends its worker: what native code holds at that moment is nobody's to free.

mod api;
mod files;
mod host;
mod output;
mod run;
mod source;
mod stripe;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::rc::Rc;

use tokio::sync::mpsc;

use super::protocol::{self, BODY_BYTES_MAX, Failed, Frame, Kind, Order};
use super::run::ScriptFile;
use crate::sys::worker::{Setup, cage, lowest_free};
use api::Way;
use files::Folder;
use output::Output;

/// What the prelude's files are called in stacks.
const PRELUDE: &str = "tenantry:";
/// Frames that wait to be looked at.
const FRAMES_WAITING_MAX: usize = 64;
/// Threads that look names up.
const LOOKUPS_MAX: usize = 4;
/// Descriptors that may be left open by a run, of the 256 there may be: beyond it the worker ends.
const DESCRIPTORS_KEPT_MAX: i32 = 64;
/// Ids of templates that are remembered by their names.
const KNOWN_MAX: usize = 256;

/// The role's entry, before anything has made a thread.
pub fn main() -> ExitCode {
    match cage::enter(work) {
        Ok(code) => code,
        Err(error) => {
            use std::io::Write;
            // Nobody may be left to read it; there is nothing else to do about it.
            let _ = writeln!(io::stderr(), "tenantry {}: {error}", crate::sys::worker::VERB);
            ExitCode::FAILURE
        }
    }
}

/// What outlives a run.
#[derive(Debug)]
struct Worker {
    output: Rc<Output>,
    folder: Folder,
    way: Rc<Option<Way>>,
    known: Rc<RefCell<HashMap<String, String>>>,
}

fn work(stream: UnixStream, setup: Setup) -> ExitCode {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_io().enable_time().max_blocking_threads(LOOKUPS_MAX).build();
    let served = runtime.and_then(|runtime| runtime.block_on(serve(stream, setup)));
    // Whatever native code is at is not waited for.
    std::process::exit(i32::from(served.is_err()))
}

/// Takes orders until the pool is gone or a run has spoiled the worker.
async fn serve(stream: UnixStream, setup: Setup) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let output = Rc::new(Output::new(stream.try_clone()?));
    let mut frames = reader(tokio::net::UnixStream::from_std(stream)?);
    let worker = Worker {
        output,
        folder: Folder::new(setup.scripts_dir),
        way: Rc::new(Way::new(&setup.api)),
        known: Rc::default(),
    };
    run::warm_up().await;
    loop {
        worker.output.send(Kind::Ready, &[])?;
        let Some(frame) = frames.recv().await else { return Ok(()) };
        let failed = match frame.kind {
            Kind::Run => {
                let order: Order = frame.json()?;
                let Some((source, body)) = rest(&mut frames).await? else { return Ok(()) };
                run::run(&worker, order, source, body, &mut frames).await
            }
            Kind::Check => {
                let Some((source, _)) = rest(&mut frames).await? else { return Ok(()) };
                let checked = run::check(&frame.json::<ScriptFile>()?, &source).await;
                checked.map_err(|error| Failed { error, goes_on: true }).and_then(|()| worker.done())
            }
            // The answer to a question of a run that is over.
            Kind::Told => continue,
            _ => return Err(protocol::odd("an order was due")),
        };
        let mut goes_on = true;
        if let Err(failed) = failed {
            worker.output.send_json(Kind::Failed, &failed)?;
            goes_on = failed.goes_on;
        }
        // Connections that wait to be used again are the process's, and outlive their run: many of them are the next run's harm.
        if !goes_on || lowest_free()? > DESCRIPTORS_KEPT_MAX {
            return Ok(());
        }
    }
}

impl Worker {
    fn done(&self) -> Result<(), Failed> {
        // A pool that is gone is noticed where the next frame is read.
        let _ = self.output.send(Kind::Done, &[]);
        Ok(())
    }
}

/// Cuts a text at a bound in bytes, between two characters.
fn cut(text: &mut String, bytes_max: usize) {
    let end = (0..=bytes_max.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or_default());
}

/// Reads frames as they come; a partly read one is lost to nobody, as the reader is never cut off.
fn reader(mut stream: tokio::net::UnixStream) -> mpsc::Receiver<Frame> {
    let (to, frames) = mpsc::channel(FRAMES_WAITING_MAX);
    tokio::spawn(async move {
        while let Ok(Some(frame)) = protocol::read(&mut stream).await {
            if to.send(frame).await.is_err() {
                return;
            }
        }
    });
    frames
}

/// Text and body of an order; `None` where the pool went away in between.
async fn rest(frames: &mut mpsc::Receiver<Frame>) -> io::Result<Option<(String, Vec<u8>)>> {
    let (mut source, mut body) = (String::new(), Vec::new());
    while let Some(frame) = frames.recv().await {
        match frame.kind {
            Kind::Source => source = String::from_utf8(frame.payload).map_err(io::Error::other)?,
            Kind::Body if body.len() + frame.payload.len() <= BODY_BYTES_MAX => body.extend(frame.payload),
            Kind::Go => return Ok(Some((source, body))),
            Kind::Told => {}
            _ => return Err(protocol::odd("the rest of an order was due")),
        }
    }
    Ok(None)
}
