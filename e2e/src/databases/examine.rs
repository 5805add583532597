//! Asks databases what they hold, and lets their own checkers look at them: on a guest that has booted, or on a disk that no machine runs from.
//!
//! A disk's volumes are mounted read-only in a private mount namespace; above them lie writable layers in memory, and in there the disk's own
//! databases are started, by the disk's own programs and as their own users, in process, network and IPC namespaces of their own. Nothing
//! of the disk is written, nothing of this machine is seen, and what has been started ends with the command.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::engine::Engine;
use super::record::Found;
use crate::compare;
use crate::lab::customise::DATA_POINT;
use crate::lab::disk::{self, ByteRange};
use crate::lab::space::{Access, Space};
use crate::lab::{FileSystem, Guest, command};

/// On an emulated guest; `mariadb-check` reads all of its tables.
const BOOTED_LIMIT: Duration = Duration::from_secs(600);
/// On this machine: both databases recover, are read twice, and stop.
const DISK_LIMIT: Duration = Duration::from_secs(300);
const COPY_LIMIT: Duration = Duration::from_secs(300);

/// What the databases of a booted guest hold, once their checkers have found nothing. PostgreSQL's own is run by `job::examine_database`.
pub fn booted(guest: &mut Guest) -> Result<Vec<Found>> {
    let script = format!("set -eu; cd /\n{WAIT_FOR_MARIADB}{}{CHECK_MARIADB}{CHECK_SQLITE}", states());
    let said = guest.ssh_within(&script, BOOTED_LIMIT).context("examining the databases")?;
    parse(&said)
}

/// What the databases of a recovery point hold, once each has started from it and its checkers have found nothing.
pub fn disk(path: &Path, scratch: &Path) -> Result<Vec<Found>> {
    let server = Server::of(path, scratch)?;
    let examined = server.examine();
    server.discard();
    parse(&examined?)
}

fn parse(said: &str) -> Result<Vec<Found>> {
    let found = said.lines().filter(|line| line.starts_with("found "));
    found.map(|line| Found::parse(line).with_context(|| format!("not understood: {line:?}"))).collect()
}

/// The shell's commands that print what each database holds. A failing one ends the script.
fn states() -> String {
    let ask = |engine: Engine| {
        let (client, state, name) = (engine.client(), engine.state(), engine.name());
        format!("said=$(echo \"{state}\" | ({client})); echo \"$said\" | sed '/^$/d; s/^/found {name} /'\n")
    };
    Engine::ALL.map(ask).concat()
}

const WAIT_FOR_MARIADB: &str = "for try in $(seq 300); do ! mariadb-admin --silent ping >/dev/null 2>&1 || break; sleep 0.5; done\n";
/// Every table line ends with OK; anything else is shown, and ends the script.
const CHECK_MARIADB: &str =
    "bad=$(mariadb-check --all-databases --extended 2>&1 | grep -v 'OK$' || true); [ -z \"$bad\" ] || { echo \"$bad\" >&2; exit 1; }\n";
const CHECK_SQLITE: &str =
    "sound=$(sqlite3 /srv/sqlite/witness.db 'pragma integrity_check'); [ \"$sound\" = ok ] || { echo \"SQLite: $sound\" >&2; exit 1; }\n";

/// Runs in the disk's root. Each database is stopped again, so that its files can be read by the checkers that want it off.
const START: &str = r#"
bin=/usr/lib/postgresql/15/bin data=/var/lib/postgresql/15/main
install -d -o postgres -g postgres /run/postgresql; install -d -o mysql -g mysql /run/mysqld
runuser -u postgres -- $bin/pg_ctl -D $data -w -t 100 -s -l /tmp/postgres.log -o '-c config_file=/etc/postgresql/15/main/postgresql.conf' start \
    || { tail -n 20 /tmp/postgres.log >&2; exit 1; }
