#!lua flags=allow-oom
-- Takes over the tasks of claims whose lease has ended. ARGV: about how many. The first value: 1 if there is more; then eight per task:
-- id, queue, name, state, fence, attempt, crashes, and its former worker.
local limit = tonumber(ARGV[1])
local out, count, fence = {0}, 0, nil
for _, claim in ipairs(call('ZRANGEBYSCORE', p .. 'lease', '-inf', now, 'LIMIT', 0, limit + 1)) do
  if count >= limit then
    out[1] = 1
    break
  end
  local ids = call('LRANGE', p .. 'f:' .. claim, 0, -1)
  local worker = call('HGET', p .. 'c:' .. claim, 'w') or ''
  local texts = #ids > 0 and call('HMGET', p .. 'h', unpack(ids)) or {}
  for i, id in ipairs(ids) do
    local r = texts[i] and parse(texts[i])
    if r and r.s == 'R' and r.fence == tonumber(claim) then
      local h = head(id)
      call('HINCRBY', p .. 'rn', r.queue, -1)
      if h then
        fence = fence or next_fence()
        r.fence, r.crashes = fence, r.crashes + 1
        r.flags = bit.bor(r.flags, LOST)
        if bit.band(r.flags, CANCEL) ~= 0 then
          finish(id, h, r, 'C')
        elseif r.crashes >= h.max_crashes then
          finish(id, h, r, 'D')
        else
          r.s, r.at = 'P', now
          write(id, r)
          join_line(id, h, r)
        end
        count = count + 1
        for _, value in ipairs({id, h.queue, h.name, r.s, fence, r.attempt, r.crashes, worker}) do out[#out + 1] = value end
      else
        call('HDEL', p .. 'h', id)
      end
    end
  end
  close_claim(claim)
end
return out
