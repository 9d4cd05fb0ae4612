-- Looks through one segment of arrivals, newest first. ARGV: the newest segment to look at ('': of all), below which place ('': any), letters
-- of states or '', enqueued after and before (ms) or '', how many; how many queues, the queues; the names. The next segment, or -1; then id
-- and place of each match. One segment per call, so that a query over millions holds up nobody.
local below, states, want = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[6])
local after, before = tonumber(ARGV[4]), tonumber(ARGV[5])
local queues, names = {}, {}
local first_name = 8 + tonumber(ARGV[7])
for i = 8, first_name - 1 do queues[ARGV[i]] = true end
for i = first_name, #ARGV do names[ARGV[i]] = true end
local any_queue, any_name = next(queues) == nil, next(names) == nil

-- A batch stands in the segment of its first task, so a task's own segment is never above that of its place.
local top = ARGV[1] ~= '' and ARGV[1] or below and math.floor((below - 1) / 1024) or '+inf'
local segments = call('ZREVRANGEBYSCORE', p .. 'segs', top, '-inf', 'LIMIT', 0, 2)
if #segments == 0 then return {-1} end
local segment = tonumber(segments[1])
local ids = call('LRANGE', p .. 'i:' .. segment, 0, -1)
local texts = #ids > 0 and call('HMGET', p .. 'h', unpack(ids)) or {}
local found, seen = {}, {}
for i = #ids, 1, -1 do
  local id = ids[i]
  if not seen[id] then
    seen[id] = true
    local s = texts[i] and string.sub(texts[i], 1, 1) or 'P'
    if states == '' or string.find(states, s, 1, true) then
      local h = head(id)
      -- An id that was purged and enqueued again stands in two segments; its stamp says which is the right one.
      if h and math.floor(h.first / 1024) == segment and (not below or h.seq < below)
        and (any_queue or queues[h.queue]) and (any_name or names[h.name])
        and (not after or h.at >= after) and (not before or h.at < before) then
        found[#found + 1] = {h.seq, id}
      end
    end
  end
end
table.sort(found, function(a, b) return a[1] > b[1] end)
local out = {tonumber(segments[2] or -1)}
for i = 1, math.min(want, #found) do out[2 * i], out[2 * i + 1] = found[i][2], found[i][1] end
return out
