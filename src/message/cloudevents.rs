//! CloudEvents 1.0, binary and structured.
