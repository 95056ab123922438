"""What is done to sessions inside Redis, each in one step and by Redis's clock. Lua; knows no token.

A session is a hash (KEYS[1]) and a string (KEYS[2]) of `num_bytes` bytes, with one end; without either it is gone.
Fields that these scripts read or write: ttl_ms, ends_ms, made_us, updated_us, num_turns, num_bytes; lease and
lease_ends_ms while a turn runs; last_lease, that of the last turn. Each may be sent twice: the second does no harm.
"""

_NOW = """
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local function text(number) return string.format('%.0f', number) end
local function live(for_ms)
  redis.call('HSET', KEYS[1], 'ends_ms', text(now_ms + for_ms))
  redis.call('PEXPIRE', KEYS[1], for_ms)
  redis.call('PEXPIRE', KEYS[2], for_ms)
end
local function is_gone()
  local num_bytes = redis.call('HGET', KEYS[1], 'num_bytes')
  return not num_bytes or redis.call('STRLEN', KEYS[2]) ~= tonumber(num_bytes)
end
"""

# ARGV: ttl_ms, fields and values. Gives all fields.
CREATE = f"""{_NOW}
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('HSET', KEYS[1], 'ttl_ms', ARGV[1], 'num_turns', '0', 'num_bytes', '0',
  'made_us', text(now_us), 'updated_us', text(now_us))
live(tonumber(ARGV[1]))
return redis.call('HGETALL', KEYS[1])
"""

# KEYS[3], KEYS[4]: the new session's. ARGV: ttl_ms or '', fields and values to change. Gives all fields, none: gone.
FORK = f"""{_NOW}
if is_gone() then return {{}} end
local fields = redis.call('HGETALL', KEYS[1])
local ids = redis.call('GET', KEYS[2])
KEYS[1], KEYS[2] = KEYS[3], KEYS[4]
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], unpack(fields))
redis.call('HDEL', KEYS[1], 'lease', 'lease_ends_ms', 'last_lease')
if ids then redis.call('SET', KEYS[2], ids) end
if #ARGV > 1 then redis.call('HSET', KEYS[1], unpack(ARGV, 2)) end
if ARGV[1] ~= '' then redis.call('HSET', KEYS[1], 'ttl_ms', ARGV[1]) end
redis.call('HSET', KEYS[1], 'made_us', text(now_us), 'updated_us', text(now_us))
live(tonumber(redis.call('HGET', KEYS[1], 'ttl_ms')))
return redis.call('HGETALL', KEYS[1])
"""

# ARGV: lease, lease_ms. Gives 'begun', all fields and the token ids; or 'busy' or 'gone' alone.
BEGIN = f"""{_NOW}
if is_gone() then return {{'gone'}} end
local held = redis.call('HMGET', KEYS[1], 'lease', 'lease_ends_ms', 'ttl_ms')
if held[1] and held[1] ~= ARGV[1] and tonumber(held[2]) > now_ms then return {{'busy'}} end
redis.call('HSET', KEYS[1], 'lease', ARGV[1], 'lease_ends_ms', text(now_ms + ARGV[2]))
live(math.max(tonumber(held[3]), tonumber(ARGV[2])))
return {{'begun', redis.call('HGETALL', KEYS[1]), redis.call('GET', KEYS[2]) or ''}}
"""

# ARGV: lease, lease_ms. 1: the turn has its session for so much longer. 0: it has lost it.
RENEW = f"""{_NOW}
if redis.call('HGET', KEYS[1], 'lease') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'lease_ends_ms', text(now_ms + ARGV[2]))
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then live(tonumber(ARGV[2])) end
return 1
"""

# ARGV: lease, bytes to append, fields and values. Gives 'saved', all fields; or 'taken' or 'gone' alone. A lease that
# is over still counts while nobody else took one.
COMMIT = f"""{_NOW}
if is_gone() then return {{'gone'}} end
if redis.call('HGET', KEYS[1], 'last_lease') ~= ARGV[1] then
  if redis.call('HGET', KEYS[1], 'lease') ~= ARGV[1] then return {{'taken'}} end
  local num_bytes = redis.call('APPEND', KEYS[2], ARGV[2])
  redis.call('HSET', KEYS[1], unpack(ARGV, 3))
  redis.call('HSET', KEYS[1], 'num_bytes', num_bytes, 'last_lease', ARGV[1], 'updated_us', text(now_us))
  redis.call('HINCRBY', KEYS[1], 'num_turns', 1)
  redis.call('HDEL', KEYS[1], 'lease', 'lease_ends_ms')
  live(tonumber(redis.call('HGET', KEYS[1], 'ttl_ms')))
end
return {{'saved', redis.call('HGETALL', KEYS[1])}}
"""

# ARGV: lease.
RELEASE = """
if redis.call('HGET', KEYS[1], 'lease') == ARGV[1] then redis.call('HDEL', KEYS[1], 'lease', 'lease_ends_ms') end
"""

_SWEEP = f"""{_NOW}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms, 'LIMIT', 0, 100)) do
  redis.call('ZREM', KEYS[1], id)
  redis.call('ZREM', KEYS[2], id)
end
"""

# KEYS of the tenant's list. ARGV: session id, made_us, ends_ms, how long the list is kept from now, ms.
ENLIST = f"""{_SWEEP}
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
"""

# KEYS of the tenant's list. ARGV: the made_us to begin before, '+inf' for the newest; how many. Gives ids, the newest
# first, each with its made_us behind it.
PAGE = f"""{_SWEEP}
return redis.call('ZREVRANGEBYSCORE', KEYS[1], ARGV[1], '-inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
"""
