//! Every way in which a protect request can be wrong, and what a good one plans.

use super::*;
use standin_model::Volume;

fn volume(mount_point: &str, file_system: Option<FileSystem>, size: u64, used: u64) -> Volume {
    Volume {
        mount_point: mount_point.into(),
        device: "/dev/vda1".into(),
        file_system,
        file_system_name: file_system.map_or("zfs", FileSystem::as_str).into(),
        uuid: "7d1c2f2e-0001-4000-8000-000000000001".into(),
        label: String::new(),
        size: ByteLen(size),
        used: ByteLen(used),
        nodes_used: 10,
        extra_subvolumes: 0,
        partition_uuid: None,
        subvolume: None,
        features: Vec::new(),
        capture_obstacle: None,
    }
}

fn facts() -> HostFacts {
    let inventory = Inventory {
        hostname: "web1.example.org".into(),
        os_name: "Debian 13".into(),
        kernel_release: "6.12".into(),
        architecture: "x86_64".into(),
        firmware: Firmware::Uefi,
        cpus: 2,
        memory: ByteLen(1 << 30),
        volumes: vec![
            volume("/srv", Some(FileSystem::Xfs), 8 << 30, 1 << 30),
            volume("/", Some(FileSystem::Ext4), 4 << 30, 2 << 30),
            volume("/tank", None, 1 << 30, 0),
        ],
        swaps: Vec::new(),
        system_partition: None,
        network_cards: Vec::new(),
        capture_obstacles: Vec::new(),
        periodic: None,
    };
    HostFacts {
        agent: AgentId::from_random([1; 8]),
        connected: true,
        inventory,
        names_in_use: vec!["taken".into()],
        protected_by: None,
        datastore: "default".into(),
        datastore_free: ByteLen(20 << 30),
        shares_blocks: true,
        host_cpus: 8,
        host_memory: ByteLen(16 << 30),
    }
}

/// A job over all that can be protected of that source.
pub fn job_of_a_test() -> (standin_model::JobSpec, Inventory) {
    let inventory = facts().inventory;
    let volumes = inventory.volumes.iter().filter(|volume| volume.file_system.is_some()).enumerate().map(|(index, volume)| {
        let id = standin_model::VolumeId(index as u16);
        let (mount_point, uuid, label) = (volume.mount_point.clone(), volume.uuid.clone(), volume.label.clone());
        standin_model::VolumeSpec { id, mount_point, file_system: FileSystem::Ext4, uuid, label, size: volume.size }
    });
    let job = standin_model::JobId::from_random([7; 8]);
    (standin_model::JobSpec { job, volumes: volumes.collect(), exclusions: vec![] }, inventory)
}

#[track_caller]
fn check(change: impl FnOnce(&mut HostFacts, &mut ProtectRequest), codes: &[&str]) {
    let (mut facts, mut request) = (facts(), ProtectRequest::default());
    change(&mut facts, &mut request);
    let found = plan_protection(&facts, &request).err().unwrap_or_default();
    let found: Vec<_> = found.iter().map(|problem| problem.code.trim_start_matches("STANDIN-")).collect();
    assert_eq!(found, codes);
}

#[test]
fn a_plain_request_takes_everything_that_can_be_protected_root_first() {
    let summary = plan_protection(&facts(), &ProtectRequest::default()).unwrap();
    assert_eq!(summary.name, "web1");
    let mounts: Vec<_> = summary.volumes.iter().map(|volume| volume.mount_point.as_str()).collect();
    assert_eq!(mounts, ["/", "/srv"]);
    assert_eq!((summary.cpus, summary.memory, summary.firmware), (2, ByteLen(1 << 30), Firmware::Uefi));
    assert!(summary.warnings.iter().any(|warning| warning.contains("/tank")));
    let copied = |shares_blocks| {
        let summary = plan_protection(&HostFacts { shares_blocks, ..facts() }, &ProtectRequest::default()).unwrap();
        summary.warnings.iter().any(|warning| warning.contains("recovery point is a whole copy"))
    };
    assert!(copied(false) && !copied(true));
    assert!(summary.needed.0 > 3 << 30);
}

