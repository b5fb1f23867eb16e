//! The keys that leave a container running: Ctrl-P Ctrl-Q.

const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;

/// Looks for the keys in what is typed.
#[derive(Debug, Default)]
pub struct DetachKeys {
    /// Ctrl-P was typed and is held back.
    pending: bool,
}

impl DetachKeys {
    /// Appends what is meant for the container to `out`; true if the keys were typed (the rest of `typed` is dropped).
    pub fn filter(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in typed {
            match (self.pending, byte) {
                (true, CTRL_Q) => return true,
                (true, CTRL_P) => out.push(CTRL_P),
                (true, _) => {
                    self.pending = false;
                    out.extend([CTRL_P, byte]);
                }
                (false, CTRL_P) => self.pending = true,
                (false, _) => out.push(byte),
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter(parts: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut keys, mut out) = (DetachKeys::default(), Vec::new());
        let detached = parts.iter().any(|part| keys.filter(part, &mut out));
        (out, detached)
    }

    #[test]
    fn the_keys_detach_also_when_they_come_apart() {
        assert_eq!(filter(&[b"ab\x10\x11cd"]), (b"ab".to_vec(), true));
        assert_eq!(filter(&[b"a\x10", b"\x11"]), (b"a".to_vec(), true));
        assert_eq!(filter(&[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
    }

    #[test]
    fn ctrl_p_alone_arrives_with_the_next_key() {
        assert_eq!(filter(&[b"\x10", b"x\x11"]), (b"\x10x\x11".to_vec(), false));
    }

    proptest! {
        #[test]
        fn without_the_keys_nothing_is_lost(typed in proptest::collection::vec(any::<u8>(), 0..50), cut in 0..50usize) {
            prop_assume!(!typed.windows(2).any(|pair| pair == [CTRL_P, CTRL_Q]));
            let cut = cut.min(typed.len());
            let (out, detached) = filter(&[&typed[..cut], &typed[cut..], b"."]);
            prop_assert!(!detached);
            prop_assert_eq!(out, [&typed[..], b"."].concat());
        }
    }
}
