-- The hot path: one round trip per call. Each function is a transaction of its own, unless the caller began one.
--
create or replace function @schema.now_s() returns float8 language sql volatile as $$
  -- clock_timestamp(): now() stands still inside a transaction, and a task that is enqueued within one would be late.
  select date_part('epoch', clock_timestamp())
$$
--
create or replace function @schema.queue_ids(p_names text[]) returns integer[] language plpgsql as $$
declare
  v_ids integer[];
begin
  for _ in 1..2 loop
    select array_agg(q.queue_id order by u.o) into v_ids
      from unnest(p_names) with ordinality u(name, o) left join @schema.queue q on q.name = u.name and q.is_used;
    if array_position(v_ids, null) is null then
      return v_ids;
    end if;
    -- In order: two producers of the same new queues must not wait for each other in a circle.
    insert into @schema.queue (name) select n from unnest(p_names) n order by n
    on conflict (name) do update set is_used = true;
  end loop;
  return v_ids;
end $$
--
create or replace function @schema.enqueue(
  p_queues text[], p_queue integer[], p_ids text[], p_names text[], p_bodies bytea[], p_ranks smallint[],
  p_delays float8[], p_ttls float8[], p_max_attempts integer[], p_max_crashes integer[], p_keys text[]
) returns table (ord integer, is_duplicate boolean, holder text) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
  v_now constant float8 := date_part('epoch', clock_timestamp());
  v_base constant bigint := nextval('@schema.block') * 1024;
  v_queues constant integer[] := @schema.queue_ids(p_queues);
  v_skip integer[] := '{}';
  v_holders text[] := '{}';
  v_new integer;
  v_delayed integer := 0;
begin
  if p_keys is not null then
    select k.skip, k.holders into v_skip, v_holders from @schema.take_keys(v_base, p_ids, p_keys) k;
  end if;

  -- The task's number: a block per call and the place in it. One draw per call, and the order of the batch is kept.
  if cardinality(p_ids) >= 16 and v_skip = '{}' then
    -- Nearly always all are new. "on conflict" looks every row up first and confirms it afterwards: half as much again.
    begin
      insert into @schema.task (seq, enqueued_at, run_at, expires_at, queue_id, max_attempts, max_crashes, rank, id,
                                name, unique_key, body)
      select v_base + u.o, v_now, v_now + coalesce(u.delay, 0), v_now + u.ttl, v_queues[coalesce(u.queue, 1)],
             coalesce(u.max_attempts, 1), coalesce(u.max_crashes, 3), coalesce(u.rank, -1), u.id, u.name, u.key, u.body
        from unnest(p_ids, p_names, p_bodies, p_queue, p_ranks, p_delays, p_ttls, p_max_attempts, p_max_crashes, p_keys)
             with ordinality u(id, name, body, queue, rank, delay, ttl, max_attempts, max_crashes, key, o);
      get diagnostics v_new = row_count;
    exception when unique_violation then
      v_new := null;
    end;
  end if;
  if v_new is null then
    insert into @schema.task (seq, enqueued_at, run_at, expires_at, queue_id, max_attempts, max_crashes, rank, id, name,
                              unique_key, body)
    select v_base + u.o, v_now, v_now + coalesce(u.delay, 0), v_now + u.ttl, v_queues[coalesce(u.queue, 1)],
           coalesce(u.max_attempts, 1), coalesce(u.max_crashes, 3), coalesce(u.rank, -1), u.id, u.name, u.key, u.body
      from unnest(p_ids, p_names, p_bodies, p_queue, p_ranks, p_delays, p_ttls, p_max_attempts, p_max_crashes, p_keys)
           with ordinality u(id, name, body, queue, rank, delay, ttl, max_attempts, max_crashes, key, o)
     where v_skip = '{}' or u.o <> all (v_skip)
    on conflict (id) do nothing;
    get diagnostics v_new = row_count;
  end if;

  if p_delays is null then
    insert into @schema.ready (queue_id, rank, seq, expires_at)
    select t.queue_id, t.rank, t.seq, t.expires_at from @schema.task t where t.seq between v_base and v_base + 1023;
  else
    insert into @schema.ready (queue_id, rank, seq, expires_at)
    select t.queue_id, t.rank, t.seq, t.expires_at
      from @schema.task t where t.seq between v_base and v_base + 1023 and t.run_at <= v_now;
    insert into @schema.delayed (queue_id, run_at, seq, expires_at, rank)
    select t.queue_id, t.run_at, t.seq, t.expires_at, t.rank
      from @schema.task t where t.seq between v_base and v_base + 1023 and t.run_at > v_now;
    get diagnostics v_delayed = row_count;
  end if;

  if p_queue is null then
    insert into @schema.delta values (v_queues[1], v_new, v_delayed, 0);
  else
    insert into @schema.delta
    select t.queue_id, count(*), count(*) filter (where t.run_at > v_now), 0
      from @schema.task t where t.seq between v_base and v_base + 1023 group by t.queue_id;
  end if;

  if v_new < cardinality(p_ids) then
    if p_keys is not null then
      -- A key that was taken for a record whose id turned out, only now, to be known.
      delete from @schema.uniq u using unnest(p_keys) with ordinality k(key, o)
       where u.key = k.key and u.seq = v_base + k.o
         and not exists (select from @schema.task t where t.seq = u.seq);
    end if;
    return query
      select u.o::integer, u.o <> all (v_skip), v_holders[array_position(v_skip, u.o::integer)]
        from generate_subscripts(p_ids, 1) u(o)
       where not exists (select from @schema.task t where t.seq = v_base + u.o);
  end if;
