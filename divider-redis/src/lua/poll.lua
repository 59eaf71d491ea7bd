-- Looks at leadership, and claims, renews or resigns it. ARGV, after those of ledger.lua: session, what,
-- term, beat.

local id, what, claimed_term, claimed_beat = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])

if what == 'resign' then
  if leader == id and term == claimed_term then
    dethrone()
    commit()
  end
  return 1
end

local s = alive(id)
if not s then
  return 0
end
if what == 'take' then
  local free = leader == ''
  local stale = not free and claimed_term == term and claimed_beat == leader_beat
  if free or stale then
    leader_beat = 0
    meta_dirty.leader_beat = 0
    term, leader = math.max(term, floor, now - 1) + 1, id
    group_changed()
    commit()
  end
elseif what == 'lead' and leader == id and term == claimed_term then
  leader_beat = redis.call('HINCRBY', META, 'leader_beat', 1)
end
local beat = leader ~= '' and redis.call('HGET', BEATS, leader)
return { revision, token, s[SEQ], term, leader, leader_beat, beat and tonumber(beat) or -1 }
