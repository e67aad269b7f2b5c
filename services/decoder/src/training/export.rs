use e2llm_api::v1::{MemberRound, ObjectRef};
use e2llm_model::AdapterConfig;
use e2llm_train::{BundleFiles, BundleParts, Names, TrainError, parameters_of};

use super::error::ShareError;
use super::models::DecoderSide;
use super::tasks::Work;

impl Work {
    /// Writes the committed parameters as a bundle, `bundles/<fingerprint>-<hash of all files>/…`.
    pub(super) fn export(&self, side: &DecoderSide) -> Result<MemberRound, ShareError> {
        let of = |state: &Option<e2llm_api::v1::SideState>| -> Option<ObjectRef> { state.clone()?.parameters };
        let untrained = || ShareError::Task("there is nothing to export: no round was committed before".to_owned());
        let encoder = self.read(of(&self.task.encoder).as_ref())?.ok_or_else(untrained)?;
        let decoder = self.read(of(&self.task.decoder).as_ref())?.ok_or_else(untrained)?;
        let adapter = self.session(side, None)?.adapter;
        let adapter: AdapterConfig = serde_json::from_str(&adapter)
            .map_err(|error| TrainError::Invalid(format!("the encoder's adapter: {error}")))?;
        let words = &side.words;
        let names =
            Names { bundle: &self.spec.bundle_name, encoder: &words.encoder.name, decoder: &words.decoder.name };
        let parts = BundleParts {
            adapter: parameters_of(&encoder, "adapter"),
            lora: parameters_of(&decoder, "lora"),
            encoder_lora: parameters_of(&encoder, "encoder"),
        };
        let bundle = BundleFiles::new(&self.recipe, names, adapter, &parts)?;
        let fingerprint = bundle.fingerprint(&words.encoder.sha256, &words.decoder.sha256)?;
        let digest = bundle.digest().to_hex();
        let mut bundle_files = Vec::new();
        for (name, bytes) in bundle.files {
            let path = format!("bundles/{fingerprint}-{}/{name}", &digest[..8]);
            bundle_files.push(self.runtime.block_on(self.store.put_verified(&path, bytes.into()))?);
        }
        Ok(MemberRound { bundle: fingerprint, bundle_files, ..MemberRound::default() })
    }
}
