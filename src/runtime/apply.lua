-- Writes one chunk of users to the copy of one partition. Every value is absolute, so a chunk may be applied again.
--
-- KEYS  meta, top, then r, w and s of each user
-- ARGV  epoch, generation, expected_applied, last, cluster_id, format, rebuilding,
--       applied, changelog_offset, applied_at, users,
--       then of each user: user_key, commit_no, top ('' keeps it), and three lists (score, windows, segments), each
--       as the number of pairs and the pairs
-- Gives {0, applied before}, {1, epoch of the one who fences} or {2, 0}: the copy lost data.

local PAIRS_MAX = 1000 -- unpack has a limit of its own at about 8,000 values

local at = 0
local function take()
  at = at + 1
  return ARGV[at]
end

-- Sets the fields of a list, after the given ones.
local function set(key, fields)
  for _ = 1, tonumber(take()) do
    fields[#fields + 1] = take()
    fields[#fields + 1] = take()
    if #fields >= 2 * PAIRS_MAX then
      redis.call('HSET', key, unpack(fields))
      fields = {}
    end
  end
  if #fields > 0 then redis.call('HSET', key, unpack(fields)) end
end

-- Makes a hash hold a list, after the given fields, and nothing else. Mostly only values change, so nothing is deleted
-- unless a field went.
local function put(key, length, first)
  local start = at
  set(key, { unpack(first) })
  if redis.call('HLEN', key) ~= length + #first / 2 then
    redis.call('DEL', key)
    at = start
    set(key, { unpack(first) })
  end
end

-- Passes a list over and gives its length.
local function skip()
  local pairs = tonumber(take())
  at = at + 2 * pairs
  return pairs
end

-- Whether a board must show it: 5 points, or another level.
local BOUNDS = { 20000, 40000, 70000, 90000 }
local function moved(before, now)
  if math.abs(now - before) >= 5000 then return true end
  for _, bound in ipairs(BOUNDS) do
    if (before >= bound) ~= (now >= bound) then return true end
  end
  return false
end

local meta, top = KEYS[1], KEYS[2]
local epoch, generation, expected, last = take(), take(), tonumber(take()), take() == '1'
local cluster_id, format, rebuilding = take(), take(), take()
local applied, changelog_offset, applied_at, users = take(), take(), take(), take()

local stored = redis.call('HMGET', meta, 'epoch', 'generation', 'cluster_id', 'applied')
local same_cluster = stored[3] == cluster_id
local same_copy = same_cluster and stored[2] == generation

-- An epoch counts within its cluster: a copy of another environment fences nobody.
if same_cluster and tonumber(stored[1]) > tonumber(epoch) then return { 1, tonumber(stored[1]) } end
if expected >= 0 and not (same_copy and tonumber(stored[4]) >= expected) then return { 2, 0 } end

redis.call('HSET', meta, 'epoch', epoch, 'generation', generation, 'cluster_id', cluster_id, 'format', format,
  'rebuilding', rebuilding)
if last then
  redis.call('HSET', meta, 'applied', applied, 'changelog_offset', changelog_offset, 'applied_at', applied_at,
    'users', users)
elseif not same_copy then
  redis.call('HSET', meta, 'applied', 0, 'changelog_offset', 0, 'applied_at', 0, 'users', 0)
end

for key = 3, #KEYS, 3 do
  local r, w, s = KEYS[key], KEYS[key + 1], KEYS[key + 2]
  local user_key, commit_no, score = take(), take(), take()
  local known = redis.call('HMGET', s, 'commit_no', 'generation', 'top', 'windows')
  local same = known[2] == generation
  local start = at
  local score_fields, windows, segments = skip(), skip(), skip()
  if same and tonumber(known[1]) >= tonumber(commit_no) then
    -- The same or a later state of this user is there already.
  elseif score_fields == 0 and segments == 0 then
    redis.call('DEL', r, w, s)
    redis.call('ZREM', top, user_key)
  else
    at = start
    if not same then redis.call('DEL', r, w, s) end
    put(r, score_fields, {})
    if windows > 0 or (same and known[4] ~= '0') then put(w, windows, {}) else skip() end
    -- Every user stands in top, which is also how the users of a partition are found; small moves are left out.
    local shown = same and known[3] or nil
    if shown == nil or (score ~= '' and moved(tonumber(shown), tonumber(score))) then
      shown = score == '' and '0' or score
      redis.call('ZADD', top, shown, user_key)
    end
    put(s, segments, { 'commit_no', commit_no, 'generation', generation, 'top', shown, 'windows', windows })
  end
end

return { 0, same_copy and tonumber(stored[4]) or 0 }
