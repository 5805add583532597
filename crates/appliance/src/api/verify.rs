//! Verifications: begin, stop, schedule, and what they found.

use super::auth::Caller;
use super::error::ApiError;
use super::jobs::{Body, Shared, blocking, body, find};
use crate::verify::{self, HISTORY_MAX, VerifyRequest, VerifySchedule};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::json;

/// Ten years.
const HOURS_MAX: u32 = 10 * 366 * 24;

pub async fn begin(
    State(appliance): Shared,
    Extension(caller): Extension<Caller>,
    Path(job): Path<String>,
    request: Body<VerifyRequest>,
) -> Result<Response, ApiError> {
    let (shell, request) = (find(&appliance, &job)?, body(request)?);
    let record = blocking(move || Ok(verify::begin(&appliance, &shell, &request, &caller.name).map_err(|problem| vec![problem])?)).await?;
    Ok((StatusCode::ACCEPTED, Json(record)).into_response())
}

pub async fn stop(State(appliance): Shared, Extension(caller): Extension<Caller>, Path(job): Path<String>) -> Result<Response, ApiError> {
    let shell = find(&appliance, &job)?;
    verify::interrupt(&appliance, &shell, &format!("stopped by {}", caller.name));
    Ok(Json(json!({"job": shell.record.name})).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleRequest {
    /// 0 for not at all.
    every_hours: u32,
    #[serde(default)]
    repair: bool,
    #[serde(default)]
    rate: u64,
}

pub async fn schedule(
    State(appliance): Shared,
    Extension(caller): Extension<Caller>,
    Path(job): Path<String>,
    request: Body<ScheduleRequest>,
) -> Result<Response, ApiError> {
    let (shell, request) = (find(&appliance, &job)?, body(request)?);
    let ScheduleRequest { every_hours, repair, rate } = request;
    if every_hours > HOURS_MAX {
        let cause = format!("{every_hours} hours are more than ten years");
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "E5005", cause, "see docs/api.md"));
    }
    let schedule = (every_hours > 0).then(|| VerifySchedule { every_hours, repair, rate, last: crate::layout::now() });
    let text = match every_hours {
        0 => "does not have it verified by itself any more".to_owned(),
        hours => format!("has it verified every {hours} hours"),
    };
    let kept = schedule.clone();
    blocking(move || {
        verify::set_schedule(&appliance, &shell, kept).map_err(|problem| vec![problem])?;
        appliance.log(Some(&shell), &caller.name, None, &text);
        Ok(())
    })
    .await?;
    Ok(Json(json!({"job": job, "schedule": schedule})).into_response())
}

pub async fn list(State(appliance): Shared, Path(job): Path<String>) -> Result<Response, ApiError> {
    let shell = find(&appliance, &job)?;
    let (schedule, underway) = {
        let live = shell.live();
        (live.verify_schedule.clone(), verify::so_far(&live))
    };
    let mut rows = blocking(move || appliance.store.verifications(&shell.record.id, HISTORY_MAX).map_err(ApiError::internal)).await?;
    // The store has it as it began.
    if let Some((run, record)) = underway {
        rows.iter_mut().filter(|row| u64::try_from(row.id) == Ok(run)).for_each(|row| row.record = record.clone());
    }
    Ok(Json(json!({"schedule": schedule, "verifications": rows})).into_response())
}
