//! Rewrites fstab, crypttab and resume settings for the replica's disk. Pure; unknown lines stay byte for byte.
//!
//! The mount point decides which volume a line means, so that flattened LVM, MD and LUKS names need no knowledge of the source's
//! devices. A line for something that the replica does not have gets `nofail` (and `noauto` where it goes by a kernel name), with the reason above it.

use crate::disk::{DiskPlan, PartitionRole};

/// One changed line, for the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineChange {
    pub what: String,
    pub why: String,
}

/// Rewrites fstab.
pub fn rewrite_fstab(text: &str, plan: &DiskPlan) -> (String, Vec<LineChange>) {
    let mut changes = Vec::new();
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        match fstab_line(line, plan) {
            Some((new, change)) => {
                out.push_str(&new);
                changes.push(change);
            }
            None => out.push_str(line),
        }
    }
    (out, changes)
}

fn fstab_line(line: &str, plan: &DiskPlan) -> Option<(String, LineChange)> {
    let trimmed = line.trim();
    if trimmed.is_empty() || trimmed.starts_with('#') {
        return None;
    }
    let fields: Vec<&str> = trimmed.split_whitespace().collect();
    let (spec, at, kind) = (*fields.first()?, *fields.get(1)?, *fields.get(2)?);
    let options = fields.get(3).copied().unwrap_or("defaults");
    if !names_device(spec) || options.split(',').any(|option| option == "bind" || option == "rbind") {
        return None;
    }
    match wanted_spec(spec, at, kind, plan) {
        Wanted::Keep => None,
        Wanted::Spec(new) => {
            // Only the first field changes; what follows keeps its spacing.
            let rest = trimmed.get(spec.len()..).unwrap_or_default();
            let what = format!("{at}: {spec} becomes {new}");
            let why = "the source's device name does not exist on the replica's disk".to_owned();
            Some((format!("{new}{rest}\n"), LineChange { what, why }))
        }
        Wanted::Absent if options.split(',').any(|option| option == "nofail" || option == "noauto") => None,
        Wanted::Absent => {
            let mut new: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
            new.resize(new.len().max(4), options.to_owned());
            // A kernel name may mean another partition on the replica's disk, so such a line must not mount anything by itself.
            let extra = if spec.starts_with("/dev/") && !spec.starts_with("/dev/disk/") { "nofail,noauto" } else { "nofail" };
            new[3] = format!("{options},{extra}");
            let note = "# Standin: not on the replica's disk (not protected), so its absence must not stop the boot.";
            let why = "the volume is not protected, and its absence must not stop the boot".to_owned();
            Some((format!("{note}\n{}\n", new.join(" ")), LineChange { what: format!("{at}: {extra}"), why }))
        }
    }
}

enum Wanted {
    Keep,
    Spec(String),
    Absent,
}

fn wanted_spec(spec: &str, at: &str, kind: &str, plan: &DiskPlan) -> Wanted {
    let by_uuid = |uuid: &str| match spec_value(spec, "UUID=").or_else(|| spec.strip_prefix("/dev/disk/by-uuid/")) {
        Some(value) if value.eq_ignore_ascii_case(uuid) => Wanted::Keep,
        _ => Wanted::Spec(format!("UUID={uuid}")),
    };
    if kind == "swap" {
        let known = plan.swaps().find(|(part, swap)| {
            spec_value(spec, "UUID=").is_some_and(|value| value.eq_ignore_ascii_case(&swap.uuid))
                || swap.device == spec
                || spec_value(spec, "PARTUUID=").is_some_and(|value| value.eq_ignore_ascii_case(&part.guid))
                || (!swap.label.is_empty() && spec_value(spec, "LABEL=") == Some(swap.label.as_str()))
        });
        return known.map_or(Wanted::Absent, |(_, swap)| by_uuid(&swap.uuid));
    }
    for part in &plan.partitions {
        match &part.role {
            PartitionRole::Volume { volume } if volume.source.mount_point == at || volume.source.device == spec => {
                let volume = &volume.source;
                if spec_value(spec, "PARTUUID=").is_some_and(|value| value.eq_ignore_ascii_case(&part.guid)) {
                    return Wanted::Keep;
                }
                if !volume.label.is_empty() && spec_value(spec, "LABEL=") == Some(volume.label.as_str()) {
                    return Wanted::Keep;
                }
                return by_uuid(&volume.uuid);
            }
            PartitionRole::Esp { volume_id, mount_point: Some(mount_point), .. } if mount_point == at => return by_uuid(volume_id),
            _ => {}
        }
    }
    let known = |uuid: &str| plan.volumes().any(|(_, volume)| volume.source.uuid.eq_ignore_ascii_case(uuid));
    if spec_value(spec, "UUID=").is_some_and(known) { Wanted::Keep } else { Wanted::Absent }
}

