-- What the server is, what it has of the group, and whether this user may do all that the scripts and the subscriptions
-- do: a right that is missing is to be told now, and not when it is needed. ARGV: channel. Whatever else may be under the
-- group's names is no reason to refuse the server: the calls that come across it say so.

local OTHERS = {
  { 'INFO' }, { 'TIME' }, { 'PING' }, { 'EVALSHA', '0', '0' }, { 'HGET', META, '' }, { 'HMGET', META, '' },
  { 'HINCRBY', BEATS, '', '1' }, { 'HGETALL', SESSIONS }, { 'HVALS', SESSIONS }, { 'HEXISTS', BEATS, '' },
  { 'HSCAN', VIEWS, '0' }, { 'ZRANGEBYLEX', HELD, '-', '+' },
  { 'SUBSCRIBE', CHANNEL .. ':g' }, { 'SUBSCRIBE', CHANNEL .. ':l' }, { 'SUBSCRIBE', CHANNEL .. ':s:' },
}
local lacks = refused(WRITES, OTHERS)
if lacks then
  return lacks
end
local function info(section)
  return redis.call('INFO', section)
end
local layout, keys = redis.pcall('HGET', META, 'layout'), redis.pcall('HLEN', VIEWS)
return {
  info('server') .. info('memory') .. info('replication'),
  type(layout) == 'string' and layout,
  type(keys) == 'number' and keys or 0,
}
