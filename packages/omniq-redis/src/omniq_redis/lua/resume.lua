-- Ends the pause of queues, and wakes their workers. ARGV: the queues.
call('SREM', p .. 'paused', unpack(ARGV))
for _, queue in ipairs(ARGV) do call('ZADD', p .. 'w:' .. queue, 0, 0) end
return #ARGV
