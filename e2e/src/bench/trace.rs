//! What a database asks the kernel to write: PostgreSQL's own calls under a load, recorded in their order by strace, with what its files held before.
//!
//! The capture's hooks see the same writes; a recording has them on any machine, and anything can be tried on one and the same.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::lab::command;

const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
const USER: &str = "postgres";
const CALLS: &str = "trace=pwrite64,pwritev,write,openat,rename,link,ftruncate,unlink,fallocate";
const SETUP_LIMIT: Duration = Duration::from_secs(600);
const START_LIMIT: Duration = Duration::from_secs(60);
/// A recording is kept in memory.
const TRACE_BYTES_MAX: u64 = 3 << 30;
const CLIENTS: u32 = 4;

/// What clients do, and how large the server's own cache is.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub name: &'static str,
    /// pgbench's own transactions where there is none.
    pub script: Option<&'static str>,
    pub buffers_mib: u32,
    pub seconds: u64,
    /// Transactions a second.
    pub rate: u32,
}

/// Sessions with a token and a JSON document, read and written by a few users most of all: a part of a row changes, seldom all of it.
pub const OLTP_TABLES: &str = "
create table users (id int primary key, name text, mail text, seen timestamptz, visits int not null default 0);
create table sessions (id int primary key, token text, data jsonb, touched timestamptz);
create table events (id bigserial primary key, at timestamptz, who int, what jsonb);
insert into users select n, 'user ' || n, md5(n::text) || '@example.com', now() from generate_series(1, 200000) n;
insert into sessions select n, md5(random()::text), jsonb_build_object('cart', jsonb_build_array(n % 97, n % 89), 'page', '/p/' || n % 1000, 'agent', md5(n::text)), now()
  from generate_series(1, 200000) n;
create index on sessions (token);
create index on events (who);
";
pub const OLTP_SCRIPT: &str = "\\set who random_zipfian(1, 200000, 1.1)
\\set page random(1, 1000)
begin;
update sessions set data = jsonb_set(data, '{page}', to_jsonb('/p/' || :page)), touched = now() where id = :who;
update users set visits = visits + 1, seen = now() where id = :who;
insert into events (at, who, what) values (now(), :who, jsonb_build_object('page', :page, 'token', md5(random()::text)));
select u.name, s.data from users u join sessions s using (id) where id = :who;
end;
";
/// pgbench's scale: a table of 150 MB.
const SCALE: u32 = 10;

#[derive(Clone, Debug)]
pub enum Change {
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    Truncate {
        size: u64,
    },
    /// Its last name is gone.
    End,
}

/// One change of one file, at a time since the recording's beginning.
#[derive(Clone, Debug)]
pub struct Event {
    pub at: Duration,
    pub file: usize,
    pub change: Change,
}

pub struct Trace {
    /// The first name of each, within the cluster.
    pub files: Vec<PathBuf>,
    /// So many of them were there at the beginning, and what they were lies in `base`.
    pub first_files: usize,
    base: PathBuf,
    pub events: Vec<Event>,
    pub bytes_written: u64,
    pub transactions: u64,
}

impl Trace {
    /// Whether the file is of the write-ahead log.
    pub fn is_log(&self, file: usize) -> bool {
        self.files.get(file).is_some_and(|path| path.starts_with("pg_wal"))
    }

    /// What a file of the beginning held then.
    pub fn content(&self, file: usize) -> Vec<u8> {
        let path = self.files.get(file).filter(|_| file < self.first_files);
        path.and_then(|path| fs::read(self.base.join(path)).ok()).unwrap_or_default()
    }
}

