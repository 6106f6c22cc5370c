//! What a script says of itself in the comments it begins with. Pure.
//!
//! ```text
//!  // @timeout 30s                 from the first line to the end of the answer (`5000ms`, `2m`, or seconds)
//!  // @concurrent 4                runs of it at once; who comes then waits a while, then gets a 503
//!  // @cors *                      or origins with commas: browsers elsewhere may read its answers
//!  // @token                       a token of this API is wanted; `@token secret:NAME`: the secret of that name as bearer
//!  // @description Makes tenants
//!  // @enabled false               it answers nothing
//!  // @schedule */5 * * * *        it is run by the clock, in UTC, with the method SCHEDULE
//!  // @idempotency body.id         or `header.<name>`: a delivery with a key that was handled runs nothing
//!  // @scope project=shop          its calls to the API see this project alone
//! ```
//!
//! Only the first lines count, up to the first that is neither comment nor empty. Words of JSDoc that are not ours are nobody's
//! business; one of ours with a value that cannot be is an error with its line, because half a protection is none.

use std::num::NonZeroU32;
use std::time::Duration;

use super::cron::Cron;

/// The longest that a script may ask for, in milliseconds.
pub const TIMEOUT_MS_MAX: u64 = 300_000;
/// The most runs at once that a script may ask for.
const CONCURRENT_MAX: u32 = 1_024;
/// Origins that one script may name.
const ORIGINS_MAX: usize = 32;
/// Bytes of an origin, at most.
const ORIGIN_BYTES_MAX: usize = 300;
/// Characters of a description that are kept.
const DESCRIPTION_CHARS_MAX: usize = 500;
/// Parts of the path to a delivery's key, at most.
const KEY_DEPTH_MAX: usize = 8;
/// Bytes of a name, at most.
const NAME_BYTES_MAX: usize = 128;
/// Lines that are looked at, at most.
const LINES_MAX: usize = 1_000;

/// Who may ask.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Door {
    /// Anyone.
    #[default]
    Open,
    /// Whoever has a token of this API.
    Token,
    /// Whoever has the secret of this name.
    Secret(String),
}

/// Whose pages may read the answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cors {
    /// Everybody's.
    Any,
    /// Those of these origins.
    Origins(Vec<String>),
}

/// Where a delivery's key stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// In the body, which is JSON, below these names.
    Body(Vec<String>),
    /// In this header, in lower case.
    Header(String),
}

/// What a script says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `@timeout`.
    pub timeout: Option<Duration>,
    /// `@concurrent`.
    pub concurrent: Option<NonZeroU32>,
    /// `@cors`.
    pub cors: Option<Cors>,
    /// `@token`.
    pub door: Door,
    /// `@description`.
    pub description: Option<String>,
    /// `@enabled`.
    pub enabled: bool,
    /// `@schedule`.
    pub schedule: Option<Cron>,
    /// `@idempotency`.
    pub idempotency: Option<KeySource>,
    /// `@scope`: a project's id or alias.
    pub scope: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeout: None,
            concurrent: None,
            cors: None,
            door: Door::Open,
            description: None,
            enabled: true,
            schedule: None,
            idempotency: None,
            scope: None,
        }
    }
}

