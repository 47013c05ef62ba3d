//! The HTTP service: `GET /infer?seed=N`, `POST /infer`, `/healthz`, `/readyz`.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use crate::model::{Model, PIXELS, image};

/// What the handlers share; `model` is empty until the weights are made.
#[derive(Debug, Default)]
pub struct Shared {
    /// The network, once it is ready.
    pub model: OnceLock<Model>,
    /// Name told in every answer, so that a client sees which replica it reached.
    pub served_by: String,
}

/// A question: exactly one of the two.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Seed of a synthetic image.
    pub seed: Option<u64>,
    /// The image: 3 x 32 x 32 values in [0, 1], channel by channel.
    pub pixels: Option<Vec<f32>>,
}

/// An answer.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// Most probable class.
    pub class: usize,
    /// Probability of each class.
    pub probabilities: Vec<f32>,
    /// Time of the forward pass, milliseconds.
    pub latency_ms: f64,
    /// Replica that answered.
    pub served_by: String,
}

/// The service's routes.
pub fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/infer", get(infer_by_query).post(infer_by_body))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .layer(DefaultBodyLimit::max(256 * 1024))
        .with_state(shared)
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    if shared.model.get().is_some() {
        "ready\n".into_response()
    } else {
        refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            "the weights are being made",
        )
    }
}

async fn infer_by_query(
    State(shared): State<Arc<Shared>>,
    Query(question): Query<Question>,
) -> Response {
    infer(shared, question).await
}

async fn infer_by_body(
    State(shared): State<Arc<Shared>>,
    Json(question): Json<Question>,
) -> Response {
    infer(shared, question).await
}

async fn infer(shared: Arc<Shared>, question: Question) -> Response {
    let pixels = match (question.seed, question.pixels) {
        (Some(seed), None) => image(seed),
        (None, Some(pixels)) if pixels.len() != PIXELS => {
            let message = format!("pixels: expected {PIXELS} values, got {}", pixels.len());
            return refuse(StatusCode::BAD_REQUEST, &message);
        }
        (None, Some(pixels)) if pixels.iter().any(|p| !p.is_finite()) => {
            return refuse(StatusCode::BAD_REQUEST, "pixels: not a finite number");
        }
        (None, Some(pixels)) => pixels,
        (Some(_), Some(_)) | (None, None) => {
            return refuse(
                StatusCode::BAD_REQUEST,
                "give exactly one of seed and pixels",
            );
        }
    };
    let answer = tokio::task::spawn_blocking(move || answer(&shared, &pixels)).await;
    match answer {
        Ok(Ok(Some(answer))) => Json(answer).into_response(),
        Ok(Ok(None)) => refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            "the weights are being made",
        ),
        Ok(Err(e)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
        Err(e) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
    }
}

fn answer(shared: &Shared, pixels: &[f32]) -> candle_core::Result<Option<Answer>> {
    let Some(model) = shared.model.get() else {
        return Ok(None);
    };
    let start = Instant::now();
    let probabilities = model.classify(pixels)?;
    let latency_ms = start.elapsed().as_secs_f64() * 1000.0;
    let best = probabilities
        .iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(b.1));
    Ok(Some(Answer {
        class: best.map_or(0, |(class, _)| class),
        latency_ms,
        served_by: shared.served_by.clone(),
        probabilities,
    }))
}

fn refuse(status: StatusCode, message: &str) -> Response {
    (status, format!("{message}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(shared: Arc<Shared>, question: Question) -> (StatusCode, String) {
        let response = infer(shared, question).await;
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20)
            .await
            .unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    fn loaded() -> Arc<Shared> {
        Arc::new(Shared {
            model: Model::seeded(1).unwrap().into(),
            served_by: "here".to_owned(),
        })
    }

    #[tokio::test]
    async fn a_seed_is_answered_with_ten_probabilities() {
        let question = Question {
            seed: Some(3),
            pixels: None,
        };
        let (status, body) = ask(loaded(), question).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["probabilities"].as_array().unwrap().len(), 10);
        assert_eq!(answer["served_by"], "here");
    }

    #[tokio::test]
    async fn wrong_pixels_are_refused_by_name() {
        let question = Question {
            seed: None,
            pixels: Some(vec![0.5; 7]),
        };
        let (status, body) = ask(loaded(), question).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(
            body.contains("pixels: expected 3072 values, got 7"),
            "{body}"
        );
    }

    #[tokio::test]
    async fn without_weights_nothing_is_answered() {
        let question = Question {
            seed: Some(3),
            pixels: None,
        };
        let (status, _) = ask(Arc::new(Shared::default()), question).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    }
}
