//! Fuzz targets of what a stranger or an enrolled end may send: frames, messages, certificate requests, tokens.

use crate::error::ConnectionError;
use crate::frame::{Assembler, FRAME_HEADER_LEN, Kind, Limits, header};
use crate::*;
use serde::{Serialize, de::DeserializeOwned};
use standin_fuzz::{Script, TIME, check, edited, within};
use standin_model::*;
use std::fmt::Debug;
use std::panic::AssertUnwindSafe;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

type Frames = Result<Vec<(Kind, Vec<u8>)>, ConnectionError>;

/// Cuts a stream into pieces of the lengths that the script says, at least one byte each.
fn assemble(limits: Limits, mut stream: &[u8], mut len: impl FnMut() -> usize) -> Frames {
    let mut assembler = Assembler::new(limits);
    let mut frames = Vec::new();
    while !stream.is_empty() {
        let (piece, behind) = stream.split_at(len().clamp(1, stream.len()));
        let mut rest = piece;
        while !rest.is_empty() {
            let before = rest.len();
            let (frame, left) = assembler.take(rest)?;
            assert!(left.len() < before, "every call takes something");
            frames.extend(frame);
            rest = left;
        }
        stream = behind;
    }
    Ok(frames)
}

fn take_frames(limits: Limits, stream: &[u8], script: &mut Script) {
    // A claim of 8 MiB costs nothing until its bytes are there; a vector that grows holds the old half too, and each frame has its place in a list.
    let heap_bytes_max = 4096 + stream.len() * 16;
    let whole = within(heap_bytes_max, || assemble(limits, stream, || usize::MAX));
    let cut = within(heap_bytes_max, || assemble(limits, stream, || script.below(9)));
    match (&whole, &cut) {
        (Ok(one), Ok(other)) => assert_eq!(one, other, "however the bytes are cut"),
        (Err(one), Err(other)) => assert_eq!(one.to_string(), other.to_string()),
        _ => panic!("the cut decides: {whole:?} and {cut:?}"),
    }
    match whole {
        Ok(frames) => {
            let written: Vec<u8> =
                frames.iter().flat_map(|(kind, payload)| [&header(*kind, payload.len())[..], payload].concat()).collect();
            assert!(stream.starts_with(&written), "frames are the bytes that came");
            frames.iter().for_each(|(kind, payload)| limits.check(*kind, payload.len()).expect("no frame beyond its bound"));
        }
        Err(error) => assert!(error.is_corrupt() && matches!(error.code(), "STANDIN-E1008" | "STANDIN-E1009"), "{error}"),
    }
}

#[test]
fn frames() {
    let samples = frame_samples();
    check!(name = "frames").with_test_time(TIME).for_each(|bytes| {
        let mut script = Script::new(bytes);
        let limits = [Limits::SESSION, Limits::NEWCOMER][usize::from(script.byte() % 2)];
        let (_, valid) = &samples[script.below(samples.len())];
        let stream = edited(valid, &mut script);
        take_frames(limits, &stream, &mut script);
        take_frames(Limits::SESSION, bytes, &mut script);
    });
}

fn frame_samples() -> Vec<(&'static str, Vec<u8>)> {
    let frame = |kind, payload: &[u8]| [&header(kind, payload.len())[..], payload].concat();
    let status = serde_json::to_vec(&ToAppliance::Status(Status::default())).expect("a message is JSON");
    assert_eq!(frame(Kind::KeepAlive, b"").len(), FRAME_HEADER_LEN);
    let session = [frame(Kind::Control, &status), frame(Kind::KeepAlive, b""), frame(Kind::Segment, &[0x53; 100])].concat();
    vec![("session", session), ("control", frame(Kind::Control, &status)), ("segment", frame(Kind::Segment, b"SSEG\x01\0"))]
}

/// A message that is understood says the same after it was written again; nothing is kept that is much larger than what came.
fn take_message<M: Serialize + DeserializeOwned + PartialEq + Debug>(json: &[u8]) {
    // A message whose kind comes late is kept as a tree of values first: 32 bytes for each `0,`, in a vector that doubles.
    let Ok(message) = within(4096 + json.len() * 64, || serde_json::from_slice::<M>(json)) else { return };
    let again = serde_json::to_vec(&message).expect("a message is JSON");
    assert_eq!(serde_json::from_slice::<M>(&again).expect("what is written is read"), message);
}

fn take_messages(json: &[u8]) {
    take_message::<ToAppliance>(json);
    take_message::<ToAgent>(json);
    take_message::<EnrolRequest>(json);
    take_message::<EnrolReply>(json);
}

#[test]
fn message() {
    let samples = message_samples();
    check!(name = "message").with_test_time(TIME).for_each(|bytes| {
        take_messages(bytes);
        let mut script = Script::new(bytes);
        let (_, valid) = &samples[script.below(samples.len())];
        take_messages(&edited(valid, &mut script));
    });
}

/// What the first version wrote is understood as what it meant.
#[test]
fn messages_of_every_version_are_read() {
    standin_fuzz::seeds(FOLDER, "frames", &frame_samples());
    for (name, json) in standin_fuzz::seeds(FOLDER, "message", &message_samples()) {
        let known = [
            serde_json::from_slice::<ToAppliance>(&json).is_ok_and(|message| message != ToAppliance::Unknown),
            serde_json::from_slice::<ToAgent>(&json).is_ok_and(|message| message != ToAgent::Unknown),
            serde_json::from_slice::<EnrolRequest>(&json).is_ok(),
        ];
        assert!(known.contains(&true), "{name}");
    }
}