end $$
--
create or replace function @schema.enqueue_one(
  p_queue text, p_id text, p_name text, p_body bytea, p_rank smallint, p_ttl float8, p_max_attempts integer,
  p_max_crashes integer
) returns boolean language plpgsql as $$
-- One record without a key and without a delay, as `enqueue` would store it; whether its id was known. Four short
-- statements without arrays and without settings: a quarter of the time. No plan here has a choice to make.
declare
  v_now constant float8 := date_part('epoch', clock_timestamp());
  v_seq constant bigint := nextval('@schema.block') * 1024 + 1;
  v_queue integer;
begin
  select q.queue_id into v_queue from @schema.queue q where q.name = p_queue and q.is_used;
  if not found then
    v_queue := (@schema.queue_ids(array[p_queue]))[1];
  end if;
  insert into @schema.task (seq, enqueued_at, run_at, expires_at, queue_id, max_attempts, max_crashes, rank, id, name, body)
  values (v_seq, v_now, v_now, v_now + p_ttl, v_queue, p_max_attempts, p_max_crashes, p_rank, p_id, p_name, p_body)
  on conflict (id) do nothing;
  if not found then
    return true;
  end if;
  insert into @schema.ready (queue_id, rank, seq, expires_at) values (v_queue, p_rank, v_seq, v_now + p_ttl);
  insert into @schema.delta values (v_queue, 1, 0, 0);
  return false;
end $$
--
create or replace function @schema.take_keys(
  p_base bigint, p_ids text[], p_keys text[], out skip integer[], out holders text[]
) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
-- Takes the unique keys of new records; tells the places of those whose key is held, and by which task.
declare
  v_want integer[];
  v_lost integer[];
  v_holders text[];
