-- The rules. They are those of `Ledger::apply` in divider-core, outcome for outcome; read them there first.
--
-- A batch is cut by the caller into runs: ops of one family that follow each other and name each key once. Ops of such a
-- run do not depend on each other, so that each run is one statement over sets, whatever its length. The caller of these
-- functions holds the group's row lock, so that a row which was looked up stays where it is (`ctid`) until the statement
-- has ended.
--
-- Each key is looked up by its own index descent (`OFFSET 0` keeps the planner from making a join of it) and written by its
-- place: the plan is right for an empty table and for a large one, and need not wait for statistics.

-- Add.
CREATE FUNCTION run_add(
    gid bigint, keys text[], weights bigint[], priorities bigint[], dues bigint[], payloads bytea[]
) RETURNS run_result LANGUAGE plpgsql AS $$
DECLARE
    r run_result;
BEGIN
    WITH op AS MATERIALIZED (
        SELECT o.*, k.place, k.attempts, k.fates, k.avoid, k.owner, k.token, k.quarantined, k.place IS NOT NULL AS known,
               least(k.stopping, 1)::smallint AS stopping,
               k.place IS NOT NULL AND k.stopping <> 2 AND k.weight = o.weight AND k.priority = o.priority
                   AND k.not_before_ms = o.due AND k.payload = o.payload AS same
        FROM unnest(keys, weights, priorities, dues, payloads) WITH ORDINALITY
                 AS o(key, weight, priority, due, payload, ix)
        LEFT JOIN LATERAL (
            SELECT f.ctid AS place, f.* FROM keys f WHERE f.group_id = gid AND f.key = o.key AND NOT f.gone OFFSET 0
        ) k ON true
    ), added AS (
        INSERT INTO keys (group_id, key, weight, priority, not_before_ms, payload)
        SELECT gid, op.key, op.weight, op.priority, op.due, op.payload FROM op WHERE NOT op.known
        -- A row of a key that has ended and could not be deleted is this key's row again, together with the lock on it.
        ON CONFLICT (group_id, key) DO UPDATE SET
            weight = excluded.weight, priority = excluded.priority, not_before_ms = excluded.not_before_ms, attempts = 0,
            fates = 0, avoid = NULL, owner = NULL, token = NULL, stopping = 0, quarantined = false,
            payload = excluded.payload, checkpoint = '', gone = false
    ), altered AS (
        UPDATE keys k SET weight = op.weight, priority = op.priority, not_before_ms = op.due, payload = op.payload,
                          stopping = op.stopping
        FROM op WHERE op.known AND NOT op.same AND k.ctid = op.place
    )
    SELECT array_agg(op.same::integer::smallint), NULL,
           string_agg(key_json(op.key, op.weight, op.priority::integer, op.due, coalesce(op.attempts, 0),
                               coalesce(op.fates, 0), op.avoid, op.owner, op.token, coalesce(op.stopping, 0::smallint),
                               coalesce(op.quarantined, false)), ',') FILTER (WHERE NOT op.same),
           count(*) FILTER (WHERE NOT op.same), NULL, NULL, count(*) FILTER (WHERE NOT op.known), 0, NULL, NULL
    INTO r FROM (SELECT * FROM op ORDER BY op.ix) op;
    RETURN r;
END $$;

-- Deletes rows of keys that have ended while somebody's transaction had a lock on them.
CREATE FUNCTION bury(gid bigint) RETURNS void LANGUAGE sql
BEGIN ATOMIC
    DELETE FROM keys k USING (
        SELECT f.ctid AS place FROM keys f WHERE f.group_id = gid AND f.gone LIMIT 64 FOR UPDATE SKIP LOCKED
    ) l WHERE k.ctid = l.place;
END;

