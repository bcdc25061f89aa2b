//! Files of variables that a container wrote (`fileKeyRef`): lines `NAME='value'`, where a value may
//! hold line breaks (kubelet: `pkg/kubelet/util/env`).

/// One file, as far as it could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvFile {
    /// Where it is on the node, for messages.
    pub path: String,
    /// What it says.
    pub text: Option<String>,
}

/// A file that is not understood as far as it was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

const BLANKS: [char; 2] = [' ', '\t'];

/// The value of `key`; empty if the file does not set it.
pub(super) fn value(text: &str, key: &str) -> Result<String, Malformed> {
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim_start_matches(BLANKS);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or(Malformed)?;
        if name.is_empty() || name.ends_with(BLANKS) {
            return Err(Malformed);
        }
        if value.starts_with(BLANKS) {
            // As a shell has it, this sets the variable to nothing.
            if name == key {
                return Ok(String::new());
            }
            continue;
        }
        let value = quoted(value.strip_prefix('\'').ok_or(Malformed)?, &mut lines)?;
        if name == key {
            return Ok(value);
        }
    }

    Ok(String::new())
}

/// Up to the closing quote, which may be on a later line.
fn quoted<'a>(
    first: &'a str,
    lines: &mut impl Iterator<Item = &'a str>,
) -> Result<String, Malformed> {
    let mut value = String::new();
    let mut rest = first;
    loop {
        if let Some((end, after)) = rest.split_once('\'') {
            value.push_str(end);
            let after = after.trim_start_matches(BLANKS);
            let is_clean = after.is_empty() || after.starts_with('#');

            return if is_clean { Ok(value) } else { Err(Malformed) };
        }
        value.push_str(rest);
        value.push('\n');
        rest = lines.next().ok_or(Malformed)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_and_may_span_lines() {
        let text = "# made by setup\n\n  A='one' # two\nB='a\n b=\"c\"\n'\nC= 'none'\nD=''\n";
        for (key, expected) in
            [("A", "one"), ("B", "a\n b=\"c\"\n"), ("C", ""), ("D", ""), ("E", "")]
        {
            assert_eq!(value(text, key).as_deref(), Ok(expected), "{key}");
        }
    }

    #[test]
    fn anything_else_is_an_error_up_to_where_the_key_stands() {
        for text in ["A", "=x", "A ='x'", "A=x", "A=\"x\"", "A='x", "A='x' y"] {
            assert_eq!(value(text, "A"), Err(Malformed), "{text}");
            assert_eq!(value(&format!("B='b'\n{text}"), "B").as_deref(), Ok("b"), "{text}");
        }
    }
}