begin
  skip := '{}';
  holders := '{}';
  -- The id comes first: a known one is a duplicate, whatever its key.
  select array_agg(u.o::integer) into v_want
    from (select distinct on (i.id) i.id, i.key, i.o
            from unnest(p_ids, p_keys) with ordinality i(id, key, o) order by i.id, i.o) u
   where u.key is not null and not exists (select from @schema.task t where t.id = u.id);
  while v_want is not null loop
    -- By key, so that two batches wait for each other in one direction only; of one batch the first record wins.
    insert into @schema.uniq (key, seq)
    select p_keys[w.o], p_base + w.o from unnest(v_want) w(o) order by 1, 2
    on conflict do nothing;
    select array_agg(w.o), array_agg(coalesce(t.id, p_ids[case when u.seq - p_base between 1 and 1023 then (u.seq - p_base)::integer end]))
      into v_lost, v_holders
      from unnest(v_want) w(o)
      join @schema.uniq u on u.key = p_keys[w.o] and u.seq <> p_base + w.o
      left join @schema.task t on t.seq = u.seq;
    skip := skip || coalesce(v_lost, '{}');
    holders := holders || coalesce(v_holders, '{}');
    -- Neither ours nor anybody's: it was freed between the two statements. Try again.
    select array_agg(w.o) into v_want
      from unnest(v_want) w(o)
     where w.o <> all (skip)
       and not exists (select from @schema.uniq u where u.key = p_keys[w.o] and u.seq = p_base + w.o);
  end loop;
end $$
--
create or replace function @schema.claim(
  p_queues text[], p_max integer, p_lease float8, p_worker text, p_claim text, p_retention float8
) returns table (
  token bigint, until float8, seq bigint, id text, queue text, name text, body bytea, attempt integer, crashes integer,
  max_attempts integer, max_crashes integer, enqueued_at float8
) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  v_now constant float8 := date_part('epoch', clock_timestamp());
  v_left integer := p_max;
  v_token bigint;
  v_until float8;
  v_seqs bigint[] := '{}';
  v_got bigint[];
  v_queue integer;
  v_promoted integer;
begin
  -- A repeated call may overtake the first one, which is still at work on the server: one of them waits here.
  perform pg_advisory_xact_lock(hashtextextended(p_claim, 0));
  select c.token, c.until, c.seqs into v_token, v_until, v_seqs from @schema.claim c where c.claim_id = p_claim;
  if not found then
    v_seqs := '{}';
    if exists (select from @schema.ready r where r.expires_at <= v_now) then
      perform @schema.expire(1000, p_retention);
    end if;
    for v_queue in
      select q.queue_id from unnest(p_queues) with ordinality u(name, o) join @schema.queue q using (name)
       where not q.paused order by u.o
    loop
      v_promoted := 0;
      if exists (select from @schema.delayed d where d.queue_id = v_queue and d.run_at <= v_now) then
        with due as (
          delete from @schema.delayed d where d.ctid = any (array(
            select x.ctid from @schema.delayed x where x.queue_id = v_queue and x.run_at <= v_now
             order by x.run_at, x.seq limit p_max + 1000 for update skip locked))
          returning d.rank, d.seq, d.expires_at)
        insert into @schema.ready (queue_id, rank, seq, expires_at)
        select v_queue, due.rank, due.seq, due.expires_at from due;
        get diagnostics v_promoted = row_count;
      end if;
      with taken as (
        delete from @schema.ready r where r.ctid = any (array(
          select x.ctid from @schema.ready x
           where x.queue_id = v_queue and (x.expires_at is null or x.expires_at > v_now)
           order by x.rank, x.seq limit v_left for update skip locked))
        returning r.rank, r.seq)
      select array_agg(taken.seq order by taken.rank, taken.seq) into v_got from taken;
      if v_got is not null then
        v_seqs := v_seqs || v_got;
        v_left := v_left - cardinality(v_got);
      end if;
      if v_promoted > 0 or v_got is not null then
        insert into @schema.delta
        values (v_queue, -coalesce(cardinality(v_got), 0), -v_promoted, coalesce(cardinality(v_got), 0));
      end if;
      exit when v_left = 0;
    end loop;
    if v_seqs = '{}' then
      return;
    end if;
    v_token := nextval('@schema.token');
    v_until := date_part('epoch', clock_timestamp()) + p_lease;
    insert into @schema.claim values (v_token, v_until, cardinality(v_seqs), p_claim, p_worker, v_seqs);
  end if;
  return query
    select v_token, v_until, t.seq, t.id, q.name, t.name, t.body, t.attempt + 1, t.crashes, t.max_attempts,
           t.max_crashes, t.enqueued_at
      from unnest(v_seqs) with ordinality a(seq, o)
      join @schema.task t on t.seq = a.seq
      join @schema.queue q on q.queue_id = t.queue_id
     where t.fence < v_token
     order by a.o;
