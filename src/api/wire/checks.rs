//! The checks of a container's settings, one field each: what passes is what the domain takes.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::num::NonZeroU16;
use std::str::FromStr;

use jiff::Timestamp;

use super::settings::{ActivityBody, LimitsBody};
use crate::api::error::ApiError;
use crate::domain::container::{
    COMMAND_BYTES_MAX, COMMAND_WORDS_MAX, COMMENT_CHARS_MAX, EnvChange, ExternalId, LABELS_MAX, LabelChange,
    LimitsPatch,
};
use crate::domain::policy::{PolicyName, PolicyNameError};
use crate::domain::{
    ActivityPatch, Bytes, BytesPerSecond, Confinement, ContainerName, CpuMillis, EnvError, EnvKey, EnvVars, IdleAction,
    Pids, Secret,
};

/// Characters of a label's key, at most.
const LABEL_KEY_CHARS_MAX: usize = 63;
/// Characters of a label's value, at most.
const LABEL_VALUE_CHARS_MAX: usize = 255;
/// Cores of one container: the least the kernel's quota can say, and more than any machine has.
const CPU_CORES: std::ops::RangeInclusive<f64> = 0.001..=4096.0;
/// The smallest memory limit: below it no process starts, in bytes.
const MEMORY_BYTES_MIN: u64 = 1 << 20;
/// Tasks: the kernel's own bound (`PID_MAX_LIMIT` of `linux/threads.h`).
const PIDS_MAX: u64 = 4 << 20;
/// Bytes of an SSH public key's line, at most: a 16384-bit RSA key with a comment fits.
const SSH_KEY_BYTES_MAX: usize = 8_192;
/// Characters of a firewall policy's name, at most.
/// Bytes of an image's reference, at most.
const IMAGE_REF_BYTES_MAX: usize = 255;

/// Texts by key; null removes a key where a change is merged.
pub type Texts = BTreeMap<String, Option<String>>;
/// The same of what is not to be printed.
pub type Secrets = BTreeMap<String, Option<Secret>>;

/// What a map in the body does to the one that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maps {
    /// JSON merge patch: null removes a key, others stay.
    Merge,
    /// Exactly these keys.
    Replace,
}

/// What null means where a setting cannot be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nulls {
    /// The same as left out: a new container takes the default.
    LeftOut,
    /// An error: a change to nothing.
    Refused,
}

pub(super) fn map<T, U>(field: Option<T>, check: impl FnOnce(T) -> Result<U, ApiError>) -> Result<Option<U>, ApiError> {
    field.map(check).transpose()
}

pub(super) fn map_inner<T, U>(
    field: Option<Option<T>>,
    check: impl FnOnce(T) -> Result<U, ApiError>,
) -> Result<Option<Option<U>>, ApiError> {
    map(field, |inner| map(inner, check))
}

/// A field that cannot be empty.
pub(super) fn solid<T>(name: &'static str, field: Option<Option<T>>, nulls: Nulls) -> Result<Option<T>, ApiError> {
    match (field, nulls) {
        (Some(None), Nulls::Refused) => Err(ApiError::invalid(name, "cannot be null")),
        (field, _) => Ok(field.flatten()),
    }
}

/// A merge with null would say "remove all": more likely a slip than a wish.
pub(super) fn env_given(
    field: Option<Option<Secrets>>,
    maps: Maps,
    nulls: Nulls,
) -> Result<Option<Option<Secrets>>, ApiError> {
    match (&field, maps, nulls) {
        (Some(None), Maps::Merge, Nulls::Refused) => Err(ApiError::invalid("environment_vars", "cannot be null")),
        _ => Ok(field),
    }
}

/// The change that a map of variables asks for.
///
/// # Errors
/// A key or value that cannot be, or null where all are replaced.
pub fn env_change(vars: Secrets, maps: Maps) -> Result<EnvChange, ApiError> {
    let mut all = EnvVars::default();
    let mut changes = BTreeMap::new();
    for (name, value) in vars {
        let key: EnvKey = name.parse().map_err(|error| ApiError::from(error).of(format!("environment_vars.{name}")))?;
        match &value {
            // Also under a merge: whatever is too long or too many for an empty environment is so for any.
            Some(text) => all.set(key.clone(), text.clone()).map_err(|error| {
                let field = match &error {
                    EnvError::TooMany(_) => "environment_vars".to_owned(),
                    _ => format!("environment_vars.{key}"),
                };
                ApiError::from(error).of(field)
            })?,
            None if maps == Maps::Merge => {}
            None => return Err(ApiError::invalid(format!("environment_vars.{key}"), "a text is wanted, not null")),
        }
        changes.insert(key, value);
    }
    Ok(match maps {
        Maps::Replace => EnvChange::Replace(all),
        Maps::Merge => EnvChange::Merge(changes),
    })
}

