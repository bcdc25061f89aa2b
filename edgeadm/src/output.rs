//! How answers are printed: every verb has a value for programs and a table of it for people.

use serde::Serialize;

use crate::args::Format;
use crate::ui;

/// Between columns, as kubectl has it.
const GAP: usize = 3;

/// Something that a verb answers with.
pub trait Answer: Serialize {
    /// For people, without a final newline.
    fn text(&self) -> String;
}

/// Prints `answer` on stdout.
pub fn show(format: Format, answer: &impl Answer) {
    ui::answer(&render(format, answer));
}

fn render(format: Format, answer: &impl Answer) -> String {
    match format {
        Format::Table => answer.text(),
        Format::Json => serde_json::to_string_pretty(answer).unwrap_or_default(),
        Format::Yaml => yaml(answer),
    }
}

/// As YAML, without a final newline.
pub fn yaml(value: &impl Serialize) -> String {
    serde_saphyr::to_string(value).unwrap_or_default().trim_end().to_owned()
}

/// Rows below headings, each column as wide as it must be.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Without rows yet.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()] }
    }

    /// Adds one.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Without spaces at the ends of lines, and without a final newline.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default() + GAP
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<String>().trim_end().to_owned()
        };

        self.rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Names and values, one a line.
pub fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let pairs: Vec<_> = pairs.into_iter().collect();
    let width = pairs.iter().map(|(name, _)| name.len() + 1).max().unwrap_or_default() + GAP;
    let line = |(name, value): &(&str, String)| {
        format!("{:<width$}{value}", format!("{name}:")).trim_end().to_owned()
    };

    pairs.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Told {
        node_name: &'static str,
        pods: Vec<u32>,
        note: &'static str,
    }

    impl Answer for Told {
        fn text(&self) -> String {
            let mut table = Table::new(&["NODE", "PODS"]);
            table.row([self.node_name.to_owned(), self.pods.len().to_string()]);
            table.row(["a", ""]);

            table.text()
        }
    }

    #[test]
    fn an_answer_is_the_same_in_every_form() {
        let told = Told { node_name: "edge-1", pods: vec![1, 2], note: "yes: # no" };
        assert_eq!(render(Format::Table, &told), "NODE     PODS\nedge-1   2\na");
        let json: serde_json::Value = serde_json::from_str(&render(Format::Json, &told)).unwrap();
        assert_eq!(json["nodeName"], "edge-1");
        let read: serde_json::Value = serde_saphyr::from_str(&render(Format::Yaml, &told)).unwrap();
        assert_eq!(read, json);
    }

    #[test]
    fn values_stand_below_each_other() {
        let text = pairs([("Node", "a".to_owned()), ("Link since", "b".to_owned())]);
        assert_eq!(text, "Node:         a\nLink since:   b");
    }
}
