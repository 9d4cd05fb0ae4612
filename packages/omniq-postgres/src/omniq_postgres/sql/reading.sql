-- Looking, and the two stores that stand beside the queue.
--
create or replace function @schema.snapshots(p_seqs bigint[], p_ids text[] default null) returns table (
  seq bigint, id text, queue text, name text, state integer, body bytea, priority integer, attempt integer,
  max_attempts integer, crashes integer, max_crashes integer, fence bigint, enqueued_at float8, run_at float8,
  expires_at float8, finished_at float8, worker_id text, until float8, unique_key text, cancel_requested boolean,
  reason text, error bytea
) language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
-- Stable: all its statements see the caller's snapshot, so a task that moves meanwhile is seen in one place.
declare
  v_running bigint[];
begin
  if p_ids is not null then
    p_seqs := array(select t.seq from @schema.task t where t.id = any (p_ids));
  end if;
  -- An open task that is not in line is held by a claim. Claims are few; their lists are read once.
  select array_agg(t.seq) into v_running from @schema.task t
   where t.seq = any (p_seqs) and t.state = 0
     and not exists (select from @schema.ready r
                      where r.queue_id = t.queue_id and r.rank = t.rank and r.seq = t.seq)
     and not exists (select from @schema.delayed d
                      where d.queue_id = t.queue_id and d.run_at = t.run_at and d.seq = t.seq);
  if v_running is null then
    return query
      select t.seq, t.id, q.name, t.name, t.state::integer, t.body, -1 - t.rank, t.attempt, t.max_attempts, t.crashes,
             t.max_crashes, t.fence, t.enqueued_at, t.run_at, t.expires_at, t.finished_at, null::text, null::float8,
             t.unique_key, t.cancel_requested, t.reason, t.error
        from @schema.task t join @schema.queue q using (queue_id) where t.seq = any (p_seqs) order by t.seq desc;
    return;
  end if;
  return query
    with held as materialized (
      select s.seq, c.token, c.worker_id, c.until
        from @schema.claim c cross join lateral unnest(c.seqs) s(seq)
        join (select distinct r from unnest(v_running) r) w on w.r = s.seq)
    select t.seq, t.id, q.name, t.name, case when h.seq is null then t.state::integer else 1 end, t.body, -1 - t.rank,
           t.attempt + case when h.seq is null then 0 else 1 end, t.max_attempts, t.crashes, t.max_crashes,
           coalesce(h.token, t.fence), t.enqueued_at, t.run_at, t.expires_at, t.finished_at, h.worker_id, h.until,
           t.unique_key, t.cancel_requested, t.reason, t.error
      from @schema.task t join @schema.queue q using (queue_id)
      left join held h on h.seq = t.seq and h.token > t.fence and t.seq = any (v_running)
     where t.seq = any (p_seqs) order by t.seq desc;
end $$
--
create or replace function @schema.stats(p_queues text[]) returns table (
  queue text, pending bigint, delayed bigint, running bigint, paused boolean, due_at float8, now float8
) language plpgsql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
  v_now constant float8 := date_part('epoch', clock_timestamp());
begin
  return query
    select q.name, coalesce(y.pending, 0) + coalesce(d.pending, 0),
           -- What has become due counts as ready at once, though the next claim will move it.
           greatest(0, coalesce(y.delayed, 0) + coalesce(d.delayed, 0)
                       - (select count(*) from @schema.delayed x where x.queue_id = q.queue_id and x.run_at <= v_now)),
           coalesce(y.running, 0) + coalesce(d.running, 0), q.paused,
           (select t.run_at from @schema.ready r join @schema.task t on t.seq = r.seq
             where r.queue_id = q.queue_id order by r.rank, r.seq limit 1), v_now
      from @schema.queue q
      left join @schema.tally y using (queue_id)
      left join (select e.queue_id, sum(e.pending)::bigint as pending, sum(e.delayed)::bigint as delayed,
                        sum(e.running)::bigint as running
                   from @schema.delta e group by e.queue_id) d using (queue_id)
     where q.name = any (p_queues);
end $$
--
create or replace function @schema.put_results(
  p_ids text[], p_fences bigint[], p_states smallint[], p_bodies bytea[], p_ttls float8[], p_finals boolean[],
  p_retention float8
) returns table (task_id text, outcome text) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
-- Each id once. Only what was not stored is told.
declare
  v_now constant float8 := date_part('epoch', clock_timestamp());
  v_stored text[];
