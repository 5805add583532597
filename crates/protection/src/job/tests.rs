//! Every event in every state: what changes, what does not, and what has to be done.

use super::*;

const NOW: Timestamp = Timestamp(1_000);

fn problem() -> Problem {
    Problem::new("E4099", "cause", "next")
}

fn states() -> Vec<JobState> {
    let protected = JobState::Protected { since: NOW, consistent: OpSeq(5) };
    let resyncing = JobState::Resyncing { since: NOW, consistent: OpSeq(5), reason: "r".into() };
    let over = |before: &JobState| JobState::FailingOver { since: NOW, mode: FailoverMode::Planned, before: Box::new(before.clone()) };
    vec![
        JobState::Created,
        JobState::Provisioning,
        JobState::Mirroring { since: NOW },
        protected.clone(),
        resyncing.clone(),
        over(&protected),
        over(&resyncing),
        JobState::FailedOver { since: NOW },
        JobState::Testing { since: NOW, consistent: OpSeq(5) },
        JobState::Reversing { since: NOW },
    ]
}

fn events() -> Vec<Event> {
    vec![
        Event::Accepted,
        Event::DisksCreated,
        Event::DisksRefused(problem()),
        Event::AgentConnected,
        Event::AgentDisconnected,
        Event::WorkerRunning,
        Event::WorkerStopped(problem()),
        Event::JournalRefused(problem()),
        Event::JournalAccepts,
        Event::AgentRefused(problem()),
        Event::VolumeUnmounted(problem()),
        Event::VolumesMounted,
        Event::StreamStarted,
        Event::ConsistentApplied { seq: OpSeq(9) },
        Event::GapApplied { reason: "ring full".into() },
        Event::LagMeasured { seconds: 100 },
        Event::Paused,
        Event::Resumed,
        Event::FailoverStarted { mode: FailoverMode::Planned },
        Event::FailoverAborted(problem()),
        Event::FailoverFinished,
        Event::CaptureIsPeriodic(Some(problem())),
        Event::CaptureIsPeriodic(None),
    ]
}

/// The state that an event leads to, by name; written down once more, independent of the machine.
fn expected(state: &str, event: &Event) -> &'static str {
    match (state, event) {
        ("created", Event::Accepted) => "provisioning",
        ("provisioning", Event::DisksCreated) => "mirroring",
        ("mirroring" | "resyncing", Event::ConsistentApplied { .. }) => "protected",
        ("protected", Event::GapApplied { .. }) => "resyncing",
        ("protected" | "resyncing", Event::FailoverStarted { .. }) => "failing-over",
        ("failing-over", Event::FailoverFinished) => "failed-over",
        _ => "",
    }
}

#[test]
fn every_event_in_every_state() {
    for state in states() {
        for event in events() {
            let mut job = Job { state: state.clone(), flags: Flags::default() };
            let mut actions = Vec::new();
            job.apply(NOW, event.clone(), &mut actions);
            let expected = match (&state, &event) {
                (JobState::FailingOver { before, .. }, Event::FailoverAborted(_)) => before.name(),
                _ => Some(expected(state.name(), &event)).filter(|name| !name.is_empty()).unwrap_or(state.name()),
            };
            assert_eq!(job.state.name(), expected, "{} by {event:?}", state.name());
            let moved = job.state.name() != state.name();
            assert!(!moved || state.may_become(&job.state));
            // A change of state says so in one line.
            let text: Vec<_> = actions.iter().filter(|action| matches!(action, Action::Log { text, .. } if text.contains("->"))).collect();
            assert_eq!(text.len(), usize::from(moved), "{} by {event:?}", state.name());
        }
    }
}

#[test]
fn the_chart_allows_exactly_these() {
    let allowed = [
        "created provisioning",
        "provisioning mirroring",
        "mirroring protected",
        "protected resyncing",
        "resyncing protected",
        "protected failing-over",
        "resyncing failing-over",
        "failing-over protected",
        "failing-over resyncing",
        "failing-over failed-over",
        "protected testing",
        "testing protected",
        "failed-over reversing",
        "reversing protected",
    ];
    for from in states() {
        for to in states() {
            let way = format!("{} {}", from.name(), to.name());
            assert_eq!(from.may_become(&to), allowed.contains(&way.as_str()), "{way}");
        }
    }
}

fn run(job: &mut Job, event: Event) -> Vec<Action> {
    let mut actions = Vec::new();
    job.apply(NOW, event, &mut actions);
    actions.retain(|action| !matches!(action, Action::Log { .. }));
    actions
}

