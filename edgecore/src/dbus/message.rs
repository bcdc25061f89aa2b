//! As much of D-Bus as it takes to call methods of logind and systemd and to hear signals: messages to bytes
//! and back. The wire format is that of the D-Bus specification, little-endian.

mod read;
mod values;
mod write;

pub use self::read::Malformed;
use self::read::Reader;
pub use self::values::{Value, Values};
use self::write::{Writer, length};

/// Longest message taken: those of logind and systemd have some hundred bytes.
const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// Fixed part of a header: byte order, type, flags, version, body length, serial, length of the fields.
const FIXED_BYTES: usize = 16;

const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SENDER: u8 = 7;
const SIGNATURE: u8 = 8;
const FDS: u8 = 9;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Calls a method.
    Call,
    /// Answers a call.
    Answer,
    /// Refuses a call.
    Error,
    /// Tells something to all.
    Signal,
}

/// A message with what matters of its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// Number of the sender.
    pub serial: u32,
    /// Number of the call that it answers.
    pub answers: Option<u32>,
    /// Object, interface, method or signal, name of an error, receiver.
    pub path: String,
    /// Of the method or signal.
    pub interface: String,
    /// The method or signal.
    pub member: String,
    /// Of an error.
    pub error: String,
    /// To whom.
    pub destination: String,
    /// From whom, as the bus says it.
    pub sender: String,
    /// File descriptors that come with it.
    pub fds: u32,
    /// Types of the body.
    pub signature: String,
    /// Values of these types.
    pub body: Vec<u8>,
}

impl Message {
    /// A call of a method that takes texts.
    pub fn call(serial: u32, to: &str, path: &str, method: (&str, &str), texts: &[&str]) -> Self {
        Self::call_with(serial, to, path, method, Values::texts(texts))
    }

    /// A call of a method.
    pub fn call_with(
        serial: u32,
        to: &str,
        path: &str,
        method: (&str, &str),
        values: Values,
    ) -> Self {
        Self {
            kind: Kind::Call,
            serial,
            answers: None,
            path: path.to_owned(),
            interface: method.0.to_owned(),
            member: method.1.to_owned(),
            error: String::new(),
            destination: to.to_owned(),
            sender: String::new(),
            fds: 0,
            signature: values.signature,
            body: values.body.0,
        }
    }

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let kind = match self.kind {
            Kind::Call => 1,
            Kind::Answer => 2,
            Kind::Error => 3,
            Kind::Signal => 4,
        };
        let mut fields = Writer::default();
        for (code, r#type, value) in [
            (PATH, "o", &self.path),
            (INTERFACE, "s", &self.interface),
            (MEMBER, "s", &self.member),
            (ERROR_NAME, "s", &self.error),
            (DESTINATION, "s", &self.destination),
            (SENDER, "s", &self.sender),
        ] {
            if !value.is_empty() {
                fields.field(code, r#type);
                fields.text(value);
            }
        }
        let numbers = [(REPLY_SERIAL, self.answers), (FDS, Some(self.fds).filter(|n| *n > 0))];
        for (code, number) in numbers {
            if let Some(number) = number {
                fields.field(code, "u");
                fields.number(number);
            }
        }
        if !self.signature.is_empty() {
            fields.field(SIGNATURE, "g");
            fields.signature(&self.signature);
        }
        let mut message = Writer(vec![b'l', kind, 0, 1]);
        message.number(length(&self.body));
        message.number(self.serial);
        message.number(length(&fields.0));
        // The fields begin at a multiple of 8, so that their own alignment holds.
        message.0.extend(fields.0);
        message.align(8);
        message.0.extend(&self.body);

        message.0
    }

    /// The first message in `bytes` and its length; `None` if it is not there in whole.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let Some(fixed) = bytes.get(..FIXED_BYTES) else { return Ok(None) };
        let kind = match (fixed[0], fixed[1], fixed[3]) {
            (b'l', 1, 1) => Kind::Call,
            (b'l', 2, 1) => Kind::Answer,
            (b'l', 3, 1) => Kind::Error,
            (b'l', 4, 1) => Kind::Signal,
            _other => return Err(Malformed),
        };
        let mut reader = Reader::new(fixed, 4);
        let body_length = reader.number()? as usize;
        let serial = reader.number()?;
        let fields_length = reader.number()? as usize;
        if body_length > MESSAGE_BYTES_MAX || fields_length > MESSAGE_BYTES_MAX {
            return Err(Malformed);
        }
        let fields_end = FIXED_BYTES + fields_length;
        let body_start = fields_end.next_multiple_of(8);
        let end = body_start + body_length;
        if bytes.len() < end {
            return Ok(None);
        }
        let mut message = Self {
            kind,
            serial,
            answers: None,
            path: String::new(),
            interface: String::new(),
            member: String::new(),
            error: String::new(),
            destination: String::new(),
            sender: String::new(),
            fds: 0,
            signature: String::new(),
            body: bytes[body_start..end].to_vec(),
        };
        let mut fields = Reader::new(&bytes[..fields_end], FIXED_BYTES);
        while !fields.is_at_end() {
            message.take_field(&mut fields)?;
        }