/// A comment of ours that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: @{word}: {problem}")]
pub struct CommentError {
    /// From 1.
    pub line: u32,
    /// Which.
    pub word: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

const WORDS: [&str; 9] =
    ["timeout", "concurrent", "cors", "token", "description", "enabled", "schedule", "idempotency", "scope"];

/// Reads a script's comments.
///
/// # Errors
/// The first that cannot be.
pub fn read(source: &str) -> Result<Settings, CommentError> {
    let mut settings = Settings::default();
    let mut seen = Vec::new();
    for (line, text) in leading_comments(source) {
        let Some((word, value)) = tag(text) else { continue };
        let wrong = |problem: String| CommentError { line, word, problem };
        if seen.contains(&word) {
            return Err(wrong("is given twice".to_owned()));
        }
        seen.push(word);
        apply(&mut settings, word, value).map_err(wrong)?;
    }
    Ok(settings)
}

/// Lines of the comments a text begins with, without what makes them comments; each with its number.
fn leading_comments(source: &str) -> Vec<(u32, &str)> {
    let mut found = Vec::new();
    let mut inside = false;
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    for (number, line) in (1..).zip(source.lines().take(LINES_MAX)) {
        let mut text = line.trim();
        if number == 1 && text.starts_with("#!") {
            continue;
        }
        if !inside {
            if text.is_empty() {
                continue;
            }
            if let Some(rest) = text.strip_prefix("//") {
                found.push((number, rest.trim_start_matches('/').trim()));
                continue;
            }
            let Some(rest) = text.strip_prefix("/*") else { break };
            inside = true;
            text = rest;
        }
        let ends = text.find("*/");
        let inner = &text[..ends.unwrap_or(text.len())];
        found.push((number, inner.trim_start_matches('*').trim()));
        if let Some(at) = ends {
            inside = false;
            let rest = text[at + 2..].trim();
            if !(rest.is_empty() || rest.starts_with("//")) {
                break;
            }
        }
    }
    found
}

/// A word of ours and what stands behind it.
fn tag(text: &str) -> Option<(&'static str, &str)> {
    let rest = text.strip_prefix('@')?;
    let (word, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    Some((WORDS.into_iter().find(|known| *known == word)?, value.trim()))
}

fn apply(settings: &mut Settings, word: &'static str, value: &str) -> Result<(), String> {
    match word {
        "timeout" => settings.timeout = Some(duration(value)?),
        "concurrent" => {
            let count = value.parse().ok().filter(|count: &NonZeroU32| count.get() <= CONCURRENT_MAX);
            settings.concurrent =
                Some(count.ok_or_else(|| format!("`{value}` is not a number from 1 to {CONCURRENT_MAX}"))?);
        }
        "cors" => settings.cors = Some(cors(value)?),
        "token" => settings.door = door(value)?,
        "description" => settings.description = Some(value.chars().take(DESCRIPTION_CHARS_MAX).collect()),
        "enabled" => {
            settings.enabled = value.parse().map_err(|_| format!("`{value}` is neither true nor false"))?;
        }
        "schedule" => settings.schedule = Some(value.parse().map_err(|error| format!("{error}"))?),
        "idempotency" => settings.idempotency = Some(key_source(value)?),
        _ => settings.scope = Some(scope(value)?),
    }
    Ok(())
}

fn duration(value: &str) -> Result<Duration, String> {
    let unit_at = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at(unit_at);
    let per_unit = match unit.trim() {
        "ms" => Some(1),
        "" | "s" => Some(1_000),
        "m" => Some(60_000),
        _ => None,
    };
    let ms = per_unit.and_then(|ms: u64| number.parse::<u64>().ok()?.checked_mul(ms));
    match ms {
        Some(ms) if (1..=TIMEOUT_MS_MAX).contains(&ms) => Ok(Duration::from_millis(ms)),
        _ => Err(format!("`{value}` is no time such as 30s, 5000ms or 2m, of at most {} s", TIMEOUT_MS_MAX / 1_000)),
    }
}

fn cors(value: &str) -> Result<Cors, String> {
    if value == "*" {
        return Ok(Cors::Any);
    }
    let origins: Vec<_> =
        value.split([',', ' ']).filter(|part| !part.is_empty()).map(origin).collect::<Result<_, _>>()?;
    match origins.len() {
        1..=ORIGINS_MAX => Ok(Cors::Origins(origins)),
        _ => Err(format!("`*` or 1 to {ORIGINS_MAX} origins with commas are wanted")),
    }
}

/// As browsers send it: scheme, host and port, in lower case.
fn origin(text: &str) -> Result<String, String> {
    let wrong = || format!("`{text}` is no origin such as https://shop.example.com");
    if text.len() > ORIGIN_BYTES_MAX {
        return Err(wrong());
    }
    let url = url::Url::parse(text).map_err(|_| wrong())?;
    let plain = matches!(url.scheme(), "http" | "https") && url.path() == "/" && url.query().is_none();
    let bare = plain && url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
    if bare { Ok(url.origin().ascii_serialization()) } else { Err(wrong()) }
}

fn door(value: &str) -> Result<Door, String> {
    match value.strip_prefix("secret:") {
        Some(name) if super::secrets::is_name(name) => Ok(Door::Secret(name.to_owned())),
        None if value.is_empty() => Ok(Door::Token),
        _ => Err(format!("`{value}` is neither nothing nor secret:NAME")),
    }
}

fn key_source(value: &str) -> Result<KeySource, String> {
    let wrong = || format!("`{value}` is neither body.<name>, as body.data.id, nor header.<name>");
    if let Some(path) = value.strip_prefix("body.") {
        let names: Vec<_> = path.split('.').map(str::to_owned).collect();
        let sound = |name: &String| {
            (1..=NAME_BYTES_MAX).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        };
        let fits = names.len() <= KEY_DEPTH_MAX && names.iter().all(sound);
        return if fits { Ok(KeySource::Body(names)) } else { Err(wrong()) };
    }
    let name = value.strip_prefix("header.").ok_or_else(wrong)?;
    let sound = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let fits = sound && (1..=NAME_BYTES_MAX).contains(&name.len());
    if fits { Ok(KeySource::Header(name.to_ascii_lowercase())) } else { Err(wrong()) }
}

fn scope(value: &str) -> Result<String, String> {
    let name = value.strip_prefix("project=").map(str::trim).filter(|name| !name.is_empty());
    let sound = name.filter(|name| name.len() <= NAME_BYTES_MAX && !name.contains(char::is_whitespace));
    sound.map(str::to_owned).ok_or_else(|| format!("`{value}` is not project=<id or alias>"))
}

/// Lets a page of another origin read an answer: the origin to be allowed, where it may.
pub fn allowed_origin<'a>(cors: &'a Cors, origin: &'a str) -> Option<&'a str> {
    match cors {
        Cors::Any => Some("*"),
        Cors::Origins(known) => known.iter().find(|known| *known == origin).map(String::as_str),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(source: &str) -> CommentError {
        read(source).expect_err(source)
    }

    #[test]
    fn a_script_that_says_nothing_answers_anyone() {
        for source in ["", "return 1", "// hello\nreturn 1", "return 1 // @token"] {
            assert_eq!(read(source).unwrap(), Settings::default(), "{source}");
        }
    }

    #[test]
    fn everything_is_read() {
        let source = "#!/usr/bin/env x\n// @timeout 1500ms\n//   @concurrent 4\n\n/* @cors https://A.example, http://b.example:81 */\n\
                      /**\n * Makes tenants.\n * @token secret:HOOK_TOKEN\n * @description Makes tenants\n * @enabled false\n \
                      * @schedule */5 1 * * mon\n * @param x ignored */\n// @idempotency body.data.id\n// @scope project=shop\nreturn 1";
        // A step in a block comment ends it: JavaScript's own rule, so such a schedule stands behind `//`.
        assert!(read(source).is_err());
        let read = read(&source.replace("*/5 1", "0-59/5 1")).unwrap();
        assert_eq!(read.timeout, Some(Duration::from_millis(1500)));
        assert_eq!(read.concurrent.map(NonZeroU32::get), Some(4));
        assert_eq!(read.cors, Some(Cors::Origins(vec!["https://a.example".into(), "http://b.example:81".into()])));
        assert_eq!(read.door, Door::Secret("HOOK_TOKEN".into()));
        assert_eq!(read.description.as_deref(), Some("Makes tenants"));
        assert!(!read.enabled);
        assert_eq!(read.schedule.unwrap().to_string(), "0-59/5 1 * * mon");
        assert_eq!(read.idempotency, Some(KeySource::Body(vec!["data".into(), "id".into()])));
        assert_eq!(read.scope.as_deref(), Some("shop"));
    }

    #[test]
    fn only_the_first_lines_count() {
        assert_eq!(read("let x = 1\n// @token\n").unwrap().door, Door::Open);
        assert_eq!(read("/* a */ let x = 1\n// @token\n").unwrap().door, Door::Open);
        assert_eq!(read("/* a */ // b\n// @token\n").unwrap().door, Door::Token);
        assert_eq!(read("\u{feff}// @token").unwrap().door, Door::Token);
        assert_eq!(read("// see @token").unwrap().door, Door::Open);
        assert_eq!(read("/// @token").unwrap().door, Door::Token);
    }

    #[test]
    fn a_bad_value_is_told_with_its_line() {
        for (text, word) in [
            ("@timeout", "timeout"),
            ("@timeout 0", "timeout"),
            ("@timeout 301s", "timeout"),
            ("@timeout 5h", "timeout"),
            ("@timeout 99999999999999999999m", "timeout"),
            ("@concurrent 0", "concurrent"),
            ("@cors", "cors"),
            ("@cors shop.example", "cors"),
            ("@cors https://a.example/x", "cors"),
            ("@token nobody", "token"),
            ("@token secret:lower", "token"),
            ("@enabled maybe", "enabled"),
            ("@schedule * * *", "schedule"),
            ("@idempotency", "idempotency"),
            ("@idempotency body.", "idempotency"),
            ("@idempotency body.a..b", "idempotency"),
            ("@idempotency header.", "idempotency"),
            ("@scope shop", "scope"),
            ("@scope project=", "scope"),
        ] {
            let error = error(&format!("// hello\n// {text}\n"));
            assert_eq!((error.line, error.word), (2, word), "{text}");
        }
        assert_eq!(error("// @token\n// @token").problem, "is given twice");
    }

    #[test]
    fn times_have_units() {
        let of = |text: &str| duration(text).unwrap().as_millis();
        assert_eq!((of("30s"), of("5000ms"), of("2m"), of("7"), of("7 s")), (30_000, 5_000, 120_000, 7_000, 7_000));
    }

    #[test]
    fn an_origin_is_allowed_exactly() {
        let some = Cors::Origins(vec!["https://a.example".into()]);
        assert_eq!(allowed_origin(&some, "https://a.example"), Some("https://a.example"));
        assert_eq!(allowed_origin(&some, "https://a.example.evil"), None);
        assert_eq!(allowed_origin(&Cors::Any, "null"), Some("*"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_odd(text in "(//|/\\*|\\*/|@|[a-z]{1,9}| |\n|=|\\.){0,40}") {
            let _ = read(&text);
        }
    }
}
