//! What the kernel tells, on real file systems. Needs root, loop devices and mkfs; where they lack, the tests say so and pass.
#![allow(unsafe_code)] // a mapping to store through, and io_submit

use super::*;
use standin_model::FileSystem;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const KINDS: [FileSystem; 3] = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];

pub struct Mounted {
    directory: tempfile::TempDir,
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let told = || format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    output.status.success().then_some(()).ok_or_else(told)
}

/// A fresh file system of 400 MiB; the reason for a skip is printed.
pub fn mounted(kind: FileSystem) -> Result<Mounted, ()> {
    let lab = Mounted { directory: tempfile::tempdir().unwrap() };
    let image = lab.directory.path().join("image");
    File::create(&image).unwrap().set_len(400 << 20).unwrap();
    fs::create_dir(lab.mount_point()).unwrap();
    let (image, mount_point) = (image.display().to_string(), lab.mount_point().display().to_string());
    let made = run(&format!("mkfs.{}", kind.as_str()), &["-q", &image]);
    match made.and_then(|()| run("mount", &["-o", "loop", &image, &mount_point])) {
        Ok(()) => Ok(lab),
        Err(reason) => Err(eprintln!("SKIPPED: no {}: {reason}", kind.as_str())),
    }
}

impl Mounted {
    pub fn mount_point(&self) -> PathBuf {
        self.directory.path().join("volume")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount_point().join(name)
    }

    fn config(&self) -> CaptureConfig {
        let volume = CapturedVolume::of_mount_point(VolumeId(4), &self.mount_point()).unwrap();
        // The tests write themselves.
        CaptureConfig { exclude_tgid: 0, ..CaptureConfig::new(vec![volume]) }
    }

    fn node(&self, name: &str) -> NodeId {
        let root = File::open(self.mount_point()).unwrap();
        handles::node_id_at(&root, Path::new(name), VolumeId(4)).unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", &self.mount_point().display().to_string()]);
    }
}

fn told(capture: &mut FanotifyCapture) -> Vec<CaptureEvent> {
    let mut events = Vec::new();
    capture.barrier(&mut |event| events.push(event));
    events
}

fn nodes(events: &[CaptureEvent]) -> BTreeSet<NodeId> {
    let node = |event: &CaptureEvent| match event {
        CaptureEvent::Changed { node, .. } => *node,
        other => panic!("{other:?}"),
    };
    events.iter().map(node).collect()
}

fn swept(capture: &mut FanotifyCapture, since: Timestamp) -> BTreeSet<NodeId> {
    let mut events = Vec::new();
    capture.sweep(since, &mut |event| events.push(event));
    nodes(&events)
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp(since.as_nanos() as i64)
}

