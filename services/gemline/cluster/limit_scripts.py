"""What is done to limits inside Redis, each in one step and by Redis's clock. Lua; knows no tenant.

A scope is whatever has limits: a tenant, a project, a key. ARGV[1] is JSON. Of a scope there are

    gemline:{limits}:minute:requests:SCOPE  hash  second -> requests that were admitted in it
    gemline:{limits}:minute:tokens:SCOPE    hash  second -> tokens that were reserved in it, settled ones as they were
    gemline:{limits}:running:SCOPE          zset  request id by the end of its lease, ms
    gemline:{limits}:held:SCOPE             hash  request id -> 'TOKENS SECOND', reserved and when; '' -> sum of tokens
    gemline:{limits}:spent:SCOPE:PERIOD     hash  'tokens', 'kv' of settled requests

and for ten minutes gemline:{limits}:settled:ID of each settled request, so that it is settled once. A minute is 61
seconds of such slots, the present one included: no 60 seconds, wherever they begin, see more than the limit. Beside its
slots it has their 'sum', the second of its 'last' slot, and the one up to which old slots were 'swept' out: to read and
add up 60 slots each time took most of a request's time in here. Where the clock goes back, as after a failover to a
Redis whose clock is behind, what is in its future then counts as of now.
"""

_COMMON = """
local ask = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now_s, now_ms = tonumber(time[1]), time[1] * 1000 + math.floor(time[2] / 1000)
local floor = math.floor
local function key(kind, scope) return 'gemline:{limits}:' .. kind .. ':' .. scope.name end
local function text(number) return string.format('%.0f', number) end

local function days_before(year, month)
  if month <= 2 then year = year - 1 end
  local of_era = year % 400
  local of_year = floor((153 * (month + (month > 2 and -3 or 9)) + 2) / 5)
  return (year - of_era) / 400 * 146097 + of_era * 365 + floor(of_era / 4) - floor(of_era / 100) + of_year - 719468
end
local function month_of(day)
  local shifted = day + 719468
  local of_era = shifted % 146097
  local year_of_era = floor((of_era - floor(of_era / 1460) + floor(of_era / 36524) - floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year_of_era + floor(year_of_era / 4) - floor(year_of_era / 100))
  local shifted_month = floor((5 * of_year + 2) / 153)
  local month = shifted_month + (shifted_month < 10 and 3 or -9)
  return year_of_era + (shifted - of_era) / 146097 * 400 + (month <= 2 and 1 or 0), month
end
-- The period's name, and when it ends.
local function period_of(kind)
  local day = floor(now_s / 86400)
  if kind == 'day' then return text(day), (day + 1) * 86400 end
  local year, month = month_of(day)
  local ends = month == 12 and days_before(year + 1, 1) or days_before(year, month + 1)
  return text(year) .. '-' .. text(month), ends * 86400
end
local function spent_key(scope)
  local period, ends_s = period_of(scope.period)
  return key('spent', scope) .. ':' .. period, ends_s
end
-- The tokens that a request holds, and the second in which they were reserved; nil: it holds none.
local function held_by(scope, id)
  local tokens, second = string.match(redis.call('HGET', key('held', scope), id) or '', '^(%d+) (%d+)$')
  return tonumber(tokens), second
end
local function let_go(scope, id)
  local held = key('held', scope)
  local tokens = held_by(scope, id)
  if tokens then redis.call('HINCRBY', held, '', text(0 - tokens)) end
  redis.call('HDEL', held, id)
  redis.call('ZREM', key('running', scope), id)
end
local function sweep(scope)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('running', scope), '-inf', now_ms)) do let_go(scope, id) end
end
local function minute_key(kind, scope) return key('minute:' .. kind, scope) end
-- Its slots, the oldest first.
local function slots_of(name)
  local fields, slots = redis.call('HGETALL', name), {}
  for i = 1, #fields, 2 do
    local second = tonumber(fields[i])
    if second then slots[#slots + 1] = {second, tonumber(fields[i + 1])} end
  end
  table.sort(slots, function(a, b) return a[1] < b[1] end)
  return slots
end
-- The clock has gone back: the slots anew.
local function turn_back(name)
  local found, sum = {}, 0
  for _, slot in ipairs(slots_of(name)) do
    local second = math.min(slot[1], now_s)
    if second > now_s - 61 then
      found[text(second)] = (found[text(second)] or 0) + slot[2]
      sum = sum + slot[2]
    end
  end
  redis.call('DEL', name)
  for second, amount in pairs(found) do redis.call('HSET', name, second, text(amount)) end
  redis.call('HSET', name, 'sum', text(sum), 'last', text(now_s), 'swept', text(now_s - 61))
  redis.call('EXPIRE', name, 62)
  return sum, now_s
end
-- What the last minute saw, and its last slot, if it has any. Slots that are older are gone then.
local function minute(name)
  local known, gone = redis.call('HMGET', name, 'sum', 'last', 'swept'), now_s - 61
  local sum, last, swept = tonumber(known[1]) or 0, tonumber(known[2]), tonumber(known[3])
  if not last or last <= gone then
    redis.call('DEL', name)
    return 0, nil
  end
  if last > now_s then return turn_back(name) end
  if swept < gone then
    local old = {}
    for second = swept + 1, gone do old[#old + 1] = text(second) end
    for _, amount in ipairs(redis.call('HMGET', name, unpack(old))) do sum = sum - (tonumber(amount) or 0) end
    redis.call('HDEL', name, unpack(old))
    redis.call('HSET', name, 'sum', text(sum), 'swept', text(gone))
  end
  return sum, last
end
"""

