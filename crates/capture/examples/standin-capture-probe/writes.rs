//! Every kind of write that one process can make, each into a file of its own.
#![allow(unsafe_code)] // test program: raw system calls with fixed arguments

use crate::{opaque, queued};
use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{Seek, Write},
    os::fd::AsRawFd,
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink},
    path::Path,
    process::Command,
    ptr,
};

fn random(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..bytes).map(next).collect()
}

fn check(what: &str, result: i64) {
    if result < 0 {
        println!("  write: {what}: {}", std::io::Error::last_os_error());
    }
}

macro_rules! sys {
    ($name:ident ( $($argument:expr),* )) => {
        // SAFETY: arguments are live buffers and descriptors of this function.
        check(stringify!($name), unsafe { libc::$name($($argument),*) } as i64)
    };
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("open")
}

pub fn all(directory: &Path) {
    let at = |name: &str| directory.join(name);
    let data = random(7, 8 << 20);
    buffered(&at, &data);
    failing(&at, &data);
    processes(&at);
    direct(&at, &data);
    queued(&at, &data);
    pipes(&at, &data);
    space(&at, &data);
    mapped(&at, &data);
    names(directory);
    attributes(&at);
    opaque::projects(&at);
}

fn buffered(at: &dyn Fn(&str) -> std::path::PathBuf, data: &[u8]) {
    let mut file = open(&at("write"));
    for length in (1..90_000).step_by(7_777) {
        file.write_all(&data[length..2 * length]).unwrap();
    }
    open(&at("large")).write_all(data).unwrap();
    let file = open(&at("pwrite"));
    for i in 0..50 {
        file.write_all_at(&data[i * 5_000..][..3_000 + i], (i * 37 % 50 * 2_777) as u64).unwrap();
    }
    let vector = [
        libc::iovec { iov_base: data.as_ptr() as *mut _, iov_len: 5_001 },
        libc::iovec { iov_base: data[99_000..].as_ptr() as *mut _, iov_len: 12_345 },
    ];
    sys!(pwritev2(file.as_raw_fd(), vector.as_ptr(), 2, 200_000, libc::RWF_DSYNC));
    sys!(pwritev2(file.as_raw_fd(), vector.as_ptr(), 2, -1, libc::RWF_APPEND));
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .custom_flags(libc::O_SYNC)
        .open(at("sync"))
        .unwrap()
        .write_all(&data[..100_000])
        .unwrap();
    let appenders: Vec<_> = (0..4u8)
        .map(|who| {
            let path = at("append");
            std::thread::spawn(move || {
                let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
                (0..100).for_each(|i| file.write_all(&vec![b'a' + who; 100 + i]).unwrap());
            })
        })
        .collect();
    appenders.into_iter().for_each(|thread| thread.join().unwrap());
    // The source of this write ends in the middle.
    let file = open(&at("short"));
    // SAFETY: a private anonymous mapping whose second half is taken away again.
    unsafe {
        let memory =
            libc::mmap(ptr::null_mut(), 65_536, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        ptr::copy_nonoverlapping(data.as_ptr(), memory.cast(), 65_536);
        libc::munmap(memory.add(32_768), 32_768);
        libc::write(file.as_raw_fd(), memory.add(100), 60_000);
    }
    // On btrfs it fails before its first byte and moves the time all the same, which nobody tells where the file is the upper one of an overlay.
    file.write_all_at(b"behind it", 40_000).unwrap();
    let file = open(&at("truncate"));
    file.write_all_at(&data[..50_000], 0).unwrap();
    file.set_len(12_345).unwrap();
    file.write_all_at(b"behind a gap", 30_000).unwrap();
    file.set_len(40_000).unwrap();
}

fn direct(at: &dyn Fn(&str) -> std::path::PathBuf, data: &[u8]) {
    let mut memory = vec![0u8; (1 << 20) + 8_192];
    let skew = memory.as_ptr().align_offset(4_096);
    let aligned = &mut memory[skew..][..(1 << 20) + 4_096];
    aligned.copy_from_slice(&data[..(1 << 20) + 4_096]);
    let file =
        OpenOptions::new().create(true).read(true).write(true).truncate(true).custom_flags(libc::O_DIRECT).open(at("direct")).unwrap();
    file.write_all_at(&aligned[..1 << 20], 0).unwrap();
    file.write_all_at(&aligned[4_096..][..65_536], 4_096 * 7).unwrap();
    file.write_all_at(&aligned[8_192..][..4_096], 4_096 * 300).unwrap();
    open(&at("direct")).write_all_at(b"buffered into the same file", 5_000).unwrap();
    file.write_all_at(&aligned[..8_192], 4_096 * 2).unwrap();
}

/// Behind the end, from nowhere: xfs has zeroed the rest of the last block by then.
fn failing(at: &dyn Fn(&str) -> std::path::PathBuf, data: &[u8]) {
    let file = open(&at("failing"));
    file.write_all_at(&data[..5_000], 0).unwrap();
    // SAFETY: the kernel refuses an address that is not the process's.
    let written = unsafe { libc::pwrite(file.as_raw_fd(), ptr::without_provenance(8), 100, 50_000) };
    assert!(written < 0, "a write from nowhere went well");
    // What a failed write through an overlayfs does to the time is not told.
    file.write_all_at(b"y", 0).unwrap();
}

/// O_APPEND from many processes.
fn processes(at: &dyn Fn(&str) -> std::path::PathBuf) {
    let own = std::env::current_exe().unwrap();
    let start = |_| Command::new(&own).arg("append").arg(at("appended-by-processes")).arg("150").spawn().unwrap();
    let appenders: Vec<_> = (0..6).map(start).collect();
    appenders.into_iter().for_each(|mut process| assert!(process.wait().unwrap().success()));
}

/// Memory for direct I/O.
fn aligned(data: &[u8]) -> (Vec<u8>, usize) {
    let mut memory = vec![0u8; data.len() + 4_096];
    let skew = memory.as_ptr().align_offset(4_096);
    memory[skew..][..data.len()].copy_from_slice(data);
    (memory, skew)
}

/// AIO and io_uring, through the page cache and around it.
fn queued(at: &dyn Fn(&str) -> std::path::PathBuf, data: &[u8]) {
    let (memory, skew) = aligned(&data[..256 << 10]);
    let buffer = &memory[skew..][..256 << 10];
    for (kind, flags) in [("buffered", 0), ("direct", libc::O_DIRECT)] {
        let open = |name: String| {
            OpenOptions::new().create(true).truncate(true).read(true).write(true).custom_flags(flags).open(at(&name)).unwrap()
        };
        queued::aio(&open(format!("aio-{kind}")), buffer, 8_192, &[0, 65_536, 8_192, 200_704, 16_384, 131_072]);
        let file = open(format!("io_uring-{kind}"));
        let ring = queued::Uring::new(&file, buffer);
        ring.write(&[(&buffer[..65_536], 0), (&buffer[4_096..][..8_192], 65_536), (&buffer[8_192..][..4_096], 409_600)]);
        ring.write(&[(&buffer[131_072..][..131_072], 4_096), (&buffer[4_096..][..4_096], 405_504)]);
    }
}

/// What any file system takes, a network's too.
pub fn simple(directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    let at = |name: &str| directory.join(name);
    let data = random(11, 4 << 20);
    open(&at("large")).write_all(&data).unwrap();
    let file = open(&at("pieces"));
    for i in 0..60 {
        file.write_all_at(&data[i * 6_000..][..2_500 + i], (i * 41 % 60 * 3_001) as u64).unwrap();
    }
    file.sync_all().unwrap();
    file.set_len(100_001).unwrap();
    OpenOptions::new().append(true).create(true).open(at("large")).unwrap().write_all(b"appended").unwrap();
    let file = open(&at("mapped"));
    file.set_len(200_000).unwrap();
    // SAFETY: a shared mapping as long as the file, written within it, and unmapped.
    unsafe {
        let memory = libc::mmap(ptr::null_mut(), 200_000, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd(), 0).cast();
        ptr::copy_nonoverlapping(data.as_ptr(), memory, 150_000);
        libc::msync(memory.cast(), 200_000, libc::MS_SYNC);
        libc::munmap(memory.cast(), 200_000);
    }
    fs::write(at("replaced"), "old").unwrap();
    fs::write(at("new"), "new").unwrap();
    fs::rename(at("new"), at("replaced")).unwrap();
    fs::create_dir(at("folder")).unwrap();
    fs::rename(at("pieces"), at("folder/pieces")).unwrap();
    fs::write(at("removed"), "x").unwrap();
    fs::remove_file(at("removed")).unwrap();
    fs::set_permissions(at("replaced"), fs::Permissions::from_mode(0o604)).unwrap();
}

fn pipes(at: &dyn Fn(&str) -> std::path::PathBuf, data: &[u8]) {
    let source = File::open(at("large")).unwrap();
    let target = open(&at("sendfile"));
    sys!(sendfile(target.as_raw_fd(), source.as_raw_fd(), ptr::null_mut(), 1_000_000));
    let mut ends = [0; 2];
    sys!(pipe(ends.as_mut_ptr()));
    let target = open(&at("splice"));
    for _ in 0..10 {
        sys!(splice(source.as_raw_fd(), ptr::null_mut(), ends[1], ptr::null_mut(), 50_000, 0));
        sys!(splice(ends[0], ptr::null_mut(), target.as_raw_fd(), ptr::null_mut(), 50_000, 0));
    }
    let vector = libc::iovec { iov_base: data[36_864..].as_ptr() as *mut _, iov_len: 40_000 };
    let target = open(&at("vmsplice"));
    sys!(vmsplice(ends[1], &vector, 1, 0));
    sys!(splice(ends[0], ptr::null_mut(), target.as_raw_fd(), ptr::null_mut(), 40_000, 0));
    let target = open(&at("copy_file_range"));
    let (mut from, mut to) = (0, 0);
    sys!(copy_file_range(source.as_raw_fd(), &mut from, target.as_raw_fd(), &mut to, 500_000, 0));
    (from, to) = (123, 777_777);
    sys!(copy_file_range(source.as_raw_fd(), &mut from, target.as_raw_fd(), &mut to, 5_000, 0));
    (from, to) = (1 << 20, 4 << 20);
    sys!(copy_file_range(source.as_raw_fd(), &mut from, target.as_raw_fd(), &mut to, 1 << 20, 0));
    target.write_all_at(b"after the copy", 4 << 20).unwrap();
    let target = open(&at("clone"));
    // SAFETY: FICLONE takes a descriptor. Fails on ext4, which is fine.
    if unsafe { libc::ioctl(target.as_raw_fd(), 0x4004_9409, source.as_raw_fd()) } == 0 {
        target.write_all_at(b"into the clone", 123_456).unwrap();
    }
}

fn space(at: &dyn Fn(&str) -> std::path::PathBuf, data: &[u8]) {
    let file = open(&at("fallocate"));
    file.write_all_at(&data[..400_000], 0).unwrap();
    for (mode, offset, length) in [
        (3, 5_000, 20_000),
        (0x10, 100_000, 9_999),
        (0x11, 390_000, 50_000),
        (0, 500_000, 4_096),
        (8, 40_960, 8_192),
        (0x20, 81_920, 12_288),
        (1, 900_000, 9_000),
        // Unshare: a copy of what a clone shares. Only xfs knows it.
        (0x40, 0, 65_536),
    ] {
        let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) }; // SAFETY: plain numbers
        if result != 0 {
            println!("  write: fallocate {mode:#x}: {}", std::io::Error::last_os_error());
        }
    }
    file.write_all_at(b"after all that", 300_000).unwrap();
    // With an end that is content, inside of a block; the second has it stored through a mapping each time.
    for name in ["shifted", "shifted-mapped"] {
        let file = open(&at(name));
        file.write_all_at(&data[..100_001], 0).unwrap();
        for (mode, offset, length) in [(8, 4_096, 8_192), (0x20, 8_192, 12_288), (0x20, 98_304, 4_096), (8, 65_536, 4_096)] {
            if name == "shifted-mapped" {
                store_at_end(&file);
            }
            sys!(fallocate(file.as_raw_fd(), mode, offset, length));
        }
    }
}

