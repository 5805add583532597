//! The store keeps its promises: tokens once, events for ever, newer files refused.

use super::*;
use standin_model::{AgentId, MarkName, OpSeq, Timestamp};

#[test]
fn an_enrolment_token_works_once_and_not_after_its_time() {
    let store = Store::in_memory();
    let agent = AgentId::from_random([1; 8]);
    store.add_enrolment_token("s3cret", Timestamp(0), Timestamp(100)).unwrap();
    store.add_enrolment_token("late", Timestamp(0), Timestamp(10)).unwrap();
    assert!(!store.use_enrolment_token("other", &agent, Timestamp(1)).unwrap());
    assert!(!store.use_enrolment_token("late", &agent, Timestamp(10)).unwrap());
    assert!(store.use_enrolment_token("s3cret", &agent, Timestamp(1)).unwrap());
    assert!(!store.use_enrolment_token("s3cret", &agent, Timestamp(1)).unwrap());
}

#[test]
fn bearer_tokens_have_a_role_and_can_be_taken_back() {
    let store = Store::in_memory();
    let secret = new_secret().unwrap();
    assert!(store.add_api_token("ada", Role::Operator, &secret, Timestamp(0)).unwrap());
    assert_eq!(store.authenticate(&secret).unwrap(), Some(("ada".into(), Role::Operator)));
    assert_eq!(store.authenticate("x").unwrap(), None);
    assert!(!store.add_api_token("ada", Role::Viewer, "another", Timestamp(0)).unwrap(), "the name is taken");
    assert!(store.remove_api_token("ada").unwrap());
    assert_eq!(store.authenticate(&secret).unwrap(), None);
    store.lock().execute_batch("CREATE TRIGGER full BEFORE INSERT ON api_token BEGIN SELECT RAISE(ABORT, 'disk full'); END").unwrap();
    assert!(store.add_api_token("bob", Role::Viewer, "another", Timestamp(0)).is_err(), "which is not the same as a taken name");
}

#[test]
fn events_can_only_be_added() {
    let store = Store::in_memory();
    for text in ["one", "two"] {
        store.log(Timestamp(1), "appliance", None, None, text).unwrap();
    }
    let events = store.events(None, 0, 10).unwrap();
    assert_eq!(events.len(), 2);
    assert_eq!(store.events(None, events[0].id, 10).unwrap()[0].text, "two");
    assert!(store.lock().execute("DELETE FROM event", []).is_err());
    assert!(store.lock().execute("UPDATE event SET text = ''", []).is_err());
}

#[test]
fn a_job_has_its_markers_once_and_its_history_has_a_bound() {
    let store = Store::in_memory();
    let job = standin_model::JobId::from_random([1; 8]);
    let sql = "INSERT INTO job (id, name, record, machine, stream) VALUES (?1, 'web1', '', '', '')";
    store.lock().execute(sql, [job.as_str()]).unwrap();
    let mark = |seq| HistoryRow::new("marker", OpSeq(seq), MarkName::parse("close"), "here").captured(Some(Timestamp(seq as i64)));
    for seq in [7, 8, 7] {
        store.add_history(&job, Timestamp(1), &mark(seq)).unwrap();
    }
    let rows = store.history(&job, 10).unwrap();
    assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), [OpSeq(7), OpSeq(8)]);
    assert_eq!(rows[0], HistoryRow { at: Timestamp(1), ..mark(7) });
    store.lock().execute_batch("BEGIN").unwrap();
    for _ in 0..10_050 {
        store.add_history(&job, Timestamp(2), &HistoryRow::new("resync", OpSeq(9), None, "")).unwrap();
    }
    store.lock().execute_batch("COMMIT").unwrap();
    let count: i64 = store.lock().query_row("SELECT count(*) FROM history", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 10_000);
}

#[test]
fn a_newer_schema_is_refused_and_the_same_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    drop(Store::open(&path).unwrap());
    let store = Store::open(&path).unwrap();
    store.lock().pragma_update(None, "user_version", 99).unwrap();
    drop(store);
    assert!(format!("{:#}", Store::open(&path).err().unwrap()).contains("version 99"));
}

/// `standin debug watermarks` reads a store without this program.
#[test]
fn what_the_offline_debugger_reads_is_there() {
    let store = Store::in_memory();
    store.lock().prepare("SELECT id, name, machine, stream FROM job").unwrap();
    let mut stream = serde_json::to_value(StreamState::default()).unwrap();
    assert!(stream["epoch"].is_u64() && stream["acknowledged"].is_u64() && stream["lost_after"].is_null());
    stream["lost_after"] = 7.into();
    assert_eq!(serde_json::from_value::<StreamState>(stream).unwrap().lost_after, Some(standin_model::OpSeq(7)));
    let job = standin_protection::Job { state: standin_protection::JobState::Provisioning, flags: Default::default() };
    assert_eq!(serde_json::to_value(&job).unwrap()["state"]["state"], "provisioning");
}
