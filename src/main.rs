use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    // Before anything makes a thread: the helper enters namespaces.
    if args.next().as_deref() == Some("runtime") {
        return tenantry::sys::runtime::helper::main(args);
    }
    ExitCode::SUCCESS
}
