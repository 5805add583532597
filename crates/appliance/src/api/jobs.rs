//! Jobs: plan, protect, look, fail over.

use super::auth::Caller;
use super::error::ApiError;
use crate::job::JobShell;
use crate::{Appliance, execute, launch, protect, view};
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use standin_protection::{Event, FailoverRequest, ProtectRequest, Waiver, explain as explain_path};
use std::sync::Arc;

pub type Shared = State<Arc<Appliance>>;
pub type Body<T> = Result<Json<T>, JsonRejection>;

pub fn find(appliance: &Appliance, job: &str) -> Result<Arc<JobShell>, ApiError> {
    appliance.find_job(job).ok_or_else(|| ApiError::not_found(&format!("job {job}")))
}

pub fn body<T>(body: Body<T>) -> Result<T, ApiError> {
    let wrong = |error: JsonRejection| ApiError::new(StatusCode::BAD_REQUEST, "E5005", error.body_text(), "see docs/api.md");
    body.map(|Json(value)| value).map_err(wrong)
}

/// Runs what may wait for disks or processes off the API's own threads.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, ApiError> + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(ApiError::internal(error)))
}

pub async fn list(State(appliance): Shared) -> Response {
    let jobs: Vec<_> = appliance.jobs().iter().map(|shell| view::job(&appliance, shell)).collect();
    Json(jobs).into_response()
}

pub async fn show(State(appliance): Shared, Path(job): Path<String>) -> Result<Response, ApiError> {
    let shell = find(&appliance, &job)?;
    Ok(Json(view::job(&appliance, &shell)).into_response())
}

#[derive(Deserialize)]
pub struct Asked {
    path: String,
}

/// Whether a path of the source is replicated, and by which rule not.
pub async fn explain(State(appliance): Shared, Path(job): Path<String>, Query(asked): Query<Asked>) -> Result<Response, ApiError> {
    let shell = find(&appliance, &job)?;
    let record = &shell.record;
    let explained = explain_path(&record.spec, &record.summary.left_out, &record.inventory, &asked.path);
    Ok(Json(explained.map_err(|problem| vec![problem])?).into_response())
}

pub async fn plan(State(appliance): Shared, request: Body<ProtectRequest>) -> Result<Response, ApiError> {
    let request = body(request)?;
    let summary = blocking(move || Ok(protect::plan(&appliance, &request)?)).await?;
    Ok(Json(summary).into_response())
}

pub async fn create(
    State(appliance): Shared,
    Extension(caller): Extension<Caller>,
    request: Body<ProtectRequest>,
) -> Result<Response, ApiError> {
    let request = body(request)?;
    let shared = appliance.clone();
    let shell = blocking(move || Ok(protect::accept(&shared, &request, &caller.name)?)).await?;
    Ok((StatusCode::CREATED, Json(view::job(&appliance, &shell))).into_response())
}

pub async fn failover_plan(
    State(appliance): Shared,
    Path(job): Path<String>,
    request: Body<FailoverRequest>,
) -> Result<Response, ApiError> {
    let (shell, request) = (find(&appliance, &job)?, body(request)?);
    let runbook = blocking(move || Ok(execute::plan(&appliance, &shell, &request)?)).await?;
    Ok(Json(runbook).into_response())
}

pub async fn failover(
    State(appliance): Shared,
    Extension(caller): Extension<Caller>,
    Path(job): Path<String>,
    request: Body<FailoverRequest>,
) -> Result<Response, ApiError> {
    let (shell, request) = (find(&appliance, &job)?, body(request)?);
    if request.plan_only {
        let runbook = blocking(move || Ok(execute::plan(&appliance, &shell, &request)?)).await?;
        return Ok(Json(runbook).into_response());
    }
    let run = blocking(move || Ok(execute::begin(&appliance, &shell, &request, &caller.name)?)).await?;
    Ok((StatusCode::ACCEPTED, Json(run)).into_response())
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StartRequest {
    waiver: Option<Waiver>,
}

/// The machine of a job that has failed over, when it is off.
pub async fn start_machine(
    State(appliance): Shared,
    Extension(caller): Extension<Caller>,
    Path(job): Path<String>,
    request: Body<StartRequest>,
) -> Result<Json<Value>, ApiError> {
    let (shell, request) = (find(&appliance, &job)?, body(request)?);
    let name = shell.record.name.clone();
    let start =
        move || launch::start_again(&appliance, &shell, request.waiver.as_ref(), &caller.name).map_err(|problem| vec![problem].into());
    let note = blocking(start).await?;
    Ok(Json(json!({"job": name, "note": note})))
}

pub async fn runbook(State(appliance): Shared, Path(job): Path<String>) -> Result<Response, ApiError> {
    let shell = find(&appliance, &job)?;
    let run = shell.live().run.as_ref().map(|(_, run)| run.clone());
    let run = run.ok_or_else(|| ApiError::not_found(&format!("failover of {job}")))?;
    Ok(Json(run).into_response())
}

/// What boot repair changed on the replica: all in which it differs from its source.
pub async fn boot_repair(State(appliance): Shared, Path(job): Path<String>) -> Result<Response, ApiError> {
    let shell = find(&appliance, &job)?;
    let path = appliance.layout.boot_repair(&shell.record.id);
    let text = blocking(move || std::fs::read(&path).map_err(|_| ApiError::not_found(&format!("boot repair of {job}")))).await?;
    let report: Value = serde_json::from_slice(&text).map_err(ApiError::internal)?;
    Ok(Json(report).into_response())
}

pub async fn pause(State(appliance): Shared, Path(job): Path<String>) -> Result<Json<Value>, ApiError> {
    change(&appliance, &job, Event::Paused)
}

pub async fn resume(State(appliance): Shared, Path(job): Path<String>) -> Result<Json<Value>, ApiError> {
    change(&appliance, &job, Event::Resumed)
}

fn change(appliance: &Arc<Appliance>, job: &str, event: Event) -> Result<Json<Value>, ApiError> {
    let shell = find(appliance, job)?;
    appliance.event(&shell, event);
    let flags = shell.live().job.flags.names();
    Ok(Json(json!({"job": shell.record.name, "flags": flags})))
}