#[test]
fn a_life() {
    let mut job = Job::default();
    assert_eq!(run(&mut job, Event::Accepted), [Action::CreateDisks]);
    assert_eq!(run(&mut job, Event::DisksCreated), [Action::StartWorker, Action::StartStream]);
    assert_eq!(run(&mut job, Event::AgentDisconnected), []);
    assert!(job.flags.has(Flag::Disconnected));
    assert_eq!(run(&mut job, Event::AgentConnected), [Action::StartStream]);
    assert_eq!(run(&mut job, Event::ConsistentApplied { seq: OpSeq(7) }), [Action::PrepareBoot]);
    assert_eq!(job.state.consistent(), Some(OpSeq(7)));
    run(&mut job, Event::GapApplied { reason: "ring full".into() });
    run(&mut job, Event::ConsistentApplied { seq: OpSeq(9) });
    run(&mut job, Event::FailoverStarted { mode: FailoverMode::Planned });
    run(&mut job, Event::ConsistentApplied { seq: OpSeq(12) });
    let aborted = run(&mut job, Event::FailoverAborted(problem()));
    assert_eq!(aborted, [Action::ThawSource, Action::StartWorker, Action::StartStream]);
    assert_eq!(job.state.consistent(), Some(OpSeq(12)));
    run(&mut job, Event::FailoverStarted { mode: FailoverMode::Unplanned });
    assert_eq!(run(&mut job, Event::FailoverFinished), [Action::TellFailedOver]);
    assert_eq!(run(&mut job, Event::AgentConnected), [Action::TellFailedOver], "a returning source sends nothing");
}

#[test]
fn a_gap_during_a_failover_is_not_forgotten_by_its_abort() {
    let mut job = Job { state: JobState::Protected { since: NOW, consistent: OpSeq(5) }, flags: Flags::default() };
    run(&mut job, Event::FailoverStarted { mode: FailoverMode::Planned });
    run(&mut job, Event::GapApplied { reason: "x".into() });
    run(&mut job, Event::FailoverAborted(problem()));
    assert_eq!(job.state.name(), "resyncing");
}

#[test]
fn an_aborted_unplanned_failover_thaws_nothing() {
    let mut job = Job { state: JobState::Protected { since: NOW, consistent: OpSeq(5) }, flags: Flags::default() };
    run(&mut job, Event::FailoverStarted { mode: FailoverMode::Unplanned });
    assert!(!run(&mut job, Event::FailoverAborted(problem())).contains(&Action::ThawSource));
}

#[test]
fn a_paused_job_starts_no_stream() {
    let mut job = Job { state: JobState::Protected { since: NOW, consistent: OpSeq(5) }, flags: Flags::default() };
    assert_eq!(run(&mut job, Event::Paused), [Action::StopStream]);
    assert_eq!(run(&mut job, Event::Paused), []);
    assert_eq!(run(&mut job, Event::AgentConnected), []);
    assert_eq!(run(&mut job, Event::Resumed), [Action::StartStream]);
}

#[test]
fn degraded_carries_its_problem_and_backlog_does_not_flutter() {
    let mut job = Job { state: JobState::Protected { since: NOW, consistent: OpSeq(5) }, flags: Flags::default() };
    run(&mut job, Event::WorkerStopped(problem()));
    assert_eq!(job.flags.iter().next(), Some((Flag::Degraded, Some(&problem()))));
    run(&mut job, Event::WorkerRunning);
    assert!(!job.flags.has(Flag::Degraded));
    for (seconds, set) in [(60, false), (61, true), (31, true), (30, false)] {
        run(&mut job, Event::LagMeasured { seconds });
        assert_eq!(job.flags.has(Flag::Backlog), set, "{seconds}");
    }
}

#[test]
fn a_job_that_does_not_converge_says_so_once_and_says_when_it_does_again() {
    let mut job = Job { state: JobState::Protected { since: NOW, consistent: OpSeq(5) }, flags: Flags::default() };
    let mut said = |problem: Option<Problem>, is_flagged: bool| {
        let mut actions = Vec::new();
        job.apply(NOW, Event::Converging(problem), &mut actions);
        assert_eq!(job.flags.has(Flag::NotConverging), is_flagged);
        actions.len()
    };
    assert_eq!(said(None, false), 0);
    assert_eq!(said(Some(problem()), true), 1);
    assert_eq!(said(Some(problem()), true), 0);
    assert_eq!(said(None, false), 1);
}

#[test]
fn a_job_survives_its_stored_form() {
    for state in states() {
        let mut job = Job { state, flags: Flags::default() };
        job.flags.set(Flag::Degraded, Some(problem()));
        let text = serde_json::to_string(&job).unwrap();
        assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), job);
    }
}

#[test]
fn a_weaker_promise_is_a_flag_that_is_told_once() {
    let (mut job, mut actions) = (Job::default(), Vec::new());
    let because = |cause: &str| Some(Problem::new("E6008", cause, "next"));
    for event in [because("no BTF"), because("no BTF"), because("lockdown")] {
        job.apply(NOW, Event::CaptureIsPeriodic(event), &mut actions);
    }
    assert_eq!(job.flags.problem(Flag::Periodic).map(|problem| problem.cause.as_str()), Some("lockdown"));
    assert_eq!(actions.len(), 1, "{actions:?}");
    job.apply(NOW, Event::CaptureIsPeriodic(None), &mut actions);
    job.apply(NOW, Event::CaptureIsPeriodic(None), &mut actions);
    assert!(!job.flags.has(Flag::Periodic) && actions.len() == 2, "{actions:?}");
}
