//! Pages of a history: the parameters of the query, the part of the log, and the links to
//! neighbours.
//!
//! ```text
//!  ids of a room, newest first     9 8 7 │ 6 5 4 │ 3 2 1
//!  direction=1&last_pk=7                   ▲ the page after it
//!  direction=0&last_pk=3                   ▲ the page before it
//! ```
//!
//! Pages are defined by ids and not by numbers, so messages that are published between two requests
//! do not move entries to other pages. The links keep the parameters of the request, above all the
//! room.

use std::fmt::Write as _;

use roomcast::syncano::Query;

use super::failure::Failure;

/// The most entries of a page.
pub(super) const MAX_PAGE: usize = 100;

/// The part of the log that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// The newest, in any order.
    Latest,
    /// Those with the smallest ids above this one.
    After(u64),
    /// Those with the largest ids below this one.
    Before(u64),
}

/// The page that a request selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) room: Option<String>,
    last_id: Option<u64>,
    is_ascending: bool,
    pub(super) size: usize,
    cursor: Option<Cursor>,
    /// The parameters that the links to other pages keep.
    kept: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    is_forward: bool,
    id: u64,
}

impl Page {
    pub(super) fn of(query: &Query) -> Result<Self, Failure> {
        let number = |name| query.integer(name).map_err(|_| Failure::bad_page());
        let last_id = query.integer("last_id")?;
        let size = match number("page_size")? {
            None => MAX_PAGE,
            Some(size) => match usize::try_from(size) {
                Ok(size @ 1..) => size.min(MAX_PAGE),
                _ => return Err(Failure::bad_page()),
            },
        };
        let is_ascending = match query.get("ordering") {
            None | Some("desc") => false,
            Some("asc") => true,
            Some(_) => return Err(Failure::bad_page()),
        };
        let cursor = match (number("direction")?, number("last_pk")?) {
            (None, None) => None,
            (direction @ (None | Some(0 | 1)), Some(id)) => Some(Cursor {
                is_forward: direction != Some(0),
                id: u64::try_from(id).map_err(|_| Failure::bad_page())?,
            }),
            _ => return Err(Failure::bad_page()),
        };
        let mut kept = String::new();
        for name in ["room", "last_id", "ordering", "page_size"] {
            if let Some(value) = query.get(name) {
                let value = form_urlencoded::byte_serialize(value.as_bytes());
                let value: String = value.collect();
                // Writing to a string cannot fail.
                let _ = write!(kept, "{name}={value}&");
            }
        }
        Ok(Self {
            room: query.get("room").map(str::to_owned),
            // Nothing has a negative id.
            last_id: last_id.map(|id| u64::try_from(id).unwrap_or(0)),
            is_ascending,
            size,
            cursor,
            kept,
        })
    }

    /// The part of the log that has to be read: `size` entries.
    pub(super) fn read(&self) -> Read {
        let least = self.last_id.unwrap_or(0);
        match (self.cursor, self.is_ascending) {
            (None, true) => Read::After(least),
            (None, false) => Read::Latest,
            // Forward in ascending order and back in descending order lead to larger ids.
            (Some(cursor), _) if cursor.is_forward == self.is_ascending => {
                Read::After(cursor.id.max(least))
            }
            (Some(cursor), _) => Read::Before(cursor.id),
        }
    }

    /// Sorts the entries, and removes those that the client has already.
    pub(super) fn arrange<T>(&self, mut entries: Vec<T>, id: impl Fn(&T) -> u64) -> Vec<T> {
        entries.retain(|entry| self.last_id.is_none_or(|last| id(entry) > last));
        entries.sort_by_key(&id);
        if !self.is_ascending {
            entries.reverse();
        }
        entries
    }

    /// Takes the page out of all entries that there are.
    pub(super) fn select<T>(&self, mut all: Vec<T>, id: impl Fn(&T) -> u64) -> Vec<T> {
        all.sort_by_key(&id);
        let newest = |all: &mut Vec<T>| {
            all.drain(..all.len().saturating_sub(self.size))
                .for_each(drop)
        };
        match self.read() {
            Read::Latest => newest(&mut all),
            Read::Before(other) => {
                all.retain(|entry| id(entry) < other);
                newest(&mut all);
            }
            Read::After(other) => {
                all.retain(|entry| id(entry) > other);
                all.truncate(self.size);
            }
        }
        self.arrange(all, id)
    }

