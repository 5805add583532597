//! Signatures: what the replica has of files that may be written again, as a few bytes for each sub-block, so that a rewritten page goes into the
//! stream as the bytes that changed in it.
//!
//! The table is a shadow of the stream: at each point it says what a replica has that has applied everything so far. So it sits where the
//! stream gets its order, sees every item on its way in, and knows nothing of the source. Where it cannot say, it says nothing. Where it is wrong all the
//! same (two sub-blocks with one hash), the checksum of the patch tells the appliance. docs/design/2026-11-28-page-delta.md has the argument.
//!
//! Bounded: beyond the budget, first larger sub-blocks for the files that take most, then fewer sheets.

mod sheets;

use sheets::Sheets;
use standin_model::{ByteLen, ByteOffset, NodeId, Operation, PatchPart, patch};
use std::collections::HashSet;

/// Sizes of what is hashed and patched. The defaults are the product's; the simulator draws small ones.
#[derive(Clone, Copy, Debug)]
pub struct SignatureSizes {
    /// Bytes of a sub-block. What one costs on the wire and in memory was measured: see docs/design.
    pub fine: u32,
    /// Of files that take too much room; a multiple of `fine`.
    pub coarse: u32,
    /// A shorter write is sent as it is.
    pub write_bytes_min: usize,
    /// Shorter data that the mirror reads is not remembered: small files are replaced rather than rewritten.
    pub mirror_bytes_min: usize,
    /// Bits of a hash that are kept, up to 32. Fewer are for the simulator, where wrong matches have to happen.
    pub hash_bits: u32,
}

impl Default for SignatureSizes {
    fn default() -> SignatureSizes {
        SignatureSizes { fine: 128, coarse: 512, write_bytes_min: 512, mirror_bytes_min: 4096, hash_bits: 32 }
    }
}

/// What a patch takes besides its parts: tag, node, range, checksum, count.
const PATCH_BYTES: usize = 24;
/// What a part takes besides its bytes.
const PART_BYTES: usize = 4;

pub struct Signatures {
    sizes: SignatureSizes,
    /// `None` is off: no table, and every operation stays what it is.
    sheets: Option<Sheets>,
    /// Files that have had no name yet: the replica forgets them when a resync starts.
    unnamed: HashSet<NodeId>,
    /// Bytes of writes that patches spared.
    spared: u64,
}

impl Signatures {
    pub fn off() -> Signatures {
        Signatures { sizes: SignatureSizes::default(), sheets: None, unnamed: HashSet::new(), spared: 0 }
    }

    /// Takes at most about `budget_bytes`; 0 is off. `key` must be one that nobody on the source can guess.
    pub fn new(budget_bytes: usize, key: u64, sizes: SignatureSizes) -> Signatures {
        let sheets = (budget_bytes > 0).then(|| Sheets::new(budget_bytes, key, sizes));
        Signatures { sizes, sheets, ..Signatures::off() }
    }

    /// Bytes of content that went into the stream as patches of fewer bytes: the difference.
    pub fn spared(&self) -> u64 {
        self.spared
    }

    /// Takes in the next item of the stream, and gives it the form in which it goes there.
    pub fn shape(&mut self, operation: Operation) -> Operation {
        let Some(sheets) = &mut self.sheets else { return operation };
        match operation {
            Operation::Write { node, offset, data } if data.len() >= self.sizes.write_bytes_min => {
                let changed = sheets.learn(node, offset.0, &data);
                match patched(node, offset, &data, &changed) {
                    Some(patch) => {
                        sheets.use_again(node, offset.0, data.len());
                        self.spared += data.len() as u64 - patch.content_len();
                        patch
                    }
                    None => Operation::Write { node, offset, data },
                }
            }
            other => {
                self.follow(&other);
                other
            }
        }
    }

    fn follow(&mut self, operation: &Operation) {
        use Operation::*;
        let Some(sheets) = &mut self.sheets else { return };
        let behind = |offset: &ByteOffset, len: u64| offset.0.saturating_add(len);
        match operation {
            MirrorData { node, offset, data } if data.len() >= self.sizes.mirror_bytes_min => drop(sheets.learn(*node, offset.0, data)),
            Write { node, offset, data } | MirrorData { node, offset, data } => {
                sheets.forget_range(*node, offset.0, behind(offset, data.len() as u64));
            }
            // Nobody else makes patches.
            Patch { node, offset, len, .. }
            | Zero { node, offset, len, .. }
            | Punch { node, offset, len }
            | MirrorHole { node, offset, len }
            | CloneRange { node, offset, len, .. } => sheets.forget_range(*node, offset.0, behind(offset, len.0)),
            Truncate { node, size } => sheets.forget_range(*node, size.0, u64::MAX),
            // The replica may have lost it meanwhile, and make another one here.
            MirrorNode { node, .. } => sheets.forget(*node),
            Collapse { node, offset, .. } | Insert { node, offset, .. } => sheets.forget_range(*node, offset.0, u64::MAX),
            // What is known stays what it is; the size is not part of it.
            Allocate { .. } => {}
            CreateUnnamed { node, .. } => {
                sheets.forget(*node);
                self.unnamed.insert(*node);
            }
            Create { node, .. } | Mkdir { node, .. } | Symlink { node, .. } | Mknod { node, .. } => self.forget(*node),
            Unlink { node, .. } | Rmdir { node, .. } | Forget { node } => self.forget(*node),
            Link { node, .. } => drop(self.unnamed.remove(node)),
            Rename { node, victim, .. } => {
                self.unnamed.remove(node);
                victim.iter().for_each(|victim| self.forget(*victim));
            }
            Marker(standin_model::Marker::ResyncStarted) => {
                std::mem::take(&mut self.unnamed).into_iter().for_each(|node| sheets.forget(node))
            }
            Marker(standin_model::Marker::StreamStarted { .. }) => self.clear(),
            SetMode { .. }
            | SetOwner { .. }
            | SetTimes { .. }
            | SetXattr { .. }
            | RemoveXattr { .. }
            | SetFlags { .. }
            | SetProject { .. } => {}
            MirrorDirectory { .. } | MirrorDigests { .. } | Marker(_) | Check(_) => {}
        }
    }

    /// The replica may have something else than the stream says.
    pub fn forget(&mut self, node: NodeId) {
        self.unnamed.remove(&node);
        if let Some(sheets) = &mut self.sheets {
            sheets.forget(node);
        }
    }

    /// Items that were counted here will never be seen by anybody.
    pub fn clear(&mut self) {
        self.unnamed.clear();
        if let Some(sheets) = &mut self.sheets {
            sheets.clear();
        }
    }
}

/// The write as a patch of what changed in it, where that pays: where it is at most half.
fn patched(node: NodeId, offset: ByteOffset, data: &[u8], changed: &[(usize, usize)]) -> Option<Operation> {
    let bytes: usize = changed.iter().map(|(from, to)| to - from + PART_BYTES).sum();
    if (bytes + PATCH_BYTES) * 2 > data.len() || data.len() as u64 > patch::PATCH_BYTES_MAX {
        return None;
    }
    let part = |(from, to): &(usize, usize)| Some(PatchPart { at: u32::try_from(*from).ok()?, data: data.get(*from..*to)?.to_vec() });
    let parts = changed.iter().map(part).collect::<Option<Vec<_>>>()?;
    Some(Operation::Patch { node, offset, len: ByteLen(data.len() as u64), parts, checksum: patch::checksum_of(data) })
}

#[cfg(test)]
mod tests;