#[test]
fn every_problem_has_its_code() {
    check(|_, _| {}, &[]);
    check(|f, _| f.connected = false, &["E4020"]);
    check(|f, _| f.protected_by = Some("x".into()), &["E4021"]);
    check(|f, _| f.inventory.capture_obstacles = vec!["no BTF".into(), "lockdown".into()], &["E4022", "E4022"]);
    check(|f, _| f.inventory.volumes[0].capture_obstacle = Some("another prototype".into()), &["E4022"]);
    for name in ["../x", "Web1", "-x", ".x", "a b", &"x".repeat(49)] {
        check(|_, r| r.name = name.into(), &["E4023"]);
    }
    check(|_, r| r.name = "taken".into(), &["E4024"]);
    for glob in ["relative", "/", "/*", "/a\nb"] {
        check(|_, r| r.exclusions = vec![glob.into()], &["E4025"]);
    }
    check(|_, r| r.volumes = vec!["/srv".into()], &["E4026"]);
    check(|_, r| r.volumes = vec!["/".into(), "/none".into()], &["E4027"]);
    check(|_, r| r.sizes = BTreeMap::from([("/none".into(), ByteLen(1))]), &["E4027"]);
    check(|_, r| r.volumes = vec!["/".into(), "/tank".into()], &["E4028"]);
    check(|f, _| f.inventory.volumes[0].extra_subvolumes = 2, &["E4029"]);
    let rootfs = |facts: &mut HostFacts, extra| {
        (facts.inventory.volumes[0].subvolume, facts.inventory.volumes[0].extra_subvolumes) = (Some("/@rootfs".into()), extra);
    };
    check(|f, _| rootfs(f, 1), &[]);
    check(|f, _| rootfs(f, 2), &["E4029"]);
    check(|_, r| r.sizes = BTreeMap::from([("/".into(), ByteLen(1 << 30))]), &["E4030"]);
    check(|_, r| r.cpus = Some(0), &["E4031"]);
    check(|_, r| r.cpus = Some(9), &["E4031"]);
    check(|_, r| r.memory = Some(ByteLen(1)), &["E4032"]);
    check(|f, _| f.datastore_free = ByteLen(1 << 30), &["E4033"]);
}

#[test]
fn problems_are_collected() {
    check(
        |f, r| {
            f.connected = false;
            r.name = "taken".into();
            r.cpus = Some(99);
        },
        &["E4020", "E4024", "E4031"],
    );
}

#[test]
fn what_is_left_out_by_default_has_a_reason_and_can_be_wanted() {
    let mut facts = facts();
    let swap =
        |device: &str| standin_model::SwapArea { device: device.into(), uuid: String::new(), label: String::new(), size: ByteLen(1 << 20) };
    facts.inventory.swaps = vec![swap("/dev/vda5"), swap("/swapfile"), swap("/odd*")];
    let summary = plan_protection(&facts, &ProtectRequest { exclusions: vec!["/srv/cache".into()], ..Default::default() }).unwrap();
    let excludes = |summary: &ProtectionSummary, pattern: &str| summary.exclusions.iter().any(|exclusion| exclusion == pattern);
    assert_eq!(summary.exclusions[..2], ["/srv/cache", "/swapfile"]);
    assert!(excludes(&summary, "/**/base/pgsql_tmp") && excludes(&summary, "/var/lib/standin-agent"));
    standin_exclusion::Exclusions::new(&summary.exclusions).unwrap();
    assert!(summary.left_out.iter().all(|left| !left.reason.is_empty()));
    assert_eq!(summary.swap, ByteLen(1 << 20), "a swap file is no partition");
    assert_eq!(summary.warnings.iter().filter(|warning| warning.contains("missing on the replica")).count(), 1);
    let summary = plan_protection(&facts, &ProtectRequest { no_default_exclusions: true, ..Default::default() }).unwrap();
    assert!(summary.exclusions.is_empty() && summary.left_out.is_empty());
    let wanted = |pattern: &str| ProtectRequest { wanted: vec![pattern.into()], ..Default::default() };
    let summary = plan_protection(&facts, &wanted("/swapfile")).unwrap();
    assert!(!excludes(&summary, "/swapfile") && excludes(&summary, "/**/ibtmp1"));
    assert_eq!(plan_protection(&facts, &wanted("/srv")).unwrap_err()[0].code, "STANDIN-E4025");
}

#[test]
fn a_disk_may_grow() {
    let mut request = ProtectRequest::default();
    request.sizes.insert("/".into(), ByteLen(10 << 30));
    assert_eq!(plan_protection(&facts(), &request).unwrap().volumes[0].size, ByteLen(10 << 30));
}

#[test]
fn sizes_read_well() {
    for (bytes, text) in [(0, "0 B"), (999, "999 B"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (500 << 30, "500 GiB")] {
        assert_eq!(human(ByteLen(bytes)), text);
    }
}
