//! Every statement, with the schema's name in it. Made once for each store.

use std::{sync::Arc, time::Duration};

use sqlx::AssertSqlSafe;

/// The texts of all statements.
#[derive(Debug)]
pub(crate) struct Sql {
    /// Bytes that are read at once, apart from the key that goes beyond them.
    pub(crate) at_once: usize,
    pub(crate) version: Text,
    pub(crate) attach: Text,
    pub(crate) apply: Text,
    pub(crate) renew: Text,
    pub(crate) poll: Text,
    pub(crate) resign: Text,
    pub(crate) channel: Text,
    pub(crate) beats: Text,
    pub(crate) gone: Text,
    pub(crate) holdings: Text,
    pub(crate) sizes: Text,
    pub(crate) held: Text,
    pub(crate) changes: Text,
    pub(crate) scan: Text,
    pub(crate) records: Text,
    pub(crate) stats: Text,
    pub(crate) quarantined: Text,
    pub(crate) revision: Text,
    pub(crate) seq: Text,
    pub(crate) messages: Text,
    pub(crate) blobs: Text,
}

/// One statement. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Text(Arc<str>);

impl Text {
    /// For the driver, which takes no text that was put together at run time without this promise: nothing but the quoted
    /// schema is ever put into it.
    pub(crate) fn safe(&self) -> AssertSqlSafe<Arc<str>> {
        AssertSqlSafe(Arc::clone(&self.0))
    }
}

/// Quotes an identifier.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

const VIEW: &str = "key_json(k.key, k.weight, k.priority, k.not_before_ms, k.retry_at_ms, k.generation, k.since, \
                    k.attempts, k.failures, k.deaths, k.alone, k.death, k.avoid, k.owner, k.token, k.stopping, k.aside)";

/// Numbers that many keys have in common, in the order in which a scan says them.
const COMMON: [&str; 5] = ["weight", "priority", "not_before_ms", "generation", "attempts"];

/// Numbers that few keys have, in the same order; the others have 0.
const PAST: [&str; 5] = ["retry_at_ms", "failures", "deaths", "alone", "death"];

/// What a holding consists of, but for its bytes.
const HELD: &str = "k.key, k.token, k.attempts, k.generation, k.failures, k.weight, k.priority, k.stopping";

/// The group, on a server that can write: a standby knows no lineage, and what it says may be long over.
const GROUP: &str = "g.name = $1 AND @lineage() IS NOT NULL";

