//! The query of a request. An empty value means the same as none, because the JavaScript SDK sends
//! `?last_id=&room=` for null.

use super::failure::Failure;

#[derive(Clone, Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: &str) -> Self {
        let pairs = form_urlencoded::parse(text.as_bytes());
        let pairs = pairs.filter(|(_, value)| !value.is_empty());
        Self(
            pairs
                .map(|(name, value)| (name.into_owned(), value.into_owned()))
                .collect(),
        )
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut pairs = self.0.iter();
        let found = pairs.find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// A whole number of any size. One that is larger than every id means the same as the largest.
    pub(super) fn integer(&self, name: &str) -> Result<Option<i64>, Failure> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        let text = text.trim();
        let (is_negative, digits) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(Failure::no_integer(name));
        }
        Ok(Some(text.parse().unwrap_or(match is_negative {
            true => i64::MIN,
            false => i64::MAX,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_value_is_the_same_as_none() {
        let query = Query::parse("last_id=&room=&x=1&x=2&a%20b=%C3%A4+");
        assert_eq!((query.get("last_id"), query.get("room")), (None, None));
        assert_eq!((query.get("x"), query.get("a b")), (Some("1"), Some("ä ")));
        assert_eq!(query.integer("last_id"), Ok(None));
    }

    #[test]
    fn ids_are_whole_numbers() {
        let of = |text: &str| Query::parse(&format!("last_id={text}")).integer("last_id");
        let rows = [
            ("0", 0),
            ("17", 17),
            ("-1", -1),
            ("%2B3", 3),
            ("99999999999999999999", i64::MAX),
            ("-99999999999999999999", i64::MIN),
        ];
        for (text, wanted) in rows {
            assert_eq!(of(text), Ok(Some(wanted)), "{text}");
        }
        for wrong in ["x", "1.5", "-", "1e3", "0x1", "null"] {
            assert_eq!(of(wrong), Err(Failure::no_integer("last_id")), "{wrong}");
        }
    }
}
