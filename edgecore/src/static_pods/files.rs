//! What the files of the folder hold: read again only when a file has changed, and kept when it is broken.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use jiff::Timestamp;
use podcore::static_pod;
use proto::ids::{NodeName, ObjectKey, Uid};
use proto::object::{ContentHash, Object, Version};
use proto::static_pod::SEEN;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::desired::StaticObject;

/// Longest manifest.
const MANIFEST_BYTES_MAX: u64 = 128 << 10;
/// Scalars, lists and maps that aliases of a manifest may stand for: far more than a pod has, and no bomb.
const ALIASED_MAX: usize = 10_000;
/// All pods together must fit into one report (`proto::codec::REPORT_BYTES_MAX`).
const PODS_BYTES_MAX: usize = 768 << 10;
/// Files looked at; those after them in the order of names are left out.
const FILES_MAX: usize = 256;

/// A pod as it was last read from a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) object: Value,
}

impl Kept {
    fn text(&self, field: &str) -> &str {
        self.object["metadata"][field].as_str().unwrap_or_default()
    }

    fn name(&self) -> String {
        format!("{}/{}", self.text("namespace"), self.text("name"))
    }

    /// For the desired state; what is in the store may be anything.
    pub(super) fn to_object(&self) -> Option<StaticObject> {
        let uid = Uid::new(self.text("uid")).ok()?;
        let bytes = self.object.to_string().into_bytes();
        let hash = ContentHash::of(&[&bytes]);
        let version = Version { uid: uid.clone(), epoch: 0, revision: 0, hash };
        let object = Object { key: ObjectKey::pod(&uid), version, bytes: bytes.into() };

        Some(StaticObject { name: self.name(), object })
    }
}

/// Tells a changed file from one that was read.
type Stamp = (u64, u64, i64, i64);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Files {
    node: NodeName,
    kept: BTreeMap<String, Kept>,
    read: BTreeMap<String, Stamp>,
    told_folder: bool,
}

/// What a look at the folder brought.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) listed: bool,
    pub(super) changed: bool,
    /// For people; told again only when a file has changed.
    pub(super) problems: Vec<String>,
}

impl Files {
    pub(super) fn new(node: NodeName, kept: BTreeMap<String, Kept>) -> Self {
        Self { node, kept, read: BTreeMap::new(), told_folder: false }
    }

    /// The pods, by file name.
    pub(super) fn kept(&self) -> &BTreeMap<String, Kept> {
        &self.kept
    }

    /// There is no folder any more; whether that changes something.
    pub(super) fn clear(&mut self) -> bool {
        !std::mem::take(&mut self.kept).is_empty()
    }

    /// Reads what has changed.
    pub(super) fn look(&mut self, dir: &Path, now: Timestamp) -> Seen {
        let mut seen = Seen::default();
        let names = match names(dir) {
            Ok(names) => names,
            Err(error) => {
                if !std::mem::replace(&mut self.told_folder, true) {
                    let dir = dir.display();
                    seen.problems.push(format!(
                        "cannot list {dir}: {error}; pods of its files stay as they are"
                    ));
                }
                return seen;
            }
        };
        (self.told_folder, seen.listed) = (false, true);
        if names.len() > FILES_MAX {
            seen.problems.push(format!(
                "{} holds more than {FILES_MAX} files; those after {} are left out",
                dir.display(),
                names[FILES_MAX - 1]
            ));
        }
        let names = &names[..names.len().min(FILES_MAX)];
        let is_there = |name: &String| names.contains(name);
        let before = self.kept.len();
        self.kept.retain(|name, _| is_there(name));
        self.read.retain(|name, _| is_there(name));
        seen.changed = self.kept.len() != before;
        if seen.changed {
            self.try_refused_again();
        }
        for name in names {
            self.look_at(dir, name, now, &mut seen);
        }
        if seen.changed {
            self.try_refused_again();
        }

        seen
    }

    /// What was in the way of a file may be gone.
    fn try_refused_again(&mut self) {
        let kept = &self.kept;
        self.read.retain(|name, _| kept.contains_key(name));
    }

