//! Arguments on a line of JSON: binary is `{"$bin": base64}` there.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use roomcast::Args;
use serde_json::{Value, json};

use crate::Failure;

/// The arguments that stand on a line as a list.
pub(crate) fn args(list: &[Value]) -> Result<Args, Failure> {
    let mut attachments = Vec::new();
    let mut list = Value::Array(list.to_vec());
    take(&mut list, &mut attachments)?;
    Ok(Args::from_text(list.to_string().into(), attachments)?)
}

/// Arguments as a list for a line.
pub(crate) fn shown(args: &Args) -> Value {
    let mut list = serde_json::from_str(args.json()).unwrap_or(Value::Null);
    put(&mut list, args.attachments());
    list
}

/// The first argument for a line; null if there is none.
pub(crate) fn first(args: &Args) -> Value {
    shown(args).get(0).cloned().unwrap_or_default()
}

fn take(value: &mut Value, attachments: &mut Vec<Bytes>) -> Result<(), Failure> {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(text)) = fields.get("$bin") {
                let number = attachments.len();
                attachments.push(STANDARD.decode(text)?.into());
                *value = json!({ "_placeholder": true, "num": number });
                return Ok(());
            }
            fields
                .values_mut()
                .try_for_each(|value| take(value, attachments))
        }
        Value::Array(list) => list
            .iter_mut()
            .try_for_each(|value| take(value, attachments)),
        _ => Ok(()),
    }
}

fn put(value: &mut Value, attachments: &[Bytes]) {
    match value {
        Value::Object(fields) => {
            let number = fields.get("_placeholder").and_then(|_| fields.get("num"));
            let number = number.and_then(Value::as_u64);
            if let Some(bytes) = number.and_then(|number| attachments.get(number as usize)) {
                *value = json!({ "$bin": STANDARD.encode(bytes) });
                return;
            }
            for value in fields.values_mut() {
                put(value, attachments);
            }
        }
        Value::Array(list) => {
            for value in list {
                put(value, attachments);
            }
        }
        _ => {}
    }
}