fn message_samples() -> Vec<(&'static str, Vec<u8>)> {
    let job = || JobId::from_random([7; 8]);
    let volume = VolumeSpec {
        id: VolumeId(0),
        mount_point: "/".into(),
        file_system: FileSystem::Ext4,
        uuid: "11111111-1111-4111-8111-111111111111".into(),
        label: "root".into(),
        size: ByteLen(1 << 30),
    };
    let spec = JobSpec { job: job(), volumes: vec![volume], exclusions: vec!["/var/cache/*".into()] };
    let one = VolumeProgress { mount_point: "/".into(), nodes_done: 1, nodes_total: 2, bytes_done: 3, bytes_total: 4 };
    let progress = MirrorProgress {
        phase: MirrorPhase::Content,
        nodes_done: 1,
        nodes_total_estimate: 2,
        bytes_done: 3,
        bytes_total: u64::MAX,
        volumes: vec![one],
    };
    let status = Status { job: Some(job()), captured_at: Timestamp(-1), mirror: Some(progress), ..Status::default() };
    let node = NodeId { volume: VolumeId(0), subvolume: 256, inode: 257, generation: 1 };
    let request = EnrolRequest { protocol: PROTOCOL, secret: "a".repeat(40), csr: "-----BEGIN".into(), hostname: "h".into() };
    let json = |message: serde_json::Result<Vec<u8>>| message.expect("a message is JSON");
    let up = |message: ToAppliance| json(serde_json::to_vec(&message));
    let down = |message: ToAgent| json(serde_json::to_vec(&message));
    vec![
        ("hello", up(ToAppliance::Hello(Box::new(crate::tests::lab::hello(&AgentId::from_random([1; 8])))))),
        ("status", up(ToAppliance::Status(status))),
        ("quiesced", up(ToAppliance::Quiesced { job: job(), seq: OpSeq(u64::MAX) })),
        ("refused", up(ToAppliance::Refused { job: None, code: "STANDIN-E6001".into(), cause: "é\u{0}".into() })),
        ("start", down(ToAgent::StartJob { spec, next: OpSeq(1), epoch: 1, since: Some(Timestamp(5)), compares: true })),
        ("want", down(ToAgent::Want { job: job(), nodes: vec![node; 3] })),
        (
            "differs",
            down(ToAgent::Differs { job: job(), answers: vec![Differs { seq: OpSeq(9), blocks: [0, 255].into_iter().collect() }] }),
        ),
        ("ack", down(ToAgent::Ack { job: job(), durable: OpSeq(9), applied: OpSeq(3) })),
        ("enrol", json(serde_json::to_vec(&request))),
    ]
}

/// A stranger's certificate request, and everything else that is PEM: refused with a code, or fit to be signed.
#[test]
fn certificate_request() {
    let (key, good) = new_key_and_request().expect("this machine makes keys");
    let folder = tempfile::TempDir::new().expect("a directory");
    // Its keys are never half changed.
    let authority = AssertUnwindSafe(Authority::open_or_create(folder.path()).expect("an authority"));
    authority.check_request(&good).expect("our own request is good");
    let der = x509_parser::pem::parse_x509_pem(good.as_bytes()).expect("PEM").1.contents;
    let take = |pem: &str, key: &str| {
        // The request is read, its key and its signature; what it asks for is ignored.
        match within(64 << 10, || authority.check_request(pem)) {
            Ok(()) => {
                drop(authority.sign_agent(pem, &AgentId::from_random([1; 8]), std::time::Duration::from_secs(60)).expect("it was checked"))
            }
            Err(error) => assert_eq!(error.code(), "STANDIN-E1015", "{error}"),
        }
        if let Err(error) = Identity::new(pem.to_owned(), key.to_owned(), pem.to_owned()) {
            assert!(error.code().starts_with("STANDIN-E10"), "{error}");
        }
    };
    check!(name = "certificate_request").with_test_time(TIME).for_each(|bytes| {
        take(&String::from_utf8_lossy(bytes), &key);
        let mut script = Script::new(bytes);
        let bytes = edited(&der, &mut script);
        take(&pem(&bytes), &key);
    });
}

fn pem(der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE REQUEST-----\n");
    for three in der.chunks(3) {
        let word = three.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        let digit = |at: usize| if at > three.len() { '=' } else { char::from(DIGITS[(word >> (18 - 6 * at) & 63) as usize]) };
        text.extend((0..4).map(digit));
        text.push('\n');
    }
    text + "-----END CERTIFICATE REQUEST-----\n"
}

#[test]
fn token() {
    let good = Token::generate(&"ab".repeat(32)).expect("randomness").to_string();
    check!(name = "token").with_test_time(TIME / 4).for_each(|bytes| {
        for text in [bytes.to_vec(), edited(good.as_bytes(), &mut Script::new(bytes))] {
            let text = String::from_utf8_lossy(&text);
            if let Ok(token) = Token::parse(&text) {
                assert_eq!(token.to_string(), text.trim(), "a token has one spelling");
            }
        }
    });
}