impl Sql {
    /// As much is read at once as comes within this time limit on a line of 20 Mbit/s, and 2 MB at most.
    pub(crate) fn new(schema: &str, limit: Duration) -> Self {
        let schema = quoted(schema);
        let at_once = 2_000 * usize::try_from(limit.as_millis()).unwrap_or(1000).min(1000);
        let text = |sql: &str| {
            let mut sql = sql.replace("$VIEW", &format!("@{VIEW}")).replace("$HELD", HELD);
            for table in ["f", "k"] {
                let octets = format!("(octet_length({table}.payload) + octet_length({table}.checkpoint))");
                sql = sql.replace(&format!("$OCTETS({table})"), &octets);
            }
            // One number for all of them, or one for each.
            let each = COMMON.map(|column| {
                let (lowest, highest) = (format!("min(k.{column})"), format!("max(k.{column})"));
                format!("{lowest}, CASE WHEN {lowest} < {highest} THEN array_agg(k.{column}) END")
            });
            let past = PAST.map(|column| format!("array_agg(k.{column}) FILTER (WHERE k.past)"));
            let has_past = PAST.map(|column| format!("f.{column} <> 0")).join(" OR ");
            sql = sql.replace("$EACH", &each.join(", ")).replace("$HAS_PAST", &has_past);
            sql = sql.replace("$PAST", &past.join(", ")).replace("$GROUP", GROUP);
            sql = sql.replace("$BYTES", &at_once.to_string());
            for seen in ["$3", "$4"] {
                sql = sql.replace(&format!("$SAME({seen})"), &format!("g.name = $1 AND NOT @forgot(g, {seen})"));
            }
            Text(sql.replace('@', &format!("{schema}.")).into())
        };
        Self {
            at_once,
            version: text("SELECT max(version), max(min_compatible), current_setting('server_encoding') FROM @schema_version"),
            attach: text("SELECT group_channel, leader_channel, leader_lock, secret FROM @attach($1, $2)"),
            apply: text("SELECT codes, vals, revision FROM @apply($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"),
            renew: text("SELECT @renew($1, $2, $3)"),
            poll: text(
                "SELECT alive, seq, revision, token, term, leader, leader_beat, holder, secret
                 FROM @poll($1, $2, $3, $4, $5, $6, $7)",
            ),
            resign: text("SELECT holder FROM @resign($1, $2, $3, $4, $5)"),
            channel: text("SELECT @channel($1, $2)"),
            beats: text("SELECT b.session, b.beat FROM @groups g JOIN @beats b ON b.group_id = g.id WHERE $GROUP"),
            gone: text(
                "WITH held AS MATERIALIZED (
                     SELECT l.classid::bigint << 32 | l.objid::bigint AS key FROM pg_locks l
                     WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
                       AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
                 )
                 SELECT b.session FROM @groups g JOIN @beats b ON b.group_id = g.id
                 WHERE $GROUP AND b.locked AND g.life = pg_postmaster_start_time()
                   AND @lock_key($1, b.session::text) NOT IN (SELECT h.key FROM held h)",
            ),
            // All or nothing, so that nothing is sent that would have to be sent again.
            holdings: text(
                "SELECT s.seq, s.held, $HELD, k.payload, k.checkpoint
                 FROM @groups g JOIN @sessions s ON s.group_id = g.id AND s.session = $2 AND s.ended IS NULL
                 LEFT JOIN LATERAL (
                     SELECT f.*, sum($OCTETS(f) + octet_length(f.key) + 100) OVER () AS total
                     FROM @keys f WHERE f.group_id = g.id AND f.owner = s.session AND s.held <= 4096
                 ) k ON k.total <= $BYTES WHERE $SAME($3)",
            ),
            sizes: text(
                "DECLARE sizes NO SCROLL CURSOR FOR SELECT $OCTETS(k) + octet_length(k.key) + 100
                 FROM @keys k WHERE k.group_id = (SELECT g.id FROM @groups g WHERE g.name = $1) AND k.owner = $2",
            ),
            held: text(
                "DECLARE held NO SCROLL CURSOR FOR SELECT NULL::bigint, NULL::bigint, $HELD, k.payload, k.checkpoint
                 FROM @keys k WHERE k.group_id = (SELECT g.id FROM @groups g WHERE g.name = $1) AND k.owner = $2",
            ),
            changes: text(
                "SELECT g.revision, c.revision, c.data FROM @groups g LEFT JOIN LATERAL (
                     SELECT c.revision, c.data,
                            sum(octet_length(c.data)) OVER (ORDER BY c.revision) - octet_length(c.data) AS before
                     FROM (
                         SELECT * FROM @changes c WHERE c.group_id = g.id AND c.revision > $2 ORDER BY c.revision LIMIT 64
                     ) c
                 ) c ON c.before < $BYTES WHERE $GROUP ORDER BY c.revision",
            ),
            // A row of the group, then its keys. Making text of each key takes the server longer than reading it, and so does
            // sending each number: keys with the same owner are lists, and so is what differs among these.
            scan: text(
                "SELECT g.revision, g.term, g.leader, g.hold, g.time_ms, g.format,
                        CASE WHEN $2::text IS NULL THEN (
                            SELECT string_agg(@session_json(s), ',' ORDER BY s.session) FROM @sessions s
                            WHERE s.group_id = g.id
                        ) END,
                        NULL::uuid, NULL::smallint, NULL::smallint, NULL::uuid, NULL::text[], NULL::bigint[],
                        NULL::bigint, NULL::bigint[], NULL::integer, NULL::integer[], NULL::bigint, NULL::bigint[],
                        NULL::bigint, NULL::bigint[], NULL::bigint, NULL::bigint[], NULL::bigint[], NULL::bigint[],
                        NULL::bigint[], NULL::integer[], NULL::integer[], NULL::bigint[]
                 FROM @groups g WHERE $GROUP
                 UNION ALL
                 SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, p.* FROM @groups g CROSS JOIN LATERAL (
                     SELECT k.owner, k.stopping, k.aside, k.avoid, array_agg(k.key), array_agg(k.token), $EACH,
                            array_agg(k.since), $PAST
                     FROM (
                         SELECT f.*, $HAS_PAST AS past,
                                sum(octet_length(f.key) + 100) OVER (ORDER BY f.key ROWS UNBOUNDED PRECEDING)
                                    - octet_length(f.key) - 100 AS before
                         FROM (
                             SELECT * FROM @keys f WHERE f.group_id = g.id AND f.key > coalesce($2, '') AND NOT f.gone
                             ORDER BY f.key LIMIT 4096
                         ) f
                     ) k WHERE k.before < $BYTES GROUP BY k.owner, k.stopping, k.aside, k.avoid, k.past
                 ) p WHERE $GROUP",
            ),
            records: text(
                "SELECT k.ix, k.found, k.payload, k.checkpoint, $VIEW, k.why FROM (
                     SELECT n.ix, count(*) OVER () AS found, f.*, sum($OCTETS(f)) OVER (ORDER BY n.ix) - $OCTETS(f) AS before
                     FROM @groups g, unnest($2::text[]) WITH ORDINALITY AS n(key, ix)
                     CROSS JOIN LATERAL (
                         SELECT * FROM @keys f WHERE f.group_id = g.id AND f.key = n.key AND NOT f.gone OFFSET 0
                     ) f WHERE $GROUP
                 ) k WHERE k.before < $BYTES ORDER BY k.ix",
            ),
            stats: text(
                "SELECT g.registered, g.quarantined, count(s.session), coalesce(sum(s.held), 0)::bigint,
                        coalesce(sum(s.stopping), 0)::bigint
                 FROM @groups g LEFT JOIN @sessions s ON s.group_id = g.id AND s.ended IS NULL
                 WHERE $GROUP GROUP BY g.id",
            ),
            quarantined: text(
                "SELECT k.key FROM @keys k WHERE k.group_id = (SELECT g.id FROM @groups g WHERE $GROUP)
                   AND k.aside <> 0 AND k.key > $3 ORDER BY k.key LIMIT $2",
            ),
            revision: text("SELECT g.revision FROM @groups g WHERE $GROUP"),
            seq: text(
                "SELECT s.seq FROM @groups g JOIN @sessions s ON s.group_id = g.id AND s.session = $2 AND s.ended IS NULL
                 WHERE $SAME($3)",
            ),
            messages: text(
                "SELECT s.seq, m.seq, m.data FROM @groups g
                 JOIN @sessions s ON s.group_id = g.id AND s.session = $2 AND s.ended IS NULL
                 LEFT JOIN LATERAL (
                     SELECT m.seq, m.data, sum(octet_length(m.data)) OVER (ORDER BY m.seq) - octet_length(m.data) AS before
                     FROM (
                         SELECT * FROM @messages m WHERE m.group_id = g.id AND m.session = s.session AND m.seq > $3
                         ORDER BY m.seq LIMIT 64
                     ) m
                 ) m ON m.before < $BYTES WHERE $SAME($4) ORDER BY m.seq",
            ),
            blobs: text(
                "SELECT k.ix, k.found, k.payload, k.checkpoint, @blob_text(k.payload, k.checkpoint) FROM (
                     SELECT n.ix, count(*) OVER () AS found, f.*, sum($OCTETS(f)) OVER (ORDER BY n.ix) - $OCTETS(f) AS before
                     FROM @groups g, unnest($2::text[]) WITH ORDINALITY AS n(key, ix)
                     CROSS JOIN LATERAL (
                         SELECT * FROM @keys f WHERE f.group_id = g.id AND f.key = n.key AND NOT f.gone OFFSET 0
                     ) f WHERE $GROUP
                 ) k WHERE k.before < $BYTES ORDER BY k.ix",
            ),
        }
    }
}
