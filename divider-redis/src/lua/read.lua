-- The reads. ARGV[1] says which; -1 is answered where a new lineage has begun that nobody has written down yet.

local m = redis.call('HMGET', META, 'lineage', 'revision', 'term', 'leader', 'hold', 'format', 'layout', 'time')
if m[1] ~= current_lineage(m[1]) then
  return -1
end
local format = tonumber(m[6] or 0)
if format > NEWEST_FORMAT then
  return redis.error_reply('DIVIDERFORMAT ' .. format)
elseif m[7] ~= LAYOUT then
  return redis.error_reply('DIVIDERLAYOUT the group was written by another version')
end
local what, revision = ARGV[1], tonumber(m[2])
local head = { revision, tonumber(m[3] or 0), m[4] or '', m[5] == '1' and 1 or 0, tonumber(m[8] or 0), format }
-- A page of an answer ends at the first record beyond this many bytes: the server must not be held up, and what is slow to
-- arrive must come within the time limit of a call.
local LARGEST_PAGE = 1048576
-- Fields of a key's view and of a session; see ledger.lua.
local RARE, PAYLOAD_LEN, CHECKPOINT_LEN, WHY_LEN = 9, 10, 11, 8
local ENDED, SEQ, HOLDS, STOPS = 9, 12, 14, 15

-- What is stored of a key beside its view.
local function blob(hash, name, length)
  if length == 0 then
    return ''
  end
  return redis.call('HGET', hash, name) or error(redis.error_reply('DIVIDERGONE from ' .. hash))
end

-- Appends key, view, payload, checkpoint and what went wrong of each key to the answer until the page is full; the number of keys done.
local function append_records(answer, names)
  local raw = #names > 0 and redis.call('HMGET', VIEWS, unpack(names)) or {}
  local bytes = 0
  for i, name in ipairs(names) do
    if bytes > LARGEST_PAGE then
      return i - 1
    end
    local packed, payload, checkpoint, why = raw[i], '', '', ''
    if packed then
      local v = cmsgpack.unpack(packed)
      payload, checkpoint = blob(PAYLOADS, name, v[PAYLOAD_LEN]), blob(CHECKPOINTS, name, v[CHECKPOINT_LEN])
      why = v[RARE] == 0 and '' or blob(WHYS, name, v[RARE][WHY_LEN])
    end
    bytes = bytes + #name + #(packed or '') + #payload + #checkpoint + #why
    local at = #answer
    answer[at + 1], answer[at + 2], answer[at + 3] = name, packed or '', payload
    answer[at + 4], answer[at + 5] = checkpoint, why
  end
  return #names
end

if what == 'beats' then
  return redis.call('HGETALL', BEATS)
elseif what == 'quarantined' then
  -- ARGV: the last key of the page before or nothing, most keys of a page.
  return redis.call('ZRANGEBYLEX', QUARANTINED, ARGV[2] == '' and '-' or '(' .. ARGV[2], '+', 'LIMIT', 0, ARGV[3])
elseif what == 'stats' then
  local alive, held, stopping = 0, 0, 0
  for _, raw in ipairs(redis.call('HVALS', SESSIONS)) do
    local s = cmsgpack.unpack(raw)
    if s[ENDED] < 0 then
      alive, held, stopping = alive + 1, held + s[HOLDS], stopping + s[STOPS]
    end
  end
  return { alive, redis.call('HLEN', VIEWS), held, stopping, redis.call('ZCARD', QUARANTINED) }
elseif what == 'records' then
  local answer, names = {}, {}
  for i = 2, #ARGV do
    names[i - 1] = ARGV[i]
  end
  append_records(answer, names)
  return answer
elseif what == 'holdings' then
  -- ARGV: session, the last key of the page before or nothing, most keys of a page.
  local id, after = ARGV[2], ARGV[3]
  local raw = redis.call('HGET', SESSIONS, id)
  local s = raw and cmsgpack.unpack(raw)
  if not s or s[ENDED] >= 0 then
    return 0
  end
  -- No byte of a key is 255, since keys are UTF-8.
  local from = after == '' and '[' .. id or '(' .. id .. after
  local members = redis.call('ZRANGEBYLEX', HELD, from, '(' .. id .. '\255', 'LIMIT', 0, ARGV[4])
  for i, member in ipairs(members) do
    members[i] = string.sub(member, 17)
  end
  local answer = { s[SEQ], revision, 0 }
  local done = append_records(answer, members)
  if done < #members or done == tonumber(ARGV[4]) then
    answer[3] = 1
  end
  return answer
elseif what == 'changes' then
  -- ARGV: since which revision; a session whose messages are to be counted up to the same moment, or nothing.
  local since = tonumber(ARGV[2])
  local raw = ARGV[3] and redis.call('HGET', SESSIONS, ARGV[3])
  local s = raw and cmsgpack.unpack(raw)
  local length = redis.call('LLEN', LOG)
  local oldest = revision - length + 1
  if since > revision or (since < revision and since + 1 < oldest) then
    return 0
  end
  local answer, bytes = { s and s[ENDED] < 0 and s[SEQ] or -1, revision }, 0
  local at = since + 1 - oldest
  while at < length and bytes <= LARGEST_PAGE do
    for _, entry in ipairs(redis.call('LRANGE', LOG, at, at + 15)) do
      if bytes <= LARGEST_PAGE then
        answer[#answer + 1] = entry
        bytes = bytes + #entry
      end
    end
    at = at + 16
  end
  return answer
elseif what == 'group' then
  return head
elseif what == 'scan' then
  -- The first page. ARGV[2]: keys of a page. The others are read by HSCAN itself, then 'group': what passes through a
  -- script is made into its tables and back, which takes several times as long as the reading.
  return { head, redis.call('HGETALL', SESSIONS), redis.call('HSCAN', VIEWS, 0, 'COUNT', ARGV[2]) }
end
