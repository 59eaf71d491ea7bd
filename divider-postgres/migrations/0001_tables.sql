-- The tables of Divider.
--
-- By hand: run all files in order, in one transaction, with the schema of your choice in front and temporary objects last:
--   psql -v ON_ERROR_STOP=1 -1 -c 'CREATE SCHEMA divider' -c 'SET LOCAL search_path TO divider, pg_temp' \
--        -f 0001_tables.sql -f 0002_publish.sql -f 0003_runs.sql -f 0004_apply.sql -f 0005_lead.sql -f 0006_fence.sql
--
-- Rows that change at every beat or batch stand in tables of their own, with free room in each page and no index on what
-- changes, so that an update stays on its page (HOT) and costs neither an index entry nor a vacuum of an index.

-- One row for each of these files. Programs know a version, too: the number of files that they come with.
CREATE TABLE schema_version (
    version        integer PRIMARY KEY,
    -- The oldest version that a program must know to work with a schema of this one. Programs of other versions may share
    -- a schema, so that one can be brought up to date while those before it still run.
    min_compatible integer NOT NULL
);

CREATE TABLE groups (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text COLLATE "C" NOT NULL UNIQUE,
    -- Every channel name is derived from this. Who cannot read this table can neither guess a channel nor listen to it.
    secret      uuid NOT NULL DEFAULT gen_random_uuid(),
    lineage     text NOT NULL,
    -- When the server began that wrote last, the last token that one before it had issued as far as is known, and the one
    -- that it began with itself. Nothing between these two was ever issued in this lineage, unless it has been forgotten.
    life        timestamptz NOT NULL,
    kept        bigint NOT NULL DEFAULT 0,
    born        bigint NOT NULL,
    revision    bigint NOT NULL,
    token       bigint NOT NULL,
    term        bigint NOT NULL DEFAULT 0,
    leader      uuid,
    hold        boolean NOT NULL DEFAULT false,
    -- Ledger time.
    time_ms     bigint NOT NULL DEFAULT 0,
    -- What the group is written in; 0 before the first session.
    format      integer NOT NULL DEFAULT 0,
    -- How many keys have been declared.
    declared    bigint NOT NULL DEFAULT 0,
    -- The revision at which a session last ended.
    ended       bigint NOT NULL DEFAULT 0,
    registered  bigint NOT NULL DEFAULT 0,
    quarantined bigint NOT NULL DEFAULT 0,
    -- How many changes the log holds, and in how many bytes.
    logged      bigint NOT NULL DEFAULT 0,
    log_bytes   bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        vacuum_truncate = off);

CREATE TABLE sessions (
    group_id bigint NOT NULL,
    session  uuid NOT NULL,
    node     text NOT NULL,
    affinity bigint NOT NULL,
    capacity bigint,
    lease_ms bigint NOT NULL,
    draining boolean NOT NULL DEFAULT false,
    settled  boolean NOT NULL DEFAULT false,
    reads    integer NOT NULL,
    -- The last token that had been issued when it joined.
    joined   bigint NOT NULL,
    -- Set once the session has ended: ownerships with a lower token had survived. Of the others, its end is held against
    -- 0: none; 1: all; 2: those of keys with `blamed` deaths in a row; 3: the one with the token `blamed`.
    ended    bigint,
    blame    smallint NOT NULL DEFAULT 0,
    blamed   bigint NOT NULL DEFAULT 0,
    seq      bigint NOT NULL DEFAULT 0,
    altered  bigint NOT NULL DEFAULT 0,
    -- The highest serial number of its batches.
    serial   bigint NOT NULL DEFAULT 0,
    -- Keys in its name, and how many of them it has been asked to stop.
    held     bigint NOT NULL DEFAULT 0,
    stopping bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (group_id, session)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        vacuum_truncate = off);

-- A row for each living session, and for no other.
CREATE TABLE beats (
    group_id bigint NOT NULL,
    session  uuid NOT NULL,
    beat     bigint NOT NULL DEFAULT 0,
    -- Set once the session holds its advisory lock, so that a missing lock means something. A server that begins anew has
    -- no locks, and has seen nobody lose one.
    locked   boolean NOT NULL DEFAULT false,
    PRIMARY KEY (group_id, session)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        vacuum_truncate = off);

CREATE TABLE keys (
    group_id      bigint NOT NULL,
    -- Compared byte by byte, whatever the database's collation.
    key           text COLLATE "C" NOT NULL,
    weight        bigint NOT NULL,
    priority      integer NOT NULL,
    not_before_ms bigint NOT NULL,
    retry_at_ms   bigint NOT NULL DEFAULT 0,
    generation    bigint NOT NULL DEFAULT 1,
    since         bigint NOT NULL,
    attempts      bigint NOT NULL DEFAULT 0,
    failures      bigint NOT NULL DEFAULT 0,
    -- How many owners in a row died with it, how many of them with no other suspect, and the last of these ownerships.
    deaths        integer NOT NULL DEFAULT 0,
    alone         integer NOT NULL DEFAULT 0,
    death         bigint NOT NULL DEFAULT 0,
    avoid         uuid,
    -- Owner and token are both set or both null. An owner that has ended owns nothing.
    owner         uuid,
    token         bigint,
    -- 0: runs; 1: asked to stop, to go elsewhere; 2: asked to stop, since it was removed.
    stopping      smallint NOT NULL DEFAULT 0,
    -- 0: not set aside; 1: since its owners died; 2: since its owner said so.
    aside         smallint NOT NULL DEFAULT 0,
    why           text NOT NULL DEFAULT '',
    payload       bytea NOT NULL DEFAULT '',
    checkpoint    bytea NOT NULL DEFAULT '',
    -- The key has ended, and is not there for anybody. Its row stays for as long as a transaction is open under
    -- `assert_current`, since the lock on it is what keeps the next owner out; see `0003_runs.sql`.
    gone          boolean NOT NULL DEFAULT false,
    PRIMARY KEY (group_id, key)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);

CREATE INDEX keys_by_owner ON keys (group_id, owner) WHERE owner IS NOT NULL;
CREATE INDEX keys_quarantined ON keys (group_id, key) WHERE aside <> 0;
CREATE INDEX keys_gone ON keys (group_id) WHERE gone;

-- The newest changes, for readers that fell behind: one row for each revision.
CREATE TABLE changes (
    group_id bigint NOT NULL,
    revision bigint NOT NULL,
    size     bigint NOT NULL,
    data     text NOT NULL,
    PRIMARY KEY (group_id, revision)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- The newest messages to each session.
CREATE TABLE messages (
    group_id bigint NOT NULL,
    session  uuid NOT NULL,
    seq      bigint NOT NULL,
    data     text NOT NULL,
    PRIMARY KEY (group_id, session, seq)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- Both live for seconds: compressing them costs more than it saves.
ALTER TABLE changes ALTER COLUMN data SET STORAGE EXTERNAL;
ALTER TABLE messages ALTER COLUMN data SET STORAGE EXTERNAL;

INSERT INTO schema_version VALUES (1, 1);
