//! The decoder service: answers and summaries from soft prompts.