mariadbd --user=mysql --skip-networking --log-error=/tmp/mariadb.log >/dev/null 2>&1 &
"#;
const CHECK_POSTGRES: &str = r#"
mariadb-admin --silent ping >/dev/null || { tail -n 20 /tmp/mariadb.log >&2; exit 1; }
runuser -u postgres -- $bin/pg_amcheck --all --install-missing --heapallindexed >&2
runuser -u postgres -- pg_dumpall > /dev/null
equal=$(runuser -u postgres -- psql -X -q -A -t -c 'select (select sum(bbalance) from pgbench_branches) = (select sum(abalance) from pgbench_accounts)
    and (select sum(bbalance) from pgbench_branches) = (select coalesce(sum(delta), 0) from pgbench_history)')
[ "$equal" = t ] || { echo "the balances of pgbench do not add up: $equal" >&2; exit 1; }
"#;
const STOP: &str = r#"
runuser -u postgres -- $bin/pg_ctl -D $data -w -s -m fast stop
runuser -u postgres -- $bin/pg_checksums --check -D $data >&2
mariadb-admin shutdown; wait
# Pages 64 to 191 of ibdata1 are the double write's: copies of pages of all kinds, whose sums are those of their own files.
innochecksum --end-page=63 /var/lib/mysql/ibdata1 >&2; innochecksum --start-page=192 /var/lib/mysql/ibdata1 >&2
for file in /var/lib/mysql/*/*.ibd; do innochecksum $file >&2; done
! grep -E '\[ERROR\]' /tmp/mariadb.log >&2
! grep -E 'PANIC|corrupt|invalid page|could not read' /tmp/postgres.log >&2
echo examined
"#;

/// A disk that holds a server and its databases: the volumes that Linux has on it.
struct Server {
    disk: PathBuf,
    copied: bool,
    volumes: Vec<(ByteRange, FileSystem)>,
}

impl Server {
    /// The kernel knows a btrfs by its identity, and the replica's own may be mounted: then a copy of the disk gets another one.
    fn of(path: &Path, scratch: &Path) -> Result<Server> {
        let mut volumes = Vec::new();
        for (_, range) in disk::partitions(path)? {
            volumes.extend(compare::probe(path, range)?.map(|kind| (range, kind)));
        }
        let copied = volumes.iter().any(|(_, kind)| *kind == FileSystem::Btrfs);
        let server = Server { disk: if copied { scratch.join("renamed.raw") } else { path.to_owned() }, copied, volumes };
        if copied {
            let mut copy = command::command(&["cp", "--reflink=auto", "--sparse=always"]);
            command::checked(copy.arg(path).arg(&server.disk), COPY_LIMIT)?;
            for (range, _) in server.volumes.iter().filter(|(_, kind)| *kind == FileSystem::Btrfs) {
                server.rename(*range).inspect_err(|_| server.discard())?;
            }
        }
        Ok(server)
    }

    fn rename(&self, range: ByteRange) -> Result<()> {
        let script = format!(
            "device=$(losetup --find --show --offset {} --sizelimit {} \"$0\") && btrfstune -f -m $device; status=$?; losetup --detach $device; exit $status",
            range.start, range.len
        );
        let mut words = command::command(&["sh", "-c", &script]);
        command::checked(words.arg(&self.disk), DISK_LIMIT).context("giving a btrfs another identity")?;
        Ok(())
    }

    /// Mounts every volume, and returns the root's folder and the data volume's, if there is one.
    fn mount(&self, space: &Space) -> Result<(PathBuf, Option<PathBuf>)> {
        let (mut root, mut data) = (None, None);
        for (number, (range, kind)) in self.volumes.iter().enumerate() {
            let on = space.folder(&format!("volume-{number}"))?;
            space.mount(&self.disk, *range, *kind, &on, Access::ReadOnly)?;
            let place = if space.seen(&on).join("etc/fstab").exists() { &mut root } else { &mut data };
            *place = Some(on);
        }
        Ok((root.context("the disk has no root")?, data))
    }

    fn examine(&self) -> Result<String> {
        let space = Space::new()?;
        let (root, data) = self.mount(&space)?;
        let top = space.folder("top")?;
        let top = top.display();
        let mut around = format!("set -eu; cd {top}\n");
        for (name, on, below) in [("root", "", Some(root)), ("data", DATA_POINT, data)] {
            let Some(below) = below else { continue };
            let (above, work) = (space.folder(&format!("{name}-above"))?, space.folder(&format!("{name}-work"))?);
            // The layer's own root keeps the owner that it has on the disk: a database refuses a folder that is not its own. The second `cd` leaves the
            // folder below a mount.
            let (below, above, work) = (below.display(), above.display(), work.display());
            around.push_str(&format!("chown --reference {below} {above}; chmod --reference {below} {above}\n"));
            around.push_str(&format!("mount -t overlay standin -o lowerdir={below},upperdir={above},workdir={work} .{on}; cd {top}\n"));
        }
        around.push_str(
            "mount -t proc proc proc; mount -t tmpfs run run; mount -t tmpfs tmp tmp; chmod 1777 tmp; mount -t tmpfs dev dev; mkdir -m 1777 dev/shm\n\
             mknod -m 666 dev/null c 1 3; mknod -m 666 dev/zero c 1 5; mknod -m 666 dev/urandom c 1 9; mknod -m 666 dev/random c 1 8\n\
             ln -s /proc/self/fd dev/fd; exec chroot . sh /tmp/examine\n",
        );
        let inside = format!(
            "set -eu; cd /; export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C\n{START}{WAIT_FOR_MARIADB}{CHECK_POSTGRES}{}{CHECK_MARIADB}{CHECK_SQLITE}{STOP}",
            states()
        );
        let script = space.folder("script")?.join("examine");
        fs::write(space.seen(&script), inside)?;
        let around = around.replace("exec chroot", &format!("cp {} tmp/examine; exec chroot", script.display()));
        let words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc", "--uts", "sh", "-c", &around];
        let said = space.run(&words, DISK_LIMIT).context("examining the databases of a recovery point")?;
        ensure!(said.lines().any(|line| line == "examined"), "the examination did not come to its end: {said}");
        Ok(said)
    }

    fn discard(&self) {
        if self.copied {
            fs::remove_file(&self.disk).ok();
        }
    }
}
