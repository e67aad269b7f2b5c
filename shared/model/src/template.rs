//! The model's own chat template, rendered around contents that are not text yet.
//!
//! A prompt is markup (made by the template, trusted, with special tokens) around contents (instructions, questions, documents:
//! somebody else's words, or soft tokens that have no words at all). The template is therefore rendered with a unique sentinel
//! for every content and cut there; markup and contents are encoded separately, so that `<|im_end|>` in a document ends
//! nothing.
//!
//! Templates run as Hugging Face's do: `trim_blocks`, `lstrip_blocks`, loop controls, Python's string methods, `raise_exception`,
//! `tojson`. `strftime_now` is left undefined, so that a prompt does not depend on the day; templates that use it have a default.
//!
//! ```
//! use e2llm_model::template::{ChatTemplate, Role};
//!
//! let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
//! let template = ChatTemplate::new(source, None, None)?;
//! let rendered = template.render(Some("Be brief."))?;
//! assert_eq!(rendered.prefix, "<system>Be brief.</><user>");
//! assert_eq!(rendered.suffix, "</><assistant>");
//! # Ok::<(), e2llm_model::error::ModelError>(())
//! ```

mod json;

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};
use serde::Deserialize;

use crate::error::{ModelError, Result};
use crate::gguf::GgufMetadata;
use crate::tokenizer::TextTokenizer;

const NAME: &str = "chat_template";

/// A compiled chat template with the variables that it is rendered with.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    variables: BTreeMap<String, Value>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Standing instructions.
    System,
    /// The one who asks.
    User,
    /// The model, in earlier turns.
    Assistant,
}

/// A stretch of a rendered prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The template's own text: encode with special tokens.
    Markup(String),
    /// Where the content of the message with this index goes: plain-encoded ids or soft tokens.
    Content(usize),
}

/// A prompt of one user message, as text around its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// Everything before the user's content.
    pub prefix: String,
    /// Everything after it, up to where the model begins to write.
    pub suffix: String,
}

/// The same as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Ids before the user's content.
    pub prefix: Vec<u32>,
    /// Ids after it.
    pub suffix: Vec<u32>,
}