/// The change that a map of labels asks for; what null means for the whole map, its caller knows.
pub(super) fn label_change(change: Texts, maps: Maps) -> Result<LabelChange, ApiError> {
    for (key, value) in &change {
        let field = || format!("labels.{}", key.chars().take(LABEL_KEY_CHARS_MAX).collect::<String>());
        let chars = key.chars().count();
        if !(1..=LABEL_KEY_CHARS_MAX).contains(&chars) || key.chars().any(|c| c.is_control() || c == ':' || c == '=') {
            return Err(ApiError::invalid(field(), "a key has 1 to 63 characters, none of them `:` or `=`"));
        }
        let fits = |text: &String| text.chars().count() <= LABEL_VALUE_CHARS_MAX && !text.chars().any(char::is_control);
        match value {
            Some(value) if !fits(value) => {
                return Err(ApiError::invalid(field(), "a value has up to 255 printable characters"));
            }
            None if maps == Maps::Replace => return Err(ApiError::invalid(field(), "a text is wanted, not null")),
            _ => {}
        }
    }
    // Also under a merge: what is too many for no labels is so for any.
    let set = change.values().flatten().count();
    if set > LABELS_MAX {
        return Err(ApiError::invalid("labels", format!("{set} labels are more than {LABELS_MAX}")));
    }
    Ok(match maps {
        Maps::Merge => LabelChange::Merge(change),
        Maps::Replace => {
            LabelChange::Replace(change.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
        }
    })
}

/// Labels as a body gives them: under a change null empties the map, else it is the same as left out.
pub(super) fn labels_given(field: Option<Option<Texts>>, maps: Maps, nulls: Nulls) -> Result<LabelChange, ApiError> {
    match (field, nulls) {
        (None, _) | (Some(None), Nulls::LeftOut) => Ok(LabelChange::Keep),
        (Some(None), Nulls::Refused) => Ok(LabelChange::Replace(BTreeMap::new())),
        (Some(Some(change)), _) => label_change(change, maps),
    }
}

pub(super) fn comment(text: String) -> Result<String, ApiError> {
    match text.chars().count() {
        0..=COMMENT_CHARS_MAX => Ok(text),
        chars => Err(ApiError::invalid("comment", format!("{chars} characters are more than {COMMENT_CHARS_MAX}"))),
    }
}

/// Checks a colour.
///
/// # Errors
/// Not `#rrggbb`.
pub fn color(field: &'static str, text: String) -> Result<String, ApiError> {
    let digits = text.strip_prefix('#').unwrap_or_default();
    if digits.len() == 6 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text)
    } else {
        Err(ApiError::invalid(field, "`#rrggbb` is wanted, with six hex digits"))
    }
}

/// Checks a command's words.
///
/// # Errors
/// Too many or too long, a NUL byte, or an empty program.
pub fn command(words: Vec<String>) -> Result<Vec<String>, ApiError> {
    let problem = if words.len() > COMMAND_WORDS_MAX {
        format!("{} words are more than {COMMAND_WORDS_MAX}", words.len())
    } else if words.iter().map(|word| word.len() + 1).sum::<usize>() > COMMAND_BYTES_MAX {
        format!("its words are longer than {COMMAND_BYTES_MAX} bytes together")
    } else if words.iter().any(|word| word.contains('\0')) {
        "a word holds a NUL byte".to_owned()
    } else if words.first().is_some_and(String::is_empty) {
        "the program's name is empty".to_owned()
    } else {
        return Ok(words);
    };
    Err(ApiError::invalid("command", problem))
}

pub(super) fn port(port: u16) -> Result<NonZeroU16, ApiError> {
    NonZeroU16::new(port).ok_or_else(|| ApiError::invalid("port", "1 to 65535 is wanted"))
}

/// An id, of whatever it is.
pub fn id_of<T: FromStr<Err: Display>>(field: &'static str, text: &str) -> Result<T, ApiError> {
    text.parse().map_err(|error| ApiError::bad("INVALID_ID", format!("{field}: {error}")).of(field))
}

/// A moment that is still to come.
pub(super) fn time_to_come(field: &'static str, text: &str, now: Timestamp) -> Result<Timestamp, ApiError> {
    let wanted = "a time such as 2030-01-31T00:00:00Z is wanted (RFC 3339)";
    let at: Timestamp = text.parse().map_err(|_| ApiError::invalid(field, wanted))?;
    if at > now { Ok(at) } else { Err(ApiError::invalid(field, "lies in the past")) }
}

pub(super) fn idle_timeout(seconds: u32) -> Result<u32, ApiError> {
    if seconds == 0 {
        Err(ApiError::invalid("idle_timeout", "at least 1 second, or null for never"))
    } else {
        Ok(seconds)
    }
}

pub(super) fn idle_action(text: String) -> Result<IdleAction, ApiError> {
    text.parse().map_err(|error| ApiError::invalid("idle_action", error))
}

/// What counts as use: under a change null makes it what it is in a new container, else it is the same as left out.
pub(super) fn activity_given(field: Option<Option<ActivityBody>>, nulls: Nulls) -> Result<ActivityPatch, ApiError> {
    match (field, nulls) {
        (None, _) | (Some(None), Nulls::LeftOut) => Ok(ActivityPatch::default()),
        (Some(None), Nulls::Refused) => Ok(ActivityPatch::DEFAULTS),
        (Some(Some(body)), _) => activity(body),
    }
}

