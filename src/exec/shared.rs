//! `shared`: a small store of JSON values that all runs of one daemon have in common, in its memory, lost with it.
//!
//! Bounded as a whole: at a bound a `set` is refused, and nothing that is there goes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Keys at once.
pub const KEYS_MAX: usize = 1024;
/// Keys and values together, in bytes of JSON.
pub const BYTES_MAX: usize = 1024 * 1024;

/// What can be asked of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// The value; null where there is none.
    Get {
        /// Whose.
        key: String,
    },
    /// Puts a value there.
    Set {
        /// Where.
        key: String,
        /// What.
        value: Value,
        /// For how long, in seconds; absent: as long as the daemon runs.
        #[serde(default)]
        ttl: Option<f64>,
    },
    /// Takes it away; says whether it was there.
    Delete {
        /// Which.
        key: String,
    },
    /// Adds to a number, 0 where there is none, and says what it is now.
    Increment {
        /// Which.
        key: String,
        /// How much.
        by: f64,
    },
}

/// Why the store does not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SharedError {
    /// At a bound.
    #[error("shared is full: at most {KEYS_MAX} keys and {BYTES_MAX} bytes in all")]
    Full,
    /// Not a number to add to.
    #[error("shared.increment: the value of `{0}` is not a number")]
    NotANumber(String),
    /// Not a time.
    #[error("shared.set: ttl is a number of seconds above 0")]
    Ttl,
}

#[derive(Debug)]
struct Entry {
    value: Value,
    bytes: usize,
    ends: Option<Instant>,
}

/// The store.
#[derive(Debug, Default)]
pub struct Shared {
    entries: HashMap<String, Entry>,
    bytes: usize,
}

impl Shared {
    /// Answers.
    ///
    /// # Errors
    /// A bound, or a value of another kind.
    pub fn answer(&mut self, ask: Ask, now: Instant) -> Result<Value, SharedError> {
        match ask {
            Ask::Get { key } => Ok(self.get(&key, now).cloned().unwrap_or(Value::Null)),
            Ask::Set { key, value, ttl } => {
                let ends = ttl.map(|ttl| until(now, ttl)).transpose()?;
                self.put(key, value, ends, now).map(|()| Value::Null)
            }
            Ask::Delete { key } => {
                let was = self.get(&key, now).is_some();
                self.forget(&key);
                Ok(was.into())
            }
            Ask::Increment { key, by } => {
                let was = match self.get(&key, now) {
                    None => 0.0,
                    Some(value) => value.as_f64().ok_or_else(|| SharedError::NotANumber(key.clone()))?,
                };
                let ends = self.entries.get(&key).and_then(|entry| entry.ends);
                let value = number(was + by);
                self.put(key, value.clone(), ends, now).map(|()| value)
            }
        }
    }

    fn get(&mut self, key: &str, now: Instant) -> Option<&Value> {
        if self.entries.get(key).is_some_and(|entry| entry.is_over(now)) {
            self.forget(key);
        }
        self.entries.get(key).map(|entry| &entry.value)
    }

    fn put(&mut self, key: String, value: Value, ends: Option<Instant>, now: Instant) -> Result<(), SharedError> {
        let bytes = key.len() + value.to_string().len();
        if !self.fits(&key, bytes) {
            let over: Vec<String> =
                self.entries.iter().filter(|(_, e)| e.is_over(now)).map(|(key, _)| key.clone()).collect();
            over.iter().for_each(|key| self.forget(key));
        }
        if !self.fits(&key, bytes) {
            return Err(SharedError::Full);
        }
        self.forget(&key);
        self.bytes += bytes;
        self.entries.insert(key, Entry { value, bytes, ends });
        Ok(())
    }

    fn fits(&self, key: &str, bytes: usize) -> bool {
        let (held, others) = match self.entries.get(key) {
            Some(entry) => (entry.bytes, self.entries.len() - 1),
            None => (0, self.entries.len()),
        };
        others < KEYS_MAX && self.bytes - held + bytes <= BYTES_MAX
    }

    fn forget(&mut self, key: &str) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.bytes;
        }
    }
}

impl Entry {
    fn is_over(&self, now: Instant) -> bool {
        self.ends.is_some_and(|ends| ends <= now)
    }
}

fn until(now: Instant, ttl: f64) -> Result<Instant, SharedError> {
    let ttl = Duration::try_from_secs_f64(ttl).ok().filter(|ttl| !ttl.is_zero());
    ttl.and_then(|ttl| now.checked_add(ttl)).ok_or(SharedError::Ttl)
}

/// A whole number stays one in JSON.
fn number(number: f64) -> Value {
    let whole = number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0;
    if whole { Value::from(number as i64) } else { Value::from(number) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(key: &str, value: Value, ttl: Option<f64>) -> Ask {
        Ask::Set { key: key.into(), value, ttl }
    }

    fn get(key: &str) -> Ask {
        Ask::Get { key: key.into() }
    }

    #[test]
    fn a_value_is_there_until_it_is_deleted_or_over() {
        let (mut shared, now) = (Shared::default(), Instant::now());
        assert_eq!(shared.answer(get("a"), now), Ok(Value::Null));
        shared.answer(set("a", json!({"n": 1}), None), now).unwrap();
        shared.answer(set("b", json!(2), Some(1.5)), now).unwrap();
        assert_eq!(shared.answer(get("a"), now), Ok(json!({"n": 1})));
        assert_eq!(shared.answer(get("b"), now + Duration::from_secs(1)), Ok(json!(2)));
        assert_eq!(shared.answer(get("b"), now + Duration::from_secs(2)), Ok(Value::Null));
        assert_eq!(shared.answer(Ask::Delete { key: "a".into() }, now), Ok(json!(true)));
        assert_eq!(shared.answer(Ask::Delete { key: "a".into() }, now), Ok(json!(false)));
        assert_eq!((shared.bytes, shared.entries.len()), (0, 0));
        assert_eq!(shared.answer(set("a", json!(1), Some(f64::NAN)), now), Err(SharedError::Ttl));
    }

    #[test]
    fn counting_begins_at_nothing_and_keeps_its_end() {
        let (mut shared, now) = (Shared::default(), Instant::now());
        let increment = |by| Ask::Increment { key: "n".into(), by };
        assert_eq!(shared.answer(increment(1.0), now), Ok(json!(1)));
        assert_eq!(shared.answer(increment(2.5), now), Ok(json!(3.5)));
        shared.answer(set("n", json!(1), Some(1.0)), now).unwrap();
        shared.answer(increment(1.0), now).unwrap();
        assert_eq!(shared.answer(get("n"), now + Duration::from_secs(2)), Ok(Value::Null));
        shared.answer(set("n", json!("x"), None), now).unwrap();
        assert_eq!(shared.answer(increment(1.0), now), Err(SharedError::NotANumber("n".into())));
    }

    #[test]
    fn at_a_bound_a_new_value_is_refused_and_an_old_one_can_be_replaced() {
        let (mut shared, now) = (Shared::default(), Instant::now());
        for key in 0..KEYS_MAX {
            shared.answer(set(&key.to_string(), json!(1), Some(10.0)), now).unwrap();
        }
        assert_eq!(shared.answer(set("more", json!(1), None), now), Err(SharedError::Full));
        shared.answer(set("1", json!(2), Some(10.0)), now).unwrap();
        let later = now + Duration::from_secs(11);
        shared.answer(set("more", json!(1), None), later).unwrap();
        let large = json!("x".repeat(BYTES_MAX));
        assert_eq!(shared.answer(set("large", large, None), later), Err(SharedError::Full));
    }
}