end $$
--
create or replace function @schema.settle(
  p_tokens bigint[], p_token bigint[], p_seqs bigint[], p_verbs smallint[], p_crashed boolean[], p_delays float8[],
  p_ttls float8[], p_reasons text[], p_errors bytea[], p_results bytea[], p_retention float8, p_joins boolean
) returns table (outcomes text, rung text[]) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
-- p_tokens: the claims, each once; p_token: the claim of each item, null if there is but one. One item per task.
-- outcomes: a letter per item (o ok, d duplicate, s stale, n not found), null if all are ok.
declare
  v_now constant float8 := date_part('epoch', clock_timestamp());
  v_single constant boolean := p_token is null;
  v_open integer;
  v_seqs bigint[];
  v_final bigint[];
  v_tokens bigint[];
  v_queues integer[];
  v_count integer;
  v_pending boolean;
  v_keyed boolean;
  v_failed boolean;
begin
  -- Owner and reaper meet at the claim's row. A settle that is part of a longer transaction takes the weakest lock:
  -- it keeps the reaper off, and neither an extension nor the settles of other tasks of the same claim.
  if p_joins then
    perform from @schema.claim c where c.token = any (p_tokens) order by c.token for key share;
  elsif v_single then
    select c.open into v_open from @schema.claim c where c.token = p_tokens[1] for no key update;
  else
    perform from @schema.claim c where c.token = any (p_tokens) order by c.token for no key update;
  end if;

  if found then
    with done as (
      update @schema.task t
         set fence = coalesce(u.token, p_tokens[1]),
             attempt = t.attempt + case when u.verb = 1 then 0 else 1 end,
             crashes = t.crashes + case when u.crashed then 1 else 0 end,
             state = case when u.verb is null then 2 when u.verb > 1 then u.verb when t.cancel_requested then 4 else 0 end,
             run_at = case when u.verb < 2 and not t.cancel_requested then v_now + coalesce(u.delay, 0) else t.run_at end,
             finished_at = case when u.verb < 2 and not t.cancel_requested then null else v_now end,
             reason = u.reason,
             error = u.error,
             result = case when u.verb < 2 and not t.cancel_requested then null else u.result end,
             result_until = case when u.result is not null then v_now + coalesce(u.ttl, p_retention) end
        from unnest(p_seqs, p_token, p_verbs, p_crashed, p_delays, p_ttls, p_reasons, p_errors, p_results)
             u(seq, token, verb, crashed, delay, ttl, reason, error, result)
       where t.seq = u.seq
         and t.state = 0
         and t.fence < coalesce(u.token, p_tokens[1])
         and (v_single or exists (select from @schema.claim c where c.token = u.token))
      returning t.seq, t.fence, t.queue_id, t.state, t.unique_key is not null as keyed)
    select array_agg(d.seq), array_agg(d.seq) filter (where d.state > 0),
           case when not v_single then array_agg(d.fence) end, array_agg(d.queue_id), count(*),
           bool_or(d.state = 0), bool_or(d.state > 0 and d.keyed), bool_or(d.state > 2)
      into v_seqs, v_final, v_tokens, v_queues, v_count, v_pending, v_keyed, v_failed
      from done d;
  end if;

  if v_count > 0 then
    if not p_joins then
      if not v_single then
        update @schema.claim c set open = c.open - d.n
          from (select x.token, count(*) n from unnest(v_tokens) x(token) group by x.token) d where c.token = d.token;
      elsif v_open > v_count then
        update @schema.claim c set open = c.open - v_count where c.token = p_tokens[1];
      end if;
      if not v_single or v_open <= v_count then
        -- Not waited for: a transaction of somebody's that settled a task of this claim holds the row until it ends.
        -- What is left here is found empty by the reaper.
        delete from @schema.claim c where c.token in (
          select x.token from @schema.claim x
           where x.token = any (p_tokens) and (v_single or x.open <= 0) order by x.token for update skip locked);
      end if;
    end if;
    if not v_pending then
      insert into @schema.delta select q.id, 0, 0, -count(*) from unnest(v_queues) q(id) group by q.id;
    else
      rung := @schema.make_pending(v_seqs, v_now);
      insert into @schema.delta
      select t.queue_id, count(*) filter (where t.state = 0), count(*) filter (where t.state = 0 and t.run_at > v_now),
             -count(*)
        from @schema.task t where t.seq = any (v_seqs) group by t.queue_id;
    end if;
    if v_final is not null then
      insert into @schema.look values (v_now + p_retention, v_final);
      if v_keyed then
        delete from @schema.uniq k using @schema.task t
         where t.seq = any (v_final) and k.key = t.unique_key and k.seq = t.seq;
      end if;
      if v_failed then
        insert into @schema.failed select t.seq from @schema.task t where t.seq = any (v_final) and t.state > 2
        on conflict do nothing;
      end if;
      if p_ttls is not null then
        insert into @schema.look
        select t.result_until, array_agg(t.seq) from @schema.task t
         where t.seq = any (v_final) and t.result is not null and t.result_until <> v_now + p_retention
         group by t.result_until;
      end if;
      if p_results is not null and exists (select from @schema.result) then
        delete from @schema.result r using @schema.task t
         where t.seq = any (v_final) and t.result is not null and r.task_id = t.id and r.fence <= t.fence;
      end if;
    end if;
  end if;

  if coalesce(v_count, 0) < cardinality(p_seqs) then
    -- A reaper's fence is odd, a claim's even: what a reaper wrote is no duplicate of anybody's settle.
    select string_agg(case when d.seq is not null then 'o' when t.seq is null then 'n'
                           when t.fence = coalesce(u.token, p_tokens[1]) and t.fence % 2 = 0 then 'd' else 's' end,
                      '' order by u.o)
      into outcomes
      from unnest(p_seqs, p_token) with ordinality u(seq, token, o)
      left join unnest(v_seqs) d(seq) on d.seq = u.seq
      left join @schema.task t on t.seq = u.seq;
  end if;
  return next;
