//! Rewrites kernel command lines in grub.cfg and /etc/default/grub, and makes a grub.cfg where the source had none. Pure.

use super::kernel::Kernel;
use crate::disk::DiskPlan;

/// What the kernel command lines of a replica need.
#[derive(Debug, Clone)]
pub struct Wishes<'a> {
    pub plan: &'a DiskPlan,
    /// Added where they are not yet.
    pub arguments: &'a [String],
    /// Waiting for a swap area that the replica does not have is switched off.
    pub without_resume: bool,
}

/// Rewrites every `linux` line of a grub.cfg; gives the new text and what was changed.
pub fn rewrite(text: &str, wishes: &Wishes) -> (String, Vec<String>) {
    let mut changes = Vec::new();
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !matches!(first, "linux" | "linux16" | "linuxefi") {
            out.push_str(line);
            continue;
        }
        let indent: String = line.chars().take_while(|c| c.is_whitespace()).collect();
        let words: Vec<&str> = line.split_whitespace().collect();
        let new = rewrite_words(&words, wishes);
        if new.iter().map(String::as_str).eq(words.iter().copied()) {
            out.push_str(line);
        } else {
            let image = words.get(1).copied().unwrap_or_default();
            let difference = new.iter().filter(|word| !words.contains(&word.as_str())).cloned().collect::<Vec<_>>().join(" ");
            changes.push(format!("command line of {image}: {difference}"));
            out.push_str(&format!("{indent}{}\n", new.join(" ")));
        }
    }
    (out, changes)
}

fn rewrite_words(words: &[&str], wishes: &Wishes) -> Vec<String> {
    let mut new: Vec<String> = words.iter().filter_map(|word| rewrite_word(word, wishes)).collect();
    let noresume = wishes.without_resume.then(|| "noresume".to_owned());
    let subvolume = subvolume_flag(&new, wishes.plan);
    for argument in wishes.arguments.iter().cloned().chain(noresume).chain(subvolume) {
        if !new.contains(&argument) {
            new.push(argument);
        }
    }
    new
}

/// The root's subvolume where the line does not name one: the source had made it its default, and the replica's default is the top level.
fn subvolume_flag(words: &[String], plan: &DiskPlan) -> Option<String> {
    let (_, root) = plan.volume_of_path("/")?;
    let roots = words.iter().any(|word| word.starts_with("root="));
    let named = words.iter().filter_map(|word| word.strip_prefix("rootflags=")).flat_map(|flags| flags.split(',')).any(names_subvolume);
    (roots && !named && !root.subvolume().is_empty()).then(|| format!("rootflags=subvol={}", root.subvolume()))
}

fn names_subvolume(flag: &str) -> bool {
    flag.starts_with("subvol=")
}

/// A subvolume's number is another on the replica; only its path is the same.
fn without_number(flags: &str) -> String {
    flags.split(',').filter(|flag| !flag.starts_with("subvolid=")).collect::<Vec<_>>().join(",")
}

fn rewrite_word(word: &str, wishes: &Wishes) -> Option<String> {
    if let Some(device) = word.strip_prefix("root=") {
        let root = wishes.plan.volume_of_path("/").map(|(part, volume)| (part, &volume.source));
        return match root {
            Some((part, volume)) if device_is_foreign(device, &volume.uuid, &volume.label, &part.guid) => {
                Some(format!("root=UUID={}", volume.uuid))
            }
            _ => Some(word.to_owned()),
        };
    }
    if let Some(device) = word.strip_prefix("resume=") {
        let known = wishes
            .plan
            .swaps()
            .find(|(part, swap)| swap.device == device || !device_is_foreign(device, &swap.uuid, &swap.label, &part.guid));
        return known.map(|(_, swap)| format!("resume=UUID={}", swap.uuid));
    }
    if let Some(flags) = word.strip_prefix("rootflags=").filter(|flags| flags.contains("subvolid=")) {
        return Some(without_number(flags)).filter(|flags| !flags.is_empty()).map(|flags| format!("rootflags={flags}"));
    }
    Some(word.to_owned())
}

fn device_is_foreign(device: &str, uuid: &str, label: &str, guid: &str) -> bool {
    let same = |prefix: &str, value: &str| device.strip_prefix(prefix).is_some_and(|found| found.eq_ignore_ascii_case(value));
    !(same("UUID=", uuid) || same("PARTUUID=", guid) || (!label.is_empty() && same("LABEL=", label)))
}

