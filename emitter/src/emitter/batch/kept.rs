//! Broadcasts as they were said, to be encoded later.
//!
//! All their texts stand in one buffer, one behind the other, so that to keep one takes no more than
//! to copy a few bytes. Only arguments are taken that can be encoded for sure.

use roomcast_protocol::{
    args::{Args, json::plain_strings},
    target::{Flags, Target},
};

/// What a message has around its names and arguments once it is encoded, roughly, in bytes.
const ENVELOPE_BYTES: usize = 128;

/// Broadcasts, first in, first out.
#[derive(Default)]
pub(super) struct Kept {
    heads: Vec<Head>,
    /// Of each its namespace, event, arguments and rooms.
    text: String,
    /// How long the names of the rooms are.
    rooms: Vec<usize>,
    taken: Taken,
}

/// What is known of one of them, with the lengths of its texts.
struct Head {
    namespace: usize,
    event: usize,
    args: usize,
    /// How many there are.
    rooms: usize,
    /// How many there are.
    except: usize,
    flags: Flags,
}

/// How much of each list is handed out.
#[derive(Default)]
struct Taken {
    heads: usize,
    text: usize,
    rooms: usize,
    /// To whom the last one went: the next one often goes there, too.
    target: Target,
}

impl Kept {
    /// Whether such arguments can be kept: they are nothing but text without escapes, which can be
    /// written in every form.
    pub(super) fn takes(args: &Args) -> bool {
        args.attachments().is_empty() && plain_strings(args.json()).is_some()
    }

    /// What a broadcast will take once it is encoded, roughly, in bytes. Names may stand in the name
    /// of the channel, too.
    pub(super) fn bytes_of(
        namespace: &str,
        (target, event, args): (&Target, &str, &Args),
    ) -> usize {
        let rooms = target.rooms.iter().chain(&target.except);
        let names = rooms.fold(namespace.len(), |sum, room| sum + room.len());
        ENVELOPE_BYTES + 2 * names + event.len() + args.json().len()
    }

    pub(super) fn push(&mut self, namespace: &str, (target, event, args): (&Target, &str, &Args)) {
        let json = args.json();
        self.heads.push(Head {
            namespace: namespace.len(),
            event: event.len(),
            args: json.len(),
            rooms: target.rooms.len(),
            except: target.except.len(),
            flags: target.flags,
        });
        self.text
            .reserve(namespace.len() + event.len() + json.len());
        self.text.push_str(namespace);
        self.text.push_str(event);
        self.text.push_str(json);
        for room in target.rooms.iter().chain(&target.except) {
            self.text.push_str(room);
            self.rooms.push(room.len());
        }
    }

    /// Hands out the first one. False if there is none.
    pub(super) fn take(&mut self, to: impl FnOnce(&str, (&Target, &str, &Args))) -> bool {
        let Some(head) = self.heads.get(self.taken.heads) else {
            return false;
        };
        let taken = &mut self.taken;
        let mut text = &self.text[taken.text..];
        let mut next = |length| {
            let (next, rest) = text.split_at(length);
            text = rest;
            next
        };
        let [namespace, event, json] = [head.namespace, head.event, head.args].map(&mut next);
        let mut rooms = self.rooms[taken.rooms..].iter().map(|length| next(*length));
        fill(&mut taken.target.rooms, rooms.by_ref().take(head.rooms));
        fill(&mut taken.target.except, rooms.take(head.except));
        taken.target.flags = head.flags;
        taken.heads += 1;
        taken.rooms += head.rooms + head.except;
        taken.text = self.text.len() - text.len();
        let args = Args::from_text(json.into(), Vec::new());
        let args = args.expect("they were arguments before");
        to(namespace, (&taken.target, event, &args));
        if self.len() == 0 {
            self.begin_anew();
        }
        true
    }

    /// With the same memory, as in some batches all are taken again and again.
    fn begin_anew(&mut self) {
        self.heads.clear();
        self.text.clear();
        self.rooms.clear();
        let Taken {
            heads, text, rooms, ..
        } = &mut self.taken;
        (*heads, *text, *rooms) = (0, 0, 0);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.heads.len() - self.taken.heads
    }
}

/// Makes the list one of these names. What is the same stays.
fn fill<'a>(list: &mut Vec<Box<str>>, names: impl Iterator<Item = &'a str>) {
    let mut count = 0;
    for name in names {
        match list.get_mut(count) {
            Some(known) if **known == *name => {}
            Some(known) => *known = name.into(),
            None => list.push(name.into()),
        }
        count += 1;
    }
    list.truncate(count);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(rooms: &[&str], except: &[&str]) -> Target {
        let mut target = Target::default();
        target.add_rooms(rooms);
        target.add_except(except);
        target.flags.volatile = !except.is_empty();
        target
    }

    #[test]
    fn what_is_kept_comes_out_as_it_went_in() {
        let args = Args::encode(&("some", "text")).unwrap();
        let all = [
            ("/", target(&["a"], &[]), "one", &args),
            ("/", target(&["a"], &[]), "two", &args),
            ("/chat", target(&["a", "\u{fc}", "c"], &["d"]), "", &args),
            ("/", target(&[], &["a", "d"]), "four", &args),
            ("/", target(&["d"], &[]), "five", &args),
        ];
        let mut kept = Kept::default();
        // The second time, some are taken before the others are added.
        for taken_before in [0, 2] {
            let mut out = Vec::new();
            for (number, (namespace, target, event, args)) in all.iter().enumerate() {
                kept.push(namespace, (target, event, args));
                if number < taken_before {
                    assert!(take(&mut kept, &mut out));
                }
            }
            assert_eq!(kept.len(), all.len() - taken_before);
            while take(&mut kept, &mut out) {}
            assert_eq!(kept.len(), 0);
            let expected = all.iter().map(|(namespace, target, event, args)| {
                (
                    namespace.to_string(),
                    target.clone(),
                    event.to_string(),
                    (*args).clone(),
                )
            });
            assert_eq!(out, expected.collect::<Vec<_>>());
        }
    }

    fn take(kept: &mut Kept, out: &mut Vec<(String, Target, String, Args)>) -> bool {
        kept.take(|namespace, (target, event, args)| {
            out.push((namespace.into(), target.clone(), event.into(), args.clone()));
        })
    }

    #[test]
    fn only_text_without_escapes_is_kept() {
        for (args, is_kept) in [
            (Args::encode("text").unwrap(), true),
            (Args::encode(&("one", "two")).unwrap(), true),
            (Args::encode("\"quoted\"").unwrap(), false),
            (Args::encode(&1).unwrap(), false),
            (Args::default(), false),
            (
                Args::encode(&bytes::Bytes::from_static(b"x")).unwrap(),
                false,
            ),
            (
                Args::from_text("[\"broken]".into(), Vec::new()).unwrap(),
                false,
            ),
        ] {
            assert_eq!(Kept::takes(&args), is_kept, "{args:?}");
        }
    }
}
