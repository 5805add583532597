//! One item as a person reads it: its number, its kind, its node, and what it says. Names and content come from a source and are escaped.

use serde_json::{Value, json};
use standin_model::{Attributes, Check, CheckOf, Digest, Item, Marker, Name, NodeId, Operation, Timestamp};

/// Bytes of content that are shown.
const SHOWN_BYTES: usize = 32;
/// Entries of a listing and attributes of a node that are shown.
const SHOWN_ENTRIES: usize = 20;

pub fn text(item: &Item) -> String {
    let (kind, detail) = described(&item.operation);
    let node = item.operation.node().map_or_else(String::new, |node| format!(" {node}"));
    format!("{} {kind}{node}{}{detail}", item.seq, if detail.is_empty() { "" } else { " " })
}

pub fn json(item: &Item) -> Value {
    let (kind, detail) = described(&item.operation);
    json!({"item": item.seq, "kind": kind, "node": item.operation.node().map(|node| node.to_string()), "detail": detail})
}

/// Names of kinds, as `grep --kind` takes them.
pub const KINDS: [&str; 33] = [
    "write",
    "patch",
    "zero",
    "punch",
    "allocate",
    "collapse",
    "insert",
    "truncate",
    "create",
    "create-unnamed",
    "mkdir",
    "symlink",
    "mknod",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "forget",
    "mode",
    "owner",
    "times",
    "xattr",
    "no-xattr",
    "flags",
    "project",
    "clone",
    "listing",
    "node",
    "data",
    "hole",
    "digests",
    "marker",
    "check",
];

pub fn kind(operation: &Operation) -> &'static str {
    described(operation).0
}

fn described(operation: &Operation) -> (&'static str, String) {
    use Operation::*;
    match operation {
        Write { offset, data, .. } => ("write", format!("{} bytes at {offset}: {}", data.len(), bytes(data))),
        Patch { offset, len, parts, checksum, .. } => {
            let shown: Vec<String> = parts.iter().take(SHOWN_ENTRIES).map(|part| format!("+{} {}", part.at, bytes(&part.data))).collect();
            let changed = operation.content_len();
            let whole = format!("{changed} of {len} bytes at {offset}, then {checksum:016x}");
            ("patch", format!("{whole}: {}{}", shown.join(" "), more(parts.len())))
        }
        Zero { offset, len, keep_size, .. } => ("zero", format!("{len} bytes at {offset}{}", kept(*keep_size))),
        Punch { offset, len, .. } => ("punch", format!("{len} bytes at {offset}")),
        Allocate { offset, len, keep_size, .. } => ("allocate", format!("{len} bytes at {offset}{}", kept(*keep_size))),
        Collapse { offset, len, .. } => ("collapse", format!("{len} bytes at {offset}")),
        Insert { offset, len, .. } => ("insert", format!("{len} bytes at {offset}")),
        Truncate { size, .. } => ("truncate", format!("to {size} bytes")),
        CloneRange { origin, origin_offset, offset, len, .. } => {
            ("clone", format!("{len} bytes at {offset} from {origin} at {origin_offset}"))
        }
        Create { parent, name, attributes, .. } => ("create", format!("{} {}", place(*parent, name), facts(attributes))),
        CreateUnnamed { attributes, .. } => ("create-unnamed", facts(attributes)),
        Mkdir { parent, name, attributes, .. } => ("mkdir", format!("{} {}", place(*parent, name), facts(attributes))),
        Symlink { parent, name, target, .. } => ("symlink", format!("{} to {}", place(*parent, name), escaped(target))),
        Mknod { parent, name, kind, device, .. } => {
            ("mknod", format!("{} {kind:?} {}:{}", place(*parent, name), device >> 32, device & 0xffff_ffff))
        }
        Link { parent, name, .. } => ("link", place(*parent, name)),
        Unlink { parent, name, .. } => ("unlink", place(*parent, name)),
        Rmdir { parent, name, .. } => ("rmdir", place(*parent, name)),
        Rename { parent, name, new_parent, new_name, mode, victim, .. } => {
            let over = victim.map_or_else(String::new, |victim| format!(" over {victim}"));
            ("rename", format!("{} to {} {mode:?}{over}", place(*parent, name), place(*new_parent, new_name)))
        }
        Forget { .. } => ("forget", String::new()),
        SetMode { mode, .. } => ("mode", format!("{mode:04o}")),
        SetOwner { owner, group, .. } => ("owner", format!("{owner}:{group}")),
        SetTimes { accessed, modified, .. } => ("times", format!("accessed {} modified {}", time(*accessed), time(*modified))),
        SetXattr { name, value, .. } => ("xattr", format!("{} {} bytes: {}", escaped(name), value.len(), bytes(value))),
        RemoveXattr { name, .. } => ("no-xattr", escaped(name)),
        SetFlags { flags, .. } => ("flags", format!("{flags:#x}")),
        SetProject { project, .. } => ("project", project.to_string()),
        _ => described_mirror(operation),
    }
}

