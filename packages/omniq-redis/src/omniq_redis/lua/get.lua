-- What is known of tasks. ARGV: the ids. Five values each: envelope, record, note, end of the lease, worker; all nil if unknown.
local keys, out = {}, {}
for i = 1, #ARGV do keys[i] = p .. 't:' .. ARGV[i] end
local envelopes = call('MGET', unpack(keys))
local texts = call('HMGET', p .. 'h', unpack(ARGV))
local notes = call('EXISTS', p .. 'e') == 1 and call('HMGET', p .. 'e', unpack(ARGV)) or {}
local leases = {}
for i = 1, #ARGV do
  local until_, worker = false, false
  local fence = envelopes[i] and texts[i] and string.match(texts[i], '^R (%d+)')
  if fence then
    if not leases[fence] then
      leases[fence] = {call('ZSCORE', p .. 'lease', fence), call('HGET', p .. 'c:' .. fence, 'w')}
    end
    until_, worker = leases[fence][1], leases[fence][2]
  end
  local o = 5 * i - 5
  out[o + 1], out[o + 2], out[o + 3] = envelopes[i], envelopes[i] and texts[i], envelopes[i] and notes[i] or false
  out[o + 4], out[o + 5] = until_, worker
end
return out
