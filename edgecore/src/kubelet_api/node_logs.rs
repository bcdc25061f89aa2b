//! `/logs/`: folders and files under /var/log, and the node log query (`pkg/kubelet/kubelet_server_journal.go`)
//! as far as files go. The journal is read by a program of its own, and this agent starts none.

mod wanted;

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use rustix::io::Errno;

use self::wanted::Wanted;
use super::answer::{self, Answer, Refusal};
use super::query::{Query, unescape_path};
use crate::blocking;

/// What may be seen (kubelet: `nodeLogDir`).
const LOGS: &str = "/var/log";

/// Read at once.
const PIECE_BYTES: usize = 16 * 1024;

/// Names of one folder that are listed.
const NAMES_MAX: usize = 10_000;

/// Whether a query of node logs is taken: for [`crate::inputs`].
pub(crate) fn is_taken(query: &Query) -> bool {
    [true, false].into_iter().any(|has_path| wanted::read(query, has_path).is_ok())
}

/// What is at a path.
#[derive(Debug)]
enum Found {
    File(File),
    /// Names, folders with a slash.
    Folder(Vec<String>),
}

/// Answers `/logs/PATH`, or the query if there is one.
pub(super) async fn answer(path: &[&str], query: &Query) -> Result<Answer, Refusal> {
    let parts: Option<Vec<String>> = path.iter().map(|part| unescape_path(part)).collect();
    let path = parts.ok_or_else(|| bad_request("the path is not understood"))?.join("/");
    match wanted::read(query, !path.is_empty())? {
        Wanted::Path(None) => show(Path::new(LOGS), path).await,
        Wanted::Path(Some(file)) => show(Path::new(LOGS), file).await,
        Wanted::Services { names, has_options } => {
            services(Path::new(LOGS), names, has_options).await
        }
    }
}

fn bad_request(text: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, text)
}

async fn show(root: &'static Path, path: String) -> Result<Answer, Refusal> {
    let shown = path.clone();
    let found = blocking::run(move || find(root, Path::new(&path))).await;
    match found {
        Ok(Found::File(file)) => Ok(stream_of(vec![file])),
        Ok(Found::Folder(names)) => Ok(listing(&shown, &names)),
        Err(error) => Err(refused(root, &shown, &error)),
    }
}

fn refused(root: &Path, path: &str, error: &io::Error) -> Refusal {
    use io::ErrorKind::{CrossesDevices, NotADirectory, NotFound, PermissionDenied};
    let at = root.join(path);
    if matches!(error.kind(), NotFound | NotADirectory) {
        return Refusal::new(StatusCode::NOT_FOUND, format!("{}: not found", at.display()));
    }
    if matches!(error.kind(), CrossesDevices | PermissionDenied) {
        let text = format!("{} is not a log under {}", at.display(), root.display());
        return Refusal::new(StatusCode::FORBIDDEN, text);
    }

    Refusal::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!("cannot read {}: {error}", at.display()),
    )
}

/// The files that services of these names log to: NAME, NAME.log or NAME/NAME.log.
async fn services(
    root: &'static Path,
    names: Vec<String>,
    has_options: bool,
) -> Result<Answer, Refusal> {
    let found = blocking::run(move || {
        let file = |name: &str| {
            let tries = [name.to_owned(), format!("{name}.log"), format!("{name}/{name}.log")];
            tries.iter().find_map(|path| match find(root, Path::new(path)) {
                Ok(Found::File(file)) => Some(file),
                Ok(Found::Folder(_)) | Err(_) => None,
            })
        };
        names.into_iter().map(|name| file(&name).ok_or(name)).collect::<Result<Vec<_>, _>>()
    });
    let files = found.await.map_err(|name| {
        let text = format!(
            "log not found for {name}: there is no such file in {LOGS}, and the journal is not read \
             by this agent; on the node, journalctl -u {name} shows it"
        );
        // The API server shows its users what is said beside this status, and not beside 404.
        Refusal::new(StatusCode::NOT_IMPLEMENTED, text)
    })?;
    if has_options {
        let text =
            "options present and query resolved to log files, try without specifying options";
        return Err(bad_request(text));
    }

    Ok(stream_of(files))
}

/// Opens what is at `path` below `root`, never anything else.
fn find(root: &Path, path: &Path) -> io::Result<Found> {
    let root_fd = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let opened = match inside(&root_fd, path) {
        // An absolute link, as those of /var/log/containers: it may still lead to a log.
        Err(Errno::XDEV) => {
            let real = root.join(path).canonicalize()?;
            let below = real.strip_prefix(root.canonicalize()?);
            let below = below.map_err(|_outside| io::Error::from(Errno::XDEV))?;
            inside(&root_fd, below)?
        }
        opened => opened?,
    };
    let kind = FileType::from_raw_mode(fstat(&opened)?.st_mode);
    if kind.is_dir() {
        return Ok(Found::Folder(names(&opened)?));
    }
    if kind.is_file() {
        return Ok(Found::File(File::from(opened)));
    }

    // Devices, pipes and sockets are no logs.
    Err(Errno::ACCESS.into())
}

