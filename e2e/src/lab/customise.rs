//! What makes the unpacked root file system this lab's server: its fstab, network, ssh key and trimmed units.
//!
//! Units are masked only to save boot time under emulation (each costs CPU seconds); nothing that a replica has to boot is taken
//! away. The script runs in a chroot that sees the image's partitions by UUID, so `update-grub` writes what an installer would.

use super::image::{Combo, FileSystem, Firmware};
use super::recipe::Content;
use super::repository;

/// The UUIDs of an image's partitions; the ESP's is a FAT serial number.
#[derive(Clone, Debug)]
pub struct Uuids {
    pub root: String,
    pub swap: String,
    pub data: String,
    pub esp: String,
}

/// Where the data volume is mounted: the database lives on it, log and all.
pub const DATA_POINT: &str = "/var/lib/postgresql";

/// Units that cost boot time and that no test looks at.
const MASKED: &[&str] = &[
    "e2scrub_reap.service",
    "e2scrub_all.timer",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "fstrim.timer",
    "systemd-pstore.service",
    "systemd-timesyncd.service",
    "systemd-networkd-wait-online.service",
    "systemd-network-generator.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "getty-static.service",
    "getty@tty1.service",
    "ldconfig.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-update-done.service",
];

/// The guest's `/etc/fstab`.
pub fn fstab(combo: Combo, uuids: &Uuids) -> String {
    let options = |kind: FileSystem| if kind == FileSystem::Ext4 { "errors=remount-ro" } else { "defaults" };
    let mut text = String::from("# <file system> <mount point> <type> <options> <dump> <pass>\n");
    let mut line = |uuid: &str, point: &str, kind: &str, options: &str, pass: u32| {
        text.push_str(&format!("UUID={uuid} {point} {kind} {options} 0 {pass}\n"));
    };
    line(&uuids.root, "/", combo.root.name(), options(combo.root), 1);
    if let Some(data) = combo.data {
        line(&uuids.data, DATA_POINT, data.name(), "defaults", 2);
    }
    if combo.firmware == Firmware::Uefi {
        line(&uuids.esp, "/boot/efi", "vfat", "umask=0077", 1);
    }
    line(&uuids.swap, "none", "swap", "sw", 0);
    text
}

/// The script that runs in the image's root, as root, with `/dev` holding the root device and its by-uuid link.
pub fn script(combo: Combo, content: Content, uuids: &Uuids, public_key: &str) -> String {
    let masked: String = MASKED.iter().map(|unit| format!("ln -sf /dev/null /etc/systemd/system/{unit}\n")).collect();
    let target = if combo.firmware == Firmware::Uefi { "x86_64-efi" } else { "i386-pc" };
    format!(
        "{head}\n{masked}cat > /etc/fstab <<'END'\n{fstab}END\ninstall -d -m 700 /root/.ssh\ncat > /root/.ssh/authorized_keys <<'END'\n{public_key}END\n\
         TARGET={target} ROOT_UUID={root}\n{grub}{more}",
        head = HEAD,
        more = if content == Content::Databases { format!("{DATABASES}{}", repository::script()) } else { String::new() },
        fstab = fstab(combo, uuids),
        grub = GRUB,
        root = uuids.root,
    )
}

const HEAD: &str = r#"set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
echo lab-source > /etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 lab-source\n' > /etc/hosts
cat > /etc/systemd/network/20-wired.network <<'END'
[Match]
Name=en*

[Network]
DHCP=ipv4
LinkLocalAddressing=no
END
systemctl enable systemd-networkd.service systemd-networkd.socket >/dev/null 2>&1
# The lab logs in a hundred times; reverse look-ups would wait for a name server that is not there.
printf 'UseDNS no\nPermitRootLogin prohibit-password\nMaxSessions 50\n' > /etc/ssh/sshd_config.d/lab.conf
echo 'shared_buffers = 16MB' > /etc/postgresql/15/main/conf.d/lab.conf
# A systemd without a set-up machine id would run first-boot units at each boot of each copy.
systemd-machine-id-setup >/dev/null 2>&1
mkdir -p /boot/efi /var/log/journal
"#;

/// Both databases notice a page that is not what was written, MariaDB by default. Its pool is small, so that pages are written and not only the log.
const DATABASES: &str = r#"
runuser -u postgres -- /usr/lib/postgresql/15/bin/pg_checksums --enable -D /var/lib/postgresql/15/main >/dev/null
printf '[mariadbd]\ninnodb_buffer_pool_size = 24M\ninnodb_log_file_size = 16M\nperformance_schema = off\n' > /etc/mysql/mariadb.conf.d/99-lab.cnf
"#;

const GRUB: &str = r#"mkdir -p /boot/grub/$TARGET
cp /usr/lib/grub/$TARGET/*.mod /usr/lib/grub/$TARGET/*.lst /boot/grub/$TARGET/
grub-editenv /boot/grub/grubenv create
cat > /etc/default/grub <<'END'
GRUB_DEFAULT=0
GRUB_TIMEOUT=0
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200"
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --speed=115200"
GRUB_DISABLE_OS_PROBER=true
END
# For a loop device, update-grub asks losetup for the file behind it and names that as the root. This one says "the device".
mkdir -p /dev/shim
printf '#!/bin/sh\necho "($1)"\n' > /dev/shim/losetup
chmod +x /dev/shim/losetup
PATH=/dev/shim:$PATH update-grub 2>&1
# The library beside it loads the root from a file for a loop device; the guest will find it by UUID, as its own update-grub has it.
sed -i -e '/loopback loop/d' -e "s/set root=(loop[0-9]*)/search --no-floppy --fs-uuid --set=root $ROOT_UUID/" /boot/grub/grub.cfg
! grep -n '(loop\|/dev/loop' /boot/grub/grub.cfg
grep -q 'root=UUID=' /boot/grub/grub.cfg || { grep 'root=' /boot/grub/grub.cfg; exit 1; }
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fstab_names_every_volume_by_uuid() {
        let uuids = Uuids { root: "R".into(), swap: "S".into(), data: "D".into(), esp: "E".into() };
        let combo = Combo { firmware: Firmware::Uefi, root: FileSystem::Ext4, data: Some(FileSystem::Xfs) };
        let text = fstab(combo, &uuids);
        for expect in ["UUID=R / ext4", "UUID=D /var/lib/postgresql xfs", "UUID=E /boot/efi vfat", "UUID=S none swap"] {
            assert!(text.contains(expect), "{expect} is not in {text}");
        }
    }
}
