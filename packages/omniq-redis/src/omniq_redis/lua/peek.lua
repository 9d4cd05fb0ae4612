-- Whether a claim may find something. ARGV: the queues. In how many ms: 0 now, -1 not before something is enqueued.
local soonest = -1
for _, queue in ipairs(ARGV) do
  if call('SISMEMBER', p .. 'paused', queue) == 0 then
    if call('EXISTS', p .. 'lv:' .. queue) == 1 then return 0 end
    local first = call('ZRANGE', p .. 'd:' .. queue, 0, 0, 'WITHSCORES')
    if first[2] then
      local in_ms = math.max(0, tonumber(first[2]) - now)
      if soonest < 0 or in_ms < soonest then soonest = in_ms end
    end
  end
end
return soonest