fn activity(body: ActivityBody) -> Result<ActivityPatch, ApiError> {
    let seconds = |seconds: u32| match seconds {
        0 => Err(ApiError::invalid("activity.connection_idle", "at least 1 second, or null for no bound")),
        seconds => Ok(seconds),
    };
    Ok(ActivityPatch {
        requests: body.requests,
        connections: body.connections,
        connection_idle_s: map_inner(body.connection_idle, seconds)?,
        exec: body.exec,
        keepalive: body.keepalive,
        cpu: map_inner(body.cpu, |number| cores("activity.cpu", number))?,
    })
}

pub(super) fn policy(name: String) -> Result<PolicyName, ApiError> {
    name.parse().map_err(|error: PolicyNameError| ApiError::invalid("firewall_policy", error.to_string()))
}

/// One line of `authorized_keys` without options: type, base64, comment (sshd(8)).
pub(super) fn ssh_key(text: String) -> Result<String, ApiError> {
    const TYPES: [&str; 4] = ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"];
    let line = text.trim_end_matches(['\r', '\n']);
    let mut words = line.split(' ');
    let kind = words.next().unwrap_or_default();
    let key = words.next().unwrap_or_default().trim_end_matches('=');
    let base64 = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/');
    if line.len() <= SSH_KEY_BYTES_MAX
        && !line.chars().any(char::is_control)
        && TYPES.iter().any(|prefix| kind.starts_with(prefix))
        && base64
    {
        Ok(line.to_owned())
    } else {
        Err(ApiError::invalid("ssh_public_key", "one line such as `ssh-ed25519 AAAA… comment` is wanted"))
    }
}

pub(super) fn limits(body: LimitsBody) -> Result<LimitsPatch, ApiError> {
    let bytes = |name, field, min| map_inner(field, |number| between(name, number, min, i64::MAX as u64).map(Bytes));
    let rate = |name, field| map_inner(field, |number| between(name, number, 1, i64::MAX as u64).map(BytesPerSecond));
    Ok(LimitsPatch {
        cpu: map_inner(body.cpu, |number| cores("limits.cpu", number))?,
        memory: bytes("limits.memory", body.memory, MEMORY_BYTES_MIN)?,
        disk: bytes("limits.disk", body.disk, 1)?,
        ramdisk: bytes("limits.ramdisk", body.ramdisk, 1)?,
        pids: map_inner(body.pids, |number| {
            between("limits.pids", number, 1, PIDS_MAX).map(|number| Pids(u32::try_from(number).unwrap_or(u32::MAX)))
        })?,
        disk_read_bps: rate("limits.disk_read_bps", body.disk_read_bps)?,
        disk_write_bps: rate("limits.disk_write_bps", body.disk_write_bps)?,
        net_rx_bps: rate("limits.net_rx_bps", body.net_rx_bps)?,
        net_tx_bps: rate("limits.net_tx_bps", body.net_tx_bps)?,
    })
}

pub(super) fn cores(field: &'static str, cores: f64) -> Result<CpuMillis, ApiError> {
    if cores.is_finite() && CPU_CORES.contains(&cores) {
        Ok(CpuMillis((cores * 1000.0).round() as u32))
    } else {
        let (min, max) = (CPU_CORES.start(), CPU_CORES.end());
        Err(ApiError::invalid(field, format!("{min} to {max} cores are wanted")))
    }
}

pub(super) fn between(name: &'static str, number: u64, min: u64, max: u64) -> Result<u64, ApiError> {
    if (min..=max).contains(&number) {
        Ok(number)
    } else {
        Err(ApiError::invalid(name, format!("{number} is not between {min} and {max}")))
    }
}

pub(super) fn name(text: &str) -> Result<ContainerName, ApiError> {
    text.parse().map_err(|error: crate::domain::NameError| {
        ApiError::bad("INVALID_CONTAINER_NAME", format!("name: {error}")).of("name")
    })
}

/// `rand`, empty or left out: a random one.
pub(super) fn name_or_random(text: Option<String>) -> Result<Option<ContainerName>, ApiError> {
    match text.as_deref() {
        None | Some("" | "rand") => Ok(None),
        Some(text) => name(text).map(Some),
    }
}

pub(super) fn external_id(field: Option<Option<String>>) -> Result<Option<Option<ExternalId>>, ApiError> {
    map_inner(field, |text| text.parse::<ExternalId>().map_err(ApiError::from))
}

pub(super) fn image(text: String) -> Result<String, ApiError> {
    if (1..=IMAGE_REF_BYTES_MAX).contains(&text.len()) && !text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        Ok(text)
    } else {
        Err(ApiError::invalid("container_image", "an image's name or id is wanted"))
    }
}

pub(super) fn confinement(text: String) -> Result<Confinement, ApiError> {
    text.parse().map_err(|error| ApiError::invalid("confinement", error))
}