fn store_at_end(file: &File) {
    let size = file.metadata().unwrap().len() as usize;
    // SAFETY: a shared mapping as long as the file; only written within it, and unmapped at the end.
    unsafe {
        let memory: *mut u8 =
            libc::mmap(ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd(), 0).cast();
        ptr::write_bytes(memory.add(size - 50), b'e', 50);
        libc::munmap(memory.cast(), size);
    }
}

fn mapped(at: &dyn Fn(&str) -> std::path::PathBuf, data: &[u8]) {
    for (name, synced) in [("mapped-synced", true), ("mapped", false)] {
        let file = open(&at(name));
        file.set_len((1 << 20) + 100).unwrap();
        // SAFETY: a shared mapping as long as the file; only written within it, and unmapped at the end.
        unsafe {
            let bytes = (1 << 20) + 100;
            let memory: *mut u8 =
                libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd(), 0).cast();
            ptr::copy_nonoverlapping(data.as_ptr(), memory.add(5_000), 300_000);
            file.write_all_at(b"written beside the mapping", 6_000).unwrap();
            ptr::copy_nonoverlapping(data.as_ptr(), memory.add(1 << 20), 100);
            if synced {
                libc::msync(memory.cast(), bytes, libc::MS_SYNC);
            }
            ptr::write_bytes(memory.add(950_000), b'y', 5_000);
            ptr::write_bytes(memory.add(5_001), b'x', 5);
            libc::munmap(memory.cast(), bytes);
        }
    }
}

