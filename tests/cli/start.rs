//! `run --from`: where a queue begins that has no place of its own, on a broker that keeps events for nobody.

use super::Place;
use crate::support::nats::{Nats, Release};

#[test]
fn from_says_where_a_queue_begins_that_has_no_place() {
    let Some(server) = Nats::start(Release::New) else { return };
    let config = |queue: &str| {
        format!(
            "broker = \"nats://{}\"\nnamespace = \"t\"\n[queues.{queue}]\ntopics = [\"orders\"]\njob = \"log\"\n",
            server.host()
        )
    };
    let place = Place::with(&config("old"));
    place.ok(["publish", "orders", "1"]);
    place.ok(["publish", "orders", "2"]);
    let done = |place: &Place, from: &[&str]| {
        let mut args = vec!["run", "--burst", "--set", "admin.listen=none"];
        args.extend(from);
        place.json(args)[0]["done"].clone()
    };
    assert_eq!(done(&place, &["--from", "latest"]), 0);
    // It has a place now, and keeps it.
    place.ok(["publish", "orders", "3"]);
    assert_eq!(done(&place, &["--from", "earliest"]), 1);
    place.write("windlass.toml", config("new"));
    assert_eq!(done(&place, &[]), 3, "without it the configuration's start holds");
}