    /// The paths of the next and the previous page, from the ids of this one.
    pub(super) fn links(&self, path: &str, ids: &[u64]) -> (Option<String>, Option<String>) {
        let link = |direction: u8, id: u64| {
            let kept = &self.kept;
            format!("{path}?{kept}direction={direction}&last_pk={id}")
        };
        let last = ids.last().filter(|_| ids.len() >= self.size);
        let next = last.map(|id| link(1, *id));
        let first = ids.first().filter(|_| self.cursor.is_some());
        (next, first.map(|id| link(0, *id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(query: &str) -> Page {
        Page::of(&Query::parse(query)).unwrap()
    }

    /// The ids of a page of a log with the ids from 1 to 9, and its links.
    fn walk(query: &str) -> (Vec<u64>, Option<String>, Option<String>) {
        let page = page(query);
        let log = 1..=9_u64;
        let size = page.size;
        let found: Vec<_> = match page.read() {
            Read::Latest => log.rev().take(size).collect(),
            Read::After(id) => log.filter(|other| *other > id).take(size).collect(),
            Read::Before(id) => log.rev().filter(|other| *other < id).take(size).collect(),
        };
        let ids = page.arrange(found, |id| *id);
        let selected = page.select((1..=9).collect(), |id| *id);
        assert_eq!(selected, ids, "{query}");
        let (next, previous) = page.links("/h/", &ids);
        (ids, next, previous)
    }

    #[test]
    fn a_page_is_the_newest_first_and_has_at_most_a_hundred() {
        let all = walk("");
        assert_eq!(all, ((1..=9).rev().collect(), None, None));
        assert_eq!(page("page_size=1000").size, 100);
        assert_eq!(walk("ordering=asc").0, (1..=9).collect::<Vec<_>>());
        assert_eq!(walk("ordering=desc&last_id=7").0, [9, 8]);
        assert_eq!(walk("ordering=asc&last_id=7").0, [8, 9]);
        assert_eq!(walk("last_id=-3&page_size=2").0, [9, 8]);
    }

    #[test]
    fn the_links_lead_through_all_pages_and_back_and_keep_the_room() {
        for (ordering, pages) in [
            ("desc", [[9, 8, 7], [6, 5, 4], [3, 2, 1]]),
            ("asc", [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        ] {
            let mut query = format!("room=A%20b&last_id=0&ordering={ordering}&page_size=3");
            let kept = format!("/h/?room=A+b&last_id=0&ordering={ordering}&page_size=3&direction=");
            let mut back = None;
            for wanted in pages {
                let (ids, next, previous) = walk(&query);
                assert_eq!(ids, wanted);
                let next = next.unwrap();
                assert!(next.starts_with(&kept), "{next}");
                assert_eq!(page(&next[4..]).room.as_deref(), Some("A b"));
                query = next[4..].to_owned();
                back = previous;
            }
            // The last page is full, so an empty one follows.
            assert_eq!(walk(&query), (vec![], None, None));
            let (ids, _, previous) = walk(&back.unwrap()[4..]);
            assert_eq!(ids, pages[1]);
            assert_eq!(walk(&previous.unwrap()[4..]).0, pages[0]);
        }
    }

    #[test]
    fn there_is_no_previous_page_without_a_cursor() {
        let (_, next, previous) = walk("page_size=3");
        assert_eq!(
            next.as_deref(),
            Some("/h/?page_size=3&direction=1&last_pk=7")
        );
        assert_eq!(previous, None);
        let (_, next, previous) = walk("page_size=4&direction=1&last_pk=4");
        assert_eq!(next, None);
        assert_eq!(
            previous.as_deref(),
            Some("/h/?page_size=4&direction=0&last_pk=3")
        );
    }

    #[test]
    fn wrong_parameters_are_refused() {
        let of = |query: &str| Page::of(&Query::parse(query)).unwrap_err();
        for wrong in [
            "page_size=x",
            "page_size=0",
            "page_size=-1",
            "ordering=up",
            "direction=2&last_pk=1",
            "direction=1",
            "last_pk=x",
            "last_pk=-1",
        ] {
            assert_eq!(of(wrong), Failure::bad_page(), "{wrong}");
        }
        assert_eq!(of("last_id=x"), Failure::no_integer("last_id"));
    }
}