end $$
--
create or replace function @schema.settle_one(
  p_token bigint, p_seq bigint, p_ttl float8, p_result bytea, p_retention float8
) returns boolean language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
-- One task that succeeded, as `settle` would write it, without arrays; a worker with little to do has somebody waiting.
-- False: nothing was done, since the lease is not what it was; `settle` then knows what to answer.
declare
  v_now constant float8 := date_part('epoch', clock_timestamp());
  v_open integer;
  v_queue integer;
  v_id text;
  v_key text;
begin
  select c.open into v_open from @schema.claim c where c.token = p_token for no key update;
  if not found then
    return false;
  end if;
  update @schema.task t
     set fence = p_token, attempt = t.attempt + 1, state = 2, finished_at = v_now, reason = null, error = null,
         result = p_result, result_until = case when p_result is not null then v_now + coalesce(p_ttl, p_retention) end
   where t.seq = p_seq and t.state = 0 and t.fence < p_token
  returning t.queue_id, t.id, t.unique_key into v_queue, v_id, v_key;
  if not found then
    return false;
  end if;
  if v_open > 1 then
    update @schema.claim c set open = c.open - 1 where c.token = p_token;
  else
    delete from @schema.claim c where c.token in (
      select x.token from @schema.claim x where x.token = p_token for update skip locked);
  end if;
  insert into @schema.delta values (v_queue, 0, 0, -1);
  insert into @schema.look values (v_now + p_retention, array[p_seq]);
  if v_key is not null then
    delete from @schema.uniq k where k.key = v_key and k.seq = p_seq;
  end if;
  if p_result is not null then
    if p_ttl <> p_retention then
      insert into @schema.look values (v_now + p_ttl, array[p_seq]);
    end if;
    delete from @schema.result r where r.task_id = v_id and r.fence <= p_token;
  end if;
  return true;
