//! Results as text for people and as JSON for programs.

mod training;

use e2llm_api::v1::{DocRecord, ExpandedChunk, JobKind, RowResult, Summary, Usage};
use serde_json::{Map, Value, json};
pub(crate) use training::{training_json, training_text};

/// The stored record of a document as JSON.
pub(crate) fn record_json(record: &DocRecord) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("id".into(), record.doc_id.clone().into());
    object.insert("chunks".into(), record.chunks.into());
    object.insert("soft_tokens".into(), record.soft_tokens.into());
    object.insert("source_tokens".into(), record.source_tokens.into());
    object.insert("text_bytes".into(), record.text_bytes.into());
    object.insert("ratio".into(), record.ratio.into());
    object.insert("version".into(), record.version.into());
    object.insert("fingerprint".into(), record.fingerprint.clone().into());
    object.insert("text_hash".into(), record.text_hash.clone().into());
    object.insert("text_stored".into(), record.text_stored.into());
    object.insert("encoded_unix_ms".into(), record.encoded_unix_ms.into());
    if !record.metadata.is_empty() {
        // The index holds JSON objects only; anything else would still be shown as it is.
        let metadata = serde_json::from_str(&record.metadata).unwrap_or_else(|_| record.metadata.clone().into());
        object.insert("metadata".into(), metadata);
    }
    if let Some(summary) = &record.summary {
        object.insert("summary".into(), summary_json(summary));
    }
    object
}

/// A summary that is kept with its document.
fn summary_json(summary: &Summary) -> Value {
    json!({
        "text": summary.text, "instruction": summary.instruction,
        "created_unix_ms": summary.created_unix_ms, "job_id": summary.job_id,
    })
}

/// The stored record of a document with its segments.
pub(crate) fn full_record_json(record: &DocRecord) -> Value {
    let mut object = record_json(record);
    let segments = record.segments.iter().map(|segment| {
        json!({
            "input_key": segment.input_key, "content_hash": segment.content_hash, "bytes": segment.bytes,
            "chunks": segment.chunks, "soft_tokens": segment.soft_tokens,
            "text_start": segment.text_start, "text_end": segment.text_end,
        })
    });
    object.insert("collection".into(), record.collection.clone().into());
    object.insert("d_model".into(), record.d_model.into());
    object.insert("segments".into(), segments.collect());
    Value::Object(object)
}

/// What a document takes, for people.
pub(crate) fn record_text(record: &DocRecord) -> String {
    format!(
        "{} tokens in {} chunks kept as {} soft tokens",
        count(record.source_tokens),
        count(record.chunks.into()),
        count(record.soft_tokens.into())
    )
}

/// What a generation used, as JSON.
pub(crate) fn usage_json(usage: &Usage) -> Value {
    let expanded = usage.expanded.iter().map(|chunk| {
        json!({
            "doc_id": chunk.doc_id, "chunk": chunk.chunk,
            "text_start": chunk.text_start, "text_end": chunk.text_end, "score": chunk.score,
        })
    });
    json!({
        "chunks_total": usage.chunks_total,
        "chunks_expanded": usage.chunks_expanded,
        "chunks_soft": usage.chunks_soft,
        "chunks_left_out": usage.chunks_left_out,
        "soft_positions": usage.soft_positions,
        "text_positions": usage.text_positions,
        "reused_positions": usage.reused_positions,
        "generated_tokens": usage.generated_tokens,
        "windows": usage.windows,
        "finish_reason": usage.finish_reason,
        "first_token_ms": milliseconds(usage.first_token_us),
        "total_ms": milliseconds(usage.total_us),
        "expanded": expanded.collect::<Vec<Value>>(),
    })
}

