//! Calls that change a node in a way that no record tells (`bpf/opaque.h`), and projects. By their system calls, because no library of the workspace has them.
//!
//! Each call is seen to have had its effect: a case that changes nothing would prove nothing.
#![allow(unsafe_code)] // test program: raw system calls with structures laid out by hand

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io,
    os::fd::AsRawFd,
    os::unix::ffi::OsStrExt,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

const EXT4: i64 = 0xef53;
const XFS: i64 = 0x5846_5342;
const BTRFS: i64 = 0x9123_683e;

pub fn file_system(path: &Path) -> i64 {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a path that ends with zero, and room for the answer, for which zeros are valid.
    unsafe {
        let mut about: libc::statfs = std::mem::zeroed();
        assert_eq!(libc::statfs(path.as_ptr(), &raw mut about), 0);
        about.f_type
    }
}

/// An ioctl whose argument is a structure of `words`.
fn request(file: &File, number: u64, words: &mut [u64]) -> io::Result<()> {
    // SAFETY: the callers pass as much memory as the request's structure has, and pointers in it to what lives longer.
    match unsafe { libc::ioctl(file.as_raw_fd(), number as _, words.as_mut_ptr()) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn made(path: &Path, byte: u8, bytes: usize) -> File {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    file.write_all_at(&vec![byte; bytes], 0).unwrap();
    file.sync_all().unwrap();
    file
}

/// As it is on the disk: what a call has put behind the page cache shows only once the cache has let go.
fn first_byte(path: &Path) -> u8 {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    fs::read(path).unwrap()[0]
}

/// `must_exchange`: the file system and the kernel have XFS_IOC_EXCHANGE_RANGE.
pub fn all(directory: &Path, must_exchange: bool) {
    fs::create_dir_all(directory).unwrap();
    let at = |name: &str| directory.join(name);
    match file_system(directory) {
        EXT4 => {
            move_extents(&at("moved"), &at("donor"));
            enable_verity(&at("verity"));
        }
        XFS => {
            set_attributes_by_handle(&at("by-handle"));
            if must_exchange {
                exchange(&at("exchanged"), &at("other"));
            }
        }
        BTRFS => {
            encoded_write(&at("encoded"));
            enable_verity(&at("verity"));
        }
        other => panic!("no calls are known for file system {other:#x}"),
    }
}

/// `struct move_extent`: reserved and donor's descriptor, start, donor's start, blocks, blocks that were moved.
fn move_extents(path: &Path, donor: &Path) {
    let (file, other) = (made(path, b'o', 64 << 10), made(donor, b'd', 64 << 10));
    request(&file, 0xc028_660f, &mut [(other.as_raw_fd() as u64) << 32, 0, 0, 16, 0]).expect("EXT4_IOC_MOVE_EXT");
    file.sync_all().unwrap();
    drop((file, other));
    assert_eq!(first_byte(path), b'o');
    assert_ne!(first_byte(donor), b'd', "the donor has what was in the other's blocks");
}

/// `struct fsverity_enable_arg`: version and algorithm (SHA-256), block size, and no salt, no signature.
fn enable_verity(path: &Path) {
    drop(made(path, b'v', 300_000));
    let mut argument = [0; 16];
    (argument[0], argument[1]) = (1 | 1 << 32, 4096);
    request(&File::open(path).unwrap(), 0x4080_6685, &mut argument).expect("FS_IOC_ENABLE_VERITY");
    assert!(OpenOptions::new().write(true).open(path).is_err(), "with verity nothing can be written any more");
}

/// `struct xfs_exchange_range`: descriptor, offsets, length, flags.
fn exchange(path: &Path, other: &Path) {
    let (file, second) = (made(path, b'a', 64 << 10), made(other, b'b', 64 << 10));
    request(&file, 0x4028_5881, &mut [second.as_raw_fd() as u64, 0, 0, 64 << 10, 0]).expect("XFS_IOC_EXCHANGE_RANGE");
    drop((file, second));
    assert_eq!((first_byte(path), first_byte(other)), (b'b', b'a'));
}

/// A handle as xfs gives it out, then one attribute set and another removed by it.
fn set_attributes_by_handle(path: &Path) {
    let file = made(path, b'h', 10);
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    rustix::fs::setxattr(path, "user.removed", b"old", rustix::fs::XattrFlags::empty()).unwrap();
    let (mut handle, mut length) = ([0u64; 8], 0u32);
    // struct xfs_fsop_handlereq: descriptor, path, flags, handle in with its length, handle out with the place for its length.
    let mut asked = [0, name.as_ptr() as u64, 0, 0, 0, handle.as_mut_ptr() as u64, &raw mut length as u64];
    request(&file, 0xc038_5869, &mut asked).expect("XFS_IOC_PATH_TO_HANDLE");
    let (set, removed, value) = (c"by-handle", c"removed", b"value");
    // struct xfs_attr_multiop: opcode (2 sets, 3 removes) and error, name, value, length and flags.
    let mut operations = [[2, set.as_ptr() as u64, value.as_ptr() as u64, value.len() as u64], [3, removed.as_ptr() as u64, 0, 0]];
    let mut argument = [0, 0, 0, handle.as_ptr() as u64, u64::from(length), 0, 0, operations.len() as u64, operations.as_mut_ptr() as u64];
    let folder = File::open(path.parent().unwrap()).unwrap();
    request(&folder, 0x4048_587b, &mut argument).expect("XFS_IOC_ATTRMULTI_BY_HANDLE");
    let mut found = [0; 16];
    assert_eq!(rustix::fs::getxattr(path, "user.by-handle", &mut found).ok(), Some(value.len()), "{operations:x?}");
    assert!(rustix::fs::getxattr(path, "user.removed", &mut found).is_err());
}

/// 8,192 times "x" as zlib has it.
const ENCODED: [u8; 31] =
    [120, 218, 237, 193, 1, 13, 0, 0, 0, 194, 160, 218, 143, 111, 14, 55, 160, 0, 0, 0, 0, 0, 0, 0, 128, 119, 3, 177, 59, 0, 226];

/// `struct btrfs_ioctl_encoded_io_args`: vector and its count, offset, flags, length, length and offset without encoding, compression (1 is zlib).
fn encoded_write(path: &Path) {
    let file = made(path, b'e', 16_384);
    let vector = libc::iovec { iov_base: ENCODED.as_ptr() as *mut _, iov_len: ENCODED.len() };
    let mut argument = [0; 16];
    argument[..8].copy_from_slice(&[&raw const vector as u64, 1, 0, 0, 8192, 8192, 0, 1]);
    request(&file, 0x4080_9440, &mut argument).expect("BTRFS_IOC_ENCODED_WRITE");
    assert_eq!(first_byte(path), b'x');
}

/// Sets XFS_SB_FEAT_INCOMPAT_EXCHRANGE in the superblock of an xfs that is not mounted: the tools of Debian 12 know nothing of it.
pub fn allow_exchange(device: &Path) {
    let device = OpenOptions::new().read(true).write(true).open(device).unwrap();
    let mut sector = [0; 512];
    device.read_exact_at(&mut sector, 0).unwrap();
    assert_eq!(&sector[..4], b"XFSB");
    sector[219] |= 0x40;
    sector[224..228].fill(0);
    let step = |sum: u32, _| if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
    let sum = sector.iter().fold(u32::MAX, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step));
    sector[224..228].copy_from_slice(&(!sum).to_le_bytes());
    device.write_all_at(&sector, 0).unwrap();
    device.sync_all().unwrap();
}

/// Which project a file or directory belongs to.
pub fn project(file: &File) -> Option<u32> {
    let mut words = [0; 4];
    request(file, 0x801c_581f, &mut words).ok().map(|()| (words[1] >> 32) as u32)
}

/// Files that belong to a project: by themselves, and because their directory gives its own on.
pub fn projects(at: &dyn Fn(&str) -> std::path::PathBuf) {
    let set = |path: &Path, project: u64, flags: u64| {
        // struct fsxattr: flags, extent size; extents, project; extent size of copies.
        request(&File::open(path).unwrap(), 0x401c_5820, &mut [flags, project << 32, 0, 0])
    };
    fs::write(at("of-a-project"), "x").unwrap();
    match set(&at("of-a-project"), 42, 0) {
        Ok(()) => {}
        Err(error) if matches!(file_system(&at("")), EXT4 | XFS) => panic!("no project: {error}"),
        Err(error) => return println!("  write: projects: {error}"),
    }
    fs::write(at("of-no-project-any-more"), "x").unwrap();
    set(&at("of-no-project-any-more"), u64::from(u32::MAX) - 1, 0).unwrap();
    set(&at("of-no-project-any-more"), 0, 0).unwrap();
    let folder = at("project");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("before"), "x").unwrap();
    // FS_XFLAG_NODUMP and FS_XFLAG_PROJINHERIT
    set(&folder, 7, 0x80 | 0x200).unwrap();
    fs::write(folder.join("inherits"), "x").unwrap();
    fs::create_dir(folder.join("folder")).unwrap();
    fs::write(folder.join("folder/below"), "x").unwrap();
    std::os::unix::fs::symlink("nowhere", folder.join("link")).unwrap();
    match OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(&folder) {
        Ok(file) => crate::writes::without_a_name(file, &folder.join("was-unnamed")),
        // overlayfs before 6.3
        Err(error) => println!("  write: O_TMPFILE: {error}"),
    }
    set(&folder, 8, 0).unwrap();
    fs::write(folder.join("does-not-inherit"), "x").unwrap();
}
