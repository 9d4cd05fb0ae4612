#!lua flags=allow-oom
-- Deletes tasks that are in one of the given states still. ARGV: the letters of the states (never R), the ids. How many.
local count = 0
local gone = {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local h = head(id)
  local r = h and state_of(call('HGET', p .. 'h', id), h)
  if r and string.find(ARGV[1], r.s, 1, true) then
    if r.s == 'P' then
      leave_line(id, h)
      free_key(id, h)
    end
    call('UNLINK', p .. 't:' .. id, p .. 'r:' .. id)
    call('HDEL', p .. 'h', id)
    call('HDEL', p .. 'e', id)
    count = count + 1
    local segment = math.floor(h.first / 1024)
    gone[segment] = (gone[segment] or 0) + 1
  end
end
-- A segment that is mostly empty now is swept, as the next purge would step over it otherwise, and its successor over both.
for segment, number in pairs(gone) do
  local list = p .. 'i:' .. segment
  if 2 * number >= call('LLEN', list) then
    local kept = {}
    for _, id in ipairs(call('LRANGE', list, 0, -1)) do
      if call('EXISTS', p .. 't:' .. id) == 1 then kept[#kept + 1] = id end
    end
    call('DEL', list)
    if #kept > 0 then
      call('RPUSH', list, unpack(kept))
    else
      call('ZREM', p .. 'segs', segment)
      call('ZREM', p .. 'due', segment)
    end
  end
end
return count
