//! Rules as text, as people know it from nft, whether they come from us or from the kernel: the two are the same rules exactly
//! when they are the same text.

use serde_json::Value;

/// Names nft lists for ICMP types in the place of numbers (its `icmp_type` datatype).
const ICMP_TYPES: [(&str, u8); 15] = [
    ("echo-reply", 0),
    ("destination-unreachable", 3),
    ("source-quench", 4),
    ("redirect", 5),
    ("echo-request", 8),
    ("router-advertisement", 9),
    ("router-solicitation", 10),
    ("time-exceeded", 11),
    ("parameter-problem", 12),
    ("timestamp-request", 13),
    ("timestamp-reply", 14),
    ("info-request", 15),
    ("info-reply", 16),
    ("address-mask-request", 17),
    ("address-mask-reply", 18),
];

/// The same for ICMP codes (`icmp_code`), which are named after those of "destination unreachable" whatever the type.
const ICMP_CODES: [(&str, u8); 8] = [
    ("net-unreachable", 0),
    ("host-unreachable", 1),
    ("prot-unreachable", 2),
    ("port-unreachable", 3),
    ("frag-needed", 4),
    ("net-prohibited", 9),
    ("host-prohibited", 10),
    ("admin-prohibited", 13),
];

/// One rule, from its statements as JSON and its comment. What has no spelling here stays JSON.
pub(in crate::sys::nft) fn spell(statements: &Value, comment: Option<&str>) -> String {
    let mut words: Vec<String> = statements.as_array().into_iter().flatten().map(statement).collect();
    words.extend(comment.map(|text| format!("comment \"{text}\"")));
    words.join(" ")
}

fn statement(value: &Value) -> String {
    let (name, body) = match value.as_object().and_then(|fields| fields.iter().next()) {
        Some((name, body)) => (name.as_str(), body),
        None => return value.to_string(),
    };
    match name {
        "match" => condition(body),
        "accept" | "drop" | "masquerade" if body.is_null() => name.to_owned(),
        "goto" | "jump" => format!("{name} {}", text(&body["target"])),
        "reject" => match (body["type"].as_str(), body["expr"].as_str()) {
            (Some(kind), None) => format!("reject with {kind}"),
            (Some(kind), Some(code)) => format!("reject with {kind} {code}"),
            _ => value.to_string(),
        },
        "ct count" => format!("ct count {}{}", if body["inv"] == true { "over " } else { "" }, body["val"]),
        "vmap" => format!("{} vmap {}", expression(&body["key"]), text(&body["data"])),
        _ => value.to_string(),
    }
}

fn condition(body: &Value) -> String {
    let left = expression(&body["left"]);
    let right = match left.as_str() {
        "icmp type" => number(&body["right"], &ICMP_TYPES),
        "icmp code" => number(&body["right"], &ICMP_CODES),
        _ => expression(&body["right"]),
    };
    match body["op"].as_str() {
        // `in` is a comparison of bits, which nft writes without a sign as well.
        Some("==" | "in") | None => format!("{left} {right}"),
        Some(op) => format!("{left} {op} {right}"),
    }
}

fn number(value: &Value, names: &[(&str, u8)]) -> String {
    let known = value.as_str().and_then(|text| names.iter().find(|(name, _)| *name == text));
    known.map_or_else(|| text(value), |(_, number)| number.to_string())
}

fn expression(value: &Value) -> String {
    match value {
        Value::Array(items) => items.iter().map(expression).collect::<Vec<_>>().join(","),
        Value::Object(fields) => match fields.iter().next() {
            Some((name, body)) if name == "payload" => format!("{} {}", text(&body["protocol"]), text(&body["field"])),
            Some((name, body)) if name == "meta" => format!("meta {}", text(&body["key"])),
            Some((name, body)) if name == "ct" => format!("ct {}", text(&body["key"])),
            Some((name, body)) if name == "prefix" => format!("{}/{}", text(&body["addr"]), body["len"]),
            Some((name, body)) if name == "range" => format!("{}-{}", text(&body[0]), text(&body[1])),
            Some((name, Value::Array(parts))) if name == "concat" => {
                parts.iter().map(expression).collect::<Vec<_>>().join(" . ")
            }
            _ => value.to_string(),
        },
        _ => text(value),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_read_as_nft_writes_them() {
        let rule = json!([
            { "match": { "op": "==", "left": { "meta": { "key": "l4proto" } }, "right": "tcp" } },
            { "match": { "op": "==", "left": { "payload": { "protocol": "ip", "field": "daddr" } },
                         "right": { "prefix": { "addr": "10.0.0.0", "len": 8 } } } },
            { "match": { "op": "==", "left": { "payload": { "protocol": "tcp", "field": "dport" } },
                         "right": { "range": [80, 90] } } },
            { "reject": { "type": "tcp reset" } }
        ]);
        assert_eq!(
            spell(&rule, Some("no mail")),
            "meta l4proto tcp ip daddr 10.0.0.0/8 tcp dport 80-90 reject with tcp reset comment \"no mail\""
        );
        assert_eq!(
            spell(&json!([{ "ct count": { "val": 9, "inv": true } }, { "drop": null }]), None),
            "ct count over 9 drop"
        );
    }

    #[test]
    fn names_and_numbers_of_icmp_are_the_same() {
        let rule = |kind: Value, code: Value| {
            let field = |name: &str, right| {
                json!({ "match": { "op": "==", "right": right,
                "left": { "payload": { "protocol": "icmp", "field": name } } } })
            };
            spell(&json!([field("type", kind), field("code", code)]), None)
        };
        assert_eq!(rule(json!("echo-request"), json!("net-unreachable")), rule(json!(8), json!(0)));
        assert_eq!(rule(json!(8), json!(0)), "icmp type 8 icmp code 0");
    }

    #[test]
    fn what_is_unknown_is_told_as_it_is() {
        assert_eq!(spell(&json!([{ "queue": { "num": 1 } }]), None), r#"{"queue":{"num":1}}"#);
    }
}
