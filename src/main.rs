//! Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    // Before anything makes a thread: both enter namespaces. Hidden from the help, as they are nobody's but ours.
    match args.next().as_deref() {
        Some("runtime") => return tenantry::sys::runtime::helper::main(args),
        Some(tenantry::sys::worker::VERB) => return tenantry::exec::worker::main(),
        _ => {}
    }
    let cli = tenantry::cli::Cli::parse();
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    tenantry::cli::main(cli, env)
}