/// A cluster of its own, filled for `load`, and everything that its server writes under that load.
pub fn record(folder: &Path, load: Load) -> Result<Trace> {
    fs::create_dir_all(folder)?;
    let owner = format!("{USER}:");
    // The server's user must get through to it, and owns what is in it.
    command::run(&["chown", &owner, &folder.display().to_string()], START_LIMIT)?;
    let cluster = Cluster { data: folder.join("data"), sockets: folder.to_owned() };
    cluster.make(load)?;
    let base = folder.join("base");
    command::run(&["cp", "-a", "--sparse=never", &cluster.data.display().to_string(), &base.display().to_string()], SETUP_LIMIT)?;
    let pipe = folder.join("calls");
    command::run(&["mkfifo", &pipe.display().to_string()], START_LIMIT)?;
    let recorder = Recorder::new(&cluster.data, &base)?;
    let first_files = recorder.files.len();
    let reader: JoinHandle<Result<Recorder>> = {
        let pipe = pipe.clone();
        std::thread::spawn(move || recorder.follow(BufReader::with_capacity(1 << 20, fs::File::open(pipe)?)))
    };
    let under =
        ["strace", "-f", "-ttt", "-y", "-xx", "-s", "16777216", "-e", "signal=none", "-e", CALLS, "-o", &pipe.display().to_string(), "--"];
    let mut server = cluster.start(load, &under)?;
    let transactions = cluster.work(load);
    let stopped = cluster.stop(&mut server);
    let recorder = reader.join().map_err(|_| anyhow::anyhow!("the recorder has panicked"))??;
    stopped?;
    let transactions = transactions?;
    fs::remove_dir_all(&cluster.data)?;
    ensure!(recorder.bytes > 0 && transactions > 0, "nothing was recorded");
    Ok(Trace { files: recorder.files, first_files, base, events: recorder.events, bytes_written: recorder.bytes, transactions })
}

struct Cluster {
    data: PathBuf,
    sockets: PathBuf,
}

impl Cluster {
    fn program(&self, name: &str, words: &[&str]) -> Vec<String> {
        let program = format!("{PROGRAMS}/{name}");
        ["runuser", "-u", USER, "--", &program].iter().chain(words).map(|word| (*word).to_owned()).collect()
    }

    fn sockets(&self) -> String {
        self.sockets.display().to_string()
    }

    fn make(&self, load: Load) -> Result<()> {
        let data = self.data.display().to_string();
        command::run(&self.program("initdb", &["-D", &data, "-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C"]), SETUP_LIMIT)?;
        let mut server = self.start(load, &[])?;
        let filled = match load.script {
            None => {
                command::run(&self.program("pgbench", &["-h", &self.sockets(), "-i", "-q", "-s", &SCALE.to_string(), USER]), SETUP_LIMIT)
            }
            Some(_) => self.psql(OLTP_TABLES),
        };
        let settled = filled.and_then(|_| self.psql("vacuum analyze; checkpoint;"));
        self.stop(&mut server)?;
        settled.map(drop)
    }

    fn psql(&self, statements: &str) -> Result<String> {
        let sockets = self.sockets();
        let words = statements.split(';').map(str::trim).filter(|words| !words.is_empty()).flat_map(|one| ["-c", one]);
        let all: Vec<&str> = ["-h", &sockets, "-X", "-q", "-v", "ON_ERROR_STOP=1"].into_iter().chain(words).collect();
        command::run(&self.program("psql", &all), SETUP_LIMIT)
    }

    fn start(&self, load: Load, under: &[&str]) -> Result<Child> {
        let (data, sockets, buffers) = (self.data.display().to_string(), self.sockets(), format!("shared_buffers={}MB", load.buffers_mib));
        // Pages come back once in a checkpoint: of the default of five minutes, a recording would see none.
        let settings = ["listen_addresses=", "checkpoint_timeout=30s", "max_wal_size=1GB", "autovacuum_naptime=10s", "fsync=off", &buffers];
        let mut words = vec!["-D", &data, "-k", &sockets];
        words.extend(settings.iter().flat_map(|setting| ["-c", *setting]));
        let all: Vec<String> = under.iter().map(|word| (*word).to_owned()).chain(self.program("postgres", &words)).collect();
        let log = fs::File::options().create(true).append(true).open(self.sockets.join("server.log"))?;
        let mut server =
            command::command(&all).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("starting PostgreSQL")?;
        let deadline = Instant::now() + START_LIMIT;
        while command::run(&self.program("pg_isready", &["-q", "-h", &sockets]), START_LIMIT).is_err() {
            let ended = server.try_wait()?;
            ensure!(ended.is_none() && Instant::now() < deadline, "PostgreSQL does not start; see {}/server.log", sockets);
            command::pause(Duration::from_millis(100))?;
        }
        Ok(server)
    }

