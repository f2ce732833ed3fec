//! What a log driver gets: the records of one read, as ranges into bytes that
//! belong to others; and the buffer in which drivers gather what they write.

use std::io::IoSlice;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::split::Record;
use super::stamp::Stamp;

/// Bytes that one gathered write can render of its own (stamps, tags, short
/// payloads): room for the greatest record in any format, and for a read buffer
/// full of 100-byte lines, so that each read is one write.
pub(super) const SCRATCH_BYTES: usize = 384 << 10;

/// Slices in one `writev`: enough for a read buffer full of 4 KiB lines, each two
/// slices. Below that length payloads are copied, and need none of their own.
const SLICES_MAX: usize = 256;

/// A payload up to this length is copied next to its stamp; a longer one is
/// referred to where it lies. The kernel's cost of one more slice is about that
/// of copying this much.
pub(super) const COPY_BYTES_MAX: usize = 2 << 10;

/// Which output of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Standard output, and everything that comes from a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Channel {
    /// Both, in the order of their descriptors.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// 0 for stdout, 1 for stderr.
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::Stdout => 0,
            Self::Stderr => 1,
        }
    }

    /// The name that log formats use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The records of (a part of) one read.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Where the bytes come from.
    pub channel: Channel,
    /// When they were read.
    pub stamp: &'a Stamp,
    /// The start of the first record, from earlier reads.
    pub held: &'a [u8],
    /// What was read. `chunk[record.end]` is the newline of a `Full` record,
    /// except for the last record of a stream.
    pub chunk: &'a [u8],
    /// The records.
    pub records: &'a [Record],
}

impl Batch<'_> {
    /// The two parts of a record's payload.
    #[must_use]
    pub fn payload(&self, record: &Record) -> (&[u8], &[u8]) {
        (
            self.held.get(..record.held).unwrap_or_default(),
            self.chunk.get(record.start..record.end).unwrap_or_default(),
        )
    }
}

/// What is not copied, and where: after so many bytes of the scratch space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Held { after: usize, end: usize },
    Chunk { after: usize, start: usize, end: usize },
}

/// How far a gathered write came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes that were written.
    pub bytes: usize,
    /// Why no more, if not all were.
    pub error: Option<Errno>,
}

/// What one `writev` shall write. One for all streams; it never grows.
#[derive(Debug)]
pub struct Gather {
    /// Zeros to begin with, which the kernel gives without a page of memory.
    scratch: Vec<u8>,
    /// Bytes of it that are rendered.
    filled: usize,
    pieces: Vec<Piece>,
    /// Bytes of the pieces.
    referred: usize,
}

impl Default for Gather {
    fn default() -> Self {
        let (scratch, pieces) = (vec![0; SCRATCH_BYTES], Vec::with_capacity(SLICES_MAX / 2));
        Self { scratch, filled: 0, pieces, referred: 0 }
    }
}

impl Gather {
    /// Nothing is gathered afterwards.
    pub fn clear(&mut self) {
        self.filled = 0;
        self.pieces.clear();
        self.referred = 0;
    }

    /// Bytes gathered.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.filled + self.referred
    }

    /// A record that may take `scratch_bytes` of rendered text still fits.
    #[must_use]
    #[inline]
    pub fn has_room(&self, scratch_bytes: usize) -> bool {
        // Two pieces, held part and part in the chunk, and scratch space before each and at the end.
        2 * (self.pieces.len() + 2) < SLICES_MAX && self.filled + scratch_bytes <= SCRATCH_BYTES
    }

    /// Adds a copy of `bytes`, for which there is room ([`Self::has_room`]).
    pub fn copy(&mut self, bytes: &[u8]) {
        if let Some(room) = self.scratch.get_mut(self.filled..self.filled + bytes.len()) {
            room.copy_from_slice(bytes);
            self.filled += bytes.len();
        }
    }

    /// Adds one byte, for which there is room.
    pub fn byte(&mut self, byte: u8) {
        self.copy(&[byte]);
    }

    /// Adds `head`, `payload` and a newline, for which there is room: what most
    /// records are, and three times as fast as piece by piece.
    #[inline]
    pub fn line<const HEAD: usize>(&mut self, head: &[u8; HEAD], payload: &[u8]) {
        let length = HEAD + payload.len() + 1;
        let Some(room) = self.scratch.get_mut(self.filled..self.filled + length) else { return };
        let Some((head_room, room)) = room.split_first_chunk_mut::<HEAD>() else { return };
        let Some((newline, payload_room)) = room.split_last_mut() else { return };
        *head_room = *head;
        payload_room.copy_from_slice(payload);
        *newline = b'\n';
        self.filled += length;
    }

    /// Adds the payload of `record`, by copy or by reference.
    pub fn payload(&mut self, batch: &Batch<'_>, record: &Record) {
        let (held, chunk) = batch.payload(record);
        if held.len() > COPY_BYTES_MAX {
            self.pieces.push(Piece::Held { after: self.filled, end: record.held });
            self.referred += held.len();
        } else if !held.is_empty() {
            self.copy(held);
        }
        if chunk.len() > COPY_BYTES_MAX {
            self.pieces.push(Piece::Chunk { after: self.filled, start: record.start, end: record.end });
            self.referred += chunk.len();
        } else if !chunk.is_empty() {
            self.copy(chunk);
        }
    }

    fn slices<'a>(&'a self, batch: &Batch<'a>, mut skip: usize) -> ([IoSlice<'a>; SLICES_MAX], usize) {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        let mut add = |bytes: Option<&'a [u8]>| {
            let bytes = bytes.unwrap_or_default();
            let Some(rest) = bytes.get(skip..).filter(|rest| !rest.is_empty()) else {
                skip -= bytes.len();
                return;
            };
            skip = 0;
            if let Some(slice) = slices.get_mut(count) {
                *slice = IoSlice::new(rest);
                count += 1;
            }
        };
        let mut rendered = 0;
        for piece in &self.pieces {
            let (after, bytes) = match *piece {
                Piece::Held { after, end } => (after, batch.held.get(..end)),
                Piece::Chunk { after, start, end } => (after, batch.chunk.get(start..end)),
            };
            add(self.scratch.get(rendered..after));
            add(bytes);
            rendered = after;
        }
        add(self.scratch.get(rendered..self.filled));
        (slices, count)
    }

    /// Writes what is gathered, which must come from `batch`, to `fd`.
    #[must_use]
    pub fn write_to(&self, fd: BorrowedFd<'_>, batch: &Batch<'_>) -> Written {
        let mut bytes = 0;
        while bytes < self.bytes() {
            let (slices, count) = self.slices(batch, bytes);
            match rustix::io::writev(fd, slices.get(..count).unwrap_or_default()) {
                // No file system does that; it must not become an endless loop.
                Ok(0) => return Written { bytes, error: Some(Errno::IO) },
                Ok(written) => bytes += written,
                Err(Errno::INTR) => {}
                Err(error) => return Written { bytes, error: Some(error) },
            }
        }
        Written { bytes, error: None }
    }

    /// Appends what is gathered, which must come from `batch`, to `out`.
    pub fn append_to(&self, out: &mut Vec<u8>, batch: &Batch<'_>) {
        let (slices, count) = self.slices(batch, 0);
        for slice in slices.iter().take(count) {
            out.extend_from_slice(slice);
        }
    }
}
