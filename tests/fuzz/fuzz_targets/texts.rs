//! What a request or a file carries as text: ids, metadata, conditions, page tokens, recipes, chat templates.
#![no_main]

use e2llm_api::{Collection, DocId, Metadata};
use e2llm_model::template::ChatTemplate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = DocId::new(text);
    let _ = Collection::new(text);
    let _ = Metadata::requested(text);
    e2llm_index::fuzz::filter(text);
    e2llm_index::fuzz::page_token(text);
    let _ = e2llm_train::Recipe::parse(text);
    if let Ok(template) = ChatTemplate::new(text, Some("<s>"), Some("</s>")) {
        let _ = template.render(None);
    }
});
