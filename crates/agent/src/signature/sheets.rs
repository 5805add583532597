//! The table of signatures: by file, in sheets of 128 sub-blocks, within a budget.
//!
//! A hash of 0 is an unknown sub-block; one that lies only in part in what was seen is unknown. A coarse sub-block has the hash of its fine ones' hashes, so
//! that a file becomes coarse without being read. Sheets leave in the order of a clock: one that a patch used since the hand's last round stays for another.

use super::SignatureSizes;
use standin_model::NodeId;
use std::collections::{BTreeMap, HashMap, VecDeque};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Fine sub-blocks of a sheet: 16 KiB of a file, a page or two of a database.
const SHEET_BLOCKS: u64 = 128;
/// A sheet's place in its file's tree, its allocation, and its place on the clock.
const SHEET_BYTES: usize = 64;
const CLOCK_BYTES: usize = size_of::<(u32, u64)>();
/// A file's row, its first tree node, and the way back from its number.
const FILE_BYTES: usize = 320;

struct Sheet {
    hashes: Box<[u32]>,
    is_used: bool,
}

impl Sheet {
    fn bytes(&self) -> usize {
        SHEET_BYTES + 4 * self.hashes.len()
    }
}

struct File {
    number: u32,
    is_coarse: bool,
    sheets: BTreeMap<u64, Sheet>,
}

pub(super) struct Sheets {
    key: u64,
    mask: u32,
    fine: u64,
    coarse: u64,
    budget: usize,
    bytes: usize,
    files: HashMap<NodeId, File>,
    /// A number is given once, so that the clock never takes one file for another.
    numbers: HashMap<u32, NodeId>,
    next: u32,
    /// Every sheet is here; some that are here are gone with their file.
    clock: VecDeque<(u32, u64)>,
    gone: usize,
    /// No file is fine any more, and new ones are coarse from their beginning.
    is_crowded: bool,
}

impl Sheets {
    pub fn new(budget: usize, key: u64, sizes: SignatureSizes) -> Sheets {
        let SignatureSizes { fine, coarse, hash_bits, .. } = sizes;
        assert!(fine > 0 && coarse > fine && coarse.is_multiple_of(fine), "fine sub-blocks lie in coarse ones");
        assert!(SHEET_BLOCKS.is_multiple_of(u64::from(coarse / fine)), "coarse sub-blocks lie in sheets");
        assert!((1..=32).contains(&hash_bits), "a hash has 1 to 32 bits");
        Sheets {
            key,
            mask: u32::MAX >> (32 - hash_bits),
            fine: fine.into(),
            coarse: coarse.into(),
            budget,
            bytes: 0,
            files: HashMap::new(),
            numbers: HashMap::new(),
            next: 0,
            clock: VecDeque::new(),
            gone: 0,
            is_crowded: false,
        }
    }

    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The range has this content from here on. Returns what of it was not known to be there before, as ranges of `data` in their order and apart.
    pub fn learn(&mut self, node: NodeId, offset: u64, data: &[u8]) -> Vec<(usize, usize)> {
        let end = offset.saturating_add(data.len() as u64);
        let is_coarse = self.files.get(&node).map_or(self.is_crowded, |file| file.is_coarse);
        let (unit, per_sheet) = layout(self.fine, self.coarse, is_coarse);
        let (first, last) = (offset.div_ceil(unit), end / unit);
        if first >= last {
            self.forget_range(node, offset, end);
            return vec![(0, data.len())];
        }
        let file = self.files.entry(node).or_insert_with(|| {
            self.bytes += FILE_BYTES;
            self.numbers.insert(self.next, node);
            self.next = self.next.wrapping_add(1);
            File { number: self.next.wrapping_sub(1), is_coarse, sheets: BTreeMap::new() }
        });
        let mut changed = Changed::default();
        changed.add(0, (first * unit - offset) as usize);
        for index in first / per_sheet..=(last - 1) / per_sheet {
            let sheet = file.sheets.entry(index).or_insert_with(|| {
                let sheet = Sheet { hashes: vec![0; per_sheet as usize].into(), is_used: false };
                self.bytes += sheet.bytes() + CLOCK_BYTES;
                self.clock.push_back((file.number, index));
                sheet
            });
            let begin = index * per_sheet;
            for block in first.max(begin)..last.min(begin + per_sheet) {
                let at = (block * unit - offset) as usize;
                let hash = hash_of(&data[at..at + unit as usize], self.fine as usize, self.key, self.mask);
                let known = &mut sheet.hashes[(block - begin) as usize];
                if *known != hash {
                    *known = hash;
                    changed.add(at, at + unit as usize);
                }
            }
        }
        changed.add((last * unit - offset) as usize, data.len());
        // What is cut at the ends.
        self.forget_range(node, offset, first * unit);
        self.forget_range(node, last * unit, end);
        self.keep_within();
        changed.0
    }

    /// A patch was made from what is known there.
    pub fn use_again(&mut self, node: NodeId, offset: u64, len: usize) {
        let Some(file) = self.files.get_mut(&node) else { return };
        let (unit, per_sheet) = layout(self.fine, self.coarse, file.is_coarse);
        let end = offset.saturating_add(len as u64);
        file.sheets.range_mut(offset / unit / per_sheet..=end / unit / per_sheet).for_each(|(_, sheet)| sheet.is_used = true);
    }

