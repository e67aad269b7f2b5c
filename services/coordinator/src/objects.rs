//! What clients without access to the store put there and get from there: training data and trained bundles.

use e2llm_api::MAX_PIECE_BYTES;
use e2llm_api::v1::{BundlePiece, ObjectRef, PutTextResponse, TextPiece, TextRef};
use e2llm_store::Store;
use futures::TryStreamExt;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::CoordinatorError;

/// Stores one text from its pieces.
pub(crate) async fn put_text(store: &Store, mut pieces: Streaming<TextPiece>) -> Result<PutTextResponse, Status> {
    let failed = |error: e2llm_store::StoreError| Status::from(CoordinatorError::from(error));
    let mut writer = store.text_writer().map_err(failed)?;
    while let Some(piece) = pieces.try_next().await? {
        writer.write(&piece.text).map_err(failed)?;
    }
    let text = writer.finish().await.map_err(failed)?;
    Ok(PutTextResponse { text: Some(TextRef { hash: text.hash, bytes: text.bytes }) })
}

/// Sends objects in pieces, each under its name without its folder and whole and verified or not at all, until nobody
/// listens.
pub(crate) async fn send_files(store: Store, files: Vec<ObjectRef>, pieces: mpsc::Sender<Result<BundlePiece, Status>>) {
    for object in files {
        let bytes = match store.get_named(&object).await {
            Ok(bytes) => bytes,
            Err(error) => {
                // Whoever has gone away needs not hear it.
                let _ = pieces.send(Err(CoordinatorError::from(error).into())).await;
                return;
            }
        };
        let file = object.path.rsplit('/').next().unwrap_or_default();
        for piece in bytes.chunks(MAX_PIECE_BYTES) {
            let piece = BundlePiece { file: file.to_owned(), bytes: piece.to_vec() };
            if pieces.send(Ok(piece)).await.is_err() {
                return;
            }
        }
    }
}
