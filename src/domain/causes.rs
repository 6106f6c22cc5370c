//! Errors for people.

use std::error::Error;

/// An error with all its causes, in one line. No error's own text repeats its cause's.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
