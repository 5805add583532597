//! Limits, calendars and ways of the network, of the appliance and of each job.

use super::auth::Caller;
use super::error::ApiError;
use super::jobs::{Body, Shared, blocking, body, find};
use crate::network::{self, NetworkChange};
use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde_json::Value;
use standin_protection::NetworkRule;

type Answer = Result<Json<Value>, ApiError>;

pub async fn show(State(appliance): Shared) -> Json<Value> {
    Json(network::view(&appliance))
}

pub async fn set(State(appliance): Shared, Extension(caller): Extension<Caller>, request: Body<NetworkRule>) -> Answer {
    let rule = body(request)?;
    blocking(move || {
        network::set_rule(&appliance, rule, &caller.name).map_err(|problem| vec![problem])?;
        Ok(Json(network::view(&appliance)))
    })
    .await
}

pub async fn show_job(State(appliance): Shared, Path(job): Path<String>) -> Answer {
    let shell = find(&appliance, &job)?;
    let view = network::job_view(&shell.live());
    Ok(Json(view))
}

pub async fn set_job(
    State(appliance): Shared,
    Extension(caller): Extension<Caller>,
    Path(job): Path<String>,
    request: Body<NetworkChange>,
) -> Answer {
    let (shell, change) = (find(&appliance, &job)?, body(request)?);
    blocking(move || {
        network::set_job(&appliance, &shell, change, &caller.name).map_err(|problem| vec![problem])?;
        let view = network::job_view(&shell.live());
        Ok(Json(view))
    })
    .await
}
