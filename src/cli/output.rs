//! What people and scripts get to see.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

/// Between two turns of the spinner, in milliseconds.
const SPIN_MS: u64 = 100;
/// Characters of a cell, at most.
const CELL_CHARS_MAX: usize = 120;

/// A column of a list: its heading, and how a cell is made.
pub type Column = (&'static str, fn(&Value) -> String);

/// How results are printed.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// The answer's data as it came.
    pub json: bool,
    /// Ids alone, no progress.
    pub quiet: bool,
}

/// Writes to standard output. Who closed it (`| head`) has seen enough: that is no failure.
///
/// # Errors
/// Any other failure to write.
pub fn write(bytes: &[u8]) -> anyhow::Result<()> {
    write_on(bytes).map(drop)
}

/// The same; says whether anybody reads on.
///
/// # Errors
/// As [`write`].
pub fn write_on(bytes: &[u8]) -> anyhow::Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Writes a line to standard output.
///
/// # Errors
/// As [`write`].
pub fn line(text: &str) -> anyhow::Result<()> {
    write(format!("{text}\n").as_bytes())
}

/// Writes a line to standard error; a failure of that has nowhere to go.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Says why a command failed, with all causes.
pub fn complain(error: &anyhow::Error) {
    note(&format!("error: {error:#}"));
}

/// A value as a cell shows it.
pub fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(" "),
        Value::Object(fields) => {
            let set = fields.iter().filter(|(_, value)| cell(value) != "-");
            set.map(|(key, value)| format!("{key}={}", cell(value))).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    };
    let text = if text.is_empty() { "-".to_owned() } else { text };
    // What a tenant or a client wrote must not move the cursor.
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    if text.chars().count() > CELL_CHARS_MAX {
        clean.take(CELL_CHARS_MAX - 1).chain(std::iter::once('…')).collect()
    } else {
        clean.collect()
    }
}

/// A field's value for people: a time to the second, limits with units.
fn field(name: &str, value: &Value) -> String {
    match name {
        "limits" => limits(value),
        "size" => bytes(value),
        "env_sync" if value["pending"] == true => "in force at the next start".to_owned(),
        "env_sync" => "in force".to_owned(),
        _ if name.ends_with("_at") => time(value),
        _ => cell(value),
    }
}

fn limits(value: &Value) -> String {
    let shown = |name: &str, value: &Value| match name {
        "cpu" | "pids" => cell(value),
        _ => bytes(value),
    };
    let set = value.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    let words: Vec<_> = set.map(|(name, value)| format!("{name}={}", shown(name, value).replace(' ', ""))).collect();
    if words.is_empty() { "-".to_owned() } else { words.join(" ") }
}

/// A time to the second.
pub fn time(value: &Value) -> String {
    let parsed = value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    parsed.map_or_else(|| cell(value), |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// A number of bytes for people.
pub fn bytes(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), |bytes| indicatif::BinaryBytes(bytes).to_string())
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
}

fn trimmed(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

impl Output {
    /// Prints a list. As JSON it has the form of the API's data, all pages in one.
    ///
    /// # Errors
    /// As [`write`].
    pub fn list(self, key: &str, items: Vec<Value>, columns: &[Column]) -> anyhow::Result<()> {
        if self.json {
            let count = items.len();
            let pagination = json!({ "total": count, "page": 1, "limit": count, "totalPages": 1 });
            return line(&serde_json::to_string_pretty(&json!({ key: items, "pagination": pagination }))?);
        }
        if self.quiet {
            return items.iter().try_for_each(|item| line(&cell(&item["id"])));
        }
        let mut table = table();
        table.set_header(columns.iter().map(|(heading, _)| *heading));
        for item in &items {
            table.add_row(columns.iter().map(|(_, make)| make(item)));
        }
        line(&trimmed(&table))
    }

    /// Prints one thing, a field a line.
    ///
    /// # Errors
    /// As [`write`].
    pub fn one(self, item: &Value, fields: &[&str]) -> anyhow::Result<()> {
        if self.json {
            return line(&serde_json::to_string_pretty(item)?);
        }
        if self.quiet {
            return line(&cell(&item["id"]));
        }
        let mut table = table();
        for name in fields {
            table.add_row([(*name).to_owned(), field(name, &item[*name])]);
        }
        self.warn(item);
        line(&trimmed(&table))
    }

    /// Prints what an answer warns of.
    pub fn warn(self, item: &Value) {
        for warning in item["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            note(&format!("warning: {warning}"));
        }
    }

    /// Whether someone watches who wants to see progress.
    fn watched(self) -> bool {
        !self.quiet && !self.json && std::io::stderr().is_terminal()
    }

    /// Turns while a wait lasts; hidden where nobody watches.
    pub fn spinner(self, text: impl Into<String>) -> Spinner {
        let bar = if self.watched() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.set_message(text.into());
        bar.enable_steady_tick(Duration::from_millis(SPIN_MS));
        Spinner(bar)
    }

    /// A bar over bytes; `None`: nobody knows how many.
    pub fn bar(self, total: Option<u64>) -> ProgressBar {
        if !self.watched() {
            return ProgressBar::hidden();
        }
        let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
        let known = "{msg:12} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}";
        let template = if total.is_some() { known } else { "{msg:12} {spinner} {binary_bytes} {binary_bytes_per_sec}" };
        match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}

/// Goes away when dropped.
#[derive(Debug)]
pub struct Spinner(ProgressBar);

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_one_line_without_control_characters() {
        assert_eq!(cell(&json!(null)), "-");
        assert_eq!(cell(&json!("")), "-");
        assert_eq!(cell(&json!("a\u{1b}[2Jb\n")), "a [2Jb ");
        assert_eq!(cell(&json!({"cpu": 1.5, "pids": null})), "cpu=1.5");
        assert_eq!(cell(&json!({"a": {}, "b": [], "c": ""})), "-");
        assert_eq!(cell(&json!(["a", 1])), "a 1");
        assert_eq!(cell(&json!("x".repeat(500))).chars().count(), CELL_CHARS_MAX);
        assert_eq!(bytes(&json!(1_048_576)), "1.00 MiB");
    }

    #[test]
    fn a_field_is_shown_for_people() {
        assert_eq!(field("created_at", &json!("2026-11-23T15:33:38.79501239Z")), "2026-11-23T15:33:38Z");
        assert_eq!(field("ready_at", &json!(null)), "-");
        let limits = json!({"cpu": 0.5, "memory": 1_048_576, "pids": 9, "disk": null});
        assert_eq!(field("limits", &limits), "cpu=0.5 memory=1.00MiB pids=9");
        assert_eq!(field("limits", &json!({"cpu": null})), "-");
        assert_eq!(field("env_sync", &json!({"pending": true})), "in force at the next start");
    }
}
