-- The rules. They are those of `Ledger::apply` in divider-core, outcome for outcome; read them there first.
--
-- A batch is cut by the caller into runs: ops of one family that follow each other and name each key once. Ops of such a
-- run do not depend on each other, so that each run is one statement over sets, whatever its length. The caller of these
-- functions holds the group's row lock, so that a row which was looked up stays where it is (`ctid`) until the statement
-- has ended.
--
-- Each key is looked up by its own index descent (`OFFSET 0` keeps the planner from making a join of it) and written by its
-- place: the plan is right for an empty table and for a large one, and need not wait for statistics.

-- Add. How it is declared is 0: again; 1: once; 2: as a source does it; 3: the same, where the key is there.
CREATE FUNCTION run_add(
    g groups, keys text[], weights bigint[], priorities bigint[], dues bigint[], payloads bytea[], hows bigint[]
) RETURNS run_result LANGUAGE plpgsql AS $$
DECLARE
    r run_result;
BEGIN
    WITH looked AS (
        SELECT o.*, coalesce(o.way, 0) AS how, k.place, k.retry_at_ms, k.generation, k.since, k.attempts, k.failures, k.deaths,
               k.alone, k.death, k.avoid, k.owner, k.token, k.stopping, k.aside, k.place IS NOT NULL AS known,
               k.payload = o.payload AS same_payload,
               k.weight = o.weight AND k.priority = o.priority AND k.not_before_ms = o.due AS same_rest
        FROM unnest(keys, weights, priorities, dues, payloads, hows) WITH ORDINALITY
                 AS o(key, weight, priority, due, payload, way, ix)
        LEFT JOIN LATERAL (
            SELECT f.ctid AS place, f.* FROM keys f WHERE f.group_id = g.id AND f.key = o.key AND NOT f.gone OFFSET 0
        ) k ON true OFFSET 0
    ), judged AS (
        SELECT l.*,
               -- It runs again after whatever it does now. Work that nobody has begun does so in any case.
               l.known AND (NOT l.same_payload OR l.stopping = 2 OR (l.how = 0 AND (l.owner IS NOT NULL OR l.aside <> 0)))
                   AS raised,
               -- Whatever was held against the work of before is not held against what is declared now.
               l.known AND l.same_payload AND (l.aside = 0 OR l.how <> 0) AS past
        FROM looked l OFFSET 0
    ), op AS MATERIALIZED (
        SELECT j.key, j.weight, j.priority, j.due, j.payload, j.ix, j.place, j.known, j.avoid, j.owner, j.token,
               NOT j.known AND j.how <> 3 AS new,
               -- What is being removed is as good as gone.
               j.known AND (j.how <> 1 OR j.stopping = 2) AND (j.raised OR NOT j.same_payload OR NOT j.same_rest) AS changed,
               CASE WHEN j.known THEN least(j.generation + j.raised::integer, 4294967295) ELSE 1 END AS generation,
               CASE WHEN j.known THEN j.since
                    ELSE g.declared + count(*) FILTER (WHERE NOT j.known AND j.how <> 3) OVER (ORDER BY j.ix) END AS since,
               coalesce(j.attempts, 0) AS attempts,
               CASE WHEN j.past THEN j.retry_at_ms ELSE 0 END AS retry_at_ms,
               CASE WHEN j.past THEN j.failures ELSE 0 END AS failures,
               CASE WHEN j.past THEN j.deaths ELSE 0 END AS deaths,
               CASE WHEN j.past THEN j.alone ELSE 0 END AS alone,
               CASE WHEN j.past THEN j.death ELSE 0 END AS death,
               j.past, j.known AND j.how <> 1 AND j.aside <> 0 AND j.raised AS freed,
               coalesce(least(j.stopping, 1), 0)::smallint AS stopping,
               CASE WHEN j.known AND NOT j.raised THEN j.aside ELSE 0 END::smallint AS aside
        FROM judged j
    ), added AS (
        INSERT INTO keys (group_id, key, weight, priority, not_before_ms, since, payload)
        SELECT g.id, op.key, op.weight, op.priority, op.due, op.since, op.payload FROM op WHERE op.new
        -- A row of a key that has ended and could not be deleted is this key's row again, together with the lock on it.
        ON CONFLICT (group_id, key) DO UPDATE SET
            weight = excluded.weight, priority = excluded.priority, not_before_ms = excluded.not_before_ms,
            retry_at_ms = 0, generation = 1, since = excluded.since, attempts = 0, failures = 0, deaths = 0, alone = 0,
            death = 0, avoid = NULL, owner = NULL, token = NULL, stopping = 0, aside = 0, why = '',
            payload = excluded.payload, checkpoint = '', gone = false
    ), altered AS (
        UPDATE keys k SET weight = op.weight, priority = op.priority, not_before_ms = op.due, payload = op.payload,
                          retry_at_ms = op.retry_at_ms, generation = op.generation, failures = op.failures,
                          deaths = op.deaths, alone = op.alone, death = op.death, stopping = op.stopping, aside = op.aside,
                          why = CASE WHEN op.past THEN k.why ELSE '' END
        FROM op WHERE op.changed AND k.ctid = op.place
    )
    SELECT array_agg(CASE WHEN op.new OR op.changed THEN 0 ELSE 1 END::smallint), NULL,
           string_agg(key_json(op.key, op.weight, op.priority::integer, op.due, op.retry_at_ms, op.generation, op.since,
                               op.attempts, op.failures, op.deaths, op.alone, op.death, op.avoid, op.owner, op.token,
                               op.stopping, op.aside), ',') FILTER (WHERE op.new OR op.changed),
           count(*) FILTER (WHERE op.new OR op.changed), NULL, NULL, count(*) FILTER (WHERE op.new),
           -count(*) FILTER (WHERE op.freed), NULL, NULL
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