        Ok(Some((message, end)))
    }

    fn take_field(&mut self, fields: &mut Reader<'_>) -> Result<(), Malformed> {
        fields.align(8);
        let code = fields.byte()?;
        match (code, fields.signature()?.as_str()) {
            (PATH, "o") => self.path = fields.text()?,
            (INTERFACE, "s") => self.interface = fields.text()?,
            (MEMBER, "s") => self.member = fields.text()?,
            (ERROR_NAME, "s") => self.error = fields.text()?,
            (DESTINATION, "s") => self.destination = fields.text()?,
            (SENDER, "s") => self.sender = fields.text()?,
            (SIGNATURE, "g") => self.signature = fields.signature()?,
            (REPLY_SERIAL, "u") => self.answers = Some(fields.number()?),
            (FDS, "u") => self.fds = fields.number()?,
            (_, "s" | "o") => drop(fields.text()?),
            (_, "g") => drop(fields.signature()?),
            (_, "u") => drop(fields.number()?),
            _unknown => return Err(Malformed),
        }

        Ok(())
    }

    /// The body's first value, if it is a text.
    pub fn first_text(&self) -> Option<String> {
        self.signature.strip_prefix('s')?;

        Reader::new(&self.body, 0).text().ok()
    }

    /// The body's texts and paths, in order, up to a value that is neither one nor a number.
    pub fn all_texts(&self) -> Vec<String> {
        let mut reader = Reader::new(&self.body, 0);
        let mut texts = Vec::new();
        for r#type in self.signature.chars() {
            let read = match r#type {
                's' | 'o' => reader.text().map(|text| texts.push(text)),
                'u' => reader.number().map(drop),
                _other => break,
            };
            if read.is_err() {
                break;
            }
        }

        texts
    }

    /// The number, or the truth as one, in the variant that is the body.
    pub fn variant_number(&self) -> Option<u64> {
        let mut reader = Reader::new(&self.body, 0);
        if self.signature != "v" {
            return None;
        }
        match reader.signature().ok()?.as_str() {
            "b" => reader.number().ok().map(u64::from),
            "t" => reader.large_number().ok(),
            _other => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Message {
        let bus = "org.freedesktop.DBus";
        Message::call(1, bus, "/org/freedesktop/DBus", (bus, "Hello"), &[])
    }

    fn signal(active: u32) -> Message {
        Message {
            kind: Kind::Signal,
            destination: String::new(),
            signature: "b".to_owned(),
            body: active.to_le_bytes().to_vec(),
            ..hello()
        }
    }

    #[test]
    fn a_message_is_the_bytes_that_the_specification_says() {
        let bytes = hello().encode();
        assert_eq!(&bytes[..16], b"l\x01\x00\x01\x00\x00\x00\x00\x01\x00\x00\x00\x6d\x00\x00\x00");
        assert_eq!(
            &bytes[16..48],
            b"\x01\x01o\x00\x15\x00\x00\x00/org/freedesktop/DBus\x00\x00\x00"
        );
        assert_eq!(bytes.len() % 8, 0);
    }

    #[test]
    fn what_is_written_is_read_and_parts_are_waited_for() {
        let call = Message::call(7, "a.b", "/a", ("a.I", "Inhibit"), &["shutdown", "", "why"]);
        let answer = Message {
            kind: Kind::Answer,
            answers: Some(7),
            sender: ":1.7".to_owned(),
            fds: 1,
            ..hello()
        };
        for message in [call, answer, signal(1), hello()] {
            let mut bytes = message.encode();
            let length = bytes.len();
            for part in 0..length {
                assert_eq!(Message::decode(&bytes[..part]), Ok(None));
            }
            bytes.extend(b"more");
            assert_eq!(Message::decode(&bytes), Ok(Some((message, length))));
        }
    }

    #[test]
    fn values_are_read_if_they_are_of_the_type() {
        let mut body = b"\x01t\x00\x00\x00\x00\x00\x00".to_vec();
        body.extend(5_000_000_u64.to_le_bytes());
        let delay = Message { signature: "v".to_owned(), body, ..hello() };
        assert_eq!((delay.variant_number(), signal(1).variant_number()), (Some(5_000_000), None));
        let body = b"\x01b\x00\x00\x01\x00\x00\x00".to_vec();
        let truth = Message { signature: "v".to_owned(), body, ..hello() };
        assert_eq!(truth.variant_number(), Some(1));
        let refused = Message::call(1, "", "", ("", ""), &["no such name"]);
        assert_eq!(refused.first_text().as_deref(), Some("no such name"));
    }

    #[test]
    fn texts_are_read_between_numbers() {
        let body = b"\x07\0\0\0\x02\0\0\0/j\0\0\x01\0\0\0u\0\0\0\x04\0\0\0done\0".to_vec();
        let removed = Message { signature: "uoss".to_owned(), body, ..hello() };
        assert_eq!(removed.all_texts(), ["/j", "u", "done"]);
        let odd = Message { signature: "sv".to_owned(), body: Vec::new(), ..hello() };
        assert!(odd.all_texts().is_empty());
    }

    #[test]
    fn no_bytes_are_too_odd() {
        let good = Message::call(7, "a.b", "/a", ("a.I", "Inhibit"), &["shutdown"]).encode();
        for at in 0..good.len() {
            for value in [0, 1, 7, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                let _any_answer_but_a_panic = Message::decode(&bytes);
            }
        }
        assert_eq!(
            Message::decode(b"B\x01\x00\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00"),
            Err(Malformed)
        );
        let huge = b"l\x01\x00\x01\xff\xff\xff\xff\x01\x00\x00\x00\x00\x00\x00\x00";
        assert_eq!(Message::decode(huge), Err(Malformed));
    }
}
