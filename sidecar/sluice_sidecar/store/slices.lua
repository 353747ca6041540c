-- Takes one pod's report on all limits of an account and answers with its slices, in one step that nothing interrupts.
--
-- Of each pod the most is assumed that it may use within any window: the larger of what it says it holds and what it is
-- granted in answer, until its lease has run out and a whole window after it. A slice is granted only out of what
-- nobody holds, so that one shrinks before another grows. If one more call would not fit under one limit of the whole
-- account, nothing more is taken of the others.
--
-- KEYS  1 the account; then three for each limit: its sums, its pods, the order in which they fall silent or expire
-- ARGV  run id of the server, pod, sequence of the report, allocation, its share in percent, its weight where idle
--       share is lent, milliseconds of a lease, 1 if this is the last report, then for each limit: capacity,
--       milliseconds after a report until its holding is over, the same after a last one, what is kept for all pods
--       without a slice, what of this for the allocation, held, used, wanted, safe, least; 1 if of the whole account;
--       what was held until this report; in a last report what of the used is left after each further even part of
--       its time, as words; of what is used for certain the same, and before it how much that is now
-- Returns the sequence of the report that this answers, the time in milliseconds, until when nothing new is given out,
-- after how many milliseconds the pod should call again, a slice per limit (-1 for an old report), and per limit 1 if
-- more of it is wanted than there is.
--
-- All numbers are whole. Times are those of the server; where its clock steps back, they stand still.
local KEEP_SECONDS = 32 * 86400 -- of an idle account, so that it need not learn anew when its pods come back
local CLOCK_STEP = 5000 -- a step back of more than so many milliseconds is no correction: begin anew
local ROTATION = 90000
local SWEEP = 64
local SHORT = 60000 -- for so long after a shortage what is not needed is given back: permits come back in waves
local MAY_NOT_WAIT = 8 -- weight of Realtime: from there on an eighth on top of the demand is kept from being lent
local FIELDS = 14
local CALL_AGAIN = 1000 -- milliseconds; half of it for who holds more than an even part of what others want
local CALLS_PER_MILLISECOND = 2 -- of all pods together, but for those in a hurry
local STEP_SLACK = 1000 -- a step comes so much later than its part of the time, as the end does
local LONG = 20 -- leases: of a window that is longer, spare slices are small, for what a killed pod held is out so long

local run, pod, sequence, allocation = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local percent, weight, lease = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local stopping = ARGV[8] == '1'

local function text(number) return string.format('%.0f', number) end

local function pack(...)
  local parts = {...}
  for index, part in ipairs(parts) do
    if type(part) == 'number' then parts[index] = text(part) end
  end
  return table.concat(parts, ' ')
end

