//! Label selectors, the part of them that needs no parentheses.

use std::collections::BTreeMap;

use super::CtlError;

#[derive(Debug, PartialEq, Eq)]
enum Term {
    Has(String),
    HasNot(String),
    Is(String, String),
    IsNot(String, String),
}

/// All its terms must hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Selector(Vec<Term>);

/// Whether it is a selector that takes these labels: for [`crate::inputs`].
pub(crate) fn takes(text: &str, labels: &BTreeMap<String, String>) -> bool {
    Selector::parse(text).is_ok_and(|selector| selector.takes(labels))
}

impl Selector {
    pub(super) fn parse(text: &str) -> Result<Self, CtlError> {
        let terms = text.split(',').map(|term| parse_term(term.trim()));

        terms.collect::<Option<_>>().map(Self).ok_or_else(|| CtlError::Selector(text.to_owned()))
    }

    pub(super) fn takes(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|term| match term {
            Term::Has(key) => labels.contains_key(key),
            Term::HasNot(key) => !labels.contains_key(key),
            Term::Is(key, value) => labels.get(key) == Some(value),
            Term::IsNot(key, value) => labels.get(key) != Some(value),
        })
    }
}

fn parse_term(term: &str) -> Option<Term> {
    let word = |text: &str| {
        let text = text.trim();
        let sound = text.chars().all(|c| c.is_ascii_alphanumeric() || "-._/".contains(c));
        sound.then(|| text.to_owned())
    };
    let key = |text: &str| word(text).filter(|key| !key.is_empty());
    if let Some((name, value)) = term.split_once("!=") {
        return Some(Term::IsNot(key(name)?, word(value)?));
    }
    if let Some((name, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        return Some(Term::Is(key(name)?, word(value)?));
    }

    match term.strip_prefix('!') {
        Some(name) => key(name).map(Term::HasNot),
        None => key(term).map(Term::Has),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_take_what_they_say() {
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        for (text, takes) in [
            ("app", true),
            ("!app", false),
            ("app=web", true),
            ("app==web,app!=db", true),
            ("app=web,tier", false),
            ("tier!=test,!tier", true),
            ("example.com/app=", false),
        ] {
            assert_eq!(Selector::parse(text).unwrap().takes(&labels), takes, "{text}");
        }
        for wrong in ["", "=", "app in (web)", "a=b,", "a=b=c"] {
            assert!(Selector::parse(wrong).is_err(), "{wrong}");
        }
    }
}
