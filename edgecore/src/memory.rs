//! Keeps what the process holds close to what it needs: a gateway has little memory, and an agent
//! that was busy once must not stay large for ever. What each part brings is in
//! docs/decisions/0001-allocator-and-libc.md.

use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

/// Heaps that threads share. One: the few threads seldom allocate at the same time, and each further
/// heap keeps its own free memory.
const ARENAS_MAX: c_int = 1;
/// Buffers from this size on are given back when they are freed. glibc raises this up to 32 MiB by
/// itself when such buffers come and go, unless it was set.
const MMAP_THRESHOLD_BYTES: c_int = 64 * 1024;
/// Free memory at the heap's end that is kept.
const TRIM_THRESHOLD_BYTES: c_int = 64 * 1024;
/// Without news of pods for this long, what they needed is let go. A pod start takes less.
const QUIET: Duration = Duration::from_secs(10);

/// Tells the allocator to be small rather than fast with many threads. Called before any thread is
/// started.
pub fn stay_small() {
    for (parameter, value) in [
        (libc::M_ARENA_MAX, ARENAS_MAX),
        (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
        (libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES),
    ] {
        #[expect(unsafe_code, reason = "mallopt takes two numbers and keeps no reference")]
        // SAFETY: any value is allowed; one that is refused changes nothing.
        let _refused = unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives back the free pages of the heap, and takes the program's code out of the process: the page
/// cache keeps it, what is needed again comes back at its next use without the disk, and what only a
/// start needs does not. Milliseconds; once after each time of work, see [`Rest`].
pub fn release() {
    #[expect(unsafe_code, reason = "malloc_trim only touches memory that is free")]
    // SAFETY: may be called at any time from any thread.
    let _released = unsafe { libc::malloc_trim(0) };
    // Without it the process is larger, nothing else.
    let Ok(smaps) = std::fs::read_to_string("/proc/self/smaps") else { return };
    for (start, end) in unchanged(&smaps) {
        #[expect(unsafe_code, reason = "the kernel maps the same bytes of the file again")]
        // SAFETY: the range is one mapping of a file that cannot be written and of which no page
        // differs from the file: after this it reads as before.
        let _refused = unsafe {
            let address = std::ptr::with_exposed_provenance_mut::<c_void>(start);
            libc::madvise(address, end - start, libc::MADV_DONTNEED)
        };
    }
}

/// The ranges of addresses in `/proc/self/smaps` that read as a file does and cannot be written.
/// What the linker has changed at the start and write-protected then has anonymous pages.
fn unchanged(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some(range) = read_only_file(line) {
            candidate = Some(range);
        } else if line.strip_prefix("Anonymous:").is_some_and(|rest| rest.trim() == "0 kB") {
            found.extend(candidate.take());
        } else if line.starts_with("Anonymous:") {
            candidate = None;
        }
    }

    found
}

/// The range of a mapping's first line in smaps, if it is a private one of a file, without writing.
fn read_only_file(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let permissions = words.next()?;
    let path = words.nth(3)?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let is_candidate = matches!(permissions, "r-xp" | "r--p") && path.starts_with('/');

    is_candidate.then_some((address(start)?, address(end)?))
}

/// When there is time to [`release`]: once after each time of work.
#[derive(Debug)]
pub struct Rest {
    worked_at: Option<Instant>,
}

impl Rest {
    /// Of a process that has just started, which is work.
    pub fn new(now: Instant) -> Self {
        Self { worked_at: Some(now) }
    }

    /// There is work.
    pub fn worked(&mut self, now: Instant) {
        self.worked_at = Some(now);
    }

    /// True once, when there was no work for a while.
    pub fn begins(&mut self, now: Instant) -> bool {
        let begins = self.worked_at.is_some_and(|at| now.duration_since(at) >= QUIET);
        if begins {
            self.worked_at = None;
        }

        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_reads_as_its_file_is_let_go() {
        fn check(mapping: &str, anonymous: &str, expected: &[(usize, usize)]) {
            let smaps = format!("{mapping}\nRss: 8 kB\nAnonymous:      {anonymous}\nVmFlags: rd\n");

            assert_eq!(unchanged(&smaps), expected, "{smaps}");
        }

        let both = &[(0x1000, 0x3000)];
        check("1000-3000 r-xp 00001000 fe:00 12      /usr/bin/edgecore", "0 kB", both);
        check("1000-3000 r--p 00000000 fe:00 12      /usr/bin/edgecore", "0 kB", both);
        check("1000-3000 r--p 00002000 fe:00 12      /usr/bin/edgecore", "4 kB", &[]);
        check("1000-3000 rw-p 00002000 fe:00 12      /usr/bin/edgecore", "0 kB", &[]);
        check("1000-3000 r--s 00002000 fe:00 12      /usr/bin/edgecore", "0 kB", &[]);
        check("1000-3000 r-xp 00000000 00:00 0       [vdso]", "0 kB", &[]);
        check("1000-3000 r--p 00000000 00:00 0 ", "0 kB", &[]);
    }

    #[test]
    fn the_process_goes_on_after_a_release() {
        stay_small();
        let kept = vec![7_u8; 1 << 20];
        release();

        assert!(kept.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn rest_begins_once_after_each_time_of_work() {
        let start = crate::clock::instant();
        let mut rest = Rest::new(start);
        let mut check = |after, works, expected| {
            let now = start + Duration::from_secs(after);
            if works {
                rest.worked(now);
            }
            assert_eq!(rest.begins(now), expected, "after {after} s");
        };

        check(9, false, false);
        check(9, true, false);
        check(18, false, false);
        check(19, false, true);
        check(90, false, false);
        check(91, true, false);
        check(101, false, true);
    }
}
