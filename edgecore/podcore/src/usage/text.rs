//! The text format of Prometheus, version 0.0.4: families of samples, each family in one piece.

use std::fmt::Write as _;

use jiff::Timestamp;

/// What the text is, as HTTP says it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// A number. None of ours needs a float.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// As it is.
    Count(u64),
    /// Nanoseconds, written as seconds.
    Nanos(u64),
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Count(u64::from(yes))
    }
}

/// A moment as seconds since 1970; earlier ones are none.
pub fn since_1970(at: Timestamp) -> Value {
    Value::Nanos(u64::try_from(at.as_nanosecond()).unwrap_or(0))
}

/// A text under way.
#[derive(Debug, Default)]
pub struct Text {
    text: String,
    name: &'static str,
}

impl Text {
    /// Begins a family: the samples that follow are its.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.name = name;
        self.add(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// Adds a sample to the family, if it has a moment with that.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: Value, at: Option<Timestamp>) {
        self.text.push_str(self.name);
        for (place, (name, value)) in labels.iter().enumerate() {
            self.text.push(if place == 0 { '{' } else { ',' });
            self.add(format_args!("{name}=\""));
            for character in value.chars() {
                match character {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    other => self.text.push(other),
                }
            }
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        match value {
            Value::Count(number) => self.add(format_args!(" {number}")),
            Value::Nanos(ns) => {
                let (seconds, rest) = (ns / 1_000_000_000, ns % 1_000_000_000);
                let fraction = format!("{rest:09}");
                let fraction = fraction.trim_end_matches('0');
                let point = if fraction.is_empty() { "" } else { "." };
                self.add(format_args!(" {seconds}{point}{fraction}"));
            }
        }
        match at {
            Some(at) => self.add(format_args!(" {}\n", at.as_millisecond())),
            None => self.text.push('\n'),
        }
    }

    /// A family of one sample.
    pub fn single(&mut self, name: &'static str, kind: Kind, help: &str, value: Value) {
        self.family(name, kind, help);
        self.sample(&[], value, None);
    }

    /// All of it.
    pub fn finish(self) -> String {
        self.text
    }

    fn add(&mut self, arguments: std::fmt::Arguments<'_>) {
        self.text.write_fmt(arguments).expect("a string takes everything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_written() {
        let mut text = Text::default();
        text.family("a_total", Kind::Counter, "What it is.");
        text.sample(&[], Value::Count(1), None);
        let at = Timestamp::from_millisecond(1_700_000_000_123).unwrap();
        text.sample(&[("x", "a\"b\\c\nd"), ("y", "")], Value::Nanos(1_500_000_000), Some(at));
        text.single("b", Kind::Gauge, "B.", Value::Nanos(2_000_000_000));
        let expected = "# HELP a_total What it is.\n# TYPE a_total counter\na_total 1\n\
             a_total{x=\"a\\\"b\\\\c\\nd\",y=\"\"} 1.5 1700000000123\n\
             # HELP b B.\n# TYPE b gauge\nb 2\n";
        assert_eq!(text.finish(), expected);
    }
}
