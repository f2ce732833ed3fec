//! What is kept of a container's output while its log cannot be written and the
//! container shall not wait: a bounded number of bytes. Pure.
//!
//! What does not fit is dropped in whole lines, from the old or from the new end,
//! and an [`Item::Gap`] stands where it was. Only a line that is longer than a log
//! record can be is cut: output without newlines would otherwise never fit again.

use std::collections::VecDeque;

use super::batch::Channel;
use super::gap::Gap;
use super::stamp::Stamp;
use super::{Amount, Item};
use crate::limits::LOG_RECORD_BYTES_MAX;

/// Which end is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// What came first.
    Oldest,
    /// What comes now.
    Newest,
}

/// Bytes that an item counts beyond its output: what it takes in memory.
const ITEM_BYTES: usize = 128;

/// The most output in one item: what is dropped at a time.
const ITEM_OUTPUT_MAX: usize = 32 << 10;

/// Drops the rest of a line whose beginning was dropped.
#[derive(Debug, Clone, Copy, Default)]
pub struct Skip {
    /// Bytes of the line that were dropped so far; `None` between lines.
    dropped: Option<usize>,
}

impl Skip {
    /// Bytes at the head of `bytes` that belong to a line whose beginning was
    /// dropped. A line that is longer than a record is not dropped to its end.
    pub fn head(&mut self, bytes: &[u8]) -> usize {
        let Some(dropped) = self.dropped else { return 0 };
        let head = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
        if dropped + head > LOG_RECORD_BYTES_MAX {
            self.dropped = None;
            return head.min(LOG_RECORD_BYTES_MAX.saturating_sub(dropped));
        }
        self.dropped = (head == bytes.len() && !bytes.ends_with(b"\n")).then_some(dropped + head);
        head
    }

    /// `bytes` were dropped.
    pub fn after(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let line = memchr::memrchr(b'\n', bytes).map_or(0, |at| at + 1);
        let before = if line == 0 { self.dropped.unwrap_or(0) } else { 0 };
        self.dropped = (line < bytes.len()).then_some(before + bytes.len() - line);
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Ring {
    end: End,
    bytes_max: usize,
    items: VecDeque<Item>,
    bytes: usize,
    /// Bytes of items that are being written, and still take memory.
    taken: usize,
    skip: [Skip; 2],
    /// Dropped before the first item, and when it began to be.
    oldest: [(Amount, Option<Stamp>); 2],
    dropped: [Amount; 2],
    reason: String,
}

impl Ring {
    /// Keeps `bytes_max` bytes and drops from `end`. `reason` is for the gap
    /// records: why the log could not be written.
    #[must_use]
    pub fn new(end: End, bytes_max: usize, reason: &str) -> Self {
        Self {
            end,
            bytes_max,
            items: VecDeque::new(),
            bytes: 0,
            taken: 0,
            skip: [Skip::default(); 2],
            oldest: [(Amount::default(), None); 2],
            dropped: [Amount::default(); 2],
            reason: reason.to_owned(),
        }
    }

    /// Keeps output, or drops it or older output.
    pub fn push(&mut self, channel: Channel, stamp: &Stamp, bytes: &[u8]) {
        if self.end == End::Newest {
            return self.push_if_it_fits(channel, stamp, bytes);
        }
        let (rest_of_line, bytes) = bytes.split_at(self.skip[channel.index()].head(bytes));
        if !rest_of_line.is_empty() {
            let amount = Amount::of_output(rest_of_line);
            self.dropped[channel.index()].add(amount);
            self.add_oldest(channel, *stamp, amount);
        }
        for part in bytes.chunks(ITEM_OUTPUT_MAX) {
            self.append(channel, stamp, part);
        }
        while self.used() > self.bytes_max && self.drop_oldest() {}
    }

    /// Keeps a gap that came about elsewhere.
    pub fn push_gap(&mut self, gap: Gap, stamp: &Stamp) {
        self.bytes += ITEM_BYTES;
        self.items.push_back(Item::Gap { gap, stamp: *stamp });
    }

    /// Bytes that are kept.
    #[must_use]
    pub fn used(&self) -> usize {
        self.bytes + self.taken
    }

    /// There is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.oldest.iter().all(|(amount, _)| *amount == Amount::default())
    }

    /// Nothing waits, and nothing that comes belongs to what was dropped.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.is_empty() && self.taken == 0 && self.skip.iter().all(|skip| skip.dropped.is_none())
    }

