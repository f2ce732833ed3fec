//! Packets that an attached client has not taken yet. Pure.

use std::collections::VecDeque;

use super::attach::PACKET_PAYLOAD_MAX;

/// See the module's text. Without packets it has no heap.
#[derive(Debug, Default)]
pub(super) struct Queue {
    packets: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Of the first packets: they are older than the client.
    earlier: usize,
}

impl Queue {
    /// Appends `payload` as packets of `kind`. What continues the last packet is
    /// put into it while that has room, so that many short writes cost no more
    /// than one long one.
    pub(super) fn push(&mut self, kind: u8, mut payload: &[u8]) {
        if let Some(last) = self.packets.back_mut().filter(|last| last.first() == Some(&kind)) {
            let room = (PACKET_PAYLOAD_MAX + 1 - last.len()).min(payload.len());
            let (head, tail) = payload.split_at(room);
            last.extend_from_slice(head);
            self.bytes += room;
            payload = tail;
        }
        for part in payload.chunks(PACKET_PAYLOAD_MAX) {
            self.push_packet(kind, part);
        }
    }

    /// Appends one packet, which may be empty but for its kind.
    pub(super) fn push_packet(&mut self, kind: u8, payload: &[u8]) {
        let mut packet = Vec::with_capacity(payload.len() + 1);
        packet.push(kind);
        packet.extend_from_slice(payload);
        self.bytes += packet.len();
        self.packets.push_back(packet);
    }

    pub(super) fn front(&self) -> Option<&[u8]> {
        self.packets.front().map(Vec::as_slice)
    }

    pub(super) fn pop(&mut self) {
        if let Some(packet) = self.packets.pop_front() {
            self.bytes -= packet.len();
            self.earlier = self.earlier.saturating_sub(packet.len());
        }
        if self.packets.is_empty() {
            self.packets = VecDeque::new();
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Without those from before the client came.
    pub(super) fn live_bytes(&self) -> usize {
        self.bytes - self.earlier
    }

    /// All that is here is from before the client came; what is in `live` is not.
    pub(super) fn append_live(&mut self, mut live: Self) {
        self.earlier = self.bytes;
        self.bytes += live.bytes;
        self.packets.append(&mut live.packets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packets_give_back_the_bytes_of_each_kind_in_order(
            pushes in prop::collection::vec((2..4_u8, prop::collection::vec(any::<u8>(), 0..20_000)), 0..12)
        ) {
            let mut queue = Queue::default();
            let mut expected: Vec<(u8, u8)> = Vec::new();
            for (kind, payload) in &pushes {
                queue.push(*kind, payload);
                expected.extend(payload.iter().map(|byte| (*kind, *byte)));
            }
            let mut got = Vec::new();
            while let Some(packet) = queue.front() {
                prop_assert!(packet.len() <= PACKET_PAYLOAD_MAX + 1);
                got.extend(packet[1..].iter().map(|byte| (packet[0], *byte)));
                queue.pop();
            }
            prop_assert_eq!(got, expected);
            prop_assert_eq!(queue.bytes(), 0);
        }
    }

    #[test]
    fn many_short_writes_share_packets() {
        let mut queue = Queue::default();
        (0..10_000).for_each(|_| queue.push(2, b"x"));
        assert!(queue.packets.len() <= 2, "{}", queue.packets.len());
    }
}
