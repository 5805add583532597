//! The REST API: TLS with the appliance's own certificate, a bearer token on every request, JSON, errors as {code, cause, next}.
//!
//! | path | methods | role |
//! |---|---|---|
//! | /api/v1/version, host, agents, jobs, jobs/{id}, jobs/{id}/runbook, jobs/{id}/boot-repair, jobs/{id}/points, jobs/{id}/history, jobs/{id}/verifications, jobs/{id}/events, events, /metrics | GET | viewer |
//! | /api/v1/jobs/plan, jobs, jobs/{id}/failover[/plan], jobs/{id}/machine/start, jobs/{id}/pause, jobs/{id}/resume, jobs/{id}/points, enrolment-tokens | POST | operator |
//! | /api/v1/jobs/{id}/points/{id}, /api/v1/jobs/{id}/point-policy | DELETE, PUT | operator |
//! | /api/v1/network, /api/v1/jobs/{id}/network | GET (viewer), PUT | operator |
//! | /api/v1/jobs/{id}/verify | POST, DELETE | operator |
//! | /api/v1/jobs/{id}/verify/schedule | PUT | operator |
//! | /api/v1/tokens | GET, POST, DELETE | admin |
//!
//! Handlers only read snapshots and call the appliance; nothing here decides.

mod auth;
mod error;
mod events;
mod jobs;
mod metrics;
mod network;
mod points;
mod resources;
mod tls;
mod verify;

pub use tls::{Limits, serve, server_config};

use crate::Appliance;
use axum::Router;
use axum::routing::{delete, get, post, put};
use std::sync::Arc;

pub fn router(appliance: Arc<Appliance>) -> Router {
    let api = Router::new()
        .route("/version", get(resources::version))
        .route("/host", get(resources::host))
        .route("/agents", get(resources::agents))
        .route("/events", get(events::all))
        .route("/enrolment-tokens", post(resources::new_enrolment_token))
        .route("/tokens", get(resources::tokens).post(resources::new_token))
        .route("/tokens/{name}", delete(resources::remove_token))
        .route("/network", get(network::show).put(network::set))
        .route("/jobs/{job}/network", get(network::show_job).put(network::set_job))
        .route("/jobs", get(jobs::list).post(jobs::create))
        .route("/jobs/plan", post(jobs::plan))
        .route("/jobs/{job}", get(jobs::show))
        .route("/jobs/{job}/pause", post(jobs::pause))
        .route("/jobs/{job}/resume", post(jobs::resume))
        .route("/jobs/{job}/failover", post(jobs::failover))
        .route("/jobs/{job}/failover/plan", post(jobs::failover_plan))
        .route("/jobs/{job}/verify", post(verify::begin).delete(verify::stop))
        .route("/jobs/{job}/verify/schedule", put(verify::schedule))
        .route("/jobs/{job}/verifications", get(verify::list))
        .route("/jobs/{job}/machine/start", post(jobs::start_machine))
        .route("/jobs/{job}/runbook", get(jobs::runbook))
        .route("/jobs/{job}/boot-repair", get(jobs::boot_repair))
        .route("/jobs/{job}/points", get(points::list).post(points::create))
        .route("/jobs/{job}/points/{point}", delete(points::remove))
        .route("/jobs/{job}/point-policy", put(points::set_policy))
        .route("/jobs/{job}/history", get(points::history))
        .route("/jobs/{job}/explain", get(jobs::explain))
        .route("/jobs/{job}/events", get(events::of_job));
    Router::new()
        .nest("/api/v1", api)
        .route("/metrics", get(metrics::metrics))
        .fallback(resources::nothing_here)
        .layer(axum::middleware::from_fn_with_state(appliance.clone(), auth::authenticate))
        .with_state(appliance)
}
