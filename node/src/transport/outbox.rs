//! The frames that wait to be written to one connection, in order, counted in bytes.
//!
//! An idle outbox owns no memory, and a single frame is held without a queue, because nearly all
//! outboxes are empty and most of the others hold one frame.

use std::collections::VecDeque;

use super::frame::Frame;

#[derive(Default)]
pub(crate) struct Outbox {
    frames: Frames,
    /// The cost of all queued frames.
    bytes: usize,
    /// How much of the first frame is on the wire already.
    written: usize,
}

#[derive(Default)]
enum Frames {
    #[default]
    None,
    One(Frame),
    #[expect(
        clippy::box_collection,
        reason = "rare, and every connection has an outbox"
    )]
    Many(Box<VecDeque<Frame>>),
}

impl Outbox {
    pub(crate) fn push(&mut self, frame: Frame) {
        self.insert(frame, VecDeque::push_back);
    }

    /// Puts a frame before all others. None of these may be partly on the wire.
    pub(crate) fn push_first(&mut self, frame: Frame) {
        self.push_partial(frame, 0);
    }

    /// The same for a frame whose first `written` bytes are on the wire already.
    pub(crate) fn push_partial(&mut self, frame: Frame, written: usize) {
        debug_assert_eq!(self.written, 0, "a frame that is being written stays first");
        self.written = written;
        self.insert(frame, VecDeque::push_front);
    }

    fn insert(&mut self, frame: Frame, insert: impl FnOnce(&mut VecDeque<Frame>, Frame)) {
        self.bytes += frame.cost();
        let mut frames = match std::mem::take(&mut self.frames) {
            Frames::None => {
                self.frames = Frames::One(frame);
                return;
            }
            Frames::One(other) => Box::new(VecDeque::from([other])),
            Frames::Many(frames) => frames,
        };
        insert(&mut frames, frame);
        self.frames = Frames::Many(frames);
    }

    pub(crate) fn pop(&mut self) -> Option<Frame> {
        let frame = match std::mem::take(&mut self.frames) {
            Frames::None => return None,
            Frames::One(frame) => frame,
            Frames::Many(mut frames) => {
                let frame = frames.pop_front()?;
                // The queue goes with its last frame, so that an idle connection holds none.
                if !frames.is_empty() {
                    self.frames = Frames::Many(frames);
                }
                frame
            }
        };
        self.bytes -= frame.cost();
        self.written = 0;
        Some(frame)
    }

    pub(crate) fn first(&self) -> Option<&Frame> {
        self.iter().next()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Frame> {
        let (one, many) = match &self.frames {
            Frames::None => (None, None),
            Frames::One(frame) => (Some(frame), None),
            Frames::Many(frames) => (None, Some(frames.iter())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// Records that `count` more bytes are on the wire, and drops the frames that are complete.
    /// `len` is the length of a frame in the form that is written.
    pub(crate) fn advance(&mut self, mut count: usize, len: impl Fn(&Frame) -> usize) {
        while let Some(first) = self.first() {
            let missing = len(first) - self.written;
            if count < missing {
                self.written += count;
                return;
            }
            count -= missing;
            self.pop();
        }
        debug_assert_eq!(count, 0, "no more was written than was queued");
    }

    /// How much of the first frame is on the wire already.
    pub(crate) fn written(&self) -> usize {
        self.written
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self.frames, Frames::None)
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::transport::frame::{Wire, WireForm};
    use roomcast_protocol::engine_io::open::Revision;

    const WIRE: Wire<'static> = Wire::EngineIo(WireForm {
        revision: Revision::V4,
        base64: false,
    });

    fn frame(bytes: &[u8]) -> Frame {
        Frame::raw(bytes)
    }

    fn wire(outbox: &Outbox) -> Vec<u8> {
        let all: Vec<u8> = outbox
            .iter()
            .flat_map(|frame| frame.wire(WIRE).to_vec())
            .collect();
        all[outbox.written()..].to_vec()
    }

    #[test]
    fn an_idle_outbox_owns_no_memory() {
        let mut outbox = Outbox::default();
        for _ in 0..3 {
            outbox.push(frame(b"abc"));
        }
        outbox.advance(9, |frame| frame.cost());
        assert!(outbox.is_empty() && outbox.bytes() == 0);
        assert!(matches!(outbox.frames, Frames::None));
        assert!(size_of::<Outbox>() <= 32);
    }

    #[test]
    fn what_comes_first_is_written_first() {
        let mut outbox = Outbox::default();
        outbox.push(frame(b"b"));
        outbox.push(frame(b"c"));
        outbox.push_first(frame(b"a"));
        assert_eq!(wire(&outbox), b"abc");
    }

    proptest! {
        #[test]
        fn order_and_bytes_are_kept_whatever_is_written(
            lengths in proptest::collection::vec(1_usize..40, 1..20),
            writes in proptest::collection::vec(1_usize..60, 1..40),
        ) {
            let mut outbox = Outbox::default();
            let mut model = Vec::new();
            let mut next = 0_u8;
            let mut pushes = lengths.iter();
            for write in writes {
                if let Some(&len) = pushes.next() {
                    let bytes: Vec<u8> = (0..len).map(|_| { next = next.wrapping_add(1); next }).collect();
                    model.extend_from_slice(&bytes);
                    outbox.push(frame(&bytes));
                }
                let count = write.min(model.len());
                model.drain(..count);
                outbox.advance(count, |frame| frame.cost());
                prop_assert_eq!(wire(&outbox), model.clone());
                prop_assert_eq!(outbox.bytes() - outbox.written(), model.len());
            }
        }
    }
}
