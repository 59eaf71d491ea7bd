-- A batch, from the lock of the group's row to its publication.

-- What has come of a batch so far: a group row that is not written yet, and what is to be published.
CREATE TYPE draft AS (
    g       groups,
    changes text,
    size    bigint,
    targets uuid[],
    notices text[],
    -- Leadership has become free.
    freed   boolean
);

CREATE FUNCTION say(d draft, change text) RETURNS draft LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    d.changes := CASE WHEN d.size = 0 THEN change ELSE d.changes || ',' || change END;
    d.size := d.size + 1;
    RETURN d;
END $$;

CREATE FUNCTION set_leader(d draft, new_leader uuid) RETURNS draft LANGUAGE plpgsql AS $$
DECLARE
    g groups := d.g;
BEGIN
    g.leader := new_leader;
    d.g := g;
    d.freed := new_leader IS NULL;
    RETURN say(d, group_json(g));
END $$;

-- Ends a living session, with a verdict of whom its end is held against. Its keys keep its name; it is forgotten once no key
-- is in it.
CREATE FUNCTION end_session(d draft, who uuid, healthy_below bigint, whom smallint, suspect bigint) RETURNS draft LANGUAGE plpgsql AS $$
DECLARE
    g groups := d.g;
    s sessions;
BEGIN
    -- The revision that this batch will have.
    g.ended := g.revision + 1;
    d.g := g;
    DELETE FROM beats b WHERE b.group_id = (d.g).id AND b.session = who;
    UPDATE sessions SET ended = healthy_below, blame = whom, blamed = suspect
    WHERE group_id = (d.g).id AND session = who RETURNING * INTO s;
    d := say(d, session_json(s));
    d.targets := d.targets || who;
    d.notices := d.notices || '["e"]'::text;
    IF (d.g).leader = who THEN
        d := set_leader(d, NULL);
    END IF;
    IF s.held = 0 THEN
        DELETE FROM sessions WHERE group_id = (d.g).id AND session = who;
        DELETE FROM messages WHERE group_id = (d.g).id AND session = who;
        d := say(d, json_build_array('S', who)::text);
    END IF;
    RETURN d;
END $$;

-- One op that names a session, or the group. See the table of kinds in `codec.rs`.
CREATE FUNCTION one(
    INOUT d draft, kind smallint, who uuid, node text, token bigint, term bigint, a bigint, b bigint, c bigint,
    OUT code smallint, OUT val bigint
) LANGUAGE plpgsql AS $$
DECLARE
    g groups := d.g;
    s sessions;
    alive boolean;
    wanted numeric;
