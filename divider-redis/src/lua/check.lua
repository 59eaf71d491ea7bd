-- What the server is, and what it has of the group. Whatever else may be under the group's names is no reason to refuse the
-- server: the calls that come across it say so.

local function info(section)
  return redis.call('INFO', section)
end
local layout, keys = redis.pcall('HGET', META, 'layout'), redis.pcall('HLEN', VIEWS)
return {
  info('server') .. info('memory') .. info('replication'),
  type(layout) == 'string' and layout,
  type(keys) == 'number' and keys or 0,
}
