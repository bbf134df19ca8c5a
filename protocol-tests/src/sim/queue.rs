//! Virtual time: what happens when. Of things at the same instant the one that was
//! entered first happens first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Microseconds of virtual time since the world began.
pub(crate) type Us = u64;

/// Microseconds of a millisecond.
pub(crate) const MS: Us = 1_000;

/// Microseconds of a second.
pub(crate) const S: Us = 1_000_000;

/// Events in the order of their time.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    heap: BinaryHeap<Reverse<(Us, u64, u32)>>,
    /// Events are large, the heap moves small things.
    slots: Vec<Option<E>>,
    free: Vec<u32>,
    entered: u64,
}

impl<E> Queue<E> {
    pub(crate) const fn new() -> Self {
        Self { heap: BinaryHeap::new(), slots: Vec::new(), free: Vec::new(), entered: 0 }
    }

    pub(crate) fn push(&mut self, at: Us, event: E) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(event);
                slot
            }
            None => {
                self.slots.push(Some(event));
                (self.slots.len() - 1) as u32
            }
        };
        self.entered += 1;
        self.heap.push(Reverse((at, self.entered, slot)));
    }

    pub(crate) fn pop(&mut self) -> Option<(Us, E)> {
        let Reverse((at, _, slot)) = self.heap.pop()?;
        self.free.push(slot);
        Some((at, self.slots[slot as usize].take()?))
    }
}