BEGIN
    -- A step under no term is an operator's word.
    IF kind IN (17, 19, 20, 24, 25) AND term <> g.term AND NOT (kind = 25 AND term = 0) THEN
        code := 18;
        RETURN;
    END IF;
    SELECT * INTO s FROM sessions x WHERE x.group_id = g.id AND x.session = who;
    alive := s.session IS NOT NULL AND s.ended IS NULL;
    code := 0;

    IF kind = 5 THEN -- Join
        IF s.session IS NOT NULL THEN
            code := CASE WHEN alive THEN 1 ELSE 12 END;
            RETURN;
        END IF;
        -- The column of terms says which revision the node has seen.
        IF term < g.ended OR term > g.revision THEN
            code := 22;
            RETURN;
        END IF;
        -- The column of tokens says what the node reads.
        IF token < g.format THEN
            code := 23;
            val := g.format;
            RETURN;
        END IF;
        IF g.format = 0 AND token > 0 THEN
            g.format := token;
            d.g := g;
            d := say(d, group_json(g));
        END IF;
        INSERT INTO sessions (group_id, session, node, affinity, capacity, lease_ms, reads, joined)
        VALUES (g.id, who, node, a, b, c, token, issued(g)) RETURNING * INTO s;
        INSERT INTO beats (group_id, session) VALUES (g.id, who);
        d := say(d, session_json(s));
        RETURN;
    ELSIF kind = 4 THEN -- Rebalance
        code := 1;
        FOR s IN SELECT * FROM sessions x WHERE x.group_id = g.id AND x.ended IS NULL AND x.settled ORDER BY x.session LOOP
            UPDATE sessions x SET settled = false WHERE x.group_id = g.id AND x.session = s.session RETURNING x.* INTO s;
            code := 0;
            d := say(d, session_json(s));
        END LOOP;
        RETURN;
    ELSIF kind = 20 THEN -- ResumeGrants
        IF NOT g.hold THEN
            code := 1;
            RETURN;
        END IF;
        g.hold := false;
        d.g := g;
        d := say(d, group_json(g));
        RETURN;
    ELSIF kind = 24 THEN -- Advance
        IF a = 0 THEN
            code := 1;
            RETURN;
        END IF;
        g.time_ms := g.time_ms + a;
        d.g := g;
        d := say(d, group_json(g));
        RETURN;
    ELSIF kind = 25 THEN -- Step
        IF EXISTS (SELECT FROM sessions x WHERE x.group_id = g.id AND x.ended IS NULL AND x.reads < a) THEN
            code := 23;
            val := a;
        ELSIF a <= g.format THEN
            code := 1;
        ELSE
            g.format := a;
            d.g := g;
            d := say(d, group_json(g));
        END IF;
        RETURN;
    END IF;

    IF NOT alive THEN
        code := 12;
        RETURN;
    END IF;
    IF kind = 9 THEN -- End: its node acts no more but lives, so its keys are not to blame.
        d := end_session(d, who, 0, 0::smallint, 0);
        RETURN;
    ELSIF kind = 17 THEN -- Expire
        -- A renewal that is under way is waited for: whichever comes first here, the other one finds it done.
        PERFORM FROM beats x WHERE x.group_id = g.id AND x.session = who AND x.beat = a FOR UPDATE;
        IF NOT FOUND THEN
            code := 19;
            RETURN;
        END IF;
        d := end_session(d, who, b, c::smallint, token);
        RETURN;
    ELSIF kind = 26 THEN -- Sender
        IF a <= s.serial THEN
            code := 24;
            RETURN;
        END IF;
        UPDATE sessions x SET serial = a WHERE x.group_id = g.id AND x.session = who;
        code := 1;
        RETURN;
    ELSIF kind IN (6, 7) THEN -- SetAffinity, AlterAffinity: `a` counts them, so that none is done twice
        IF a <= s.altered THEN
            code := 2;
            val := s.affinity;
            RETURN;
        END IF;
        wanted := CASE kind WHEN 6 THEN b
                            ELSE greatest(least(s.affinity::numeric + b, 9223372036854775807), -9223372036854775808) END;
        val := wanted;
        IF wanted < 0 OR wanted > 2147483647 THEN
            code := 21;
            RETURN;
        END IF;
        code := 2;
        UPDATE sessions x SET affinity = wanted, altered = a WHERE x.group_id = g.id AND x.session = who;
        IF wanted <> s.affinity THEN
            s.affinity := wanted;
            d := say(d, session_json(s));
        END IF;
        RETURN;
    ELSIF kind = 8 THEN -- Drain
        IF s.draining THEN
            code := 1;
            RETURN;
        END IF;
        s.draining := true;
    ELSE -- Settle 19
        IF s.settled THEN
            code := 1;
            RETURN;
        END IF;
        s.settled := true;
    END IF;
    UPDATE sessions x SET draining = s.draining, settled = s.settled WHERE x.group_id = g.id AND x.session = who;
    d := say(d, session_json(s));
END $$;

-- The group's row, locked. A group begins with its first use, and a new lineage before anything else: where the past is
-- another one, or where `seen`, the highest token that the caller knows of, has been forgotten.
CREATE FUNCTION locked_group(group_name text, seen bigint) RETURNS groups LANGUAGE plpgsql AS $$
DECLARE
    g groups;
    d draft;
    s record;
    lost boolean;
    now_life timestamptz := pg_postmaster_start_time();
    -- Beyond any number that can have been issued so far: fewer than a million a second were.
    floor bigint := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
BEGIN
    -- A database that does not wait for the disk by default would forget what it has promised.
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    SELECT * INTO g FROM groups x WHERE x.name = group_name FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        -- It may have been here before, in a schema or a database that is no more.
        INSERT INTO groups (name, lineage, life, born, revision, token)
        VALUES (group_name, lineage(), now_life, floor, floor, floor) ON CONFLICT (name) DO NOTHING;
        SELECT * INTO g FROM groups x WHERE x.name = group_name FOR NO KEY UPDATE;
    END IF;
    lost := forgot(g, seen);
    IF NOT lost AND g.life = now_life THEN
        RETURN g;
    END IF;

    -- A server that begins anew may have been given the disk of another day, with the same identity. What it has forgotten
    -- may have been numbered already, so every number jumps ahead of any that can have been issued, and nobody's picture
    -- of the group is continued from a revision that may have been another one. The clock may have gone back meanwhile, but
    -- not behind what somebody has seen.
    floor := greatest(floor, g.token, seen);
    -- In a new lineage, whatever was seen before it has been allowed for: others who have seen it begin no further one.
    UPDATE groups x SET life = now_life, kept = CASE WHEN lost THEN floor ELSE issued(g) END, born = floor, token = floor,
                        revision = greatest(g.revision, floor), logged = 0, log_bytes = 0
    WHERE x.id = g.id RETURNING x.* INTO g;
    DELETE FROM changes x WHERE x.group_id = g.id;
    IF NOT lost THEN
        UPDATE beats b SET locked = false WHERE b.group_id = g.id AND b.locked;
        RETURN g;
    END IF;

    g.lineage := lineage();
    g.term := greatest(g.term, floor);
    g.hold := true;
    -- Forgotten sessions have ended, too.
    g.ended := g.revision + 1;
    d := ROW(g, '', 0, '{}', '{}', true)::draft;
    FOR s IN SELECT x.session FROM sessions x WHERE x.group_id = g.id AND x.ended IS NULL ORDER BY x.session LOOP
        d := end_session(d, s.session, 0, 0::smallint, 0);
    END LOOP;
    d := set_leader(d, NULL);
    PERFORM publish(d.g, d.changes, d.size, d.targets, d.notices, true);
    SELECT * INTO g FROM groups x WHERE x.id = g.id;
    RETURN g;
