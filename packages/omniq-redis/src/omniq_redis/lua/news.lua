-- Tells the clients that wait for these results, and gives them along: per id its length and the value's, then both. Past 64 KiB in one
-- message a value stays away (length 0), and is asked for. Publishing is a convenience: its failure (an ACL rule) fails nothing.
local function notify(ids, values)
  if #ids == 0 or (#ids > 1 and call('EXISTS', p .. 'wt') == 0) then return end
  local keys = {}
  for i = 1, #ids do keys[i] = p .. 'wt:' .. ids[i] end
  local found = call('MGET', unpack(keys))
  local news, sizes = {}, {}
  for i = 1, #ids do
    if found[i] then
      for client in string.gmatch(found[i], '%S+') do
        local value, parts = values[i], news[client] or {}
        local size = (sizes[client] or 0) + #value
        if size > 65536 then value = '' else sizes[client] = size end
        parts[#parts + 1] = struct.pack('>I2I4', #ids[i], #value) .. ids[i] .. value
        news[client] = parts
      end
      call('DEL', keys[i])
    end
  end
  for client, parts in pairs(news) do redis.pcall('SPUBLISH', p .. 'n:' .. client, table.concat(parts)) end
end
