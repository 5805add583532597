//! Which distribution and kernels a replica has, and whether a kernel can drive the target's devices.

use super::GuestRoot;
use super::initrd::module_name;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// One bootable kernel of the replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    pub version: String,
    pub image: String,
    pub initrd: Option<String>,
}

/// `PRETTY_NAME` of os-release.
pub fn distribution(guest: &GuestRoot) -> String {
    let text = guest.text("/etc/os-release").or_else(|| guest.text("/usr/lib/os-release")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.unwrap_or("unknown").trim_matches('"').chars().filter(|c| !c.is_control()).take(100).collect()
}

/// Kernels with modules, the newest first.
pub fn kernels(guest: &GuestRoot) -> Vec<Kernel> {
    let names = guest.list("/boot");
    let mut found: Vec<Kernel> = names
        .iter()
        .filter_map(|name| name.strip_prefix("vmlinuz-"))
        .filter(|version| is_release(version))
        .filter(|version| guest.exists(&format!("/lib/modules/{version}/modules.dep")))
        .map(|version| {
            let candidates = [format!("initrd.img-{version}"), format!("initramfs-{version}.img"), format!("initrd-{version}")];
            let initrd = candidates.into_iter().find(|name| names.contains(name)).map(|name| format!("/boot/{name}"));
            Kernel { version: version.into(), image: format!("/boot/vmlinuz-{version}"), initrd }
        })
        .collect();
    found.sort_by(|a, b| compare_versions(&b.version, &a.version));
    found
}

/// Whether a file's name ends in what a kernel can have as its release. Anything else comes from somebody who hopes that it becomes an option of
/// a tool or a line of a configuration.
pub(super) fn is_release(version: &str) -> bool {
    version.starts_with(|first: char| first.is_ascii_digit())
        && version.chars().all(|character| character.is_ascii_alphanumeric() || "._+~-".contains(character))
}

/// Orders versions by their runs of digits, as GRUB's own sorting does.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let parts = |text: &str| -> Vec<(String, u64)> {
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let word_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let (word, tail) = rest.split_at(word_end);
            let digits_end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
            let (digits, tail) = tail.split_at(digits_end);
            parts.push((word.to_owned(), digits.parse().unwrap_or(0)));
            rest = tail;
        }
        parts
    };
    parts(a).cmp(&parts(b))
}

/// What a kernel brings: built-in drivers, and modules with their dependencies.
#[derive(Debug, Default)]
pub struct Drivers {
    builtin: BTreeSet<String>,
    dependencies: String,
}

impl Drivers {
    /// Reads the kernel's lists; absent ones count as empty.
    pub fn read(guest: &GuestRoot, version: &str) -> Drivers {
        let builtin = guest.text(&format!("/lib/modules/{version}/modules.builtin")).unwrap_or_default();
        Drivers::from_lists(&builtin, &guest.text(&format!("/lib/modules/{version}/modules.dep")).unwrap_or_default())
    }

    /// From the content of `modules.builtin` and `modules.dep`.
    pub(super) fn from_lists(builtin: &str, dependencies: &str) -> Drivers {
        Drivers { builtin: builtin.lines().filter_map(module_name).collect(), dependencies: dependencies.to_owned() }
    }

    /// Paths of the module files for `driver`, itself first; empty if it is built in, `None` if the kernel has none.
    pub fn files(&self, driver: &str) -> Option<Vec<String>> {
        if self.builtin.contains(driver) {
            return Some(Vec::new());
        }
        self.dependencies.lines().find_map(|line| {
            let (path, rest) = line.split_once(':')?;
            if module_name(path).as_deref() != Some(driver) {
                return None;
            }
            let all = std::iter::once(path).chain(rest.split_whitespace());
            let sane = |path: &&str| !path.starts_with('/') && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
            Some(all.filter(sane).map(str::to_owned).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_releases_are_kernels() {
        for good in ["6.1.0-13-amd64", "5.14.0-427.el9.x86_64", "6.1.0-rc3+", "4.19.0-0.bpo.1~x"] {
            assert!(is_release(good), "{good}");
        }
        for bad in ["", "..", "-o", "--config=x", "6.1'{", "6.1 x", "6\n"] {
            assert!(!is_release(bad), "{bad}");
        }
    }

    #[test]
    fn versions_and_dependencies() {
        assert_eq!(compare_versions("6.1.0-9-amd64", "6.1.0-13-amd64"), Ordering::Less);
        assert_eq!(compare_versions("6.10.1", "6.9.9"), Ordering::Greater);
        let drivers = Drivers {
            builtin: BTreeSet::from(["virtio_pci".into()]),
            dependencies: "kernel/drivers/scsi/virtio_scsi.ko: kernel/drivers/scsi/scsi_mod.ko ../../x.ko\n".into(),
        };
        assert_eq!(drivers.files("virtio_pci"), Some(Vec::new()));
        assert_eq!(drivers.files("virtio_scsi").unwrap().len(), 2);
        assert_eq!(drivers.files("virtio_blk"), None);
    }
}
