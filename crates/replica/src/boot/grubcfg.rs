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
    for argument in wishes.arguments.iter().cloned().chain(noresume) {
        if !new.contains(&argument) {
            new.push(argument);
        }
    }
    new
}

fn rewrite_word(word: &str, wishes: &Wishes) -> Option<String> {
    if let Some(device) = word.strip_prefix("root=") {
        let root = wishes.plan.volume_of_path("/").map(|(part, _, volume)| (part, volume));
        return match root {
            Some((part, volume)) if device_is_foreign(device, &volume.uuid, &volume.label, &part.guid) => {
                Some(format!("root=UUID={}", volume.uuid))
            }
            _ => Some(word.to_owned()),
        };
    }
    if let Some(device) = word.strip_prefix("resume=") {
        let known = wishes.plan.swaps().find(|(part, swap)| {
            swap.device_names.iter().any(|name| name == device) || !device_is_foreign(device, &swap.uuid, &swap.label, &part.guid)
        });
        return known.map(|(_, swap)| format!("resume=UUID={}", swap.uuid));
    }
    Some(word.to_owned())
}

fn device_is_foreign(device: &str, uuid: &str, label: &str, guid: &str) -> bool {
    let same = |prefix: &str, value: &str| device.strip_prefix(prefix).is_some_and(|found| found.eq_ignore_ascii_case(value));
    !(same("UUID=", uuid) || same("PARTUUID=", guid) || (!label.is_empty() && same("LABEL=", label)))
}

/// A grub.cfg for a source that had none (started by its platform's own loader, for example).
pub fn minimal(kernels: &[Kernel], boot_prefix: &str, wishes: &Wishes) -> Option<String> {
    let (_, fs, root) = wishes.plan.volume_of_path("/")?;
    let (_, _, boot) = wishes.plan.volume_of_path("/boot")?;
    let mut words = vec![format!("root=UUID={}", root.uuid), "ro".to_owned()];
    if !root.subvolume.is_empty() {
        words.push(format!("rootflags=subvol={}", root.subvolume));
    }
    words.push(format!("rootfstype={}", fs.name()));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let line = rewrite_words(&words, wishes).join(" ");
    let mut text =
        String::from("# Made by Standin because the source had no grub.cfg; `update-grub` replaces it.\nset timeout=1\nset default=0\n");
    for kernel in kernels {
        let image = kernel.image.trim_start_matches("/boot/");
        text.push_str(&format!("menuentry 'Linux {}' {{\n", kernel.version));
        text.push_str(&format!("\tsearch --no-floppy --fs-uuid --set=root {}\n", boot.uuid));
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
    let (_, _, volume) = plan.volume_of_path("/boot")?;
    let inside = "/boot".strip_prefix(volume.mount_point.trim_end_matches('/')).unwrap_or_default();
    let subvolume = if volume.subvolume.is_empty() { String::new() } else { format!("/{}", volume.subvolume) };
    Some(format!("{subvolume}{inside}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{SourceInventory, WantedDisk};

    fn plan(volumes: &str) -> DiskPlan {
        let text = format!(r#"{{"firmware":"bios","volumes":[{volumes}]}}"#);
        let source: SourceInventory = serde_json::from_str(&text).unwrap();
        DiskPlan::make(&source, &WantedDisk::default(), 1 << 40).unwrap()
    }

    const ROOT: &str = r#"{"id":1,"mount_point":"/","fs_type":"btrfs","uuid":"11111111-1111-4111-8111-111111111111","size":1073741824,"used":0,"subvolume":"@rootfs"}"#;
    const BOOT: &str =
        r#"{"id":2,"mount_point":"/boot","fs_type":"ext4","uuid":"22222222-2222-4222-8222-222222222222","size":1073741824,"used":0}"#;

    #[test]
    fn device_names_become_uuids_and_uuids_stay() {
        let plan = plan(ROOT);
        let arguments = ["console=ttyS0".to_owned()];
        let wishes = Wishes { plan: &plan, arguments: &arguments, without_resume: false };
        let text = "set x=1\n\tlinux\t/boot/vmlinuz-6 root=/dev/sda1 ro quiet resume=/dev/sda5\n\tinitrd /boot/initrd.img-6\n";
        let (new, changes) = rewrite(text, &wishes);
        let line = "\tlinux /boot/vmlinuz-6 root=UUID=11111111-1111-4111-8111-111111111111 ro quiet console=ttyS0\n";
        assert!(new.contains(line), "{new}");
        assert_eq!(changes.len(), 1);
        assert_eq!(rewrite(&new, &wishes), (new, Vec::new()));
    }

    #[test]
    fn where_boot_lies() {
        assert_eq!(boot_prefix(&plan(ROOT)).unwrap(), "/@rootfs/boot");
        assert_eq!(boot_prefix(&plan(&format!("{ROOT},{BOOT}"))).unwrap(), "");
    }
}
