//! Recovery points and the job's history.

use super::auth::Caller;
use super::error::ApiError;
use super::jobs::{blocking, body, find};
use crate::{Appliance, points};
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use standin_model::{MarkName, RecoveryPoint};
use standin_protection::PointPolicy;
use std::sync::Arc;

type Shared = State<Arc<Appliance>>;
const HISTORY_PAGE: u32 = 1000;

fn view(point: &RecoveryPoint) -> Value {
    let mut value = serde_json::to_value(point).unwrap_or_default();
    value["id"] = json!(point.id());
    value
}

pub async fn list(State(appliance): Shared, Path(job): Path<String>) -> Result<Json<Value>, ApiError> {
    let shell = find(&appliance, &job)?;
    let live = shell.live();
    let shared = appliance.shares_blocks();
    Ok(Json(json!({
        "points": live.points.there.iter().map(view).collect::<Vec<_>>(),
        "policy": live.points.policy,
        "shares_blocks": shared,
        "interval_seconds": live.points.policy.interval(shared),
        "problem": live.points.problem,
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPoint {
    #[serde(default)]
    name: Option<MarkName>,
}

pub async fn create(
    State(appliance): Shared,
    Extension(caller): Extension<Caller>,
    Path(job): Path<String>,
    request: Result<Json<NewPoint>, JsonRejection>,
) -> Result<Response, ApiError> {
    let (shell, request) = (find(&appliance, &job)?, body(request)?);
    let point =
        blocking(move || points::create(&appliance, &shell, request.name, &caller.name).map_err(|problem| vec![problem].into())).await?;
    Ok((StatusCode::CREATED, Json(view(&point))).into_response())
}

pub async fn remove(
    State(appliance): Shared,
    Extension(caller): Extension<Caller>,
    Path((job, point)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let shell = find(&appliance, &job)?;
    let removed =
        blocking(move || points::remove(&appliance, &shell, &point, &caller.name).map_err(|problem| vec![problem].into())).await?;
    Ok(Json(json!({"removed": removed.id()})))
}

pub async fn set_policy(
    State(appliance): Shared,
    Extension(caller): Extension<Caller>,
    Path(job): Path<String>,
    request: Result<Json<PointPolicy>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let (shell, policy) = (find(&appliance, &job)?, body(request)?);
    let wanted = policy.clone();
    blocking(move || points::set_policy(&appliance, &shell, policy, &caller.name).map_err(|problem| vec![problem].into())).await?;
    Ok(Json(json!(wanted)))
}

pub async fn history(State(appliance): Shared, Path(job): Path<String>) -> Result<Json<Value>, ApiError> {
    let shell = find(&appliance, &job)?;
    let rows = appliance.store.history(&shell.record.id, HISTORY_PAGE).map_err(ApiError::internal)?;
    Ok(Json(json!(rows)))
}
