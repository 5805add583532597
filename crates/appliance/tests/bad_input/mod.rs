//! Everything that an operator or a source can get wrong, through the REST API: a code with its page, a cause, a next command, and nothing lost.

use super::agent::{FakeAgent, data, file_node};
use super::{can_mount, process};
use serde_json::{Value, json};
use standin_model::*;
use standin_wire::ToAgent;
use std::path::Path;

/// The problems of an answer; each complete, and with a page.
#[track_caller]
fn problems(answer: &Value) -> Vec<String> {
    let listed = answer["problems"].as_array().cloned().unwrap_or_else(|| vec![answer.clone()]);
    listed.iter().map(|problem| complete(problem)).collect()
}

#[track_caller]
fn complete(problem: &Value) -> String {
    let text = |key: &str| problem[key].as_str().unwrap_or_default().to_owned();
    assert!(!text("cause").is_empty() && !text("next").is_empty(), "{problem:#}");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors").join(format!("{}.md", text("code")));
    assert!(page.exists(), "{} has no page", text("code"));
    text("code")
}

struct Case {
    what: &'static str,
    source: fn(&mut Inventory),
    request: Value,
    code: &'static str,
}

fn cases() -> Vec<Case> {
    let same: fn(&mut Inventory) = |_| {};
    let case = |what, source, request, code| Case { what, source, request, code };
    vec![
        case("a volume that does not fit", same, json!({"sizes": {"/": 1 << 20}}), "STANDIN-E4030"),
        case("a volume that nearly fits", same, json!({"sizes": {"/": 20 << 20}}), "STANDIN-E3002"),
        case(
            "no space on the datastore",
            |source| (source.volumes[0].size, source.volumes[0].used) = (ByteLen(1 << 48), ByteLen(1 << 48)),
            json!({}),
            "STANDIN-E4033",
        ),
        case(
            "an unsupported file system",
            |source| (source.volumes[0].file_system, source.volumes[0].file_system_name) = (None, "zfs".into()),
            json!({"volumes": ["/"]}),
            "STANDIN-E4028",
        ),
        case(
            "a source without BTF",
            |source| source.capture_obstacles = vec!["this kernel has no type information".into()],
            json!({}),
            "STANDIN-E4022",
        ),
        case("further subvolumes", |source| source.volumes[0].extra_subvolumes = 2, json!({}), "STANDIN-E4029"),
        case("an inventory that no source has", |source| source.volumes[0].uuid = "--help".into(), json!({}), "STANDIN-E3005"),
        case("a name in use", same, json!({"name": "taken"}), "STANDIN-E4024"),
        case("a name that is none", same, json!({"name": "../x"}), "STANDIN-E4023"),
        case("more memory than there is", same, json!({"memory": 1u64 << 50}), "STANDIN-E4032"),
        case("an unknown network", same, json!({"network": "vlan:7"}), "STANDIN-E4035"),
        case("an unknown source", same, json!({"source": "nobody"}), "STANDIN-E4034"),
    ]
}

