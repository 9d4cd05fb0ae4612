#!lua flags=allow-oom
-- Ends pending tasks whose time to live has passed. ARGV: how many. 1 if there may be more; then as reap, without the worker.
local limit = tonumber(ARGV[1])
local ids = call('ZRANGEBYSCORE', p .. 'ex', '-inf', now, 'LIMIT', 0, limit)
local out = {#ids == limit and 1 or 0}
for _, id in ipairs(ids) do
  local h = head(id)
  if h then
    local r = state_of(call('HGET', p .. 'h', id), h)
    leave_line(id, h)
    finish(id, h, r, 'X')
    for _, value in ipairs({id, h.queue, h.name, 'X', r.fence, r.attempt, r.crashes, ''}) do out[#out + 1] = value end
  else
    call('ZREM', p .. 'ex', id)
  end
end
return out
