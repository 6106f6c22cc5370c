//! Whose requests do not wake a container. Asked for every request, so all words are looked for at once.

use aho_corasick::AhoCorasick;

use crate::config;

/// The requests that `proxy.quiet` names.
#[derive(Debug)]
pub struct Quiet {
    paths: Box<[Box<str>]>,
    /// Words in any case; none where there are no words.
    agents: Option<AhoCorasick>,
}

impl Quiet {
    /// Those of a configuration.
    pub fn new(config: &config::Quiet) -> Self {
        let words: Vec<&str> = config.agents.iter().map(String::as_str).filter(|word| !word.is_empty()).collect();
        // Fails for more words than a configuration may have.
        let search = || AhoCorasick::builder().ascii_case_insensitive(true).build(&words).ok();
        let agents = if words.is_empty() { None } else { search() };
        Self { paths: config.paths.iter().map(|path| path.as_str().into()).collect(), agents }
    }

    /// Whether a request is one of them.
    pub fn matches(&self, path: &str, agent: &str) -> bool {
        self.paths.iter().any(|quiet| **quiet == *path)
            || self.agents.as_ref().is_some_and(|words| words.is_match(agent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crawlers_and_probes_are_known_by_a_word_and_browsers_by_none() {
        let quiet = Quiet::new(&config::Quiet::default());
        for agent in
            ["Mozilla/5.0 (compatible; Googlebot/2.1)", "kube-probe/1.32", "ELB-HealthChecker/2.0", "PINGDOM.com_bot"]
        {
            assert!(quiet.matches("/", agent), "{agent}");
        }
        for agent in ["Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0", "curl/8.14", ""] {
            assert!(!quiet.matches("/", agent), "{agent}");
        }
        assert!(quiet.matches("/favicon.ico", "") && !quiet.matches("/favicon.ico/", ""));
    }

    #[test]
    fn an_empty_word_is_in_nobodys_name() {
        let quiet = Quiet::new(&config::Quiet { paths: Vec::new(), agents: vec![String::new()] });
        assert!(!quiet.matches("/favicon.ico", "Googlebot"));
    }
}
