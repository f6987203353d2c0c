//! Who counts as dead, and lives: a member of the group that was cut off or stopped for longer than its session.
//!
//! A job remembers the owners that had it when their partition went to somebody else. Whoever of them is a member of the
//! group has not died: it is asked for at each takeover, and again a session later, before a job is condemned.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;

use super::super::memo::short_name;
use super::{ASK, Running};

/// Of a member whose session is the broker's business (KIP-848): the broker's default.
const SESSION: Duration = Duration::from_secs(45);
/// For so many sessions it is asked in vain: a broker of the cluster may be away for long, and jobs wait for the answer.
const IN_VAIN: u32 = 4;

/// Of the member that writes `owner` into what it commits.
pub(super) fn client_id(configured: Option<&str>, owner: u32) -> String {
    format!("{}-{:04x}", configured.unwrap_or("windlass"), short_name(owner))
}

fn owner(client_id: &str) -> Option<u16> {
    let (_, name) = client_id.rsplit_once('-')?;
    let ours = name.len() == 4 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    ours.then(|| u16::from_str_radix(name, 16).ok())?
}

impl Running {
    /// The owners that are members of the group now; `None`: it cannot be said.
    pub(super) fn present(&self) -> Option<HashSet<u16>> {
        let group = self.setup.config.get("group.id").unwrap_or_default();
        // Not by the request of the newer admin interface, which ends the process where the coordinator goes away while
        // it is asked (librdkafka 2.12: an assertion on `eonce->refcnt`).
        match self.consumer.fetch_group_list(Some(group), ASK) {
            Ok(list) => {
                let members = list.groups().iter().flat_map(|group| group.members());
                Some(members.filter_map(|member| owner(member.client_id())).collect())
            }
            Err(error) => {
                tracing::warn!(%error, group, "the members of the group cannot be read yet");
                None
            }
        }
    }

    /// Lets jobs be condemned once whoever lives had the time to come back.
    pub(super) fn judge(&mut self) {
        let session = self.setup.config.get("session.timeout.ms").and_then(|millis| millis.parse().ok());
        let session = session.map_or(SESSION, Duration::from_millis);
        if self.asked.elapsed() < session {
            return;
        }
        let due: Vec<(u64, Instant)> = {
            let state = self.setup.shared.state.lock();
            let accuses = |id: &u64| state.partitions.get(id).is_some_and(|partition| partition.accuses(true));
            let old = self.queues.values().filter(|seat| seat.since.elapsed() >= session && accuses(&seat.id));
            old.map(|seat| (seat.id, seat.since)).collect()
        };
        if due.is_empty() {
            return;
        }
        self.asked = Instant::now();
        let present = self.present();
        let mut state = self.setup.shared.state.lock();
        for (id, since) in due {
            let Some(partition) = state.partitions.get_mut(&id) else { continue };
            match &present {
                Some(present) => partition.acquit(present),
                None if since.elapsed() < session * IN_VAIN => continue,
                None => {}
            }
            partition.judge();
        }
        drop(state);
        self.setup.shared.arrived.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_names_its_owner() {
        assert_eq!(client_id(Some("windlass-host-12"), 0xabcd_0102), "windlass-host-12-0102");
        assert_eq!(owner("windlass-host-12-0102"), Some(0x0102));
        assert_eq!(owner(&client_id(None, 0xffff_fedc)), Some(0xfedc));
        for foreign in ["rdkafka", "windlass-host-12", "a-", "a-+123", "a-12345"] {
            assert_eq!(owner(foreign), None, "{foreign}");
        }
    }
}
