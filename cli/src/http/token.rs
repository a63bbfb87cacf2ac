//! Access tokens.

use std::io::{self, Read};

use vgg_edge::Fingerprint;

/// Fewest characters of a token.
const MIN_LENGTH: usize = 16;

/// A text that cannot be an access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a token needs at least {MIN_LENGTH} of the characters a-z, A-Z, 0-9, -_.~ \
     (try: openssl rand -hex 16)"
)]
pub struct TokenError;

/// Checks that a token can stand in headers and addresses as it is.
///
/// # Errors
/// [`TokenError`] if it cannot, or is too short.
pub fn check_token(token: &str) -> Result<String, TokenError> {
    let plain = token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b));
    if token.len() >= MIN_LENGTH && plain { Ok(token.to_owned()) } else { Err(TokenError) }
}

/// Returns 32 random hexadecimal digits.
///
/// # Errors
/// The system's error if `/dev/urandom` cannot be read.
pub fn random_token() -> io::Result<String> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A token to compare with, as its hash: comparing takes equally long for all guesses, and the
/// token itself is not kept.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken(Fingerprint);

impl AccessToken {
    /// Hashes a token.
    pub fn new(token: &str) -> Self {
        Self(Fingerprint::of(token.as_bytes()))
    }

    /// Whether a text is the token.
    pub fn matches(&self, guess: &str) -> bool {
        Fingerprint::of(guess.as_bytes()) == self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        assert_eq!(check_token("short"), Err(TokenError));
        assert_eq!(check_token("0123456789abcde;"), Err(TokenError));
        assert_eq!(check_token("0123456789abcdef").as_deref(), Ok("0123456789abcdef"));
        let (a, b) = (random_token().unwrap(), random_token().unwrap());
        assert!(a != b && a.len() == 32 && check_token(&a).is_ok());
        assert!(AccessToken::new(&a).matches(&a) && !AccessToken::new(&a).matches(&b));
    }
}