# ask: id, lease_ms, requests, tokens, runs, scopes. A limit that a scope lacks is absent. All is checked, then all is
# taken. Gives JSON: at (the second that tokens were reserved in), requests and tokens (limit, remaining, reset_ms of
# the scope where least is left), and what refused, if anything did: scope, kind, limit, used, asked, and wait_ms, which
# is -1 for never.
RESERVE = f"""{_COMMON}
local refused
local function refuse(scope, kind, limit, used, asked, wait_ms)
  if not refused or wait_ms < 0 or (refused.wait_ms >= 0 and wait_ms > refused.wait_ms) then
    refused = {{scope = scope.name, kind = kind, limit = limit, used = used, asked = asked, wait_ms = wait_ms}}
  end
end
local least = {{}}
local function check_minute(scope, kind, limit, asked)
  local name = minute_key(kind, scope)
  local sum, last = minute(name)
  if asked > 0 and sum + asked > limit then
    local wait_ms, freed = -1, 0
    for _, slot in ipairs(slots_of(name)) do
      freed = freed + slot[2]
      if sum - freed + asked <= limit then
        wait_ms = (slot[1] + 61) * 1000 - now_ms
        break
      end
    end
    refuse(scope, kind, limit, sum, asked, wait_ms)
  end
  local left = math.max(0, limit - sum)
  if not least[kind] or left < least[kind].remaining then
    least[kind] = {{limit = limit, remaining = left, reset_ms = last and (last + 61) * 1000 - now_ms or 0}}
  end
end
local is_there = false
for _, scope in ipairs(ask.scopes) do
  sweep(scope)
  if ask.runs and redis.call('ZSCORE', key('running', scope), ask.id) then is_there = true end
end
for _, scope in ipairs(ask.scopes) do
  for kind, asked in pairs({{requests = ask.requests, tokens = ask.tokens}}) do
    local limit = scope[kind .. '_per_min']
    if limit then check_minute(scope, kind, limit, is_there and 0 or asked) end
  end
  if ask.runs and not is_there then
    local most = scope.concurrent_requests
    if most then
      local num = redis.call('ZCARD', key('running', scope))
      if num >= most then refuse(scope, 'concurrent_requests', most, num, 1, most > 0 and 1000 or -1) end
    end
    if scope.token_budget or scope.kv_byte_seconds then
      local name, ends_s = spent_key(scope)
      local spent = redis.call('HMGET', name, 'tokens', 'kv')
      local budget = scope.token_budget
      if budget then
        local settled = tonumber(spent[1]) or 0
        local used = settled + (tonumber(redis.call('HGET', key('held', scope), '')) or 0)
        if used + ask.tokens > budget then
          local wait_ms = ask.tokens > budget and -1 or ends_s * 1000 - now_ms
          if settled + ask.tokens <= budget then wait_ms = 1000 end -- those that run may use less than they reserved
          refuse(scope, 'token_budget', budget, used, ask.tokens, wait_ms)
        end
      end
      if scope.kv_byte_seconds and (tonumber(spent[2]) or 0) >= scope.kv_byte_seconds then
        refuse(scope, 'kv_byte_seconds', scope.kv_byte_seconds, tonumber(spent[2]), 0, ends_s * 1000 - now_ms)
      end
    end
  end
end
if not refused and not is_there then
  for _, scope in ipairs(ask.scopes) do
    for kind, amount in pairs({{requests = ask.requests, tokens = ask.tokens}}) do
      if amount > 0 and scope[kind .. '_per_min'] then
        local name = minute_key(kind, scope)
        redis.call('HINCRBY', name, text(now_s), amount)
        redis.call('HINCRBY', name, 'sum', amount)
        redis.call('HSETNX', name, 'swept', text(now_s - 61))
        redis.call('HSET', name, 'last', text(now_s))
        redis.call('EXPIRE', name, 62)
      end
    end
    if ask.runs then
      redis.call('ZADD', key('running', scope), text(now_ms + ask.lease_ms), ask.id)
      redis.call('HSET', key('held', scope), ask.id, text(ask.tokens) .. ' ' .. text(now_s))
      redis.call('HINCRBY', key('held', scope), '', text(ask.tokens))
      redis.call('EXPIRE', key('running', scope), 86400)
      redis.call('EXPIRE', key('held', scope), 86400)
    end
  end
  for kind, amount in pairs({{requests = ask.requests, tokens = ask.tokens}}) do
    if least[kind] and amount > 0 then
      least[kind].remaining = math.max(0, least[kind].remaining - amount)
      least[kind].reset_ms = (now_s + 61) * 1000 - now_ms
    end
  end
end
return cjson.encode({{at = now_s, refused = refused, requests = least.requests, tokens = least.tokens}})
"""

