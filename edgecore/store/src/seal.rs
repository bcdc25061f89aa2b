//! Sealing of rows: ChaCha20-Poly1305 with a random nonce for each row, quick on machines without
//! AES instructions.
//!
//! The columns that say what a row is are not encrypted but bound to it (associated data), so that
//! a row moved under another name does not open. A sealed row is nonce, ciphertext, tag.
//!
//! Random nonces collide with probability 2^-33 after 2^32 rows under one key: 13 years of ten
//! writes a second.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey};
use ring::digest;
use ring::rand::{SecureRandom as _, SystemRandom};

/// Length of the secret key.
pub(crate) const KEY_LEN: usize = 32;

/// Length of the public name of a key.
pub(crate) const KEY_ID_LEN: usize = 8;

/// Seals and opens rows with one key.
pub(crate) struct Sealer {
    key: LessSafeKey,
    id: [u8; KEY_ID_LEN],
    random: SystemRandom,
}

impl Sealer {
    pub(crate) fn new(secret: &[u8; KEY_LEN]) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, secret)
            .expect("the array has the length of the algorithm's keys");
        let mut id = [0; KEY_ID_LEN];
        id.copy_from_slice(&digest::digest(&digest::SHA256, secret).as_ref()[..KEY_ID_LEN]);

        Self { key: LessSafeKey::new(key), id, random: SystemRandom::new() }
    }

    /// The name of the key: a hash that does not tell the key.
    pub(crate) fn key_id(&self) -> &[u8; KEY_ID_LEN] {
        &self.id
    }

    /// Encrypts `plain` and binds it to `about`.
    pub(crate) fn seal(&self, about: &About, plain: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).expect("the kernel's random source made the key already");
        let mut sealed = Vec::with_capacity(NONCE_LEN + plain.len() + MAX_TAG_LEN);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let tag = self
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(about.bound_to(self.id)),
                &mut sealed[NONCE_LEN..],
            )
            .expect("a row is far below the 256 GiB that the algorithm takes");
        sealed.extend_from_slice(tag.as_ref());

        sealed
    }

    /// Decrypts a row; `None` if it was damaged, moved, or sealed with another key.
    pub(crate) fn open(&self, about: &About, mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let nonce: [u8; NONCE_LEN] = sealed.get(..NONCE_LEN)?.try_into().ok()?;
        let plain_len = self
            .key
            .open_in_place(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(about.bound_to(self.id)),
                &mut sealed[NONCE_LEN..],
            )
            .ok()?
            .len();
        sealed.drain(..NONCE_LEN);
        sealed.truncate(plain_len);
        sealed.shrink_to_fit();

        Some(sealed)
    }
}

/// What a row is, as bound to its content: fields in a fixed order, each with its length.
pub(crate) struct About(Vec<u8>);

impl About {
    /// Begins with the name of the table.
    pub(crate) fn table(name: &str) -> Self {
        Self(Vec::new()).text(name)
    }

    pub(crate) fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    pub(crate) fn number(self, number: u64) -> Self {
        self.bytes(&number.to_be_bytes())
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        self.0.extend_from_slice(bytes);

        self
    }

    fn bound_to(&self, key_id: [u8; KEY_ID_LEN]) -> Vec<u8> {
        [self.0.as_slice(), &key_id].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(name: &str) -> About {
        About::table("objects").text(name).number(7)
    }

    #[test]
    fn a_row_opens_only_whole_under_its_name_and_key() {
        let sealer = Sealer::new(&[1; KEY_LEN]);
        let sealed = sealer.seal(&about("a"), b"secret");

        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_eq!(sealer.open(&about("a"), sealed.clone()).unwrap(), b"secret");
        assert_eq!(sealer.open(&about("b"), sealed.clone()), None);
        assert_eq!(Sealer::new(&[2; KEY_LEN]).open(&about("a"), sealed.clone()), None);
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(sealer.open(&about("a"), damaged), None, "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert_eq!(sealer.open(&about("a"), sealed[..length].to_vec()), None, "{length} bytes");
        }
    }

    #[test]
    fn borders_between_fields_count() {
        let sealer = Sealer::new(&[1; KEY_LEN]);
        let sealed = sealer.seal(&About::table("t").text("ab").text("c"), b"");

        assert_eq!(sealer.open(&About::table("t").text("a").text("bc"), sealed), None);
    }

    #[test]
    fn the_same_row_is_never_sealed_the_same() {
        let sealer = Sealer::new(&[1; KEY_LEN]);

        assert_ne!(sealer.seal(&about("a"), b"x"), sealer.seal(&about("a"), b"x"));
    }
}
