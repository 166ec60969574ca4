-- One tenant: a login role and a database of its own, closed to every other tenant. Run on the primary, as a
-- superuser, connected to the database `postgres`; it may be run again.
--
--   psql -d postgres -v tenant=acme -v password_file=FILE -v connection_limit=50 -f tenant.sql
--
-- FILE holds the password on one line; -v password=... does as well, but shows it to whoever may list processes.
-- connection_limit: the sum of the tenant's connections of all routers to one server, plus 2.
\set ON_ERROR_STOP on
\if :{?connection_limit}
\else
  \set connection_limit 50
\endif
\if :{?password_file}
  \set password `cat :'password_file'`
\endif

SELECT format('CREATE ROLE %I', :'tenant')
 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = :'tenant') \gexec

-- INHERIT is for pg_database_owner only, which owns the schema public: up to PostgreSQL 15 the owner of a database
-- may not create tables there without it. Grant this role no membership in another one.
ALTER ROLE :"tenant" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT
  PASSWORD :'password';
SELECT format('ALTER ROLE %I CONNECTION LIMIT %s', :'tenant', (:'connection_limit')::integer) \gexec

-- A tenant cannot raise temp_file_limit itself; the timeout it can, it only catches accidents.
ALTER ROLE :"tenant" SET temp_file_limit = '1GB';
ALTER ROLE :"tenant" SET idle_in_transaction_session_timeout = '60s';

-- template0: nothing an administrator may have added to template1 gets into a tenant's database.
SELECT format('CREATE DATABASE %I OWNER %I TEMPLATE template0 ENCODING ''UTF8''', :'tenant', :'tenant')
 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = :'tenant') \gexec

-- The owner keeps its own right to connect; everyone else loses the one PostgreSQL gives by default.
REVOKE ALL ON DATABASE :"tenant" FROM PUBLIC;