    /// Takes everything, to be written in this order. It counts as kept until
    /// [`Self::taken_is_written`].
    pub fn take(&mut self) -> VecDeque<Item> {
        let mut items = std::mem::take(&mut self.items);
        self.taken += std::mem::take(&mut self.bytes);
        let oldest = std::mem::take(&mut self.oldest);
        for (channel, (amount, stamp)) in Channel::ALL.into_iter().zip(oldest).rev() {
            if let (true, Some(stamp)) = (amount != Amount::default(), stamp) {
                items.push_front(Item::Gap { gap: self.gap(channel, amount), stamp });
            }
        }
        items
    }

    /// What was taken takes no memory any more.
    pub fn taken_is_written(&mut self) {
        self.taken = 0;
    }

    /// What was dropped so far.
    #[must_use]
    pub fn dropped(&self, channel: Channel) -> Amount {
        self.dropped[channel.index()]
    }

    /// Why the log cannot be written now.
    pub fn set_reason(&mut self, reason: &str) {
        if self.reason != reason {
            reason.clone_into(&mut self.reason);
        }
    }

    fn gap(&self, channel: Channel, amount: Amount) -> Gap {
        Gap::new(channel, amount.bytes, amount.lines, &self.reason)
    }

    fn append(&mut self, channel: Channel, stamp: &Stamp, bytes: &[u8]) {
        self.bytes += bytes.len() + ITEM_BYTES;
        self.items.push_back(Item::Bytes { channel, stamp: *stamp, bytes: bytes.to_vec() });
    }

    fn push_if_it_fits(&mut self, channel: Channel, stamp: &Stamp, bytes: &[u8]) {
        let at = channel.index();
        let (rest_of_line, bytes) = bytes.split_at(self.skip[at].head(bytes));
        self.drop_newest(channel, stamp, rest_of_line);
        let room = self.bytes_max.saturating_sub(self.used() + ITEM_BYTES);
        let fits = if bytes.len() <= room {
            bytes.len()
        } else {
            let head = bytes.get(..room).unwrap_or_default();
            memchr::memrchr(b'\n', head).map_or(0, |at| at + 1)
        };
        let (kept, lost) = bytes.split_at(fits);
        if !kept.is_empty() {
            self.append(channel, stamp, kept);
        }
        self.skip[at].after(lost);
        self.drop_newest(channel, stamp, lost);
    }

    /// Adds to the gap at the end, or begins one.
    fn drop_newest(&mut self, channel: Channel, stamp: &Stamp, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let amount = Amount::of_output(bytes);
        self.dropped[channel.index()].add(amount);
        // Past the other channel's gap, which may be the last item.
        for item in self.items.iter_mut().rev() {
            match item {
                Item::Gap { gap, .. } if gap.channel == channel => {
                    gap.bytes += amount.bytes;
                    gap.lines += amount.lines;
                    return;
                }
                Item::Gap { .. } => {}
                Item::Bytes { .. } => break,
            }
        }
        let gap = self.gap(channel, amount);
        self.push_gap(gap, stamp);
    }

    /// Drops the first item, and what follows of a line that began in it. False if
    /// there is none.
    fn drop_oldest(&mut self) -> bool {
        let (channel, stamp, amount) = match self.items.pop_front() {
            None => return false,
            Some(Item::Gap { gap, stamp }) => {
                self.bytes -= ITEM_BYTES;
                // It was counted when it came about.
                self.add_oldest(gap.channel, stamp, Amount { bytes: gap.bytes, lines: gap.lines });
                return true;
            }
            Some(Item::Bytes { channel, stamp, bytes }) => {
                self.bytes -= bytes.len() + ITEM_BYTES;
                let at = channel.index();
                self.skip[at].after(&bytes);
                let mut amount = Amount::of_output(&bytes);
                amount.add(self.trim_next(channel));
                (channel, stamp, amount)
            }
        };
        self.dropped[channel.index()].add(amount);
        self.add_oldest(channel, stamp, amount);
        true
    }

    fn add_oldest(&mut self, channel: Channel, stamp: Stamp, amount: Amount) {
        let (sum, first) = &mut self.oldest[channel.index()];
        sum.add(amount);
        first.get_or_insert(stamp);
    }