end $$
--
create or replace function @schema.make_pending(p_seqs bigint[], p_now float8) returns text[] language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
-- Puts those of the (locked) tasks that are open in line; the names of their queues.
begin
  insert into @schema.ready (queue_id, rank, seq, expires_at)
  select t.queue_id, t.rank, t.seq, t.expires_at
    from @schema.task t where t.seq = any (p_seqs) and t.state = 0 and t.run_at <= p_now;
  insert into @schema.delayed (queue_id, run_at, seq, expires_at, rank)
  select t.queue_id, t.run_at, t.seq, t.expires_at, t.rank
    from @schema.task t where t.seq = any (p_seqs) and t.state = 0 and t.run_at > p_now;
  return array(select distinct q.name from @schema.task t join @schema.queue q using (queue_id)
                where t.seq = any (p_seqs) and t.state = 0);
end $$
--
create or replace function @schema.extend(
  p_tokens bigint[], p_token bigint[], p_seqs bigint[], p_lease float8
) returns table (ord integer, until float8, cancel_requested boolean) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
  v_until constant float8 := date_part('epoch', clock_timestamp()) + p_lease;
begin
  perform from @schema.claim c where c.token = any (p_tokens) order by c.token for no key update;
  update @schema.claim c set until = v_until where c.token = any (p_tokens) and c.until < v_until;
  return query
    select u.o::integer, c.until, t.cancel_requested
      from unnest(p_seqs, p_token) with ordinality u(seq, token, o)
      join @schema.claim c on c.token = coalesce(u.token, p_tokens[1])
      join @schema.task t on t.seq = u.seq and t.state = 0 and t.fence < c.token;
end $$
--
create or replace function @schema.locate(p_ids text[], p_fences bigint[])
returns table (ord integer, seq bigint, fence bigint, is_held boolean) language sql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
  -- For leases that came without their handle.
  select u.o::integer, t.seq, t.fence, exists (
           select from @schema.claim c where c.token = u.fence and t.seq = any (c.seqs))
    from unnest(p_ids, p_fences) with ordinality u(id, fence, o) join @schema.task t on t.id = u.id
$$
--
create or replace function @schema.peek(p_queues text[]) returns table (is_ready boolean, due_in float8)
language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
  v_ids constant integer[] := array(select q.queue_id from @schema.queue q where q.name = any (p_queues) and not q.paused);
  v_now constant float8 := date_part('epoch', clock_timestamp());
  v_queue integer;
begin
  is_ready := false;
  foreach v_queue in array v_ids loop
    is_ready := is_ready or exists (select from @schema.ready r where r.queue_id = v_queue);
    due_in := least(due_in, (select min(d.run_at) from @schema.delayed d where d.queue_id = v_queue) - v_now);
  end loop;
  return next;
end $$
--
create or replace function @schema.tell(p_channel text, p_payload text, p_seqs bigint[], p_fences bigint[]) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
-- A notification that brings the results of a few settlements along. Sent behind them: what is told was committed. A
-- settlement that was not good has left no row with its fence, and is not told.
declare
  v_payload text := p_payload;
  v_told text;
begin
  -- Its commit is worth no fsync: a notification that is lost is made good by the waiters' own looking.
  perform set_config('synchronous_commit', 'off', true);
  for i in 1..cardinality(p_seqs) loop  -- one row at a time is quickest where there is one
    select ' R' || encode(int8send(t.fence) || int2send(t.state) || float8send(t.finished_at) || float8send(t.result_until)
                          || int4send(octet_length(convert_to(t.id, 'UTF8'))) || convert_to(t.id, 'UTF8') || t.result, 'hex')
      into v_told
      from @schema.task t
     where t.seq = p_seqs[i] and t.fence = p_fences[i] and t.result is not null
       and t.result_until > date_part('epoch', clock_timestamp())
       and not exists (select from @schema.result r where r.task_id = t.id);
    v_payload := v_payload || coalesce(v_told, '');
  end loop;
  perform pg_notify(p_channel, v_payload);
end $$
