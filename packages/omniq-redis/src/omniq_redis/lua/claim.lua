-- Hands out tasks. ARGV: how many, lease (ms), worker, claim id, queues in order. Nothing: 0. Else the fence, the end of the
-- lease, the envelopes, and (index, attempt, crashes) for those that are not on their first start.
local want, lease, worker, claim_id = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local ids, fresh, taken_from = {}, {}, {}
local odd = {}

local function envelopes(list)
  local keys = {}
  for i = 1, #list do keys[i] = p .. 't:' .. list[i] end
  return call('MGET', unpack(keys))
end

-- A repeated call: what this claim took and is still open, and nothing new.
local old = call('HGET', p .. 'ci', claim_id)
if old then
  local fence = tonumber(old)
  local all = call('LRANGE', p .. 'f:' .. old, 0, -1)
  local records = call('HMGET', p .. 'h', unpack(all))
  for i = 1, #all do
    local r = records[i] and parse(records[i])
    if r and r.s == 'R' and r.fence == fence then
      ids[#ids + 1] = all[i]
      if r.attempt ~= 1 or r.crashes ~= 0 then
        odd[#odd + 1], odd[#odd + 2], odd[#odd + 3] = #ids, r.attempt, r.crashes
      end
    end
  end
  if #ids == 0 then return 0 end
  return {fence, tonumber(call('ZSCORE', p .. 'lease', old) or now), envelopes(ids), odd}
end

-- Moves what fell due from d to b. At most a thousand, so that a script stays short; true: there is more.
local function promote(queue)
  local due = call('ZRANGEBYSCORE', p .. 'd:' .. queue, '-inf', now, 'LIMIT', 0, 1000)
  if #due == 0 then return false end
  local lines = {}
  for _, member in ipairs(due) do
    local priority, seq, id = string.match(member, '^(%-?%d+):(%d+):(.*)$')
    lines[priority] = lines[priority] or {}
    local line = lines[priority]
    line[#line + 1], line[#line + 2] = seq, id
  end
  for priority, members in pairs(lines) do
    call('ZADD', p .. 'b:' .. priority .. ':' .. queue, unpack(members))
    call('ZADD', p .. 'lv:' .. queue, priority, priority)
  end
  call('ZREM', p .. 'd:' .. queue, unpack(due))
  return #due == 1000
end

local function seq_of(id)
  local raw = call('GETRANGE', p .. 't:' .. id, 0, 20)
  if raw == '' then return -1 end -- a purged ghost: let it be popped
  local seq, _, _, index = struct.unpack('>ddBH', raw)
  return seq + index
end

local function without_ghosts(line, list)
  if #list == 0 or call('EXISTS', p .. 'x:' .. line) == 0 then return list end
  local marks, kept, gone = call('SMISMEMBER', p .. 'x:' .. line, unpack(list)), {}, {}
  for i = 1, #list do
    if marks[i] == 1 then gone[#gone + 1] = list[i] else kept[#kept + 1] = list[i] end
  end
  if #gone > 0 then call('SREM', p .. 'x:' .. line, unpack(gone)) end
  return kept
end

-- Takes up to k ids off a line, oldest first: from the returned (named in `back`) and the list. Also how many were looked at.
local function pop(line, k, back)
  local l, b = p .. 'l:' .. line, p .. 'b:' .. line
  local returned = call('ZRANGE', b, 0, k - 1, 'WITHSCORES')
  local count = #returned / 2
  local function from_list(m)
    local list = m > 0 and call('LPOP', l, m) or {}
    return without_ghosts(line, list), #list
  end
  if count == 0 then return from_list(k) end
  local oldest = tonumber(returned[2])
  local last = call('LINDEX', l, k - 1)
  if last and seq_of(last) < oldest then return from_list(k) end
  local out, looked, i = {}, 0, 1
  local first = call('LINDEX', l, 0)
  local first_seq = first and seq_of(first)
  while looked < k and (i <= count or first) do
    looked = looked + 1
    if i <= count and (not first or tonumber(returned[2 * i]) < first_seq) then
      local id = returned[2 * i - 1]
      out[#out + 1], back[id] = id, true
      call('ZREM', b, id)
      i = i + 1
    elseif i > count then
      local rest, more = from_list(k - looked + 1)
      for _, id in ipairs(rest) do out[#out + 1] = id end
      return out, looked + more
    else
      local one = without_ghosts(line, {call('LPOP', l)})
      if one[1] then out[#out + 1] = one[1] end
      first = call('LINDEX', l, 0)
      first_seq = first and seq_of(first)
    end
  end
  return out, looked
end

local any_paused = call('EXISTS', p .. 'paused') == 1
local any_ttl = call('EXISTS', p .. 'ex') == 1

-- Leaves out, and ends, those whose time to live has passed.
local function unexpired(list)
  local ends, kept = call('ZMSCORE', p .. 'ex', unpack(list)), {}
  for i, id in ipairs(list) do
    if ends[i] then call('ZREM', p .. 'ex', id) end
    if ends[i] and tonumber(ends[i]) <= now then
      local h = head(id)
      if h then finish(id, h, state_of(call('HGET', p .. 'h', id), h), 'X') end
    else
      kept[#kept + 1] = id
    end
  end
  return kept
end

local left = want
for q = 5, #ARGV do
  local queue = ARGV[q]
  if left > 0 and not (any_paused and call('SISMEMBER', p .. 'paused', queue) == 1) then
    local more = promote(queue)
    local from = #ids
    for _, priority in ipairs(call('ZRANGE', p .. 'lv:' .. queue, 0, -1, 'REV')) do
      if left == 0 then more = true break end
      local line = priority .. ':' .. queue
      local asked, looked
      repeat
        local list, back = nil, {}
        asked = left
        list, looked = pop(line, asked, back)
        if any_ttl and #list > 0 then list = unexpired(list) end
        for _, id in ipairs(list) do
          ids[#ids + 1], fresh[#ids + 1] = id, not back[id]
        end
        left = left - #list
      until left == 0 or looked < asked
      if left > 0 then
        call('ZREM', p .. 'lv:' .. queue, priority)
      elseif call('EXISTS', p .. 'l:' .. line, p .. 'b:' .. line) > 0 then
        more = true
      end
    end
    if more then call('ZADD', p .. 'w:' .. queue, 0, 0) else call('DEL', p .. 'w:' .. queue) end
    if #ids > from then taken_from[#taken_from + 1] = {queue, from + 1, #ids} end
  end
end
if #ids == 0 then return 0 end

local fence = next_fence()
local bodies = envelopes(ids)
local changed, k = {}, 0
for _, part in ipairs(taken_from) do
  local queue = part[1]
  local plain = record('R', fence, 1, 0, 0, 0, 0, queue)
  local unique = record('R', fence, 1, 0, 0, UNIQUE, 0, queue)
  for i = part[2], part[3] do
    local id, text = ids[i], nil
    if fresh[i] then
      text = string.byte(bodies[i] or '', 17) == UNIQUE and unique or plain
    else
      local r = call('HGET', p .. 'h', id)
      if r then
        r = parse(r)
        text = record('R', fence, r.attempt + 1, r.crashes, r.at, r.flags, r.settled, queue)
        if r.attempt ~= 0 or r.crashes ~= 0 then
          odd[#odd + 1], odd[#odd + 2], odd[#odd + 3] = i, r.attempt + 1, r.crashes
        end
      else
        text = string.byte(bodies[i] or '', 17) == UNIQUE and unique or plain
      end
    end
    changed[k + 1], changed[k + 2] = id, text
    k = k + 2
  end
  call('HINCRBY', p .. 'rn', queue, part[3] - part[2] + 1)
end
call('HSET', p .. 'h', unpack(changed))
call('RPUSH', p .. 'f:' .. fence, unpack(ids))
call('HSET', p .. 'c:' .. fence, 'w', worker, 'i', claim_id, 'n', #ids)
call('HSET', p .. 'ci', claim_id, fence)
call('ZADD', p .. 'lease', now + lease, fence)
return {fence, now + lease, bodies, odd}