#[test]
fn calls_are_told_of_with_their_nodes() {
    for kind in KINDS {
        let Ok(lab) = mounted(kind) else { continue };
        fs::create_dir(lab.path("a")).unwrap();
        fs::create_dir(lab.path("b")).unwrap();
        fs::write(lab.path("a/x"), b"before").unwrap();
        let mut capture = FanotifyCapture::start(&lab.config(), "").unwrap();
        assert_eq!(capture.promise(), Promise::Periodic);
        told(&mut capture);
        let [a, b, x, root] = ["a", "b", "a/x", ""].map(|name| lab.node(name));
        let file = File::options().read(true).write(true).open(lab.path("a/x")).unwrap();
        let mut check = |what: &str, call: &dyn Fn(), expect: &[NodeId]| {
            call();
            assert_eq!(nodes(&told(&mut capture)), expect.iter().copied().collect(), "{what} on {}", kind.as_str());
        };
        check("write", &|| file.write_all_at(b"x", 100).unwrap(), &[x]);
        check("truncate", &|| file.set_len(10).unwrap(), &[x]);
        check("fallocate", &|| rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 8192).unwrap(), &[x]);
        check("chmod", &|| rustix::fs::fchmod(&file, Mode::from_raw_mode(0o600)).unwrap(), &[x]);
        check("xattr", &|| rustix::fs::fsetxattr(&file, "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap(), &[x]);
        check("chmod of a directory", &|| rustix::fs::chmod(lab.path("b"), Mode::from_raw_mode(0o700)).unwrap(), &[b]);
        check("rename", &|| fs::rename(lab.path("a/x"), lab.path("b/y")).unwrap(), &[a, b]);
        check("rename of a directory", &|| fs::rename(lab.path("b"), lab.path("a/b")).unwrap(), &[a, root]);
        check("symlink", &|| std::os::unix::fs::symlink("t", lab.path("s")).unwrap(), &[root]);
        check("link", &|| fs::hard_link(lab.path("a/b/y"), lab.path("z")).unwrap(), &[root, x]);
        check("unlink of one name", &|| fs::remove_file(lab.path("z")).unwrap(), &[root, x]);
        // While it is open it is there, and its end is told of when it comes.
        check("unlink", &|| fs::remove_file(lab.path("a/b/y")).unwrap(), &[b, x]);
        drop(file);
        assert_eq!(nodes(&told(&mut capture)), [x].into());
    }
}

#[test]
fn what_this_process_does_is_left_out_where_it_is_the_agent() {
    let Ok(lab) = mounted(FileSystem::Ext4) else { return };
    let config = CaptureConfig { exclude_tgid: std::process::id(), ..lab.config() };
    let mut capture = FanotifyCapture::start(&config, "").unwrap();
    told(&mut capture);
    fs::write(lab.path("own"), b"x").unwrap();
    assert_eq!(told(&mut capture), []);
    run("touch", &[&lab.path("others").display().to_string()]).unwrap();
    assert!(nodes(&told(&mut capture)).contains(&lab.node("")));
}

#[test]
fn a_full_queue_is_a_loss_of_everything() {
    let Ok(lab) = mounted(FileSystem::Ext4) else { return };
    let mut capture = FanotifyCapture::start(&lab.config(), "").unwrap();
    told(&mut capture);
    for number in 0..group::queue_events_max() + 10 {
        File::create(lab.path(&number.to_string())).unwrap();
    }
    let lost = CaptureEvent::LostEverything { reason: LossReason::EventQueueFull };
    assert!(told(&mut capture).contains(&lost));
    assert_eq!(told(&mut capture), [], "it is told once");
}

const CHILD: &str = "STANDIN_FANOTIFY_CHILD";
const CHILD_FILE: &str = "STANDIN_FANOTIFY_FILE";

/// This test once more, as another process that changes the file in a way without events at each byte of its input.
fn child(test: &str, what: &str, path: &Path) -> Child {
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", &format!("fanotify::tests::{test}"), "--nocapture"]).env(CHILD, what).env(CHILD_FILE, path);
    again.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

fn change(child: &mut Child, value: u8) {
    child.stdin.as_mut().unwrap().write_all(&[value]).unwrap();
    let out = child.stdout.as_mut().unwrap();
    let mut byte = [0];
    // The test harness says something first.
    while byte[0] != b'!' {
        out.read_exact(&mut byte).unwrap();
    }
}

/// The child's side.
fn serve(what: &str) {
    let file = File::options().read(true).write(true).open(std::env::var(CHILD_FILE).unwrap()).unwrap();
    // SAFETY: the file is as long as the mapping, and nobody shortens it.
    let mapping = unsafe {
        let (protection, flags) = (rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE, rustix::mm::MapFlags::SHARED);
        rustix::mm::mmap(std::ptr::null_mut(), 4096, protection, flags, &file, 0).unwrap().cast::<u8>()
    };
    let mut context = 0u64;
    if what == "aio" {
        // SAFETY: the mapping is this process's own; io_setup writes one word.
        unsafe {
            rustix::mm::munmap(mapping.cast(), 4096).unwrap();
            assert_eq!(libc::syscall(libc::SYS_io_setup, 8, &raw mut context), 0);
        }
    }
    for value in std::io::stdin().bytes() {
        let value = value.unwrap();
        if what == "aio" {
            submit(context, &file, &[value; 512]);
        } else {
            // SAFETY: within the mapping.
            unsafe { mapping.write_volatile(value) };
        }
        print!("!");
        std::io::stdout().flush().unwrap();
    }
}

/// `struct iocb` of linux/aio_abi.h with IOCB_CMD_PWRITE; waits for its end.
fn submit(context: u64, file: &File, bytes: &[u8]) {
    let mut request = [0u64; 8];
    request[2] = 1 | (file.as_raw_fd() as u64) << 32;
    (request[3], request[4]) = (bytes.as_ptr() as u64, bytes.len() as u64);
    let (mut event, mut list) = ([0u64; 4], request.as_mut_ptr());
    // SAFETY: request, its bytes and the event live until the call has ended, which is waited for.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_io_submit, context, 1, &raw mut list), 1);
        assert_eq!(libc::syscall(libc::SYS_io_getevents, context, 1, 1, event.as_mut_ptr(), 0), 1);
    }
    assert_eq!(event[2], bytes.len() as u64);
}

/// Two looks, and a change after each: the first one's pages are dirty already when the second store comes.
fn unseen_changes_are_found(test: &str, what: &str) {
    if std::env::var(CHILD).is_ok() {
        return serve(what);
    }
    for kind in KINDS {
        let Ok(lab) = mounted(kind) else { continue };
        fs::write(lab.path("x"), [0; 4096]).unwrap();
        let mut capture = FanotifyCapture::start(&lab.config(), "").unwrap();
        told(&mut capture);
        let (x, mut child) = (lab.node("x"), child(test, what, &lab.path("x")));
        for value in [1, 2, 3] {
            // So long after the last change that the slack does not cover it.
            let since = Timestamp(now().0 + 5_000_000_000);
            std::thread::sleep(Duration::from_millis(30));
            assert!(!swept(&mut capture, since).contains(&x), "{} {what} {value}: not changed yet", kind.as_str());
            change(&mut child, value);
            assert_eq!(told(&mut capture), [], "{} tells of it; the look is not needed any more", kind.as_str());
            assert_eq!(fs::read(lab.path("x")).unwrap()[0], value);
            assert!(swept(&mut capture, since).contains(&x), "{} {what} {value}", kind.as_str());
        }
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(nodes(&told(&mut capture)).contains(&x), "its close is told of");
    }
}

#[test]
fn stores_through_a_mapping_are_found() {
    unseen_changes_are_found("stores_through_a_mapping_are_found", "map");
}

#[test]
fn asynchronous_writes_are_found() {
    unseen_changes_are_found("asynchronous_writes_are_found", "aio");
}

#[test]
fn what_a_loop_device_and_a_container_write_is_found() {
    let Ok(lab) = mounted(FileSystem::Xfs) else { return };
    File::create(lab.path("disk")).unwrap().set_len(8 << 20).unwrap();
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(lab.path(name)).unwrap();
    }
    let mut capture = FanotifyCapture::start(&lab.config(), "").unwrap();
    let path = |name: &str| lab.path(name).display().to_string();
    let output = Command::new("losetup").args(["-f", "--show", &path("disk")]).output().unwrap();
    let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let since = now();
    let written = run("dd", &["if=/dev/urandom", &format!("of={device}"), "bs=4096", "count=4", "oflag=direct", "conv=notrunc"]);
    let found = swept(&mut capture, since);
    run("losetup", &["-d", &device]).unwrap();
    written.unwrap();
    assert!(found.contains(&lab.node("disk")), "{found:?}");
    let options = format!("lowerdir={},upperdir={},workdir={}", path("lower"), path("upper"), path("work"));
    if let Err(reason) = run("mount", &["-t", "overlay", "overlay", "-o", &options, &path("merged")]) {
        return eprintln!("SKIPPED: no overlayfs: {reason}");
    }
    let since = now();
    fs::create_dir_all(lab.path("merged/deep/er")).unwrap();
    fs::write(lab.path("merged/deep/er/file"), b"x").unwrap();
    let found = swept(&mut capture, since);
    let expect = ["upper/deep", "upper/deep/er", "upper/deep/er/file"].map(|name| lab.node(name));
    run("umount", &[&path("merged")]).unwrap();
    assert!(expect.iter().all(|node| found.contains(node)), "{found:?}");
}
