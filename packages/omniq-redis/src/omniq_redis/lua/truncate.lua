#!lua flags=allow-oom
-- Deletes the oldest events, up to the first that is not older than a time. ARGV: the time (s), how many. How many.
local before, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local entries = call('XRANGE', p .. 'ev', '-', '+', 'COUNT', limit)
local doomed = 0
while doomed < #entries and struct.unpack('>d', entries[doomed + 1][2][2]) < before do doomed = doomed + 1 end
if doomed == 0 then return 0 end
local ms, seq = string.match(entries[doomed][1], '^(%d+)-(%d+)$')
return call('XTRIM', p .. 'ev', 'MINID', ms .. '-' .. string.format('%d', seq + 1))
