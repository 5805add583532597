//! Fuzz targets of what the kernel hands over: ring records, what becomes of a sequence of them, type information, the mount table.
//!
//! The kernel is no enemy, but our programs read its memory, and what they read wrong must not end the agent or poison the stream.

use crate::assembler::Assembler;
use crate::btf::Btf;
use crate::mounts;
use crate::record::{HEAD_BYTES, NAME_BYTES, Record};
use crate::{CaptureEvent, LossReason};
use standin_fuzz::{Script, TIME, check, edited, within};
use standin_model::{VolumeId, codec};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
const DEVICE: u32 = 7;

/// Bytes of a record head, all but kind and length from `fields`.
fn record_bytes(kind: u16, fields: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEAD_BYTES];
    bytes[8..].iter_mut().zip(fields).for_each(|(byte, field)| *byte = *field);
    bytes[0..2].copy_from_slice(&kind.to_le_bytes());
    bytes[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend(payload);
    bytes
}

fn take_record(bytes: &[u8]) {
    let Some(record) = within(0, || Record::decode(bytes)) else { return };
    let claimed = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
    assert_eq!(record.payload, &bytes[HEAD_BYTES..HEAD_BYTES + claimed], "a payload is there, or the record is refused");
    assert!(Record::decode(&bytes[..HEAD_BYTES + claimed - 1]).is_none(), "a record that was cut short is refused");
    for at in [0, 1, NAME_BYTES, usize::MAX] {
        for room in [0, 1, NAME_BYTES, usize::MAX] {
            assert!(record.text(at, room).is_none_or(|text| text.len() <= room && !text.contains(&0)));
        }
        let _ = record.payload_node(at);
    }
    let _ = record.node.kind();
}

#[test]
fn record() {
    let samples = record_samples();
    check!(name = "record").with_test_time(TIME).for_each(|bytes| {
        take_record(bytes);
        let mut script = Script::new(bytes);
        let (_, valid) = &samples[script.below(samples.len())];
        take_record(&edited(valid, &mut script));
    });
}

fn record_samples() -> Vec<(&'static str, Vec<u8>)> {
    let fields = [&DEVICE.to_le_bytes()[..], &1u32.to_le_bytes(), &[9; 120]].concat();
    let name = [b"name".to_vec(), vec![0; NAME_BYTES - 4]].concat();
    let rename = [vec![1; 64], name.clone(), name.clone()].concat();
    let xattr = [name.clone(), vec![7; 256]].concat();
    let samples = [
        ("data", 1, vec![5; 64]),
        ("create", 6, name),
        ("rename", 10, rename),
        ("xattr", 15, xattr),
        ("close", 27, vec![]),
        ("opaque", 28, vec![]),
    ];
    samples.map(|(name, kind, payload)| (name, record_bytes(kind, &fields, &payload))).to_vec()
}

/// A record whose fields are likely to belong to each other: few tasks and nodes, small or extreme numbers.
fn scripted_record(script: &mut Script) -> Vec<u8> {
    let kind = u16::from(script.byte() % 31);
    let mut fields = vec![0; 128];
    let mut put = |at: usize, bytes: &[u8]| fields[at - 8..at - 8 + bytes.len()].copy_from_slice(bytes);
    put(8, &DEVICE.to_le_bytes());
    put(12, &u32::from(script.byte() % 3).to_le_bytes());
    put(24, &u64::from(script.byte() % 4).to_le_bytes());
    put(44, &[0o100644u32, 0o040755, 0o120777, 0o020000, 0, u32::MAX][usize::from(script.byte() % 6)].to_le_bytes());
    put(56, &u64::from(script.byte() % 4).to_le_bytes());
    put(16, &u64::from(script.byte()).to_le_bytes());
    for at in [48, 88, 104, 112, 120, 128] {
        let number = if script.byte().is_multiple_of(2) { u64::from(script.byte()) } else { script.edge() };
        put(at, &number.to_le_bytes());
    }
    let len = [0, 1, 64, NAME_BYTES, 64 + 2 * NAME_BYTES, NAME_BYTES + 256][usize::from(script.byte() % 6)];
    let mut payload = vec![b'n'; len];
    let zero = script.below(len + 1);
    payload[zero..].fill(0);
    let mut bytes = record_bytes(kind, &fields, &payload);
    bytes[2] = script.byte() & 1;
    bytes
}

