//! Ids of dead letters: made of the event's number and the file's salt, so that another file's never meet them.

/// 60 bits in twelve letters. Numbers that follow each other look nothing alike, so that short prefixes name one.
pub fn id(salt: i64, event: i64) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    const MASK: u64 = (1 << 60) - 1;
    // Each step can be undone (xor; times an odd number; xor with its own high half), so that no two numbers meet.
    let mut mixed = (event as u64 ^ salt as u64) & MASK;
    mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) & MASK;
    mixed ^= mixed >> 30;
    mixed = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) & MASK;
    mixed ^= mixed >> 30;
    (0..12).rev().map(|place| char::from(DIGITS[(mixed >> (place * 5)) as usize & 31])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_events_share_an_id() {
        let ids: std::collections::HashSet<String> = (1..20_000).map(|event| id(-77, event)).collect();
        assert_eq!(ids.len(), 19_999);
        assert!(ids.iter().all(|id| id.len() == 12));
        assert_ne!(id(1, 1), id(2, 1));
    }
}
