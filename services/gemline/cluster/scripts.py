"""What is done to leases inside Redis, each in one step and by Redis's clock. Lua; knows no record's inside.

    gemline:{workers}:records   hash   worker_id -> JSON of its record, epoch left out
    gemline:{workers}:epochs    hash   worker_id -> epoch of its present life
    gemline:{workers}:leases    zset   worker_id by the end of its lease, in Redis TIME, ms
    gemline:{workers}:last      string the newest epoch given out
    gemline:{workers}:changed   channel, the worker_id that came, went or drains

The braces keep all of them in one slot of a Redis Cluster.
"""

KEYS = tuple(f"gemline:{{workers}}:{name}" for name in ("records", "epochs", "leases", "last"))
CHANNEL = "gemline:{workers}:changed"

# An epoch is at least the time in microseconds, so that a Redis that lost its data gives out none a second time.
# Such numbers are below 2^53 until the year 2255: exact in Lua's doubles.
REGISTER = """
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local epoch = math.max(now_us, tonumber(redis.call('GET', KEYS[4]) or '0') + 1)
local text = string.format('%.0f', epoch)
redis.call('SET', KEYS[4], text)
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], text)
redis.call('ZADD', KEYS[3], string.format('%.0f', math.floor(now_us / 1000) + ARGV[3]), ARGV[1])
redis.call('PUBLISH', ARGV[4], ARGV[1])
return text
"""

# 1: renewed. 0: the lease was over, register again. -1: another life has the worker's name now.
RENEW = """
local epoch = redis.call('HGET', KEYS[2], ARGV[1])
if epoch and epoch ~= ARGV[5] then return -1 end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local stop_ms = redis.call('ZSCORE', KEYS[3], ARGV[1])
if not epoch or not stop_ms or tonumber(stop_ms) <= now_ms then return 0 end
redis.call('ZADD', KEYS[3], string.format('%.0f', now_ms + ARGV[3]), ARGV[1])
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  if ARGV[6] == '1' then redis.call('PUBLISH', ARGV[4], ARGV[1]) end
end
return 1
"""

WITHDRAW = """
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('PUBLISH', ARGV[3], ARGV[1])
return 1
"""

# Sweeps what is over, then gives the rest as two lists side by side: records and epochs.
LIST = """
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now_ms)) do
  redis.call('HDEL', KEYS[1], id)
  redis.call('HDEL', KEYS[2], id)
  redis.call('ZREM', KEYS[3], id)
end
local ids = redis.call('ZRANGE', KEYS[3], 0, -1)
if #ids == 0 then return {{}, {}} end
return {redis.call('HMGET', KEYS[1], unpack(ids)), redis.call('HMGET', KEYS[2], unpack(ids))}
"""