    /// Runs the clients; the number of their transactions.
    fn work(&self, load: Load) -> Result<u64> {
        let (sockets, seconds, rate, clients) = (self.sockets(), load.seconds.to_string(), load.rate.to_string(), CLIENTS.to_string());
        let mut words = vec!["-h", &sockets, "-n", "-c", &clients, "-j", "1", "-T", &seconds, "-R", &rate];
        let script = self.sockets.join("script");
        let shown = script.display().to_string();
        if let Some(text) = load.script {
            fs::write(&script, text)?;
            words.extend(["-f", &shown]);
        }
        words.push(USER);
        let said = command::run(&self.program("pgbench", &words), Duration::from_secs(load.seconds + 120))?;
        let done = said.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
        done.and_then(|count| count.trim().parse().ok()).with_context(|| format!("pgbench said {said}"))
    }

    fn stop(&self, server: &mut Child) -> Result<()> {
        let stopped =
            command::run(&self.program("pg_ctl", &["-D", &self.data.display().to_string(), "-m", "fast", "-w", "stop"]), SETUP_LIMIT);
        if !matches!(command::wait(server, START_LIMIT), Ok(Some(_))) {
            command::end(server, START_LIMIT);
        }
        stopped.map(drop)
    }
}

/// Reads strace's lines.
struct Recorder {
    root: PathBuf,
    files: Vec<PathBuf>,
    names: HashMap<PathBuf, usize>,
    /// Where the next plain write of a descriptor goes.
    positions: HashMap<(String, String), u64>,
    /// Processes that open a file to empty it, in a call whose end is not told yet.
    truncates: HashSet<String>,
    events: Vec<Event>,
    begun: Option<f64>,
    bytes: u64,
}

impl Recorder {
    fn new(root: &Path, base: &Path) -> Result<Recorder> {
        let mut files = Vec::new();
        walk(base, base, &mut files)?;
        // In an order that every run has.
        files.sort();
        let names = files.iter().cloned().enumerate().map(|(number, path)| (path, number)).collect();
        let root = root.to_owned();
        Ok(Recorder { root, files, names, positions: HashMap::new(), truncates: HashSet::new(), events: Vec::new(), begun: None, bytes: 0 })
    }

