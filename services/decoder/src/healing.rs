//! Documents whose soft prompts are damaged or lost: the encoder makes them anew from the stored text.

use std::time::Duration;

use e2llm_api::v1::encode_response::Outcome;
use e2llm_api::v1::encoder_client::EncoderClient;
use e2llm_api::v1::{DocRecord, EncodeRequest, EncodeResponse};
use e2llm_api::{ErrorCode, status};
use e2llm_runtime::Channel;
use e2llm_runtime::{CallError, RetryPolicy, retry};
use e2llm_store::{BlobName, StoreError};
use tonic::Status;

/// A long document takes minutes, and nobody can do without it.
const PATIENCE: RetryPolicy = RetryPolicy {
    tries: 3,
    deadline: Duration::from_secs(600),
    first_delay: Duration::from_millis(200),
    max_delay: Duration::from_secs(5),
};

/// Whether `error` says that a soft prompt of `record` cannot be read again, and there is a text to make it from.
pub(crate) fn can_help(record: &DocRecord, error: &StoreError) -> bool {
    let object = match error {
        StoreError::Corrupt { object, .. } | StoreError::NotFound { object } => object,
        _ => return false,
    };
    record.text_stored && BlobName::from_path(object).is_some()
}

/// Has the document encoded again; its new record.
pub(crate) async fn encode_again(encoder: EncoderClient<Channel>, record: &DocRecord) -> Result<DocRecord, CallError> {
    let request = EncodeRequest {
        collection: record.collection.clone(),
        doc_id: record.doc_id.clone(),
        text_hash: record.text_hash.clone(),
        last: true,
        ..EncodeRequest::default()
    };
    retry(&PATIENCE, "Encoder.Encode", "the encoder", || {
        let (mut encoder, request) = (encoder.clone(), request.clone());
        async move {
            let mut answers = encoder.encode(tokio_stream::once(request)).await?.into_inner();
            outcome(answers.message().await?)
        }
    })
    .await
}

fn outcome(answer: Option<EncodeResponse>) -> Result<DocRecord, Status> {
    match answer.and_then(|answer| answer.outcome) {
        Some(Outcome::Record(record)) => Ok(record),
        Some(Outcome::Error(error)) => {
            Err(status(ErrorCode::parse(&error.code).unwrap_or(ErrorCode::Internal), error.message))
        }
        None => Err(status(ErrorCode::Unavailable, "the encoder ended without an answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob() -> String {
        format!("blobs/aa/{}/{}.safetensors", "a".repeat(64), "b".repeat(64))
    }

    fn corrupt(object: &str) -> StoreError {
        StoreError::Corrupt { object: object.into(), reason: "test".into(), quarantined: None }
    }

    #[test]
    fn a_damaged_or_lost_soft_prompt_can_be_made_anew_while_there_is_the_text() {
        let (kept, dropped) = (DocRecord { text_stored: true, ..Default::default() }, DocRecord::default());
        assert!(can_help(&kept, &corrupt(&blob())));
        assert!(can_help(&kept, &StoreError::NotFound { object: blob() }));
        assert!(!can_help(&dropped, &corrupt(&blob())));
        assert!(!can_help(&kept, &corrupt("texts/aa/aa.zst")), "a text is the source itself");
        assert!(!can_help(&kept, &StoreError::DiskFull { object: blob() }));
    }

    #[test]
    fn what_the_encoder_says_of_the_document_decides_whether_to_ask_again() {
        let error = |code: ErrorCode| EncodeResponse {
            outcome: Some(Outcome::Error(e2llm_api::row_error(code, "reason"))),
            ..Default::default()
        };
        for (code, again) in [(ErrorCode::ResourceExhausted, true), (ErrorCode::Corrupt, false)] {
            let status = outcome(Some(error(code))).unwrap_err();
            assert_eq!(e2llm_runtime::code_of(&status).is_retriable(), again, "{status:?}");
        }
        assert!(e2llm_runtime::code_of(&outcome(None).unwrap_err()).is_retriable());
    }
}
