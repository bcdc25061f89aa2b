//! The terminal of the person: keys reach the command as they are pressed, and all is as before at the end.

use std::io::{Read as _, stdin};
use std::os::fd::AsFd as _;

use rustix::termios::{self, OptionalActions, Termios};
use tokio::sync::mpsc;

/// Pieces of stdin that wait to be sent.
const PIECES_MAX: usize = 8;
const PIECE_BYTES: usize = 8 * 1024;

/// As long as it is there, the terminal passes every key on.
#[derive(Debug)]
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    /// `None` if stdin is no terminal.
    pub(super) fn start() -> Option<Self> {
        let input = stdin();
        let before = termios::tcgetattr(input.as_fd()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(input.as_fd(), OptionalActions::Drain, &raw).ok()?;

        Some(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing more can be done for a terminal that is gone.
        let _gone = termios::tcsetattr(stdin().as_fd(), OptionalActions::Drain, &self.before);
    }
}

/// Columns and rows, if stdin is a terminal.
pub(super) fn size() -> Option<(u16, u16)> {
    let size = termios::tcgetwinsize(stdin().as_fd()).ok()?;

    Some((size.ws_col, size.ws_row))
}

/// What comes on stdin. A read cannot be called off, so it has a thread that ends with the process.
pub(super) fn input() -> mpsc::Receiver<Vec<u8>> {
    let (tell, told) = mpsc::channel(PIECES_MAX);
    std::thread::spawn(move || {
        let mut piece = vec![0; PIECE_BYTES];
        while let Ok(length) = stdin().lock().read(&mut piece) {
            if length == 0 || tell.blocking_send(piece[..length].to_vec()).is_err() {
                return;
            }
        }
    });

    told
}
