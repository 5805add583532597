//! Projects, on a file system that has them: a file in a loop device.

use super::*;
use std::path::PathBuf;
use std::process::Command;

/// A file system, mounted on the lab's volume; taken down with it.
pub(super) struct Mounted(PathBuf);

impl Mounted {
    pub(super) fn on(lab: &Lab, maker: &[&str]) -> Result<Mounted, String> {
        let image = lab.folder.path().join("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(320 << 20)).map_err(|error| error.to_string())?;
        let run = |words: &[&str], last: &Path| match Command::new(words[0]).args(&words[1..]).arg(last).output() {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(format!("{}: {}", words[0], String::from_utf8_lossy(&output.stderr).trim())),
            Err(error) => Err(format!("{}: {error}", words[0])),
        };
        run(maker, &image)?;
        run(&["mount", "-o", "loop", &image.display().to_string()], &lab.volume())?;
        Ok(Mounted(lab.volume()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

pub(super) fn node(inode: u64) -> NodeId {
    NodeId { inode, generation: 1, ..ROOT }
}

const PLAIN: Attributes = Attributes { mode: 0o755, owner: 0, group: 0, modified: Timestamp(1_000_000_007) };

pub(super) fn made(parent: NodeId, text: &str, inode: u64, directory: bool) -> Operation {
    let (name, node, attributes) = (Name::new(text).unwrap(), node(inode), PLAIN);
    if directory { Operation::Mkdir { parent, name, node, attributes } } else { Operation::Create { parent, name, node, attributes } }
}

pub(super) fn feed(applier: &mut Applier, operations: &[Operation]) {
    for operation in operations {
        applier.apply(&Item { seq: applier.applied().next(), operation: operation.clone() }).unwrap();
    }
}

pub(super) fn opened(lab: &Lab) -> Applier {
    let mut applier = lab.open();
    applier.redo_through(OpSeq::ZERO).unwrap();
    applier
}

const INHERITS: u32 = rustix::fs::IFlags::PROJECT_INHERIT.bits();

#[test]
fn projects_are_what_the_stream_says_and_nothing_is_inherited() {
    let Some(lab) = Lab::new("project") else { return };
    // Every xfs has projects, and not every kernel writes to an ext4 that has.
    let mounted = Mounted::on(&lab, &["mkfs.xfs", "-q"]);
    if let Err(reason) = mounted {
        return eprintln!("SKIP project: {reason}");
    }
    let set = |inode, project| Operation::SetProject { node: node(inode), project };
    let mut applier = opened(&lab);
    // A directory that gives its project on; what is made there has none, because the stream tells of none.
    let flags = Operation::SetFlags { node: node(5), flags: INHERITS };
    feed(&mut applier, &[made(ROOT, "d", 5, true), flags, set(5, 7), made(node(5), "none", 6, false)]);
    feed(&mut applier, &[made(node(5), "own", 7, false), set(7, u32::MAX - 1), made(ROOT, "link", 8, false), set(8, 9)]);
    // The kernel refuses both where a directory gives another project on.
    let name = |text: &str| Name::new(text).unwrap();
    let (mode, victim) = (RenameMode::Replace, None);
    let moved =
        Operation::Rename { parent: ROOT, name: name("moved"), node: node(9), new_parent: node(5), new_name: name("moved"), mode, victim };
    feed(&mut applier, &[Operation::Link { parent: node(5), name: name("link"), node: node(8) }, made(ROOT, "moved", 9, false), moved]);
    // Shown again as one of another project, and of none.
    let shown = |inode, project| {
        let (accessed, size, xattrs) = (Timestamp(5), ByteLen(0), Vec::new());
        Operation::MirrorNode { node: node(inode), kind: NodeKind::File, attributes: PLAIN, accessed, flags: 0, project, size, xattrs }
    };
    feed(
        &mut applier,
        &[made(ROOT, "shown", 10, false), set(10, 1), shown(10, 3), made(ROOT, "cleared", 11, false), set(11, 1), shown(11, 0)],
    );
    assert_eq!((applier.counters().operations_failed, applier.counters().attributes_refused), (0, 0));
    applier.finish().unwrap();
    let tree = read_tree(&lab.volume(), &[LIMBO_NAME]).unwrap();
    for (path, project) in
        [("d", 7), ("d/none", 0), ("d/own", u32::MAX - 1), ("link", 9), ("d/link", 9), ("d/moved", 0), ("shown", 3), ("cleared", 0)]
    {
        assert_eq!(tree[path].project, project, "{path}");
    }
    let flags = || rustix::fs::ioctl_getflags(std::fs::File::open(lab.volume().join("d")).unwrap()).unwrap().bits();
    assert_eq!(flags() & INHERITS, INHERITS, "a finished replica gives it on as the source does");
    drop(applier);
    let mut applier = opened(&lab);
    assert_eq!(flags() & INHERITS, 0);
    feed(&mut applier, &[made(node(5), "later", 12, false)]);
    assert_eq!(read_tree(&lab.volume(), &[]).unwrap()["d/later"].project, 0);
    drop(applier);
}

/// Where the file system has no room for them, that is counted, once for each that there is.
#[test]
fn a_file_system_without_projects_refuses_them_audibly() {
    let Some(lab) = Lab::new("no-project") else { return };
    let mut applier = opened(&lab);
    let set = |project| Operation::SetProject { node: node(5), project };
    feed(&mut applier, &[made(ROOT, "f", 5, false), set(0), set(4)]);
    let took = standin_inode::project::project(std::fs::File::open(lab.volume().join("f")).unwrap()).unwrap() == 4;
    assert_eq!(applier.counters().attributes_refused, u64::from(!took));
}
