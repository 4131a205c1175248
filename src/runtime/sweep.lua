-- Removes those of some users that carry another generation than the copy: the end of a rebuild.
--
-- KEYS  meta, top, then r, w and s of each user
-- ARGV  epoch, generation, then the user_key of each user
-- Gives the number of users removed, or -1 when the copy is no longer the caller's.

local meta, top = KEYS[1], KEYS[2]
local epoch, generation = ARGV[1], ARGV[2]

local stored = redis.call('HMGET', meta, 'epoch', 'generation')
if stored[1] ~= epoch or stored[2] ~= generation then return -1 end

local removed = 0
for user = 1, #ARGV - 2 do
  local key = 3 * user
  if redis.call('HGET', KEYS[key + 2], 'generation') ~= generation then
    redis.call('DEL', KEYS[key], KEYS[key + 1], KEYS[key + 2])
    redis.call('ZREM', top, ARGV[user + 2])
    removed = removed + 1
  end
end
return removed
