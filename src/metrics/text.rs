//! The exposition: Prometheus's text format 0.0.4, or OpenMetrics 1.0 for who asks for it.
//!
//! The two differ in three places: how a counter's family is called, how the text ends, and its content type.

use std::fmt::{Display, Write as _};

use super::Histogram;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4`.
    Prometheus,
    /// `application/openmetrics-text; version=1.0.0`.
    OpenMetrics,
}

impl Format {
    /// What a client takes, by its `Accept`.
    pub fn for_accept(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// The `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A text that is being written, one family after the other.
#[derive(Debug)]
pub struct Text {
    format: Format,
    out: String,
}

/// The samples of one name.
#[derive(Debug)]
pub struct Family<'a> {
    out: &'a mut String,
    name: &'a str,
    suffix: &'static str,
}

impl Text {
    /// An empty one.
    pub const fn new(format: Format) -> Self {
        Self { format, out: String::new() }
    }

    /// Begins a family that goes up; its samples are called `<name>_total`.
    pub fn counter<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        let suffix = if self.format == Format::Prometheus { "_total" } else { "" };
        self.begin(name, suffix, "counter", help);
        Family { out: &mut self.out, name, suffix: "_total" }
    }

    /// Begins a family of what is so now.
    pub fn gauge<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        self.begin(name, "", "gauge", help);
        Family { out: &mut self.out, name, suffix: "" }
    }

    /// Begins a family of how long things took; its name ends in `_seconds`.
    pub fn histogram<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        self.begin(name, "", "histogram", help);
        Family { out: &mut self.out, name, suffix: "" }
    }

    fn begin(&mut self, name: &str, suffix: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(self.out, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}");
    }

    /// The whole text.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }
}

impl Family<'_> {
    /// Writes a sample. No two samples of a family may have the same labels.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, None, value);
    }

    /// Writes a histogram's samples.
    pub fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let (buckets, sum) = histogram.cumulated();
        let count = buckets.last().map_or(0, |(_, count)| *count);
        for (bound, below) in buckets {
            self.line("_bucket", labels, Some(bound), below);
        }
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, count);
    }

    fn line(&mut self, part: &str, labels: &[(&str, &str)], bound: Option<f64>, value: impl Display) {
        let _ = write!(self.out, "{}{}{part}", self.name, self.suffix);
        let mut before = '{';
        for (name, value) in labels {
            let _ = write!(self.out, "{before}{name}=\"");
            escape(self.out, value);
            self.out.push('"');
            before = ',';
        }
        match bound {
            Some(bound) if bound.is_finite() => _ = write!(self.out, "{before}le=\"{bound:?}\""),
            Some(_) => _ = write!(self.out, "{before}le=\"+Inf\""),
            None => {}
        }
        let close = if bound.is_some() || !labels.is_empty() { "}" } else { "" };
        let _ = writeln!(self.out, "{close} {value}");
    }
}

fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn written(format: Format) -> String {
        let mut text = Text::new(format);
        let mut family = text.counter("requests", "Requests.");
        family.sample(&[("class", "2xx"), ("why", "a \"b\"\\\n")], 7_u64);
        text.gauge("open", "Open now.").sample(&[], 1.5);
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(700));
        text.histogram("took_seconds", "Time.").histogram(&[("step", "x")], &histogram);
        text.finish()
    }

    #[test]
    fn both_forms_are_as_their_documents_say() {
        let old = written(Format::Prometheus);
        assert!(old.starts_with("# HELP requests_total Requests.\n# TYPE requests_total counter\n"), "{old}");
        assert!(old.contains("requests_total{class=\"2xx\",why=\"a \\\"b\\\"\\\\\\n\"} 7\n"), "{old}");
        assert!(old.contains("\nopen 1.5\n") && !old.contains("# EOF"), "{old}");
        let new = written(Format::OpenMetrics);
        assert!(new.starts_with("# HELP requests Requests.\n# TYPE requests counter\nrequests_total{"), "{new}");
        for line in [
            "took_seconds_bucket{step=\"x\",le=\"0.5\"} 0",
            "took_seconds_bucket{step=\"x\",le=\"1.0\"} 1",
            "took_seconds_bucket{step=\"x\",le=\"+Inf\"} 1",
            "took_seconds_sum{step=\"x\"} 0.7",
            "took_seconds_count{step=\"x\"} 1",
        ] {
            assert!(new.contains(&format!("{line}\n")), "{line} is not in {new}");
        }
        assert!(new.ends_with("\n# EOF\n"), "{new}");
    }

    #[test]
    fn a_client_gets_the_form_it_asks_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        assert_eq!(Format::for_accept(prometheus), Format::OpenMetrics);
        assert_eq!(Format::for_accept("*/*"), Format::Prometheus);
        assert_eq!(Format::for_accept(""), Format::Prometheus);
    }
}
