//! The text of a join token: `hf1.<SHA-256 of the CA certificate, hex>.<id>.<secret>`.
//!
//! The hash lets the node know cloudcore before cloudcore knows the node; the secret lets cloudcore know that
//! somebody with access to the cluster wants the node. The id names the Secret that keeps the secret's hash.

const VERSION: &str = "hf1";
const HASH_DIGITS: usize = 64;
const ID_DIGITS: usize = 8;
/// Base64url of 32 bytes without padding.
const SECRET_LEN: usize = 43;

/// What is wrong with the text of a token. The text itself is not repeated: it is a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the token is malformed: {0}; it must be hf1.<64 hex digits>.<8 hex digits>.<43 characters>, \
     copied whole as `edgeadm token create` printed it"
)]
pub struct Malformed(pub &'static str);

/// The last part is none that any secret is written as.
pub const NO_SECRET: Malformed = Malformed("the last part is no secret");

/// The parts of a token, as they are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Parts<'a> {
    /// SHA-256 of the authority's certificate, 64 hexadecimal digits.
    pub authority: &'a str,
    /// Which token: 8 lower-case hexadecimal digits.
    pub id: &'a str,
    /// 43 characters, which may be no base64url.
    pub secret: &'a str,
}

impl<'a> Parts<'a> {
    /// Takes the text of a token apart.
    pub fn of(text: &'a str) -> Result<Self, Malformed> {
        let parts: Vec<&str> = text.trim().splitn(5, '.').collect();
        let [version, authority, id, secret] = parts[..] else {
            return Err(Malformed("it does not have four parts"));
        };
        if version != VERSION {
            return Err(Malformed("it does not start with hf1"));
        }
        if authority.len() != HASH_DIGITS || !authority.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Malformed("the second part is no SHA-256"));
        }
        if id.len() != ID_DIGITS || !id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(Malformed("the third part is no id"));
        }
        if secret.len() != SECRET_LEN {
            return Err(NO_SECRET);
        }

        Ok(Self { authority, id, secret })
    }

    /// The text that they are parts of.
    pub fn text(self) -> String {
        let Self { authority, id, secret } = self;

        format!("{VERSION}.{authority}.{id}.{secret}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (format!("hf1.{ca}./../../x.{secret}"), "four parts"),
            (format!("hf1.{ca}.0123abcd.{}", &secret[1..]), "last part"),
            (format!("hf1.{ca}.0123abcd.{secret}="), "last part"),
        ] {
            let error = Parts::of(&given).err().unwrap().to_string();
            assert!(error.contains(part), "{given}: {error}");
        }
        let whole = format!("hf1.{ca}.0123abcd.{secret}");
        let copied = format!(" {whole}\n");
        let parts = Parts::of(&copied).unwrap();
        assert_eq!((parts.id, parts.text()), ("0123abcd", whole));
    }
}
