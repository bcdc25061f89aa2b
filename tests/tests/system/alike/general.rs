//! What two nodes tell of the same pod, without what differs from pod to pod and from moment to moment;
//! and in what it differs.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde_json::{Value, json};

/// Names and addresses of one pod, and the words that stand for them.
pub(crate) struct Words(Vec<(String, &'static str)>);

impl Words {
    /// Those of a pod.
    pub(crate) fn of(pod: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut words = vec![
            (text(&pod["metadata"]["uid"]), "UID"),
            (text(&pod["metadata"]["name"]), "POD"),
            (text(&pod["metadata"]["ownerReferences"][0]["name"]), "OWNER"),
            (text(&pod["metadata"]["namespace"]), "NAMESPACE"),
            (text(&pod["spec"]["nodeName"]), "NODE"),
        ];
        for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
            let name = text(&volume["name"]);
            if name.starts_with("kube-api-access-") {
                words.push((name, "TOKEN"));
            }
        }
        for field in ["podIP", "hostIP"] {
            words.push((text(&pod["status"][field]), "IP"));
        }
        words.retain(|(word, _)| !word.is_empty());
        // The longest first: one may be part of another.
        words.sort_by_key(|(word, _)| std::cmp::Reverse(word.len()));

        Self(words)
    }

    /// Replaces them, times and ids in every text of `value`.
    pub(crate) fn apply(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.plain(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.apply(item)),
            Value::Object(fields) => fields.values_mut().for_each(|field| self.apply(field)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn plain(&self, text: &str) -> String {
        if text.starts_with("20") && text.ends_with('Z') && text.contains('T') {
            return "TIME".to_owned();
        }
        let mut text = text.to_owned();
        for (word, general) in &self.0 {
            text = text.replace(word, general);
        }

        without_numbers(&text)
    }

    /// An Event in one line.
    pub(crate) fn event(&self, event: &Value) -> String {
        let field = |name: &str| event[name].as_str().unwrap_or_default();
        let of = event["involvedObject"]["fieldPath"].as_str().unwrap_or_default();
        let message = self.plain(field("message"));
        // How often something is told until a client counts it with others is a matter of time.
        let message = message.trim_start_matches("(combined from similar events): ");

        format!("{} {} {of}: {message}", field("type"), field("reason"))
    }
}

/// Replaces ids, ports of clients and how long something took.
fn without_numbers(text: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == 'µ';
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_word) {
        let (before, after) = rest.split_at(at);
        let (word, after) = after.split_at(after.find(|c| !is_word(c)).unwrap_or(after.len()));
        plain.push_str(before);
        let is_id = word.len() >= 32 && word.chars().all(|c| c.is_ascii_hexdigit());
        let time = word.trim_end_matches("ms").trim_end_matches("µs").trim_end_matches('s');
        let is_time = time != word && time.contains('.') && time.parse::<f64>().is_ok();
        let is_ms = word.ends_with("ms") && word.trim_end_matches("ms").parse::<u64>().is_ok();
        let is_port = before.ends_with(':') && word.parse::<u16>().is_ok_and(|port| port >= 30_000);
        plain.push_str(match () {
            () if is_id => "ID",
            () if is_time || is_ms => "DURATION",
            () if is_port => "PORT",
            () => word,
        });
        rest = after;
    }
    plain.push_str(rest);

    plain
}

/// The status in general words.
pub(crate) fn status(pod: &Value) -> Value {
    let mut status = pod["status"].clone();
    if let Some(conditions) = status["conditions"].as_array_mut() {
        conditions.sort_by_key(|condition| condition["type"].to_string());
    }
    Words::of(pod).apply(&mut status);
    // The protection from eviction is a change of the pod on an edge node.
    current(&mut status, &pod["metadata"]["generation"]);

    status
}

/// Leaves of an `observedGeneration` whether it is the pod's.
fn current(value: &mut Value, generation: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if name == "observedGeneration" {
                    *field = json!(*field == *generation);
                } else {
                    current(field, generation);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| current(item, generation)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Something that two nodes do not tell alike.
#[derive(Debug)]
pub(crate) struct Difference {
    /// A JSON pointer to it.
    pub(crate) at: String,
    pub(crate) ours: Value,
    pub(crate) stock: Value,
}

/// Everything in which the two differ; of lists of lines, each line that only one has.
pub(crate) fn differences(at: &str, ours: &Value, stock: &Value) -> Vec<Difference> {
    let differ = |ours: &Value, stock: &Value| Difference {
        at: at.to_owned(),
        ours: ours.clone(),
        stock: stock.clone(),
    };
    match (ours, stock) {
        _ if ours == stock => Vec::new(),
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<_> = a.keys().chain(b.keys()).map(String::as_str).collect();
            let below = |key| differences(&format!("{at}/{key}"), &ours[key], &stock[key]);
            keys.into_iter().flat_map(below).collect()
        }
        (Value::Array(a), Value::Array(b)) if a.iter().chain(b).all(Value::is_string) => {
            let here = a.iter().filter(|line| !b.contains(line));
            let there = b.iter().filter(|line| !a.contains(line));
            let here = here.map(|line| differ(line, &Value::Null));
            here.chain(there.map(|line| differ(&Value::Null, line))).collect()
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let both = a.iter().zip(b).enumerate();
            both.flat_map(|(index, (a, b))| differences(&format!("{at}/{index}"), a, b)).collect()
        }
        _ => vec![differ(ours, stock)],
    }
}

/// What may differ, and what of it did.
pub(crate) struct Allowed(Vec<(Value, Cell<bool>)>);

impl Allowed {
    /// A list of `case` and `at`, in which `*` stands for any name, of what is told if that matters, and
    /// `why`. What differs only `sometimes` says so.
    pub(crate) fn read(text: &str) -> Result<Self> {
        let entries: Vec<Value> = serde_json::from_str(text)?;

        Ok(Self(entries.into_iter().map(|entry| (entry, Cell::new(false))).collect()))
    }

    /// Those of `found` that are not listed, to be read.
    pub(crate) fn unlisted(&self, case: &str, found: &[Difference]) -> Vec<String> {
        let mut unlisted = Vec::new();
        for difference in found {
            let mut is_listed = false;
            for (entry, used) in &self.0 {
                if covers(entry, case, difference) {
                    is_listed = true;
                    used.set(true);
                }
            }
            if !is_listed {
                let Difference { at, ours, stock } = difference;
                unlisted.push(format!("{case}: {at}: {ours} but a kubelet: {stock}"));
            }
        }

        unlisted
    }

    /// Entries that are about nothing.
    pub(crate) fn unused(&self) -> impl Iterator<Item = String> {
        let unused =
            self.0.iter().filter(|(entry, used)| !used.get() && entry["sometimes"] != true);

        unused.map(|(entry, _)| format!("listed, but alike: {entry}"))
    }
}

fn covers(entry: &Value, case: &str, difference: &Difference) -> bool {
    let fits = |pattern: &str, name: &str| pattern == "*" || pattern == name;
    let field = |name: &str| entry[name].as_str().unwrap_or_default();
    let (pattern, at) = (field("at"), &difference.at);
    let is_there = pattern.split('/').count() == at.split('/').count()
        && pattern.split('/').zip(at.split('/')).all(|(pattern, name)| fits(pattern, name));
    let is_told = |name: &str, told: &Value| entry.get(name).is_none_or(|wanted| wanted == told);

    fits(field("case"), case)
        && is_there
        && is_told("ours", &difference.ours)
        && is_told("stock", &difference.stock)
}

/// Numbers by the order in which they were first seen.
#[derive(Default)]
pub(crate) struct Order(BTreeMap<String, usize>);

impl Order {
    pub(crate) fn of(&mut self, name: &str) -> usize {
        let next = self.0.len();

        *self.0.entry(name.to_owned()).or_insert(next)
    }
}
