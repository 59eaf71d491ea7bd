-- How changes and notices are written down, and how a batch is published.
--
-- A change is a JSON array that begins with its kind; so is a notice. See `codec.rs`, which reads them.
--
-- None of these functions is called immutable, though some could be: what they call is only stable, and a function that
-- claims more than its body cannot be inlined. A call for each row would cost more than the row.

-- Put together by hand, since `json_build_array` finds out anew for each row what types it has been given.
CREATE FUNCTION key_json(
    key text, weight bigint, priority integer, not_before_ms bigint, retry_at_ms bigint, generation bigint, since bigint,
    attempts bigint, failures bigint, deaths integer, alone integer, death bigint, avoid uuid, owner uuid, token bigint,
    stopping smallint, aside smallint
) RETURNS text LANGUAGE sql STABLE
RETURN concat('["k",', to_json(key), ',', weight, ',', priority, ',', not_before_ms, ',', generation, ',', since, ',',
              attempts,
              -- What few keys have.
              CASE WHEN retry_at_ms = 0 AND failures = 0 AND deaths = 0 AND alone = 0 AND death = 0 THEN ',null'
                   ELSE concat(',[', retry_at_ms, ',', failures, ',', deaths, ',', alone, ',', death, ']') END,
              CASE WHEN avoid IS NULL THEN ',null,' ELSE concat(',"', avoid, '",') END,
              CASE WHEN owner IS NULL THEN 'null,null,' ELSE concat('"', owner, '",', token, ',') END, stopping, ',',
              aside, ']');

CREATE FUNCTION session_json(s sessions) RETURNS text LANGUAGE sql STABLE
RETURN json_build_array('s', s.session, s.node, s.affinity, s.capacity, s.lease_ms, s.draining, s.settled,
                        CASE WHEN s.ended IS NOT NULL THEN json_build_array(s.ended, s.blame, s.blamed) END,
                        s.reads, s.joined)::text;

CREATE FUNCTION group_json(g groups) RETURNS text LANGUAGE sql STABLE
RETURN json_build_array('g', g.term, g.leader, g.hold, g.time_ms, g.format)::text;

-- The last token that was really issued, as far as is known.
CREATE FUNCTION issued(g groups) RETURNS bigint LANGUAGE sql STABLE
RETURN CASE WHEN g.token = g.born THEN g.kept ELSE g.token END;

-- What a grant says of payload and checkpoint: null where there is neither, both as they are where they are short, else a
-- digest, by which the reader of the message knows whether what it finds in the key's row is still the same.
CREATE FUNCTION blob_text(payload bytea, checkpoint bytea) RETURNS text LANGUAGE sql STABLE
RETURN CASE WHEN octet_length(payload) + octet_length(checkpoint) = 0 THEN NULL
            WHEN octet_length(payload) + octet_length(checkpoint) <= 256
                THEN encode(payload, 'hex') || '/' || encode(checkpoint, 'hex')
            ELSE '#' || encode(sha256(convert_to(octet_length(payload)::text || '/', 'UTF8') || payload || checkpoint), 'hex')
       END;

-- The name of a channel, from the group's secret and what the channel is about: 'group', 'leader', or a session.
CREATE FUNCTION channel(secret uuid, topic text) RETURNS text LANGUAGE sql STABLE
RETURN 'divider_' || substr(encode(sha256(convert_to(secret::text || ' ' || topic, 'UTF8')), 'hex'), 1, 48);

-- Which past these tables continue: a restart keeps it, a promoted replica or a restored backup does not, and neither do
-- tables that were made of a dump or a copy in the same server, which the numbers of database and table tell. On Aurora,
-- where the log's position is not to be had, all instances share one storage, and so one past. Fails on a standby.
CREATE FUNCTION lineage() RETURNS text LANGUAGE sql STABLE
RETURN (SELECT system_identifier FROM pg_control_system())::text || '/' ||
       CASE WHEN to_regproc('pg_catalog.aurora_version') IS NULL THEN left(pg_walfile_name(pg_current_wal_lsn()), 8)
            ELSE 'aurora' END || '/' ||
       (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())::text || '/' ||
       'groups'::regclass::oid::text;

-- Whether these tables have another past than the group that stands in them, or know nothing of a token that was seen.
CREATE FUNCTION forgot(g groups, seen bigint) RETURNS boolean LANGUAGE sql STABLE
RETURN g.lineage <> lineage() OR seen > g.token OR (seen > g.kept AND seen < g.born);

