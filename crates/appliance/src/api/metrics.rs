//! Prometheus metrics: the watermarks under their one name, lag, and sizes.

use crate::{Appliance, view};
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use std::fmt::Write;
use std::sync::Arc;

pub async fn metrics(State(appliance): State<Arc<Appliance>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text(&appliance))
}

fn text(appliance: &Appliance) -> String {
    let jobs: Vec<_> = appliance.jobs().iter().map(|shell| view::job(appliance, shell)).collect();
    let mut out = String::new();
    let mut gauge = |name: &str, help: &str, kind: &str, value: &dyn Fn(&view::JobView) -> Vec<(String, f64)>| {
        let _ = writeln!(out, "# HELP standin_{name} {help}\n# TYPE standin_{name} {kind}");
        for job in &jobs {
            // Names of jobs are letters, digits and `-_.`, so that they need no escaping.
            for (labels, value) in value(job) {
                let _ = writeln!(out, "standin_{name}{{job=\"{}\"{labels}}} {value}", job.name);
            }
        }
    };
    let one = |value: f64| vec![(String::new(), value)];
    gauge("watermark", "Last item of the stream that has come this far", "gauge", &|job| {
        let marks = &job.watermarks;
        let pairs = [
            ("captured", marks.captured),
            ("queued", marks.queued),
            ("sent", marks.sent),
            ("received", marks.received),
            ("durable", marks.durable),
            ("applied", marks.applied),
        ];
        pairs.into_iter().map(|(name, seq)| (format!(",watermark=\"{name}\""), seq.0 as f64)).collect()
    });
    gauge("job_state", "1 for the state that the job is in", "gauge", &|job| vec![(format!(",state=\"{}\"", job.state), 1.0)]);
    gauge("job_flag", "1 for every flag of the job", "gauge", &|job| {
        job.flags.iter().map(|flag| (format!(",flag=\"{}\"", flag.flag), 1.0)).collect()
    });
    gauge("lag_seconds", "Age of the replica's state", "gauge", &|job| {
        job.lag_seconds.map(|lag| (String::new(), lag as f64)).into_iter().collect()
    });
    gauge("agent_connected", "Whether the source's agent is connected", "gauge", &|job| one(f64::from(u8::from(job.connected))));
    gauge("queue_bytes", "Bytes queued on the source", "gauge", &|job| one(job.queue_bytes as f64));
    gauge("journal_bytes", "Bytes of the journal on the appliance", "gauge", &|job| one(job.journal_bytes as f64));
    gauge("changed_bytes", "Bytes of operations captured, before compression, since the agent started the job", "gauge", &|job| {
        one(job.bytes_changed as f64)
    });
    gauge(
        "left_out_bytes",
        "Bytes that exclusion rules leave out: in files when everything was last walked, and written since then",
        "gauge",
        &|job| {
            [("files", job.left_out.bytes), ("changes", job.left_out.bytes_changed)]
                .map(|(kind, bytes)| (format!(",kind=\"{kind}\""), bytes as f64))
                .into()
        },
    );
    gauge("spared_bytes", "Bytes of rewritten pages that the replica had already, and that were not sent", "gauge", &|job| {
        one(job.bytes_spared as f64)
    });
    for (name, help, key) in [
        ("patches", "Patches of pages applied since the worker started", "patches"),
        (
            "patches_refused",
            "Patches that did not give what the source has, whose files are read again, since the worker started",
            "patches_refused",
        ),
        (
            "patches_unproven",
            "Patches that a redo could not prove, whose files are read again, since the worker started",
            "patches_unproven",
        ),
    ] {
        gauge(name, help, "gauge", &|job| one(job.worker.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0) as f64));
    }
    gauge("sent_bytes", "Bytes sent by the agent since it started the job", "gauge", &|job| one(job.bytes_sent as f64));
    gauge("gaps", "Losses that led to a resync since the agent started the job", "gauge", &|job| one(job.gaps as f64));
    gauge("worker_restarts", "Workers that ended unasked since the appliance started", "counter", &|job| {
        one(job.worker.get("restarts").and_then(serde_json::Value::as_u64).unwrap_or(0) as f64)
    });
    out
}