-- What the end of an ownership with its session says about its key, where the session has ended. 0: nothing; 1: it survived;
-- 2: its owner died; 3: its owner died, and no other suspect was aboard. See `Verdict::on` in divider-core.
CREATE FUNCTION finding(token bigint, deaths integer, ended bigint, blame smallint, blamed bigint)
RETURNS integer LANGUAGE sql STABLE
RETURN CASE WHEN ended IS NULL THEN 0 WHEN token < ended THEN 1
            WHEN blame = 1 OR (blame = 2 AND deaths >= blamed) THEN 2
            WHEN blame = 3 AND token = blamed THEN 3 ELSE 0 END;

-- What is held against the key after that.
CREATE FUNCTION deaths_after(found integer, deaths integer) RETURNS integer LANGUAGE sql STABLE
RETURN CASE found WHEN 0 THEN deaths WHEN 1 THEN 0 ELSE least(deaths, 2147483646) + 1 END;

CREATE FUNCTION alone_after(found integer, alone integer) RETURNS integer LANGUAGE sql STABLE
RETURN CASE found WHEN 1 THEN 0 WHEN 3 THEN least(alone, 2147483646) + 1 ELSE alone END;

CREATE FUNCTION death_after(found integer, death bigint, token bigint) RETURNS bigint LANGUAGE sql STABLE
RETURN CASE found WHEN 0 THEN death WHEN 1 THEN 0 ELSE token END;

-- Assign.
CREATE FUNCTION run_assign(g groups, keys text[], owners uuid[], terms bigint[])
RETURNS run_result LANGUAGE plpgsql AS $$
DECLARE
    r run_result;