fn inside(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let stay = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;

    openat2(root, path, flags, Mode::empty(), stay)
}

fn names(folder: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)?.take(NAMES_MAX) {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        let slash = if entry.file_type().is_dir() { "/" } else { "" };
        if name != "." && name != ".." {
            names.push(format!("{name}{slash}"));
        }
    }
    names.sort();

    Ok(names)
}

/// As Go lists a folder. Links begin at the top, where the API server finds them and adds its own path.
fn listing(path: &str, names: &[String]) -> Answer {
    let mut page = String::from("<!doctype html>\n<pre>\n");
    for name in names {
        let at = Path::new("/logs").join(path).join(name);
        let (at, shown) = (escape_url(&at.to_string_lossy()), escape_html(name));
        page.extend(["<a href=\"", &at, "\">", &shown, "</a>\n"]);
    }
    page.push_str("</pre>\n");
    let mut answer = answer::text(StatusCode::OK, page);
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, html);

    answer
}

fn escape_html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;")
}

fn escape_url(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    let escaped = |byte: u8| {
        if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };

    path.bytes().map(escaped).collect()
}

/// Files one after the other, each as long as it is when its turn comes.
fn stream_of(files: Vec<File>) -> Answer {
    let reading = files.into_iter().map(|file| (file, None)).collect::<Vec<_>>();
    let frames = stream::unfold(reading, |reading| async {
        let (piece, reading) = blocking::run(move || next_piece(reading)).await?;
        Some((piece.map(Frame::data), reading))
    });
    let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, plain);

    answer
}

/// Files to be read, with the bytes left of those that have been begun.
type Reading = Vec<(File, Option<u64>)>;

fn next_piece(mut reading: Reading) -> Option<(io::Result<Bytes>, Reading)> {
    loop {
        let (file, left) = reading.first_mut()?;
        let size = left.map_or_else(|| file.metadata().map(|found| found.len()), Ok);
        let mut piece = Vec::new();
        let read = size.and_then(|size| {
            let most = size.min(PIECE_BYTES as u64);
            let length = file.take(most).read_to_end(&mut piece)? as u64;
            *left = Some(if length == 0 { 0 } else { size - length });
            Ok(())
        });
        match read {
            Err(error) => return Some((Err(error), Vec::new())),
            Ok(()) if piece.is_empty() => drop(reading.remove(0)),
            Ok(()) => return Some((Ok(piece.into()), reading)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn shown(found: io::Result<Found>) -> String {
        match found {
            Ok(Found::Folder(names)) => names.join(" "),
            Ok(Found::File(file)) => {
                let mut reading = vec![(file, None)];
                let mut text = Vec::new();
                while let Some((piece, rest)) = next_piece(reading) {
                    text.extend_from_slice(&piece.unwrap());
                    reading = rest;
                }
                String::from_utf8(text).unwrap()
            }
            Err(error) => refused(Path::new("/var/log"), "x", &error).status.to_string(),
        }
    }

    #[test]
    fn only_logs_are_shown_whatever_links_say() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("log");
        fs::create_dir_all(root.join("pods/a")).unwrap();
        fs::create_dir(root.join("containers")).unwrap();
        fs::write(folder.path().join("secret"), "secret").unwrap();
        let long = "0123456789".repeat(5000);
        fs::write(root.join("pods/a/0.log"), &long).unwrap();
        symlink(root.join("pods/a/0.log"), root.join("containers/absolute.log")).unwrap();
        symlink("../pods/a/0.log", root.join("containers/relative.log")).unwrap();
        symlink("../../secret", root.join("containers/out.log")).unwrap();
        symlink("/etc/passwd", root.join("passwd")).unwrap();
        symlink("/", root.join("top")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join("pipe"), Mode::RUSR).unwrap();

        for (path, expected) in [
            ("", "containers/ passwd pipe pods/ top"),
            ("pods", "a/"),
            ("pods/a/0.log", long.as_str()),
            ("containers/absolute.log", &long),
            ("containers/relative.log", &long),
            ("containers/out.log", "403 Forbidden"),
            ("passwd", "403 Forbidden"),
            ("top/etc/passwd", "403 Forbidden"),
            ("../secret", "403 Forbidden"),
            ("pods/../../secret", "403 Forbidden"),
            ("/etc/passwd", "403 Forbidden"),
            ("pipe", "403 Forbidden"),
            ("none", "404 Not Found"),
            ("pods/a/0.log/x", "404 Not Found"),
        ] {
            assert_eq!(shown(find(&root, Path::new(path))), expected, "{path}");
        }
    }

    #[test]
    fn names_cannot_break_a_listing() {
        assert_eq!(escape_html("<a href=\"&\">"), "&lt;a href=&#34;&amp;&#34;&gt;");
        assert_eq!(escape_url("/logs/a b\"c%"), "/logs/a%20b%22c%25");
    }
}
