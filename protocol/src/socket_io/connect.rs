//! The replies to a CONNECT for each kind of client.
//!
//! Clients of revision 2 use Engine.IO 3. The reply that admits them has no payload, their
//! credentials are in a query after the namespace, and errors have another format. The MessagePack
//! parser has the packets of revision 5 in its own encoding.

use crate::msgpack::MsgpackError;
use serde_json::{Map, Value};

use super::{encode, msgpack};

/// The revision and the parser of a client. It does not change during a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Revision 5 with the default parser.
    V5,
    /// Revision 2, which differs in the packets of a CONNECT only.
    V2,
    /// Revision 5 with the MessagePack parser: packets are binary messages.
    Msgpack,
}

/// Appends the reply that admits a client to a namespace. `pid` is the name under which it can come
/// back, if its session can be recovered.
pub fn connect_reply(out: &mut Vec<u8>, dialect: Dialect, nsp: &str, sid: &str, pid: Option<&str>) {
    match dialect {
        Dialect::V5 => {
            let mut data = Vec::with_capacity(ADMISSION);
            data.extend_from_slice(br#"{"sid":"#);
            encode::push_string(&mut data, sid);
            if let Some(pid) = pid {
                data.extend_from_slice(br#","pid":"#);
                encode::push_string(&mut data, pid);
            }
            data.push(b'}');
            let data = String::from_utf8(data).expect("JSON is written as UTF-8");
            encode::connect(out, nsp, Some(&data));
        }
        Dialect::V2 => encode::connect(out, nsp, None),
        Dialect::Msgpack => msgpack::connect(out, nsp, sid, pid),
    }
}

/// Appends the application's refusal: its message and optional further data as JSON text.
///
/// # Errors
///
/// `data` is not JSON, which only the MessagePack parser detects.
pub fn connect_error(
    out: &mut Vec<u8>,
    dialect: Dialect,
    nsp: &str,
    message: &str,
    data: Option<&str>,
) -> Result<(), MsgpackError> {
    let payload = match (dialect, data) {
        // Revision 2 has one of the two, and data that is false in JavaScript counts as none.
        (Dialect::V2, Some(data)) if !is_false(data) => data.to_owned(),
        (Dialect::V2, _) => Value::from(message).to_string(),
        (_, data) => message_object(message, data),
    };
    refuse(out, dialect, nsp, &payload)
}

/// Appends the refusal of a namespace that does not exist. The payload is the same in all dialects.
pub fn unknown_namespace(out: &mut Vec<u8>, dialect: Dialect, nsp: &str) {
    refuse(out, dialect, nsp, r#"{"message":"Invalid namespace"}"#).expect("the payload is JSON");
}

/// Appends the packet that ends a namespace for a client.
pub fn disconnect(out: &mut Vec<u8>, dialect: Dialect, nsp: &str) {
    match dialect {
        Dialect::V5 | Dialect::V2 => encode::disconnect(out, nsp),
        Dialect::Msgpack => msgpack::disconnect(out, nsp),
    }
}

/// Splits the namespace that a client of revision 2 names into the namespace itself and its query.
/// The query becomes the JSON object that a client of revision 5 would send as credentials; a
/// repeated key has an array of values.
pub fn split_query(nsp: &str) -> (&str, Option<String>) {
    let Some((nsp, query)) = nsp.split_once('?') else {
        return (nsp, None);
    };
    let mut auth = Map::new();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        let value = Value::from(value);
        match auth.get_mut(&*key) {
            None => {
                auth.insert(key.into_owned(), value);
            }
            Some(Value::Array(values)) => values.push(value),
            Some(single) => *single = Value::Array(vec![single.take(), value]),
        }
    }
    (nsp, Some(Value::Object(auth).to_string()))
}

/// Enough bytes for the payload of an admission.
const ADMISSION: usize = 48;

fn refuse(
    out: &mut Vec<u8>,
    dialect: Dialect,
    nsp: &str,
    payload: &str,
) -> Result<(), MsgpackError> {
    match dialect {
        Dialect::V5 | Dialect::V2 => encode::connect_error(out, nsp, payload),
        Dialect::Msgpack => msgpack::connect_error(out, nsp, payload)?,
    }
    Ok(())
}

fn message_object(message: &str, data: Option<&str>) -> String {
    let mut object = format!("{{\"message\":{}", Value::from(message));
    if let Some(data) = data {
        object.push_str(",\"data\":");
        object.push_str(data);
    }
    object.push('}');
    object
}

fn is_false(json: &str) -> bool {
    matches!(json, "null" | "false" | "0" | "-0" | "0.0" | "\"\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn error(dialect: Dialect, nsp: &str, message: &str, data: Option<&str>) -> String {
        text(|out| connect_error(out, dialect, nsp, message, data).unwrap())
    }

    #[test]
    fn admissions_carry_the_id_only_in_revision_5() {
        let reply = |dialect, nsp| text(|out| connect_reply(out, dialect, nsp, "abc", None));
        assert_eq!(reply(Dialect::V5, "/"), r#"0{"sid":"abc"}"#);
        assert_eq!(reply(Dialect::V5, "/chat"), r#"0/chat,{"sid":"abc"}"#);
        assert_eq!(reply(Dialect::V2, "/"), "0");
        assert_eq!(reply(Dialect::V2, "/chat"), "0/chat,");
        let reply = |dialect| text(|out| connect_reply(out, dialect, "/", "abc", Some("p")));
        assert_eq!(reply(Dialect::V5), r#"0{"sid":"abc","pid":"p"}"#);
        assert_eq!(reply(Dialect::V2), "0");
    }

    #[test]
    fn refusals_read_as_captured() {
        let (v5, v2) = (Dialect::V5, Dialect::V2);
        assert_eq!(error(v5, "/", "no", None), r#"4{"message":"no"}"#);
        assert_eq!(
            error(v5, "/chat", "\"", Some(r#"{"code":1}"#)),
            r#"4/chat,{"message":"\"","data":{"code":1}}"#
        );
        assert_eq!(
            error(v5, "/", "no", Some("null")),
            r#"4{"message":"no","data":null}"#
        );
        assert_eq!(
            error(v2, "/denied", "no", Some(r#"{"code":401}"#)),
            r#"4/denied,{"code":401}"#
        );
        assert_eq!(
            error(v2, "/denied-nodata", "nope", None),
            r#"4/denied-nodata,"nope""#
        );
        assert_eq!(error(v2, "/", "nope", Some("0")), r#"4"nope""#);
        for dialect in [v5, v2] {
            let unknown = text(|out| unknown_namespace(out, dialect, "/x"));
            assert_eq!(unknown, r#"4/x,{"message":"Invalid namespace"}"#);
            assert_eq!(text(|out| disconnect(out, dialect, "/x")), "1/x,");
        }
    }

    #[test]
    fn a_refusal_that_is_not_json_cannot_become_msgpack() {
        let mut out = Vec::new();
        assert!(connect_error(&mut out, Dialect::Msgpack, "/", "no", Some("{")).is_err());
    }

    #[test]
    fn the_query_of_a_namespace_becomes_credentials() {
        for (asked, nsp, auth) in [
            ("/chat", "/chat", None),
            ("/q?token=abc", "/q", Some(r#"{"token":"abc"}"#)),
            ("/?", "/", Some("{}")),
            (
                "/q?a=1&b&&a=2&a=3",
                "/q",
                Some(r#"{"a":["1","2","3"],"b":""}"#),
            ),
            (
                "/q?a%20b=c+d%C3%A9%zz%4",
                "/q",
                Some(r#"{"a b":"c dé%zz%4"}"#),
            ),
            ("/q?a=%ff&x==?", "/q", Some(r#"{"a":"�","x":"=?"}"#)),
            ("/q?__proto__=1", "/q", Some(r#"{"__proto__":"1"}"#)),
        ] {
            assert_eq!(
                split_query(asked),
                (nsp, auth.map(str::to_owned)),
                "{asked}"
            );
        }
    }
}
