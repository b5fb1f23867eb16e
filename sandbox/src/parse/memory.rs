//! Sizes such as `50m`.

use std::fmt;
use std::str::FromStr;

use super::ParseError;

/// An amount of memory in bytes, above 0: a number with an optional unit `b`, `k`, `m`, `g` or `t` (powers of 1024).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(u64);

const MIB: u64 = 1 << 20;

impl MemorySize {
    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The size in MiB, rounded up.
    pub fn mib_rounded_up(self) -> u32 {
        u32::try_from(self.0.div_ceil(MIB)).unwrap_or(u32::MAX)
    }
}

impl FromStr for MemorySize {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError::new(format!("{text:?} is not a size such as 512m or 2g"));
        let lower = text.to_ascii_lowercase();
        let digits_end = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
        let (number, unit) = lower.split_at_checked(digits_end).ok_or_else(wrong)?;
        let shift = match unit {
            "" | "b" => 0,
            "k" | "kb" | "ki" | "kib" => 10,
            "m" | "mb" | "mi" | "mib" => 20,
            "g" | "gb" | "gi" | "gib" => 30,
            "t" | "tb" | "ti" | "tib" => 40,
            _ => return Err(wrong()),
        };
        let bytes = scaled(number, shift).ok_or_else(wrong)?;
        match bytes {
            0 => Err(ParseError::new("the size must be above 0")),
            bytes => Ok(Self(bytes)),
        }
    }
}

/// `number` times 2^`shift`, exact for whole numbers; digits behind the point below one byte are dropped.
fn scaled(number: &str, shift: u32) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.len() > 9 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    let part = match fraction {
        "" => 0,
        digits => {
            let scale = 10_u128.pow(u32::try_from(digits.len()).ok()?);
            u64::try_from((u128::from(digits.parse::<u64>().ok()?) << shift) / scale).ok()?
        }
    };
    whole.checked_add(part)
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.trailing_zeros() >= shift {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        match self.0 {
            bytes if bytes >= MIB => write!(f, "{} MiB", bytes / MIB),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in [("1", 1), ("7b", 7), ("2K", 2048), ("50m", 50 << 20), ("1.5g", 3 << 29), ("1t", 1 << 40)]
        {
            assert_eq!(text.parse::<MemorySize>().unwrap().bytes(), bytes);
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "m", "0", "-1m", "1x", "1 m", ".5g", "1.m", "1e3", "99999999999999999999", "17000000t"] {
            assert!(text.parse::<MemorySize>().is_err(), "{text}");
        }
    }

    #[test]
    fn people_see_the_unit_they_typed() {
        assert_eq!("50m".parse::<MemorySize>().unwrap().to_string(), "50 MiB");
        assert_eq!("2g".parse::<MemorySize>().unwrap().to_string(), "2 GiB");
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,40}") {
            let _ = text.parse::<MemorySize>();
        }

        #[test]
        fn whole_numbers_are_exact(number in 1..1_000_000u64) {
            let parsed: MemorySize = format!("{number}m").parse().unwrap();
            prop_assert_eq!(parsed.bytes(), number << 20);
            prop_assert_eq!(u64::from(parsed.mib_rounded_up()), number);
        }
    }
}
