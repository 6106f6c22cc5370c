//! Running nft(8): bounded in time and output, and with its reason in the error.
//!
//! The `nftables` crate's own helper leaves nft's standard error with the daemon's and an nft that hangs running,
//! so only its types are used here.

use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use nftables::helper::NftablesError;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// How long nft may take for a part of the table; it waits while other tables of the machine change.
pub(super) const CHANGE_MS_MAX: u64 = 10_000;

/// How long nft may take for the whole table: a thousand tenants of twenty rules take a second.
pub(super) const LOAD_MS_MAX: u64 = 60_000;

/// Output kept of one run: a listing of all chains of 65 thousand tenants fits.
const OUTPUT_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Of what nft says about a failure, this much goes into the error, in characters.
const REASON_CHARS_MAX: usize = 400;

/// What nft says of what is not there (`LC_ALL=C`).
const ABSENT: &str = "No such file or directory";

const PROGRAM: &str = "nft";

/// Why a run gave nothing.
#[derive(Debug)]
pub(super) enum RunError {
    Nft(NftablesError),
    Timeout { waited_ms: u64 },
}

/// Hands one transaction to nft; all of it is in force afterwards, or nothing.
pub(super) async fn commit(json: &str, waited_ms: u64) -> Result<(), RunError> {
    run(&["-j", "-f", "-"], json, "applying a transaction", waited_ms).await.map(drop)
}

/// The chains of all tables of the family, as JSON.
pub(super) async fn list_chains() -> Result<String, RunError> {
    run(&["-j", "list", "chains", "inet"], "", "listing the chains", CHANGE_MS_MAX).await
}

/// The rules of one chain, as JSON; `None` where there is no such chain.
pub(super) async fn list_chain(table: &str, chain: &str) -> Result<Option<String>, RunError> {
    list(&["-j", "list", "chain", "inet", table, chain], "listing a chain", CHANGE_MS_MAX).await
}

/// The sets of a table with what is in them, as JSON; `None` where there is no such table.
pub(super) async fn list_sets(table: &str) -> Result<Option<String>, RunError> {
    list(&["-j", "list", "sets", "table", "inet", table], "listing the sets", LOAD_MS_MAX).await
}

async fn list(args: &[&str], what: &str, waited_ms: u64) -> Result<Option<String>, RunError> {
    match run(args, "", what, waited_ms).await {
        Ok(text) => Ok(Some(text)),
        Err(RunError::Nft(NftablesError::NftFailed { stderr, .. })) if stderr.contains(ABSENT) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn run(args: &[&str], input: &str, what: &str, waited_ms: u64) -> Result<String, RunError> {
    let output = match tokio::time::timeout(Duration::from_millis(waited_ms), execute(args, input)).await {
        Ok(Ok(output)) => output,
        Ok(Err(inner)) => return Err(RunError::Nft(NftablesError::NftExecution { program: PROGRAM.into(), inner })),
        Err(_) => return Err(RunError::Timeout { waited_ms }),
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let reason: String = stderr.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().into();
        let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
        let hint = format!("{what}: {reason}");
        let (stdout, stderr) = (String::new(), stderr.chars().take(REASON_CHARS_MAX).collect());
        return Err(RunError::Nft(NftablesError::NftFailed { program: PROGRAM.into(), hint, stdout, stderr }));
    }
    let encoding = |inner| RunError::Nft(NftablesError::NftOutputEncoding { program: PROGRAM.into(), inner });
    String::from_utf8(output.stdout).map_err(encoding)
}

async fn execute(args: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new(PROGRAM)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // nft may end before it has read everything; its exit status says why.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        Ok(())
    };
    let ((), stdout, stderr) = tokio::try_join!(write, read(stdout), read(stderr))?;
    Ok(Output { status: child.wait().await?, stdout, stderr })
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}
