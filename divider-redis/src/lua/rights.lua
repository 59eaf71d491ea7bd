-- What the user of this connection may do. Asking does nothing.

-- What all names of the group begin with: the first argument of every script that asks.
local CHANNEL = ARGV[1]

-- The calls that a batch is written with. One that is refused in the middle would leave the half of a batch behind.
local WRITES = {
  { 'HSET', META, '', '' }, { 'HDEL', META, '' }, { 'ZADD', HELD, '0', '' }, { 'ZREM', HELD, '' }, { 'DEL', LOG },
  { 'RPUSH', LOG, '' }, { 'LPOP', LOG }, { 'LLEN', LOG }, { 'LRANGE', LOG, '0', '0' }, { 'HLEN', VIEWS },
  { 'ZCARD', HELD },  { 'PUBLISH', CHANNEL .. ':g', '' }, { 'PUBLISH', CHANNEL .. ':l', '' }, { 'PUBLISH', CHANNEL .. ':s:', '' },
}

-- An error that names the calls which are refused, or nil.
local function refused(...)
  local lacks = {}
  for _, calls in ipairs({ ... }) do
    for _, call in ipairs(calls) do
      if redis.acl_check_cmd and not redis.acl_check_cmd(unpack(call)) then
        lacks[#lacks + 1] = string.lower(call[1]) .. (call[2] and ' on ' .. call[2] or '')
      end
    end
  end
  return #lacks > 0 and redis.error_reply('DIVIDERRIGHTS ' .. table.concat(lacks, ', ')) or nil
end
