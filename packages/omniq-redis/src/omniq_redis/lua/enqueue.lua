-- The common case: nothing delayed, expiring or unique, no id twice. ARGV: retention (ms), how many tasks, how many lines; per
-- line queue, priority, how many; the ids, line by line; the envelopes. 1: all stored. 0: nothing was, as an id is known or a
-- line has ghosts; the caller then sends the batch to enqueue_each. One MSETNX answers for all ids whether they are new.
local n, lines = tonumber(ARGV[2]), tonumber(ARGV[3])
local first = 4 + 3 * lines
for i = 4, first - 1, 3 do
  if call('EXISTS', p .. 'x:' .. ARGV[i + 1] .. ':' .. ARGV[i]) == 1 then return 0 end
end
local seq = call('INCRBY', p .. 'seq', n) - n
local stamp = struct.pack('>dd', seq, now)
local tasks, k, key = {}, 0, p .. 't:'
for i = first, first + n - 1 do
  tasks[k + 1], tasks[k + 2] = key .. ARGV[i], stamp .. ARGV[i + n]
  k = k + 2
end
if call('MSETNX', unpack(tasks)) == 0 then return 0 end
local at = first
for i = 4, first - 1, 3 do
  local queue, priority, count = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  if call('RPUSH', p .. 'l:' .. priority .. ':' .. queue, unpack(ARGV, at, at + count - 1)) == count then
    call('ZADD', p .. 'lv:' .. queue, priority, priority)
    call('SADD', p .. 'q', queue)
  end
  call('ZADD', p .. 'w:' .. queue, 0, 0)
  at = at + count
end
local segment = math.floor(seq / 1024)
if call('RPUSH', p .. 'i:' .. segment, unpack(ARGV, first, first + n - 1)) == n then
  call('ZADD', p .. 'segs', segment, segment)
  call('ZADD', p .. 'due', now + ARGV[1], segment)
end
return 1
