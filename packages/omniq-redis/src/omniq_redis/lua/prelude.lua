-- Stands before every script. Keys, records and flags are explained in keys.py; times are milliseconds of the server's clock.
-- Numbers below 1e14 may be joined to strings as they are (Lua prints 14 digits); redis.call prints 17. No list that goes through unpack() is longer than
-- about 2,050: Lua's C stack ends at about 8,000.
local p = KEYS[1]
local call = redis.call
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
