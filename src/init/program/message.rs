//! Lines for a person, put together on the stack.

use crate::sys::raw::stdio;

/// One line. What does not fit is cut off.
pub(crate) struct Message {
    bytes: [u8; 256],
    length: usize,
}

impl Message {
    /// A line that begins with the program's name.
    pub(crate) fn new() -> Self {
        Self { bytes: [0; 256], length: 0 }.text(b"podinit: ")
    }

    /// Adds text.
    #[must_use]
    pub(crate) fn text(mut self, text: &[u8]) -> Self {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = *byte;
                self.length += 1;
            }
        }
        self
    }

    /// Adds a number.
    #[must_use]
    pub(crate) fn number(self, number: u64) -> Self {
        let mut digits = [0u8; 20];
        let mut rest = number;
        let mut used = 0;
        for place in digits.iter_mut().rev() {
            *place = b'0' + (rest % 10) as u8;
            rest /= 10;
            used += 1;
            if rest == 0 {
                break;
            }
        }
        self.text(digits.get(20 - used..).unwrap_or_default())
    }

    /// Writes the line to standard error, if there is one.
    pub(crate) fn say(self) {
        let line = self.text(b"\n");
        // Nobody to tell if this fails, and nothing may depend on it.
        let _ = stdio::write(stdio::STDERR, line.bytes.get(..line.length).unwrap_or_default());
    }
}