/// A grub.cfg for a source that had none (started by its platform's own loader, for example).
pub fn minimal(kernels: &[Kernel], boot_prefix: &str, wishes: &Wishes) -> Option<String> {
    let (_, root) = wishes.plan.volume_of_path("/")?;
    let (_, boot) = wishes.plan.volume_of_path("/boot")?;
    let words = [format!("root=UUID={}", root.source.uuid), "ro".to_owned(), format!("rootfstype={}", root.fs.as_str())];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let line = rewrite_words(&words, wishes).join(" ");
    let mut text =
        String::from("# Made by Standin because the source had no grub.cfg; `update-grub` replaces it.\nset timeout=1\nset default=0\n");
    for kernel in kernels {
        let image = kernel.image.trim_start_matches("/boot/");
        text.push_str(&format!("menuentry 'Linux {}' {{\n", kernel.version));
        text.push_str(&format!("\tsearch --no-floppy --fs-uuid --set=root {}\n", boot.source.uuid));
        text.push_str(&format!("\tlinux {boot_prefix}/{image} {line}\n"));
        if let Some(initrd) = &kernel.initrd {
            text.push_str(&format!("\tinitrd {boot_prefix}/{}\n", initrd.trim_start_matches("/boot/")));
        }
        text.push_str("}\n");
    }
    Some(text)
}

/// Where `/boot` lies within its own file system, as GRUB sees it: `/boot`, `/@rootfs/boot`, or empty on a volume of its own.
pub fn boot_prefix(plan: &DiskPlan) -> Option<String> {
    let (_, volume) = plan.volume_of_path("/boot")?;
    let inside = "/boot".strip_prefix(volume.source.mount_point.trim_end_matches('/')).unwrap_or_default();
    let subvolume = if volume.subvolume().is_empty() { String::new() } else { format!("/{}", volume.subvolume()) };
    Some(format!("{subvolume}{inside}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::fixture;

    fn plan(with_boot: bool) -> DiskPlan {
        let mut root = fixture::volume(1, "/", "btrfs", 1 << 30, 0);
        (root.subvolume, root.extra_subvolumes) = (Some("/@rootfs".into()), 1);
        let boot = with_boot.then(|| fixture::volume(2, "/boot", "ext4", 1 << 30, 0));
        fixture::plan(&fixture::source([root].into_iter().chain(boot).collect()))
    }

    #[test]
    fn device_names_become_uuids_and_uuids_stay() {
        let plan = plan(false);
        let arguments = ["console=ttyS0".to_owned()];
        let wishes = Wishes { plan: &plan, arguments: &arguments, without_resume: false };
        let text = "set x=1\n\tlinux\t/boot/vmlinuz-6 root=/dev/sda1 ro quiet resume=/dev/sda5\n\tinitrd /boot/initrd.img-6\n";
        let (new, changes) = rewrite(text, &wishes);
        let line =
            "\tlinux /boot/vmlinuz-6 root=UUID=11111111-1111-4111-8111-111111111111 ro quiet console=ttyS0 rootflags=subvol=@rootfs\n";
        assert!(new.contains(line), "{new}");
        assert_eq!(changes.len(), 1);
        assert_eq!(rewrite(&new, &wishes), (new, Vec::new()));
    }

    #[test]
    fn a_subvolume_goes_by_its_path() {
        let plan = plan(false);
        let wishes = Wishes { plan: &plan, arguments: &[], without_resume: false };
        let root = "root=UUID=11111111-1111-4111-8111-111111111111";
        let check = |flags: &str, expect: &str| {
            let new = rewrite(&format!("linux /vmlinuz {root}{flags}\n"), &wishes).0;
            assert_eq!(new, format!("linux /vmlinuz {root}{expect}\n"));
        };
        check(" rootflags=subvol=@rootfs", " rootflags=subvol=@rootfs");
        check("", " rootflags=subvol=@rootfs");
        check(" rootflags=noatime,subvolid=256,subvol=@rootfs", " rootflags=noatime,subvol=@rootfs");
        check(" rootflags=subvolid=256", " rootflags=subvol=@rootfs");
    }

    #[test]
    fn where_boot_lies() {
        assert_eq!(boot_prefix(&plan(false)).unwrap(), "/@rootfs/boot");
        assert_eq!(boot_prefix(&plan(true)).unwrap(), "");
    }
}