/// What a generation used, for people: three lines at most.
pub(crate) fn usage_text(usage: &Usage) -> String {
    let reused = match usage.reused_positions {
        0 => String::new(),
        reused => format!("; {} read before", count(reused.into())),
    };
    let mut text = format!(
        "read {} of {} chunks as text, {} as soft tokens, left out {}; {} positions ({} soft, {} text{reused})\n\
         first token after {:.2} s; {} tokens in {:.2} s, ended by {}",
        usage.chunks_expanded,
        count(usage.chunks_total.into()),
        count(usage.chunks_soft.into()),
        count(usage.chunks_left_out.into()),
        count(u64::from(usage.soft_positions) + u64::from(usage.text_positions)),
        count(usage.soft_positions.into()),
        count(usage.text_positions.into()),
        milliseconds(usage.first_token_us) / 1e3,
        usage.generated_tokens,
        milliseconds(usage.total_us) / 1e3,
        usage.finish_reason,
    );
    let place = |chunk: &ExpandedChunk| {
        let id = clean(&chunk.doc_id);
        format!("{id} bytes {}–{} ({:.2})", chunk.text_start, chunk.text_end, chunk.score)
    };
    let places: Vec<String> = usage.expanded.iter().map(place).collect();
    if !places.is_empty() {
        text.push_str("\ntext of: ");
        text.push_str(&places.join(", "));
    }
    text
}

fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e3
}

/// One finished row as JSON: `{"id","summary",…}`, or `{"id","error":{"code","message"}}`.
pub(crate) fn row_json(kind: JobKind, row: &RowResult) -> Value {
    if let Some(error) = &row.error {
        return json!({"id": row.id, "error": {"code": error.code, "message": error.message}});
    }
    let mut object = Map::new();
    object.insert("id".into(), row.id.clone().into());
    match kind {
        JobKind::Encode | JobKind::Unspecified => {
            object.extend(row.record.iter().flat_map(record_json));
            object.insert("unchanged".into(), row.unchanged.into());
        }
        JobKind::Summarize => {
            object.insert("summary".into(), row.text.clone().into());
            object.insert("unchanged".into(), row.unchanged.into());
        }
        JobKind::Train => object.extend(row.member.iter().flat_map(training::member_json)),
        JobKind::Ask => {
            object.insert("answer".into(), row.text.clone().into());
        }
    }
    if let Some(usage) = &row.usage {
        object.insert("usage".into(), usage_json(usage));
    }
    Value::Object(object)
}

/// One finished row for people, without its line break: a line of an encoded document, or a heading and text.
pub(crate) fn row_text(kind: JobKind, row: &RowResult, width: usize) -> String {
    let id = clean(&row.id);
    if kind == JobKind::Encode {
        let what = row.record.as_ref().map(record_text).unwrap_or_default();
        return if row.unchanged { format!("{id}: unchanged, {what}") } else { format!("{id}: {what}") };
    }
    if let Some(member) = &row.member {
        return format!("{id}: {}", training::member_text(member));
    }
    let left_out = row.usage.as_ref().map_or(0, |usage| usage.chunks_left_out);
    let note = match left_out {
        0 => String::new(),
        chunks => format!("  [{} chunks did not fit and were left out]\n", count(chunks.into())),
    };
    format!("{id}\n{}{note}", wrap(&clean(row.text.trim()), width, "  "))
}

/// An error row for people: one line.
pub(crate) fn row_error_text(row: &RowResult) -> String {
    let message = row.error.as_ref().map_or("", |error| error.message.as_str());
    let message = clean(message).replace('\n', " ");
    let id = clean(&row.id).replace('\n', " ");
    if id.is_empty() || message.contains(&id) { format!("error: {message}") } else { format!("error: {id}: {message}") }
}

/// Text without the control characters that could move the cursor or recolour a terminal. Line breaks and tabs stay.
pub(crate) fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// Breaks lines at white space so that they are at most `width` characters with the indent. Ends with a line break.
pub(crate) fn wrap(text: &str, width: usize, indent: &str) -> String {
    let room = width.saturating_sub(indent.chars().count()).max(1);
    let mut out = String::new();
    for line in text.lines() {
        let mut used = 0;
        for word in line.split_whitespace() {
            let length = word.chars().count();
            if used > 0 && used + 1 + length > room {
                out.push('\n');
                used = 0;
            }
            out.push_str(if used == 0 { indent } else { " " });
            out.push_str(word);
            used += length + usize::from(used > 0);
        }
        out.push('\n');
    }
    out
}

/// A whole number with thousands separated: `12,345`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number of bytes: `1.5 MB`.
pub(crate) fn bytes(number: u64) -> String {
    indicatif::DecimalBytes(number).to_string()
}

/// A duration: `8 s`, `2 min 05 s`, `3 h 07 min`.
pub(crate) fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests;