    fn look_at(&mut self, dir: &Path, name: &str, now: Timestamp, seen: &mut Seen) {
        let path = dir.join(name);
        let stamp = match fs::metadata(&path) {
            Ok(found) => (found.ino(), found.len(), found.mtime(), found.mtime_nsec()),
            // Gone meanwhile, or a link to nothing.
            Err(_gone) => (0, 0, 0, 0),
        };
        if self.read.insert(name.to_owned(), stamp) == Some(stamp) {
            return;
        }
        match self.read(&path, name, now) {
            Ok(pod) => {
                if self.kept.get(name) != Some(&pod) {
                    seen.changed = true;
                    self.kept.insert(name.to_owned(), pod);
                }
            }
            Err(problem) => {
                let goes_on = match self.kept.get(name) {
                    Some(kept) => format!("; {} goes on as it was", kept.name()),
                    None => String::new(),
                };
                seen.problems.push(format!("{}: {problem}{goes_on}", path.display()));
            }
        }
    }

    fn read(&self, path: &Path, name: &str, now: Timestamp) -> Result<Kept, String> {
        let text = text(path).map_err(|error| error.to_string())?;
        let manifest = manifest_of(&text)?;
        let file = path.to_string_lossy();
        let pod = static_pod::read(&manifest, &file, &self.node, now)
            .map_err(|error| error.to_string())?;
        let mut pod = Kept { object: pod.object };
        let before = self.kept.get(name).filter(|before| before.text("uid") == pod.text("uid"));
        if let Some(before) = before {
            let seen = before.object["metadata"]["annotations"][SEEN].clone();
            pod.object["metadata"]["annotations"][SEEN] = seen;
        }
        let others = || self.kept.iter().filter(|(other, _)| *other != name);
        let is_same =
            |other: &Kept| other.name() == pod.name() || other.text("uid") == pod.text("uid");
        if let Some((other, _)) = others().find(|(_, other)| is_same(other)) {
            return Err(format!("it holds {}, as {other} does", pod.name()));
        }
        let bytes = |kept: &Kept| kept.object.to_string().len();
        if bytes(&pod) + others().map(|(_, other)| bytes(other)).sum::<usize>() > PODS_BYTES_MAX {
            return Err(format!("with it all files have more than {PODS_BYTES_MAX} bytes of pods"));
        }

        Ok(pod)
    }
}

/// Where and what; the lines after that show the text.
/// Reads YAML.
pub(crate) fn manifest_of(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: ALIASED_MAX },
        budget: serde_saphyr::budget! { max_recorded_anchor_events: ALIASED_MAX },
    };

    serde_saphyr::from_str_with_options(text, options).map_err(|error| not_yaml(&error.to_string()))
}

fn not_yaml(error: &str) -> String {
    format!("not YAML: {}", error.lines().next().unwrap_or_default())
}

/// The files in the order of their names, without hidden ones and folders.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !entry.path().is_dir() {
            names.push(name);
        }
    }
    names.sort();

    Ok(names)
}

