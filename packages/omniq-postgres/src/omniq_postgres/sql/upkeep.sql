-- Upkeep and operators' verbs. Whoever moves a task holds its row in `task` first, then its place in `delayed`, then in
-- `ready` (a task may move from the one to the other meanwhile, and never back while its row is held).
--
create or replace function @schema.take_pending(p_seqs bigint[]) returns bigint[] language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
-- Takes tasks, whose rows the caller has locked, out of line; those that were pending.
declare
  v_delayed bigint[];
  v_ready bigint[];
begin
  with gone as (
    delete from @schema.delayed d using @schema.task t
     where t.seq = any (p_seqs) and d.queue_id = t.queue_id and d.run_at = t.run_at and d.seq = t.seq
    returning d.seq, d.queue_id),
  counted as (insert into @schema.delta select g.queue_id, -count(*), -count(*), 0 from gone g group by g.queue_id)
  select coalesce(array_agg(g.seq), '{}') into v_delayed from gone g;
  -- A statement of its own, with a younger snapshot: a claim may have moved some of them here while we waited for it.
  with gone as (
    delete from @schema.ready r using @schema.task t
     where t.seq = any (p_seqs) and r.queue_id = t.queue_id and r.rank = t.rank and r.seq = t.seq
    returning r.seq, r.queue_id),
  counted as (insert into @schema.delta select g.queue_id, -count(*), 0, 0 from gone g group by g.queue_id)
  select coalesce(array_agg(g.seq), '{}') into v_ready from gone g;
  return v_delayed || v_ready;
end $$
--
create or replace function @schema.note_final(p_seqs bigint[], p_now float8, p_retention float8) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
-- What follows from tasks having become dead, cancelled or expired.
begin
  delete from @schema.uniq k using @schema.task t
   where t.seq = any (p_seqs) and t.unique_key is not null and k.key = t.unique_key and k.seq = t.seq;
  insert into @schema.failed select s from unnest(p_seqs) s on conflict do nothing;
  insert into @schema.look values (p_now + p_retention, p_seqs);
end $$
--
create or replace function @schema.expire(p_limit integer, p_retention float8) returns bigint[] language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
  v_now constant float8 := date_part('epoch', clock_timestamp());
  v_seqs bigint[];
begin
  select array_agg(x.seq) into v_seqs from (
    (select r.seq from @schema.ready r where r.expires_at <= v_now order by r.expires_at limit p_limit)
    union all
    (select d.seq from @schema.delayed d where d.expires_at <= v_now order by d.expires_at limit p_limit)) x;
  if v_seqs is null then
    return '{}';
  end if;
  select array_agg(x.seq) into v_seqs from (
    select t.seq from @schema.task t where t.seq = any (v_seqs) and t.state = 0 order by t.seq for update skip locked) x;
  v_seqs := @schema.take_pending(v_seqs);
  if v_seqs <> '{}' then
    update @schema.task t set state = 5, finished_at = v_now, reason = 'its time to live passed before it was started'
     where t.seq = any (v_seqs);
    perform @schema.note_final(v_seqs, v_now, p_retention);
  end if;
  return v_seqs;
end $$
--
create or replace function @schema.reap(p_limit integer, p_retention float8) returns table (
  id text, queue text, name text, state smallint, fence bigint, attempt integer, crashes integer, reason text,
  worker_id text
) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
  v_now constant float8 := date_part('epoch', clock_timestamp());
  v_claim record;
  v_seqs bigint[];
  v_final bigint[];
  v_count integer := 0;