# ask: id, at, reserved, tokens, kv, scopes, usage (fields and values of the record), max_records. Gives 0 for a request
# that was settled before.
SETTLE = f"""{_COMMON}
if not redis.call('SET', 'gemline:{{limits}}:settled:' .. ask.id, '1', 'NX', 'EX', 600) then return 0 end
for _, scope in ipairs(ask.scopes) do
  local reserved, second = held_by(scope, ask.id)
  if not reserved then reserved, second = ask.reserved, text(ask.at) end
  local slots = minute_key('tokens', scope)
  local taken = scope.tokens_per_min and tonumber(redis.call('HGET', slots, second))
  if taken then
    local used = math.max(0, taken + ask.tokens - reserved)
    redis.call('HSET', slots, second, text(used))
    redis.call('HINCRBY', slots, 'sum', text(used - taken))
  end
  let_go(scope, ask.id)
  if scope.token_budget or scope.kv_byte_seconds then
    local name, ends_s = spent_key(scope)
    redis.call('HINCRBY', name, 'tokens', text(ask.tokens))
    redis.call('HINCRBY', name, 'kv', text(ask.kv))
    redis.call('EXPIREAT', name, ends_s + 86400)
  end
end
local usage = 'gemline:{{limits}}:usage'
redis.call('XADD', usage, 'MAXLEN', '~', ask.max_records, '*', 'at_ms', text(now_ms), unpack(ask.usage))
return 1
"""

# ask: lease_ms, leases (pairs of scope's name and request id). Those that are over stay so.
RENEW = f"""{_COMMON}
for _, lease in ipairs(ask.leases) do
  redis.call('ZADD', key('running', {{name = lease[1]}}), 'XX', text(now_ms + ask.lease_ms), lease[2])
end
return #ask.leases
"""

USAGE = "gemline:{limits}:usage"  # stream: a record for each settled request
