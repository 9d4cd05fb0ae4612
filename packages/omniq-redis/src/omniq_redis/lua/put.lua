-- Stores result records. ARGV: per record id, fence, '1' if final, time to live (ms), state letter, body. A letter each: o stored, d there
-- already, s a higher fence is there.
local answers, news, values = {}, {}, {}
for i = 1, #ARGV / 6 do
  local a = 6 * i - 5
  local id, fence, final, ttl = ARGV[a], tonumber(ARGV[a + 1]), ARGV[a + 2], tonumber(ARGV[a + 3])
  local key = p .. 'r:' .. id
  local old = call('GETRANGE', key, 16, 25)
  local answer = 'o'
  if old ~= '' then
    local old_fence = struct.unpack('>d', old)
    if old_fence > fence then
      answer = 's'
    elseif old_fence == fence and (string.sub(old, 10, 10) == '1' or final == '0') then
      answer = 'd'
    end
  end
  answers[i] = answer
  if answer == 'o' then
    local value = struct.pack('>ddd', now, now + ttl, fence) .. ARGV[a + 4] .. final .. ARGV[a + 5]
    call('SET', key, value, 'PX', ttl)
    if final == '1' then news[#news + 1], values[#values + 1] = id, value end
  end
end
notify(news, values)
return table.concat(answers)
