//! Files of every kind that a replica can get wrong: hard links, holes, ACLs, attributes, capabilities, labels, inode flags, fifos, sockets, device
//! nodes, odd names, deep folders, symlinks, odd times and modes.
//!
//! They are made in the guest by one script, so that they are what a server's own tools make.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Guest;

/// Makes the special files in `folder` of the guest.
pub fn make(guest: &mut Guest, folder: &str) -> Result<()> {
    guest.ssh_within(&script(folder), Duration::from_secs(120)).with_context(|| format!("making special files in {folder}"))?;
    Ok(())
}

fn script(folder: &str) -> String {
    format!("set -eu; mkdir -p {folder}; cd {folder}\n{SCRIPT}")
}

const SCRIPT: &str = r#"
# Hard links, also across folders, and of a symlink.
mkdir -p links/far; echo linked > links/one; ln links/one links/two; ln links/one links/far/three
ln -s one links/soft; ln -P links/soft links/soft-too; ln -s /nowhere/at/all links/dangling; ln -s "$(printf 'x%.0s' $(seq 1000))" links/long
# Holes: at the start, in the middle, at the end, and nothing but a hole.
truncate -s 1G sparse-empty; truncate -s 1500G huge; printf far | dd of=huge bs=1 seek=1234567890123 conv=notrunc status=none
truncate -s 64M sparse; printf data | dd of=sparse bs=1 seek=1048576 conv=notrunc status=none
printf end | dd of=sparse bs=1 seek=33554432 conv=notrunc status=none
fallocate -l 1M allocated; printf x | dd of=allocated bs=1 seek=5000 conv=notrunc status=none
dd if=/dev/urandom of=punched bs=4k count=16 status=none; fallocate -p -o 8192 -l 16384 punched
# Rights: ACLs, default ACLs, attributes, capabilities, special bits, foreign owners.
echo acl > acl; setfacl -m u:postgres:rw,g:www-data:r acl; mkdir acl-folder; setfacl -d -m u:postgres:rwx acl-folder; echo child > acl-folder/child
echo attributes > attributes; setfattr -n user.empty attributes; setfattr -n user.text -v hello attributes; setfattr -n trusted.secret -v 0x00ff10 attributes
setfattr -n user.long -v "$(printf 'v%.0s' $(seq 2000))" attributes
cp /bin/true capable; setcap cap_net_raw,cap_net_bind_service+ep capable
cp /bin/true setuid; chmod 4755 setuid; mkdir sticky; chmod 3777 sticky; echo owned > owned; chown 12345:54321 owned; echo none > closed; chmod 0 closed
chown -h 12345:54321 links/dangling
# Labels, as a system with SELinux has them, also of what has no other attributes.
echo labelled > labelled; for it in labelled acl-folder links/dangling; do setfattr -h -n security.selinux -v system_u:object_r:etc_t:s0 "$it"; done
# Inode flags, as far as each file system has them, and a project.
mkdir flags; for flag in i a d A S C m P; do
echo "$flag" > "flags/$flag"; mkdir "flags/$flag-folder"; chattr "+$flag" "flags/$flag" "flags/$flag-folder" 2> /dev/null || true; done
chattr -p 4711 flags/d 2> /dev/null || true
# Nodes that are no files.
mkfifo fifo; mknod null c 1 3; mknod block b 259 70000
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
# Names: spaces, newlines, quotes, no UTF-8, the longest one, one that looks like an option.
mkdir names; cd names
touch 'a space' "$(printf 'new\nline')" "quote'\"" "$(printf '\377\376not-utf8')" "$(printf 'n%.0s' $(seq 255))" ./-rf '*' '\back' 'ünïcode' ...
cd ..
# A folder deeper than PATH_MAX, and one with many entries.
python3 -c '
import os
for number in range(60):
    os.mkdir("d" * 100); os.chdir("d" * 100)
open("bottom", "w").write("deep")
'
mkdir many; (cd many; seq 1 2000 | xargs touch)
# Times before 1970 and with nanoseconds, on a file, a folder and a symlink.
touch -d '1960-01-02 03:04:05.123456789' old; touch -d '2031-05-06 07:08:09.987654321' future
touch -h -d '2001-02-03 04:05:06.111111111' links/soft; touch -d '1999-12-31 23:59:59.999999999' sticky
sync
"#;