fn described_mirror(operation: &Operation) -> (&'static str, String) {
    use Operation::*;
    match operation {
        MirrorDirectory { entries, first, last, .. } => {
            let shown: Vec<String> =
                entries.iter().take(SHOWN_ENTRIES).map(|entry| format!("{}={}", escaped(entry.name.as_bytes()), entry.node)).collect();
            let page = match (first, last) {
                (true, true) => "whole",
                (true, false) => "first page",
                (false, true) => "last page",
                (false, false) => "page",
            };
            ("listing", format!("{page}, {} entries: {}{}", entries.len(), shown.join(" "), more(entries.len())))
        }
        MirrorNode { kind, attributes, flags, project, size, xattrs, .. } => {
            let shown: Vec<String> = xattrs.iter().take(SHOWN_ENTRIES).map(|(name, _)| escaped(name)).collect();
            let facts = format!("{} flags {flags:#x} project {project}", facts(attributes));
            ("node", format!("{kind:?} {size} bytes {facts} {}{}", shown.join(" "), more(xattrs.len())))
        }
        MirrorData { offset, data, .. } => ("data", format!("{} bytes at {offset}: {}", data.len(), bytes(data))),
        MirrorHole { offset, len, .. } => ("hole", format!("{len} bytes at {offset}")),
        MirrorDigests { offset, len, block, digests, .. } => {
            ("digests", format!("{len} bytes at {offset} in {} blocks of {block}: {}", digests.len(), more_digests(digests)))
        }
        Marker(marker) => ("marker", marker_text(marker)),
        Check(check) => ("check", format!("verification {}, pass {}: {}", check.run, check.pass, check_text(&check.of))),
        // Every other kind is described above; one that is added shows itself.
        other => ("other", format!("{other:?}")),
    }
}

fn more_digests(digests: &[Digest]) -> String {
    let shown: Vec<String> = digests.iter().take(2).map(|digest| digest.0.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
    format!("{}{}", shown.join(" "), if digests.len() > shown.len() { " …" } else { "" })
}

fn check_text(of: &CheckOf) -> String {
    match of {
        CheckOf::Nodes { volume, inodes, .. } => {
            let (first, last) = (inodes.first().copied().unwrap_or(0), inodes.last().copied().unwrap_or(0));
            format!("{} nodes of {volume}, inodes {first} to {last}", inodes.len())
        }
        CheckOf::Node { node, .. } => format!("node {node}"),
        CheckOf::Range { node, offset, len, .. } => format!("{len} bytes at {offset} of {node}"),
        CheckOf::Zeros { node, offset, len } => format!("zeros, {len} bytes at {offset} of {node}"),
        CheckOf::End(end) => format!("end after {} checks of {} nodes, {} busy", end.checks, end.nodes, end.busy_nodes),
    }
}

fn marker_text(marker: &Marker) -> String {
    match marker {
        Marker::Gap { reason } => format!("gap: {}", reason.escape_debug()),
        Marker::Named(name) => format!("named {}", name.escape_debug()),
        Marker::StreamStarted { boot, everything } => {
            format!("stream started, boot {boot:016x}{}", if *everything { ", everything is mirrored" } else { "" })
        }
        Marker::Settled { through } => format!("settled through {through}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// Whether a filter's node is this operation's, or one that it names besides.
pub fn names_node(operation: &Operation, is: impl Fn(NodeId) -> bool) -> bool {
    let besides = match operation {
        Operation::CloneRange { origin, .. } => is(*origin),
        Operation::MirrorDirectory { entries, .. } => entries.iter().any(|entry| is(entry.node)),
        Operation::Check(Check { of, .. }) => match of {
            CheckOf::Node { node, .. } | CheckOf::Range { node, .. } | CheckOf::Zeros { node, .. } => is(*node),
            CheckOf::Nodes { .. } | CheckOf::End(_) => false,
        },
        _ => false,
    };
    besides || operation.changed_nodes().any(is)
}

/// Every name, link target and attribute name of an operation.
pub fn names(operation: &Operation) -> Vec<&[u8]> {
    use Operation::*;
    match operation {
        Create { name, .. } | Mkdir { name, .. } | Mknod { name, .. } => vec![name.as_bytes()],
        Link { name, .. } | Unlink { name, .. } | Rmdir { name, .. } => vec![name.as_bytes()],
        Symlink { name, target, .. } => vec![name.as_bytes(), target],
        Rename { name, new_name, .. } => vec![name.as_bytes(), new_name.as_bytes()],
        SetXattr { name, .. } | RemoveXattr { name, .. } => vec![name],
        MirrorDirectory { entries, .. } => entries.iter().flat_map(|entry| [entry.name.as_bytes(), &entry.target]).collect(),
        MirrorNode { xattrs, .. } => xattrs.iter().map(|(name, _)| name.as_slice()).collect(),
        _ => vec![],
    }
}

pub fn content(operation: &Operation) -> Vec<&[u8]> {
    match operation {
        Operation::Write { data, .. } | Operation::MirrorData { data, .. } => vec![data],
        Operation::Patch { parts, .. } => parts.iter().map(|part| part.data.as_slice()).collect(),
        _ => vec![],
    }
}

fn kept(keep_size: bool) -> &'static str {
    if keep_size { ", size kept" } else { "" }
}

fn more(count: usize) -> &'static str {
    if count > SHOWN_ENTRIES { " …" } else { "" }
}

fn place(parent: NodeId, name: &Name) -> String {
    format!("{parent}/{}", escaped(name.as_bytes()))
}

fn facts(attributes: &Attributes) -> String {
    format!("{:04o} {}:{} modified {}", attributes.mode, attributes.owner, attributes.group, attributes.modified.0)
}

fn time(time: Option<Timestamp>) -> String {
    time.map_or("as it is".to_owned(), |time| time.0.to_string())
}

fn bytes(data: &[u8]) -> String {
    let head = data.get(..SHOWN_BYTES).unwrap_or(data);
    format!("{}{}", head.escape_ascii(), if head.len() < data.len() { "…" } else { "" })
}

fn escaped(name: &[u8]) -> String {
    let mut text = String::new();
    for chunk in name.utf8_chunks() {
        chunk.valid().chars().for_each(|c| if c.is_control() || c == '\\' { text.extend(c.escape_default()) } else { text.push(c) });
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}
