-- Counts. ARGV: the queues. Five values each: ready, delayed, running, paused, since when the first in line is due (ms, or -1).
local out = {}
for i, queue in ipairs(ARGV) do
  local d = p .. 'd:' .. queue
  local delayed = call('ZCOUNT', d, '(' .. now, '+inf')
  local ready = call('ZCARD', d) - delayed
  local since = -1
  for _, priority in ipairs(call('ZRANGE', p .. 'lv:' .. queue, 0, -1, 'REV')) do
    local line = priority .. ':' .. queue
    ready = ready + call('LLEN', p .. 'l:' .. line) + call('ZCARD', p .. 'b:' .. line) - call('SCARD', p .. 'x:' .. line)
    if since < 0 then
      local id = call('ZRANGE', p .. 'b:' .. line, 0, 0)[1] or call('LINDEX', p .. 'l:' .. line, 0)
      local h = id and call('SISMEMBER', p .. 'x:' .. line, id) == 0 and head(id)
      if h then since = state_of(call('HGET', p .. 'h', id), h).at end
    end
  end
  local o = 5 * i - 5
  out[o + 1], out[o + 2], out[o + 3] = ready, delayed, tonumber(call('HGET', p .. 'rn', queue) or 0)
  out[o + 4], out[o + 5] = call('SISMEMBER', p .. 'paused', queue), since < 0 and -1 or math.max(0, now - since)
end
return out
