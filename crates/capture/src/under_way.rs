//! Calls that began before capture did: their beginning was not seen, and their effect may come after the mirror has read the file.
//!
//! Only of calls that change content without the page cache (`fallocate`, clone, copy, what `bpf/opaque.h` sees): a write is captured page by page, whenever it began. What is asked is
//! what each task of the machine waits in; a call that never waits has ended long before the self-test has.

use crate::processes;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// Tasks inside such a call right now.
pub fn tasks(is_such: impl Fn(u64, u64) -> bool) -> Vec<PathBuf> {
    let tasks = processes::all().flat_map(|process| processes::entries(&process.join("task")));
    tasks.filter(|task| is_inside(task, &is_such)).collect()
}

/// Waits until all of them have left it; the one that has not.
pub fn wait(tasks: &[PathBuf], limit: Duration, is_such: impl Fn(u64, u64) -> bool) -> Option<PathBuf> {
    let begun = Instant::now();
    for task in tasks {
        while is_inside(task, &is_such) {
            if begun.elapsed() >= limit {
                return Some(task.clone());
            }
            std::thread::sleep(POLL);
        }
    }
    None
}

/// By number and second argument, as on x86-64.
pub fn changes_without_page_cache(number: u64, second: u64) -> bool {
    /// linux/fs.h
    const FICLONE: u64 = 0x4004_9409;
    const FICLONERANGE: u64 = 0x4020_940d;
    let [fallocate, copy, ioctl] = [libc::SYS_fallocate, libc::SYS_copy_file_range, libc::SYS_ioctl].map(|number| number as u64);
    number == fallocate || number == copy || number == ioctl && (matches!(second, FICLONE | FICLONERANGE) || is_opaque(second))
}

/// By type and number, whatever the size of the argument: EXT4_IOC_MOVE_EXT; XFS_IOC_SWAPEXT, EXCHANGE_RANGE, COMMIT_RANGE and ATTRMULTI_BY_HANDLE;
/// BTRFS_IOC_ENCODED_WRITE; FS_IOC_ENABLE_VERITY.
fn is_opaque(request: u64) -> bool {
    matches!(request & 0xffff, 0x660f | 0x586d | 0x5881 | 0x5883 | 0x587b | 0x9440 | 0x6685)
}

/// A task that has ended, or that runs, waits in nothing.
fn is_inside(task: &Path, is_such: &impl Fn(u64, u64) -> bool) -> bool {
    let text = fs::read_to_string(task.join("syscall")).unwrap_or_default();
    parse(&text).is_some_and(|(number, second)| is_such(number, second))
}

/// `285 0x3 0x0 0x0 0x1000 0x0 0x0 0x7ffd 0x7f12`: the number, six arguments, stack and instruction pointer; or `running`, or `-1` and the two.
fn parse(text: &str) -> Option<(u64, u64)> {
    let mut fields = text.split_ascii_whitespace();
    let number = fields.next()?.parse().ok()?;
    let second = fields.nth(1)?.strip_prefix("0x")?;
    Some((number, u64::from_str_radix(second, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse("285 0x3 0x1 0x0 0x1000 0x0 0x0 0x7ffd 0x7f12\n"), Some((285, 1)));
        for text in ["running\n", "-1 0x7ffd 0x7f12\n", "", "285\n", "285 0x3\n"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert!(changes_without_page_cache(285, 0) && changes_without_page_cache(326, 0) && changes_without_page_cache(16, 0x4004_9409));
        // XFS_IOC_SWAPEXT
        assert!(changes_without_page_cache(16, 0xc0c0_586d));
        assert!(!changes_without_page_cache(16, 0x5401) && !changes_without_page_cache(1, 0x4004_9409));
    }

    #[test]
    fn a_task_is_found_inside_its_call_and_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let task = PathBuf::from(format!("/proc/{0}/task/{0}", child.id()));
        let sleeps = |number: u64, _: u64| number == libc::SYS_clock_nanosleep as u64;
        let begun = Instant::now();
        while !tasks(sleeps).contains(&task) {
            assert!(begun.elapsed() < Duration::from_secs(60));
            std::thread::sleep(POLL);
        }
        let tasks = [task.clone()];
        let still = wait(&tasks, Duration::from_millis(50), sleeps);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((still, wait(&tasks, Duration::from_secs(60), sleeps)), (Some(task), None));
    }
}