impl ChatTemplate {
    /// Compiles `source`; `bos` and `eos` are the texts of those tokens, where the model has them.
    ///
    /// # Errors
    /// [`ModelError::Template`] with line and reason if it does not compile.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(error)?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", json::to_json);
        environment.add_template_owned(NAME, source.to_owned()).map_err(error)?;
        let tokens = [("bos_token", bos), ("eos_token", eos)];
        let variables =
            tokens.into_iter().map(|(name, token)| (name.to_owned(), Value::from(token.unwrap_or_default())));
        Ok(Self { environment, variables: variables.collect() })
    }

    /// The template in a GGUF file's `tokenizer.chat_template`.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`] if the file has none, [`ModelError::Template`] if it does not compile.
    pub fn from_gguf(metadata: &GgufMetadata) -> Result<Self> {
        let tokens = metadata.strings("tokenizer.ggml.tokens")?;
        let token = |key: &str| metadata.opt_u32(key).and_then(|id| tokens.get(id as usize).copied());
        let bos = token("tokenizer.ggml.bos_token_id");
        let eos = token("tokenizer.ggml.eos_token_id");
        Self::new(metadata.str("tokenizer.chat_template")?, bos, eos)
    }

    /// The template of a Hugging Face model directory: `chat_template.jinja`, or the one in `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::BadWeights`] if `tokenizer_config.json` cannot be read or has no template;
    /// [`ModelError::Template`] if it does not compile.
    pub fn from_dir(directory: &Path) -> Result<Self> {
        let path = directory.join("tokenizer_config.json");
        let bytes = std::fs::read(&path).map_err(ModelError::io(&path))?;
        let config: TokenizerConfig =
            serde_json::from_slice(&bytes).map_err(|e| ModelError::bad_weights(&path, e.to_string()))?;
        let beside = std::fs::read_to_string(directory.join("chat_template.jinja")).ok();
        let source = beside.or(config.chat_template.and_then(Templates::into_default));
        let source = source.ok_or_else(|| ModelError::bad_weights(&path, "it has no chat_template"))?;
        let text = |token: &Option<TokenText>| token.as_ref().map(|token| token.text().to_owned());
        Self::new(&source, text(&config.bos_token).as_deref(), text(&config.eos_token).as_deref())
    }

    /// Sets a variable that this model's template asks for, such as Qwen3's `enable_thinking`.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.variables.insert(name.to_owned(), value.into());
        self
    }

    /// Renders a conversation of these roles and the generation prompt, and cuts it at the contents.
    ///
    /// # Errors
    /// [`ModelError::Template`] if the template refuses the roles (some know no system message) or drops, changes or repeats a
    /// content.
    pub fn layout(&self, roles: &[Role]) -> Result<Vec<Part>> {
        let sentinels: Vec<String> = (0..roles.len()).map(sentinel).collect();
        let messages = roles.iter().zip(&sentinels);
        let messages: Vec<Value> =
            messages.map(|(role, content)| context! { role => role.name(), content => content }).collect();
        let variables = Value::from(self.variables.clone());
        let context = context! { messages, add_generation_prompt => true, ..variables };
        let template = self.environment.get_template(NAME).map_err(error)?;
        let text = template.render(context).map_err(error)?;
        cut(&text, &sentinels)
    }

    /// Renders one user message, after a system message if there is one, into the text around the user's content.
    ///
    /// `system` becomes part of the prefix as text: only for instructions that this program wrote. For others use
    /// [`frame`](Self::frame).
    ///
    /// # Errors
    /// As [`layout`](Self::layout).
    pub fn render(&self, system: Option<&str>) -> Result<Rendered> {
        let (before, after) = self.around_user(system.is_some())?;
        let mut prefix = String::new();
        for part in before {
            match part {
                Part::Markup(text) => prefix.push_str(&text),
                Part::Content(_) => prefix.push_str(system.unwrap_or_default()),
            }
        }
        let suffix =
            after.into_iter().map(|part| if let Part::Markup(text) = part { text } else { String::new() }).collect();
        Ok(Rendered { prefix, suffix })
    }

    /// Like [`render`](Self::render), as token ids, with `system` encoded as ordinary text.
    ///
    /// # Errors
    /// As [`layout`](Self::layout), and [`ModelError::Tokenizer`].
    pub fn frame(&self, tokenizer: &TextTokenizer, system: Option<&str>) -> Result<Frame> {
        let (before, after) = self.around_user(system.is_some())?;
        let encode = |parts: Vec<Part>| {
            let ids = parts.into_iter().map(|part| match part {
                Part::Markup(text) => tokenizer.encode(&text, false),
                Part::Content(_) => tokenizer.encode_plain(system.unwrap_or_default()),
            });
            ids.collect::<Result<Vec<_>>>().map(|ids| ids.concat())
        };
        Ok(Frame { prefix: encode(before)?, suffix: encode(after)? })
    }

    fn around_user(&self, with_system: bool) -> Result<(Vec<Part>, Vec<Part>)> {
        let roles: &[Role] = if with_system { &[Role::System, Role::User] } else { &[Role::User] };
        let mut before = self.layout(roles)?;
        let user = Part::Content(roles.len() - 1);
        let at = before.iter().position(|part| *part == user).unwrap_or(before.len());
        let mut after = before.split_off(at);
        after.retain(|part| *part != user);
        Ok((before, after))
    }
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// What `tokenizer_config.json` says about chat.
#[derive(Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenText {
    Plain(String),
    Added { content: String },
}

impl Templates {
    fn into_default(self) -> Option<String> {
        match self {
            Self::One(template) => Some(template),
            Self::Named(templates) => {
                templates.into_iter().find(|named| named.name == "default").map(|named| named.template)
            }
        }
    }
}

impl TokenText {
    fn text(&self) -> &str {
        match self {
            Self::Plain(text) => text,
            Self::Added { content } => content,
        }
    }
}

/// Private-use characters, so that no template mentions it, and no white space at its ends for a `trim` to take.
fn sentinel(index: usize) -> String {
    format!("\u{E0F0}content-{index}\u{E0F1}")
}

