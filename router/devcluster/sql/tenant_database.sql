-- What a tenant's database holds for the router, and the tenant's schema where the database is shared. Run as a
-- superuser, connected to the tenant's database, after tenant.sql; it may be run again. PostgreSQL 15 or newer.
--
--   psql -d acme -v tenant=acme -f tenant_database.sql
--
-- isolation, login, role: as for tenant.sql.
\set ON_ERROR_STOP on
-- Whatever the database's own settings say: no name here means anything but PostgreSQL's own.
SET search_path = pg_catalog;
\if :{?isolation}
\else
  \set isolation database
\endif
\if :{?login}
\else
  \set login :tenant
\endif
\if :{?role}
\else
  \set role :login
\endif

-- A schema of the administrator's, in which no tenant can make or change anything. One that the tenant made before
-- could hold views and triggers that act with our rights: then this ends here.
CREATE SCHEMA IF NOT EXISTS pointsman;
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_namespace AS n JOIN pg_roles AS r ON r.oid = n.nspowner
              WHERE n.nspname = 'pointsman' AND NOT r.rolsuper AND r.rolname <> current_user)
     OR EXISTS (SELECT FROM pg_class AS c JOIN pg_roles AS r ON r.oid = c.relowner
                 WHERE c.relnamespace = 'pointsman'::regnamespace AND NOT r.rolsuper AND r.rolname <> current_user) THEN
    RAISE EXCEPTION 'schema pointsman, or a table in it, is not a superuser''s'
      USING HINT = 'See what it holds; then drop it, or give all of it to a superuser.';
  END IF;
END $$;
ALTER SCHEMA pointsman OWNER TO CURRENT_USER;
REVOKE ALL ON SCHEMA pointsman FROM PUBLIC;
SELECT pg_catalog.format('REVOKE CREATE ON SCHEMA pointsman FROM %I', :'login') \gexec
SELECT pg_catalog.format('GRANT USAGE ON SCHEMA pointsman TO %I, %I', :'login', :'role') \gexec

-- Whose database this is. The router reads it on every new connection, and refuses one that is another tenant's.
CREATE TABLE IF NOT EXISTS pointsman.tenant_marker (
  login   name NOT NULL,
  tenant  text NOT NULL,
  made_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (login, tenant)
);
ALTER TABLE pointsman.tenant_marker OWNER TO CURRENT_USER;
REVOKE ALL ON TABLE pointsman.tenant_marker FROM PUBLIC;
SELECT pg_catalog.format('REVOKE ALL ON TABLE pointsman.tenant_marker FROM %I, %I', :'login', :'role') \gexec
SELECT pg_catalog.format('GRANT SELECT ON TABLE pointsman.tenant_marker TO %I, %I', :'login', :'role') \gexec
-- Where several logins use the database, none learns of the others here.
ALTER TABLE pointsman.tenant_marker ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS own_rows ON pointsman.tenant_marker;
CREATE POLICY own_rows ON pointsman.tenant_marker FOR SELECT USING (login = session_user);
-- One tenant a login, unless it runs registered statements only; one login a database, unless it is shared.
DELETE FROM pointsman.tenant_marker
 WHERE (login = :'login' AND tenant <> :'tenant' AND :'isolation' <> 'registered')
    OR (login <> :'login' AND :'isolation' = 'database');
INSERT INTO pointsman.tenant_marker (login, tenant) VALUES (:'login', :'tenant') ON CONFLICT DO NOTHING;

-- The table that makes writes with an idempotency key exactly-once: a key's row is written in the transaction of its write,
-- and lives or dies with it. The router deletes old ones. Each row is updated once, in place: hence room on each page.
-- Never partition it by time: a unique index would then let the same key in again.
CREATE TABLE IF NOT EXISTS pointsman.idempotency (
  login        name NOT NULL DEFAULT session_user,
  tenant       text NOT NULL,
  key          text NOT NULL,
  request_hash bytea NOT NULL,
  answer       bytea,
  created_at   timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (login, tenant, key)
) WITH (fillfactor = 70);
CREATE INDEX IF NOT EXISTS idempotency_age ON pointsman.idempotency (created_at);
ALTER TABLE pointsman.idempotency OWNER TO CURRENT_USER;
REVOKE ALL ON TABLE pointsman.idempotency FROM PUBLIC;
SELECT pg_catalog.format('GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE pointsman.idempotency TO %I, %I',
                         :'login', :'role') \gexec
ALTER TABLE pointsman.idempotency ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS own_rows ON pointsman.idempotency;
CREATE POLICY own_rows ON pointsman.idempotency USING (login = session_user);

-- A shared database: nobody makes objects that others may stumble over; each tenant has a schema of its own.
SELECT 'REVOKE CREATE ON SCHEMA public FROM PUBLIC'
 WHERE :'isolation' <> 'database' \gexec
SELECT pg_catalog.format('CREATE SCHEMA IF NOT EXISTS %I AUTHORIZATION %I', :'tenant', :'login')
 WHERE :'isolation' = 'schema' \gexec
SELECT pg_catalog.format('REVOKE ALL ON SCHEMA %I FROM PUBLIC', :'tenant')
 WHERE :'isolation' = 'schema' \gexec
