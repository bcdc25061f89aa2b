//! From lines of a CRI log file to what the caller sees.
//!
//! A line is `<RFC 3339 time> <stdout|stderr> <tags> <content>`. The first tag is `P` if the runtime
//! cut a long line there, else `F`.

use jiff::Timestamp;

use super::options::{LogOptions, Streams};

/// Digits of a fraction of a second as the kubelet prints them.
const FRACTION_DIGITS: usize = 9;

/// Whether more is wanted after a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    More,
    Nothing,
}

/// Turns lines into output. Remembers what lasts from one line to the next.
#[derive(Debug)]
pub(super) struct Printer {
    since: Option<Timestamp>,
    timestamps: bool,
    streams: Streams,
    /// Bytes that may still be printed.
    bytes_left: u64,
    /// Lines that may still be read.
    lines_left: u64,
    /// The next content begins a line: the last one was not cut.
    at_line_start: bool,
}

struct Line<'a> {
    time: &'a str,
    timestamp: Timestamp,
    is_stdout: bool,
    /// With the newline, unless cut.
    content: &'a [u8],
}

impl Printer {
    pub(super) fn new(options: &LogOptions) -> Self {
        // A tail that is followed goes on after the lines that are there.
        let lines = options.tail_lines.filter(|_| !options.follow);

        Self {
            since: options.since,
            timestamps: options.timestamps,
            streams: options.streams,
            bytes_left: options.limit_bytes.unwrap_or(u64::MAX),
            lines_left: lines.unwrap_or(u64::MAX),
            at_line_start: true,
        }
    }

    /// Whether anything is wanted at all.
    pub(super) fn wants(&self) -> Want {
        if self.lines_left == 0 || self.bytes_left == 0 { Want::Nothing } else { Want::More }
    }

    /// Prints one line of the file, given with its newline, to `out`. What is no log line is skipped.
    pub(super) fn print(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Want {
        let Some(line) = parse(raw) else {
            return self.wants();
        };
        let is_new_line = self.at_line_start;
        self.at_line_start = line.content.last().is_none_or(|byte| *byte == b'\n');
        self.lines_left -= 1;

        let too_old = self.since.is_some_and(|since| line.timestamp < since);
        let wanted = match self.streams {
            Streams::All => true,
            Streams::Stdout => line.is_stdout,
            Streams::Stderr => !line.is_stdout,
        };
        if !too_old && wanted {
            self.write(&line, is_new_line, out);
        }

        self.wants()
    }

    fn write(&mut self, line: &Line<'_>, is_new_line: bool, out: &mut Vec<u8>) {
        let before = out.len();
        if self.timestamps && is_new_line {
            push_time(line.time, out);
            out.push(b' ');
        }
        out.extend_from_slice(line.content);
        let allowed = usize::try_from(self.bytes_left).unwrap_or(usize::MAX);
        out.truncate(before.saturating_add(allowed));
        self.bytes_left -= (out.len() - before) as u64;
    }
}

fn parse(raw: &[u8]) -> Option<Line<'_>> {
    let mut fields = raw.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    let stream = fields.next()?;
    let tags = fields.next()?;
    let content = fields.next()?;
    let is_stdout = match stream {
        b"stdout" => true,
        b"stderr" => false,
        _ => return None,
    };
    let is_cut = tags.split(|byte| *byte == b':').next() == Some(b"P".as_slice());
    let content = if is_cut { content.strip_suffix(b"\n").unwrap_or(content) } else { content };

    Some(Line { time, timestamp: time.parse().ok()?, is_stdout, content })
}

/// The time with a fraction of nine digits, in its own zone.
fn push_time(time: &str, out: &mut Vec<u8>) {
    let zone_at = time
        .char_indices()
        .skip_while(|(_, char)| *char != 'T')
        .find(|(_, char)| matches!(char, 'Z' | '+' | '-'))
        .map_or(time.len(), |(at, _)| at);
    let (clock, zone) = time.split_at(zone_at);
    let (seconds, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    out.extend_from_slice(seconds.as_bytes());
    out.push(b'.');
    let kept = fraction.len().min(FRACTION_DIGITS);
    out.extend_from_slice(&fraction.as_bytes()[..kept]);
    out.resize(out.len() + FRACTION_DIGITS - kept, b'0');
    out.extend_from_slice(zone.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet_api::query::Query;

    const LOG: &str = "\
2026-01-02T03:04:05.1Z stdout F one\n\
2026-01-02T03:04:06.123456789Z stderr F two\n\
not a line\n\
2026-01-02T03:04:07+01:00 stdout P thr\n\
2026-01-02T03:04:07.5+01:00 stdout F ee\n\
2026-01-02T03:04:08Z stdout F \n\
2026-01-02T03:04:09Z stdout F:tag five\n";

    fn check(query: &str, expected: &str) {
        let now = "2026-01-02T03:04:10Z".parse().unwrap();
        let options = LogOptions::parse(&Query::parse(query), now).unwrap();
        let mut printer = Printer::new(&options);
        let mut out = Vec::new();
        for line in LOG.split_inclusive('\n') {
            if printer.print(line.as_bytes(), &mut out) == Want::Nothing {
                break;
            }
        }
        assert_eq!(String::from_utf8(out).unwrap(), expected, "{query}");
    }

    #[test]
    fn content_is_printed_and_cut_lines_are_joined() {
        check("", "one\ntwo\nthree\n\nfive\n");
    }

    #[test]
    fn times_have_nine_digits_and_stand_at_the_start_of_a_line_only() {
        check(
            "timestamps=true",
            "2026-01-02T03:04:05.100000000Z one\n\
             2026-01-02T03:04:06.123456789Z two\n\
             2026-01-02T03:04:07.000000000+01:00 three\n\
             2026-01-02T03:04:08.000000000Z \n\
             2026-01-02T03:04:09.000000000Z five\n",
        );
    }

    #[test]
    fn older_lines_are_left_out() {
        check("sinceTime=2026-01-02T03:04:06.2Z", "\nfive\n");
        check("sinceSeconds=1", "five\n");
        check("sinceTime=2026-01-02T03:04:09Z", "five\n");
    }

    #[test]
    fn one_stream_is_printed_alone() {
        check("stream=Stdout", "one\nthree\n\nfive\n");
        check("stream=Stderr", "two\n");
        check("stream=Stderr&limitBytes=2", "tw");
    }

    #[test]
    fn bytes_and_lines_are_limited() {
        check("limitBytes=6", "one\ntw");
        check("limitBytes=4", "one\n");
        check("limitBytes=5&timestamps=1", "2026-");
        check("tailLines=2", "one\ntwo\n");
        check("tailLines=2&follow=1", "one\ntwo\nthree\n\nfive\n");
    }
}
