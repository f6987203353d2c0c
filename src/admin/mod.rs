//! The admin port: health, readiness, metrics and the API, on a thread and a runtime of their own.