local function unpack_words(packed)
  local words = {}
  for word in string.gmatch(packed, '%S+') do words[#words + 1] = tonumber(word) or word end
  return words
end

-- The account: since when its state is known. A server that was flushed, restarted or replaced knows nothing.
local function begin()
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local known = redis.call('HMGET', KEYS[1], 'run', 'epoch', 'last', 'settled')
  local last = tonumber(known[3])
  if known[1] ~= run or not last or now < last - CLOCK_STEP then
    redis.call('DEL', KEYS[1])
    known = {run, pod .. ':' .. ARGV[3] .. ':' .. text(now), text(now), false}
  else
    now = math.max(now, last)
  end
  redis.call('HSET', KEYS[1], 'run', run, 'epoch', known[2], 'last', text(now))
  redis.call('EXPIRE', KEYS[1], KEEP_SECONDS)
  return now, known[2], known[4] == '1'
end

local function draw(now)
  local digest = redis.sha1hex(text(math.floor(now / ROTATION)) .. ':' .. pod)
  return tonumber(string.sub(digest, 1, 8), 16) / 4294967296
end

-- One limit as it is stored: its sums, and those of each allocation.
local function load(index, now, epoch)
  local limit = {sums = KEYS[3 * index - 1], pods = KEYS[3 * index], order = KEYS[3 * index + 1], shares = {}, names = {}}
  local first = 8 + (index - 1) * FIELDS
  for place, name in ipairs({'capacity', 'ends', 'stops', 'reserve', 'part', 'held', 'used', 'wanted', 'safe', 'least', 'whole',
    'returned'}) do
    limit[name] = tonumber(ARGV[first + place])
  end
  limit.fading, limit.certain = ARGV[first + FIELDS - 1], ARGV[first + FIELDS]
  local stored = redis.call('HGETALL', limit.sums)
  local fields = {}
  for place = 1, #stored, 2 do fields[stored[place]] = stored[place + 1] end
  limit.count = tonumber(fields.count) or 0
  if fields.epoch ~= epoch or redis.call('HLEN', limit.pods) ~= limit.count
      or redis.call('ZCARD', limit.order) ~= limit.count then
    redis.call('DEL', limit.sums, limit.pods, limit.order) -- another epoch, or evicted in part
    limit.count, limit.learning = 0, now + limit.ends
    limit.exposure, limit.silent, limit.learned, limit.short_at = 0, 0, 0, -SHORT
    redis.call('HSET', limit.sums, 'epoch', epoch, 'learning', text(limit.learning))
    return limit
  end
  limit.learning = tonumber(fields.learning)
  limit.exposure, limit.silent = tonumber(fields.exposure), tonumber(fields.silent)
  limit.learned, limit.short_at = tonumber(fields.learned), tonumber(fields.short) or -SHORT
  for field, packed in pairs(fields) do
    if string.sub(field, 1, 2) == 'a:' then
      local name, words = string.sub(field, 3), unpack_words(packed)
      limit.names[#limit.names + 1] = name
      limit.shares[name] = {percent = words[1], weight = words[2], part = words[3],
        need = words[4], safe = words[5], pods = words[6]}
    end
  end
  table.sort(limit.names)
  return limit
end

local function share_of(limit, name)
  local share = limit.shares[name]
  if not share then
    share = {percent = 0, weight = 1, part = 0, need = 0, safe = 0, pods = 0}
    limit.shares[name] = share
    limit.names[#limit.names + 1] = name
    table.sort(limit.names)
  end
  return share
end

-- A holding: live or silent, exposure, need, safe, when it is over, sequence, then when it will be how much in pairs
-- if nothing is heard any more, allocation. Other versions of this script know the first six and the last of these.
local function read(limit, name)
  local packed = redis.call('HGET', limit.pods, name)
  if not packed then return nil end
  local words = unpack_words(packed)
  local holding = {live = words[1], exposure = words[2], need = words[3], safe = words[4], over = words[5],
    sequence = words[6], steps = {}, allocation = string.match(packed, '(%S+)$')}
  for place = 7, #words - 1 do holding.steps[place - 6] = words[place] end
  return holding
end

local function write(limit, name, holding, due)
  local words = {holding.live, holding.exposure, holding.need, holding.safe, holding.over, holding.sequence}
  for _, word in ipairs(holding.steps) do words[#words + 1] = word end
  words[#words + 1] = holding.allocation
  redis.call('HSET', limit.pods, name, pack(unpack(words)))
  redis.call('ZADD', limit.order, text(due), name)
end

local function subtract(limit, holding)
  local share = share_of(limit, holding.allocation)
  limit.exposure = limit.exposure - holding.exposure
  share.safe = share.safe - holding.safe
  if holding.live == 1 then
    share.need, share.pods = share.need - holding.need, share.pods - 1
  else
    limit.silent = limit.silent - holding.exposure
  end
end

local function add(limit, holding)
  local share = share_of(limit, holding.allocation)
  limit.exposure = limit.exposure + holding.exposure
  share.safe = share.safe + holding.safe
  if holding.live == 1 then
    share.need, share.pods = share.need + holding.need, share.pods + 1
  else
    limit.silent = limit.silent + holding.exposure
  end
end

-- What a pod that has stopped leaves behind goes in steps, as it leaves the window: when it will be how much.
local function steps_of(limit, now)
  local left, steps = unpack_words(limit.fading), {}
  for part, amount in ipairs(left) do
    steps[2 * part - 1] = now + math.ceil(limit.stops * part / (#left + 1)) + STEP_SLACK
    steps[2 * part] = math.min(limit.used, amount)
  end
  return steps
end

-- What a pod that is gone without a word had used for certain was in the way of other use until its lease ran out, unless
-- it had left the window before; so it is free as it leaves. What calls that are not over may give back is not certain.
local function steps_if_silent(limit, holding, now)
  local certain, steps = unpack_words(limit.certain), {}
  local part_length = (limit.stops - STEP_SLACK) / 1.01 / math.max(1, #certain)
  local first = math.floor(lease * 1.02 / part_length) + 1 -- by then no slice is in force any more
  for part = first + 1, #certain do
    local over = certain[first + 1] - (certain[part + 1] or 0)
    steps[#steps + 1] = now + math.ceil(limit.stops * part / #certain) + STEP_SLACK
    steps[#steps + 1] = math.max(holding.safe, holding.exposure - over)
  end
  return steps
end

local function fade(holding, now)
  while holding.steps[1] and holding.steps[1] <= now do
    holding.exposure = math.min(holding.exposure, holding.steps[2])
    table.remove(holding.steps, 1)
    table.remove(holding.steps, 1)
  end
  return math.min(holding.over, holding.steps[1] or holding.over)
end

-- Whoever has not reported for a lease wants nothing any more; what it held counts until it is over.
local function sweep(limit, now)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', limit.order, '-inf', text(now), 'LIMIT', 0, SWEEP)) do
    local holding = read(limit, name)
    subtract(limit, holding)
    if holding.over <= now then
      redis.call('HDEL', limit.pods, name)
      redis.call('ZREM', limit.order, name)
      limit.count = limit.count - 1
    else
      holding.live, holding.need = 0, 0
      local due = fade(holding, now)
      add(limit, holding)
      write(limit, name, holding, due)
    end
  end
end

-- What may be out at once; while learning, no more than was told of.
local function effective(limit, now, settled)
  local unknown = limit.reserve
  for _, name in ipairs(limit.names) do
    unknown = unknown - math.min(limit.shares[name].part, limit.shares[name].safe)
  end
  local expected = limit.capacity - math.max(0, unknown)
  if now < limit.learning and not settled then return math.min(expected, limit.learned) end
  return expected
end

-- What each allocation gets of `capacity`: its demand within its share, then idle share by weight, nobody more than
-- it wants. Returns what is promised, the grants, what is left, what of this is kept for whom to grow, and whether more
-- is wanted than there is.
local function divide(limit, capacity)
  local promised, granted, whole, left, kept, all_kept = {}, {}, 0, capacity, {}, 0
  for _, name in ipairs(limit.names) do
    if limit.shares[name].pods > 0 then whole = whole + limit.shares[name].percent end
  end
  whole = math.max(100, whole)
  local open, weights = {}, 0
  for _, name in ipairs(limit.names) do
    local share = limit.shares[name]
    promised[name] = math.floor(capacity * share.percent / whole)
    granted[name] = math.min(share.need, promised[name])
    left = left - granted[name]
    if share.pods > 0 and share.weight >= MAY_NOT_WAIT then
      kept[name] = math.max(0, math.min(promised[name] - granted[name], math.floor(share.need / 8)))
      all_kept = all_kept + kept[name]
    end
    if share.need > granted[name] then
      open[#open + 1] = {name = name, weight = share.weight, wants = share.need - granted[name]}
      weights = weights + share.weight
    end
  end
  local short = false
  table.sort(open, function(one, other)
    local first, second = one.wants * other.weight, other.wants * one.weight
    return first < second or (first == second and one.name < other.name)
  end)
  left = left - all_kept
  for _, each in ipairs(open) do
    local lent = math.min(each.wants, math.floor(math.max(0, left) * each.weight / weights))
    granted[each.name], left, weights = granted[each.name] + lent, left - lent, weights - each.weight
    short = short or lent < each.wants
  end
  return promised, granted, math.max(0, left), kept, short
end

-- What the pod should have: its demand if there is enough, and headroom; else its part of what its allocation gets.
-- If that part is too little to be of use, some pods get enough and the others nothing, in turn.
local function target(limit, need, capacity, chance, now)
  local promised, granted, left, kept, short = divide(limit, capacity)
  if short then limit.short_at = now end
  limit.short = now - limit.short_at < SHORT and 1 or 0
  local share = limit.shares[allocation]
  if share.need > granted[allocation] then
    local level = need * granted[allocation] / share.need
    if need == 0 or (level >= 1 and level >= limit.least) then return math.floor(level) end
    local unit = math.min(need, math.max(1, limit.least))
    return math.floor(level / unit) * unit + (chance * unit < level % unit and unit or 0)
  end
  local spare, needs, pods = 0, 0, 0
  for _, name in ipairs(limit.names) do
    local each = limit.shares[name]
    if each.pods > 0 then
      spare = spare + math.max(0, promised[name] - granted[name] - (kept[name] or 0))
      needs, pods = needs + each.need, pods + each.pods
    end
  end
  local grows = kept[allocation] or 0
  local own = math.min(left, math.max(0, promised[allocation] - granted[allocation] - grows))
  local common = math.max(0, left - spare)
  local headroom = math.floor(own / (2 * share.pods))
  if grows > 0 then headroom = headroom + math.floor(grows * need / share.need) end
  if needs > 0 then headroom = headroom + math.floor(45 * common * need / (100 * needs)) end
  headroom = headroom + math.floor(45 * common / (100 * pods))
  if limit.stops > LONG * lease then
    headroom = math.min(headroom, math.max(1, limit.least, math.ceil(2 * limit.capacity * lease / limit.stops)))
  end
  return need + headroom
end

local now, epoch, settled = begin()
local chance = draw(now)
local limits, blocked, learning_until = {}, false, 0

for index = 1, (#KEYS - 1) / 3 do
  local limit = load(index, now, epoch)
  limits[index] = limit
  sweep(limit, now)
  local before = read(limit, pod)
  limit.stale = before ~= nil and sequence <= before.sequence
  if not limit.stale then
    if before then
      subtract(limit, before)
    else
      limit.count = limit.count + 1
      if now < limit.learning then limit.learned = limit.learned + limit.held + limit.returned end
    end
    local share = share_of(limit, allocation)
    share.percent, share.weight, share.part = percent, weight, limit.part
    local holding = {live = 1, sequence = sequence, allocation = allocation, safe = limit.safe, over = now + limit.ends,
      steps = {}}
    holding.exposure = math.max(limit.held, limit.safe)
    holding.need = math.min(limit.capacity, math.max(limit.wanted, limit.safe))
    if stopping then
      holding.live, holding.exposure, holding.need, holding.safe = 0, limit.used, 0, 0
      holding.over, holding.steps = now + limit.stops, steps_of(limit, now)
    end
    limit.holding, limit.grant, limit.short = holding, 0, 0
    add(limit, holding)
    if not stopping then
      local capacity = effective(limit, now, settled)
      local aim = target(limit, holding.need, math.max(0, capacity - limit.silent), chance, now)
      limit.grant = math.max(0, math.min(aim, capacity - (limit.exposure - holding.exposure)))
      local one_more = math.min(limit.wanted, limit.used + math.max(1, limit.least))
      if limit.whole == 1 and limit.wanted > limit.held and limit.grant < one_more then blocked = true end
    end
  end
  if not settled then learning_until = math.max(learning_until, limit.learning) end
end

local slices, shorts, again, pods = {}, {}, CALL_AGAIN, 0
for index, limit in ipairs(limits) do
  if limit.stale then
    slices[index] = -1
  else
    local holding = limit.holding
    if blocked then limit.grant = math.min(limit.grant, limit.held) end
    local more = math.max(0, math.max(limit.grant, holding.exposure) - holding.exposure)
    if not stopping then
      holding.exposure, limit.exposure = holding.exposure + more, limit.exposure + more
      holding.steps = steps_if_silent(limit, holding, now)
    end
    write(limit, pod, holding, stopping and fade(holding, now) or now + lease)
    if limit.short == 1 and holding.exposure * limit.count > limit.capacity then again = CALL_AGAIN / 2 end
    pods = math.max(pods, limit.count)
    slices[index] = limit.grant
  end
  shorts[index] = limit.short or 0
  local fields = {'epoch', epoch, 'learning', text(limit.learning), 'count', text(limit.count),
    'exposure', text(limit.exposure), 'silent', text(limit.silent), 'learned', text(limit.learned), 'short', text(limit.short_at)}
  for _, name in ipairs(limit.names) do
    local share = limit.shares[name]
    if share.pods > 0 or share.safe > 0 or name == allocation then
      fields[#fields + 1] = 'a:' .. name
      fields[#fields + 1] = pack(share.percent, share.weight, share.part, share.need, share.safe, share.pods)
    else
      redis.call('HDEL', limit.sums, 'a:' .. name)
    end
  end
  redis.call('HSET', limit.sums, unpack(fields))
  for _, key in ipairs({limit.sums, limit.pods, limit.order}) do redis.call('EXPIRE', key, KEEP_SECONDS) end
end
local answer = {sequence, now, learning_until, math.max(again, math.ceil(pods / CALLS_PER_MILLISECOND))}
for _, slice in ipairs(slices) do answer[#answer + 1] = slice end
for _, short in ipairs(shorts) do answer[#answer + 1] = short end
return answer
