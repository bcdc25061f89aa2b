//! A join token, as it is made and read here; [`proto::token`] knows its text.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proto::object::hex;
pub use proto::token::Malformed;
use proto::token::{NO_SECRET, Parts};
use ring::digest::{SHA256, digest};
use ring::rand::SecureRandom;

/// Of the text's eight digits.
const ID_BYTES: usize = 4;
const HASH_LEN: usize = 32;
const SECRET_LEN: usize = 32;

/// A join token. Its secret is shown by [`Token::reveal`] alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    ca_hash: [u8; HASH_LEN],
    id: String,
    secret: [u8; SECRET_LEN],
}

/// No random bytes are to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gives no random bytes")]
pub struct NoRandomness;

impl Token {
    /// A fresh token for the authority with this certificate.
    pub fn generate(ca_der: &[u8], random: &dyn SecureRandom) -> Result<Self, NoRandomness> {
        let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_LEN]);
        random.fill(&mut id).map_err(|_| NoRandomness)?;
        random.fill(&mut secret).map_err(|_| NoRandomness)?;

        Ok(Self { ca_hash: hash(ca_der), id: hex(&id), secret })
    }

    /// Which token.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether it was made for the authority with this certificate.
    pub fn is_for(&self, ca_der: &[u8]) -> bool {
        self.ca_hash == hash(ca_der)
    }

    /// What the cluster keeps of the secret.
    pub fn secret_hash(&self) -> String {
        hex(&hash(&self.secret))
    }

    /// The text, secret and all.
    pub fn reveal(&self) -> String {
        let (authority, secret) = (hex(&self.ca_hash), URL_SAFE_NO_PAD.encode(self.secret));

        Parts { authority: &authority, id: &self.id, secret: &secret }.text()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

impl FromStr for Token {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let Parts { authority, id, secret } = Parts::of(text)?;
        let ca_hash = unhex(authority).ok_or(Malformed("the second part is no SHA-256"))?;
        let secret = URL_SAFE_NO_PAD.decode(secret).ok().and_then(|secret| secret.try_into().ok());

        Ok(Self { ca_hash, id: id.to_owned(), secret: secret.ok_or(NO_SECRET)? })
    }
}

fn hash(bytes: &[u8]) -> [u8; HASH_LEN] {
    let mut hash = [0; HASH_LEN];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());

    hash
}

fn unhex(text: &str) -> Option<[u8; HASH_LEN]> {
    if text.len() != 2 * HASH_LEN {
        return None;
    }
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    let digits = digits?;
    let bytes = digits.chunks_exact(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).ok());
    let bytes: Option<Vec<u8>> = bytes.collect();

    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;

    use super::*;

    #[test]
    fn a_token_reads_back_as_written() {
        let token = Token::generate(b"certificate", &SystemRandom::new()).unwrap();

        assert_eq!(token.reveal().parse(), Ok(token.clone()));
        assert!(token.is_for(b"certificate"));
        assert!(!token.is_for(b"another"));
        assert_eq!(token.id().len(), 2 * ID_BYTES);
        assert!(!format!("{token:?}").contains(&URL_SAFE_NO_PAD.encode(token.secret)));
    }

    #[test]
    fn a_secret_that_is_none_is_said() {
        let given = format!("hf1.{}.0123abcd.{}!", "a".repeat(64), "A".repeat(42));
        assert_eq!(given.parse::<Token>(), Err(NO_SECRET));
    }
}
