//! Who asks, and whether they may.

use super::error::ApiError;
use crate::Appliance;
use crate::store::Role;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

/// The name and role behind the request's token.
#[derive(Clone)]
pub struct Caller {
    pub name: String,
}

pub async fn authenticate(State(appliance): State<Arc<Appliance>>, mut request: Request, next: Next) -> Response {
    let header = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(secret) = header.and_then(|value| value.strip_prefix("Bearer ")) else {
        return refuse(StatusCode::UNAUTHORIZED, "E5002", "the request has no bearer token", "export STANDIN_TOKEN_FILE=FILE");
    };
    let caller = match appliance.store.authenticate(secret.trim()) {
        Ok(Some(caller)) => caller,
        Ok(None) => {
            return refuse(StatusCode::UNAUTHORIZED, "E5002", "the bearer token is not known here", "standin-appliance token create NAME");
        }
        Err(error) => return ApiError::internal(error).into_response(),
    };
    let (name, role) = caller;
    if role < needed(request.method(), request.uri().path()) {
        let cause = format!("{name} is {} and may not do this", role.as_str());
        return refuse(StatusCode::FORBIDDEN, "E5003", &cause, "standin-appliance token create NAME --role operator");
    }
    request.extensions_mut().insert(Caller { name });
    next.run(request).await
}

fn needed(method: &Method, path: &str) -> Role {
    if path.starts_with("/api/v1/tokens") {
        return Role::Admin;
    }
    // Planning changes nothing.
    let reads = matches!(*method, Method::GET | Method::HEAD) || path.ends_with("/plan");
    if reads { Role::Viewer } else { Role::Operator }
}

fn refuse(status: StatusCode, code: &str, cause: &str, next: &str) -> Response {
    ApiError::new(status, code, cause, next).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles() {
        assert_eq!(needed(&Method::GET, "/api/v1/jobs"), Role::Viewer);
        assert_eq!(needed(&Method::POST, "/api/v1/jobs/plan"), Role::Viewer);
        assert_eq!(needed(&Method::POST, "/api/v1/jobs/x/failover"), Role::Operator);
        assert_eq!(needed(&Method::GET, "/api/v1/tokens"), Role::Admin);
        assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
    }
}