begin
  with stored as (
    insert into @schema.result as r
    select u.id, u.fence, u.state, u.final, v_now, v_now + coalesce(u.ttl, p_retention), u.body
      from unnest(p_ids, p_fences, p_states, p_bodies, p_ttls, p_finals) u(id, fence, state, body, ttl, final)
     where not exists (select from @schema.task t
                        where t.id = u.id and t.result is not null and t.result_until > v_now and t.fence >= u.fence)
     order by u.id
    on conflict on constraint result_pkey do update
       set fence = excluded.fence, state = excluded.state, final = excluded.final, stored_at = excluded.stored_at,
           until = excluded.until, body = excluded.body
     where r.until <= v_now or excluded.fence > r.fence
        or (excluded.fence = r.fence and excluded.final and not r.final)
    returning r.task_id)
  select array_agg(s.task_id) into v_stored from stored s;
  if coalesce(cardinality(v_stored), 0) < cardinality(p_ids) then
    return query
      select u.id, (case when greatest(
               (select t.fence from @schema.task t where t.id = u.id and t.result is not null and t.result_until > v_now),
               (select r.fence from @schema.result r where r.task_id = u.id)) > u.fence then 's' else 'd' end)::text
        from unnest(p_ids, p_fences) u(id, fence)
       where not exists (select from unnest(v_stored) x(id) where x.id = u.id);
  end if;
end $$
--
create or replace function @schema.get_results(p_ids text[]) returns table (
  task_id text, fence bigint, state integer, body bytea, final boolean, stored_at float8, until float8
) language sql stable
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
  -- Most were written by the settle, into the task's own row; a result store beside another queue has its own table.
  select t.id, t.fence, t.state::integer, t.result, true, t.finished_at, t.result_until
    from @schema.task t
   where t.id = any (p_ids) and t.result is not null and t.result_until > @schema.now_s()
  union all
  select r.task_id, r.fence, r.state::integer, r.body, r.final, r.stored_at, r.until
    from @schema.result r where r.task_id = any (p_ids) and r.until > @schema.now_s()
$$
--
create or replace function @schema.delete_results(p_ids text[]) returns integer language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
  v_now constant float8 := date_part('epoch', clock_timestamp());
  v_seqs bigint[];
  v_inline text[];
  v_beside text[];
begin
  select array_agg(x.seq), array_agg(x.id) filter (where x.result_until > v_now) into v_seqs, v_inline from (
    select t.seq, t.id, t.result_until from @schema.task t
     where t.id = any (p_ids) and t.result is not null order by t.seq for update) x;
  update @schema.task t set result = null, result_until = null where t.seq = any (v_seqs);
  with gone as (
    delete from @schema.result r where r.task_id = any (p_ids) returning r.task_id, r.until)
  select array_agg(g.task_id) filter (where g.until > v_now) into v_beside from gone g;
  return (select count(distinct i) from unnest(v_inline || v_beside) i);
end $$
--
create or replace function @schema.append(
  p_ids text[], p_tasks text[], p_ats float8[], p_data bytea[], p_kind smallint[], p_types text[], p_queues text[],
  p_names text[], p_workers text[]
) returns integer[] language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
-- The places of the events that were there already. Each id once. Type, queue, name and worker repeat a lot: the last
-- four hold each set of them once, and p_kind tells which is each event's (null: there is but one).
declare
  v_base bigint;
  v_new integer;
begin
  -- Positions are drawn before the commit, and become visible with it. Without this lock a reader could pass a lower
  -- position that commits later. Appending is in large batches, and nothing else is done under the lock.
  perform pg_advisory_xact_lock(hashtextextended('@schema event', 0));
  v_base := nextval('@schema.event_block') * 1024;
  if cardinality(p_ids) >= 16 then
    begin  -- as in enqueue: nearly always all are new, and to ask for each costs half as much again
      insert into @schema.event (pos, at, id, task_id, type, queue, name, worker_id, data)
      select v_base + u.o, u.at, u.id, u.task_id, p_types[coalesce(u.kind, 1)], p_queues[coalesce(u.kind, 1)],
             p_names[coalesce(u.kind, 1)], p_workers[coalesce(u.kind, 1)], u.data
        from unnest(p_ids, p_tasks, p_ats, p_data, p_kind) with ordinality u(id, task_id, at, data, kind, o);
      return '{}';
    exception when unique_violation then
      null;
    end;
  end if;
  insert into @schema.event (pos, at, id, task_id, type, queue, name, worker_id, data)
  select v_base + u.o, u.at, u.id, u.task_id, p_types[coalesce(u.kind, 1)], p_queues[coalesce(u.kind, 1)],
         p_names[coalesce(u.kind, 1)], p_workers[coalesce(u.kind, 1)], u.data
    from unnest(p_ids, p_tasks, p_ats, p_data, p_kind) with ordinality u(id, task_id, at, data, kind, o)
  on conflict (id) do nothing;
  get diagnostics v_new = row_count;
  if v_new = cardinality(p_ids) then
    return '{}';
  end if;
  return array(select u.o::integer from unnest(p_ids) with ordinality u(id, o)
                where not exists (select from @schema.event e where e.pos = v_base + u.o));
end $$
--
create or replace function @schema.truncate(p_before float8, p_limit integer) returns integer language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
-- From the beginning of the log, so that no index on the time is needed for it. Some younger events may stand there (of
-- a machine whose clock is wrong) and are stepped over; those behind a thousand of them wait until they have gone.
declare
  v_count integer;
begin
  delete from @schema.event e where e.pos = any (array(
    select x.pos from (select f.pos, f.at from @schema.event f order by f.pos limit p_limit + 1000) x
     where x.at < p_before order by x.pos limit p_limit));
  get diagnostics v_count = row_count;
  return v_count;
end $$