fn names(directory: &Path) {
    let at = |name: &str| directory.join(name);
    fs::create_dir_all(at("d1/d2")).unwrap();
    for name in ["a", "b", "c", "e", "f", "victim"] {
        fs::write(at("d1").join(name), name.repeat(1_000)).unwrap();
    }
    let rename = |from: &str, to: &str, flags: u32| {
        let path = |name: &str| CString::new(at(name).to_str().unwrap()).unwrap();
        let (from, to) = (path(from), path(to));
        sys!(renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags));
    };
    rename("d1/a", "d1/d2/a2", 0);
    rename("d1/b", "d1/victim", 0);
    rename("d1/c", "d1/c2", libc::RENAME_NOREPLACE);
    rename("d1/e", "d1/d2", libc::RENAME_EXCHANGE);
    rename("d1/d2", "d1/plain", 0);
    fs::hard_link(at("d1/f"), at("d1/f-link")).unwrap();
    fs::remove_file(at("d1/f")).unwrap();
    fs::write(at("d1/f-link"), "through the other name").unwrap();
    symlink("short/target", at("d1/link")).unwrap();
    symlink("x/".repeat(500), at("d1/long-link")).unwrap();
    // Too long for xfs, which stops at 1,023.
    let _ = symlink("y/".repeat(2_000), at("d1/longer-link"));
    let path = CString::new(at("d1/device").to_str().unwrap()).unwrap();
    sys!(mknod(path.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 3)));
    let path = CString::new(at("d1/fifo").to_str().unwrap()).unwrap();
    sys!(mkfifo(path.as_ptr(), 0o640));
    fs::create_dir(at("gone")).unwrap();
    fs::write(at("gone/file"), "x").unwrap();
    fs::remove_dir_all(at("gone")).unwrap();
    // Open while its last name goes; then written.
    let mut file = File::create(at("unlinked")).unwrap();
    fs::remove_file(at("unlinked")).unwrap();
    file.write_all(b"nobody will see this").unwrap();
    match OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(directory) {
        Ok(file) => without_a_name(file, &at("was-unnamed")),
        // overlayfs before 6.3
        Err(error) => println!("  write: O_TMPFILE: {error}"),
    }
    let many = at("many");
    fs::create_dir(&many).unwrap();
    for i in 0..400 {
        fs::write(many.join(format!("file-{i}")), vec![i as u8; i * 10]).unwrap();
        if i % 3 == 0 {
            fs::remove_file(many.join(format!("file-{i}"))).unwrap();
        }
    }
}