END $$;

-- Applies a batch. `starts` has the place of the first op of each run; see `0003_runs.sql`. `seen` is as above.
CREATE FUNCTION apply(
    group_name text, starts integer[], kinds smallint[], keys text[], who uuid[], tokens bigint[], terms bigint[],
    a bigint[], b bigint[], c bigint[], blobs bytea[], seen bigint,
    OUT codes smallint[], OUT vals bigint[], OUT revision bigint
) LANGUAGE plpgsql
SET search_path FROM CURRENT
-- A plan for each call would cost more than the batch, and a scan of the whole table is never right here.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    g groups := locked_group(group_name, seen);
    d draft := ROW(g, '', 0, '{}', '{}', false)::draft;
    r run_result;
    total integer := cardinality(kinds);
    runs integer := cardinality(starts);
    lo integer;
    hi integer;
    o record;
BEGIN
    codes := '{}';
    vals := '{}';
    <<batch>>
    FOR run IN 1 .. runs LOOP
        lo := starts[run];
        hi := CASE WHEN run < runs THEN starts[run + 1] - 1 ELSE total END;
        g := d.g;
        r := NULL;
        IF kinds[lo] = 1 THEN
            -- The column of terms says how they are declared.
            r := CASE WHEN runs = 1 THEN run_add(g, keys, a, b, c, blobs, terms)
                      ELSE run_add(g, keys[lo:hi], a[lo:hi], b[lo:hi], c[lo:hi], blobs[lo:hi], terms[lo:hi]) END;
            g.declared := g.declared + r.registered;
        ELSIF kinds[lo] = 14 THEN
            r := CASE WHEN runs = 1 THEN run_assign(g, keys, who, terms)
                      ELSE run_assign(g, keys[lo:hi], who[lo:hi], terms[lo:hi]) END;
            -- The last value is the last token that was issued, whether or not the last op got one.
            g.token := r.vals[cardinality(r.vals)];
        ELSIF kinds[lo] IN (2, 3, 10, 11, 12, 13, 15, 16, 18, 21, 22, 23) THEN
            r := CASE WHEN runs = 1 THEN run_keyed(g, kinds, keys, who, tokens, terms, a, b, c, blobs)
                      ELSE run_keyed(g, kinds[lo:hi], keys[lo:hi], who[lo:hi], tokens[lo:hi], terms[lo:hi], a[lo:hi],
                                     b[lo:hi], c[lo:hi], blobs[lo:hi]) END;
        ELSE
            FOR i IN lo .. hi LOOP
                SELECT * INTO o FROM one(d, kinds[i], who[i], keys[i], tokens[i], terms[i], a[i], b[i], c[i]);
                d := o.d;
                codes := codes || o.code;
                vals := vals || o.val;
                IF kinds[i] = 26 AND o.code <> 1 THEN
                    -- A copy says nothing more.
                    codes := codes || array_fill(o.code, ARRAY[total - i]);
                    vals := vals || array_fill(NULL::bigint, ARRAY[total - i]);
                    EXIT batch;
                END IF;
            END LOOP;
            CONTINUE;
        END IF;
        g.registered := g.registered + r.registered;
        g.quarantined := g.quarantined + r.quarantined;
        d.g := g;
        codes := codes || r.codes;
        vals := vals || coalesce(r.vals, array_fill(NULL::bigint, ARRAY[hi - lo + 1]));
        IF r.size > 0 THEN
            d.changes := CASE WHEN d.size = 0 THEN r.changes ELSE d.changes || ',' || r.changes END;
            d.size := d.size + r.size;
            d.targets := d.targets || r.targets;
            d.notices := d.notices || r.notices;
        END IF;
    END LOOP;
    revision := publish(d.g, d.changes, d.size, d.targets, d.notices, d.freed);
    PERFORM bury(g.id);
END $$;

INSERT INTO schema_version VALUES (4, 4);
