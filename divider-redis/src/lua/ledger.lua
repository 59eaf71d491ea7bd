-- What apply, poll and resign share: the group as it is changed by one script, and how it is written back.
--
-- Everything is read into tables, decided there, and written once at the end. So a refusal or a mistake leaves nothing
-- half done, and a record that is touched ten times is written once. Whatever could refuse a write is asked for before the
-- first one: Redis itself refuses the script as a whole where it is out of memory, cannot write to its disk or is a
-- replica, and the rights are looked at here. ARGV: channel, the highest number that the caller was ever told.

local told = tonumber(ARGV[2])
local pack = cmsgpack.pack
-- Larger messages are announced without their content, so that a slow reader cannot be sent megabytes.
local LARGEST_HINT = 65536
-- The change log keeps this many changes, or two for each key of the group if that is more, and never more than these bytes.
local LEAST_LOGGED, LARGEST_LOG = 512, 8388608
-- Every new lineage lifts all numbers by this much, in case the store forgot some and its clock was set back too.
local LINEAGE_LEAP = 1048576

-- A key's view is an array with these fields; the two lengths spare a look for blobs that are not there.
local WEIGHT, PRIORITY, SINCE, GENERATION, ATTEMPTS, STATE, OWNER, TOKEN, RARE, PAYLOAD_LEN, CHECKPOINT_LEN =
  1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
-- What few keys have is an array of its own in it, or 0 where all of it is as in a new record.
local NOT_BEFORE, RETRY_AT, FAILURES, DEATHS, ALONE, DEATH, AVOID, WHY_LEN = 1, 2, 3, 4, 5, 6, 7, 8
local PLAIN = { 0, 0, 0, 0, 0, 0, '', 0 }
-- A key that was set aside is in one of the last two: because its owners died, or because one said so.
local PENDING, ASSIGNED, STOPPING, REMOVING, DEADLY, FAILED = 0, 1, 2, 3, 4, 5
-- And so is a session. ENDED is -1 while it lives; then, the token below which its keys have survived. BLAME says whom its
-- death is held against, and BLAMED from how many deaths on, or which ownership.
local NODE, AFFINITY, CAPACITY, LEASE, DRAINING, SETTLED, READS, JOINED, ENDED, BLAME, BLAMED, SEQ, ALTERED, HOLDS, STOPS,
  SERIAL = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
local NOBODY, YOUNG, SUSPECTS, ONLY = 0, 1, 2, 3
-- Kinds of changes and of notices.
local KEY, KEY_GONE, SESSION, SESSION_GONE, GROUP = 0, 1, 2, 3, 4
local GRANTED, STOP, TAKEN, OVER = 0, 1, 2, 3

local m = redis.call('HMGET', META, 'lineage', 'revision', 'token', 'term', 'leader', 'leader_beat', 'hold', 'logged', 'floor', 'format', 'ended',
  'layout', 'time', 'declared', 'log_bytes', 'sizes')
local format = tonumber(m[10] or 0)
if format > NEWEST_FORMAT then
  return redis.error_reply('DIVIDERFORMAT ' .. format)
elseif m[1] and m[12] ~= LAYOUT then
  return redis.error_reply('DIVIDERLAYOUT the group was written by another version')
end
local lineage = m[1]
local revision, token, term = tonumber(m[2] or 0), tonumber(m[3] or 0), tonumber(m[4] or 0)
local leader, leader_beat, hold = m[5] or '', tonumber(m[6] or 0), m[7] == '1'
local logged, log_bytes, floor = tonumber(m[8] or 0), tonumber(m[15] or 0), tonumber(m[9] or 0)
-- When a session last ended.
local ended = tonumber(m[11] or 0)
-- Ledger time in milliseconds, and how many keys have been declared.
local time, declared = tonumber(m[13] or 0), tonumber(m[14] or 0)
local clock = redis.call('TIME')
-- Microseconds: faster than anything here can count, so that numbers which start from it never come twice.
local now = clock[1] * 1000000 + clock[2]

-- See `sizes`.
local written = m[16]

local views, sessions = {}, {}
local changes, notices = {}, {}
local meta_dirty, leader_gone = {}, false
local dirty_views, dirty_sessions, dirty_beats = {}, {}, {}
local dirty_payloads, dirty_checkpoints, dirty_whys, dirty_held, dirty_quarantined = {}, {}, {}, {}, {}