-- Forgets ended sessions that no key is in the name of any more.
CREATE FUNCTION forget(gid bigint, gone uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF gone IS NOT NULL THEN
        DELETE FROM sessions s WHERE s.group_id = gid AND s.session = ANY (gone);
        DELETE FROM messages m WHERE m.group_id = gid AND m.session = ANY (gone);
    END IF;
END $$;

-- Assign.
CREATE FUNCTION run_assign(g groups, keys text[], owners uuid[], terms bigint[])
RETURNS run_result LANGUAGE plpgsql AS $$
DECLARE
    r run_result;
BEGIN
    WITH known_sessions AS MATERIALIZED (
        SELECT * FROM sessions s WHERE s.group_id = g.id
    ), looked AS (
        SELECT o.key, o.owner, o.ix, k.place, k.weight, k.priority, k.not_before_ms, k.blobs,
               s.capacity - s.held AS room,
               -- Whose name the key is in, where that session has ended, and how many are.
               d.session AS dead, d.held AS dead_held,
               least(k.attempts + 1, 4294967295) AS attempts,
               CASE WHEN d.ended IS NULL THEN k.fates
                    ELSE (k.fates << 1 | (k.token >= d.ended)::integer) & 4294967295 END AS fates,
               CASE WHEN o.term <> g.term THEN 18
                    WHEN g.hold THEN 20
                    -- A key whose row is locked stands under `assert_current` in somebody's open transaction: it is not
                    -- free before that has ended, and waiting for it would hold up the group.
                    WHEN k.place IS NULL THEN
                        CASE WHEN EXISTS (SELECT FROM keys e WHERE e.group_id = g.id AND e.key = o.key AND NOT e.gone) THEN 15 ELSE 10 END
                    WHEN k.quarantined OR (d.session IS NOT NULL AND d.ended IS NULL) THEN 15
                    WHEN s.session IS NULL OR s.ended IS NOT NULL THEN 12
                    WHEN s.draining OR s.affinity = 0 THEN 13
                    ELSE 3 END AS code
        FROM unnest(keys, owners, terms) WITH ORDINALITY AS o(key, owner, term, ix)
        LEFT JOIN LATERAL (
            SELECT f.ctid AS place, f.weight, f.priority, f.not_before_ms, f.attempts, f.fates, f.owner, f.token, f.quarantined,
                   blob_text(f.payload, f.checkpoint) AS blobs
            FROM keys f WHERE f.group_id = g.id AND f.key = o.key AND NOT f.gone FOR UPDATE SKIP LOCKED
        ) k ON true
        LEFT JOIN known_sessions d ON d.session = k.owner
        LEFT JOIN known_sessions s ON s.session = o.owner
    ), ranked AS (
        SELECT l.*, row_number() OVER (PARTITION BY l.owner, l.code ORDER BY l.ix) > l.room AS full_up FROM looked l
    ), decided AS (
        SELECT f.*, f.code = 3 AND f.full_up IS NOT TRUE AS ok FROM ranked f
    ), op AS MATERIALIZED (
        SELECT d.*, g.token + count(*) FILTER (WHERE d.ok) OVER (ORDER BY d.ix) AS token,
               d.ok AND d.dead_held = count(*) FILTER (WHERE d.ok) OVER (PARTITION BY d.dead ORDER BY d.ix) AS last
        FROM decided d
    ), granted AS (
        UPDATE keys k SET owner = op.owner, token = op.token, stopping = 0, avoid = NULL, attempts = op.attempts,
                          fates = op.fates
        FROM op WHERE op.ok AND k.ctid = op.place
    ), gained AS (
        UPDATE sessions s SET held = s.held + n.n
        FROM (SELECT op.owner, count(*) AS n FROM op WHERE op.ok GROUP BY op.owner) n
        WHERE s.group_id = g.id AND s.session = n.owner
    )
    SELECT array_agg(CASE WHEN op.ok THEN 3 WHEN op.code = 3 THEN 14 ELSE op.code END::smallint), array_agg(op.token),
           string_agg(key_json(op.key, op.weight, op.priority, op.not_before_ms, op.attempts, op.fates, NULL, op.owner,
                               op.token, 0::smallint, false)
                      || CASE WHEN op.last THEN concat(',["S","', op.dead, '"]') ELSE '' END, ',') FILTER (WHERE op.ok),
           count(*) FILTER (WHERE op.ok) + count(*) FILTER (WHERE op.last),
           array_agg(op.owner) FILTER (WHERE op.ok),
           array_agg(concat('["g",', to_json(op.key), ',', op.token, ',', op.attempts, ',', op.weight, ',', op.priority,
                            CASE WHEN op.blobs IS NULL THEN ',null]' ELSE concat(',"', op.blobs, '"]') END))
               FILTER (WHERE op.ok),
           0, 0, array_agg(op.dead) FILTER (WHERE op.ok AND op.dead IS NOT NULL), array_agg(op.dead) FILTER (WHERE op.last)
    INTO r FROM (SELECT * FROM op ORDER BY op.ix) op;
    IF r.dead IS NOT NULL THEN
        UPDATE sessions s SET held = s.held - n.n
        FROM (SELECT d.session, count(*) AS n FROM unnest(r.dead) AS d(session) GROUP BY d.session) n
        WHERE s.group_id = g.id AND s.session = n.session;
        PERFORM forget(g.id, r.gone);
    END IF;
    RETURN r;
END $$;

-- Every other op that names a key: Remove 2, Retry 3, Confirm 10, GiveUp 11, Complete 12, Checkpoint 13, Revoke 15,
-- Force 16, Quarantine 18.
CREATE FUNCTION run_keyed(
    g groups, kinds smallint[], keys text[], sessions_ uuid[], tokens bigint[], terms bigint[], numbers bigint[],
    blobs bytea[]
) RETURNS run_result LANGUAGE plpgsql AS $$
DECLARE
    r run_result;
BEGIN
    WITH known_sessions AS MATERIALIZED (
        SELECT * FROM sessions s WHERE s.group_id = g.id
    ), looked AS (
        SELECT o.*, k.place, k.weight, k.priority, k.not_before_ms, k.attempts, k.fates, k.avoid, k.owner, k.token, k.stopping,
               k.quarantined, k.place IS NOT NULL AS known,
               w.session IS NOT NULL AND w.ended IS NULL AS owned,
               -- How many keys are in the name of an ended owner.
               CASE WHEN w.ended IS NOT NULL THEN w.held END AS dead_held,
               w.session IS NOT NULL AND w.ended IS NULL AND k.token = o.given AS matches,
               CASE WHEN w.ended IS NOT NULL THEN (k.token >= w.ended)::integer END AS died,
               a.session IS NOT NULL AND a.ended IS NULL AS acting
        FROM unnest(kinds, keys, sessions_, tokens, terms, numbers, blobs) WITH ORDINALITY
                 AS o(kind, key, actor, given, term, number, blob, ix)
        LEFT JOIN LATERAL (
            SELECT f.ctid AS place, f.* FROM keys f WHERE f.group_id = g.id AND f.key = o.key AND NOT f.gone OFFSET 0
        ) k ON true
        LEFT JOIN known_sessions w ON w.session = k.owner
        LEFT JOIN known_sessions a ON a.session = o.actor
    ), judged AS (
        SELECT l.*, CASE
            WHEN l.kind IN (15, 16, 18) AND l.term <> g.term THEN 18
            WHEN l.kind BETWEEN 10 AND 13 AND NOT l.acting THEN 12
            WHEN NOT l.known THEN 10
            WHEN l.kind BETWEEN 10 AND 13 THEN
                CASE WHEN NOT l.matches OR l.owner <> l.actor THEN 11
                     WHEN l.kind = 11 AND l.stopping <> 0 THEN 1 ELSE 0 END
            WHEN l.kind = 2 THEN CASE WHEN l.owned AND l.stopping = 2 THEN 1 ELSE 0 END
            WHEN l.kind = 3 THEN CASE WHEN l.quarantined THEN 0 ELSE 16 END
            WHEN l.kind = 15 THEN CASE WHEN NOT l.matches THEN 11 WHEN l.stopping <> 0 THEN 1 ELSE 0 END
            -- A key that was being removed when its owner ended: nobody is left to confirm.
            WHEN l.kind = 16 AND NOT l.owned AND l.token = l.given AND l.stopping = 2 THEN 0
            WHEN l.kind = 16 THEN CASE WHEN NOT l.matches THEN 11 WHEN l.stopping = 0 THEN 17 ELSE 0 END
            ELSE CASE WHEN l.owned OR l.quarantined THEN 15 ELSE 0 END
        END AS code FROM looked l OFFSET 0
    ), decided AS (
        SELECT j.ix, j.kind, j.key, j.place, j.blob, j.code, j.weight, j.priority, j.owned, j.dead_held, j.token AS old_token,
               j.owner AS old_owner, j.stopping AS old_stopping, j.quarantined AS old_quarantined,
               j.code = 0 AS ok,
               j.code = 0 AND (j.kind = 12 OR (j.kind = 2 AND NOT j.owned) OR (j.kind IN (10, 16) AND j.stopping = 2))
                   AS ends,
               j.kind IN (3, 10, 16, 18) AS frees,
               CASE WHEN j.kind = 11 THEN greatest(j.not_before_ms, j.number) ELSE j.not_before_ms END AS not_before_ms,
               CASE WHEN j.kind = 10 AND j.number = 0 THEN greatest(j.attempts - 1, 0) ELSE j.attempts END AS attempts,
               CASE WHEN j.kind = 10 AND j.number <> 0 THEN j.fates << 1 & 4294967295
                    WHEN j.kind = 3 THEN 0
                    WHEN j.kind = 18 AND j.died IS NOT NULL THEN (j.fates << 1 | j.died) & 4294967295
                    ELSE j.fates END AS fates,
               CASE WHEN j.kind = 11 OR (j.kind = 10 AND j.stopping = 0) THEN j.actor ELSE j.avoid END AS avoid,
               CASE WHEN j.kind = 2 THEN 2 WHEN j.kind IN (11, 15) THEN 1 WHEN j.kind IN (3, 10, 16, 18) THEN 0
                    ELSE j.stopping END::smallint AS stopping,
               CASE j.kind WHEN 18 THEN true WHEN 3 THEN false ELSE j.quarantined END AS quarantined,
               CASE WHEN j.code <> 0 THEN NULL
                    WHEN j.kind = 16 AND j.owned THEN concat('["t",', to_json(j.key), ',', j.token, ']')
                    WHEN j.kind IN (11, 15) THEN concat('["s",', to_json(j.key), ',', j.token, ',1]')
                    WHEN j.kind = 2 AND j.owned AND j.stopping = 0 THEN concat('["s",', to_json(j.key), ',', j.token, ',2]')
               END AS notice
        FROM judged j OFFSET 0
    ), freed AS (
        SELECT d.*, CASE WHEN NOT d.frees THEN d.old_owner END AS owner,
               CASE WHEN NOT d.frees THEN d.old_token END AS token,
               d.ok AND d.old_owner IS NOT NULL AND (d.ends OR d.frees) AS lost
        FROM decided d
    ), op AS MATERIALIZED (
        SELECT f.*, f.lost AND f.dead_held =
                   count(*) FILTER (WHERE f.lost) OVER (PARTITION BY f.old_owner ORDER BY f.ix) IS TRUE AS last
        FROM freed f
    ), changed AS (
        UPDATE keys k SET not_before_ms = op.not_before_ms, attempts = op.attempts, fates = op.fates, avoid = op.avoid,
                          owner = op.owner, token = op.token, stopping = op.stopping, quarantined = op.quarantined,
                          checkpoint = CASE WHEN op.kind = 13 THEN op.blob ELSE k.checkpoint END
        FROM op WHERE op.ok AND NOT op.ends AND k.ctid = op.place
    ), loose AS MATERIALIZED (
        -- A row that stands under `assert_current` in somebody's open transaction cannot be deleted before that has ended,
        -- and the group does not wait for it. Nor may its lock be lost, or the key could be added and granted again
        -- meanwhile. So it is marked as gone, which that lock allows, and deleted by a later batch.
        SELECT k.ctid AS place FROM op JOIN keys k ON k.ctid = op.place WHERE op.ok AND op.ends FOR UPDATE OF k SKIP LOCKED
    ), ended AS (
        DELETE FROM keys k USING loose l WHERE k.ctid = l.place
    ), marked AS (
        UPDATE keys k SET gone = true, owner = NULL, token = NULL, quarantined = false, payload = '', checkpoint = ''
        FROM op WHERE op.ok AND op.ends AND k.ctid = op.place AND op.place NOT IN (SELECT l.place FROM loose l)
    ), recounted AS (
        UPDATE sessions s SET held = s.held - c.lost, stopping = s.stopping + c.stopped
        FROM (
            SELECT op.old_owner AS session, count(*) FILTER (WHERE op.lost) AS lost,
                   count(*) FILTER (WHERE op.stopping <> 0 AND NOT op.lost) - count(*) FILTER (WHERE op.old_stopping <> 0)
                       AS stopped
            FROM op WHERE op.ok AND op.old_owner IS NOT NULL GROUP BY op.old_owner
        ) c
        WHERE s.group_id = g.id AND s.session = c.session AND (c.lost > 0 OR c.stopped <> 0)
    )
    SELECT array_agg(op.code::smallint), NULL,
           string_agg(CASE WHEN op.ends THEN concat('["K",', to_json(op.key), ']')
                           ELSE key_json(op.key, op.weight, op.priority, op.not_before_ms, op.attempts, op.fates,
                                         op.avoid, op.owner, op.token, op.stopping, op.quarantined) END
                      || CASE WHEN op.last THEN concat(',["S","', op.old_owner, '"]') ELSE '' END, ',')
               FILTER (WHERE op.ok AND op.kind <> 13),
           count(*) FILTER (WHERE op.ok AND op.kind <> 13) + count(*) FILTER (WHERE op.last),
           array_agg(op.old_owner) FILTER (WHERE op.notice IS NOT NULL),
           array_agg(op.notice) FILTER (WHERE op.notice IS NOT NULL),
           -count(*) FILTER (WHERE op.ends),
           count(*) FILTER (WHERE op.ok AND op.quarantined AND NOT op.ends) - count(*) FILTER (WHERE op.ok AND op.old_quarantined),
           NULL, array_agg(op.old_owner) FILTER (WHERE op.last)
    INTO r FROM (SELECT * FROM op ORDER BY op.ix) op;
    PERFORM forget(g.id, r.gone);
    RETURN r;
END $$;

INSERT INTO schema_version VALUES (3);
