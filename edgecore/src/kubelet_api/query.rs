//! Query strings, as Go reads them.

/// The parameters of a request, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Parameters whose escapes are wrong are left out.
    pub(crate) fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((unescape(name)?, unescape(value)?))
        });

        Self(pairs.collect())
    }

    /// The first value of `name`.
    pub(crate) fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// All values of `name`.
    pub(super) fn all(&self, name: &str) -> Vec<String> {
        let matching = self.0.iter().filter(|(found, _)| found == name);

        matching.map(|(_, value)| value.clone()).collect()
    }

    /// How Kubernetes reads a boolean parameter: all is true but absence, `false` and `0`.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.first(name).is_some_and(|value| !value.eq_ignore_ascii_case("false") && value != "0")
    }

    /// How the streaming endpoints read one: only `1` is true.
    pub(super) fn is_one(&self, name: &str) -> bool {
        self.first(name) == Some("1")
    }
}

fn unescape(text: &str) -> Option<String> {
    unescape_path(&text.replace('+', " "))
}

/// A part of a path, where a plus is a plus.
pub(crate) fn unescape_path(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            other => other,
        });
    }

    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, expected: &[(&str, &str)]) {
        let pairs = expected.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        assert_eq!(Query::parse(query), Query(pairs), "{query}");
    }

    #[test]
    fn queries_are_read_as_go_does() {
        check("", &[]);
        check("a=1&b&&c=", &[("a", "1"), ("b", ""), ("c", "")]);
        check(
            "command=sh&command=-c&command=a+b%20c%26",
            &[("command", "sh"), ("command", "-c"), ("command", "a b c&")],
        );
        check("x=%e2%82%AC", &[("x", "€")]);
        check("bad=%zz&worse=%2&good=1", &[("good", "1")]);
        check("invalid=%ff&good=1", &[("good", "1")]);
    }

    #[test]
    fn a_flag_is_true_unless_it_says_no() {
        let flag = |query: &str| Query::parse(query).flag("follow");
        assert!(flag("follow=true") && flag("follow=1") && flag("follow") && flag("follow=yes"));
        assert!(!flag("") && !flag("follow=false") && !flag("follow=False") && !flag("follow=0"));
    }
}
