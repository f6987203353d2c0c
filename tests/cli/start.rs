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
    // What the server itself answers to is no topic; what is configured and nobody has opened yet is told apart.
    let own = place.run(["publish", "$JS.API.STREAM.DELETE.ORDERS", "1"]);
    assert!(own.code == 1 && own.err.contains("the NATS server's own"), "{own:?}");
    let listed = Place::with(&config("fresh")).ok(["queues", "list"]);
    let line = |queue: &str| listed.lines().find(|line| line.contains(queue)).map(str::to_owned).unwrap_or_default();
    assert!(line("fresh").contains("none yet; `windlass run` makes it hear orders"), "{listed}");
    assert!(line("old").contains("orders") && !line("old").contains("none yet"), "{listed}");
    // It has a place now, and keeps it.
    place.ok(["publish", "orders", "3"]);
    assert_eq!(done(&place, &["--from", "earliest"]), 1);
    place.write("windlass.toml", config("new"));
    assert_eq!(done(&place, &[]), 3, "without it the configuration's start holds");
}
