-- Raises a session's beat. ARGV: session.
--
-- The lineage is compared here too, and not only where something is written: a session of a past that the store may have
-- forgotten in part must not get one more lease out of it. Here it is only refused; the next call that writes ends it.
-- Whoever is in the beats lives, since a session enters them when it joins and leaves them when it ends.
local written = redis.call('HGET', META, 'lineage')
if written ~= current_lineage(written) or redis.call('HEXISTS', BEATS, ARGV[1]) == 0 then
  return -1
end
return redis.call('HINCRBY', BEATS, ARGV[1], 1)
