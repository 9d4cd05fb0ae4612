#!lua flags=allow-oom
-- Ends runs. ARGV: how many; one letter each: S D C (final) R (retry) L (release), lower case with a result; '' or one '1' or '0' each
-- for crashed; the fence of all, or ''; the time to live of all results (ms), or ''; '1' if the server has MSETEX; how many delays; how
-- many notes; the ids, the fences if they differ, the delays (ms), the notes, the results, their times to live if they differ.
-- The number of all if all are done; else a letter each: o done, d was before, s stale, n not found.
-- It may run while memory is full (allow-oom): a task that cannot be settled would only run again.
local n, ops, crashed = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local one_fence, one_ttl = tonumber(ARGV[4]), tonumber(ARGV[5])
local delays, notes = tonumber(ARGV[7]), tonumber(ARGV[8])
local at_ids = 9
local at_fences = at_ids + n
local at_delays = at_fences + (one_fence and 0 or n)
local at_notes = at_delays + delays
local at_results = at_notes + notes
local FINAL = {S = 'S', D = 'D', C = 'C', s = 'S', d = 'D', c = 'C'}

local texts = call('HMGET', p .. 'h', unpack(ARGV, at_ids, at_ids + n - 1))
local parsed, made, latest = {}, {}, {}
local changed, k = {}, 0
local closed, left = {}, {}
local answers, all_done = {}, true
local result, results = 0, 0
for i = 1, n do if string.byte(ops, i) >= 97 then results = results + 1 end end
local at_ttls = at_results + results
local stored, stamps = {}, {}
local any_notes = notes > 0 or call('EXISTS', p .. 'e') == 1

for i = 1, n do
  local id, fence = ARGV[at_ids + i - 1], one_fence or tonumber(ARGV[at_fences + i - 1])
  local op = string.sub(ops, i, i)
  local has_result = string.byte(op) >= 97
  if has_result then result = result + 1 end
  local text = latest[id] or texts[i]
  local r = text and parsed[text]
  if text and not r then
    r = parse(text)
    parsed[text] = r
  end
  if not r then
    answers[i] = call('EXISTS', p .. 't:' .. id) == 1 and 's' or 'n'
    all_done = false
  elseif r.s ~= 'R' or r.fence ~= fence then
    answers[i] = r.settled == fence and 'd' or 's'
    all_done = false
  else
    answers[i] = 'o'
    local crashes = r.crashes + (crashed ~= '' and tonumber(string.sub(crashed, i, i)) or 0)
    local flags = bit.band(r.flags, bit.bnot(LOST))
    local attempt = r.attempt - (op == 'L' and 1 or 0)
    local final = FINAL[op]
    if not final and bit.band(flags, CANCEL) ~= 0 then final = 'C' end
    local new
    if final then
      local kind = text .. op .. crashes
      new = made[kind]
      if not new then
        new = record(final, fence, attempt, crashes, now, flags, fence)
        made[kind] = new
      end
      if bit.band(flags, UNIQUE) ~= 0 then
        local h = head(id)
        if h then free_key(id, h) end
      end
    else
      local h = head(id)
      local due = now + (delays > 0 and tonumber(ARGV[at_delays + i - 1]) or 0)
      new = record('P', fence, attempt, crashes, due, flags, fence)
      if h then join_line(id, h, {at = due, flags = flags}) end
    end
    latest[id] = new
    changed[k + 1], changed[k + 2] = id, new
    k = k + 2
    closed[fence] = (closed[fence] or 0) + 1
    left[r.queue] = (left[r.queue] or 0) + 1
    if any_notes then
      local note = notes > 0 and ARGV[at_notes + i - 1] or ''
      if note ~= '' then call('HSET', p .. 'e', id, note) else call('HDEL', p .. 'e', id) end
    end
    if has_result and final then
      local ttl = one_ttl or tonumber(ARGV[at_ttls + result - 1])
      local kind = final .. fence .. ' ' .. ttl
      local stamp = stamps[kind]
      if not stamp then
        stamp = struct.pack('>ddd', now, now + ttl, fence) .. final .. '1'
        stamps[kind] = stamp
      end
      stored[#stored + 1] = {id, p .. 'r:' .. id, stamp .. ARGV[at_results + result - 1], ttl, fence}
    end
  end
end

if k > 0 then call('HSET', p .. 'h', unpack(changed)) end
for fence, count in pairs(closed) do
  if call('HINCRBY', p .. 'c:' .. fence, 'n', -count) <= 0 then close_claim(fence) end
end
for queue, count in pairs(left) do call('HINCRBY', p .. 'rn', queue, -count) end

if #stored > 0 then
  local keys, ids, values, pairs_, m = {}, {}, {}, {}, 0
  for i, s in ipairs(stored) do keys[i], ids[i], values[i] = s[2], s[1], s[3] end
  local any_old = call('EXISTS', unpack(keys)) > 0
  local together = one_ttl and ARGV[6] == '1'
  for i, s in ipairs(stored) do
    local newer = false
    if any_old then
      local old = call('GETRANGE', s[2], 16, 23)
      newer = old ~= '' and struct.unpack('>d', old) > s[5]
    end
    if newer then
      values[i] = '' -- not ours is what there is to tell
    else
      if together then
        pairs_[m + 1], pairs_[m + 2] = s[2], s[3]
        m = m + 2
      else
        call('SET', s[2], s[3], 'PX', s[4])
      end
    end
  end
  if m > 0 then
    pairs_[m + 1], pairs_[m + 2] = 'PX', one_ttl
    local done = redis.pcall('MSETEX', m / 2, unpack(pairs_))
    if type(done) == 'table' and done.err then -- an ACL rule, or an older server took over: nothing may end half done
      for i = 1, m, 2 do call('SET', pairs_[i], pairs_[i + 1], 'PX', one_ttl) end
    end
  end
  notify(ids, values)
end
if all_done then return n end
return table.concat(answers)
