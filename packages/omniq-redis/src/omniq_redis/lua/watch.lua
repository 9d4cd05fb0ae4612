-- Asks to be told of results, and looks at once, so that none falls between. ARGV: client, for how long (ms), the ids. What is there now.
local client, lasts = ARGV[1], ARGV[2]
local keys, k = {}, 0
for i = 3, #ARGV do
  local key = p .. 'wt:' .. ARGV[i]
  local who = call('GET', key)
  if not who then
    who = client
  elseif not string.find(who, client, 1, true) then
    who = who .. ' ' .. client
  end
  call('SET', key, who, 'PX', lasts)
  k = k + 1
  keys[k] = p .. 'r:' .. ARGV[i]
end
call('SET', p .. 'wt', '1', 'PX', lasts)
return call('MGET', unpack(keys))
