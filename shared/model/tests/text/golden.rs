//! Tokens and templates against what independent implementations gave (`tests/golden/README.md`).

use e2llm_model::gguf::{GgufFile, check_safetensors};
use e2llm_model::template::{ChatTemplate, Part, Role};
use serde_json::Value;

use crate::values::{cases, ids, read, size, text, uniform, write_checkpoint};
use crate::{GGUF, MINILM, SMOLLM};

#[test]
fn the_encoders_tokens_are_those_of_its_own_tokenizer_file_and_of_plain_wordpiece() {
    for case in cases(&read("tokens_encoder.json")["cases"]) {
        let (name, expected) = (text(case, "name"), ids(&case["ids"]));
        assert_eq!(MINILM.encode(text(case, "text"), true).unwrap(), expected, "{name}");
        if name != "special_encoder" {
            assert_eq!(MINILM.encode_framed(text(case, "text")).unwrap(), expected, "{name}, as untrusted text");
        }
    }
}

#[test]
fn the_decoders_tokens_are_those_of_llama_cpp() {
    for case in cases(&read("tokens_decoder.json")["cases"]) {
        let (name, content) = (text(case, "name"), text(case, "text"));
        assert_eq!(SMOLLM.encode_plain(content).unwrap(), ids(&case["ids_plain"]), "{name}, as untrusted text");
        assert_eq!(SMOLLM.encode(content, false).unwrap(), ids(&case["ids_special"]), "{name}, as markup");
    }
}

#[test]
fn special_tokens_are_those_that_the_file_calls_control_tokens() {
    let golden = read("tokens_decoder.json");
    for token in golden["special_tokens"].as_array().unwrap() {
        let id = SMOLLM.token_id(token.as_str().unwrap()).unwrap();
        assert!(SMOLLM.is_special(id), "{token}");
    }
}

#[test]
fn chat_prompts_have_the_ids_of_the_reference() {
    for case in cases(&read("decoder.json")["chats"]) {
        assert_eq!(SMOLLM.encode(text(case, "rendered"), false).unwrap(), ids(&case["ids"]), "{}", text(case, "name"));
    }
}

#[test]
fn templates_render_as_jinja_does() {
    let golden = read("templates.json");
    // The contents are put in afterwards, so a template's own trimming of them is not what this test is about.
    let prompts = cases(&golden["cases"])
        .filter(|case| case["add_generation_prompt"] == true && text(case, "chat") != "spaces_kept");
    for case in prompts {
        let (name, chat) = (text(case, "template"), text(case, "chat"));
        let rendered = render(&template(&golden, name), &golden["chats"][chat]);
        match case["error"].as_str() {
            Some(reason) => {
                let error = rendered.unwrap_err().to_string();
                assert!(error.contains(reason), "{name} on {chat}: {error}");
            }
            None => assert_eq!(rendered.unwrap(), text(case, "text"), "{name} on {chat}"),
        }
    }
}

#[test]
fn the_shipped_template_keeps_the_spaces_of_a_content() {
    let golden = read("templates.json");
    let kept = |case: &&Value| case["template"] == "smollm2" && case["chat"] == "spaces_kept";
    let case = cases(&golden["cases"]).find(kept).unwrap();
    assert_eq!(render(&template(&golden, "smollm2"), &golden["chats"]["spaces_kept"]).unwrap(), text(case, "text"));
}

#[test]
fn weights_of_tiny_checkpoints_are_computed_as_the_generator_does() {
    let golden = read("tiny.json");
    for case in cases(&golden["formula"]) {
        let value = uniform(text(case, "name"), size(case, "index") as u64);
        assert_eq!(Some(f64::from(value)), case["value"].as_f64(), "{case}");
    }
    let directory = tempfile::tempdir().unwrap();
    write_checkpoint(&golden["decoders"][0], directory.path());
    check_safetensors(&directory.path().join("model.safetensors")).unwrap();
}

fn template(golden: &Value, name: &str) -> ChatTemplate {
    match golden["templates"][name].as_str() {
        Some(source) => ChatTemplate::new(source, Some("<|im_start|>"), Some("<|im_end|>")).unwrap(),
        None => ChatTemplate::from_gguf(GgufFile::open(&GGUF).unwrap().metadata()).unwrap(),
    }
}

/// The template's markup around the contents of a chat.
fn render(template: &ChatTemplate, chat: &Value) -> e2llm_model::Result<String> {
    let messages = chat.as_array().unwrap();
    let roles: Vec<Role> = messages.iter().map(|message| role(text(message, "role"))).collect();
    let parts = template.layout(&roles)?.into_iter().map(|part| match part {
        Part::Markup(markup) => markup,
        Part::Content(index) => text(&messages[index], "content").to_owned(),
    });
    Ok(parts.collect())
}

fn role(name: &str) -> Role {
    match name {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        other => panic!("role {other:?}"),
    }
}
