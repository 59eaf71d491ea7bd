-- Beats and leadership.

-- The key of an advisory lock: 64 bits of a strong hash, since locks of all schemas and programs share one space.
CREATE FUNCTION lock_key(group_name text, topic text) RETURNS bigint LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT AS $$
BEGIN
    RETURN ('x' || left(encode(sha256(convert_to(
        json_build_array('divider', current_schema(), group_name, topic)::text, 'UTF8')), 'hex'), 16))::bit(64)::bigint;
END $$;

-- Raises a session's beat; null where the session does not live. Touches nothing but the session's own row, so that no
-- batch, however long, delays a renewal. On a connection's first call it also takes the session's lock there, whose end
-- tells others that the connection has ended. Shared, so that a connection that the server has not yet noticed to be dead
-- does not keep its successor from it. A beat is ahead of all those that a restored disk may have forgotten, so that nobody
-- takes it for one that was seen before.
CREATE FUNCTION renew(group_name text, who uuid, first boolean) RETURNS bigint LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    raised bigint;
BEGIN
    IF first THEN
        PERFORM pg_try_advisory_lock_shared(lock_key(group_name, who::text));
    END IF;
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    UPDATE beats b SET beat = greatest(b.beat + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint), locked = true
    FROM groups g
    WHERE g.name = group_name AND g.lineage = lineage() AND b.group_id = g.id AND b.session = who
    RETURNING b.beat INTO raised;
    RETURN raised;
END $$;

-- Looks at leadership, on the connection that would hold its lock, and takes it where it is free and wanted.
--
-- `holder` is the session for which this connection has the lock, if it has. A leadership in the group's row counts only
-- together with the lock: a session that stands there and looks without it has lost its connection, and leads no more.
-- `stale` is the term of a leadership that has stood still for a lease. It matters only where this connection itself has
-- the lock, for an earlier session of the same node: then nobody else could ever take it. `seen` is the highest token that
-- the caller knows of. The secret tells a caller that listens to a group of before.
CREATE FUNCTION poll(
    group_name text, who uuid, lock_key bigint, INOUT holder uuid, wants boolean, stale bigint, seen bigint,
    OUT alive boolean, OUT seq bigint, OUT revision bigint, OUT token bigint, OUT term bigint, OUT leader uuid,
    OUT leader_beat bigint, OUT secret uuid
) LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    g groups;
    d draft;
    free boolean;
    lease bigint;
BEGIN
    SELECT * INTO g FROM groups x WHERE x.name = group_name;
    IF g.id IS NULL OR forgot(g, seen) OR g.life <> pg_postmaster_start_time() THEN
        g := locked_group(group_name, seen);
    END IF;
    SELECT s.seq INTO seq FROM sessions s WHERE s.group_id = g.id AND s.session = who AND s.ended IS NULL;
    alive := FOUND;
    free := CASE WHEN holder IS NOT NULL THEN g.leader IS DISTINCT FROM holder OR g.term = stale
                 WHEN wants AND alive THEN pg_try_advisory_lock(lock_key) ELSE false END;
    IF free AND wants AND alive THEN
        holder := who;
        g := locked_group(group_name, seen);
        -- Between the look and the lock the session may have been ended.
        SELECT s.lease_ms INTO lease FROM sessions s WHERE s.group_id = g.id AND s.session = who AND s.ended IS NULL;
        IF FOUND THEN
            -- Unless the program has set another limit, a leader that is silent for its lease loses this connection, and
            -- leadership with it.
            IF current_setting('idle_session_timeout') = '0' THEN
                PERFORM set_config('idle_session_timeout', greatest(lease, 500)::text, false);
            END IF;
            -- Ahead of every term that a restored disk may have forgotten.
            g.term := greatest(g.term + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
            d := set_leader(ROW(g, '', 0, '{}', '{}', false)::draft, who);
            g := d.g;
            g.revision := publish(g, d.changes, d.size, d.targets, d.notices, false);
        END IF;
    END IF;
    IF holder IS NOT NULL AND g.leader IS DISTINCT FROM holder THEN
        PERFORM pg_advisory_unlock(lock_key);
        holder := NULL;
    END IF;
    secret := g.secret;
    revision := g.revision;
    token := issued(g);
    term := g.term;
    leader := CASE WHEN g.leader IS DISTINCT FROM who OR holder = who THEN g.leader END;
    SELECT b.beat INTO leader_beat FROM beats b WHERE b.group_id = g.id AND b.session = leader;
END $$;

-- Gives leadership up, on the connection that has its lock. The lock goes first, so that whoever is woken finds it free.
CREATE FUNCTION resign(group_name text, who uuid, of_term bigint, lock_key bigint, INOUT holder uuid) LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    g groups := locked_group(group_name, 0);
    d draft;
BEGIN
    IF g.leader = who AND g.term = of_term THEN
        IF holder = who THEN
            PERFORM pg_advisory_unlock(lock_key);
            holder := NULL;
        END IF;
        d := set_leader(ROW(g, '', 0, '{}', '{}', false)::draft, NULL);
        PERFORM publish(d.g, d.changes, d.size, d.targets, d.notices, true);
    END IF;
END $$;

-- Begins the group where it is new, and a new lineage where that is due. Returns the names that a connection needs.
CREATE FUNCTION attach(
    group_name text, seen bigint, OUT group_channel text, OUT leader_channel text, OUT leader_lock bigint, OUT secret uuid
) LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    g groups;
BEGIN
    SELECT * INTO g FROM groups x WHERE x.name = group_name;
    IF g.id IS NULL OR forgot(g, seen) OR g.life <> pg_postmaster_start_time() THEN
        g := locked_group(group_name, seen);
    END IF;
    group_channel := channel(g.secret, 'group');
    leader_channel := channel(g.secret, 'leader');
    leader_lock := lock_key(group_name, 'leader');
    secret := g.secret;
END $$;

INSERT INTO schema_version VALUES (5, 5);
