-- Adds events. ARGV: most entries kept, how long ids are remembered at least (ms), and per event id and payload. A letter each: o, d.
local most, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local number = math.floor(now / window)
local this, last = p .. 'ei:' .. number, p .. 'ei:' .. (number - 1)
local n = (#ARGV - 2) / 2
local ids, new, answers, seen = {}, {}, {}, {}
for i = 1, n do ids[i] = ARGV[2 * i + 1] end
local in_this, in_last = call('SMISMEMBER', this, unpack(ids)), call('SMISMEMBER', last, unpack(ids))
for i = 1, n do
  local id = ids[i]
  if seen[id] or in_this[i] == 1 or in_last[i] == 1 then
    answers[i] = 'd'
  else
    answers[i], seen[id] = 'o', true
    new[#new + 1] = id
    call('XADD', p .. 'ev', '*', 'e', ARGV[2 * i + 2])
  end
end
if #new > 0 then
  call('SADD', this, unpack(new))
  call('PEXPIRE', this, 2 * window)
  if most < 1000 then call('XTRIM', p .. 'ev', 'MAXLEN', most) else call('XTRIM', p .. 'ev', 'MAXLEN', '~', most) end
end
return table.concat(answers)