pub fn without_a_name(mut file: File, name: &Path) {
    file.write_all(b"first without a name").unwrap();
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let to = CString::new(name.to_str().unwrap()).unwrap();
    sys!(linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::AT_SYMLINK_FOLLOW));
    file.rewind().unwrap();
    file.write_all(b"then with one").unwrap();
}

fn attributes(at: &dyn Fn(&str) -> std::path::PathBuf) {
    let path = at("attributes");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).unwrap();
    std::os::unix::fs::chown(&path, Some(1_000), Some(1_001)).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    file.set_times(fs::FileTimes::new().set_modified(time).set_accessed(time)).unwrap();
    for (name, bytes) in [("user.empty", 0), ("user.small", 3), ("user.large", 3_000), ("user.removed", 10)] {
        rustix::fs::setxattr(&path, name, &random(3, bytes), rustix::fs::XattrFlags::empty()).unwrap();
    }
    rustix::fs::removexattr(&path, "user.removed").unwrap();
    let folder = at("with-default-acl");
    fs::create_dir(&folder).unwrap();
    fs::write(at("acl-removed"), "x").unwrap();
    fs::write(at("capable"), "x").unwrap();
    let run = |words: &[&str], path: &Path| {
        if !Command::new(words[0]).args(&words[1..]).arg(path).status().is_ok_and(|status| status.success()) {
            println!("  write: {words:?} failed");
        }
    };
    run(&["setfacl", "-m", "u:1000:rw"], &path);
    run(&["setfacl", "-m", "g:5:r,u:7:x"], &path);
    run(&["setfacl", "-m", "u:1000:rw"], &at("acl-removed"));
    run(&["setfacl", "-b"], &at("acl-removed"));
    run(&["setfacl", "-d", "-m", "u:1000:rwx,g:6:r"], &folder);
    run(&["setcap", "cap_net_raw+ep"], &at("capable"));
    run(&["chattr", "+dAS", "--"], &path);
    run(&["chattr", "-S", "--"], &path);
    fs::write(at("immutable"), "stays").unwrap();
    run(&["chattr", "+i", "--"], &at("immutable"));
    run(&["chattr", "-i", "--"], &at("immutable"));
    fs::write(at("append-only"), "grows").unwrap();
    run(&["chattr", "+a", "--"], &at("append-only"));
}
