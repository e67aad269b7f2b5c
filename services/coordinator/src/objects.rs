//! What clients without access to the store put there and get from there: training data and trained bundles.

use e2llm_api::MAX_PIECE_BYTES;
use e2llm_api::v1::{BundlePiece, PutTextResponse, TextPiece, TextRef};
use e2llm_store::Store;
use futures::TryStreamExt;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::CoordinatorError;

/// Folder of bundles that training jobs have written.
const BUNDLES: &str = "bundles";

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

/// The objects of a bundle, by fingerprint.
pub(crate) async fn bundle_files(store: &Store, fingerprint: &str) -> Result<Vec<String>, CoordinatorError> {
    let is_hex = !fingerprint.is_empty() && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit());
    let files = if is_hex { store.list(&format!("{BUNDLES}/{fingerprint}")).await? } else { Vec::new() };
    if files.is_empty() { Err(CoordinatorError::NoSuchBundle(fingerprint.to_owned())) } else { Ok(files) }
}

/// Sends objects in pieces, each under its name without its folder, until nobody listens.
pub(crate) async fn send_files(store: Store, files: Vec<String>, pieces: mpsc::Sender<Result<BundlePiece, Status>>) {
    for path in files {
        let bytes = match store.get(&path).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                let missing = CoordinatorError::NoSuchBundle(path);
                let _ = pieces.send(Err(missing.into())).await;
                return;
            }
            Err(error) => {
                let _ = pieces.send(Err(CoordinatorError::from(error).into())).await;
                return;
            }
        };
        let file = path.rsplit('/').next().unwrap_or_default();
        for piece in bytes.chunks(MAX_PIECE_BYTES) {
            let piece = BundlePiece { file: file.to_owned(), bytes: piece.to_vec() };
            if pieces.send(Ok(piece)).await.is_err() {
                return;
            }
        }
    }
}