-- What a run of ops came to. Codes of outcomes are listed in `codec.rs`.
CREATE TYPE run_result AS (
    codes       smallint[],
    vals        bigint[],
    -- The changes, separated by commas, and how many they are.
    changes     text,
    size        bigint,
    -- Notices, in order, each with the session that it is for.
    targets     uuid[],
    notices     text[],
    registered  bigint,
    quarantined bigint,
    -- The ended sessions in whose names keys were that are so no longer, each once for each key; and those of them that
    -- no key is left to.
    dead        uuid[],
    gone        uuid[]
);

-- Writes the group row back, gives the changes their revision and the notices their numbers, and wakes whom they concern.
CREATE FUNCTION publish(g groups, new_changes text, new_size bigint, targets uuid[], notices text[], freed boolean)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    woken bigint;
    most bigint := least(16384, greatest(512, 2 * g.registered));
    -- Somebody in this server listens and does not come to hear: whatever notifies will fail before long. Hints are not
    -- worth that, since everybody reads now and then.
    heard boolean := pg_notification_queue_usage() < 0.5;
BEGIN
    IF new_size = 0 THEN
        RETURN g.revision;
    END IF;
    g.revision := g.revision + 1;
    g.logged := g.logged + new_size;
    g.log_bytes := g.log_bytes + octet_length(new_changes) + 2;
    -- Who would have to read more than twice the group to keep up reads the group instead. A quarter more than is to be
    -- kept, so that not every batch has to delete.
    IF g.logged > most + most / 4 OR g.log_bytes > 5000000 THEN
        WITH kept AS (
            SELECT c.revision, sum(c.size) OVER newest AS total, sum(octet_length(c.data)) OVER newest AS bytes
            FROM changes c WHERE c.group_id = g.id WINDOW newest AS (ORDER BY c.revision DESC)
        ), gone AS (
            DELETE FROM changes c
            WHERE c.group_id = g.id
              AND c.revision <= (SELECT max(k.revision) FROM kept k WHERE k.total > most OR k.bytes > 4000000)
            RETURNING c.size, octet_length(c.data) AS bytes
        )
        SELECT g.logged - coalesce(sum(gone.size), 0), g.log_bytes - coalesce(sum(gone.bytes), 0)
        INTO g.logged, g.log_bytes FROM gone;
    END IF;
    WITH logged AS (
        INSERT INTO changes VALUES (g.id, g.revision, new_size, '[' || new_changes || ']')
    ), kept AS (
        UPDATE groups SET lineage = g.lineage, revision = g.revision, token = g.token, term = g.term, leader = g.leader,
                          hold = g.hold, time_ms = g.time_ms, format = g.format, declared = g.declared, ended = g.ended, registered = g.registered, quarantined = g.quarantined, logged = g.logged,
                          log_bytes = g.log_bytes
        WHERE id = g.id
    )
    SELECT count(pg_notify(channel(g.secret, n.topic), n.number::text)) INTO woken
    FROM (VALUES ('group', g.revision), ('leader', CASE WHEN freed THEN g.term END)) AS n(topic, number)
    WHERE n.number IS NOT NULL AND heard;

    IF cardinality(targets) > 0 THEN
        WITH message AS (
            SELECT n.session, string_agg(n.notice, ',' ORDER BY n.ix) AS data, bool_or(n.notice = '["e"]') AS ends
            FROM unnest(targets, notices) WITH ORDINALITY AS n(session, notice, ix) GROUP BY n.session
        ), numbered AS (
            UPDATE sessions s SET seq = s.seq + 1 FROM message m
            WHERE s.group_id = g.id AND s.session = m.session RETURNING s.session, s.seq, m.data
        ), kept AS (
            INSERT INTO messages SELECT g.id, n.session, n.seq, '[' || n.data || ']' FROM numbered n
        ), trimmed AS (
            -- 64 are kept, in 2 MB. It is looked at now and then, and after each one that is large.
            DELETE FROM messages o USING (
                SELECT k.place FROM numbered n CROSS JOIN LATERAL (
                    SELECT f.ctid AS place, f.seq, sum(octet_length(f.data)) OVER (ORDER BY f.seq DESC) AS bytes
                    FROM messages f WHERE f.group_id = g.id AND f.session = n.session
                      AND (n.seq % 64 = 0 OR octet_length(n.data) > 30000) OFFSET 0
                ) k WHERE k.seq <= n.seq - 64 OR k.bytes + octet_length(n.data) > 2000000
            ) l WHERE o.ctid = l.place
        )
        SELECT count(pg_notify(channel(g.secret, m.session::text),
                               CASE WHEN m.ends OR n.seq IS NULL THEN 'end' ELSE n.seq::text END)) INTO woken
        FROM message m LEFT JOIN numbered n ON n.session = m.session WHERE heard;
    END IF;
    RETURN g.revision;
END $$;

INSERT INTO schema_version VALUES (2, 2);
