//! One integration binary: behaviour against real servers. Each module is one subject.