    fn follow(mut self, mut lines: impl BufRead) -> Result<Recorder> {
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            // All of it is ASCII: bytes come as hex.
            let text = std::str::from_utf8(&line).context("strace's output is not as asked for")?;
            self.heed(text).with_context(|| format!("strace said {}", text.chars().take(300).collect::<String>()))?;
            line.clear();
            ensure!(self.bytes < TRACE_BYTES_MAX, "the recording is too large");
        }
        Ok(self)
    }

    /// A call that another thread's interrupts is told in two lines, and the first one has what it asked for.
    fn heed(&mut self, line: &str) -> Result<()> {
        let Some((pid, rest)) = line.trim_end().split_once(' ') else { return Ok(()) };
        let Some((time, call)) = rest.trim_start().split_once(' ') else { return Ok(()) };
        if call.contains(" = -1 ") {
            self.truncates.remove(pid);
            return Ok(());
        }
        let time: f64 = time.parse().context("a time")?;
        let at = Duration::from_secs_f64((time - *self.begun.get_or_insert(time)).max(0.0));
        if let Some(words) = call.strip_prefix("<... openat resumed>") {
            return self.open(at, pid, words);
        }
        let Some((name, words)) = call.split_once('(').filter(|(name, _)| !name.starts_with('<')) else { return Ok(()) };
        match name {
            "pwrite64" | "pwritev" | "write" => self.write(at, pid, name, words),
            "openat" => self.open(at, pid, words),
            "rename" | "link" => {
                let paths = quoted(words).map(path_of).collect::<Result<Vec<_>>>()?;
                let [from, to] = paths.as_slice() else { bail!("two names are missing") };
                self.give_name(at, from, to, name == "rename");
                Ok(())
            }
            "unlink" => {
                let path = quoted(words).next().context("a name is missing")?;
                self.take_name(at, &path_of(path)?);
                Ok(())
            }
            "ftruncate" => {
                let Some(file) = self.file_of(words)? else { return Ok(()) };
                let size = number(words.split(", ").nth(1).context("a size is missing")?)?;
                self.events.push(Event { at, file, change: Change::Truncate { size } });
                Ok(())
            }
            // Nothing of PostgreSQL 15 does that to its files.
            "fallocate" if self.file_of(words)?.is_some() => bail!("a call that is not understood"),
            _ => Ok(()),
        }
    }

    fn write(&mut self, at: Duration, pid: &str, name: &str, words: &str) -> Result<()> {
        let Some(file) = self.file_of(words)? else { return Ok(()) };
        let data: Vec<u8> = quoted(words).map(bytes_of).collect::<Result<Vec<_>>>()?.concat();
        let offset = if name == "write" {
            let position = self.positions.entry((pid.to_owned(), descriptor(words).to_owned())).or_default();
            let offset = *position;
            *position += data.len() as u64;
            offset
        } else {
            let words = words.split(" = ").next().unwrap_or(words).trim_end_matches(" <unfinished ...>").trim_end().trim_end_matches(')');
            number(words.rsplit(", ").next().unwrap_or_default())?
        };
        self.bytes += data.len() as u64;
        self.events.push(Event { at, file, change: Change::Write { offset, data } });
        Ok(())
    }

    fn open(&mut self, at: Duration, pid: &str, words: &str) -> Result<()> {
        let truncates = words.contains("O_TRUNC");
        let Some((_, got)) = words.rsplit_once(" = ") else {
            // The other line tells which it is.
            if truncates {
                self.truncates.insert(pid.to_owned());
            }
            return Ok(());
        };
        self.positions.remove(&(pid.to_owned(), descriptor(got).to_owned()));
        if (self.truncates.remove(pid) || truncates)
            && let Some(file) = self.file_of(got)?
        {
            self.events.push(Event { at, file, change: Change::Truncate { size: 0 } });
        }
        Ok(())
    }

    /// The file of a descriptor as strace shows it, if it is one of the cluster's; a new one if nobody has named it before.
    fn file_of(&mut self, words: &str) -> Result<Option<usize>> {
        let Some((_, rest)) = words.split_once('<') else { return Ok(None) };
        let Some((hex, behind)) = rest.split_once('>') else { return Ok(None) };
        if behind.starts_with("(deleted)") {
            return Ok(None);
        }
        let path = path_of(hex)?;
        let Ok(path) = path.strip_prefix(&self.root) else { return Ok(None) };
        Ok(Some(self.named(path)))
    }

    fn named(&mut self, path: &Path) -> usize {
        if let Some(file) = self.names.get(path) {
            return *file;
        }
        self.files.push(path.to_owned());
        self.names.insert(path.to_owned(), self.files.len() - 1);
        self.files.len() - 1
    }

    fn inside(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap_or(path).to_owned()
    }

    fn give_name(&mut self, at: Duration, from: &Path, to: &Path, moves: bool) {
        let (from, to) = (self.inside(from), self.inside(to));
        let Some(file) = self.names.get(&from).copied() else { return };
        self.take_name(at, &to);
        if moves {
            self.names.remove(&from);
        }
        self.names.insert(to, file);
    }

    fn take_name(&mut self, at: Duration, path: &Path) {
        let path = self.inside(path);
        let Some(file) = self.names.remove(&path) else { return };
        if !self.names.values().any(|other| *other == file) {
            self.events.push(Event { at, file, change: Change::End });
        }
    }
}

fn walk(folder: &Path, base: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), base, files)?;
        } else {
            files.push(entry.path().strip_prefix(base)?.to_owned());
        }
    }
    Ok(())
}

/// What stands in quotation marks.
fn quoted(words: &str) -> impl Iterator<Item = &str> {
    words.split('"').skip(1).step_by(2)
}

