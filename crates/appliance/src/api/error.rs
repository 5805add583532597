//! Errors of the API as JSON: the first problem in front, all of them in `problems`.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use standin_protection::Problem;

pub struct ApiError {
    status: StatusCode,
    problems: Vec<Problem>,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &str, cause: impl Into<String>, next: impl Into<String>) -> ApiError {
        ApiError { status, problems: vec![Problem::new(code, cause, next)] }
    }
    pub fn internal(error: impl std::fmt::Display) -> ApiError {
        ApiError { status: StatusCode::INTERNAL_SERVER_ERROR, problems: vec![crate::errors::internal(error)] }
    }
    pub fn not_found(what: &str) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "E5004", format!("there is no {what}"), "standin jobs")
    }
}

/// A request that was understood and refused.
impl From<Vec<Problem>> for ApiError {
    fn from(problems: Vec<Problem>) -> ApiError {
        let internal = problems.first().is_none_or(|problem| problem.code == "STANDIN-E5001");
        let status = if internal { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::CONFLICT };
        ApiError { status, problems }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let first = self.problems.first().cloned().unwrap_or_else(|| crate::errors::internal("an error without a problem"));
        let body = json!({"code": first.code, "cause": first.cause, "next": first.next, "problems": self.problems});
        (self.status, Json(body)).into_response()
    }
}
