//! The secret that opens one vsock connection.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A 128-bit secret, issued by the host for one connection and used once.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token([u8; Token::LENGTH]);

/// A text or byte string is not a token.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TokenError {
    /// The length is wrong.
    #[error("A token has 16 bytes (32 hexadecimal digits), not {0}")]
    Length(usize),
    /// A character is not a hexadecimal digit.
    #[error("A token has hexadecimal digits only")]
    Digit,
}

impl Token {
    /// Length in bytes.
    pub const LENGTH: usize = 16;

    /// Wraps bytes that come from a cryptographic random source.
    pub const fn from_random(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// The bytes as they are sent.
    pub const fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }
}

impl TryFrom<&[u8]> for Token {
    type Error = TokenError;

    fn try_from(bytes: &[u8]) -> Result<Self, TokenError> {
        bytes.try_into().map(Self).map_err(|_| TokenError::Length(bytes.len()))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        if text.len() != 2 * Self::LENGTH {
            return Err(TokenError::Length(text.len() / 2));
        }
        let mut bytes = [0; Self::LENGTH];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(pair).map_err(|_| TokenError::Digit)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| TokenError::Digit)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Secrets stay out of logs.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_survives_a_round_trip() {
        let token = Token::from_random(*b"0123456789abcdef");
        assert_eq!(token.to_string().parse(), Ok(token));
    }

    #[test]
    fn wrong_length_and_wrong_digits_are_refused() {
        assert_eq!("12".parse::<Token>(), Err(TokenError::Length(1)));
        assert_eq!("zz".repeat(16).parse::<Token>(), Err(TokenError::Digit));
        assert_eq!(Token::try_from([0u8; 15].as_slice()), Err(TokenError::Length(15)));
    }
}
