//! An encoder and a decoder of any size with random weights, in the files that published ones come in: for what does not
//! depend on what a model knows.

use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

/// Sizes of a BERT and a Qwen2.
pub(crate) struct Sizes {
    pub(crate) encoder: Stack,
    pub(crate) decoder: Stack,
    pub(crate) kv_heads: usize,
    /// Rows of the decoder's embedding.
    pub(crate) vocabulary: usize,
}

pub(crate) struct Stack {
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) hidden: usize,
}

/// Word pieces of the tokenizer that both get.
const PIECES: usize = 30_522;
/// `[SEP]`, which ends a turn.
const END: usize = 102;
const TEMPLATE: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}\
    {% if add_generation_prompt %}assistant: {% endif %}";

/// Writes `encoder` and `decoder` into `directory`; `tokenizer` is a BERT's tokenizer.json.
pub(crate) fn write(directory: &Path, sizes: &Sizes, tokenizer: &Path) {
    let Sizes { encoder, decoder, kv_heads, vocabulary } = sizes;
    let config = json!({"model_type": "bert", "vocab_size": PIECES, "hidden_size": encoder.width, "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads, "intermediate_size": encoder.hidden, "hidden_act": "gelu", "max_position_embeddings": 512,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12});
    write_model(&directory.join("encoder"), &config, &bert(encoder), tokenizer);
    let config = json!({"model_type": "qwen2", "vocab_size": vocabulary, "hidden_size": decoder.width, "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads, "num_key_value_heads": kv_heads, "intermediate_size": decoder.hidden, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096, "rope_theta": 1e6, "tie_word_embeddings": true, "eos_token_id": END});
    let path = directory.join("decoder");
    write_model(&path, &config, &qwen2(decoder, *kv_heads, *vocabulary), tokenizer);
    std::fs::write(path.join("tokenizer_config.json"), json!({"chat_template": TEMPLATE}).to_string()).unwrap();
}

type Shapes = Vec<(String, Vec<usize>)>;

fn bert(Stack { layers, width, hidden, .. }: &Stack) -> Shapes {
    let (w, h) = (*width, *hidden);
    let norm = |name: String| [(format!("{name}.weight"), vec![w]), (format!("{name}.bias"), vec![w])];
    let linear = |name: String, out: usize, into: usize| {
        [(format!("{name}.weight"), vec![out, into]), (format!("{name}.bias"), vec![out])]
    };
    let table = |name: &str, rows: usize| (format!("embeddings.{name}_embeddings.weight"), vec![rows, w]);
    let mut shapes = vec![table("word", PIECES), table("position", 512), table("token_type", 2)];
    shapes.extend(norm("embeddings.LayerNorm".to_owned()));
    for layer in (0..*layers).map(|layer| format!("encoder.layer.{layer}")) {
        for part in ["self.query", "self.key", "self.value", "output.dense"] {
            shapes.extend(linear(format!("{layer}.attention.{part}"), w, w));
        }
        shapes.extend(norm(format!("{layer}.attention.output.LayerNorm")));
        shapes.extend(linear(format!("{layer}.intermediate.dense"), h, w));
        shapes.extend(linear(format!("{layer}.output.dense"), w, h));
        shapes.extend(norm(format!("{layer}.output.LayerNorm")));
    }
    shapes
}

fn qwen2(Stack { layers, width, heads, hidden }: &Stack, kv_heads: usize, vocabulary: usize) -> Shapes {
    let (w, h, kv) = (*width, *hidden, width / heads * kv_heads);
    let mut shapes =
        vec![("model.embed_tokens.weight".to_owned(), vec![vocabulary, w]), ("model.norm.weight".to_owned(), vec![w])];
    for layer in (0..*layers).map(|layer| format!("model.layers.{layer}")) {
        for (part, rows) in [("q", w), ("k", kv), ("v", kv)] {
            shapes.push((format!("{layer}.self_attn.{part}_proj.weight"), vec![rows, w]));
            shapes.push((format!("{layer}.self_attn.{part}_proj.bias"), vec![rows]));
        }
        shapes.push((format!("{layer}.self_attn.o_proj.weight"), vec![w, w]));
        for (part, shape) in [("gate", vec![h, w]), ("up", vec![h, w]), ("down", vec![w, h])] {
            shapes.push((format!("{layer}.mlp.{part}_proj.weight"), shape));
        }
        for norm in ["input", "post_attention"] {
            shapes.push((format!("{layer}.{norm}_layernorm.weight"), vec![w]));
        }
    }
    shapes
}

/// The safetensors format by hand: length of the header, header, tensors in bf16 as published decoders have them. Weights
/// are even in ±0.035 (deviation 0.02), norms are one.
fn write_model(directory: &Path, config: &Value, shapes: &Shapes, tokenizer: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(tokenizer, directory.join("tokenizer.json")).unwrap();
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in shapes {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = Value::Object(header).to_string();
    let file = std::fs::File::create(directory.join("model.safetensors")).unwrap();
    let mut file = std::io::BufWriter::new(file);
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for (name, shape) in shapes {
        let is_norm = name.to_lowercase().contains("norm") && name.ends_with("weight");
        for _ in 0..shape.iter().product::<usize>() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let random = ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.07;
            let value = if is_norm { 1.0 } else { random };
            file.write_all(&(value.to_bits() >> 16).to_le_bytes()[..2]).unwrap();
        }
    }
    file.flush().unwrap();
}
