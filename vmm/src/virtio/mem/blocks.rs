//! Which blocks are plugged.

use std::ops::Range;

/// State of a range of blocks (virtio 1.2, section 5.15.6.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum State {
    /// All are plugged.
    Plugged = 0,
    /// None is plugged.
    Unplugged = 1,
    /// Some are plugged.
    Mixed = 2,
}

/// A bit for each block, and how many are set in each slot.
#[derive(Debug)]
pub struct Blocks {
    plugged: Vec<bool>,
    per_slot: Vec<usize>,
    slot_blocks: usize,
}

impl Blocks {
    /// `count` unplugged blocks in slots of `slot_blocks`, which divides `count`.
    pub fn new(count: usize, slot_blocks: usize) -> Self {
        let slot_blocks = slot_blocks.max(1);
        Self { plugged: vec![false; count], per_slot: vec![0; count.div_ceil(slot_blocks)], slot_blocks }
    }

    /// State of a range that isn't empty; a range outside counts as unplugged.
    pub fn state(&self, range: Range<usize>) -> State {
        let blocks = self.plugged.get(range).unwrap_or_default();
        let plugged = blocks.iter().filter(|plugged| **plugged).count();
        match plugged {
            0 => State::Unplugged,
            all if all == blocks.len() => State::Plugged,
            _ => State::Mixed,
        }
    }

    /// Marks a range.
    pub fn set(&mut self, range: Range<usize>, plugged: bool) {
        for index in range {
            let Some(block) = self.plugged.get_mut(index) else { return };
            let Some(count) = self.per_slot.get_mut(index / self.slot_blocks) else { return };
            match (std::mem::replace(block, plugged), plugged) {
                (false, true) => *count += 1,
                (true, false) => *count -= 1,
                _ => {}
            }
        }
    }

    /// Number of plugged blocks.
    pub fn count(&self) -> usize {
        self.per_slot.iter().sum()
    }

    /// Number of plugged blocks in a slot.
    pub fn count_in_slot(&self, slot: usize) -> usize {
        self.per_slot.get(slot).copied().unwrap_or(0)
    }

    /// The slots that a range of blocks touches.
    pub fn slots(&self, range: &Range<usize>) -> Range<usize> {
        range.start / self.slot_blocks..range.end.div_ceil(self.slot_blocks)
    }

    /// All blocks.
    pub fn all(&self) -> Range<usize> {
        0..self.plugged.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_and_counts_follow_changes() {
        let mut blocks = Blocks::new(8, 4);
        assert_eq!(blocks.state(0..8), State::Unplugged);
        blocks.set(2..6, true);
        blocks.set(2..3, true);
        assert_eq!(
            (blocks.state(2..6), blocks.state(1..3), blocks.state(6..8)),
            (State::Plugged, State::Mixed, State::Unplugged)
        );
        assert_eq!((blocks.count(), blocks.count_in_slot(0), blocks.count_in_slot(1)), (4, 2, 2));
        assert_eq!((blocks.slots(&(3..4)), blocks.slots(&(3..5)), blocks.slots(&blocks.all())), (0..1, 0..2, 0..2));
        blocks.set(0..100, false);
        assert_eq!((blocks.count(), blocks.state(7..9)), (0, State::Unplugged));
    }
}
