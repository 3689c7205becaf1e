//! Replies of Redis, read the same way under RESP2 and RESP3.
//!
//! Connections of this crate use RESP3; those of an application's pool mostly use RESP2.
//! The two differ in form only: numbers as doubles or text, pairs nested or flat, long
//! texts marked as such.

/// A reply. [`Reply`] reads its parts.
pub use redis::Value;

/// Reads parts of a reply. Every method returns `None` if the reply has another form.
pub trait Reply {
    /// The text of a string or status.
    fn text(&self) -> Option<&str>;
    /// An integer, also if it was sent as text.
    fn integer(&self) -> Option<i64>;
    /// A number, also if it was sent as text.
    fn number(&self) -> Option<f64>;
    /// The elements of a list.
    fn list(&self) -> Option<&[Value]>;
    /// Pairs of names and values: a map, a list of pairs, or a flat list.
    fn pairs(&self) -> Option<Vec<(&Value, &Value)>>;
}

impl Reply for Value {
    fn text(&self) -> Option<&str> {
        match self {
            Self::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
            Self::SimpleString(text) | Self::VerbatimString { text, .. } => Some(text),
            Self::Okay => Some("OK"),
            _ => None,
        }
    }

    fn integer(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => self.text()?.parse().ok(),
        }
    }

    fn number(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::Double(number) => Some(*number),
            _ => self.text()?.parse().ok(),
        }
    }

    fn list(&self) -> Option<&[Value]> {
        match self {
            Self::Array(elements) | Self::Set(elements) => Some(elements),
            _ => None,
        }
    }

    fn pairs(&self) -> Option<Vec<(&Value, &Value)>> {
        if let Self::Map(pairs) = self {
            return Some(pairs.iter().map(|(name, value)| (name, value)).collect());
        }
        let elements = self.list()?;
        if elements.iter().any(|element| element.list().is_some()) {
            let pairs = elements.iter().map(|pair| match pair.list()? {
                [name, value] => Some((name, value)),
                _ => None,
            });
            return pairs.collect();
        }
        let (pairs, rest) = elements.as_chunks::<2>();
        rest.is_empty()
            .then(|| pairs.iter().map(|[name, value]| (name, value)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn pairs_are_the_same_under_both_protocols() {
        let (name, score) = (text("a"), Value::Double(1.5));
        let flat = Value::Array(vec![name.clone(), text("1.5")]);
        let nested = Value::Array(vec![Value::Array(vec![name.clone(), score.clone()])]);
        let map = Value::Map(vec![(name, score)]);
        for reply in [flat, nested, map] {
            let pairs = reply.pairs().unwrap();
            let pairs = pairs
                .iter()
                .map(|(name, value)| (name.text(), value.number()));
            assert_eq!(pairs.collect::<Vec<_>>(), [(Some("a"), Some(1.5))]);
        }
        let three = Value::Array(vec![Value::Nil; 3]);
        let mixed = Value::Array(vec![Value::Array(vec![]), Value::Nil]);
        assert_eq!(
            (three.pairs(), mixed.pairs(), Value::Nil.pairs()),
            (None, None, None)
        );
    }

    #[test]
    fn numbers_may_come_as_text() {
        assert_eq!(text("12").integer(), Some(12));
        assert_eq!(Value::Int(12).number(), Some(12.0));
        assert_eq!(
            (text("x").integer(), Value::Okay.text()),
            (None, Some("OK"))
        );
    }
}
