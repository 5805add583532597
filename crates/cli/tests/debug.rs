//! The offline debuggers as an operator runs them, on sound files and on files that are damaged in several ways.

use serde_json::Value;
use standin_journal::{Journal, JournalOptions, Queue, QueueOptions, Sealer, Segment};
use standin_model::*;
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn node(inode: u64) -> NodeId {
    NodeId { volume: VolumeId(0), subvolume: 0, inode, generation: 1 }
}

/// Two items: a name, and something written under it.
fn segment(first: u64) -> Segment {
    let mut sealer = Sealer::new(1, OpSeq(first), 0);
    let attributes = Attributes { mode: 0o644, owner: 1000, group: 1000, modified: Timestamp(5) };
    let name = Name::new(format!("report-{first}\u{1b}")).unwrap();
    sealer.push(Operation::Create { parent: node(2), name, node: node(first), attributes }, Timestamp(7));
    sealer.push(Operation::Write { node: node(first), offset: ByteOffset(0), data: format!("content {first}").into_bytes() }, Timestamp(8));
    sealer.seal().unwrap()
}

/// Items 1 to 20 in several files.
fn journal(dir: &Path) -> Vec<PathBuf> {
    let mut journal = Journal::open(dir, JournalOptions { file_bytes_max: 600, bytes_max: 1 << 20 }).unwrap();
    for first in (1..20).step_by(2) {
        journal.append(&segment(first)).unwrap();
        journal.sync().unwrap();
    }
    files(dir)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = paths.filter(|path| path.extension().is_some()).collect();
    files.sort();
    files
}

fn smash(path: &Path, at: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"smashed!", at).unwrap();
}

