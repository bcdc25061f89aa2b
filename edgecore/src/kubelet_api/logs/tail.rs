//! Where the last lines of a file begin, found from its end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// How much is read at once, backwards.
const BLOCK_BYTES: usize = 8 * 1024;

/// The offset of the last `count` lines; 0 without a count. An unfinished last line is not counted.
pub(super) fn start_of_last_lines(file: &File, count: Option<u64>) -> io::Result<u64> {
    let Some(count) = count else {
        return Ok(0);
    };
    let mut end = file.metadata()?.len();
    // The newline before the wanted lines is one more than there are lines.
    let mut newlines_left = count.saturating_add(1);
    let mut block = vec![0; BLOCK_BYTES];
    while end > 0 {
        let length = usize::try_from(end).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        let start = end - length as u64;
        let block = &mut block[..length];
        file.read_exact_at(block, start)?;
        for at in (0..length).rev().filter(|at| block[*at] == b'\n') {
            newlines_left -= 1;
            if newlines_left == 0 {
                return Ok(start + at as u64 + 1);
            }
        }
        end = start;
    }

    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn check(content: &str, count: Option<u64>, expected: &str) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        let start = start_of_last_lines(&file, count).unwrap();
        let shown = &content[usize::try_from(start).unwrap()..];
        assert_eq!(shown.len(), expected.len(), "{count:?} of {} bytes", content.len());
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_last_lines_are_found() {
        check("a\nb\nc\n", None, "a\nb\nc\n");
        check("a\nb\nc\n", Some(0), "");
        check("a\nb\nc\n", Some(1), "c\n");
        check("a\nb\nc\n", Some(3), "a\nb\nc\n");
        check("a\nb\nc\n", Some(9), "a\nb\nc\n");
        check("a\nb\nc\n", Some(u64::MAX), "a\nb\nc\n");
        check("", Some(1), "");
    }

    #[test]
    fn an_unfinished_line_comes_on_top() {
        check("a\nb\nc", Some(0), "c");
        check("a\nb\nc", Some(1), "b\nc");
    }

    #[test]
    fn lines_longer_than_a_block_are_found() {
        let line = "x".repeat(BLOCK_BYTES) + "\n";
        check(&line.repeat(5), Some(2), &line.repeat(2));
        let line = "x".repeat(BLOCK_BYTES - 1) + "\n";
        check(&line.repeat(5), Some(2), &line.repeat(2));
    }
}
