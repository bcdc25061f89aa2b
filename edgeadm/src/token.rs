//! The text form of a join token: `hf1.<SHA-256 of the CA certificate, hex>.<id>.<secret>`.
//!
//! The hash lets the node know cloudcore before cloudcore knows the node; the secret lets cloudcore
//! know that somebody with access to the cluster wants the node. The id names the Secret that
//! keeps the secret's hash.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proto::object::hex;
use ring::digest::{SHA256, digest};
use ring::rand::SecureRandom;

const VERSION: &str = "hf1";
const ID_LEN: usize = 8;
const HASH_LEN: usize = 32;
const SECRET_LEN: usize = 32;

/// A join token. Its secret is shown by [`Token::reveal`] alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    ca_hash: [u8; HASH_LEN],
    id: String,
    secret: [u8; SECRET_LEN],
}

/// What is wrong with the text of a token. The text itself is not repeated: it is a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the token is malformed: {0}; it must be hf1.<64 hex digits>.<8 hex digits>.<43 characters>, \
     copied whole as `edgeadm token create` printed it"
)]
pub struct TokenMalformed(&'static str);

/// No random bytes are to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gives no random bytes")]
pub struct NoRandomness;

impl Token {
    /// A fresh token for the authority with this certificate.
    pub fn generate(ca_der: &[u8], random: &dyn SecureRandom) -> Result<Self, NoRandomness> {
        let (mut id, mut secret) = ([0; ID_LEN / 2], [0; SECRET_LEN]);
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
        let secret = URL_SAFE_NO_PAD.encode(self.secret);

        format!("{VERSION}.{}.{}.{secret}", hex(&self.ca_hash), self.id)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

impl FromStr for Token {
    type Err = TokenMalformed;

    fn from_str(text: &str) -> Result<Self, TokenMalformed> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [version, ca_hash, id, secret] = parts[..] else {
            return Err(TokenMalformed("it does not have four parts"));
        };
        if version != VERSION {
            return Err(TokenMalformed("it does not start with hf1"));
        }
        let ca_hash = unhex(ca_hash).ok_or(TokenMalformed("the second part is no SHA-256"))?;
        if id.len() != ID_LEN || !id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(TokenMalformed("the third part is no id"));
        }
        let secret = URL_SAFE_NO_PAD.decode(secret).ok().and_then(|secret| secret.try_into().ok());
        let secret = secret.ok_or(TokenMalformed("the last part is no secret"))?;

        Ok(Self { ca_hash, id: id.to_owned(), secret })
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
        assert_eq!(token.id().len(), ID_LEN);
        assert!(!format!("{token:?}").contains(&URL_SAFE_NO_PAD.encode(token.secret)));
    }

    #[test]
    fn malformed_tokens_say_which_part() {
        let (ca, secret) = ("a".repeat(64), "A".repeat(43));
        for (given, part) in [
            (String::new(), "four parts"),
            (format!("hf1.{ca}.0123abcd"), "four parts"),
            (format!("hf1.{ca}.0123abcd.{secret}.x"), "four parts"),
            (format!("hf2.{ca}.0123abcd.{secret}"), "start with hf1"),
            (format!("hf1.{}.0123abcd.{secret}", &ca[1..]), "second part"),
            (format!("hf1.{}g.0123abcd.{secret}", &ca[1..]), "second part"),
            (format!("hf1.{}é.0123abcd.{secret}", &ca[2..]), "second part"),
            (format!("hf1.{ca}.0123ABCD.{secret}"), "third part"),
            (format!("hf1.{ca}.../../x.{secret}"), "four parts"),
            (format!("hf1.{ca}.0123abcd.{}", &secret[1..]), "last part"),
            (format!("hf1.{ca}.0123abcd.{secret}="), "last part"),
        ] {
            let error = given.parse::<Token>().unwrap_err().to_string();
            assert!(error.contains(part), "{given}: {error}");
        }
        assert!(format!(" hf1.{ca}.0123abcd.{secret}\n").parse::<Token>().is_ok());
    }
}
