//! What others make edgeadm read, without sockets and files: for the tests that feed it anything. Nothing of
//! edgeadm uses this.

use std::collections::BTreeMap;

use http::StatusCode;

use crate::check::{machine, network};
use crate::ctl::selector;
use crate::{ask, debug};

/// What is collected for others of a text.
pub fn redacted(text: &str) -> String {
    debug::redact::text(text)
}

/// Whether it is a label selector that takes these labels.
pub fn selects(selector: &str, labels: &BTreeMap<String, String>) -> bool {
    selector::takes(selector, labels)
}

/// Whether it is an answer to a request to join.
pub fn is_answer(status: u16, body: &[u8]) -> bool {
    StatusCode::from_u16(status).is_ok_and(|status| ask::is_answer(status, body))
}

/// Looks at a text as if it came from the kernel, and from a clock. How many findings there are.
pub fn found(text: &str) -> usize {
    let dated = usize::from(network::http_date(text).is_some());

    machine::judged(text).len() + dated
}
