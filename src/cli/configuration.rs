//! `tenantry config`.

use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;

use super::Environment;
use super::failure::Failure;
use super::output::{Output, line};
use crate::config::Config;

/// Check or print the configuration.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read the configuration as `serve` would, and say whether it can be used; with --json print what it comes to
    Check,
    /// Print every key with its default, as TOML
    Default,
}

/// Reads the configuration; a bad one is a usage error.
///
/// # Errors
/// Names the key.
pub fn load(file: Option<&Path>, env: &Environment) -> Result<Config, Failure> {
    Config::load(file, env.clone()).map_err(|error| Failure::usage(&error))
}

/// Carries the command out.
///
/// # Errors
/// A configuration that cannot be used.
pub fn run(command: &Command, file: Option<&Path>, env: &Environment, out: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::Default => line(Config::default().to_toml()?.trim_end())?,
        Command::Check => {
            let config = load(file, env)?;
            if out.json {
                line(&serde_json::to_string_pretty(&config)?)?;
            } else if !out.quiet {
                line("the configuration can be used")?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_configuration_is_a_usage_error_that_names_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.toml");
        std::fs::write(&file, "instence = 'x'").unwrap();
        let error = load(Some(&file), &Environment::new()).unwrap_err();
        assert!(error.to_string().contains("instence"), "{error}");
        assert!(load(Some(&folder.path().join("none.toml")), &Environment::new()).is_err());
    }
}
