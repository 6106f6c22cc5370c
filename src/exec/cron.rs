//! When a script is due: five fields as in crontab(5), in UTC. Pure.
//!
//! `minute hour day-of-month month day-of-week`, each `*`, a number, a range `a-b`, a step `*/n` or `a-b/n`, or several of these with
//! commas; months and days of the week also by their first three letters, Sunday as 0 and 7. Where both days are restricted, either
//! will do, as crontab(5) has it. An own parser of two screens: the crates there are want seconds, another crate's time, or both.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// Bytes of an expression, at most.
const TEXT_BYTES_MAX: usize = 256;
/// The longest that each month is.
const MONTH_DAYS: [u32; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// A text that is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    /// Not five fields.
    #[error("five fields are wanted (minute hour day month weekday, in UTC), as `*/5 * * * *`")]
    Fields,
    /// A field's text.
    #[error("`{text}` is no {field}: {min} to {max}, `*`, ranges, steps and commas are")]
    Field {
        /// Which.
        field: &'static str,
        /// What stands there.
        text: String,
        /// The least it takes.
        min: u32,
        /// The most.
        max: u32,
    },
    /// The 31st of February.
    #[error("no date is ever that")]
    Never,
}

/// The values that one field takes, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Field {
    bits: u64,
    /// Begins with `*`: does not restrict its day where the other one does.
    star: bool,
}

impl Field {
    const fn has(self, value: u32) -> bool {
        self.bits >> value & 1 == 1
    }
}

/// When something is due, to the minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    text: Box<str>,
    minute: Field,
    hour: Field,
    day: Field,
    month: Field,
    weekday: Field,
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Cron {
    type Err = CronError;
    fn from_str(text: &str) -> Result<Self, CronError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(CronError::Fields);
        }
        let parts: Vec<_> = text.split_ascii_whitespace().collect();
        let [minute, hour, day, month, weekday] = parts[..] else { return Err(CronError::Fields) };
        let mut weekdays = field("weekday", weekday, 0, 7, Some(&WEEKDAYS))?;
        if weekdays.has(7) {
            weekdays.bits |= 1;
        }
        let cron = Self {
            text: parts.join(" ").into(),
            minute: field("minute", minute, 0, 59, None)?,
            hour: field("hour", hour, 0, 23, None)?,
            day: field("day of a month", day, 1, 31, None)?,
            month: field("month", month, 1, 12, Some(&MONTHS))?,
            weekday: weekdays,
        };
        if cron.can_be() { Ok(cron) } else { Err(CronError::Never) }
    }
}

impl Cron {
    /// Whether it is due in the minute of this time.
    pub fn is_due(&self, at: Timestamp) -> bool {
        let at: DateTime = TimeZone::UTC.to_datetime(at);
        let of = |value: i8| u32::try_from(value).unwrap_or(0);
        let weekday = of(at.weekday().to_sunday_zero_offset());
        let (by_date, by_weekday) = (self.day.has(of(at.day())), self.weekday.has(weekday));
        let day = if self.day.star || self.weekday.star { by_date && by_weekday } else { by_date || by_weekday };
        self.minute.has(of(at.minute())) && self.hour.has(of(at.hour())) && self.month.has(of(at.month())) && day
    }

    /// Whether any year has such a date.
    fn can_be(&self) -> bool {
        let by_date =
            (1..).zip(MONTH_DAYS).any(|(month, days)| self.month.has(month) && (1..=days).any(|day| self.day.has(day)));
        by_date || !(self.day.star || self.weekday.star)
    }
}

fn field(name: &'static str, text: &str, min: u32, max: u32, words: Option<&[&str]>) -> Result<Field, CronError> {
    let wrong = || CronError::Field { field: name, text: text.to_owned(), min, max };
    let number = |text: &str| -> Option<u32> {
        let lower = text.to_ascii_lowercase();
        if let Some(at) = words.and_then(|words| words.iter().position(|word| *word == lower)) {
            return Some(min + u32::try_from(at).ok()?);
        }
        let plain = text.len() <= 2 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|value| plain && (min..=max).contains(value))
    };
    let mut bits = 0_u64;
    for part in text.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let (from, to) = match range.split_once('-') {
            Some((from, to)) => (number(from).ok_or_else(wrong)?, number(to).ok_or_else(wrong)?),
            None if range == "*" => (min, max),
            None => {
                let only = number(range).ok_or_else(wrong)?;
                // `5/10` means from 5 on.
                (only, if step.is_some() { max } else { only })
            }
        };
        let step = match step {
            None => 1,
            Some(text) => text.parse().ok().filter(|step| (1..=max).contains(step)).ok_or_else(wrong)?,
        };
        if from > to {
            return Err(wrong());
        }
        bits = (from..=to).step_by(step as usize).fold(bits, |bits, value| bits | 1 << value);
    }
    Ok(Field { bits, star: text.starts_with('*') })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(cron: &str, at: &str) -> bool {
        cron.parse::<Cron>().unwrap().is_due(at.parse().unwrap())
    }

    #[test]
    fn a_schedule_is_due_in_its_minutes_alone() {
        // A Saturday.
        let at = "2026-11-28T04:35:59Z";
        for good in
            ["* * * * *", "*/5 * * * *", "35 4 28 11 *", "30-40/5 0-6 * nov sat", "0,35 4 * * 6", "5/10 * * * *"]
        {
            assert!(due(good, at), "{good}");
        }
        for bad in ["34 * * * *", "*/2 * * * *", "35 5 * * *", "* * 27 * *", "* * * dec *", "* * * * sun"] {
            assert!(!due(bad, at), "{bad}");
        }
    }

    #[test]
    fn sunday_is_0_and_7_and_either_day_will_do_where_both_are_restricted() {
        assert!(due("0 0 * * 0", "2026-11-29T00:00:00Z") && due("0 0 * * 7", "2026-11-29T00:00:00Z"));
        assert!(due("0 0 1 * sat", "2026-11-28T00:00:00Z") && due("0 0 1 * sat", "2026-12-01T00:00:00Z"));
        assert!(!due("0 0 1 * sat", "2026-12-02T00:00:00Z"));
        assert!(!due("0 0 */2 * sat", "2026-11-28T00:00:00Z"), "a star does not restrict");
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for bad in ["", "* * * *", "* * * * * *", "@daily"] {
            assert_eq!(bad.parse::<Cron>().unwrap_err(), CronError::Fields, "{bad}");
        }
        for bad in ["60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "*/0 * * * *", "5-1 * * * *"] {
            assert!(matches!(bad.parse::<Cron>(), Err(CronError::Field { .. })), "{bad}");
        }
        for bad in ["+5 * * * *", "1,, * * * *", "- * * * *", "a * * * *", "1-2-3 * * * *"] {
            assert!(bad.parse::<Cron>().is_err(), "{bad}");
        }
        assert_eq!("0 0 31 2 *".parse::<Cron>().unwrap_err(), CronError::Never);
        assert!("0 0 29 feb *".parse::<Cron>().is_ok() && "0 0 31 2 mon".parse::<Cron>().is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_odd_to_be_read(text in ".{0,80}") {
            let _ = text.parse::<Cron>();
        }

        #[test]
        fn numbers_mean_what_they_say(minute in 0_u32..60, hour in 0_u32..24, other in 0_u32..60) {
            let cron: Cron = format!("{minute} {hour} * * *").parse().unwrap();
            let at = format!("2026-11-28T{hour:02}:{other:02}:00Z").parse().unwrap();
            proptest::prop_assert_eq!(cron.is_due(at), minute == other);
        }
    }
}
