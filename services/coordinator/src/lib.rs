//! The coordinator service: plans jobs and hands their tasks to workers that pull.
