//! Messages survive their JSON, and what a newer end adds does no harm.

use super::*;

fn job() -> JobId {
    JobId::from_random([7; 8])
}

fn check<M: Serialize + for<'a> Deserialize<'a> + PartialEq + std::fmt::Debug>(message: M, json: &str) {
    assert_eq!(serde_json::to_string(&message).unwrap(), json);
    assert_eq!(serde_json::from_str::<M>(json).unwrap(), message);
}

#[test]
fn what_is_sent_is_what_the_document_says() {
    check(
        ToAgent::Ack { job: job(), durable: OpSeq(9), applied: OpSeq(u64::MAX) },
        r#"{"type":"ack","job":"job-0707070707070707","durable":9,"applied":18446744073709551615}"#,
    );
    check(ToAgent::Refused(Refusal::new("STANDIN-E1004", "x")), r#"{"type":"refused","code":"STANDIN-E1004","cause":"x"}"#);
    check(ToAgent::JobFailedOver { job: job() }, r#"{"type":"job-failed-over","job":"job-0707070707070707"}"#);
    check(ToAppliance::Fenced { job: job() }, r#"{"type":"fenced","job":"job-0707070707070707"}"#);
    check(ToAppliance::Quiesced { job: job(), seq: OpSeq(3) }, r#"{"type":"quiesced","job":"job-0707070707070707","seq":3}"#);
}

#[test]
fn unknown_fields_messages_and_phases_are_ignored() {
    let json = r#"{"type":"thaw","job":"job-0707070707070707","colour":{"a":[1]}}"#;
    assert_eq!(serde_json::from_str::<ToAgent>(json).unwrap(), ToAgent::Thaw { job: job() });
    assert_eq!(serde_json::from_str::<ToAgent>(r#"{"type":"sing","song":1}"#).unwrap(), ToAgent::Unknown);
    assert_eq!(serde_json::from_str::<ToAppliance>(r#"{"type":"dance"}"#).unwrap(), ToAppliance::Unknown);
    assert_eq!(serde_json::from_str::<MirrorPhase>(r#""polishing""#).unwrap(), MirrorPhase::Unknown);
}

#[test]
fn a_status_of_an_older_agent_is_read() {
    let json = r#"{"type":"status","watermarks":{"captured":3,"queued":2,"sent":1},"captured_at":5}"#;
    let ToAppliance::Status(status) = serde_json::from_str(json).unwrap() else { panic!() };
    assert_eq!((status.watermarks.captured, status.mirror, status.gaps), (OpSeq(3), None, 0));
}

#[test]
fn the_largest_want_fits_a_frame() {
    let id = standin_model::VolumeId(u16::MAX);
    let node = NodeId { volume: id, subvolume: u64::MAX, inode: u64::MAX, generation: u32::MAX };
    let json = serde_json::to_vec(&ToAgent::Want { job: job(), nodes: vec![node; WANT_NODES_MAX] }).unwrap();
    assert!(json.len() <= crate::frame::CONTROL_BYTES_MAX, "{}", json.len());
}

#[test]
fn the_most_answers_fit_a_frame() {
    let answer = Differs { seq: OpSeq(u64::MAX), blocks: (0..=u8::MAX).collect() };
    let json = serde_json::to_vec(&ToAgent::Differs { job: job(), answers: vec![answer; ANSWERS_MAX] }).unwrap();
    assert!(json.len() <= crate::frame::CONTROL_BYTES_MAX, "{}", json.len());
}

#[test]
fn an_appliance_that_says_nothing_of_it_does_not_compare() {
    let json = r#"{"type":"start-job","spec":{"job":"job-0707070707070707","volumes":[],"exclusions":[]},"next":1,"epoch":1}"#;
    let ToAgent::StartJob { compares, since, .. } = serde_json::from_str(json).unwrap() else { panic!() };
    assert!(!compares && since.is_none());
    check(
        ToAgent::Differs { job: job(), answers: vec![Differs { seq: OpSeq(9), blocks: [3, 1].into_iter().collect() }] },
        r#"{"type":"differs","job":"job-0707070707070707","answers":[{"seq":9,"blocks":[1,3]}]}"#,
    );
}

#[test]
fn secrets_stay_out_of_logs() {
    let request = EnrolRequest { protocol: 1, secret: "s3cret".into(), csr: String::new(), hostname: "h".into() };
    assert!(!format!("{request:?}").contains("s3cret"));
}
