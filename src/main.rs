use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    // Before anything makes a thread: the helper enters namespaces.
    if args.next().as_deref() == Some("runtime") {
        return tenantry::sys::runtime::helper::main(args);
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let config =
        tenantry::config::Config::load(std::env::args().nth(3).as_deref().map(std::path::Path::new), std::env::vars())
            .unwrap();
    match tenantry::cli::serve::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e:?}");
            ExitCode::FAILURE
        }
    }
}
