-- Fencing for writes of your own in the same database.

-- Raises unless `token` is the current one of `key`, owned by a living session. Until your transaction ends, the key goes
-- to no other owner: so what the transaction wrote is committed under this ownership, or not at all. Call it last, right
-- before COMMIT. The error's code is DV001, so that nobody takes it for one to try again. It takes a lock that holds up neither the owner's own stop nor the end of its session.
CREATE FUNCTION assert_current(group_name text, key text, token bigint) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM FROM groups g
    JOIN keys k ON k.group_id = g.id AND k.key = assert_current.key
    JOIN sessions s ON s.group_id = g.id AND s.session = k.owner
    WHERE g.name = group_name AND k.token = assert_current.token AND s.ended IS NULL AND g.lineage = lineage()
    FOR KEY SHARE OF k;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'divider: the token % is not the current one of this key', token
            USING ERRCODE = 'DV001', HINT = 'Another owner may be running the key; stop, and write nothing.';
    END IF;
END $$;

-- Each function finds its tables here and nowhere else, also where these files were run with a search path that does not put
-- temporary objects last: what is not named there is searched first.
DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN
        SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace = quote_ident(current_schema())::regnamespace
          AND EXISTS (SELECT FROM unnest(p.proconfig) c WHERE c LIKE 'search_path=%')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path TO %I, pg_temp', f, current_schema());
    END LOOP;
END $$;

INSERT INTO schema_version VALUES (6, 6);
