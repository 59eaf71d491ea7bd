-- Applies a batch of ops, each exactly as the Ledger of divider-core does. ARGV[3] is the batch, an array of arrays.

local ops = cmsgpack.unpack(ARGV[3])

-- What is answered for an op: a code, and for some codes a number.
local DONE, UNCHANGED, IS_AFFINITY, IS_GRANTED = 0, 1, 2, 3
local UNKNOWN_KEY, STALE_TOKEN, SESSION_ENDED, NOT_TAKING, NO_ROOM, NOT_FREE, NOT_QUARANTINED, NOT_STOPPING, OLD_TERM,
  STILL_BEATING, HOLDING, OUT_OF_RANGE, LATE, TOO_OLD, SUPERSEDED = 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24
-- What a declaration does where the key is there already.
local AGAIN, ONCE, REFRESH = 0, 1, 3
local SENDER = 26
local MAX_AFFINITY, MAX_COUNT = 2147483647, 4294967295
-- What a key of a living session, or one without, is in the answer of `standing`.
local FREE, OWNED, ASIDE = 0, 1, 2

-- Reads the views of all keys that the batch names at once. A key is the second field of every op that has one.
do
  local names, asked = {}, {}
  for _, op in ipairs(ops) do
    local code = op[1]
    if (code <= 3 or (code >= 10 and code <= 16) or code == 18 or (code >= 21 and code <= 23)) and not asked[op[2]] then
      asked[op[2]] = true
      names[#names + 1] = op[2]
    end
  end
  for i = 1, #names, 2000 do
    local last = math.min(i + 1999, #names)
    local raw = redis.call('HMGET', VIEWS, unpack(names, i, last))
    for at = i, last do
      local packed = raw[at - i + 1]
      views[names[at]] = packed and cmsgpack.unpack(packed)
    end
  end
end

-- False where it should be there and is not.
local function blob(key, v, length, hash, dirty)
  if v[length] == 0 then
    return ''
  end
  return dirty[key] or redis.call('HGET', hash, key)
end

local function payload(key, v)
  return blob(key, v, PAYLOAD_LEN, PAYLOADS, dirty_payloads)
end

local function rare(v)
  return v[RARE] == 0 and PLAIN or v[RARE]
end

-- Sets a field of what few keys have.
local function set_rare(v, field, value)
  local r = v[RARE]
  if r == 0 then
    if value == PLAIN[field] then
      return
    end
    r = { unpack(PLAIN) }
    v[RARE] = r
  end
  r[field] = value
end

-- Whether a record has none of it any more.
local function is_plain(r)
  for field = 1, WHY_LEN do
    if r[field] ~= PLAIN[field] then
      return false
    end
  end
  return true
end

local function changed(key, v)
  if v[RARE] ~= 0 and is_plain(v[RARE]) then
    v[RARE] = 0
  end
  local packed = pack(v)
  dirty_views[key] = packed
  change(pack(KEY, key, packed))
  return packed
end

-- Keeps the sessions' and the group's counts right when a key's state changes.
local function recount(key, before, owner_before, after, owner_after)
  if before >= DEADLY then
    dirty_quarantined[key] = false
  end
  if after and after >= DEADLY then
    dirty_quarantined[key] = true
  end
  local moved = owner_before ~= owner_after
  local s = owner_before ~= '' and session(owner_before)
  if s then
    dirty_sessions[owner_before] = true
    if before ~= ASSIGNED then
      s[STOPS] = s[STOPS] - 1
    end
    if moved then
      s[HOLDS] = s[HOLDS] - 1
    end
  end
  if moved and owner_before ~= '' then
    dirty_held[owner_before .. key] = false
  end
  s = owner_after ~= '' and session(owner_after)
  if s then
    dirty_sessions[owner_after] = true
    if after ~= ASSIGNED then
      s[STOPS] = s[STOPS] + 1
    end
    if moved then
      s[HOLDS] = s[HOLDS] + 1
      dirty_held[owner_after .. key] = true
    end
  end
end

local function set_state(key, v, state, owner, owner_token)
  local before, owner_before = v[STATE], v[OWNER]
  v[STATE], v[OWNER], v[TOKEN] = state, owner, owner_token
  recount(key, before, owner_before, state, owner)
  local packed = changed(key, v)
  if owner_before ~= '' and owner_before ~= owner then
    forget_if_empty(owner_before)
  end
  return packed
end

local function delete(key, v)
  views[key] = false
  dirty_views[key] = false
  if v[PAYLOAD_LEN] > 0 then
    dirty_payloads[key] = false
  end
  if v[CHECKPOINT_LEN] > 0 then
    dirty_checkpoints[key] = false
  end
  if rare(v)[WHY_LEN] > 0 then
    dirty_whys[key] = false
  end
  recount(key, v[STATE], v[OWNER], nil, '')
  change(pack(KEY_GONE, key))
  if v[OWNER] ~= '' then
    forget_if_empty(v[OWNER])
  end
end

-- Where a key stands once ended owners are taken for none. The second value is, for a free key in the name of an ended
-- session, that session.
local function standing(v)
  local state = v[STATE]
  if state == PENDING then
    return FREE
  elseif state >= DEADLY then
    return ASIDE
  end
  local s = session(v[OWNER])
  if not s then
    return FREE
  elseif s[ENDED] < 0 then
    return OWNED
  end
  return FREE, s
end

-- The view, where the living session owns the key under the token; otherwise nil and why not.
local function owned(id, key, held_token)
  if not alive(id) then
    return nil, SESSION_ENDED
  end
  local v = views[key]
  if not v then
    return nil, UNKNOWN_KEY
  end
  if standing(v) == OWNED and v[OWNER] == id and v[TOKEN] == held_token then
    return v
  end
  return nil, STALE_TOKEN
end

-- What is held against the key. Nothing, where nothing is said.
local function set_deaths(v, deaths, alone, death)
  set_rare(v, DEATHS, deaths or 0)
  set_rare(v, ALONE, alone or 0)
  set_rare(v, DEATH, death or 0)
end

-- Writes down what the end of the last ownership says, where it ended with its session.
local function settle(v, s)
  if not s then
    return
  end
  local r, held, blame = rare(v), v[TOKEN], s[BLAME]
  local alone = blame == ONLY and s[BLAMED] == held
  if held < s[ENDED] then
    set_deaths(v)
  elseif alone or blame == YOUNG or (blame == SUSPECTS and r[DEATHS] >= s[BLAMED]) then
    set_deaths(v, math.min(r[DEATHS] + 1, MAX_COUNT), math.min(r[ALONE] + (alone and 1 or 0), MAX_COUNT), held)
  end
end

-- What went wrong, as far as the group's format keeps it.
local function set_why(key, v, why)
  if format < KEEPS_WHY then
    why = ''
  end
  if #why > 0 then
    dirty_whys[key] = why
  elseif rare(v)[WHY_LEN] > 0 then
    dirty_whys[key] = false
  end
  set_rare(v, WHY_LEN, #why)
end

-- Whatever was held against the work of before is not held against what was declared since.
local function forgive(key, v)
  if v[RARE] ~= 0 then
    set_deaths(v)
    set_rare(v, FAILURES, 0)
    set_rare(v, RETRY_AT, 0)
    set_why(key, v, '')
  end
end

-- Frees a key, with a clean history.
local function free(key, v)
  forgive(key, v)
  set_state(key, v, PENDING, '', 0)
end

-- The owner is done with the key: for good, or, where it says why, until a person looks at it.
local function finish(op, why)
  local key = op[2]
  local v, refusal = owned(op[3], key, op[4])
  if not v then
    return refusal
  elseif v[STATE] == REMOVING then
    delete(key, v)
  elseif v[GENERATION] ~= op[5] then
    -- It was declared again, and that runs after this, from its beginning.
    if v[CHECKPOINT_LEN] > 0 then
      dirty_checkpoints[key], v[CHECKPOINT_LEN] = false, 0
    end
    v[ATTEMPTS] = 0
    free(key, v)
  elseif not why then
    delete(key, v)
  else
    set_why(key, v, why)
    set_state(key, v, FAILED, '', 0)
  end
  return DONE
end

local function stop(id, key, held_token, reason)
  notify(id, pack(STOP, key, held_token, reason))
end

-- Sets the affinity to what `wanted` makes of it, once for each number.
local function change_affinity(op, wanted)
  local id, number = op[2], op[3]
  local s = alive(id)
  if not s then
    return SESSION_ENDED
  elseif number <= s[ALTERED] then
    return IS_AFFINITY, s[AFFINITY]
  end
  local before = s[AFFINITY]
  local affinity = wanted(before, op[4])
  if affinity < 0 or affinity > MAX_AFFINITY then
    return OUT_OF_RANGE, before
  end
  s[ALTERED], s[AFFINITY] = number, affinity
  dirty_sessions[id] = true
  if affinity ~= before then
    session_changed(id, s)
  end
  return IS_AFFINITY, affinity
end

local function set_flag(id, flag)
  local s = alive(id)
  if not s then
    return SESSION_ENDED
  elseif s[flag] == 1 then
    return UNCHANGED
  end
  s[flag] = 1
  session_changed(id, s)
  return DONE
end

local function set_payload(key, v, bytes)
  if #bytes > 0 then
    dirty_payloads[key] = bytes
  elseif v[PAYLOAD_LEN] > 0 then
    dirty_payloads[key] = false
  end
  v[PAYLOAD_LEN] = #bytes
end

local apply = {
  -- Add
  [1] = function(op)
    local key, weight, priority, not_before, bytes, how = op[2], op[3], op[4], op[5], op[6], op[7]
    local v = views[key]
    if not v then
      if how == REFRESH then
        return UNCHANGED
      end
      declared = declared + 1
      meta_dirty.declared = declared
      v = { weight, priority, declared, 1, 0, PENDING, '', 0, 0, 0, 0 }
      views[key] = v
      set_rare(v, NOT_BEFORE, not_before)
      set_payload(key, v, bytes)
      changed(key, v)
      return DONE
    end
    local state = v[STATE]
    -- What is being removed is as good as gone.
    if how == ONCE and state ~= REMOVING then
      return UNCHANGED
    end
    local same_payload = v[PAYLOAD_LEN] == #bytes and payload(key, v) == bytes
    -- Work that nobody has begun runs after this in any case.
    local raised = not same_payload or state == REMOVING or (state ~= PENDING and how == AGAIN)
    if not raised and v[WEIGHT] == weight and v[PRIORITY] == priority and rare(v)[NOT_BEFORE] == not_before then
      return UNCHANGED
    end
    if raised then
      v[GENERATION] = math.min(v[GENERATION] + 1, MAX_COUNT)
    end
    v[WEIGHT], v[PRIORITY] = weight, priority
    set_rare(v, NOT_BEFORE, not_before)
    if not same_payload then
      set_payload(key, v, bytes)
      forgive(key, v)
    end
    if state == REMOVING then
      -- The stop has been asked for and goes on; but the key stays.
      v[STATE] = STOPPING
    end
    if raised and state >= DEADLY then
      free(key, v)
    else
      changed(key, v)
    end
    return DONE
  end,
  -- Remove
  [2] = function(op)
    local key = op[2]
    local v = views[key]
    if not v then
      return UNKNOWN_KEY
    end
    if standing(v) ~= OWNED then
      delete(key, v)
      return DONE
    end
    local before = v[STATE]
    if before == REMOVING then
      return UNCHANGED
    end
    set_state(key, v, REMOVING, v[OWNER], v[TOKEN])
    if before == ASSIGNED then
      stop(v[OWNER], key, v[TOKEN], REMOVING)
    end
    return DONE
  end,
  -- Retry
  [3] = function(op)
    local v = views[op[2]]
    if not v then
      return UNKNOWN_KEY
    elseif v[STATE] < DEADLY then
      return NOT_QUARANTINED
    end
    free(op[2], v)
    return DONE
  end,
  -- Rebalance
  [4] = function()
    local outcome = UNCHANGED
    for _, id in ipairs(all_sessions()) do
      local s = sessions[id]
      if s[ENDED] < 0 and s[SETTLED] == 1 then
        s[SETTLED] = 0
        session_changed(id, s)
        outcome = DONE
      end
    end
    return outcome
  end,
  -- Join
  [5] = function(op)
    local id = op[2]
    local s = session(id)
    if s then
      return s[ENDED] < 0 and UNCHANGED or SESSION_ENDED
    end
    if op[7] < ended or op[7] > revision then
      return LATE
    elseif op[8] < format then
      return TOO_OLD, format
    elseif format == 0 then
      format = op[8]
      group_changed()
    end
    s = { op[3], op[4], op[5], op[6], 0, 0, op[8], token, -1, NOBODY, 0, 0, 0, 0, 0, 0 }
    sessions[id] = s
    -- Who is in the beats lives: a renewal looks nowhere else.
    dirty_beats[id] = 0
    session_changed(id, s)
    return DONE
  end,
  -- SetAffinity
  [6] = function(op)
    return change_affinity(op, function(_, affinity) return affinity end)
  end,
  -- AlterAffinity
  [7] = function(op)
    return change_affinity(op, function(before, delta) return before + delta end)
  end,
  -- Drain
  [8] = function(op)
    return set_flag(op[2], DRAINING)
  end,
  -- End
  [9] = function(op)
    local s = alive(op[2])
    if not s then
      return SESSION_ENDED
    end
    -- Its node acts no more but lives: its keys are not to blame.
    end_session(op[2], s, 0, NOBODY, 0)
    return DONE
  end,
  -- Confirm
  [10] = function(op)
    local key, id = op[2], op[3]
    local v, refusal = owned(id, key, op[4])
    if not v then
      return refusal
    elseif v[STATE] == REMOVING then
      delete(key, v)
      return DONE
    end
    -- How long it ran is not known here, so this says nothing about what deaths there were.
    if op[5] == 0 then
      v[ATTEMPTS] = math.max(v[ATTEMPTS] - 1, 0)
    end
    if v[STATE] == ASSIGNED then
      -- The owner let go unasked, so it should not get the key right back.
      set_rare(v, AVOID, id)
    end
    set_state(key, v, PENDING, '', 0)
    return DONE
  end,
  -- GiveUp
  [11] = function(op)
    local key, id = op[2], op[3]
    local v, refusal = owned(id, key, op[4])
    if not v then
      return refusal
    elseif v[STATE] ~= ASSIGNED then
      return UNCHANGED
    end
    set_rare(v, AVOID, id)
    if v[GENERATION] == op[5] then
      set_rare(v, RETRY_AT, op[6] > 0 and time + op[6] or 0)
      set_rare(v, FAILURES, op[7])
      set_why(key, v, op[8])
    else
      forgive(key, v)
    end
    set_state(key, v, STOPPING, id, op[4])
    stop(id, key, op[4], STOPPING)
    return DONE
  end,
  -- Complete
  [12] = function(op)
    return finish(op)
  end,
  -- Checkpoint
  [13] = function(op)
    local key, bytes = op[2], op[5]
    local v, refusal = owned(op[3], key, op[4])
    if not v then
      return refusal
    end
    -- Nobody but the next owner reads it, and it gets it with its grant: so this is no change of the group.
    if #bytes > 0 then
      dirty_checkpoints[key] = bytes
    elseif v[CHECKPOINT_LEN] > 0 then
      dirty_checkpoints[key] = false
    end
    if v[CHECKPOINT_LEN] ~= #bytes then
      v[CHECKPOINT_LEN] = #bytes
      dirty_views[key] = pack(v)
    end
    return DONE
  end,
  -- Assign
  [14] = function(op)
    local key, id = op[2], op[3]
    if op[4] ~= term then
      return OLD_TERM
    elseif hold then
      return HOLDING
    end
    local v = views[key]
    if not v then
      return UNKNOWN_KEY
    end
    local stands, last = standing(v)
    if stands ~= FREE then
      return NOT_FREE
    end
    local s = alive(id)
    if not s then
      return SESSION_ENDED
    elseif s[DRAINING] == 1 or s[AFFINITY] == 0 then
      return NOT_TAKING
    elseif s[CAPACITY] >= 0 and s[HOLDS] >= s[CAPACITY] then
      return NO_ROOM
    end
    token = math.max(token, floor, now - 1) + 1
    meta_dirty.token = token
    v[ATTEMPTS] = math.min(v[ATTEMPTS] + 1, MAX_COUNT)
    set_rare(v, AVOID, '')
    -- The pause is over, or the leader would not give it out.
    set_rare(v, RETRY_AT, 0)
    settle(v, last)
    local packed = set_state(key, v, ASSIGNED, id, token)
    local to, bytes, checkpoint = notices[id], false, false
    -- Where the message will not fit the blobs need not be read.
    if (to and to.size or 0) + v[PAYLOAD_LEN] + v[CHECKPOINT_LEN] <= LARGEST_HINT then
      bytes, checkpoint = payload(key, v), blob(key, v, CHECKPOINT_LEN, CHECKPOINTS, dirty_checkpoints)
    end
    if bytes and checkpoint then
      notify(id, pack(GRANTED, key, packed, bytes, checkpoint))
    else
      -- Its owner reads what it holds, and hears there what is wrong; the length alone makes the message too large.
      notify(id, '')
      notices[id].size = notices[id].size + LARGEST_HINT + 1
    end
    return IS_GRANTED, token
  end,
  -- Revoke
  [15] = function(op)
    local key = op[2]
    if op[4] ~= term then
      return OLD_TERM
    end
    local v = views[key]
    if not v then
      return UNKNOWN_KEY
    elseif standing(v) ~= OWNED or v[TOKEN] ~= op[3] then
      return STALE_TOKEN
    elseif v[STATE] ~= ASSIGNED then
      return UNCHANGED
    end
    set_state(key, v, STOPPING, v[OWNER], v[TOKEN])
    stop(v[OWNER], key, v[TOKEN], STOPPING)
    return DONE
  end,
  -- Force
  [16] = function(op)
    local key = op[2]
    if op[4] ~= term then
      return OLD_TERM
    end
    local v = views[key]
    if not v then
      return UNKNOWN_KEY
    elseif v[TOKEN] ~= op[3] or standing(v) ~= OWNED then
      if v[TOKEN] == op[3] and v[STATE] == REMOVING then
        -- Its owner has ended, so nobody is left to confirm.
        delete(key, v)
        return DONE
      end
      return STALE_TOKEN
    elseif v[STATE] == ASSIGNED then
      return NOT_STOPPING
    end
    local owner = v[OWNER]
    if v[STATE] == REMOVING then
      delete(key, v)
    else
      set_state(key, v, PENDING, '', 0)
    end
    notify(owner, pack(TAKEN, key, op[3]))
    return DONE
  end,
  -- Expire
  [17] = function(op)
    local id = op[2]
    if op[4] ~= term then
      return OLD_TERM
    end
    local s = alive(id)
    if not s then
      return SESSION_ENDED
    end
    local beat = dirty_beats[id] or redis.call('HGET', BEATS, id) or 0
    if tonumber(beat) ~= op[3] then
      return STILL_BEATING
    end
    end_session(id, s, op[5], op[6], op[7])
    return DONE
  end,
  -- Quarantine
  [18] = function(op)
    local key = op[2]
    if op[3] ~= term then
      return OLD_TERM
    end
    local v = views[key]
    if not v then
      return UNKNOWN_KEY
    end
    local stands, last = standing(v)
    if stands ~= FREE then
      return NOT_FREE
    end
    settle(v, last)
    set_state(key, v, DEADLY, '', 0)
    return DONE
  end,
  -- Settle
  [19] = function(op)
    if op[3] ~= term then
      return OLD_TERM
    end
    return set_flag(op[2], SETTLED)
  end,
  -- ResumeGrants
  [20] = function(op)
    if op[2] ~= term then
      return OLD_TERM
    elseif not hold then
      return UNCHANGED
    end
    hold = false
    group_changed()
    return DONE
  end,
  -- SetAside
  [21] = function(op)
    return finish(op, op[6])
  end,
  -- Clear
  [22] = function(op)
    local key, blames_only = op[2], op[4] == 1
    if op[3] ~= term then
      return OLD_TERM
    end
    local v = views[key]
    if not v then
      return UNKNOWN_KEY
    end
    local r = rare(v)
    local held = r[ALONE] > 0 or (not blames_only and (r[DEATHS] > 0 or r[DEATH] > 0))
    if not held or v[STATE] >= DEADLY then
      return UNCHANGED
    elseif blames_only then
      set_rare(v, ALONE, 0)
    else
      set_deaths(v)
    end
    changed(key, v)
    return DONE
  end,
  -- Absolve
  [23] = function(op)
    local key, held = op[2], op[3]
    local v = views[key]
    if not v then
      return UNKNOWN_KEY
    end
    local state, r = v[STATE], rare(v)
    if v[OWNER] ~= '' and v[TOKEN] == held and state ~= REMOVING and standing(v) == FREE then
      -- Not counted yet: the key is let go before it can be.
      set_state(key, v, PENDING, '', 0)
      return DONE
    elseif r[DEATHS] == 0 or r[DEATH] ~= held then
      return UNCHANGED
    end
    set_deaths(v, r[DEATHS] - 1, math.max(r[ALONE] - 1, 0))
    set_state(key, v, state == DEADLY and PENDING or state, v[OWNER], v[TOKEN])
    return DONE
  end,
  -- Advance
  [24] = function(op)
    if op[2] ~= term then
      return OLD_TERM
    elseif op[3] == 0 then
      return UNCHANGED
    end
    time = time + op[3]
    group_changed()
    return DONE
  end,
  -- Step
  [25] = function(op)
    local wanted = op[3]
    -- 0 is an operator's word.
    if op[2] ~= 0 and op[2] ~= term then
      return OLD_TERM
    end
    for _, id in ipairs(all_sessions()) do
      local s = sessions[id]
      if s[ENDED] < 0 and s[READS] < wanted then
        return TOO_OLD, wanted
      end
    end
    if wanted <= format then
      return UNCHANGED
    end
    format = wanted
    group_changed()
    return DONE
  end,
  -- Sender
  [SENDER] = function(op)
    local id, serial = op[2], op[3]
    local s = alive(id)
    if not s then
      return SESSION_ENDED
    elseif serial <= s[SERIAL] then
      return SUPERSEDED
    end
    s[SERIAL] = serial
    dirty_sessions[id] = true
    return UNCHANGED
  end,
}

local answer, barred = {}, nil
for i, op in ipairs(ops) do
  local outcome, value = barred, 0
  if not barred then
    outcome, value = apply[op[1]](op)
    -- A copy says nothing more.
    if op[1] == SENDER and outcome ~= UNCHANGED then
      barred = outcome
    end
  end
  answer[2 * i - 1], answer[2 * i] = outcome, value or 0
end
commit()
return { revision, pack(answer) }