/// `7` of `7</a/file>, ...`.
fn descriptor(words: &str) -> &str {
    words.split(['<', ',', ' ']).next().unwrap_or_default()
}

fn bytes_of(hex: &str) -> Result<Vec<u8>> {
    let byte = |digits: &str| u8::from_str_radix(digits, 16).with_context(|| format!("{digits} is no byte"));
    hex.split("\\x").skip(1).map(byte).collect()
}

fn path_of(hex: &str) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    Ok(std::ffi::OsString::from_vec(bytes_of(hex)?).into())
}

fn number(word: &str) -> Result<u64> {
    let digits = word.trim().trim_end_matches(" <unfinished ...>").trim_end_matches(')');
    let digits = digits.split(')').next().unwrap_or_default();
    digits.parse().with_context(|| format!("{word} is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> String {
        text.bytes().map(|byte| format!("\\x{byte:02x}")).collect()
    }

    fn heard(lines: &[String]) -> Recorder {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("old"), b"was here").expect("a file");
        let recorder = Recorder::new(Path::new("/d"), folder.path()).expect("a recorder");
        recorder.follow(lines.join("\n").as_bytes()).expect("lines that are understood")
    }

    fn shown(event: &Event) -> String {
        match &event.change {
            Change::Write { offset, data } => format!("{} write {offset} {}", event.file, String::from_utf8_lossy(data)),
            Change::Truncate { size } => format!("{} truncate {size}", event.file),
            Change::End => format!("{} end", event.file),
        }
    }

    #[test]
    fn calls_become_changes_in_their_order() {
        let (old, new, other) = (hex("/d/old"), hex("/d/new"), hex("/elsewhere"));
        let lines = [
            format!("7 10.5 pwrite64(3<{old}>, \"{}\", 2, 8192) = 2", hex("ab")),
            format!("8 10.6 pwrite64(3<{old}>, \"{}\", 1, 5 <unfinished ...>", hex("c")),
            "8 10.7 <... pwrite64 resumed>)           = 1".to_owned(),
            format!("7 10.8 openat(AT_FDCWD<{other}>, \"{}\", O_RDWR|O_CREAT|O_TRUNC, 0600) = 4<{new}>", hex("new")),
            format!("7 10.9 write(4<{new}>, \"{}\", 2) = 2", hex("xy")),
            format!("7 11 write(4<{new}>, \"{}\", 1) = 1", hex("z")),
            format!("9 11 openat(AT_FDCWD<{other}>, \"{}\", O_WRONLY|O_TRUNC <unfinished ...>", hex("new")),
            format!("9 11 <... openat resumed>) = 5<{new}>"),
            format!("7 11 write(4<{other}>, \"{}\", 1) = 1", hex("z")),
            format!(
                "7 12 pwritev(4<{new}>, [{{iov_base=\"{}\", iov_len=1}}, {{iov_base=\"{}\", iov_len=1}}], 2, 100) = 2",
                hex("p"),
                hex("q")
            ),
            format!("7 12 ftruncate(4<{new}>, 50) = 0"),
            format!("7 12 rename(\"{}\", \"{}\") = 0", hex("new"), hex("old")),
            format!("7 12 pwrite64(4<{old}>, \"{}\", 1, 1) = 1", hex("m")),
            format!("7 12 unlink(\"{}\") = -1 ENOENT (No such file or directory)", hex("new")),
            format!("7 12 unlink(\"{}\") = 0", hex("old")),
            "7 13 +++ exited with 0 +++".to_owned(),
        ];
        let recorder = heard(&lines);
        let said: Vec<String> = recorder.events.iter().map(shown).collect();
        let expected = [
            "0 write 8192 ab",
            "0 write 5 c",
            "1 truncate 0",
            "1 write 0 xy",
            "1 write 2 z",
            "1 truncate 0",
            "1 write 100 pq",
            "1 truncate 50",
            "0 end",
            "1 write 1 m",
            "1 end",
        ];
        assert_eq!(said, expected);
        assert_eq!(recorder.bytes, 9);
        assert_eq!(recorder.events[2].at, Duration::from_millis(300));
    }
}
