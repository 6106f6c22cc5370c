//! Types of the wire: what requests and answers look like as JSON. They are not the domain's: a field's name, its unit
//! and whether it may be left out are promises to clients, and are kept here whatever the domain becomes.

pub mod alias;
pub mod checks;
pub mod container;
pub mod event;
pub mod firewall;
pub mod image;
pub mod network;
pub mod ops;
pub mod permissions;
pub mod project;
pub mod script;
pub mod settings;
pub mod token;

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// For `Option<Option<T>>`: tells a field that is null from one that is left out (with `#[serde(default)]`).
pub(super) fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(from).map(Some)
}

/// For `Option<Option<T>>` where `T` has named fields.
pub(super) fn nullable_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<Object<T>>::deserialize(from).map(|object| Some(object.map(|object| object.0)))
}

/// A value that is written as a JSON object. serde alone also takes an array for a struct, field by field, so that `[]`
/// would be a request for nothing but defaults.
pub(super) struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        from.deserialize_map(Fields(PhantomData))
    }
}

/// Names the fields that asked for something we do not do. What is null, false, zero or empty asks for nothing.
pub(super) fn unheeded<'a>(fields: impl IntoIterator<Item = (&'a str, &'a Option<serde_json::Value>)>) -> Vec<String> {
    use serde_json::Value;
    let asks = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) => true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    };
    let asking = fields.into_iter().filter(|(_, value)| value.as_ref().is_some_and(asks));
    asking.map(|(name, _)| not_acted_on(name)).collect()
}

/// The warning for one field or parameter.
pub(super) fn not_acted_on(name: &str) -> String {
    format!("{name} is accepted and not acted on")
}

/// Something that was deleted and leaves no receipt.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct Deleted {
    /// Its id.
    pub id: String,
}
