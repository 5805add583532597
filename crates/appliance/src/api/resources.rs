//! The host, the agents, the tokens, and the version.

use super::auth::Caller;
use super::error::ApiError;
use super::jobs::{blocking, body};
use crate::layout::now;
use crate::store::{Role, new_secret};
use crate::{Appliance, errors};
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use standin_model::Timestamp;
use std::sync::Arc;

type Shared = State<Arc<Appliance>>;
type Answer = Result<Json<Value>, ApiError>;

/// A token that was never used is worth nothing after an hour.
const ENROLMENT_SECONDS: i64 = 3600;

pub async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION"), "api": "v1", "wire": standin_wire::PROTOCOL}))
}

pub async fn nothing_here() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "E5004", "there is nothing at this address", "standin --help")
}

pub async fn host(State(appliance): Shared) -> Answer {
    blocking(move || {
        let failed = |error| ApiError::from(vec![errors::coded("E4050", &error, "journalctl -u standin-appliance")]);
        let host = appliance.hypervisor.host().map_err(failed)?;
        let free = standin_replica::disk::datastore_free(&appliance.layout.datastore).map_err(ApiError::internal)?;
        let datastore = json!({"path": appliance.layout.datastore, "free_bytes": free});
        let machines: Vec<_> = appliance.hypervisor.list().unwrap_or_default();
        let machines: Vec<_> =
            machines.into_iter().map(|name| json!({"name": name, "state": appliance.hypervisor.state(&name).ok()})).collect();
        Ok(Json(json!([{
            "name": "local", "hypervisor": "qemu", "host": host, "datastores": [datastore], "machines": machines,
            "agent_address": appliance.agent_address,
        }])))
    })
    .await
}

pub async fn agents(State(appliance): Shared) -> Answer {
    let rows = appliance.store.agents().map_err(ApiError::internal)?;
    let agents: Vec<_> = rows
        .into_iter()
        .map(|row| {
            let jobs: Vec<_> = appliance.jobs_of(&row.id).iter().map(|shell| shell.record.name.clone()).collect();
            json!({
                "id": row.id, "connected": appliance.session(&row.id).is_some(), "enrolled_at": row.enrolled_at, "seen_at": row.seen_at,
                "version": row.version, "jobs": jobs, "inventory": row.inventory,
            })
        })
        .collect();
    Ok(Json(json!(agents)))
}

pub async fn new_enrolment_token(State(appliance): Shared, Extension(caller): Extension<Caller>) -> Answer {
    let token = appliance.new_enrolment_token(Timestamp(now().0.saturating_add(ENROLMENT_SECONDS * 1_000_000_000)));
    let token = token.map_err(ApiError::internal)?;
    appliance.log(None, &caller.name, None, "made an enrolment token");
    Ok(Json(json!({"token": token, "appliance": appliance.agent_address, "expires_in_seconds": ENROLMENT_SECONDS})))
}

pub async fn tokens(State(appliance): Shared) -> Answer {
    let tokens = appliance.store.api_tokens().map_err(ApiError::internal)?;
    Ok(Json(tokens.into_iter().map(|(name, role)| json!({"name": name, "role": role})).collect()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    name: String,
    role: Role,
}

pub async fn new_token(
    State(appliance): Shared,
    Extension(caller): Extension<Caller>,
    request: Result<Json<NewToken>, JsonRejection>,
) -> Answer {
    let request = body(request)?;
    let secret = new_secret().map_err(ApiError::internal)?;
    if !appliance.store.add_api_token(&request.name, request.role, &secret, now()).map_err(ApiError::internal)? {
        let cause = format!("there is a token {} already", request.name);
        return Err(ApiError::new(StatusCode::CONFLICT, "E5006", cause, "choose another name"));
    }
    appliance.log(None, &caller.name, None, &format!("made the API token {} ({})", request.name, request.role.as_str()));
    Ok(Json(json!({"name": request.name, "role": request.role, "token": secret})))
}

pub async fn remove_token(State(appliance): Shared, Extension(caller): Extension<Caller>, Path(name): Path<String>) -> Answer {
    if !appliance.store.remove_api_token(&name).map_err(ApiError::internal)? {
        return Err(ApiError::not_found(&format!("token {name}")));
    }
    appliance.log(None, &caller.name, None, &format!("removed the API token {name}"));
    Ok(Json(json!({"removed": name})))
}
