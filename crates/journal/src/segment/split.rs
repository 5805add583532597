//! Breaks an operation that is too long for one item into several that mean the same.
//!
//! Two kinds can grow that long: a listing page whose symlinks have long targets (1,024 entries × 4 KiB), and a node with a huge set of extended
//! attributes (xfs takes thousands of 64 KiB each). Every part is itself an ordinary operation, so nobody who reads a stream knows of this.

use standin_model::Operation;

/// Half of what an item may have, so that fields and estimates never matter.
const PART_BYTES: usize = standin_model::codec::OPERATION_BYTES_MAX / 2;
/// More than the fields of an entry or attribute take besides its byte strings.
const FIELD_BYTES: usize = 96;

/// The parts, in their order. An operation of any other kind comes back alone.
pub(super) fn split(operation: Operation) -> Vec<Operation> {
    match operation {
        Operation::MirrorDirectory { node, entries, first, last } => {
            let pages = pages(entries, |entry| entry.name.as_bytes().len() + entry.target.len());
            let count = pages.len();
            let page = |(at, entries)| Operation::MirrorDirectory { node, entries, first: first && at == 0, last: last && at + 1 == count };
            pages.into_iter().enumerate().map(page).collect()
        }
        Operation::MirrorNode { node, kind, attributes, accessed, flags, project, size, xattrs } => {
            // What is in the first part is "the whole set"; the others add to it.
            let mut pages = pages(xattrs, |(name, value)| name.len() + value.len()).into_iter();
            let xattrs = pages.next().unwrap_or_default();
            let mut parts = vec![Operation::MirrorNode { node, kind, attributes, accessed, flags, project, size, xattrs }];
            parts.extend(pages.flatten().map(|(name, value)| Operation::SetXattr { node, name, value }));
            parts
        }
        other => vec![other],
    }
}

/// At least one page; each within the bound, unless one thing alone is longer.
fn pages<T>(things: Vec<T>, bytes: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let (mut pages, mut used) = (vec![Vec::new()], 0);
    for thing in things {
        let more = bytes(&thing) + FIELD_BYTES;
        if used > 0 && used + more > PART_BYTES {
            pages.push(Vec::new());
            used = 0;
        }
        used += more;
        pages.last_mut().expect("there is always a page").push(thing);
    }
    pages
}
