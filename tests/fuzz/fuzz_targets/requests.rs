//! What a request carries as bytes: records, and messages of every kind.
#![no_main]

use e2llm_api::v1::{AskRequest, EncodeRequest, ReportStatusRequest, SubmitJobRequest, TrainRequest};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    e2llm_index::fuzz::records(bytes);
    let _ = AskRequest::decode(bytes);
    let _ = EncodeRequest::decode(bytes);
    let _ = ReportStatusRequest::decode(bytes);
    let _ = SubmitJobRequest::decode(bytes);
    let _ = TrainRequest::decode(bytes);
});