fn cut(text: &str, sentinels: &[String]) -> Result<Vec<Part>> {
    let mut found = Vec::new();
    for (index, sentinel) in sentinels.iter().enumerate() {
        let places: Vec<usize> = text.match_indices(sentinel.as_str()).map(|(at, _)| at).collect();
        let [place] = places[..] else {
            let times = places.len();
            return Err(ModelError::Template(format!(
                "it renders the content of message {index} {times} times, not once"
            )));
        };
        found.push((place, index, sentinel.len()));
    }
    found.sort_unstable();
    let mut parts = Vec::new();
    let mut from = 0;
    for (place, index, length) in found {
        parts.push(Part::Markup(text[from..place].to_owned()));
        parts.push(Part::Content(index));
        from = place + length;
    }
    parts.push(Part::Markup(text[from..].to_owned()));
    parts.retain(|part| *part != Part::Markup(String::new()));
    Ok(parts)
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// The whole chain of reasons on one line.
fn error(e: minijinja::Error) -> ModelError {
    ModelError::Template(format!("{e:#}").lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(source: &str, system: Option<&str>) -> Result<Rendered> {
        ChatTemplate::new(source, Some("<s>"), Some("</s>"))?.render(system)
    }

    #[test]
    fn python_methods_loop_controls_and_whitespace_rules_work() {
        let source = "
{%- for m in messages %}
    {% if m['role'].startswith('sys') %}
        {{- m.content }}
        {% continue %}
    {% endif %}
    {{- bos_token + '[' + m['role'].upper() + ']' + m['content'].strip() + eos_token }}
{% endfor %}";
        // What Python's jinja2 gives with the same settings.
        let expected = Rendered { prefix: "rules\n<s>[USER]".into(), suffix: "</s>\n".into() };
        assert_eq!(rendered(source, Some("rules")).unwrap(), expected);
        let looped =
            "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}{{ messages[0].content }}";
        assert_eq!(rendered(looped, None).unwrap().prefix, "01");
    }

    #[test]
    fn the_templates_own_refusal_is_reported() {
        let error = rendered("{{ raise_exception('no system role here') }}", None).unwrap_err().to_string();
        assert!(error.contains("no system role here") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn a_content_that_is_dropped_repeated_or_changed_is_an_error() {
        for source in
            ["nothing", "{{ messages[0].content }}{{ messages[0].content }}", "{{ messages[0].content | upper }}"]
        {
            let error = rendered(source, None).unwrap_err().to_string();
            assert!(error.contains("message 0"), "{source}: {error}");
        }
    }

    #[test]
    fn a_template_that_does_not_compile_is_an_error() {
        assert!(matches!(ChatTemplate::new("{% if %}", None, None), Err(ModelError::Template(_))));
    }

    #[test]
    fn variables_reach_the_template() {
        let source =
            "{{ messages[0].content }}{% if enable_thinking is defined and not enable_thinking %}<quick>{% endif %}";
        let template = ChatTemplate::new(source, None, None).unwrap();
        assert_eq!(template.render(None).unwrap().suffix, "");
        assert_eq!(template.with_variable("enable_thinking", false).render(None).unwrap().suffix, "<quick>");
    }

    #[test]
    fn json_is_pythons() {
        let source = "{{ {'z': \"<b> & 'c'\", 'a': [1, none]} | tojson }}{{ messages[0].content }}";
        assert_eq!(rendered(source, None).unwrap().prefix, r#"{"z": "<b> & 'c'", "a": [1, null]}"#);
        let source = "{{ {'a': 1} | tojson(indent=2) }}{{ messages[0].content }}";
        assert_eq!(rendered(source, None).unwrap().prefix, "{\n  \"a\": 1\n}");
    }

    #[test]
    fn a_model_directory_may_name_its_templates() {
        let directory = tempfile::tempdir().unwrap();
        let config = r#"{"bos_token": {"content": "<B>"}, "chat_template": [
            {"name": "tool_use", "template": "no"},
            {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}]}"#;
        std::fs::write(directory.path().join("tokenizer_config.json"), config).unwrap();
        assert_eq!(ChatTemplate::from_dir(directory.path()).unwrap().render(None).unwrap().prefix, "<B>");

        std::fs::write(directory.path().join("chat_template.jinja"), "<J>{{ messages[0].content }}").unwrap();
        assert_eq!(ChatTemplate::from_dir(directory.path()).unwrap().render(None).unwrap().prefix, "<J>");
    }
}
