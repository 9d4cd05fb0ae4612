#!lua flags=allow-oom
-- Deletes tasks that are in one of the given states still. ARGV: the letters of the states (never R), the ids. How many.
local count = 0
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
  end
end
return count
