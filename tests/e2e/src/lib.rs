//! What crosses services: end to end, faults, quality.
