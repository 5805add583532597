//! Frames come out as they went in, however the bytes are cut, and no claim is believed.

use super::*;
use proptest::prelude::*;

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_le_bytes()[..], &[kind], payload].concat()
}

fn assemble(limits: Limits, pieces: impl IntoIterator<Item = Vec<u8>>) -> Result<Vec<(Kind, Vec<u8>)>, ConnectionError> {
    let mut assembler = Assembler::new(limits);
    let mut frames = Vec::new();
    for piece in pieces {
        let mut rest = piece.as_slice();
        while !rest.is_empty() {
            let (frame, behind) = assembler.take(rest)?;
            frames.extend(frame);
            rest = behind;
        }
    }
    Ok(frames)
}

#[test]
fn empty_frames_are_complete_with_their_header() {
    let frames = assemble(Limits::SESSION, [frame(3, b""), frame(1, b"")]).unwrap();
    assert_eq!(frames, [(Kind::KeepAlive, vec![]), (Kind::Control, vec![])]);
}

#[test]
fn claims_beyond_the_bound_are_refused_before_anything_is_kept() {
    let cases = [
        (Limits::SESSION, 1, CONTROL_BYTES_MAX + 1),
        (Limits::SESSION, 2, SEGMENT_FRAME_BYTES_MAX + 1),
        (Limits::SESSION, 2, u32::MAX as usize),
        (Limits::SESSION, 3, 1),
        (Limits::NEWCOMER, 1, NEWCOMER_BYTES_MAX + 1),
        (Limits::NEWCOMER, 2, 1),
    ];
    for (limits, kind, len) in cases {
        let head = [&(len as u32).to_le_bytes()[..], &[kind]].concat();
        let error = assemble(limits, [head]).unwrap_err();
        assert_eq!((error.code(), error.is_corrupt()), ("STANDIN-E1009", true));
    }
    assert!(matches!(assemble(Limits::SESSION, [frame(9, b"x")]), Err(ConnectionError::UnknownFrame { kind: 9 })));
}

proptest! {
    #[test]
    fn any_cutting_gives_the_same_frames(
        frames in prop::collection::vec((1..3u8, prop::collection::vec(any::<u8>(), 0..300)), 0..8),
        sizes in prop::collection::vec(1..200usize, 1..30),
    ) {
        let stream: Vec<u8> = frames.iter().flat_map(|(kind, payload)| frame(*kind, payload)).collect();
        let (mut pieces, mut rest, mut sizes) = (Vec::new(), stream.as_slice(), sizes.into_iter().cycle());
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(sizes.next().unwrap().min(rest.len()));
            pieces.push(piece.to_vec());
            rest = behind;
        }
        let got = assemble(Limits::SESSION, pieces).unwrap();
        let expected: Vec<_> = frames.into_iter().map(|(kind, payload)| (Kind::parse(kind).unwrap(), payload)).collect();
        prop_assert_eq!(got, expected);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = assemble(Limits::SESSION, [bytes]);
    }
}
