//! The event log: as a list, or as server-sent events while the job lives.

use super::error::ApiError;
use super::jobs::find;
use crate::job::JobShell;
use crate::store::EventRow;
use crate::{Appliance, view};
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde::Deserialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

const PAGE: u32 = 1000;
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Events that a slow reader may lag behind; then the feeder waits for it.
const WAITING_MAX: usize = 64;

#[derive(Deserialize)]
pub struct After {
    #[serde(default)]
    after: i64,
}

pub async fn all(State(appliance): State<Arc<Appliance>>, Query(query): Query<After>) -> Result<Json<Vec<EventRow>>, ApiError> {
    appliance.store.events(None, query.after, PAGE).map(Json).map_err(ApiError::internal)
}

/// A list for `Accept: application/json`; otherwise a stream of `event` (log lines) and `job` (the job as it is, once a second).
pub async fn of_job(
    State(appliance): State<Arc<Appliance>>,
    Path(job): Path<String>,
    Query(query): Query<After>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let shell = find(&appliance, &job)?;
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !accept.contains("text/event-stream") {
        let events = appliance.store.events(Some(&shell.record.id), query.after, PAGE).map_err(ApiError::internal)?;
        return Ok(Json(events).into_response());
    }
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    tokio::spawn(feed(appliance, shell, query.after, sender));
    Ok(Sse::new(Events(receiver)).keep_alive(KeepAlive::default()).into_response())
}

/// Ends when the reader has gone.
async fn feed(appliance: Arc<Appliance>, shell: Arc<JobShell>, mut after: i64, sender: mpsc::Sender<Event>) {
    loop {
        let rows = appliance.store.events(Some(&shell.record.id), after, PAGE).unwrap_or_default();
        for row in rows {
            after = row.id;
            let text = serde_json::to_string(&row).unwrap_or_default();
            if sender.send(Event::default().event("event").id(row.id.to_string()).data(text)).await.is_err() {
                return;
            }
        }
        let text = serde_json::to_string(&view::job(&appliance, &shell)).unwrap_or_default();
        if sender.send(Event::default().event("job").data(text)).await.is_err() {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

struct Events(mpsc::Receiver<Event>);

impl Stream for Events {
    type Item = Result<Event, Infallible>;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|event| event.map(Ok))
    }
}
