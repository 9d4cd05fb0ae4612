-- Cancels pending tasks, asks the owners of running ones. ARGV: the ids. A letter each: o done, r requested, f finished, n not found.
local answers = {}
for i, id in ipairs(ARGV) do
  local h = head(id)
  if not h then
    answers[i] = 'n'
  else
    local r = state_of(call('HGET', p .. 'h', id), h)
    if r.s == 'P' then
      leave_line(id, h)
      finish(id, h, r, 'C')
      answers[i] = 'o'
    elseif r.s == 'R' then
      r.flags = bit.bor(r.flags, CANCEL)
      write(id, r)
      answers[i] = 'r'
    else
      answers[i] = 'f'
    end
  end
end
return table.concat(answers)
