-- What every script begins with: the names, and the lineage of the server that it runs on.

local META, VIEWS, PAYLOADS, CHECKPOINTS, SESSIONS, BEATS, HELD, LOG, QUARANTINED, WHYS = unpack(KEYS)

-- A server that may have forgotten something has another run id (it was started again, or it is another process) or
-- another replication id (it was a replica, took over somebody else's data, and was promoted). The group's lineage is
-- the pair under which its data was last written; a group without one is new, or was flushed, which look the same.
local function current_lineage()
  local info = redis.call('INFO', 'server', 'replication')
  local function id(name)
    -- A plain find: a pattern would try to match at each of a thousand bytes.
    local _, at = string.find(info, name, 1, true)
    return at and string.sub(info, at + 1, at + 40)
  end
  local run, replication = id('\nrun_id:'), id('\nmaster_replid:')
  return run and replication and run .. replication
end