    /// Takes from the channel's next items what belongs to the line that was
    /// dropped.
    fn trim_next(&mut self, channel: Channel) -> Amount {
        let skip = &mut self.skip[channel.index()];
        let mut amount = Amount::default();
        for item in &mut self.items {
            let Item::Bytes { channel: of, bytes, .. } = item else { continue };
            if *of != channel {
                continue;
            }
            let head = skip.head(bytes);
            if head == 0 {
                break;
            }
            amount.add(Amount::of_output(bytes.get(..head).unwrap_or_default()));
            bytes.drain(..head);
            self.bytes -= head;
        }
        amount
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STAMP: &Stamp = b"2026-11-23T01:02:03.123456789Z";

    fn newlines(bytes: &[u8]) -> u64 {
        bytes.iter().filter(|byte| **byte == b'\n').count() as u64
    }

    #[test]
    fn oldest_or_newest_lines_go_and_a_gap_stands_in_their_place() {
        let text: Vec<String> = (0..100).map(|number| format!("line {number}\n")).collect();
        for (end, kept) in [(End::Oldest, "line 99\n"), (End::Newest, "line 0\n")] {
            let mut ring = Ring::new(end, 1000, "disk full");
            text.iter().for_each(|line| ring.push(Channel::Stdout, STAMP, line.as_bytes()));
            assert!(ring.used() <= 1000 + ITEM_BYTES);
            let mut items = ring.take();
            if end == End::Oldest {
                items.make_contiguous().reverse();
            }
            let Some(Item::Bytes { bytes, .. }) = items.pop_front() else { panic!("{items:?}") };
            assert_eq!(String::from_utf8(bytes).unwrap(), kept);
            let Some(Item::Gap { gap, .. }) = items.pop_back() else { panic!("{items:?}") };
            assert_eq!((gap.lines, gap.reason()), (100 - 1 - items.len() as u64, "disk full"));
        }
    }

    #[test]
    fn output_without_newlines_fits_again_once_there_is_room() {
        let mut ring = Ring::new(End::Newest, 4096, "x");
        ring.push(Channel::Stdout, STAMP, &[b'x'; 8192]);
        let _gap = ring.take();
        ring.taken_is_written();
        (0..10).for_each(|_| ring.push(Channel::Stdout, STAMP, &[b'y'; 2048]));
        assert!(ring.take().iter().any(|item| matches!(item, Item::Bytes { .. })));
    }

    fn pushes() -> impl Strategy<Value = Vec<(bool, Vec<u8>, bool)>> {
        let bytes = prop::collection::vec(prop_oneof![5 => any::<u8>(), 1 => Just(b'\n')], 0..600);
        prop::collection::vec((any::<bool>(), bytes, prop::bool::weighted(0.1)), 0..40)
    }

    proptest! {
        #[test]
        fn nothing_is_lost_that_no_gap_tells_and_memory_is_bounded(
            pushes in pushes(), oldest in any::<bool>(), bytes_max in 0..4000_usize,
        ) {
            let end = if oldest { End::Oldest } else { End::Newest };
            let mut ring = Ring::new(end, bytes_max, "x");
            let mut put = [Amount::default(); 2];
            let mut items = VecDeque::new();
            for (stdout, bytes, take) in &pushes {
                let channel = if *stdout { Channel::Stdout } else { Channel::Stderr };
                put[channel.index()].add(Amount::of_output(bytes));
                ring.push(channel, STAMP, bytes);
                // A gap for each channel at the end, whatever the limit.
                prop_assert!(ring.used() <= bytes_max + 2 * ITEM_BYTES);
                if *take {
                    items.append(&mut ring.take());
                    ring.taken_is_written();
                }
            }
            items.append(&mut ring.take());
            let mut got = [Amount::default(); 2];
            let mut dropped = [Amount::default(); 2];
            for item in &items {
                match item {
                    Item::Bytes { channel, bytes, .. } => {
                        let lines = newlines(bytes);
                        got[channel.index()].add(Amount { bytes: bytes.len() as u64 - lines, lines });
                    }
                    Item::Gap { gap, .. } => {
                        let amount = Amount { bytes: gap.bytes, lines: gap.lines };
                        dropped[gap.channel.index()].add(amount);
                    }
                }
            }
            for channel in Channel::ALL {
                prop_assert_eq!(dropped[channel.index()], ring.dropped(channel));
                let mut all = got[channel.index()];
                all.add(dropped[channel.index()]);
                prop_assert_eq!(all, put[channel.index()]);
            }
        }

        #[test]
        fn what_follows_a_gap_begins_a_line(
            lines in prop::collection::vec("[a-z]{0,30}", 1..60), oldest in any::<bool>(), cut in 1..50_usize,
        ) {
            let end = if oldest { End::Oldest } else { End::Newest };
            let mut ring = Ring::new(end, 900, "x");
            let text: String = lines.iter().map(|line| format!("<{line}\n")).collect();
            text.as_bytes().chunks(cut).for_each(|part| ring.push(Channel::Stdout, STAMP, part));
            let mut after_gap = false;
            for item in ring.take() {
                match item {
                    Item::Gap { .. } => after_gap = true,
                    Item::Bytes { bytes, .. } if !bytes.is_empty() => {
                        prop_assert!(!std::mem::take(&mut after_gap) || bytes[0] == b'<');
                    }
                    Item::Bytes { .. } => {}
                }
            }
        }
    }
}
