#!lua flags=allow-oom
-- Renews leases. ARGV: how long (ms), how many; the ids; the fences. Each: 0 if lost, else the end of the lease, negative if somebody asked
-- to cancel. One lease is of a whole claim, so the other tasks of the claim are renewed with it.
local lasts, n = tonumber(ARGV[1]), tonumber(ARGV[2])
local texts = call('HMGET', p .. 'h', unpack(ARGV, 3, 2 + n))
local ends, answers = {}, {}
for i = 1, n do
  local fence = tonumber(ARGV[2 + n + i])
  local r = texts[i] and parse(texts[i])
  if not r or r.s ~= 'R' or r.fence ~= fence then
    answers[i] = 0
  else
    if not ends[fence] then
      ends[fence] = math.max(now + lasts, tonumber(call('ZSCORE', p .. 'lease', fence) or 0))
      call('ZADD', p .. 'lease', ends[fence], fence)
    end
    answers[i] = bit.band(r.flags, CANCEL) ~= 0 and -ends[fence] or ends[fence]
  end
end
return answers
