//! Processor shares such as `0.5`.

use std::str::FromStr;

use super::ParseError;

/// A limit of processor time, in thousandths of a processor: 0.01 to 512 processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpus(u32);

/// Period of the limit in microseconds, Docker's and the kernel's default.
pub const PERIOD_US: u64 = 100_000;

impl Cpus {
    /// Processor time in microseconds for each [`Cpus::period_us`].
    pub fn quota_us(self) -> i64 {
        i64::from(self.0) * 100
    }

    /// Period of the limit in microseconds.
    pub const fn period_us(self) -> u64 {
        PERIOD_US
    }

    /// Whole processors that are enough.
    pub fn rounded_up(self) -> u8 {
        u8::try_from(self.0.div_ceil(1000)).unwrap_or(u8::MAX)
    }
}

impl FromStr for Cpus {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError::new(format!("{text:?} is not a number of processors such as 0.5 or 2"));
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if text.is_empty() || text == "." || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
            return Err(wrong());
        }
        let whole: u32 = match whole {
            "" => 0,
            digits => digits.parse().map_err(|_| wrong())?,
        };
        // Thousandths: the first three digits behind the point.
        let thousandths = format!("{fraction:0<3}");
        let thousandths: u32 = thousandths.get(..3).and_then(|digits| digits.parse().ok()).ok_or_else(wrong)?;
        match whole.checked_mul(1000).and_then(|whole| whole.checked_add(thousandths)) {
            Some(value @ 10..=512_000) => Ok(Self(value)),
            _ => Err(ParseError::new("the number of processors must be from 0.01 to 512")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn halves_and_wholes() {
        let half: Cpus = "0.5".parse().unwrap();
        assert_eq!((half.quota_us(), half.period_us(), half.rounded_up()), (50_000, 100_000, 1));
        assert_eq!(".25".parse::<Cpus>().unwrap().quota_us(), 25_000);
        assert_eq!("2".parse::<Cpus>().unwrap().quota_us(), 200_000);
        assert_eq!("1.001".parse::<Cpus>().unwrap().rounded_up(), 2);
    }

    #[test]
    fn what_is_no_number_of_processors_is_refused() {
        for text in ["", ".", "-1", "0", "0.001", "513", "1,5", "1.2.3", "1e3", "٣"] {
            assert!(text.parse::<Cpus>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,40}") {
            let _ = text.parse::<Cpus>();
        }

        #[test]
        fn thousandths_are_exact(value in 10..512_000u32) {
            let text = format!("{}.{:03}", value / 1000, value % 1000);
            prop_assert_eq!(text.parse::<Cpus>().unwrap().quota_us(), i64::from(value) * 100);
        }
    }
}
