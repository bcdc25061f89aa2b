//! The parameters of the node log query, checked as a kubelet checks them.

use http::StatusCode;
use jiff::Timestamp;

use super::super::answer::Refusal;
use super::super::query::Query;

/// kubelet: `maxServices`
const SERVICES_MAX: usize = 4;
/// kubelet: `maxServiceLength`
const NAME_LENGTH_MAX: usize = 256;
/// kubelet: `maxTailLines`
const TAIL_LINES_MAX: i64 = 100_000;

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The file of a query, or no query: then the path of the request counts.
    Path(Option<String>),
    /// Logs of services.
    Services {
        /// Their names.
        names: Vec<String>,
        /// Only a part of them.
        has_options: bool,
    },
}

/// Reads the parameters; a query is for the top only.
pub(super) fn read(query: &Query, has_path: bool) -> Result<Wanted, Refusal> {
    let asked = query.all("query");
    let is_asked = !asked.is_empty();
    let asked = asked.into_iter().filter(|name| !name.trim().is_empty());
    let (files, names): (Vec<_>, Vec<_>) = asked.partition(|name| name.contains(['/', '\\']));
    if is_asked && files.is_empty() && names.is_empty() {
        return Err(invalid(StatusCode::BAD_REQUEST, "query", "may not be empty"));
    }
    let options = Options::read(query)?;
    if !is_asked && options == Options::default() {
        return Ok(Wanted::Path(None));
    }
    if has_path {
        return Err(Refusal::new(StatusCode::NOT_ACCEPTABLE, "path not allowed in query mode"));
    }
    let refused = |what: &str| Err(invalid(StatusCode::NOT_ACCEPTABLE, "query", what));
    let has_options = options != Options::default();
    match (files.as_slice(), names.as_slice()) {
        ([], []) => refused("cannot be empty with options"),
        ([_, ..], [_, ..]) => refused("cannot specify a file and service"),
        ([_, _, ..], []) => refused("cannot specify more than one file"),
        ([_], []) if has_options => refused("cannot specify file with options"),
        ([file], []) => Ok(Wanted::Path(Some(file.trim_start_matches('/').to_owned()))),
        ([], names) if names.len() > SERVICES_MAX => refused("must have at most 4 items"),
        ([], names) if !names.iter().all(|name| is_service(name)) => {
            refused("input contains unsupported characters")
        }
        ([], _) => {
            options.check()?;
            Ok(Wanted::Services { names, has_options })
        }
    }
}

fn invalid(status: StatusCode, field: &str, what: &str) -> Refusal {
    Refusal::new(status, format!("{field}: Invalid value: {what}"))
}

fn is_service(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte);

    name.len() <= NAME_LENGTH_MAX && !name.starts_with('.') && name.bytes().all(is_plain)
}

/// Which part of a service's log is wanted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    tail_lines: Option<i64>,
    boot: Option<i64>,
    pattern: Option<String>,
}

impl Options {
    fn read(query: &Query) -> Result<Self, Refusal> {
        let text = |name: &str| query.first(name).filter(|text| !text.is_empty());
        let bad = |name: &str, what| invalid(StatusCode::BAD_REQUEST, name, what);
        let time = |name: &str| {
            let parsed = text(name).map(str::parse::<Timestamp>).transpose();
            parsed.map_err(|_| bad(name, "invalid time format"))
        };
        let number = |name: &str| {
            let parsed = text(name).map(str::parse::<i64>).transpose();
            parsed.map_err(|_| bad(name, "not a number"))
        };

        Ok(Self {
            since: time("sinceTime")?,
            until: time("untilTime")?,
            tail_lines: number("tailLines")?,
            boot: number("boot")?,
            pattern: text("pattern").map(str::to_owned),
        })
    }

    fn check(&self) -> Result<(), Refusal> {
        let refused = |name: &str, what| Err(invalid(StatusCode::NOT_ACCEPTABLE, name, what));
        if self.since.zip(self.until).is_some_and(|(since, until)| since > until) {
            return refused("untilTime", "must be after `sinceTime`");
        }
        if self.boot.is_some_and(|boot| boot > 0) {
            return refused("boot", "must be less than 1");
        }
        if self.tail_lines.is_some_and(|lines| !(0..=TAIL_LINES_MAX).contains(&lines)) {
            return refused("tailLines", "must be between 0 and 100000, inclusive");
        }

        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_checked_as_a_kubelet_does() {
        let services = |names: &[&str], has_options| Wanted::Services {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            has_options,
        };
        for (query, expected) in [
            ("", Ok(Wanted::Path(None))),
            ("query=/apt/history.log", Ok(Wanted::Path(Some("apt/history.log".to_owned())))),
            ("query=ssh", Ok(services(&["ssh"], false))),
            ("query=a&query=b&tailLines=5", Ok(services(&["a", "b"], true))),
            ("query=%20", Err(400)),
            ("query=a&sinceTime=yesterday", Err(400)),
            ("query=a&tailLines=x", Err(400)),
            ("tailLines=5", Err(406)),
            ("query=a&query=/b", Err(406)),
            ("query=/a&query=/b", Err(406)),
            ("query=/a&tailLines=1", Err(406)),
            ("query=a&query=b&query=c&query=d&query=e", Err(406)),
            ("query=a;b", Err(406)),
            ("query=..", Err(406)),
            ("query=a&tailLines=100001", Err(406)),
            ("query=a&boot=1", Err(406)),
            ("query=a&sinceTime=2026-01-02T00:00:00Z&untilTime=2026-01-01T00:00:00Z", Err(406)),
        ] {
            let found = read(&Query::parse(query), false);
            assert_eq!(found.map_err(|refusal| refusal.status.as_u16()), expected, "{query}");
        }
        let found = read(&Query::parse("query=a"), true);
        assert_eq!(found.unwrap_err().status, StatusCode::NOT_ACCEPTABLE);
    }
}