/// Whatever the records say: no operation leaves that the appliance would refuse, because the whole stream would stand still behind it.
#[test]
fn record_sequence() {
    check!(name = "sequence").with_test_time(TIME).for_each(|bytes| {
        let mut script = Script::new(bytes);
        let mut assembler = Assembler::new([(DEVICE, VolumeId(0))]);
        let mut sink = |event| {
            let CaptureEvent::Operation { operation, .. } = event else { return };
            let mut written = Vec::new();
            codec::encode(&operation, &mut written);
            assert_eq!(codec::decode(&written), Ok((operation, &[][..])), "the appliance reads what is captured");
        };
        let mut fed = 0;
        while !script.is_over() && fed < 64 << 10 {
            let record = scripted_record(&mut script);
            fed += record.len();
            within(256 << 10, || assembler.feed(&record, &mut sink));
            assert!(assembler.held_bytes() <= 8 * (fed as u64 + 128), "what is held came in");
        }
        assembler.settle(u64::MAX, &mut sink);
        assembler.give_up_held(u64::MAX, &mut sink);
        assert_eq!(assembler.held_bytes(), 0, "nothing stays behind");
    });
}

/// What is no record is a loss that is told.
#[test]
fn any_record() {
    check!(name = "record").with_test_time(TIME / 4).for_each(|bytes| {
        let mut events = Vec::new();
        Assembler::new([(DEVICE, VolumeId(0))]).feed(bytes, &mut |event| events.push(event));
        let told = matches!(events[..], [CaptureEvent::LostEverything { reason: LossReason::BadRecord }]);
        assert!(told || Record::decode(bytes).is_some());
    });
}

const NAMES: [&str; 6] = ["vfs_rename", "inode", "i_size", "loff_t", "REQ_OP_WRITE", "page"];

fn take_btf(bytes: &[u8], depth: u32) {
    let Some(btf) = within(4096 + bytes.len() * 100, || Btf::parse(bytes.to_vec(), None)) else { return };
    let ask = |btf: &Btf| {
        for name in NAMES {
            let _ = (btf.prototype(name), btf.returns(name), btf.struct_bytes(name), btf.enumerator(name));
            for member in NAMES {
                let _ = (btf.member_offset(name, member), btf.member_type(name, member));
            }
        }
    };
    ask(&btf);
    if depth == 0 {
        // As a module on top of itself.
        let base = std::sync::Arc::new(btf);
        Btf::parse(bytes.to_vec(), Some(base)).iter().for_each(ask);
    }
}

#[test]
fn btf() {
    let samples = btf_samples();
    check!(name = "btf").with_test_time(TIME).for_each(|bytes| {
        take_btf(bytes, 0);
        let mut script = Script::new(bytes);
        let (_, valid) = &samples[script.below(samples.len())];
        take_btf(&edited(valid, &mut script), 0);
    });
}

