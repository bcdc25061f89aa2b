//! What a disk may hold after the power was cut.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::vfs::Op;

/// A disk writes sectors whole.
const SECTOR_BYTES: usize = 512;

/// Small and good enough (xorshift64*): the same seed gives the same choices for ever.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    fn coin(&mut self) -> bool {
        self.next() >> 63 == 1
    }
}

/// Files as the disk is sure to hold them, and what was done to them since.
#[derive(Default)]
pub(crate) struct Disk {
    durable: BTreeMap<String, Vec<u8>>,
    unsynced: Vec<Op>,
}

impl Disk {
    /// What `op` does for durability.
    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::Write { .. } | Op::Truncate { .. } => self.unsynced.push(op.clone()),
            Op::Sync { file } => {
                let of_file = |op: &mut Op| name(op) == Some(file);
                for op in self.unsynced.extract_if(.., of_file) {
                    whole(&mut self.durable, &op);
                }
                self.durable.entry(file.clone()).or_default();
            }
            Op::Delete { file } => {
                self.durable.remove(file);
                self.unsynced.retain(|op| name(op) != Some(file));
            }
            Op::Acknowledged(_) => {}
        }
    }

    /// The files after a power cut: any part of what was not synced may have arrived, in any order.
    pub(crate) fn after_power_cut(&self, random: &mut Random) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.durable.clone();
        // All, nothing or some of it: the extremes are the likeliest in life.
        let mode = random.below(4);
        for op in &self.unsynced {
            if mode == 0 {
                whole(&mut files, op);
            } else if mode > 1 {
                some(&mut files, op, random);
            }
        }

        files
    }
}

fn name(op: &Op) -> Option<&String> {
    match op {
        Op::Write { file, .. }
        | Op::Truncate { file, .. }
        | Op::Sync { file }
        | Op::Delete { file } => Some(file),
        Op::Acknowledged(_) => None,
    }
}

fn whole(files: &mut BTreeMap<String, Vec<u8>>, op: &Op) {
    match op {
        Op::Write { file, offset, data } => write(files, file, *offset, data),
        Op::Truncate { file, length } => {
            files.entry(file.clone()).or_default().resize(*length, 0);
        }
        Op::Sync { .. } | Op::Delete { .. } | Op::Acknowledged(_) => {}
    }
}

/// Any part of a write.
fn some(files: &mut BTreeMap<String, Vec<u8>>, op: &Op, random: &mut Random) {
    match op {
        Op::Write { file, offset, data } => {
            for (sector, part) in data.chunks(SECTOR_BYTES).enumerate() {
                if random.coin() {
                    write(files, file, offset + sector * SECTOR_BYTES, part);
                }
            }
        }
        Op::Truncate { .. } if random.coin() => whole(files, op),
        Op::Truncate { .. } | Op::Sync { .. } | Op::Delete { .. } | Op::Acknowledged(_) => {}
    }
}

fn write(files: &mut BTreeMap<String, Vec<u8>>, file: &str, offset: usize, data: &[u8]) {
    let content = files.entry(file.to_owned()).or_default();
    if content.len() < offset + data.len() {
        content.resize(offset + data.len(), 0);
    }
    content[offset..offset + data.len()].copy_from_slice(data);
}

/// Writes `files` into an empty folder.
pub(crate) fn rebuild(folder: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (name, content) in files {
        fs::write(folder.join(name), content).unwrap();
    }
}
