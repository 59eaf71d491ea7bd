-- What every script begins with: the names, and the lineage of the server that it runs on.

local META, VIEWS, PAYLOADS, CHECKPOINTS, SESSIONS, BEATS, HELD, LOG, QUARANTINED, WHYS = unpack(KEYS)

-- A server that may have forgotten something has another run id (it was started again, or it is another process) or
-- another replication id (it was a replica, took over somebody else's data, and was promoted). The group's lineage is
-- the pair under which its data was last written; a group without one is new, or was flushed, which look the same.
--
-- The answer is `written` where nothing was forgotten since. A replication id also changes where nothing can have been:
-- when the first replica is attached, a backup is taken, or the last replica has been gone for long. A promotion leaves
-- the id before it as the second one; those three leave none. docs/ALGORITHM.md has the argument.
local function current_lineage(written)
  local info = redis.call('INFO', 'server', 'replication')
  local function id(name)
    -- A plain find: a pattern would try to match at each of a thousand bytes.
    local _, at = string.find(info, name, 1, true)
    return at and string.sub(info, at + 1, at + 40)
  end
  local run, replication = id('\nrun_id:'), id('\nmaster_replid:')
  local found = run and replication and run .. replication
  if found and written and found ~= written and string.sub(written, 1, 40) == run
    and string.find(info, '\nrole:master', 1, true) and id('\nmaster_replid2:') == string.rep('0', 40) then
    return written
  end
  return found
end
