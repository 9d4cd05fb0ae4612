-- Tells the clients that wait for these results. Publishing is a convenience: its failure (an ACL rule) fails nothing.
local function notify(ids)
  if #ids == 0 or call('EXISTS', p .. 'wt') == 0 then return end
  local keys = {}
  for i = 1, #ids do keys[i] = p .. 'wt:' .. ids[i] end
  local found = call('MGET', unpack(keys))
  local news = {}
  for i = 1, #ids do
    if found[i] then
      for client in string.gmatch(found[i], '%S+') do
        news[client] = news[client] or {}
        table.insert(news[client], ids[i])
      end
      call('DEL', keys[i])
    end
  end
  for client, list in pairs(news) do redis.pcall('SPUBLISH', p .. 'n:' .. client, cmsgpack.pack(list)) end
end