/// Type information by hand (Documentation/bpf/btf.rst): `loff_t`, `struct inode`, an enumeration, and `vfs_rename(struct inode *, loff_t)`.
fn btf_samples() -> Vec<(&'static str, Vec<u8>)> {
    let mut strings = vec![0u8];
    let at: Vec<u32> = NAMES
        .iter()
        .map(|name| {
            let at = strings.len() as u32;
            strings.extend(name.bytes().chain([0]));
            at
        })
        .collect();
    let kind = |kind: u32, count: u32| kind << 24 | count;
    let words: Vec<u32> = [
        &[at[3], kind(1, 0), 8, 64][..],                 // 1: loff_t
        &[at[1], kind(4, 2), 16, at[2], 1, 0, 0, 4, 64], // 2: struct inode { loff_t i_size; struct { … }; }
        &[0, kind(2, 0), 2],                             // 3: struct inode *
        &[0, kind(4, 1), 8, at[5], 3, 0],                // 4: struct { struct inode *page; }
        &[0, kind(13, 2), 1, 0, 3, 0, 1],                // 5: loff_t (struct inode *, loff_t)
        &[at[0], kind(12, 0), 5],                        // 6: vfs_rename
        &[0, kind(6, 1), 4, at[4], 1],                   // 7: enum { REQ_OP_WRITE = 1 }
    ]
    .concat();
    let types: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let header = [0x9f, 0xeb, 1, 0]
        .into_iter()
        .chain([24, 0, types.len() as u32, types.len() as u32, strings.len() as u32].into_iter().flat_map(u32::to_le_bytes));
    vec![("small", header.chain(types.iter().copied()).chain(strings).collect())]
}

#[test]
fn the_samples_are_good() {
    standin_fuzz::seeds(FOLDER, "record", &record_samples())
        .iter()
        .for_each(|(name, bytes)| assert!(Record::decode(bytes).is_some(), "{name}"));
    standin_fuzz::seeds(FOLDER, "mountinfo", &mount_samples());
    for (_, bytes) in standin_fuzz::seeds(FOLDER, "btf", &btf_samples()) {
        let btf = Btf::parse(bytes, None).expect("it is BTF");
        assert_eq!(btf.prototype("vfs_rename").as_deref(), Some("inode*,loff_t"));
        assert_eq!((btf.member_offset("inode", "i_size"), btf.member_type("inode", "page").as_deref()), (Some(0), Some("inode*")));
        assert_eq!(btf.enumerator("REQ_OP_WRITE"), Some(1));
    }
}

#[test]
fn mountinfo() {
    let samples = mount_samples();
    check!(name = "mountinfo").with_test_time(TIME).for_each(|bytes| {
        take_mounts(bytes);
        let mut script = Script::new(bytes);
        let (_, valid) = &samples[script.below(samples.len())];
        take_mounts(&edited(valid, &mut script));
        // Any name that the kernel may write is read back.
        let name = format!("/{}", String::from_utf8_lossy(script.rest()));
        let line = format!("36 35 8:1 / {} rw - ext4 /dev/sda1 rw,subvol={}", escaped(&name), escaped(&name));
        let mounts = mounts::parse(line.as_bytes());
        assert_eq!(
            mounts.first().map(|mount| (mount.mount_point.as_str(), mount.option("subvol"))),
            Some((name.as_str(), Some(name.clone())))
        );
    });
}

fn take_mounts(table: &[u8]) {
    // Bytes that are no text become three bytes each.
    let mounts = within(4096 + table.len() * 48, || mounts::parse(table));
    assert!(mounts.len() <= table.split(|byte| *byte == b'\n').count());
    for mount in mounts {
        let _ = (mount.option("subvol"), mount.option(""));
    }
}

/// As the kernel's `mangle` writes it, and commas as btrfs does.
fn escaped(name: &str) -> String {
    let mut text = String::new();
    for character in name.chars() {
        match character {
            ' ' | '\t' | '\n' | '\\' | ',' | '#' => text.push_str(&format!("\\{:03o}", character as u32)),
            other => text.push(other),
        }
    }
    text
}

fn mount_samples() -> Vec<(&'static str, Vec<u8>)> {
    let table = r"22 27 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw
27 1 254:1 /@rootfs / rw,relatime shared:1 - btrfs /dev/vda1 rw,space_cache=v2,subvolid=256,subvol=/@rootfs
31 27 254:2 / /srv/a\040b rw shared:2 master:1 - ext4 /dev/mapper/vg-data rw,errors=remount-ro
";
    vec![("debian", table.as_bytes().to_vec())]
}