fn names_device(spec: &str) -> bool {
    ["/dev/", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "ID="].iter().any(|prefix| spec.starts_with(prefix))
}

fn spec_value<'a>(spec: &'a str, tag: &str) -> Option<&'a str> {
    spec.strip_prefix(tag).map(|value| value.trim_matches('"'))
}

/// Comments out every line of crypttab: the replica's volumes lie decrypted on its disk, and a missing device would stop the boot.
pub fn rewrite_crypttab(text: &str) -> (String, Vec<LineChange>) {
    let mut changes = Vec::new();
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim_start();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            out.push_str(line);
            continue;
        }
        let name = trimmed.split_whitespace().next().unwrap_or_default();
        out.push_str("# Standin: volumes lie unencrypted on the replica's disk. ");
        out.push_str(line);
        changes.push(LineChange { what: format!("{name}: commented out"), why: "the replica has no encrypted devices".into() });
    }
    (out, changes)
}

/// True when the initrd's resume setting waits for a device that the replica does not have.
pub fn resume_is_absent(text: &str, plan: &DiskPlan) -> bool {
    let value = text.lines().find_map(|line| line.trim().strip_prefix("RESUME=")).unwrap_or("auto").trim_matches('"');
    !matches!(value, "" | "auto" | "none") && !plan.swaps().any(|(_, swap)| value == format!("UUID={}", swap.uuid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::fixture;

    fn plan() -> DiskPlan {
        fixture::installed("/dev/mapper/vg-root")
    }

    #[test]
    fn an_installers_fstab() {
        let text = "# comment\n/dev/mapper/vg-root /  ext4  errors=remount-ro 0 1\nUUID=abcd-1234 /boot/efi vfat umask=0077 0 1\n\
            /dev/sda5 none swap sw 0 0\n/dev/sdb1 /data xfs defaults 0 2\ntmpfs /tmp tmpfs defaults 0 0\nnas:/x /mnt nfs defaults 0 0\n\
            UUID=22222222-2222-4222-8222-222222222222 none swap sw 0 0\n/dev/sr0 /media udf noauto 0 0\nbroken\n";
        let (new, changes) = rewrite_fstab(text, &plan());
        assert!(new.contains("UUID=11111111-1111-4111-8111-111111111111 /  ext4  errors=remount-ro 0 1\n"), "{new}");
        assert!(new.contains("UUID=abcd-1234 /boot/efi"));
        assert!(new.contains("UUID=22222222-2222-4222-8222-222222222222 none swap sw 0 0\n# Standin"), "{new}");
        assert!(new.contains("/dev/sdb1 /data xfs defaults,nofail,noauto 0 2\n"));
        assert!(new.contains("broken\n") && new.contains("nas:/x /mnt nfs defaults 0 0\n"));
        assert_eq!(changes.len(), 3);
        assert_eq!(rewrite_fstab(&new, &plan()), (new, Vec::new()));
    }

    #[test]
    fn subvolumes_and_partition_ids_of_the_source() {
        let mut root = fixture::volume(1, "/", "btrfs", 1 << 30, 0);
        (root.subvolume, root.extra_subvolumes) = (Some("/@rootfs".into()), 1);
        root.partition_uuid = Some("deadbeef-01".into());
        let mut home = fixture::volume(3, "/home", "ext4", 1 << 30, 0);
        home.partition_uuid = Some("0FC63DAF-8483-4772-8E79-3D69D8477DE4".into());
        let plan = fixture::plan(&fixture::source(vec![root, home]));
        let guid = "PARTUUID=0fc63daf-8483-4772-8e79-3d69d8477de4";
        assert_eq!(plan.volume_of_path("/home").unwrap().0.guid, guid["PARTUUID=".len()..]);
        let text = format!("PARTUUID=deadbeef-01 / btrfs defaults,subvol=@rootfs 0 0\n{guid} /home ext4 defaults 0 2\n");
        let (new, _) = rewrite_fstab(&text, &plan);
        assert!(new.starts_with("UUID=11111111-1111-4111-8111-111111111111 / btrfs defaults,subvol=@rootfs 0 0\n"), "{new}");
        assert!(new.contains(&format!("{guid} /home")), "a reference that is still right stays: {new}");
    }

    #[test]
    fn crypttab_and_resume() {
        let (new, changes) = rewrite_crypttab("# x\nroot UUID=1 none luks\n");
        assert_eq!(changes.len(), 1);
        assert!(rewrite_crypttab(&new).1.is_empty());
        assert!(resume_is_absent("RESUME=/dev/sda9\n", &plan()));
        assert!(!resume_is_absent("RESUME=UUID=22222222-2222-4222-8222-222222222222\n", &plan()));
        assert!(!resume_is_absent("", &plan()));
    }
}
