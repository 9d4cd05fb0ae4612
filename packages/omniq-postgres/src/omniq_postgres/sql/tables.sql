create sequence @schema.block
--
create sequence @schema.token start with 2 increment by 2
--
create table @schema.queue (
  queue_id integer generated always as identity primary key,
  name text collate "C" not null unique,
  paused boolean not null default false,
  is_used boolean not null default true
)
--
create table @schema.task (
  seq bigint primary key,
  fence bigint not null default 0,
  enqueued_at float8 not null,
  run_at float8 not null,
  expires_at float8,
  finished_at float8,
  result_until float8,
  queue_id integer not null,
  attempt integer not null default 0,
  max_attempts integer not null,
  crashes integer not null default 0,
  max_crashes integer not null,
  rank smallint not null,
  state smallint not null default 0,
  cancel_requested boolean not null default false,
  id text collate "C" not null unique,
  name text collate "C" not null,
  unique_key text collate "C",
  body bytea not null,
  reason text,
  error bytea,
  result bytea
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000)
--
create table @schema.ready (
  queue_id integer not null,
  rank smallint not null,
  seq bigint not null,
  expires_at float8,
  primary key (queue_id, rank, seq)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
        autovacuum_analyze_threshold = 2000000000)
--
create index ready_expires_at on @schema.ready (expires_at) where expires_at is not null
--
create table @schema.delayed (
  queue_id integer not null,
  run_at float8 not null,
  seq bigint not null,
  expires_at float8,
  rank smallint not null,
  primary key (queue_id, run_at, seq)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
        autovacuum_analyze_threshold = 2000000000)
--
create index delayed_expires_at on @schema.delayed (expires_at) where expires_at is not null
--
create table @schema.claim (
  token bigint primary key,
  until float8 not null,
  open integer not null,
  claim_id text collate "C" not null unique,
  worker_id text not null,
  seqs bigint[] not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_analyze_threshold = 2000000000)
--
create index claim_until on @schema.claim (until)
--
create table @schema.uniq (
  key text collate "C" primary key,
  seq bigint not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000)
--
create table @schema.failed (seq bigint primary key)
--
create table @schema.look (
  due float8 not null,
  seqs bigint[] not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000)
--
create index look_due on @schema.look (due)
--
create table @schema.tally (
  queue_id integer primary key,
  pending bigint not null,
  delayed bigint not null,
  running bigint not null
) with (fillfactor = 50)
--
create table @schema.delta (
  queue_id integer not null,
  pending integer not null,
  delayed integer not null,
  running integer not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_analyze_threshold = 2000000000)
--
create table @schema.result (
  task_id text collate "C" primary key,
  fence bigint not null,
  state smallint not null,
  final boolean not null,
  stored_at float8 not null,
  until float8 not null,
  body bytea not null
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05)
--
create index result_until on @schema.result (until)
--
create sequence @schema.event_block
--
create table @schema.event (
  pos bigint primary key,
  at float8 not null,
  id text collate "C" not null unique,
  task_id text collate "C" not null,
  type text collate "C" not null,
  queue text collate "C" not null,
  name text collate "C" not null,
  worker_id text,
  data bytea not null
)
--
create index event_task on @schema.event (task_id, pos)
--
create index event_at on @schema.event using brin (at)
