-- Any batch, task by task. ARGV: retention (ms); per task id, envelope, queue, priority, delay and time to live (ms, -1: none),
-- unique key with a 'k' before it, or ''. Per task 1: stored, 0: the id is known, or the id of the task that holds the key.
local n = (#ARGV - 1) / 7
local seq = call('INCRBY', p .. 'seq', n) - n
local stamp = struct.pack('>dd', seq, now)
local answers, stored, lines, queues = {}, {}, {}, {}
for i = 1, n do
  local a = 7 * i - 5
  local id, queue, priority = ARGV[a], ARGV[a + 2], ARGV[a + 3]
  local delay, ttl, unique = tonumber(ARGV[a + 4]), tonumber(ARGV[a + 5]), string.sub(ARGV[a + 6], 2)
  local holder = false
  if call('EXISTS', p .. 't:' .. id) == 1 then
    answers[i] = 0
  else
    if ARGV[a + 6] ~= '' then
      holder = call('HGET', p .. 'u', unique)
      if not holder then call('HSET', p .. 'u', unique, id) end
    end
    if holder then
      answers[i] = holder
    else
      call('SET', p .. 't:' .. id, stamp .. ARGV[a + 1])
      answers[i] = 1
      stored[#stored + 1] = id
      queues[queue] = true
      if ttl >= 0 then call('ZADD', p .. 'ex', now + ttl, id) end
      local line = priority .. ':' .. queue
      if delay > 0 then
        call('ZADD', p .. 'd:' .. queue, now + delay, priority .. ':' .. (seq + i - 1) .. ':' .. id)
      else
        call('ZADD', p .. 'lv:' .. queue, priority, priority)
        if call('SISMEMBER', p .. 'x:' .. line, id) == 1 then
          -- Its purged namesake is a ghost in the list. One mark cannot stand for two places there, so it waits among the returned.
          call('ZADD', p .. 'b:' .. line, seq + i - 1, id)
        else
          lines[line] = lines[line] or {}
          table.insert(lines[line], id)
        end
      end
    end
  end
end
for line, ids in pairs(lines) do call('RPUSH', p .. 'l:' .. line, unpack(ids)) end
for queue in pairs(queues) do
  call('SADD', p .. 'q', queue)
  call('ZADD', p .. 'w:' .. queue, 0, 0)
end
if #stored > 0 then
  local segment = math.floor(seq / 1024)
  if call('RPUSH', p .. 'i:' .. segment, unpack(stored)) == #stored then
    call('ZADD', p .. 'segs', segment, segment)
    call('ZADD', p .. 'due', now + ARGV[1], segment)
  end
end
return answers