fn text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let found = fs::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    fs::File::open(path)?.take(MANIFEST_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {MANIFEST_BYTES_MAX} bytes")));
    }

    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder {
        dir: tempfile::TempDir,
        files: Files,
    }

    impl Folder {
        fn new() -> Self {
            let files = Files::new(NodeName::new("edge").unwrap(), BTreeMap::new());
            Self { dir: tempfile::tempdir().unwrap(), files }
        }

        fn write(&self, file: &str, text: &str) {
            fs::write(self.dir.path().join(file), text).unwrap();
        }

        /// Whether something changed, the names of the pods, and what is said.
        fn look(&mut self) -> (bool, Vec<String>, String) {
            let seen = self.files.look(self.dir.path(), Timestamp::UNIX_EPOCH);
            let names = self.files.kept().values().map(Kept::name).collect();
            (seen.changed, names, seen.problems.join("\n"))
        }
    }

    fn manifest(name: &str, image: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n\
             spec:\n  containers:\n  - {{name: c, image: '{image}'}}\n"
        )
    }

    #[test]
    fn aliases_are_read_and_stand_for_no_more_than_a_pod_has() {
        let read = manifest_of("a: &a [one, two]\nb: [*a, *a]").unwrap();
        assert_eq!(read["b"], serde_json::json!([["one", "two"], ["one", "two"]]));
        let line =
            |n: u8| format!("a{}: &a{} [{}]\n", n + 1, n + 1, vec![format!("*a{n}"); 9].join(","));
        let bomb = format!("a0: &a0 x\n{}", (0..9).map(line).collect::<String>());
        let refused = manifest_of(&bomb).unwrap_err();
        assert!(refused.starts_with("not YAML: "), "{refused}");
    }

    #[test]
    fn files_are_followed_and_broken_ones_named() {
        let mut folder = Folder::new();
        let a = || vec!["default/a-edge".to_owned()];
        assert_eq!(folder.look(), (false, vec![], String::new()));
        folder.write("a.yaml", &manifest("a", "x:1"));
        folder.write(".hidden", "nothing");
        fs::create_dir(folder.dir.path().join("folder")).unwrap();
        assert_eq!(folder.look(), (true, a(), String::new()));
        let uid = folder.files.kept()["a.yaml"].text("uid").to_owned();
        assert_eq!(folder.look(), (false, a(), String::new()));

        folder.write(
            "b.json",
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},
            "spec":{"containers":[{"name":"c","image":"x"}]}}"#,
        );
        folder.write("c.yaml", "kind: [");
        let (changed, names, said) = folder.look();
        assert_eq!((changed, names), (false, a()));
        assert!(said.contains("b.json: it holds default/a-edge, as a.yaml does"), "{said}");
        assert!(said.contains("c.yaml: not YAML"), "{said}");
        assert_eq!(folder.look().2, "", "a problem is told once");
        let (a_file, aside) = (folder.dir.path().join("a.yaml"), folder.dir.path().join(".a"));
        fs::rename(&a_file, &aside).unwrap();
        let (changed, names, said) = folder.look();
        assert_eq!((changed, names), (true, a()), "the other file takes its place: {said}");
        assert!(folder.files.kept().contains_key("b.json"));
        fs::remove_file(folder.dir.path().join("b.json")).unwrap();
        fs::rename(&aside, &a_file).unwrap();
        assert_eq!((folder.look().1, folder.files.kept().len()), (a(), 1));

        folder.write("a.yaml", "kind: Pod");
        let (changed, names, said) = folder.look();
        assert_eq!((changed, names), (false, a()));
        assert!(said.contains("default/a-edge goes on as it was"), "{said}");

        folder.write("a.yaml", &manifest("a", "x:2"));
        assert_eq!(folder.look(), (true, a(), String::new()));
        assert_ne!(folder.files.kept()["a.yaml"].text("uid"), uid);
        fs::remove_file(folder.dir.path().join("a.yaml")).unwrap();
        let (changed, names, said) = folder.look();
        assert_eq!((changed, names), (true, vec![]));
        assert!(said.contains("c.yaml: not YAML"), "{said}");
    }

    #[test]
    fn a_folder_that_is_not_there_ends_nothing() {
        let mut folder = Folder::new();
        folder.write("a.yaml", &manifest("a", "x:1"));
        folder.look();
        fs::remove_dir_all(folder.dir.path()).unwrap();
        let (changed, names, said) = folder.look();
        assert_eq!((changed, names.len()), (false, 1));
        assert!(said.contains("cannot list"), "{said}");
        assert_eq!(folder.look().2, "");
    }

    #[test]
    fn what_was_stored_is_what_is_read_again() {
        let mut folder = Folder::new();
        folder.write("a.yaml", &manifest("a", "x:1"));
        folder.look();
        let stored = serde_json::to_vec(folder.files.kept()).unwrap();
        folder.files =
            Files::new(NodeName::new("edge").unwrap(), serde_json::from_slice(&stored).unwrap());
        let later = Timestamp::from_second(99).unwrap();
        let seen = folder.files.look(folder.dir.path(), later);
        assert!(!seen.changed && seen.problems.is_empty());
        let object = folder.files.kept()["a.yaml"].to_object().unwrap();
        assert_eq!(object.name, "default/a-edge");
    }
}
