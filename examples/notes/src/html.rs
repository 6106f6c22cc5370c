//! The page: plain, readable without scripts and by a screen reader.

use std::fmt::Write as _;

use crate::store::Note;

const STYLE: &str = "body{font:1.1rem/1.5 system-ui,sans-serif;max-width:40rem;margin:2rem auto;padding:0 1rem}\
    li{white-space:pre-wrap;margin:.5rem 0}time{color:#555;font-size:.85rem}\
    textarea{width:100%;font:inherit;box-sizing:border-box}button{font:inherit;padding:.3rem 1rem}";

/// The page with all notes and the form for another.
pub fn page(customer: &str, plan: &str, notes: &[Note]) -> String {
    let (customer, plan) = (escape(customer), escape(plan));
    let mut list = String::new();
    for note in notes {
        // Writing to a String cannot fail.
        let _ = writeln!(
            list,
            "<li>{} <time datetime=\"{at}\">{at}</time></li>",
            escape(&note.text),
            at = escape(&note.created_at)
        );
    }
    let list = if list.is_empty() { "<p>No notes yet.</p>".to_owned() } else { format!("<ul>\n{list}</ul>") };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>Notes of {customer}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Notes of {customer}</h1>\n<p>Plan: {plan}</p>\n\
         <form method=\"post\" action=\"/notes\">\n<p><label for=\"text\">New note</label>\n\
         <textarea id=\"text\" name=\"text\" rows=\"3\" maxlength=\"2000\" required></textarea></p>\n\
         <button>Add</button>\n</form>\n<h2>All notes</h2>\n{list}\n</main>\n</body>\n</html>\n"
    )
}

/// Text as text, in content and in quoted attributes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_special_character_is_escaped() {
        assert_eq!(escape("<a href='x'>\"&\"</a>"), "&lt;a href=&#39;x&#39;&gt;&quot;&amp;&quot;&lt;/a&gt;");
    }

    #[test]
    fn an_empty_page_says_so() {
        assert!(page("Acme", "free", &[]).contains("No notes yet."));
    }
}