BEGIN
    WITH known_sessions AS MATERIALIZED (
        SELECT * FROM sessions s WHERE s.group_id = g.id
    ), looked AS (
        SELECT o.key, o.owner, o.ix, k.place, k.weight, k.priority, k.not_before_ms, k.generation, k.since, k.failures,
               k.deaths AS old_deaths, k.alone AS old_alone, k.death AS old_death, k.token AS old_token, k.blobs,
               s.capacity - s.held AS room,
               -- Whose name the key is in, where that session has ended, and how many are.
               d.session AS dead, d.held AS dead_held,
               least(k.attempts + 1, 4294967295) AS attempts,
               finding(k.token, k.deaths, d.ended, d.blame, d.blamed) AS found,
               CASE WHEN o.term <> g.term THEN 18
                    WHEN g.hold THEN 20
                    -- A key whose row is locked stands under `assert_current` in somebody's open transaction: it is not
                    -- free before that has ended, and waiting for it would hold up the group.
                    WHEN k.place IS NULL THEN
                        CASE WHEN EXISTS (SELECT FROM keys e WHERE e.group_id = g.id AND e.key = o.key AND NOT e.gone) THEN 15 ELSE 10 END
                    WHEN k.aside <> 0 OR (d.session IS NOT NULL AND d.ended IS NULL) THEN 15
                    WHEN s.session IS NULL OR s.ended IS NOT NULL THEN 12
                    WHEN s.draining OR s.affinity = 0 THEN 13
                    ELSE 3 END AS code
        FROM unnest(keys, owners, terms) WITH ORDINALITY AS o(key, owner, term, ix)
        LEFT JOIN LATERAL (
            SELECT f.ctid AS place, f.weight, f.priority, f.not_before_ms, f.generation, f.since, f.attempts, f.failures,
                   f.deaths, f.alone, f.death, f.owner, f.token, f.aside, blob_text(f.payload, f.checkpoint) AS blobs
            FROM keys f WHERE f.group_id = g.id AND f.key = o.key AND NOT f.gone FOR UPDATE SKIP LOCKED
        ) k ON true
        LEFT JOIN known_sessions d ON d.session = k.owner
        LEFT JOIN known_sessions s ON s.session = o.owner
    ), ranked AS (
        SELECT l.*, row_number() OVER (PARTITION BY l.owner, l.code ORDER BY l.ix) > l.room AS full_up FROM looked l
    ), decided AS (
        SELECT f.*, f.code = 3 AND f.full_up IS NOT TRUE AS ok, deaths_after(f.found, f.old_deaths) AS deaths,
               alone_after(f.found, f.old_alone) AS alone, death_after(f.found, f.old_death, f.old_token) AS death
        FROM ranked f
    ), op AS MATERIALIZED (
        SELECT d.*, g.token + count(*) FILTER (WHERE d.ok) OVER (ORDER BY d.ix) AS token,
               d.ok AND d.dead_held = count(*) FILTER (WHERE d.ok) OVER (PARTITION BY d.dead ORDER BY d.ix) AS last
        FROM decided d
    ), granted AS (
        -- A pause is over, or the leader would not give the key out.
        UPDATE keys k SET owner = op.owner, token = op.token, stopping = 0, avoid = NULL, attempts = op.attempts,
                          retry_at_ms = 0, deaths = op.deaths, alone = op.alone, death = op.death
        FROM op WHERE op.ok AND k.ctid = op.place
    ), gained AS (
        UPDATE sessions s SET held = s.held + n.n
        FROM (SELECT op.owner, count(*) AS n FROM op WHERE op.ok GROUP BY op.owner) n
        WHERE s.group_id = g.id AND s.session = n.owner
    )
    SELECT array_agg(CASE WHEN op.ok THEN 3 WHEN op.code = 3 THEN 14 ELSE op.code END::smallint), array_agg(op.token),
           string_agg(key_json(op.key, op.weight, op.priority, op.not_before_ms, 0, op.generation, op.since, op.attempts,
                               op.failures, op.deaths, op.alone, op.death, NULL, op.owner, op.token, 0::smallint, 0::smallint)
                      || CASE WHEN op.last THEN concat(',["S","', op.dead, '"]') ELSE '' END, ',') FILTER (WHERE op.ok),
           count(*) FILTER (WHERE op.ok) + count(*) FILTER (WHERE op.last),
           array_agg(op.owner) FILTER (WHERE op.ok),
           array_agg(concat('["g",', to_json(op.key), ',', op.token, ',', op.attempts, ',', op.generation, ',',
                            op.failures, ',', op.weight, ',', op.priority,
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
-- Force 16, Quarantine 18, SetAside 21, Clear 22, Absolve 23.
CREATE FUNCTION run_keyed(
    g groups, kinds smallint[], keys text[], sessions_ uuid[], tokens bigint[], terms bigint[], numbers bigint[],
    pauses bigint[], counts bigint[], blobs bytea[]
) RETURNS run_result LANGUAGE plpgsql AS $$
DECLARE
    r run_result;
BEGIN
    WITH known_sessions AS MATERIALIZED (
        SELECT * FROM sessions s WHERE s.group_id = g.id
    ), looked AS (
        SELECT o.*, k.place, k.weight, k.priority, k.not_before_ms, k.retry_at_ms, k.generation, k.since, k.attempts,
               k.failures, k.deaths, k.alone, k.death, k.avoid, k.owner, k.token, k.stopping, k.aside,
               k.place IS NOT NULL AS known,
               w.session IS NOT NULL AND w.ended IS NULL AS owned,
               -- How many keys are in the name of an ended owner.
               CASE WHEN w.ended IS NOT NULL THEN w.held END AS dead_held,
               w.session IS NOT NULL AND w.ended IS NULL AND k.token = o.given AS matches,
               finding(k.token, k.deaths, w.ended, w.blame, w.blamed) AS found,
               -- Let go by Absolve before its owner's death can be counted.
               o.kind = 23 AND w.ended IS NOT NULL AND k.token = o.given AND k.stopping <> 2 AS owed,
               -- What the owner says is about the work as it is declared now.
               k.generation = o.number AS current,
               a.session IS NOT NULL AND a.ended IS NULL AS acting
        FROM unnest(kinds, keys, sessions_, tokens, terms, numbers, pauses, counts, blobs) WITH ORDINALITY
                 AS o(kind, key, actor, given, term, number, pause, n, blob, ix)
        LEFT JOIN LATERAL (
            SELECT f.ctid AS place, f.* FROM keys f WHERE f.group_id = g.id AND f.key = o.key AND NOT f.gone OFFSET 0
        ) k ON true
        LEFT JOIN known_sessions w ON w.session = k.owner
        LEFT JOIN known_sessions a ON a.session = o.actor
    ), judged AS (
        SELECT l.*, CASE
            WHEN l.kind IN (15, 16, 18, 22) AND l.term <> g.term THEN 18
            WHEN l.kind IN (10, 11, 12, 13, 21) AND NOT l.acting THEN 12
            WHEN NOT l.known THEN 10
            WHEN l.kind IN (10, 11, 12, 13, 21) THEN
                CASE WHEN NOT l.matches OR l.owner <> l.actor THEN 11
                     WHEN l.kind = 11 AND l.stopping <> 0 THEN 1 ELSE 0 END
            WHEN l.kind = 2 THEN CASE WHEN l.owned AND l.stopping = 2 THEN 1 ELSE 0 END
            WHEN l.kind = 3 THEN CASE WHEN l.aside <> 0 THEN 0 ELSE 16 END
            WHEN l.kind = 15 THEN CASE WHEN NOT l.matches THEN 11 WHEN l.stopping <> 0 THEN 1 ELSE 0 END
            -- A key that was being removed when its owner ended: nobody is left to confirm.
            WHEN l.kind = 16 AND NOT l.owned AND l.token = l.given AND l.stopping = 2 THEN 0
            WHEN l.kind = 16 THEN CASE WHEN NOT l.matches THEN 11 WHEN l.stopping = 0 THEN 17 ELSE 0 END
            WHEN l.kind = 22 THEN
                CASE WHEN l.aside <> 0 OR (l.alone = 0 AND (l.number <> 0 OR (l.deaths = 0 AND l.death = 0))) THEN 1 ELSE 0 END
            WHEN l.kind = 23 THEN CASE WHEN l.owed OR (l.deaths > 0 AND l.death = l.given) THEN 0 ELSE 1 END
            ELSE CASE WHEN l.owned OR l.aside <> 0 THEN 15 ELSE 0 END
        END AS code,
        -- Where it was declared again, that runs after this, and nothing of before is held against it;
        l.kind = 3 OR (l.kind IN (11, 12, 21) AND NOT l.current) AS forgives,
        -- and where that was brought to an end, from its beginning.
        l.kind IN (12, 21) AND NOT l.current AS begins,
        l.kind IN (11, 21) AND l.current AS tells,
        l.kind IN (3, 10, 12, 16, 18, 21) OR l.owed AS frees FROM looked l OFFSET 0
    ), decided AS (
        SELECT j.ix, j.kind, j.key, j.place, j.blob, j.code, j.weight, j.priority, j.not_before_ms, j.generation, j.since,
               j.owned, j.dead_held, j.token AS old_token, j.owner AS old_owner, j.stopping AS old_stopping,
               j.aside AS old_aside, j.code = 0 AS ok,
               j.code = 0 AND ((j.kind = 12 AND (j.current OR j.stopping = 2)) OR (j.kind = 2 AND NOT j.owned)
                               OR (j.kind IN (10, 16, 21) AND j.stopping = 2)) AS ends,
               j.frees, j.begins,
               CASE WHEN j.forgives THEN 0
                    WHEN j.kind = 11 AND j.tells THEN CASE WHEN j.pause > 0 THEN g.time_ms + j.pause ELSE 0 END
                    ELSE j.retry_at_ms END AS retry_at_ms,
               CASE WHEN j.forgives THEN 0
                    WHEN j.kind = 11 AND j.tells THEN j.n ELSE j.failures END AS failures,
               CASE WHEN j.forgives THEN ''
                    -- An older format has no room for it.
                    WHEN j.tells THEN CASE WHEN g.format >= 2 THEN convert_from(j.blob, 'UTF8') ELSE '' END END AS why,
               CASE WHEN j.begins THEN 0
                    WHEN j.kind = 10 AND j.number = 0 THEN greatest(j.attempts - 1, 0) ELSE j.attempts END AS attempts,
               CASE WHEN j.forgives OR (j.kind = 22 AND j.number = 0) THEN 0
                    WHEN j.kind = 18 THEN deaths_after(j.found, j.deaths)
                    WHEN j.kind = 23 AND NOT j.owed THEN j.deaths - 1 ELSE j.deaths END AS deaths,
               CASE WHEN j.forgives OR j.kind = 22 THEN 0
                    WHEN j.kind = 18 THEN alone_after(j.found, j.alone)
                    WHEN j.kind = 23 AND NOT j.owed THEN greatest(j.alone - 1, 0) ELSE j.alone END AS alone,
               CASE WHEN j.forgives OR (j.kind = 22 AND j.number = 0)
                         OR (j.kind = 23 AND NOT j.owed) THEN 0
                    WHEN j.kind = 18 THEN death_after(j.found, j.death, j.token) ELSE j.death END AS death,
               CASE WHEN j.kind = 11 OR (j.kind = 10 AND j.stopping = 0) THEN j.actor ELSE j.avoid END AS avoid,
               CASE WHEN j.kind = 2 THEN 2 WHEN j.kind IN (11, 15) THEN 1
                    WHEN j.frees THEN 0
                    ELSE j.stopping END::smallint AS stopping,
               CASE WHEN j.kind = 18 THEN 1 WHEN j.kind = 21 AND j.tells THEN 2
                    WHEN j.kind = 3 OR (j.kind = 23 AND j.aside = 1) THEN 0 ELSE j.aside END::smallint AS aside,
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
        UPDATE keys k SET retry_at_ms = op.retry_at_ms, attempts = op.attempts, failures = op.failures, deaths = op.deaths,
                          alone = op.alone, death = op.death, avoid = op.avoid, owner = op.owner, token = op.token,
                          stopping = op.stopping, aside = op.aside, why = coalesce(op.why, k.why),
                          checkpoint = CASE WHEN op.kind = 13 THEN op.blob WHEN op.begins THEN '' ELSE k.checkpoint END
        FROM op WHERE op.ok AND NOT op.ends AND k.ctid = op.place
    ), loose AS MATERIALIZED (
        -- A row that stands under `assert_current` in somebody's open transaction cannot be deleted before that has ended,
        -- and the group does not wait for it. Nor may its lock be lost, or the key could be added and granted again
        -- meanwhile. So it is marked as gone, which that lock allows, and deleted by a later batch.
        SELECT k.ctid AS place FROM op JOIN keys k ON k.ctid = op.place WHERE op.ok AND op.ends FOR UPDATE OF k SKIP LOCKED
    ), ended AS (
        DELETE FROM keys k USING loose l WHERE k.ctid = l.place
    ), marked AS (
        UPDATE keys k SET gone = true, owner = NULL, token = NULL, aside = 0, why = '', payload = '', checkpoint = ''
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
                           ELSE key_json(op.key, op.weight, op.priority, op.not_before_ms, op.retry_at_ms, op.generation,
                                         op.since, op.attempts, op.failures, op.deaths, op.alone, op.death, op.avoid,
                                         op.owner, op.token, op.stopping, op.aside) END
                      || CASE WHEN op.last THEN concat(',["S","', op.old_owner, '"]') ELSE '' END, ',')
               FILTER (WHERE op.ok AND op.kind <> 13),
           count(*) FILTER (WHERE op.ok AND op.kind <> 13) + count(*) FILTER (WHERE op.last),
           array_agg(op.old_owner) FILTER (WHERE op.notice IS NOT NULL),
           array_agg(op.notice) FILTER (WHERE op.notice IS NOT NULL),
           -count(*) FILTER (WHERE op.ends),
           count(*) FILTER (WHERE op.ok AND op.aside <> 0 AND NOT op.ends) - count(*) FILTER (WHERE op.ok AND op.old_aside <> 0),
           NULL, array_agg(op.old_owner) FILTER (WHERE op.last)
    INTO r FROM (SELECT * FROM op ORDER BY op.ix) op;
    PERFORM forget(g.id, r.gone);
    RETURN r;
END $$;

INSERT INTO schema_version VALUES (3, 3);