local function change(packed)
  changes[#changes + 1] = packed
end

-- nil where there is no such session.
local function session(id)
  local s = sessions[id]
  if s == nil then
    local raw = redis.call('HGET', SESSIONS, id)
    s = raw and cmsgpack.unpack(raw) or false
    sessions[id] = s
  end
  return s or nil
end

local function alive(id)
  local s = session(id)
  return s and s[ENDED] < 0 and s or nil
end

local function hex(id)
  return string.format('%08x%08x%08x%08x', struct.unpack('>I4I4I4I4', id))
end

-- All session ids in the order of their bytes. Strings are not compared as they are: that follows the server's locale.
local function all_sessions()
  local by_hex, order = {}, {}
  local raw = redis.call('HGETALL', SESSIONS)
  for i = 1, #raw, 2 do
    local id = raw[i]
    if sessions[id] == nil then
      sessions[id] = cmsgpack.unpack(raw[i + 1])
    end
  end
  for id, s in pairs(sessions) do
    if s then
      local h = hex(id)
      by_hex[h] = id
      order[#order + 1] = h
    end
  end
  table.sort(order)
  for i, h in ipairs(order) do
    order[i] = by_hex[h]
  end
  return order
end

local function session_changed(id, s)
  dirty_sessions[id] = true
  change(pack(SESSION, id, pack(s)))
end

-- To be called when the group's term, hold, time or format has changed.
local function group_changed()
  meta_dirty.term, meta_dirty.leader, meta_dirty.hold = term, leader, hold and '1' or '0'
  meta_dirty.time, meta_dirty.format = time, format
  change(pack(GROUP, term, leader, hold and 1 or 0, time, format))
end

-- Nobody leads any more.
local function dethrone()
  if leader ~= '' then
    leader, leader_gone = '', true
    group_changed()
  end
end

local function notify(id, notice)
  local to = notices[id]
  if not to then
    to = { size = 0 }
    notices[id] = to
  end
  to.size = to.size + #notice
  to[#to + 1] = notice
end

-- Drops an ended session once no key is in its name.
local function forget_if_empty(id)
  local s = session(id)
  if s and s[ENDED] >= 0 and s[HOLDS] == 0 then
    sessions[id] = false
    dirty_sessions[id] = true
    change(pack(SESSION_GONE, id))
  end
end

local function end_session(id, s, healthy_below, blame, blamed)
  s[ENDED], s[BLAME], s[BLAMED] = healthy_below, blame, blamed
  -- The revision that this batch will have.
  ended = revision + 1
  meta_dirty.ended = ended
  dirty_beats[id] = false
  session_changed(id, s)
  notify(id, pack(OVER))
  if leader == id then
    dethrone()
  end
  forget_if_empty(id)
end

-- Calls `command key ...` with the list, in parts that fit Lua's stack.
local function write(command, key, list)
  for i = 1, #list, 2000 do
    redis.call(command, key, unpack(list, i, math.min(i + 1999, #list)))
  end
end

-- Writes what differs in a map of field -> value, where false means that the field is gone.
local function write_hash(key, dirty)
  local set, gone = {}, {}
  for field, value in pairs(dirty) do
    if value then
      set[#set + 1] = field
      set[#set + 1] = value
    else
      gone[#gone + 1] = field
    end
  end
  write('HSET', key, set)
  write('HDEL', key, gone)
end

-- The same for a set of members that is kept in the order of their bytes.
local function write_zset(key, dirty)
  local add, gone = {}, {}
  for member, there in pairs(dirty) do
    if there then
      -- As text: a number is made into one with all its digits each time.
      add[#add + 1] = '0'
      add[#add + 1] = member
    else
      gone[#gone + 1] = member
    end
  end
  write('ZADD', key, add)
  write('ZREM', key, gone)
end

-- Drops the oldest batches of a log that is too large, but for the last one.
local function trim_log()
  if logged <= LEAST_LOGGED and log_bytes <= LARGEST_LOG then
    return
  end
  local most = math.max(LEAST_LOGGED, 2 * redis.call('HLEN', VIEWS))
  if logged <= most and log_bytes <= LARGEST_LOG then
    return
  end
  local length = redis.call('LLEN', LOG)
  while length > 1 and (logged > most or log_bytes > LARGEST_LOG) do
    local oldest = redis.call('LPOP', LOG)
    local _, _, count = cmsgpack.unpack_limit(oldest, 2)
    logged, log_bytes, length = logged - count, math.max(log_bytes - #oldest, 0), length - 1
  end
  if length == 1 then
    -- Whatever was miscounted, by a version that did not count bytes, is right again from here on.
    local last = redis.call('LRANGE', LOG, 0, 0)[1]
    local _, _, count = cmsgpack.unpack_limit(last, 2)
    logged, log_bytes = count, #last
  end
  redis.call('HSET', META, 'logged', logged, 'log_bytes', log_bytes)
end

-- How much there is of what nothing may be missing from. Redis deletes whole keys, where it evicts or expires them.
local function sizes()
  local hashes = redis.call('HLEN', VIEWS) .. ' ' .. redis.call('HLEN', PAYLOADS) .. ' ' .. redis.call('HLEN', CHECKPOINTS)
  return hashes .. ' ' .. redis.call('HLEN', SESSIONS) .. ' ' .. redis.call('ZCARD', HELD)
end

local function may_write()
  local lacks = refused(WRITES)
  if lacks then
    error(lacks)
  end
end

-- Writes everything that has changed, as one revision, and tells whoever listens.
local function commit()
  may_write()
  local messages, entry = {}, nil
  for id, to in pairs(notices) do
    local s, seq = session(id), -1
    -- A session that has ended and is forgotten still gets its last message; nobody counts after it.
    if s then
      seq = s[SEQ] + 1
      s[SEQ] = seq
      dirty_sessions[id] = true
    end
    messages[CHANNEL .. ':s:' .. hex(id)] = to.size <= LARGEST_HINT and pack(seq, #to) .. table.concat(to) or ''
  end
  if #changes > 0 then
    revision = revision + 1
    logged = logged + #changes
    entry = pack(revision, #changes) .. table.concat(changes)
    log_bytes = log_bytes + #entry
    meta_dirty.revision, meta_dirty.logged, meta_dirty.log_bytes = revision, logged, log_bytes
  end

  write_hash(META, meta_dirty)
  write_hash(VIEWS, dirty_views)
  write_hash(PAYLOADS, dirty_payloads)
  write_hash(CHECKPOINTS, dirty_checkpoints)
  write_hash(WHYS, dirty_whys)
  for id in pairs(dirty_sessions) do
    local s = sessions[id]
    dirty_sessions[id] = s and pack(s)
  end
  write_hash(SESSIONS, dirty_sessions)
  write_hash(BEATS, dirty_beats)
  write_zset(HELD, dirty_held)
  write_zset(QUARANTINED, dirty_quarantined)
  if entry then
    redis.call('RPUSH', LOG, entry)
    trim_log()
  end
  local measured = sizes()
  if measured ~= written then
    redis.call('HSET', META, 'sizes', measured)
    written = measured
  end

  for channel, message in pairs(messages) do
    redis.call('PUBLISH', channel, message)
  end
  if leader_gone then
    redis.call('PUBLISH', CHANNEL .. ':l', '')
  end
  if entry then
    redis.call('PUBLISH', CHANNEL .. ':g', #entry <= LARGEST_HINT and entry or '')
  end

  changes, notices, meta_dirty, leader_gone = {}, {}, {}, false
  dirty_views, dirty_sessions, dirty_beats = {}, {}, {}
  dirty_payloads, dirty_checkpoints, dirty_whys, dirty_held, dirty_quarantined = {}, {}, {}, {}, {}
end

-- The store may have forgotten something: nobody may go on believing in what it said before. Every session ends, nobody
-- leads, and grants are held back. A group without a lineage is treated the same, since a new one and a flushed one look
-- alike; and so is one that knows of no number as high as the caller was told, or that lacks a part. All numbers leap,
-- tokens and terms with the next one of them, so that none that the forgotten past has issued is issued again, and the
-- change log begins anew, so that no reader takes a batch of this past for the continuation of another.
local found = current_lineage(lineage)
if not found then
  return redis.error_reply('DIVIDERLINEAGE the server does not tell run_id and master_replid')
end
local highest = math.max(floor, revision, token, term)
if found ~= lineage or told > highest or written ~= sizes() then
  may_write()
  lineage = found
  floor = math.max(now, math.max(highest, told) + LINEAGE_LEAP)
  revision, logged, log_bytes = floor, 0, 0
  meta_dirty.lineage, meta_dirty.layout, meta_dirty.floor = lineage, LAYOUT, floor
  meta_dirty.revision, meta_dirty.logged, meta_dirty.log_bytes = revision, logged, log_bytes
  -- Forgotten sessions have ended, too.
  ended = revision + 1
  meta_dirty.ended = ended
  local empty = redis.call('HLEN', VIEWS) == 0
  if empty then
    redis.call('DEL', HELD, PAYLOADS, CHECKPOINTS, WHYS, QUARANTINED)
  end
  for _, id in ipairs(all_sessions()) do
    local s = sessions[id]
    if empty then
      s[HOLDS], s[STOPS] = 0, 0
    end
    if s[ENDED] < 0 then
      end_session(id, s, 0, NOBODY, 0)
    else
      forget_if_empty(id)
    end
  end
  leader_gone = leader_gone or leader ~= ''
  leader, hold = '', true
  -- What the leader of before says late, the end of a hold above all, is not of this lineage's term.
  term = term > 0 and floor or 0
  -- Said in any case: a join of before is told from one of after.
  group_changed()
  redis.call('HSET', META, 'leader_beat', 0)
  redis.call('DEL', LOG, BEATS)
  commit()
end