    /// Nothing is known of what lies in or touches the range.
    pub fn forget_range(&mut self, node: NodeId, from: u64, to: u64) {
        if from >= to {
            return;
        }
        if (from, to) == (0, u64::MAX) {
            return self.forget(node);
        }
        let Some(file) = self.files.get_mut(&node) else { return };
        let (unit, per_sheet) = layout(self.fine, self.coarse, file.is_coarse);
        let (first, last) = (from / unit, (to - 1) / unit);
        // Sheets stay, so that each is on the clock once.
        for (index, sheet) in file.sheets.range_mut(first / per_sheet..=last / per_sheet) {
            let begin = index * per_sheet;
            let (low, high) = (first.saturating_sub(begin), (last - begin).min(per_sheet - 1));
            sheet.hashes[low as usize..=high as usize].fill(0);
        }
    }

    pub fn forget(&mut self, node: NodeId) {
        let Some(file) = self.files.remove(&node) else { return };
        self.numbers.remove(&file.number);
        self.gone += file.sheets.len();
        self.bytes -= FILE_BYTES + file.sheets.values().map(Sheet::bytes).sum::<usize>();
    }

    pub fn clear(&mut self) {
        // Its memory is given back.
        (self.files, self.numbers, self.clock) = (HashMap::new(), HashMap::new(), VecDeque::new());
        (self.bytes, self.gone, self.is_crowded) = (0, 0, false);
    }

    fn keep_within(&mut self) {
        if self.bytes <= self.budget {
            return;
        }
        if self.gone * CLOCK_BYTES > self.budget / 16 {
            let before = self.clock.len();
            self.clock.retain(|(number, _)| self.numbers.contains_key(number));
            self.bytes -= (before - self.clock.len()) * CLOCK_BYTES;
            self.gone = 0;
        }
        if self.bytes > self.budget && !self.is_crowded {
            self.coarsen();
        }
        while self.bytes > self.budget
            && let Some((number, index)) = self.clock.pop_front()
        {
            self.bytes -= CLOCK_BYTES;
            let Some(node) = self.numbers.get(&number).copied() else {
                self.gone = self.gone.saturating_sub(1);
                continue;
            };
            let Some(file) = self.files.get_mut(&node) else { continue };
            let Some(sheet) = file.sheets.get_mut(&index) else { continue };
            if std::mem::take(&mut sheet.is_used) {
                self.clock.push_back((number, index));
                self.bytes += CLOCK_BYTES;
                continue;
            }
            self.bytes -= sheet.bytes();
            file.sheets.remove(&index);
            if file.sheets.is_empty() {
                self.forget(node);
            }
        }
    }

    /// Makes the files with most sheets coarse, until a quarter of the budget is free. So this is not done again before that is filled.
    fn coarsen(&mut self) {
        let ratio = (self.coarse / self.fine) as usize;
        let mut fine: Vec<(usize, NodeId)> =
            self.files.iter().filter(|(_, file)| !file.is_coarse).map(|(node, file)| (file.sheets.len(), *node)).collect();
        fine.sort_unstable();
        while self.bytes > self.budget / 4 * 3 {
            let Some((_, node)) = fine.pop() else {
                self.is_crowded = true;
                return;
            };
            let Some(file) = self.files.get_mut(&node) else { continue };
            file.is_coarse = true;
            for sheet in file.sheets.values_mut() {
                self.bytes -= sheet.bytes();
                sheet.hashes = sheet.hashes.chunks(ratio).map(|hashes| hash_of_hashes(hashes, self.key, self.mask)).collect();
                self.bytes += sheet.bytes();
            }
        }
    }
}

/// Bytes of a sub-block, and how many of them a sheet has.
fn layout(fine: u64, coarse: u64, is_coarse: bool) -> (u64, u64) {
    if is_coarse { (coarse, SHEET_BLOCKS * fine / coarse) } else { (fine, SHEET_BLOCKS) }
}

/// Of one sub-block, fine or coarse.
fn hash_of(bytes: &[u8], fine: usize, key: u64, mask: u32) -> u32 {
    if bytes.len() == fine {
        return known(xxh3_64_with_seed(bytes, key), mask);
    }
    let hashes: Vec<u32> = bytes.chunks(fine).map(|bytes| known(xxh3_64_with_seed(bytes, key), mask)).collect();
    hash_of_hashes(&hashes, key, mask)
}

fn hash_of_hashes(hashes: &[u32], key: u64, mask: u32) -> u32 {
    if hashes.contains(&0) {
        return 0;
    }
    let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
    known(xxh3_64_with_seed(&bytes, key), mask)
}

/// 0 means that nothing is known.
fn known(hash: u64, mask: u32) -> u32 {
    (((hash >> 32) ^ hash) as u32 & mask).max(1)
}

/// Ranges, of which neighbours become one.
#[derive(Default)]
struct Changed(Vec<(usize, usize)>);

impl Changed {
    fn add(&mut self, from: usize, to: usize) {
        match self.0.last_mut() {
            _ if from >= to => {}
            Some((_, end)) if *end == from => *end = to,
            _ => self.0.push((from, to)),
        }
    }
}
