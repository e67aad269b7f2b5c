//! Answers of the batch, with who waits for them.

use std::time::Instant;

use e2llm_model::ModelError;
use e2llm_model::cpu::Workspace;
use e2llm_model::generate::{Generator, Sequence};
use e2llm_runtime::failpoint::reach;
use tokio::sync::oneshot;

use super::{Emit, Order, Priority, Written};
use crate::error::DecodeError;

pub(super) struct Running {
    sequence: Sequence,
    priority: Priority,
    emit: Emit,
    reply: oneshot::Sender<Result<Written, DecodeError>>,
    first: Option<Instant>,
}

impl Running {
    /// Begins an answer that is still wanted; a bad prompt is answered at once.
    pub(super) fn begin(order: Order, generator: &Generator) -> Option<Self> {
        let Order { priority, queued, prompt, emit, reply } = order;
        if reply.is_closed() {
            return None;
        }
        let waited = queued.elapsed().as_secs_f64();
        metrics::histogram!("e2llm_queue_wait_seconds", "class" => priority.class()).record(waited);
        let pieces = generator.prompt(prompt.pieces, &prompt.instruction);
        match pieces.and_then(|pieces| generator.begin(&pieces, &prompt.options)) {
            Ok(sequence) => Some(Self { sequence, priority, emit, reply, first: None }),
            Err(error) => {
                // Nobody to tell when the receiver is gone.
                let _ = reply.send(Err(error.into()));
                None
            }
        }
    }

    pub(super) fn priority(&self) -> Priority {
        self.priority
    }

    /// Positions that it takes, or will.
    pub(super) fn capacity(&self) -> usize {
        self.sequence.capacity()
    }

    /// Whether its prompt is read.
    pub(super) fn is_writing(&self) -> bool {
        self.first.is_some()
    }

    /// Hands out what was written; `None` when the answer is complete or nobody wants it any more.
    fn deliver(mut self) -> Option<Self> {
        if let Some(error) = self.sequence.take_failure() {
            let _ = self.reply.send(Err(error.into()));
            return None;
        }
        let finished = self.sequence.finished();
        let text = self.sequence.take_text();
        if !text.is_empty() {
            if self.first.is_none() {
                self.first = Some(Instant::now());
                reach("decoder.first_token");
            }
            if !(self.emit)(&text) {
                let _ = self.reply.send(Err(DecodeError::Cancelled));
                return None;
            }
        }
        if let Some(generated) = finished {
            let (positions, reused) = (self.sequence.positions(), self.sequence.reused());
            let written = Written { generated, first: self.first, positions, reused };
            let _ = self.reply.send(Ok(written));
            return None;
        }
        Some(self)
    }
}

/// One step of the batch; gives back what goes on.
pub(super) fn step(
    mut running: Vec<Running>,
    generator: &Generator,
    prompt_rows: usize,
    work: &mut Workspace,
) -> Vec<Running> {
    running.retain(|running| !running.reply.is_closed());
    let mut sequences: Vec<_> = running
        .iter_mut()
        .map(|running| &mut running.sequence)
        .filter(|sequence| sequence.finished().is_none())
        .collect();
    if let Err(error) = generator.step(&mut sequences, prompt_rows, work) {
        let problem = format!("a step of {} answers failed: {error}", sequences.len());
        for running in running {
            let _ = running.reply.send(Err(ModelError::Config { problem: problem.clone() }.into()));
        }
        return Vec::new();
    }
    running.into_iter().filter_map(Running::deliver).collect()
}
