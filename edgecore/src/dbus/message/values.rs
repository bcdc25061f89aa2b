//! What methods are called with.

use super::write::Writer;

/// A value whose type is sent with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Yes or no.
    Truth(bool),
    /// A large number.
    Number(u64),
    /// A text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
}

impl Value {
    /// As a variant.
    fn write(&self, body: &mut Writer) {
        match self {
            Self::Truth(truth) => {
                body.signature("b");
                body.number((*truth).into());
            }
            Self::Number(number) => {
                body.signature("t");
                body.large_number(*number);
            }
            Self::Text(text) => {
                body.signature("s");
                body.text(text);
            }
            Self::Texts(texts) => {
                body.signature("as");
                body.list(4, |list| texts.iter().for_each(|text| list.text(text)));
            }
        }
    }
}

/// What a method is called with.
#[derive(Debug, Default)]
pub struct Values {
    pub(super) signature: String,
    pub(super) body: Writer,
}

impl Values {
    /// Texts only.
    pub fn texts(texts: &[&str]) -> Self {
        texts.iter().fold(Self::default(), |values, text| values.text(text))
    }

    /// One more text.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        self.signature.push('s');
        self.body.text(text);

        self
    }

    /// One more truth.
    #[must_use]
    pub fn truth(mut self, truth: bool) -> Self {
        self.signature.push('b');
        self.body.number(truth.into());

        self
    }

    /// A list of texts.
    #[must_use]
    pub fn list(mut self, texts: &[&str]) -> Self {
        self.signature.push_str("as");
        self.body.list(4, |list| texts.iter().for_each(|text| list.text(text)));

        self
    }

    /// A list of properties with their values.
    #[must_use]
    pub fn properties(mut self, properties: &[(&str, Value)]) -> Self {
        self.signature.push_str("a(sv)");
        self.body.list(8, |body| {
            for (name, value) in properties {
                body.align(8);
                body.text(name);
                value.write(body);
            }
        });

        self
    }

    /// An empty list of units with properties, as those that a call could also make.
    #[must_use]
    pub fn no_units(mut self) -> Self {
        self.signature.push_str("a(sa(sv))");
        self.body.list(8, |_empty| {});

        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_the_bytes_that_the_specification_says() {
        let properties =
            [("A", Value::Truth(true)), ("B", Value::Texts(vec!["x".to_owned(), String::new()]))];
        let values = Values::texts(&["u"]).truth(false).properties(&properties).no_units();
        assert_eq!(values.signature, "sba(sv)a(sa(sv))");
        let expected: [&[u8]; 7] = [
            b"\x01\0\0\0u\0\0\0\0\0\0\0",
            // The length is without the room before the first property, each at a multiple of 8.
            b"\x2d\0\0\0",
            b"\x01\0\0\0A\0\x01b\0\0\0\0\x01\0\0\0",
            b"\x01\0\0\0B\0\x02as\0\0\0",
            b"\x0d\0\0\0\x01\0\0\0x\0\0\0\0\0\0\0\0",
            b"\0\0\0",
            b"\0\0\0\0\0\0\0\0",
        ];
        assert_eq!(values.body.0, expected.concat());
        let list = Values::default().list(&["u"]).truth(true);
        assert_eq!(list.signature, "asb");
        assert_eq!(list.body.0, *b"\x06\0\0\0\x01\0\0\0u\0\0\0\x01\0\0\0");
        let number = Values::default().properties(&[("N", Value::Number(u64::MAX))]);
        assert_eq!(
            number.body.0[8..],
            *b"\x01\0\0\0N\0\x01t\0\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"
        );
    }
}