fn cut(path: &Path, len: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

fn len(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

struct Said {
    code: i32,
    out: String,
    err: String,
}

fn standin(words: &[&str], paths: &[&Path]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_standin")).arg("debug").args(words).args(paths).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

impl Said {
    #[track_caller]
    fn has(&self, code: i32, parts: &[&str]) -> &Said {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        for part in parts {
            assert!(self.out.contains(part) || self.err.contains(part), "{part:?} is not in\n{}{}", self.out, self.err);
        }
        self
    }

    /// Every line is JSON; the last one is the status.
    fn json(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }
}

#[test]
fn a_sound_journal() {
    let dir = TempDir::new().unwrap();
    let files = journal(dir.path());
    assert!(files.len() > 2);
    standin(&["journal", "verify"], &[dir.path()]).has(0, &["status: sound", "10 segments, 20 items from 1 to 20"]);
    let dump = standin(&["journal", "dump", "--items"], &[dir.path()]);
    dump.has(0, &["at 48: 1 to 2, epoch 1, 2 items", "2 write vol0:1.00000001 9 bytes at 0: content 1"]);
    assert!(!dump.out.contains('\u{1b}') && dump.out.contains("report-1\\u{1b}"), "no escape sequence of a source reaches a terminal");
    standin(&["journal", "dump"], &[&files[1]]).has(0, &["status: sound; 1 files"]);
    let lines = standin(&["--output", "json", "journal", "dump", "--items"], &[dir.path()]).json();
    assert_eq!(lines.last().unwrap()["status"], "sound");
    assert_eq!(lines.iter().filter(|line| line["kind"] == "create").count(), 10);
}

#[test]
fn damage_of_every_kind_is_told_with_its_place_and_what_is_left() {
    let verify = |change: &dyn Fn(&[PathBuf])| {
        let dir = TempDir::new().unwrap();
        change(&journal(dir.path()));
        (standin(&["journal", "verify"], &[dir.path()]), dir)
    };
    // The content of a segment.
    let (said, _dir) = verify(&|files| smash(&files[0], len(&files[0]) - 20));
    said.has(1, &["DAMAGE at", "bytes skipped", "9 segments, 18 items", "STANDIN-E2001", "next: standin debug journal dump "]);
    // A mark: its segment is read all the same.
    let (said, _dir) = verify(&|files| smash(&files[0], 48));
    said.has(1, &["DAMAGE at 48", "item 1 was expected: record mark has a wrong checksum", "10 segments, 20 items"]);
    // The header of a file.
    let (said, _dir) = verify(&|files| smash(&files[0], 0));
    said.has(1, &["DAMAGE at 0", "file header is not one", "10 segments, 20 items"]);
    // A file that is gone, one that is empty, one that is a copy of another.
    let (said, _dir) = verify(&|files| fs::remove_file(&files[1]).unwrap());
    said.has(1, &["files are missing between item"]);
    let (said, _dir) = verify(&|files| cut(&files[1], 0));
    said.has(1, &["DAMAGE at 0"]);
    let (said, _dir) = verify(&|files| assert!(fs::copy(&files[0], &files[1]).unwrap() > 0));
    said.has(1, &["not what its name says"]);
    // The end of an older file is damage; of the newest, what a crash leaves.
    let (said, _dir) = verify(&|files| cut(&files[0], len(&files[0]) - 5));
    said.has(1, &["DAMAGE at", "file ends in the middle"]);
    let (said, dir) = verify(&|files| cut(files.last().unwrap(), len(files.last().unwrap()) - 5));
    said.has(0, &["torn end at", "status: sound but for a torn end"]);
    let said = standin(&["--output", "json", "journal", "verify"], &[dir.path()]);
    assert_eq!(said.json().last().unwrap()["status"], "torn");
}

#[test]
fn what_is_no_journal_is_refused_with_a_code() {
    let dir = TempDir::new().unwrap();
    standin(&["journal", "verify"], &[&dir.path().join("missing")]).has(1, &["STANDIN-E2006", "No such file", "next: ls -la"]);
    let garbage = dir.path().join("garbage");
    fs::write(&garbage, [0x5a; 5000]).unwrap();
    standin(&["journal", "dump"], &[&garbage]).has(1, &["DAMAGE at 0", "0 segments"]);
    standin(&["journal", "verify"], &[dir.path()]).has(0, &["0 files", "from none to none"]);
    standin(&["journal", "verify"], &[]).has(2, &[]);
}

#[test]
fn items_are_searched_for_also_beside_damage() {
    let dir = TempDir::new().unwrap();
    let files = journal(dir.path());
    standin(&["journal", "grep", "--name", "report-1", "--kind", "create"], &[dir.path()]).has(0, &["6 items match", "status: sound"]);
    standin(&["journal", "grep", "--node", "5"], &[dir.path()]).has(0, &["5 create vol0:5.00000001", "6 write", "2 items match"]);
    standin(&["journal", "grep", "--node", "vol0:2.00000001", "--items", "..4"], &[dir.path()]).has(0, &["2 items match"]);
    standin(&["journal", "grep", "--content", "content 19"], &[dir.path()]).has(0, &["20 write", "1 items match"]);
    standin(&["journal", "grep"], &[dir.path()]).has(2, &["say what to look for"]);
    standin(&["journal", "grep", "--items", "x"], &[dir.path()]).has(2, &["no item number"]);
    smash(&files[0], len(&files[0]) - 20);
    standin(&["journal", "grep", "--kind", "create"], &[dir.path()]).has(1, &["DAMAGE at", "9 items match", "status: DAMAGED"]);
}

#[test]
fn a_queue_is_dumped_while_its_agent_runs() {
    let dir = TempDir::new().unwrap();
    let mut queue = Queue::open(dir.path(), QueueOptions { memory_bytes_max: 300, disk_bytes_max: 1 << 20 }).unwrap();
    (1..20).step_by(2).for_each(|first| queue.push(segment(first)).unwrap());
    standin(&["queue", "dump"], &[dir.path()]).has(0, &["queue by the files", "agent's memory", "to 20", "status: sound"]);
    smash(&files(dir.path())[0], 160);
    let next = "next: systemctl restart standin-agent";
    standin(&["queue", "dump", "--items"], &[dir.path()]).has(1, &["DAMAGE at", "the queue is damaged", next]);
}

/// An appliance's directory with one job, as far as the debugger reads it.
fn appliance(acknowledged: u64) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let id = JobId::from_random([7; 8]);
    let folder = dir.path().join("jobs").join(id.as_str()).join("journal");
    fs::create_dir_all(&folder).unwrap();
    journal(&folder);
    let store = rusqlite::Connection::open(dir.path().join("store.sqlite")).unwrap();
    // The columns of `crates/appliance/src/store.rs`.
    let columns = "id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, record TEXT NOT NULL, machine TEXT NOT NULL, stream TEXT NOT NULL";
    store.execute(&format!("CREATE TABLE job ({columns})"), []).unwrap();
    let stream = format!(r#"{{"epoch":1,"acknowledged":{acknowledged},"lost_after":null}}"#);
    store.execute("INSERT INTO job VALUES (?1, 'web1', '', '{\"state\":{\"state\":\"protected\"}}', ?2)", [id.as_str(), &stream]).unwrap();
    (dir, folder)
}

#[test]
fn watermarks_are_compared_with_each_other() {
    let (dir, folder) = appliance(20);
    let said = standin(&["watermarks"], &[dir.path()]);
    said.has(0, &["web1 (job-07", "acknowledged 20", "20 items from 1 to 20", "node table cannot be read", "status: sound; 1 jobs"]);
    // By itself the journal looks torn; the store knows better.
    let last = files(&folder).pop().unwrap();
    cut(&last, len(&last) - 3);
    let said = standin(&["watermarks"], &[dir.path()]);
    said.has(1, &["torn end", "ends at 18, but 20 was acknowledged", "status: DAMAGED in 1 places"]);
    let lines = standin(&["--output", "json", "watermarks"], &[dir.path()]).json();
    assert_eq!((&lines[1]["journal"]["status"], &lines[1]["store"]["name"]), (&"torn".into(), &"web1".into()));
    assert_eq!(lines.last().unwrap()["status"], "damaged");
}

#[test]
fn a_damaged_store_hides_no_journal() {
    let (dir, _) = appliance(20);
    let store = dir.path().join("store.sqlite");
    fs::write(&store, vec![0x5a; 4096]).unwrap();
    let told = ["the store cannot be read", "which the store does not know", "20 items from 1 to 20"];
    standin(&["watermarks"], &[dir.path()]).has(1, &told);
    fs::remove_file(&store).unwrap();
    standin(&["watermarks"], &[dir.path()]).has(1, &told);
    standin(&["watermarks"], &[&dir.path().join("nowhere")]).has(2, &["neither a store nor a job"]);
}

/// Two trees that are equal in everything that is compared.
fn trees() -> (TempDir, PathBuf, PathBuf) {
    let dir = TempDir::new().unwrap();
    let (left, right) = (dir.path().join("left"), dir.path().join("right"));
    for side in [&left, &right] {
        fs::create_dir_all(side.join("etc")).unwrap();
        fs::write(side.join("etc/passwd"), "root").unwrap();
        fs::hard_link(side.join("etc/passwd"), side.join("etc/passwd-")).unwrap();
        symlink("passwd", side.join("etc/link")).unwrap();
        fs::File::create(side.join("sparse")).unwrap().set_len(1 << 20).unwrap();
        fs::create_dir(side.join(".standin-limbo")).unwrap();
        set_times(side);
    }
    (dir, left, right)
}

fn set_times(path: &Path) {
    let names = ["etc/passwd", "etc/passwd-", "etc/link", "sparse", "etc", ""].map(|name| path.join(name));
    assert!(Command::new("touch").args(["-h", "-d", "@0"]).args(names).status().unwrap().success());
}

#[test]
fn trees_are_compared() {
    let (_dir, left, right) = trees();
    let diff = |more: &[&str]| standin(&[&["replica", "diff"], more].concat(), &[&left, &right]);
    diff(&[]).has(0, &["status: equal; 6 entries"]);
    fs::write(right.join(".standin-limbo/x"), "hidden").unwrap();
    fs::write(right.join("sparse"), [0; 1 << 16]).unwrap();
    cut(&right.join("sparse"), 1 << 20);
    fs::remove_file(right.join("etc/passwd-")).unwrap();
    fs::write(right.join("etc/passwd-"), "root").unwrap();
    fs::remove_file(right.join("etc/link")).unwrap();
    symlink("shadow", right.join("etc/link")).unwrap();
    fs::write(right.join("new\u{1b}"), "").unwrap();
    set_times(&right);
    let said = diff(&[]);
    let status = ["status: DIFFERENT in 4 places", "STANDIN-E3015"];
    said.has(1, &["/sparse: holes", "/etc/passwd-: links", "/etc/link: kind", "/new\\u{1b}: extra"]).has(1, &status);
    assert!(!said.out.contains("limbo"));
    diff(&["--allow", "etc/*", "--allow", "sparse", "--allow", "new*"]).has(0, &["status: equal"]);
    let lines = standin(&["--output", "json", "replica", "diff"], &[&left, &right]).json();
    assert_eq!(lines.last().unwrap()["status"], "different");
    standin(&["replica", "diff"], &[&left, &left.join("etc/passwd")]).has(2, &["is no directory"]);
}

/// Files that the kernel lists and refuses to read, as it does on a failing disk.
#[test]
fn what_cannot_be_read_is_told() {
    let refused = Path::new("/proc/self/attr");
    let readable = |path: PathBuf| path.is_dir() || fs::read(path).is_ok();
    if fs::read_dir(refused).is_ok_and(|entries| entries.flatten().all(|entry| readable(entry.path()))) {
        println!("SKIP what_cannot_be_read_is_told: this kernel lets every file of {} be read", refused.display());
        return;
    }
    let said = standin(&["replica", "diff"], &[refused, refused]);
    said.has(1, &[": unreadable: unreadable: ", "status: DAMAGED, ", "STANDIN-E3016", "next: dmesg"]);
    let lines = standin(&["--output", "json", "replica", "diff"], &[refused, refused]).json();
    assert_eq!(lines.last().unwrap()["status"], "damaged");
}