begin
  -- A claim that is being settled or extended at this moment is skipped: it has an owner.
  for v_claim in
    select c.token, c.worker_id, c.seqs from @schema.claim c where c.until <= v_now
     order by c.until limit p_limit for update skip locked
  loop
    with lost as (
      update @schema.task t
         set fence = v_claim.token + 1, attempt = t.attempt + 1, crashes = t.crashes + 1,
             state = case when t.cancel_requested then 4 when t.crashes + 1 >= t.max_crashes then 3 else 0 end,
             run_at = case when t.cancel_requested or t.crashes + 1 >= t.max_crashes then t.run_at else v_now end,
             finished_at = case when t.cancel_requested or t.crashes + 1 >= t.max_crashes then v_now end,
             reason = 'its worker was lost: the lease ended'
        from (select s from unnest(v_claim.seqs) s order by s) u
       where t.seq = u.s and t.state = 0 and t.fence < v_claim.token
      returning t.seq, t.state)
    select array_agg(l.seq), array_agg(l.seq) filter (where l.state > 0) into v_seqs, v_final from lost l;
    delete from @schema.claim c where c.token = v_claim.token;
    if v_seqs is not null then
      perform @schema.make_pending(v_seqs, v_now);
      insert into @schema.delta
      select t.queue_id, count(*) filter (where t.state = 0), 0, -count(*)
        from @schema.task t where t.seq = any (v_seqs) group by t.queue_id;
      if v_final is not null then
        perform @schema.note_final(v_final, v_now, p_retention);
      end if;
      return query
        select t.id, q.name, t.name, t.state, t.fence, t.attempt, t.crashes, t.reason, v_claim.worker_id
          from @schema.task t join @schema.queue q using (queue_id) where t.seq = any (v_seqs);
      v_count := v_count + cardinality(v_seqs);
      exit when v_count >= p_limit;
    end if;
  end loop;
  v_seqs := @schema.expire(p_limit, p_retention);
  return query
    select t.id, q.name, t.name, t.state, t.fence, t.attempt, t.crashes, t.reason, null::text
      from @schema.task t join @schema.queue q using (queue_id) where t.seq = any (v_seqs);
end $$
--
create or replace function @schema.forget(p_seqs bigint[]) returns integer language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
-- Deletes tasks, whose rows the caller has locked, with everything about them.
declare
  v_count integer;
begin
  delete from @schema.uniq k using @schema.task t
   where t.seq = any (p_seqs) and t.unique_key is not null and k.key = t.unique_key and k.seq = t.seq;
  delete from @schema.failed f where f.seq = any (p_seqs);
  if exists (select from @schema.result) then
    delete from @schema.result r using @schema.task t where t.seq = any (p_seqs) and r.task_id = t.id;
  end if;
  delete from @schema.task t where t.seq = any (p_seqs);
  get diagnostics v_count = row_count;
  return v_count;
end $$
--
create or replace function @schema.tidy(p_limit integer, p_retention float8, p_tasks boolean)
returns table (tasks integer, results integer, is_more boolean) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
  v_now constant float8 := date_part('epoch', clock_timestamp());
  v_look record;
  v_seqs bigint[];
  v_gone bigint[];
  v_count integer;
  v_seen integer := 0;
begin
  tasks := 0;
  results := 0;
  for v_look in
    select l.ctid, l.seqs from @schema.look l where l.due <= v_now order by l.due limit p_limit for update skip locked
  loop
    -- A task that is held by somebody is not waited for: its new entry lets us look again.
    select array_agg(x.seq), array_agg(x.seq) filter (where x.is_old) into v_seqs, v_gone from (
      select t.seq, p_tasks and t.finished_at + p_retention <= v_now
                    and (t.result is null or t.result_until <= v_now) as is_old
        from @schema.task t where t.seq = any (v_look.seqs) and t.state > 0 order by t.seq for update skip locked) x;
    update @schema.task t set result = null, result_until = null
     where t.seq = any (v_seqs) and t.result is not null and t.result_until <= v_now
       and (v_gone is null or t.seq <> all (v_gone));
    get diagnostics v_count = row_count;
    results := results + v_count;
    if v_gone is not null then
      tasks := tasks + @schema.forget(v_gone);
    end if;
    insert into @schema.look
    select greatest(max(greatest(t.finished_at + p_retention, t.result_until)), v_now + 1), array_agg(t.seq)
      from @schema.task t where t.seq = any (v_look.seqs) and t.state > 0 having count(*) > 0;
    delete from @schema.look l where l.ctid = v_look.ctid;
    v_seen := v_seen + cardinality(v_look.seqs);
    exit when v_seen >= p_limit;
  end loop;

  with old as (
    delete from @schema.result r where r.ctid = any (array(
      select x.ctid from @schema.result x where x.until <= v_now order by x.until limit p_limit for update skip locked))
    returning 1)
  select results + count(*) into results from old;
  is_more := v_seen >= p_limit or results >= p_limit;

  -- One at a time is enough. The counts stay right at every moment: the sum moves within one transaction.
  if p_tasks and pg_try_advisory_xact_lock(hashtextextended('@schema tally', 0)) then
    with taken as (
      delete from @schema.delta d where d.ctid = any (array(select x.ctid from @schema.delta x limit 20000))
      returning d.queue_id, d.pending, d.delayed, d.running)
    insert into @schema.tally as y
    select x.queue_id, sum(x.pending), sum(x.delayed), sum(x.running) from taken x group by x.queue_id order by 1
    on conflict (queue_id) do update
       set pending = y.pending + excluded.pending, delayed = y.delayed + excluded.delayed,
           running = y.running + excluded.running;
  end if;
  return next;
