-- Records, envelopes and places in line, for the scripts that change tasks one by one.
local CANCEL, UNIQUE, NO_TTL, LOST = 1, 2, 4, 8 -- flags of a record in h

local function parse(text)
  local s, fence, attempt, crashes, at, flags, settled, queue =
    string.match(text, '^(%a) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) ?(.*)$')
  return {s = s, fence = tonumber(fence), attempt = tonumber(attempt), crashes = tonumber(crashes), at = tonumber(at),
          flags = tonumber(flags), settled = tonumber(settled), queue = queue}
end

local function record(s, fence, attempt, crashes, at, flags, settled, queue)
  local text = s .. ' ' .. fence .. ' ' .. attempt .. ' ' .. crashes .. ' ' .. at .. ' ' .. flags .. ' ' .. settled
  return queue and (text .. ' ' .. queue) or text
end

local function write(id, r)
  call('HSET', p .. 'h', id, record(r.s, r.fence, r.attempt, r.crashes, r.at, r.flags, r.settled, r.s == 'R' and r.queue))
end

-- The head of a task's envelope, or nil if there is no such task. Never reads the body.
local function head(id)
  local raw = call('GETRANGE', p .. 't:' .. id, 0, 999)
  if raw == '' then return nil end
  local first, at, flags, index, priority, _, max_crashes, delay, ttl, lq, lu, ln, _, pos =
    struct.unpack('>ddBHhddddHHHH', raw)
  local h = {first = first, seq = first + index, at = at, flags = flags, priority = priority, max_crashes = max_crashes,
             delay = delay, ttl = ttl, queue = string.sub(raw, pos, pos + lq - 1)}
  if flags == UNIQUE then h.unique = string.sub(raw, pos + lq, pos + lq + lu - 1) end
  h.name = string.sub(raw, pos + lq + lu, pos + lq + lu + ln - 1)
  h.line = priority .. ':' .. h.queue
  return h
end

-- The record of a task that exists: what h says, or what its absence there means.
local function state_of(text, h)
  if text then return parse(text) end
  return {s = 'P', fence = 0, attempt = 0, crashes = 0, at = h.at + h.delay, flags = h.flags, settled = 0}
end

local function delayed_member(id, h) return h.priority .. ':' .. h.seq .. ':' .. id end

-- Puts a task that is pending again into its place.
local function join_line(id, h, r)
  if r.at > now then
    call('ZADD', p .. 'd:' .. h.queue, r.at, delayed_member(id, h))
  else
    call('ZADD', p .. 'b:' .. h.line, h.seq, id)
    call('ZADD', p .. 'lv:' .. h.queue, h.priority, h.priority)
  end
  if h.ttl >= 0 and bit.band(r.flags, NO_TTL) == 0 then call('ZADD', p .. 'ex', h.at + h.ttl, id) end
  call('ZADD', p .. 'w:' .. h.queue, 0, 0)
end

-- Takes a pending task out of its place. What stands in the list becomes a ghost there.
local function leave_line(id, h)
  if call('ZREM', p .. 'd:' .. h.queue, delayed_member(id, h)) == 0 and call('ZREM', p .. 'b:' .. h.line, id) == 0 then
    call('SADD', p .. 'x:' .. h.line, id)
  end
  if h.ttl >= 0 then call('ZREM', p .. 'ex', id) end
end

local function free_key(id, h)
  if h.unique and call('HGET', p .. 'u', h.unique) == id then call('HDEL', p .. 'u', h.unique) end
end

-- Makes a task final. Its place, its claim and the counts are the caller's.
local function finish(id, h, r, s)
  r.s, r.at = s, now
  write(id, r)
  free_key(id, h)
end

-- A fence above all before it, also above those that the server has forgotten: after a failover, or a restart from an old snapshot, a mere
-- counter would give a former owner's fence to the next one. Hence the clock, in sixteenths of a millisecond (14 digits until 2168).
local function next_fence()
  local fence = math.max(tonumber(call('GET', p .. 'tok') or 0) + 1, math.floor((clock[1] * 1e6 + clock[2]) / 62.5))
  call('SET', p .. 'tok', fence)
  return fence
end

local function close_claim(claim)
  local claim_id = call('HGET', p .. 'c:' .. claim, 'i')
  if claim_id then call('HDEL', p .. 'ci', claim_id) end
  call('DEL', p .. 'c:' .. claim, p .. 'f:' .. claim)
  call('ZREM', p .. 'lease', claim)
end
