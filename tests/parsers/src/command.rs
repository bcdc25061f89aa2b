//! What edgeadm is given by people, by cloudcore and by the machine.

use std::collections::BTreeMap;

use edgeadm::inputs;
use edgeadm::token::Token;

use crate::{Fed, cloud, text_of};

/// An answer to a request to join.
pub(crate) fn join_answer(bytes: &[u8]) -> Fed {
    for status in [200, 400, 403, 503] {
        inputs::is_answer(status, bytes);
    }

    Fed::tree(bytes)
}

/// A join token, as somebody typed it.
pub(crate) fn token(bytes: &[u8]) -> Fed {
    let fed = Fed::tree(bytes);
    let Ok(token) = text_of(bytes).parse::<Token>() else { return fed };

    fed.and(move || {
        let text = token.reveal();
        assert_eq!(text.parse(), Ok(token), "it reads back as written");
        assert!(cloud::takes_token(&text), "cloudcore does not take what edgeadm takes");
    })
}

/// Texts of the machine that are judged, or given to others.
pub(crate) fn text(bytes: &[u8]) -> Fed {
    let text = text_of(bytes);
    inputs::found(&text);
    inputs::selects(&text, &BTreeMap::from([("app".to_owned(), "web".to_owned())]));
    let redacted = inputs::redacted(&text);
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || "._-+/".contains(c);
    let mut words = redacted.split(|c| !is_of_word(c));
    assert!(!words.any(|word| word.starts_with("hf1.")), "a token is told");

    Fed::tree(bytes)
}