end $$
--
create or replace function @schema.cancel(p_ids text[], p_retention float8) returns table (id text, outcome text)
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
  v_now constant float8 := date_part('epoch', clock_timestamp());
  v_seqs bigint[];
  v_open bigint[];
  v_taken bigint[];
begin
  select array_agg(x.seq), array_agg(x.seq) filter (where x.state = 0) into v_seqs, v_open from (
    select t.seq, t.state from @schema.task t where t.id = any (p_ids) order by t.seq for update) x;
  v_taken := @schema.take_pending(coalesce(v_open, '{}'));
  if v_taken <> '{}' then
    update @schema.task t set state = 4, finished_at = v_now where t.seq = any (v_taken);
    perform @schema.note_final(v_taken, v_now, p_retention);
  end if;
  update @schema.task t set cancel_requested = true
   where t.seq = any (v_open) and t.state = 0 and not t.cancel_requested;
  return query
    select t.id, (case when t.seq = any (v_taken) then 'o' when t.state = 0 then 'r' else 'f' end)::text
      from @schema.task t where t.seq = any (v_seqs);
end $$
--
create or replace function @schema.requeue(p_ids text[]) returns table (id text, outcome text, queue text)
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
  v_now constant float8 := date_part('epoch', clock_timestamp());
  v_seqs bigint[];
  v_back bigint[];
begin
  select array_agg(x.seq), array_agg(x.seq) filter (where x.state > 2) into v_seqs, v_back from (
    select t.seq, t.state from @schema.task t where t.id = any (p_ids) order by t.seq for update) x;
  if v_back is not null then
    insert into @schema.uniq
    select t.unique_key, t.seq from @schema.task t
     where t.seq = any (v_back) and t.unique_key is not null order by 1, array_position(p_ids, t.id)
    on conflict do nothing;
    select array_agg(t.seq) into v_back from @schema.task t
     where t.seq = any (v_back)
       and (t.unique_key is null
            or exists (select from @schema.uniq k where k.key = t.unique_key and k.seq = t.seq));
    delete from @schema.failed f where f.seq = any (v_back);
    delete from @schema.result r using @schema.task t where t.seq = any (v_back) and r.task_id = t.id;
    update @schema.task t
       set state = 0, attempt = 0, crashes = 0, run_at = v_now, cancel_requested = false, expires_at = null,
           finished_at = null, reason = null, error = null, result = null, result_until = null
     where t.seq = any (v_back);
    perform @schema.make_pending(v_back, v_now);
    insert into @schema.delta
    select t.queue_id, count(*), 0, 0 from @schema.task t where t.seq = any (v_back) group by t.queue_id;
  end if;
  return query
    select t.id,
           (case when t.seq = any (v_back) then 'o' when t.state = 0 then 'd' when t.state = 2 then 'f' else 'c' end)::text,
           case when t.seq = any (v_back) then q.name end
      from @schema.task t join @schema.queue q using (queue_id) where t.seq = any (v_seqs);
end $$
--
create or replace function @schema.purge(p_seqs bigint[]) returns integer language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
  v_seqs bigint[];
  v_open bigint[];
begin
  select array_agg(x.seq) filter (where x.state > 0), array_agg(x.seq) filter (where x.state = 0)
    into v_seqs, v_open from (
    select t.seq, t.state from @schema.task t where t.seq = any (p_seqs) order by t.seq for update skip locked) x;
  return @schema.forget(coalesce(v_seqs, '{}') || @schema.take_pending(coalesce(v_open, '{}')));
end $$
--
create or replace function @schema.pause(p_queues text[], p_paused boolean) returns void language sql as $$
  insert into @schema.queue (name, paused, is_used) select n, p_paused, false from unnest(p_queues) n order by n
  on conflict (name) do update set paused = excluded.paused
$$
