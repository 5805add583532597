//! Limits through the REST API: told to the agent before its stream, changed live, divided, kept over a kill of the appliance; and everything that is no limit.

use super::agent::FakeAgent;
use super::{can_mount, process};
use serde_json::{Value, json};
use standin_wire::{NetworkStatus, Status, ToAgent, ToAppliance};
use std::path::Path;

/// The next order that says something of the network.
fn order(agent: &mut FakeAgent) -> (u64, Option<Value>) {
    match agent.expect(|message| matches!(message, ToAgent::Network { .. })) {
        ToAgent::Network { limit, path } => (limit, path.map(|path| serde_json::to_value(path).unwrap())),
        _ => unreachable!("it was matched"),
    }
}

#[test]
fn limits_reach_the_agent_and_survive_the_appliance() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut process, mut agent, job, last) = process::Process::protecting(dir.path());
    let put = |process: &process::Process, path: &str, body: Value| process.request("PUT", path, &body.to_string()).unwrap();

    // Live, in every unit.
    for (rule, bits) in [
        (json!({"limit": "10Mbit/s"}), 10_000_000),
        (json!({"limit": "4.5GB/h", "link": "none"}), 10_000_000),
        (json!({"limit": "25%", "link": "8Mbit/s"}), 2_000_000),
        (
            json!({"limit": "none", "windows": [{"days": "daily", "from": "00:00", "to": "24:00", "limit": "3Mbit/s"}], "zone": "America/New_York"}),
            3_000_000,
        ),
    ] {
        let (status, view) = put(&process, "/api/v1/jobs/web1/network", json!({"rule": rule}));
        assert_eq!((status, &view["limit"]), (200, &json!(bits)), "{view:#}");
        if bits != 10_000_000 || rule["link"].is_null() {
            assert_eq!(order(&mut agent), (bits, None));
        }
    }
    // The appliance's own is above it all, and a way comes with it.
    let (status, view) = put(&process, "/api/v1/network", json!({"limit": "1Mbit/s"}));
    assert_eq!((status, order(&mut agent)), (200, (1_000_000, None)), "{view:#}");
    let way = json!({"source": "eth1", "proxy": "socks5://me:s3cret@proxy:1080", "congestion": "bbr"});
    let (status, view) = put(&process, "/api/v1/jobs/web1/network", json!({"path": way}));
    assert_eq!((status, &view["path"]["proxy"]), (200, &json!("socks5://***@proxy:1080")));
    assert_eq!(order(&mut agent), (1_000_000, Some(way.clone())));
    // What was shown is sent back with one change: the password stays.
    let mut shown = view["path"].clone();
    shown["congestion"] = json!("cubic");
    put(&process, "/api/v1/jobs/web1/network", json!({"path": shown}));
    let told = order(&mut agent).1.unwrap();
    assert_eq!((&told["proxy"], &told["congestion"]), (&way["proxy"], &json!("cubic")));

    // What the agent says is shown.
    let network = NetworkStatus { limit: 1_000_000, rate: 900_000, local: "10.0.0.1:5".into(), ..NetworkStatus::default() };
    agent.say(&ToAppliance::Status(Status { job: Some(job), network: Some(network), ..Status::default() }));
    let view = process.wait_job("web1", "told", |view| view["network"]["agent"]["rate"] == 900_000);
    assert_eq!((&view["network"]["share"], &view["network"]["limit"]), (&json!(1_000_000), &json!(3_000_000)));

    // Killed: the same orders come again, before the stream, to an agent that says with its greeting what it runs.
    process.kill();
    process.start();
    agent.connect_running(1);
    assert_eq!(order(&mut agent), (1_000_000, Some(told)));
    assert_eq!(agent.expect_start().next, last.next());
    let events = process.request("GET", "/api/v1/jobs/web1/events", "").unwrap().1.to_string();
    assert!(events.contains("25%") && !events.contains("s3cret"), "{events}");
}

#[test]
fn what_is_no_limit_is_refused_with_its_code() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (process, _agent, _, _) = process::Process::protecting(dir.path());
    let window = |days: &str, from: &str, limit: &str| json!({"days": days, "from": from, "to": "18:00", "limit": limit});
    for (rule, code) in [
        (json!({"limit": "10M"}), "E4100"),
        (json!({"limit": "1kbit/s"}), "E4100"),
        (json!({"limit": "20%"}), "E4101"),
        (json!({"windows": [window("noday", "08:00", "none")]}), "E4102"),
        (json!({"windows": [window("mon", "18:00", "none")]}), "E4102"),
        (json!({"zone": "Nowhere/Land"}), "E4103"),
        (json!({"limits": "1Mbit/s"}), "E5005"),
    ] {
        for (path, body) in [("/api/v1/network", rule.clone()), ("/api/v1/jobs/web1/network", json!({"rule": rule}))] {
            refused(&process, path, &body, code);
        }
    }
    for way in [
        json!({"source": "0.0.0.0"}),
        json!({"proxy": "ftp://a:1"}),
        json!({"congestion": "../x"}),
        json!({"source": "10.0.0.1", "family": "ipv6"}),
    ] {
        refused(&process, "/api/v1/jobs/web1/network", &json!({"path": way}), "E4104");
    }
    let (_, view) = process.request("GET", "/api/v1/jobs/web1/network", "").unwrap();
    assert_eq!((&view["rule"]["limit"], &view["path"]), (&json!(""), &Value::Null), "nothing was changed");
    assert_eq!(process.request("PUT", "/api/v1/jobs/other/network", "{}").unwrap().0, 404);
}

#[track_caller]
fn refused(process: &process::Process, path: &str, body: &Value, code: &str) {
    let (status, answer) = process.request("PUT", path, &body.to_string()).unwrap();
    let told = answer["code"].as_str().unwrap_or_default();
    assert!((400..500).contains(&status) && told.ends_with(code), "{path} {body}: {status} {answer:#}");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors").join(format!("{told}.md"));
    assert!(page.exists() && !answer["next"].as_str().unwrap_or_default().is_empty(), "{answer:#}");
}