#[test]
fn what_cannot_be_protected_is_refused_with_a_code() {
    let dir = tempfile::tempdir().unwrap();
    // A machine of that name, as another job would leave it in the hypervisor's list.
    let mut process = process::Process::init(dir.path());
    process.start();
    let mut taken = FakeAgent::enrol(&process.agents, &process.enrolment_token()).unwrap();
    taken.inventory.hostname = "taken".into();
    taken.inventory.volumes[0].uuid = "3b0f2a52-6c1d-4a51-9a55-0123456789ff".into();
    taken.connect(None);
    process.wait_source(&taken);
    let (status, job) = process.request("POST", "/api/v1/jobs", r#"{"source": "taken"}"#).unwrap();
    assert_eq!(status, 201, "{job:#}");
    let mut agent = FakeAgent::enrol(&process.agents, &process.enrolment_token()).unwrap();
    for case in cases() {
        let mut request = json!({"source": "web1"});
        request.as_object_mut().unwrap().extend(case.request.as_object().unwrap().clone());
        let plain = agent.inventory.clone();
        (case.source)(&mut agent.inventory);
        agent.connect(None);
        process.wait_source(&agent);
        agent.inventory = plain;
        for path in ["/api/v1/jobs/plan", "/api/v1/jobs"] {
            let (status, answer) = process.request("POST", path, &request.to_string()).unwrap();
            assert!((400..500).contains(&status), "{}: {status} {answer:#}", case.what);
            let codes = problems(&answer);
            assert!(codes.iter().any(|code| code == case.code), "{}: {codes:?}", case.what);
        }
    }
    let (_, jobs) = process.request("GET", "/api/v1/jobs", "").unwrap();
    assert_eq!(jobs.as_array().unwrap().len(), 1, "nothing was made");
}

#[test]
fn strangers_are_refused_with_a_code() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = process::Process::init(dir.path());
    process.start();
    let (status, answer) = process.request_as("no such token", "GET", "/api/v1/jobs", "").unwrap();
    assert_eq!((status, problems(&answer)), (401, vec!["STANDIN-E5002".into()]));
    let token = process.enrolment_token();
    let parts: Vec<&str> = token.split('.').collect();
    let other_secret = [parts[0], &"0".repeat(parts[1].len()), parts[2]].join(".");
    let other_appliance = [parts[0], parts[1], &"0".repeat(parts[2].len())].join(".");
    for (token, code) in [(other_secret, "STANDIN-E1011"), (other_appliance, "STANDIN-E1018"), ("half a token".into(), "STANDIN-E1010")] {
        let wrong = FakeAgent::enrol(&process.agents, &token).err().unwrap();
        assert!(wrong.contains(code), "{wrong}");
    }
    // An agent of another protocol is told both numbers; its inventory is not taken, and its token stays good.
    let mut agent = FakeAgent::enrol(&process.agents, &token).unwrap();
    agent.protocol += 1;
    let refused = agent.try_connect().unwrap_err();
    assert!(refused.contains("STANDIN-E1004"), "{refused}");
    agent.protocol -= 1;
    agent.try_connect().unwrap();
}

/// The journal's disk is full: nothing is acknowledged, the job says so, and everything goes on when there is room again.
#[test]
fn a_full_disk_holds_the_stream_and_lets_it_go_again() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let jobs = dir.path().join("jobs");
    std::fs::create_dir(&jobs).unwrap();
    let mount = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "none"]).arg(&jobs).status();
    assert!(mount.unwrap().success());
    let (mut process, mut agent, ..) = process::Process::protecting(dir.path());
    // Until nothing more fits.
    let ballast = jobs.join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    drop(file);
    // Incompressible, and more than what is left in the last page.
    let mut noise = vec![0u8; 64 << 10];
    noise.iter_mut().fold(1u32, |seed, byte| {
        let next = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (next >> 24) as u8;
        next
    });
    agent.push(data(file_node(), 0, &noise));
    let last = agent.seal();
    let view = process.wait_job("web1", "degraded", |view| view["flags"].to_string().contains("degraded"));
    assert!(view["watermarks"]["durable"].as_u64() < Some(last.0), "{view:#}");
    let flag = view["flags"].as_array().unwrap().iter().find(|flag| flag["flag"] == "degraded").unwrap();
    complete(&flag["problem"]);
    let (_, events) = process.request("GET", "/api/v1/jobs/web1/events", "").unwrap();
    assert!(events.to_string().contains("STANDIN-E2002"), "{events:#}");

    std::fs::remove_file(&ballast).unwrap();
    agent.expect(|message| matches!(message, ToAgent::Ack { durable, .. } if *durable >= last));
    let fine = |view: &Value| view["watermarks"]["applied"].as_u64() >= Some(last.0) && !view["flags"].to_string().contains("degraded");
    process.wait_job("web1", "whole again", fine);
    process.kill();
    // The worker ends with its appliance, a moment later.
    let gone = || std::process::Command::new("umount").arg(&jobs).stderr(std::process::Stdio::null()).status().unwrap().success();
    let deadline = std::time::Instant::now() + super::LIMIT;
    while !gone() {
        assert!(std::time::Instant::now() < deadline, "the file system stays busy");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
