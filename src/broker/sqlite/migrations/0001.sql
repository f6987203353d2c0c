-- Where a unit of work (a queue and an event) stands is said by the table it is in, so that handing over and
-- finishing are a few entries in small trees, and the message itself is written once and erased once.
-- Times: `at`, `due`, `last` are milliseconds of the wall clock; `lease` is milliseconds of the machine's
-- monotonic clock, which count only together with the boot id beside them.

-- The one row that every writer touches: `next` numbers events, `salt` makes letters' ids the file's own,
-- `generation` rises whenever a queue or a topic changes.
CREATE TABLE meta (
    one           INTEGER PRIMARY KEY CHECK (one = 1),
    next          INTEGER NOT NULL,
    salt          INTEGER NOT NULL,
    generation    INTEGER NOT NULL,
    oldest_reader INTEGER NOT NULL
);
INSERT INTO meta VALUES (1, 1, random(), 1, 1);

CREATE TABLE topic (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);

CREATE TABLE queue (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    name        TEXT NOT NULL UNIQUE,
    ordered     INTEGER NOT NULL,
    max_crashes INTEGER NOT NULL,
    keep_dead   INTEGER,
    created     INTEGER NOT NULL,
    forgotten   INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE subscription (topic INTEGER NOT NULL, queue INTEGER NOT NULL, PRIMARY KEY (topic, queue)) WITHOUT ROWID;

-- What was published, once, whatever number of queues hear it. `topic` is null for what was enqueued or replayed.
-- `content` is the headers' buffer and behind it the body; `head` is the length of the former, less 2^40 where
-- there is no body at all.
CREATE TABLE event (
    id      INTEGER PRIMARY KEY,
    topic   INTEGER,
    at      INTEGER NOT NULL,
    due     INTEGER,
    job     TEXT,
    key     BLOB,
    head    INTEGER NOT NULL,
    content BLOB NOT NULL
);

-- Only for events that several queues heard: how many of them still need it.
CREATE TABLE shared (event INTEGER PRIMARY KEY, refs INTEGER NOT NULL);

-- Waiting, never handed out or given back: the fresh lane.
CREATE TABLE fresh (queue INTEGER NOT NULL, event INTEGER NOT NULL, PRIMARY KEY (queue, event)) WITHOUT ROWID;

-- Waiting for a time, and all that came by the retry lane. `kind`: 0 fresh, 1 enqueued or replayed, 2 retry.
-- `class`: 1 for suspects, which are handed out one at a time.
CREATE TABLE later (
    queue INTEGER NOT NULL,
    class INTEGER NOT NULL,
    due   INTEGER NOT NULL,
    event INTEGER NOT NULL,
    kind  INTEGER NOT NULL,
    PRIMARY KEY (queue, class, due, event)
) WITHOUT ROWID;
-- So that counting is reading ranges, however many wait.
CREATE INDEX later_retry ON later (queue, due) WHERE kind = 2;

-- In hand of a worker, for as long as that worker's row is there. `started`: it counts as a crash if the worker dies.
CREATE TABLE running (
    owner   INTEGER NOT NULL,
    queue   INTEGER NOT NULL,
    event   INTEGER NOT NULL,
    kind    INTEGER NOT NULL,
    class   INTEGER NOT NULL,
    due     INTEGER NOT NULL,
    started INTEGER NOT NULL,
    PRIMARY KEY (owner, queue, event)
) WITHOUT ROWID;

-- What is known of a unit beside its event, once it has failed, crashed or been replayed. `data` is JSON.
CREATE TABLE record (
    event   INTEGER NOT NULL,
    queue   INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    data    TEXT,
    PRIMARY KEY (event, queue)
) WITHOUT ROWID;

-- Queues in key order. The head of a key is the one unit of it that may be in fresh, later or running; those behind
-- it are in blocked. `grp` is the topic, 0 for what was enqueued or replayed. `moved` marks heads that have just
-- become so and are not yet in fresh or later; no transaction ends with one.
CREATE TABLE head (
    queue INTEGER NOT NULL,
    grp   INTEGER NOT NULL,
    key   BLOB NOT NULL,
    event INTEGER,
    moved INTEGER NOT NULL,
    PRIMARY KEY (queue, grp, key)
) WITHOUT ROWID;
CREATE INDEX head_event ON head (queue, event);
CREATE INDEX head_moved ON head (moved) WHERE moved = 1;

CREATE TABLE blocked (
    queue INTEGER NOT NULL,
    grp   INTEGER NOT NULL,
    key   BLOB NOT NULL,
    event INTEGER NOT NULL,
    PRIMARY KEY (queue, grp, key, event)
) WITHOUT ROWID;

CREATE TABLE dead (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    queue    INTEGER NOT NULL,
    letter   TEXT NOT NULL,
    last     INTEGER NOT NULL,
    event    INTEGER NOT NULL,
    reason   TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    event_id TEXT,
    job      TEXT NOT NULL,
    binding  INTEGER NOT NULL,
    data     TEXT NOT NULL,
    UNIQUE (queue, letter)
);
CREATE INDEX dead_queue_last ON dead (queue, last, id);
CREATE INDEX dead_last ON dead (last, id);

-- Worker processes. A row is a lease: whoever finds it overrun, or its process gone, gives back what it held and
-- removes it; its owner then knows that it lost everything.
CREATE TABLE worker (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    name    TEXT NOT NULL,
    boot    TEXT NOT NULL,
    pidns   INTEGER NOT NULL,
    pid     INTEGER NOT NULL,
    born    INTEGER NOT NULL,
    lease   INTEGER NOT NULL,
    schema  INTEGER NOT NULL,
    since   INTEGER NOT NULL
);

CREATE TABLE attached (
    worker INTEGER NOT NULL,
    queue  INTEGER NOT NULL,
    slots  INTEGER,
    PRIMARY KEY (worker, queue)
) WITHOUT ROWID;

-- Crashes that were counted because a lease ran out where nobody could see whether the process lives. Should it
-- turn up again, they are taken back.
CREATE TABLE doubt (
    worker INTEGER NOT NULL,
    queue  INTEGER NOT NULL,
    event  INTEGER NOT NULL,
    PRIMARY KEY (worker, queue, event)
) WITHOUT ROWID;

-- Who replays from a queue's dead letters, until when.
CREATE TABLE replay (queue INTEGER PRIMARY KEY, holder INTEGER NOT NULL, boot TEXT NOT NULL, lease INTEGER NOT NULL);
