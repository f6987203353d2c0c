//! The worker: receive -> decode -> admit -> execute -> decide -> settle.

pub mod handle;
pub mod retry;
