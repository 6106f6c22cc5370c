//! From a program's name to execve, for init and for exec'd commands alike.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{AccessFlags, access, execve};

use super::kernel;
use crate::sys::runtime::wire::Failure;

/// Looked through where the environment has no PATH.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Finds a program as a shell would: by PATH, or as it is where its name holds a slash.
pub fn resolve(name: &str, path: Option<&str>) -> Result<CString, Failure> {
    let mut refused = Errno::ENOENT;
    let candidates: Vec<PathBuf> = if name.contains('/') {
        vec![PathBuf::from(name)]
    } else {
        // An empty entry means the working folder, as everywhere.
        path.unwrap_or(PATH_DEFAULT)
            .split(':')
            .map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name))
            .collect()
    };
    for candidate in candidates {
        match executable(&candidate) {
            Ok(()) => {
                let bytes = candidate.into_os_string().into_encoded_bytes();
                return CString::new(bytes).map_err(|_| not_executable(name, Errno::EINVAL));
            }
            // A later entry may have it; if none has, what stood in the way tells more than "not found".
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => refused = errno,
        }
    }
    Err(not_executable(name, refused))
}

fn executable(path: &Path) -> Result<(), Errno> {
    access(path, AccessFlags::X_OK)?;
    if path.is_dir() { Err(Errno::EISDIR) } else { Ok(()) }
}

/// The failure that names the program.
pub fn not_executable(name: &str, errno: Errno) -> Failure {
    Failure::NotExecutable { message: format!("`{name}`: {}", errno.desc()) }
}

/// The variable's value in `KEY=value` lines.
pub fn variable<'a>(lines: &'a [String], key: &str) -> Option<&'a str> {
    lines.iter().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

/// The last steps of every process of a container; returns only if they fail.
pub fn execute(program: &CStr, args: &[CString], env: &[CString], filter: &[u8]) -> Failure {
    let step = |step: &str, error: io::Error| Failure::Step { step: step.to_owned(), message: error.to_string() };
    if let Err(error) = kernel::default_signals() {
        return step("reset the signals", error);
    }
    if let Err(error) = kernel::new_session_keyring() {
        return step("leave the daemon's keyring", error);
    }
    if !filter.is_empty()
        && let Err(error) = kernel::load_seccomp(filter)
    {
        return step("load the seccomp filter", error);
    }
    let gone: Result<Infallible, Errno> = execve(program, args, env);
    match gone {
        Ok(never) => match never {},
        Err(errno) => not_executable(&program.to_string_lossy(), errno),
    }
}

/// Texts for execve; a NUL byte in one is refused.
pub fn c_strings<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Result<Vec<CString>, Failure> {
    let step = |_| Failure::Step { step: "read the command".to_owned(), message: "a text holds a NUL byte".to_owned() };
    texts.into_iter().map(|text| CString::new(text.as_ref()).map_err(step)).collect()
}

/// How libcontainer's init becomes the container's program: under the compiled seccomp filter, and reporting a failure
/// through a pipe that execve closes.
#[derive(Clone)]
pub struct Workload {
    filter: Rc<Vec<u8>>,
    outcome: Rc<File>,
    program: RefCell<CString>,
    env: RefCell<Vec<CString>>,
}

impl Workload {
    pub fn new(filter: Vec<u8>, outcome: File) -> Self {
        Self {
            filter: Rc::new(filter),
            outcome: Rc::new(outcome),
            program: RefCell::default(),
            env: RefCell::default(),
        }
    }

    fn report(&self, failure: &Failure) -> String {
        let line = serde_json::to_vec(failure).unwrap_or_default();
        // The pipe is ours alone and empty: a line this short is written whole. If the helper is gone, so is the need.
        let _ = self.outcome.as_ref().write_all(&line);
        failure.to_string()
    }
}

impl Executor for Workload {
    /// Runs in init, as the container's user, in its rootfs; from here on init does not outlive the helper.
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let refused = |failure: Failure| ExecutorValidationError::ArgValidationError(self.report(&failure));
        set_pdeathsig(Signal::SIGKILL).map_err(|e| ExecutorValidationError::ArgValidationError(e.to_string()))?;
        let process = spec.process().clone().unwrap_or_default();
        let name = process.args().iter().flatten().next().cloned().unwrap_or_default();
        let env = process.env().clone().unwrap_or_default();
        *self.program.borrow_mut() = resolve(&name, variable(&env, "PATH")).map_err(refused)?;
        Ok(())
    }

    /// Keeps the variables for execve; the process's own stay untouched.
    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        let lines = envs.into_iter().map(|(key, value)| format!("{key}={value}"));
        *self.env.borrow_mut() = c_strings(lines).map_err(|e| ExecutorSetEnvsError::Other(self.report(&e)))?;
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let args = spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default();
        let args = c_strings(&args).map_err(|e| ExecutorError::Other(self.report(&e)))?;
        // The helper ends when this has succeeded, and init must not.
        set_pdeathsig(None).map_err(|e| ExecutorError::Other(e.to_string()))?;
        let failure = execute(&self.program.borrow(), &args, &self.env.borrow(), &self.filter);
        Err(ExecutorError::Other(self.report(&failure)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_program_is_found_as_a_shell_would() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        let app = bin.join("app");
        std::fs::write(&app, "").unwrap();
        let path = format!("{}:{}", dir.path().join("none").display(), bin.display());
        let message = |name: &str| match resolve(name, Some(&path)) {
            Err(Failure::NotExecutable { message }) => message,
            other => panic!("{other:?}"),
        };
        assert_eq!(message("app"), "`app`: Permission denied");
        std::fs::set_permissions(&app, PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(resolve("app", Some(&path)).unwrap().to_str().unwrap(), app.to_str().unwrap());
        assert_eq!(message("other"), "`other`: No such file or directory");
        assert_eq!(message("/bin"), "`/bin`: Is a directory");
        assert_eq!(message(""), "``: Is a directory");
        assert_eq!(resolve("sh", None).unwrap().to_str().unwrap().rsplit('/').next(), Some("sh"));
    }

    #[test]
    fn a_variable_is_not_mistaken_for_a_longer_one() {
        let lines = ["PATHS=x".to_owned(), "PATH=/bin".to_owned()];
        assert_eq!(variable(&lines, "PATH"), Some("/bin"));
        assert_eq!(variable(&lines, "PAT"), None);
    }
}
