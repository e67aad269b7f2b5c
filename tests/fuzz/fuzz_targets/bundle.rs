//! Bundles: bundle.json with its adapter and LoRA.
#![no_main]

use e2llm_model::Bundle;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8], Option<&[u8]>)| {
    let (config, adapter, lora) = input;
    let _ = Bundle::new(config, adapter.to_vec(), lora.map(<[u8]>::to_vec));
    let _ = Bundle::new(include_str!("../../../shared/bundles/minilm-smollm2/bundle.json"), adapter.to_vec(), None);
});
