#!lua flags=allow-oom
-- Forgets what finished longer ago than retention, segment by segment. ARGV: retention (ms), about how many. How many; 1 if there is more.
-- A segment is looked at when its first finished task is due, but not oftener than ten times per retention.
local retention, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local pruned, more = 0, 0
for _, segment in ipairs(call('ZRANGEBYSCORE', p .. 'due', '-inf', now, 'LIMIT', 0, limit + 1)) do
  if pruned >= limit then
    more = 1
    break
  end
  local list = p .. 'i:' .. segment
  local ids = call('LRANGE', list, 0, -1)
  local kept, doomed, tasks = {}, {}, {}
  local again = now + retention
  local texts = #ids > 0 and call('HMGET', p .. 'h', unpack(ids)) or {}
  for i, id in ipairs(ids) do
    local s, at = nil, nil
    if texts[i] then s, at = string.match(texts[i], '^([SDCX]) %d+ %d+ %d+ (%d+)') end
    if s then
      local ends = tonumber(at) + retention
      if ends <= now then
        doomed[#doomed + 1], tasks[#tasks + 1] = id, p .. 't:' .. id
      else
        kept[#kept + 1] = id
        again = math.min(again, ends)
      end
    elseif call('EXISTS', p .. 't:' .. id) == 1 then
      kept[#kept + 1] = id
    end
  end
  if #doomed > 0 then
    call('HDEL', p .. 'h', unpack(doomed))
    pruned = pruned + call('UNLINK', unpack(tasks))
    if call('EXISTS', p .. 'e') == 1 then call('HDEL', p .. 'e', unpack(doomed)) end
  end
  if #kept < #ids then
    call('DEL', list)
    if #kept > 0 then call('RPUSH', list, unpack(kept)) end
  end
  if #kept == 0 then
    call('ZREM', p .. 'segs', segment)
    call('ZREM', p .. 'due', segment)
  else
    call('ZADD', p .. 'due', math.max(again, now + math.max(20, math.floor(retention / 10))), segment)
  end
end
return {pruned, more}
