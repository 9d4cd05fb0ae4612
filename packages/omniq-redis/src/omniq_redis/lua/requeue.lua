-- Makes dead, cancelled and expired tasks pending. ARGV: the ids. A letter each: o done, d not final, f succeeded, c key held, n not found.
local answers = {}
for i, id in ipairs(ARGV) do
  local h = head(id)
  local r = h and state_of(call('HGET', p .. 'h', id), h)
  if not r then
    answers[i] = 'n'
  elseif r.s == 'P' or r.s == 'R' then
    answers[i] = 'd'
  elseif r.s == 'S' then
    answers[i] = 'f'
  elseif h.unique and call('HSETNX', p .. 'u', h.unique, id) == 0 then
    answers[i] = 'c'
  else
    call('DEL', p .. 'r:' .. id)
    call('HDEL', p .. 'e', id)
    r.s, r.attempt, r.crashes, r.at = 'P', 0, 0, now
    r.flags = bit.bor(bit.band(r.flags, UNIQUE), NO_TTL)
    write(id, r)
    join_line(id, h, r)
    answers[i] = 'o'
  end
end
return table.concat(answers)
