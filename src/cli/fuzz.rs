//! See [`crate::fuzz`]: what is written on the command line.

use super::condition::Condition;
use super::when::When;
use crate::time::Timestamp;

/// A condition, and a moment.
pub fn condition(text: &str) {
    if let Err(error) = text.parse::<Condition>() {
        assert!(error.len() <= 512 + 12 * text.len());
    }
    if let Ok(when) = text.parse::<When>() {
        let now = Timestamp::from_millis(1_700_000_000_000);
        assert!(matches!(when, When::At(_)) || when.after(now) >= when.before(now));
    }
}
